//! The process table, as far as tests ask it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Processes that still live and were started below `dir`: it stands in their environment, arguments or working directory.
pub(crate) fn belonging_to(dir: &Path) -> Vec<(u32, String)> {
    let needle = dir.as_os_str().as_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || !is_alive(pid) {
            continue;
        }
        let proc = entry.path();
        let environ = fs::read(proc.join("environ")).unwrap_or_default();
        let cmdline = fs::read(proc.join("cmdline")).unwrap_or_default();
        let cwd = fs::read_link(proc.join("cwd")).unwrap_or_default();
        if contains(&environ, needle) || contains(&cmdline, needle) || cwd.starts_with(dir) {
            found.push((pid, String::from_utf8_lossy(&cmdline).replace('\0', " ")));
        }
    }
    found
}

/// Whether the process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    // The state follows the command's name, which is in parentheses and may itself hold some.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// What a process has used of a CPU, its threads included, its children not.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let (_, rest) = stat.rsplit_once(") ").expect("a name in parentheses");
    let ticks = rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number"));
    // Linux counts a hundred a second, on every architecture.
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// Resident memory of a process, in KiB.
pub(crate) fn memory(pid: u32) -> u64 {
    memory_if_alive(pid).expect("the process lives")
}

/// The same, of a process that may have ended.
pub(crate) fn memory_if_alive(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    resident.split_whitespace().next()?.parse().ok()
}

/// Effective user id of a process.
pub(crate) fn uid_of(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("Uid line");
    uids.split_whitespace().nth(1).expect("effective uid").parse().expect("a number")
}

/// Children of a process, zombies included, with their state.
pub(crate) fn children_of(parent: u32) -> Vec<(u32, char)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let state = fields.next().and_then(|field| field.chars().next());
        let ppid = fields.next().and_then(|field| field.parse::<u32>().ok());
        if let (Some(state), Some(ppid)) = (state, ppid)
            && ppid == parent
        {
            found.push((pid, state));
        }
    }
    found
}

/// All processes that a process has started, and those that these have.
pub(crate) fn descendants_of(parent: u32) -> Vec<u32> {
    let mut found: Vec<u32> = children_of(parent).into_iter().map(|(pid, _)| pid).collect();
    let mut at = 0;
    while let Some(next) = found.get(at) {
        found.extend(children_of(*next).into_iter().map(|(pid, _)| pid));
        at += 1;
    }
    found
}

/// What a process may do that others may not, as the kernel's bits.
pub(crate) fn capabilities_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff line");
    u64::from_str_radix(effective.trim(), 16).expect("a number")
}

/// TCP addresses on which one of these processes listens.
pub(crate) fn listening(pids: &[u32]) -> Vec<SocketAddr> {
    let open = |pid: &u32| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let sockets: Vec<String> = pids
        .iter()
        .flat_map(open)
        .filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned))
        .collect();
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A is the state of listeners.
            if fields[3] == "0A" && sockets.contains(&format!("socket:[{}]", fields[9])) {
                found.push(address(fields[1]));
            }
        }
    }
    found
}

/// An address as the kernel prints it: words in the order of this machine, then the port.
fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').expect("address and port");
    let words = (0..ip.len()).step_by(8).map(|at| u32::from_str_radix(&ip[at..at + 8], 16).expect("a word"));
    let bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    let ip = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(bytes) => IpAddr::from(bytes),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(&bytes[..]).expect("four words")).to_canonical(),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).expect("a port"))
}

/// Every process of the process namespace that `one` is in, zombies included, with their state.
pub(crate) fn beside(one: u32) -> Vec<(u32, char)> {
    let space = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let ours = space(one).expect("the process lives");
    let mut found = Vec::new();
    let mut parents = vec![one];
    // The namespace of a zombie cannot be asked for: it is found by descent from the first process.
    while let Some(parent) = parents.pop() {
        for (pid, state) in children_of(parent) {
            if state == 'Z' || space(pid).is_none_or(|space| space == ours) {
                found.push((pid, state));
                parents.push(pid);
            }
        }
    }
    found
}

/// Sends `signal`; a process that is gone already is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// Whether the tests run as root.
pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Words that execute what follows them without these capabilities of root, such as `-sys_nice`. Everybody else has none.
pub(crate) fn without(capabilities: &str) -> Vec<String> {
    if !root() {
        return Vec::new();
    }
    // Without that setpriv takes nothing away, and does not say so.
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("in every status");
    let has_setpcap = u64::from_str_radix(effective, 16).expect("hexadecimal") & 1 << 8 != 0;
    assert!(
        has_setpcap,
        "as root this test needs CAP_SETPCAP, to run edge without some capabilities: {capabilities}"
    );
    vec!["setpriv".to_owned(), format!("--bounding-set={capabilities}")]
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}
