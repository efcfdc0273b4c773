//! What an app's workers printed last, kept for operators who come later.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::SystemTime;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::{Clock, SystemClock};

/// Lines kept.
const LINES: usize = 1000;
/// Bytes kept.
const BYTES: usize = 256 * 1024;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was read: the order among the lines of all apps.
    pub at: Instant,
    /// The same by the wall clock, which may have jumped since.
    pub time: SystemTime,
    /// The worker's slot; none for what is run before the first worker.
    pub slot: Option<u32>,
    /// Without its end.
    pub text: String,
}

/// An app's last lines, numbered from 0 since edge started it.
#[derive(Debug, Default)]
pub struct Journal {
    kept: RefCell<Kept>,
    grown: Notify,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    bytes: usize,
    dropped: u64,
}

impl Journal {
    /// Keeps a line.
    pub fn push(&self, slot: Option<u32>, text: &str) {
        let mut kept = self.kept.borrow_mut();
        kept.bytes += text.len();
        kept.lines.push_back(Line {
            at: Instant::now(),
            time: SystemClock.now(),
            slot,
            text: text.to_owned(),
        });
        while kept.lines.len() > LINES || kept.bytes > BYTES {
            let gone = kept.lines.pop_front().map_or(0, |line| line.text.len());
            kept.bytes -= gone;
            kept.dropped += 1;
        }
        drop(kept);
        self.grown.notify_waiters();
    }

    /// The lines from number `from` on that are still kept, and the number the next one will have.
    pub fn since(&self, from: u64) -> (Vec<Line>, u64) {
        let kept = self.kept.borrow();
        let skip = usize::try_from(from.saturating_sub(kept.dropped)).unwrap_or(usize::MAX);
        (kept.lines.iter().skip(skip).cloned().collect(), kept.dropped + kept.lines.len() as u64)
    }

    /// The last `count` lines.
    pub fn last(&self, count: usize) -> Vec<Line> {
        let kept = self.kept.borrow();
        kept.lines.iter().skip(kept.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// Completes once there is a line of number `next` or later. Cancel-safe.
    pub async fn reaches(&self, next: u64) {
        loop {
            let grown = self.grown.notified();
            tokio::pin!(grown);
            grown.as_mut().enable();
            if self.since(u64::MAX).1 > next {
                return;
            }
            grown.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_are_kept_and_read_on_from_where_one_was() {
        let journal = Journal::default();
        (0..1500).for_each(|n| journal.push(Some(0), &n.to_string()));
        let (lines, next) = journal.since(0);
        assert_eq!((lines.len(), lines[0].text.as_str(), next), (1000, "500", 1500));
        assert_eq!(journal.since(next).0, []);
        journal.push(Some(1), "x");
        journal.reaches(next).await;
        assert_eq!(journal.since(next).0[0].slot, Some(1));
        (0..20).for_each(|_| journal.push(Some(0), &"y".repeat(16 * 1024)));
        assert_eq!(journal.since(0).0.len(), 16);
    }
}
