//! Everything a worker started: its session, its descendants, and what it left behind when it died.
//!
//! A descendant that made itself a session of its own and lost its parent is ours by adoption (edge is a subreaper); it is
//! known by the [`Mark`] it inherited.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use crate::pidfd::Handle;
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// One line of the kernel's process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// When it started, in ticks since boot: tells it from a later process with the same id.
    pub start: u64,
    /// It has ended and waits for its parent to notice.
    pub zombie: bool,
}

/// A number that everything a worker starts inherits: its limit of file locks, which Linux has not kept since 2.4.25. Neither
/// fork nor exec, a session of its own, another user, closed descriptors nor an emptied environment take it away; only a process
/// with CAP_SYS_RESOURCE can raise it again. The upper bits name the edge, the lower ones count its workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Mark(u64);

/// Bits that count workers. Those above stay below the sign, which some programs print limits with.
const COUNTED: u32 = 24;

impl Mark {
    /// One that no other edge has.
    pub fn of_an_edge(rng: &mut fastrand::Rng) -> Self {
        Self(rng.u64(1..1 << (63 - COUNTED)) << COUNTED)
    }

    /// That of this edge's `count`th worker, counted from 1.
    #[must_use]
    pub fn worker(self, count: u64) -> Self {
        Self(self.0 | (count % (1 << COUNTED)))
    }

    /// Whether a worker of the edge with the mark `edge` has it.
    pub fn is_of(self, edge: Self) -> bool {
        self.0 >> COUNTED == edge.0 >> COUNTED
    }

    /// The limit that says it.
    pub fn limit(self) -> u64 {
        self.0
    }

    /// That of a process.
    pub fn of_process(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/limits")).ok()?)
    }

    /// Reads `/proc/PID/limits` without allocating.
    pub fn parse(limits: &[u8]) -> Option<Self> {
        let line =
            limits.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"Max file locks"))?;
        let soft = std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?;
        soft.parse().ok().map(Self)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// Every process of this machine, or of this container.
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(process).collect()
}

/// One process, if it exists.
pub fn process(pid: u32) -> Option<Process> {
    parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `/proc/PID/stat` without allocating. The name in it is in parentheses and may hold anything, even those.
pub fn parse(pid: u32, stat: &[u8]) -> Option<Process> {
    let end = memchr::memrchr(b')', stat)?;
    let text = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let mut fields = text.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Field 22; the session was field 6.
    let start = fields.nth(15)?.parse().ok()?;
    Some(Process { pid, parent, group, session, start, zombie })
}

/// Those of `table` that belong to the worker whose first process is, or was, `leader`: its session and group, what
/// `adopted` says of, and all their descendants.
pub fn members(table: &[Process], leader: u32, adopted: impl Fn(&Process) -> bool) -> Vec<Process> {
    let me = std::process::id();
    let belongs =
        |one: &&Process| one.pid == leader || one.session == leader || one.group == leader || adopted(one);
    let mut found: Vec<Process> = table.iter().filter(|one| one.pid != me).filter(belongs).copied().collect();
    let mut known: HashSet<u32> = found.iter().map(|one| one.pid).collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|one| one.pid) {
        next += 1;
        for one in table {
            if one.parent == parent && one.pid != me && known.insert(one.pid) {
                found.push(*one);
            }
        }
    }
    found
}

/// The family of a worker of ours that was started at `start`, now; `within` are the processes of its control group.
pub fn of_worker((leader, start): (u32, u64), mark: Mark, within: &HashSet<u32>) -> Vec<Process> {
    let me = std::process::id();
    // Only orphans are looked into: anybody else is found by descent.
    let orphan = |one: &Process| one.parent == me && !one.zombie && Mark::of_process(one.pid) == Some(mark);
    let table = processes();
    let leader = if is_strangers(&table, leader, start) { NOBODY } else { leader };
    members(&table, leader, |one| within.contains(&one.pid) || orphan(one))
}

/// Whether the worker's number is somebody else's by now: its status was taken, and nobody was left who named it as his session
/// or group. A `start` of 0 is not known.
fn is_strangers(table: &[Process], leader: u32, start: u64) -> bool {
    start != 0 && table.iter().any(|one| one.pid == leader && one.start != start)
}

/// No process has this id.
pub(super) const NOBODY: u32 = 0x7fff_ffff;

