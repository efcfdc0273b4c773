//! Memory of a worker: its whole family, shared pages counted by share.

use std::fs;
use std::path::Path;

use crate::worker::family;

/// Bytes of memory of everything the worker started, read where the event loop does not wait for it: the kernel walks a
/// process's mappings to add this up.
pub async fn memory(leader: u32, mark: String) -> u64 {
    let sum = move || family::of_worker(leader, &mark).iter().map(|one| of_process(one.pid)).sum();
    tokio::task::spawn_blocking(sum).await.unwrap_or(0)
}

/// Bytes that new processes may still use: what the machine has, and what the control groups edge is in allow. `None` where
/// the kernel does not say. The files are the kernel's own and answer at once.
pub fn available() -> Option<u64> {
    let machine = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        Some(kilobytes(&text, "MemAvailable:")?.saturating_mul(1024))
    };
    machine().into_iter().chain(group_available()).min()
}

/// How many more workers as large as `largest` fit into what is available, each with a fifth to spare.
pub fn room(available: Option<u64>, largest: u64) -> u32 {
    // Where one of them is not known, nothing speaks against another worker.
    let fit = available.and_then(|available| available.checked_div(largest.saturating_add(largest / 5)));
    fit.and_then(|fit| u32::try_from(fit).ok()).unwrap_or(u32::MAX)
}

/// How many processes the kernel has ended for lack of memory: in our control group where it says so, on the machine
/// otherwise.
pub fn out_of_memory_kills() -> u64 {
    let count =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    let group = || {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let events = Path::new("/sys/fs/cgroup").join(path).join("memory.events");
        count(&fs::read_to_string(events).ok()?)
    };
    let machine = || count(&fs::read_to_string("/proc/vmstat").ok()?);
    group().or_else(machine).unwrap_or(0)
}

/// What the tightest of our control groups (version 2) leaves. Cached files do not count as used: the kernel lets go of them.
fn group_available() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let left = |group: &Path| {
        let number = |file| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
        let cached = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let cached = cached.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        let used: u64 = number("memory.current")?;
        Some(number("memory.max")?.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
    };
    root.join(path).ancestors().take_while(|group| group.starts_with(root)).filter_map(left).min()
}

/// Proportional share where it may be read, resident size otherwise.
fn of_process(pid: u32) -> u64 {
    let share = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .ok()
        .and_then(|text| kilobytes(&text, "Pss:"));
    let resident = || kilobytes(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, "VmRSS:");
    share.or_else(resident).unwrap_or(0).saturating_mul(1024)
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_more_workers_fit_as_have_a_fifth_to_spare() {
        const MB: u64 = 1 << 20;
        for (available, largest, expected) in [
            (Some(120 * MB), 100 * MB, 1),
            (Some(120 * MB - 1), 100 * MB, 0),
            (Some(500 * MB), 100 * MB, 4),
            (Some(0), MB, 0),
            (Some(0), 0, u32::MAX),
            (None, 100 * MB, u32::MAX),
            (Some(u64::MAX), 1, u32::MAX),
            (Some(MB), u64::MAX, 0),
        ] {
            assert_eq!(room(available, largest), expected, "{available:?} {largest}");
        }
    }

    #[tokio::test]
    async fn a_process_has_memory() {
        let me = std::process::id();
        assert!(of_process(me) > 1024 * 1024);
        assert!(available().is_none_or(|bytes| bytes > 0));
        assert_eq!(memory(0x3fff_ffff, "nobody".into()).await, 0);
        assert_eq!(kilobytes("Rss:  1 kB\nPss:     17 kB\n", "Pss:"), Some(17));
    }
}
