"""Who is compared: edge, Caddy before uvicorn, nginx before gunicorn. Each with its documented production settings, the same
application, the same certificate, four workers, unix sockets between proxy and workers, kept connections, no access log."""

import calendar
import json
import os
import pwd
import re
import signal
import subprocess
import time

import newest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
APPS = os.path.join(ROOT, "tests", "apps")
VENV = os.path.join(ROOT, "target", "test-venv", "bin")
WORKERS = 4
USER = pwd.getpwuid(os.getuid()).pw_name


def said(command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def tree(roots):
    """The processes `roots` and all that descend from them."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat:
                parents[int(name)] = int(stat.read().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found, more = set(), set(roots)
    while more:
        found |= more
        more = {pid for pid, parent in parents.items() if parent in found} - found
    return found


def cpu(pids):
    """Seconds of CPU that they have used so far, and children of theirs that have ended."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            ticks += sum(map(int, stat.read().rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Settings:
    """What a scenario asks of every target."""

    def __init__(self, max_requests=0, hang=0):
        self.max_requests = max_requests
        self.hang = hang


class Target:
    """Processes of one target, from start to stop, and what its workers wrote in their diary."""

    name = ""

    def __init__(self, shared, port):
        self.shared, self.port = shared, port
        self.processes = []

    def start(self, directory, settings):
        self.dir = directory
        os.makedirs(directory)
        os.chmod(directory, 0o755)
        self.diary = os.path.join(directory, "diary")
        self.launch(settings)

    def all(self):
        """Every process of it."""
        return tree(process.pid for process in self.processes)

    def run(self, label, command):
        log = open(os.path.join(self.dir, label + ".log"), "wb")
        environment = dict(os.environ, APP_DIARY=self.diary, PATH=VENV + ":" + os.environ["PATH"],
                           PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1", HOME=self.dir, XDG_DATA_HOME=self.dir)
        process = subprocess.Popen(command, cwd=APPS, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True)
        self.processes.append(process)
        return process

    def entries(self):
        """(what, pid, when) of everything the workers have written."""
        try:
            with open(self.diary) as lines:
                return [(what, int(pid), float(when)) for what, pid, when in map(str.split, lines)]
        except FileNotFoundError:
            return []

    def began(self):
        """When each worker could be asked, by pid."""
        return {pid: when for what, pid, when in self.entries() if what == "up"}

    def ended(self):
        """When workers stopped by themselves or on request, by pid."""
        return {pid: when for what, pid, when in self.entries() if what == "down"}

    def stop(self):
        """Ends all that was started here, by pid: the proxy first, workers that hang at the latest."""
        left = [pid for pid in self.began() if alive(pid)]
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.time() + 5
        while time.time() < end and any(process.poll() is None for process in self.processes):
            time.sleep(0.05)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for pid in left:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        self.processes.clear()


class Edge(Target):
    """edge alone: it starts the workers itself."""

    name = "edge"

    def version(self):
        return "edge " + re.sub(r"^edge ", "", said([self.shared["edge"], "--version"])) + f", uvicorn {self.shared['uvicorn']}"

    def proxies(self):
        """The processes that stand before the workers."""
        return {self.processes[0].pid}

    def launch(self, settings):
        self.config = os.path.join(self.dir, "edge.yaml")
        with open(self.config, "w") as out:
            out.write(f"""storage: {self.dir}/storage
runtime_dir: {self.dir}/run
listen: {{http: [], https: ["127.0.0.1:{self.port}"]}}
log: {{format: json, access: false}}
apps:
  app:
    domains: [localhost]
    tls: {{cert: {self.shared['cert']}, key: {self.shared['key']}}}
    command: uvicorn main:app --no-access-log
    workers: {WORKERS}
    working_dir: {APPS}
    user: {USER}
    environment: {{APP_DIARY: {self.diary}, PATH: "{VENV}:{os.environ['PATH']}", PYTHONDONTWRITEBYTECODE: "1"}}
    max_requests: {settings.max_requests}
""" + (f"    hang_timeout: {settings.hang}s\n" if settings.hang else ""))
        self.run("edge", [self.shared["edge"], "--config", self.config])

    def events(self, message):
        found = {}
        with open(os.path.join(self.dir, "edge.log")) as lines:
            for line in lines:
                # The last line may not be whole yet.
                if message in line and line.endswith("\n"):
                    event = json.loads(line)
                    stamp = event["ts"].rstrip("Z")
                    seconds, _, rest = stamp.partition(".")
                    when = time.strptime(seconds, "%Y-%m-%dT%H:%M:%S")
                    found[event["pid"]] = calendar.timegm(when) + float("0." + (rest or "0"))
        return found

    def began(self):
        """As edge itself sees it, which is later than the worker's own word: after the first answer."""
        return self.events('"worker ready"')

    def ended(self):
        return super().ended() | self.events('"worker draining"')

    def deploy(self):
        return self.run("reload", [self.shared["edge"], "--config", self.config, "reload", "app"])


class Rival(Target):
    """A proxy before a server that manages its own workers."""

    def proxies(self):
        return tree([self.processes[1].pid])

    def launch(self, settings):
        self.socket = os.path.join(self.dir, "app.sock")
        self.server = self.run("server", self.server_command(settings))
        end = time.time() + 30
        while not os.path.exists(self.socket) and time.time() < end:
            time.sleep(0.02)
        os.chmod(self.socket, 0o666)
        self.proxy()

    def deploy(self):
        self.server.send_signal(signal.SIGHUP)


class CaddyUvicorn(Rival):
    name = "Caddy + uvicorn"

    def version(self):
        return f"Caddy {said([self.shared['caddy'], 'version']).split()[0].lstrip('v')}, uvicorn {self.shared['uvicorn']}"

    def server_command(self, settings):
        command = ["uvicorn", "main:app", "--workers", str(WORKERS), "--uds", self.socket, "--no-access-log",
                   "--forwarded-allow-ips", "*", "--timeout-keep-alive", "75"]
        if settings.max_requests:
            jitter = settings.max_requests // 5
            command += ["--limit-max-requests", str(settings.max_requests), "--limit-max-requests-jitter", str(jitter)]
        return command

    def proxy(self):
        config = os.path.join(self.dir, "Caddyfile")
        with open(config, "w") as out:
            out.write(f"""{{
	admin off
	auto_https off
	persist_config off
	servers {{
		protocols h1 h2
	}}
}}
https://localhost:{self.port} {{
	bind 127.0.0.1
	tls {self.shared['cert']} {self.shared['key']}
	reverse_proxy unix/{self.socket} {{
		lb_try_duration 5s
		transport http {{
			keepalive 60s
			keepalive_idle_conns_per_host 512
		}}
	}}
}}
""")
        self.run("caddy", [self.shared["caddy"], "run", "--adapter", "caddyfile", "--config", config])


class NginxGunicorn(Rival):
    name = "nginx + gunicorn"

    def version(self):
        nginx = said([*self.shared["nginx"], "-v"]).rpartition("/")[2]
        return f"nginx {nginx}, gunicorn {self.shared['gunicorn']}, uvicorn-worker {self.shared['uvicorn_worker']}"

    def server_command(self, settings):
        command = ["gunicorn", "main:app", "-k", "uvicorn_worker.UvicornWorker", "-w", str(WORKERS), "-b", f"unix:{self.socket}",
                   "--forwarded-allow-ips", "*", "--keep-alive", "75", "--no-control-socket"]
        if settings.max_requests:
            jitter = settings.max_requests // 5
            command += ["--max-requests", str(settings.max_requests), "--max-requests-jitter", str(jitter)]
        if settings.hang:
            command += ["--timeout", str(settings.hang)]
        return command

    def proxy(self):
        config = os.path.join(self.dir, "nginx.conf")
        temporary = "".join(f"  {kind}_temp_path {self.dir}/{kind};\n"
                            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        with open(config, "w") as out:
            out.write(f"""daemon off;
worker_processes auto;
{f'user {USER};' if os.getuid() == 0 else ''}
pid {self.dir}/nginx.pid;
error_log {self.dir}/nginx.err error;
events {{ worker_connections 4096; accept_mutex off; }}
http {{
{temporary}  access_log off;
  keepalive_requests 100000;
  map $http_upgrade $to_worker {{ default upgrade; '' ''; }}
  upstream app {{
    server unix:{self.socket} fail_timeout=0;
    keepalive 64;
    keepalive_requests 100000;
  }}
  server {{
    listen 127.0.0.1:{self.port} ssl;
    server_name localhost;
    ssl_certificate {self.shared['cert']};
    ssl_certificate_key {self.shared['key']};
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $to_worker;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_redirect off;
    }}
  }}
}}
""")
        self.run("nginx", [*self.shared["nginx"], "-e", os.path.join(self.dir, "nginx.err"), "-c", config])


ALL = [Edge, CaddyUvicorn, NginxGunicorn]


def prepare(edge, tools):
    """Everything the targets need, by name."""
    if subprocess.run([os.path.join(ROOT, "tests", "python")]).returncode:
        raise SystemExit("cannot install the Python servers")
    root = newest.unpack(os.path.join(tools, "newest"), ["nginx", "caddy"])
    shared = {"edge": edge, "nginx": newest.program(root, "/usr/sbin/nginx"), "caddy": root + "/usr/bin/caddy"}
    for package in ("uvicorn", "gunicorn", "uvicorn_worker"):
        code = f"import importlib.metadata; print(importlib.metadata.version('{package}'))"
        shared[package] = said([VENV + "/python", "-c", code])
    return shared


def certificate(directory):
    """One key and certificate for every target; it is its own root."""
    cert, key = os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext",
                    "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return {"cert": cert, "key": key}


def built(edge, load):
    """The programs that are measured with: given, or built as a release."""
    if not edge:
        subprocess.run(["cargo", "build", "--locked", "--release", "--bin", "edge", "--example", "load"], check=True)
    edge = os.path.abspath(edge or "target/release/edge")
    return edge, os.path.abspath(load or os.path.join(os.path.dirname(edge), "examples", "load"))


def chosen(names, shared, port):
    """The targets whose names begin so, each on a port of its own."""
    wanted = tuple(names.split(","))
    return [one(shared, port + place) for place, one in enumerate(ALL) if one.__name__.lower().startswith(wanted)]