/// Kills every process that `find` finds, again and again until there is none, and reaps those of them and of `seen` that are
/// ours. Returns those that outlived it, which only a process stuck in the kernel does.
pub async fn end(seen: Vec<Process>, find: impl Fn() -> Vec<Process>) -> Vec<Process> {
    const ROUNDS: usize = 20;
    const ROUND: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_millis(2);
    // Once dead, a process that left the session shows no mark any more: it has to be remembered.
    let mut seen = seen;
    for _ in 0..ROUNDS {
        seen.retain(remains);
        for one in find() {
            if seen.iter().all(|known| known.pid != one.pid) {
                seen.push(one);
            }
        }
        if seen.is_empty() {
            return seen;
        }
        let found = &seen;
        let handles: Vec<Handle> = found.iter().filter_map(|one| signal(one, Signal::KILL).ok()?).collect();
        let gone = async {
            for handle in handles {
                // A pidfd is readable once its process has ended, parent or not.
                let _ = handle.ended().await;
                reap(&handle);
            }
        };
        // On time-out the next round looks again; nothing is lost.
        let _ = tokio::time::timeout(ROUND, gone).await;
        // The kernel hands orphans over a moment after their parent's end is visible.
        tokio::time::sleep(PAUSE).await;
    }
    seen.retain(remains);
    seen
}

/// Whether it lives still, or waits for us to take its status.
fn remains(one: &Process) -> bool {
    let waits_for_us = |now: &Process| now.parent == std::process::id();
    process(one.pid).is_some_and(|now| now.start == one.start && (!now.zombie || waits_for_us(&now)))
}

/// Sends a signal to exactly this process, not to a later one with its id.
pub(super) fn signal(one: &Process, signal: Signal) -> io::Result<Option<Handle>> {
    let handle = Handle::open(one.pid)?;
    if process(one.pid).is_none_or(|now| now.start != one.start) {
        return Ok(None);
    }
    rustix::process::pidfd_send_signal(&handle, signal)?;
    Ok(Some(handle))
}

/// Takes the exit status of an ended process if it is a child of ours; otherwise its own parent does.
fn reap(handle: &Handle) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let _not_ours = rustix::process::waitid(WaitId::PidFd(handle.as_fd()), options);
}

/// How this process is known after its end: its id and start time.
pub(super) fn this_process() -> (u32, u64) {
    let pid = std::process::id();
    (pid, process(pid).map_or(0, |one| one.start))
}

/// Whether a process of this id and start time exists.
pub(super) fn lives(pid: u32, start: u64) -> bool {
    process(pid).is_some_and(|one| one.start == start && !one.zombie)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(pid: u32, parent: u32, session: u32) -> Process {
        Process { pid, parent, group: session, session, start: 1, zombie: false }
    }

    #[test]
    fn a_name_cannot_disguise_a_process() {
        let stat = b"77 (a) Z 1 (b)) S 5 77 70 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2\n";
        let read = parse(77, stat).expect("parses");
        assert_eq!((read.parent, read.group, read.session, read.start), (5, 77, 70, 4242));
        assert!(!read.zombie);
        assert_eq!(parse(1, b"1 (x"), None);
        assert_eq!(parse(1, b""), None);
    }

    #[test]
    fn a_family_is_session_descendants_and_adopted() {
        let big = 4_000_000;
        let table = [
            one(big + 1, 1, big + 1),
            one(big + 2, big + 1, big + 1),
            one(big + 3, big + 2, big + 3),
            one(big + 4, big + 3, big + 3),
            one(big + 5, 1, big + 1),
            one(big + 6, 1, big + 6),
            one(big + 7, big + 6, big + 6),
            one(big + 8, 1, big + 8),
        ];
        let mut found: Vec<u32> =
            members(&table, big + 1, |one| one.pid == big + 6).iter().map(|p| p.pid - big).collect();
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_number_that_was_given_to_somebody_else_leads_to_nobody() {
        let me = process(std::process::id()).expect("we exist");
        let mark = Mark::of_an_edge(&mut fastrand::Rng::with_seed(7));
        // Of this process's session are others, or its parent at least has this process for a child.
        let of = |pid: u32, start: u64| of_worker((pid, start), mark, &HashSet::new());
        let parent = process(me.parent).expect("somebody started us");
        assert!(of(parent.pid, parent.start).iter().any(|one| one.pid == parent.pid));
        assert_eq!(of(parent.pid, parent.start + 1), []);
    }

    #[test]
    fn a_mark_says_which_edge_and_which_worker() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (edge, other) = (Mark::of_an_edge(&mut rng), Mark::of_an_edge(&mut rng));
        let (first, second) = (edge.worker(1), edge.worker(2));
        assert!(first != second && first.is_of(edge) && second.is_of(edge) && !first.is_of(other));
        assert!(i64::try_from(first.limit()).is_ok());
        let limits = format!(
            "Max cpu time  unlimited  unlimited  seconds\nMax file locks   {0}   {0}   locks\n",
            first.limit()
        );
        assert_eq!(Mark::parse(limits.as_bytes()), Some(first));
        assert_eq!(Mark::parse(b"Max file locks   unlimited   unlimited   locks\n"), None);
        assert_eq!(Mark::of_process(std::process::id()), None, "nobody marked the tests");
    }

    #[test]
    fn this_process_is_in_its_own_table() {
        let me = std::process::id();
        assert!(processes().iter().any(|one| one.pid == me && !one.zombie && one.start > 0));
    }
}
