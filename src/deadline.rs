//! Time-outs of the request path without a timer each: every thread keeps its deadlines in one table and looks through it
//! ten times a second while there are any. Setting or clearing one is a store.
//!
//! Time here is read once a tick. A deadline never passes early and is noticed at most two ticks late, which no time-out of a
//! network peer minds; only a thread that is held up itself, as by SIGSTOP, may be wrong by as long.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often the table is looked through.
pub const TICK: Duration = Duration::from_millis(100);

/// The deadlines of one thread. Clones are handles to the same table.
#[derive(Clone)]
pub struct Deadlines(Rc<Table>);

struct Table {
    entries: RefCell<Slab<Entry>>,
    filled: Notify,
    /// The time at the last look, or when the table was last empty and got its first entry: at most a tick old.
    now: Cell<Instant>,
}

struct Entry {
    at: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
}

/// One deadline that can be moved any number of times. Dropping it takes it out of the table.
pub struct Deadline {
    table: Rc<Table>,
    key: usize,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self(Rc::new(Table {
            entries: RefCell::new(Slab::new()),
            filled: Notify::new(),
            now: Cell::new(Instant::now()),
        }))
    }
}

impl Deadlines {
    /// An empty table. Somebody must run [`Self::run`] on the same thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new deadline, not set yet.
    pub fn deadline(&self) -> Deadline {
        let mut entries = self.0.entries.borrow_mut();
        if entries.is_empty() {
            self.0.now.set(Instant::now());
            self.0.filled.notify_one();
        }
        let key = entries.insert(Entry { at: Cell::new(None), waker: RefCell::new(None) });
        Deadline { table: Rc::clone(&self.0), key }
    }

    /// Wakes whoever waits for a deadline that has passed; never returns. Cancel-safe.
    pub async fn run(&self) {
        loop {
            if self.0.entries.borrow().is_empty() {
                self.0.filled.notified().await;
            }
            tokio::time::sleep(TICK).await;
            self.sweep(Instant::now());
        }
    }

    /// Wakes everybody who waits, passed or not: something else has changed that they look at.
    pub fn wake_all(&self) {
        let waiting: Vec<Waker> =
            self.0.entries.borrow().iter().filter_map(|(_, entry)| entry.waker.borrow_mut().take()).collect();
        for waker in waiting {
            waker.wake();
        }
    }

    fn sweep(&self, now: Instant) {
        self.0.now.set(now);
        // Wakers run scheduler code only, but a table borrowed while waking would forbid ever changing that.
        let due: Vec<Waker> = self
            .0
            .entries
            .borrow()
            .iter()
            .filter(|(_, entry)| entry.at.get().is_some_and(|at| at <= now))
            .filter_map(|(_, entry)| entry.waker.borrow_mut().take())
            .collect();
        for waker in due {
            waker.wake();
        }
    }
}

impl Deadline {
    /// Passes `after` from now, whatever was set before.
    pub fn set(&self, after: Duration) {
        let entries = self.table.entries.borrow();
        // As if the tick were over: what is left of it would otherwise be missing from the time given.
        entries[self.key].at.set((self.table.now.get() + TICK).checked_add(after));
    }

    /// Never passes until it is set again.
    pub fn clear(&self) {
        self.table.entries.borrow()[self.key].at.set(None);
    }

    /// The time, at most a tick old.
    pub fn now(&self) -> Instant {
        self.table.now.get()
    }

    /// Ready once the deadline has passed; otherwise the task is woken when it does.
    pub fn poll_passed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let entries = self.table.entries.borrow();
        let entry = &entries[self.key];
        match entry.at.get() {
            Some(at) if at <= self.table.now.get() => return Poll::Ready(()),
            Some(_) | None => {}
        }
        let mut waker = entry.waker.borrow_mut();
        match waker.as_mut() {
            Some(known) => known.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Waits until the deadline has passed. Cancel-safe.
    pub async fn passed(&self) {
        std::future::poll_fn(|cx| self.poll_passed(cx)).await;
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.table.entries.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn passes_after_its_time_and_can_be_moved() {
        let deadlines = Deadlines::new();
        let deadline = deadlines.deadline();
        let start = Instant::now();
        let race = async {
            deadline.set(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(900)).await;
            deadline.set(Duration::from_secs(5));
            deadline.passed().await;
            start.elapsed()
        };
        let elapsed = tokio::select! {
            elapsed = race => elapsed,
            () = deadlines.run() => unreachable!("run never returns"),
        };
        assert!(elapsed >= Duration::from_millis(5900), "{elapsed:?}");
        assert!(elapsed <= Duration::from_millis(5900) + 3 * TICK, "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cleared_deadline_never_passes() {
        let deadlines = Deadlines::new();
        let deadline = deadlines.deadline();
        deadline.set(Duration::from_millis(10));
        deadline.clear();
        tokio::select! {
            () = deadline.passed() => unreachable!("it was cleared"),
            () = deadlines.run() => unreachable!("run never returns"),
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
    }
}
