//! Memory of a worker: its whole family, shared pages counted by share.

use std::fs;

use crate::worker::family;

/// Bytes of memory of everything the worker started, read where the event loop does not wait for it: the kernel walks a
/// process's mappings to add this up.
pub async fn memory(leader: u32, mark: String) -> u64 {
    let sum = move || family::of_worker(leader, &mark).iter().map(|one| of_process(one.pid)).sum();
    tokio::task::spawn_blocking(sum).await.unwrap_or(0)
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

    #[tokio::test]
    async fn a_process_has_memory() {
        let me = std::process::id();
        assert!(of_process(me) > 1024 * 1024);
        assert_eq!(memory(0x3fff_ffff, "nobody".into()).await, 0);
        assert_eq!(kilobytes("Rss:  1 kB\nPss:     17 kB\n", "Pss:"), Some(17));
    }
}
