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
    /// When idle connections and when handshakes were last made to hurry.
    hurried: [Cell<Option<Instant>>; 2],
}

struct Entry {
    at: Cell<Option<Instant>>,
    spare: Cell<Spare>,
    waker: RefCell<Option<Waker>>,
}

/// What may end before its deadline where room is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// Nothing.
    No,
    /// A connection that carries nothing.
    Idle,
    /// A connection that has not proved itself yet.
    Handshake,
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
            hurried: Default::default(),
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
        let key = entries.insert(Entry {
            at: Cell::new(None),
            spare: Cell::new(Spare::No),
            waker: RefCell::new(None),
        });
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

    /// Lets deadlines of this kind pass now, the earliest first, so far as less than `left` of their time is left: a sixteenth
    /// of them, and no more before the next tick.
    pub fn hurry(&self, spare: Spare, left: Duration) {
        let now = self.0.now.get();
        let last = &self.0.hurried[usize::from(spare == Spare::Handshake)];
        if last.replace(Some(now)) == Some(now) {
            return;
        }
        let entries = self.0.entries.borrow();
        let ready = (now + TICK).checked_add(left);
        let of_kind = |entry: &Entry| (entry.spare.get() == spare).then(|| entry.at.get())?;
        let mut found: Vec<(Instant, usize)> =
            entries.iter().filter_map(|(key, entry)| Some((of_kind(entry)?, key))).collect();
        let count = found.len().div_ceil(16);
        if count < found.len() {
            found.select_nth_unstable(count);
        }
        for (at, key) in found.into_iter().take(count) {
            if ready.is_none_or(|ready| at <= ready) {
                // Noticed by the next look, as any other.
                entries[key].at.set(Some(now));
            }
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
        self.set_spare(after, Spare::No);
    }

    /// As [`Self::set`], for what may end earlier where room is needed.
    pub fn set_spare(&self, after: Duration, spare: Spare) {
        let entries = self.table.entries.borrow();
        entries[self.key].spare.set(spare);
        // As if the tick were over: what is left of it would otherwise be missing from the time given.
        entries[self.key].at.set((self.table.now.get() + TICK).checked_add(after));
    }

    /// Never passes until it is set again.
    pub fn clear(&self) {
        self.table.entries.borrow()[self.key].at.set(None);
    }

    /// The time, at most a tick old.
    pub fn now(&self) -> std::time::Instant {
        self.table.now.get().into_std()
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
    async fn d06_the_oldest_idle_make_room_and_nobody_else() {
        let deadlines = Deadlines::new();
        let minute = Duration::from_secs(60);
        let work = async {
            let busy = deadlines.deadline();
            busy.set(minute);
            let mut idle = Vec::new();
            for _ in 0..32 {
                let deadline = deadlines.deadline();
                deadline.set_spare(minute, Spare::Idle);
                idle.push(deadline);
                tokio::time::sleep(TICK).await;
            }
            deadlines.hurry(Spare::Handshake, minute);
            tokio::time::sleep(TICK * 2).await;
            let left = |idle: &[Deadline]| {
                let mut cx = Context::from_waker(Waker::noop());
                let mut passed = |deadline: &&Deadline| deadline.poll_passed(&mut cx).is_ready();
                idle.iter().map_while(|deadline| Some(passed(&deadline)).filter(|passed| *passed)).count()
            };
            assert_eq!(left(&idle), 0, "there are no handshakes");
            deadlines.hurry(Spare::Idle, minute);
            deadlines.hurry(Spare::Idle, minute);
            tokio::time::sleep(TICK * 2).await;
            assert_eq!(left(&idle), 2, "a sixteenth, once a tick");
            let mut cx = Context::from_waker(Waker::noop());
            assert!(
                idle[2..].iter().chain([&busy]).all(|deadline| deadline.poll_passed(&mut cx).is_pending())
            );
        };
        tokio::select! {
            () = work => {}
            () = deadlines.run() => unreachable!("run never returns"),
        }
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
