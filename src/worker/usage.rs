//! Memory of a worker: what its control group counts or, without one, its whole family, shared pages counted by share.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use tokio::sync::OwnedSemaphorePermit;

use crate::worker::cgroup::{self, Counter};
use crate::worker::delegation;
use crate::worker::family::{self, Mark};

/// Bytes of memory of everything the worker started, read where the event loop does not wait for it: the kernel walks a
/// process's mappings to add this up. `turn` is given back when it has been read.
pub(super) async fn memory(
    leader: (u32, u64),
    mark: Mark,
    counter: Option<Counter>,
    turn: OwnedSemaphorePermit,
) -> u64 {
    let sum = move || {
        let _turn = turn;
        let family =
            || family::of_worker(leader, mark, &HashSet::new()).iter().map(|one| of_process(one.pid)).sum();
        counter.and_then(|counter| counter.bytes()).unwrap_or_else(family)
    };
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
    let count = |text: &str| delegation::number(text, "oom_kill");
    let group = || count(&fs::read_to_string(cgroup::own_group().ok()?.join("memory.events")).ok()?);
    let machine = || count(&fs::read_to_string("/proc/vmstat").ok()?);
    group().or_else(machine).unwrap_or(0)
}

/// What the tightest of our control groups (version 2) leaves. Cached files do not count as used: the kernel lets go of them.
fn group_available() -> Option<u64> {
    let own = cgroup::own_group().ok()?;
    let left = |group: &Path| {
        let read = |file| fs::read_to_string(group.join(file)).ok();
        let number = |file| read(file)?.trim().parse::<u64>().ok();
        let cached = delegation::number(&read("memory.stat")?, "inactive_file").unwrap_or(0);
        Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(cached)))
    };
    // Above the mount there is no such file.
    own.ancestors().filter_map(left).min()
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
        let nobody = Mark::of_an_edge(&mut fastrand::Rng::with_seed(7));
        let turn = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).acquire_owned().await.expect("open");
        assert_eq!(memory((0x3fff_ffff, 1), nobody, None, turn).await, 0);
        assert_eq!(kilobytes("Rss:  1 kB\nPss:     17 kB\n", "Pss:"), Some(17));
    }
}
