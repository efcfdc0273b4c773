//! The process that outlives edge by a moment: when edge is killed without a chance to stop its workers, the guard ends what
//! they leave behind.
//!
//! The parent-death signal reaches a worker's first process only. A gunicorn or `uvicorn --workers` master that is asked to
//! end by it takes its children along; one that ignores it, or dies of it without telling them, does not. The guard holds
//! the other end of a pipe into which edge writes which sessions live. At its end of file it gives them a grace, then kills
//! what is left of each session and everything that inherited edge's mark.
//!
//! It is forked, not executed, from a process with threads: it must not allocate, lock or touch anything of edge's memory
//! that another thread may have been changing.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::process::{Pid, Signal};

use crate::worker::family::{self, Mark};

/// Sessions watched at once; workers beyond that have the parent-death signal and the next start's sweep.
const SESSIONS: usize = 4096;
/// From edge's end to the kill.
const GRACE: Duration = Duration::from_secs(3);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// A message to the guard.
pub(super) fn message(leader: u32, lives: bool) -> [u8; 4] {
    let leader = leader as i32;
    if lives { leader.to_le_bytes() } else { (-leader).to_le_bytes() }
}

/// The guard's whole life.
pub(super) fn watch(pipe: BorrowedFd<'_>, edge: Mark) {
    let mut sessions = Sessions { leaders: [0; SESSIONS] };
    let mut word = [0; 4];
    // Messages are written in one piece shorter than PIPE_BUF and read in the same pieces.
    loop {
        match rustix::io::read(pipe, &mut word) {
            Ok(4) => sessions.note(i32::from_le_bytes(word)),
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => break,
        }
    }
    if sessions.is_empty() {
        return;
    }
    let mut waited = Duration::ZERO;
    // Bounded: a process stuck in the kernel shall not keep the guard for ever.
    while waited < GRACE * 4 {
        if !sweep(&sessions, edge, waited >= GRACE) {
            return;
        }
        pause();
        waited += PAUSE;
    }
}

struct Sessions {
    leaders: [i32; SESSIONS],
}

impl Sessions {
    fn note(&mut self, word: i32) {
        let (old, new) = if word > 0 { (0, word) } else { (word.saturating_neg(), 0) };
        if let Some(place) = self.leaders.iter_mut().find(|place| **place == old) {
            *place = new;
        }
    }

    fn is_empty(&self) -> bool {
        self.leaders.iter().all(|leader| *leader == 0)
    }

    fn holds(&self, session: u32) -> bool {
        session != 0 && self.leaders.contains(&session.cast_signed())
    }
}

/// Whether anybody is left; kills them if `kill`.
fn sweep(sessions: &Sessions, edge: Mark, kill: bool) -> bool {
    let Ok(proc) = rustix::fs::open(c"/proc", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else {
        return false;
    };
    let mut space = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(proc.as_fd(), &mut space);
    let mut left = false;
    while let Some(Ok(entry)) = entries.next() {
        let Some(pid) = number(entry.file_name()) else { continue };
        if belongs(proc.as_fd(), pid, sessions, edge) {
            left = true;
            if kill && let Some(pid) = Pid::from_raw(pid as i32) {
                let _gone_already = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }
    left
}

fn belongs(proc: BorrowedFd<'_>, pid: u32, sessions: &Sessions, edge: Mark) -> bool {
    let mut text = [0; 4096];
    let Some(one) = read(proc, pid, b"/stat", &mut text).and_then(|stat| family::parse(pid, stat)) else {
        return false;
    };
    if one.zombie {
        return false;
    }
    if sessions.holds(one.session) || sessions.holds(one.group) {
        return true;
    }
    read(proc, pid, b"/limits", &mut text).and_then(Mark::parse).is_some_and(|mark| mark.is_of(edge))
}

/// Reads what fits of `/proc/PID/NAME`.
fn read<'a>(proc: BorrowedFd<'_>, pid: u32, name: &[u8], into: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut path = [0; 32];
    let end = digits(pid, &mut path);
    path.get_mut(end..end + name.len())?.copy_from_slice(name);
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    let file = rustix::fs::openat(proc, path, OFlags::RDONLY, Mode::empty()).ok()?;
    let mut filled = 0;
    while filled < into.len() {
        match rustix::io::read(&file, &mut into[filled..]).ok()? {
            0 => break,
            count => filled += count,
        }
    }
    Some(&into[..filled])
}

/// Writes a number in decimal; where it ends.
fn digits(number: u32, into: &mut [u8; 32]) -> usize {
    let mut rest = number;
    let mut length = 1;
    while rest >= 10 {
        rest /= 10;
        length += 1;
    }
    rest = number;
    for place in into[..length].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    length
}

fn number(name: &CStr) -> Option<u32> {
    std::str::from_utf8(name.to_bytes()).ok()?.parse().ok()
}

fn pause() {
    let span = rustix::thread::Timespec { tv_sec: 0, tv_nsec: i64::from(PAUSE.subsec_nanos()) };
    let _cut_short = rustix::thread::nanosleep(&span);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_and_read_without_memory() {
        for n in [0, 7, 10, 4711, u32::MAX] {
            let mut path = [0; 32];
            let end = digits(n, &mut path);
            assert_eq!(std::str::from_utf8(&path[..end]).expect("digits"), n.to_string());
        }
        assert_eq!(number(c"self"), None);
    }

    #[test]
    fn sessions_come_and_go() {
        let mut sessions = Sessions { leaders: [0; SESSIONS] };
        sessions.note(i32::from_le_bytes(message(7, true)));
        sessions.note(i32::from_le_bytes(message(8, true)));
        sessions.note(i32::from_le_bytes(message(7, false)));
        sessions.note(i32::from_le_bytes(message(99, false)));
        assert!(!sessions.holds(7) && sessions.holds(8) && !sessions.holds(0));
        sessions.note(i32::from_le_bytes(message(8, false)));
        assert!(sessions.is_empty());
    }
}
