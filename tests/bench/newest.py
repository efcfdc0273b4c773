"""Programs of Debian's newest suite, unpacked below a directory and never installed: nothing on the system changes."""

import glob
import os
import re
import subprocess
import sys

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def mirror():
    """The mirror this machine's own apt uses."""
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]:
        if not os.path.exists(path):
            continue
        with open(path, errors="replace") as lines:
            for line in lines:
                found = re.match(r"(?:URIs:|deb\s+(?:\[[^]]*\]\s+)?)\s*(\S+/debian)/?(?:\s|$)", line)
                if found:
                    return found.group(1)
    raise SystemExit("no Debian mirror in /etc/apt: nginx and Caddy cannot be had")


def unpack(base, packages):
    """The root of the unpacked packages and all they need; fetched once."""
    root = os.path.join(base, "root")
    stamp = os.path.join(base, "unpacked")
    if os.path.exists(stamp) and open(stamp).read() == " ".join(packages):
        return root
    print("fetching", ", ".join(packages), "of Debian's newest suite into", base, file=sys.stderr, flush=True)
    for part in ("state/lists/partial", "cache/archives/partial", "etc", "root"):
        os.makedirs(os.path.join(base, part), exist_ok=True)
    with open(base + "/etc/sources.list", "w") as out:
        out.write(f"deb [signed-by={KEYRING}] {mirror()} sid main\n")
    open(base + "/status", "a").close()
    options = [f"Dir::State={base}/state", f"Dir::Cache={base}/cache", f"Dir::Etc::sourcelist={base}/etc/sources.list",
               "Dir::Etc::sourceparts=/dev/null", f"Dir::State::status={base}/status", "APT::Install-Recommends=false",
               "Debug::NoLocking=1", "APT::Sandbox::User=root"]
    apt = ["apt-get", *[word for option in options for word in ("-o", option)]]
    for call in (["update"], ["install", "-y", "--download-only", *packages]):
        done = subprocess.run(apt + call, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise SystemExit(f"apt-get {call[0]}: {done.stderr[-800:]}")
    for package in glob.glob(base + "/cache/archives/*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    with open(stamp, "w") as out:
        out.write(" ".join(packages))
    return root


def program(root, path):
    """The command of an unpacked program: run by its own suite's loader, with its own suite's libraries."""
    libraries = glob.glob(root + "/usr/lib/*-linux-gnu")[0]
    loader = glob.glob(libraries + "/ld-linux-*.so.*")[0]
    return [loader, "--library-path", libraries, root + path]
