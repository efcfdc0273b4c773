//! A worker's place in its pool, as the request path sees it: address, whether it takes requests, how many it has.
//!
//! The supervisor opens and closes slots; the request path takes and returns leases on them. Both meet in one atomic word,
//! so that a slot found closed and empty stays empty, and one that has reached its limit is never taken beyond it.

use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::config::model::{Address, Protocol};
use crate::name::WorkerId;

/// The bit of a closed slot. Below it the word counts twice: requests in flight, and those of them without an answer yet.
const CLOSED: u64 = 1 << 63;
const UNANSWERED: u64 = 1 << 32;
const IN_FLIGHT: u64 = UNANSWERED - 1;
/// How long a worker that left a request unread is not taken for idle: the watchdog looks once in this time.
const DOUBT: Duration = Duration::from_secs(2);

/// One incarnation of a worker, or one upstream server.
#[derive(Debug)]
pub struct Slot {
    /// Who it is.
    pub id: WorkerId,
    /// Process id; 0 for a server edge does not run.
    pub pid: u32,
    /// Where it listens.
    pub address: Address,
    /// What it speaks.
    pub protocol: Protocol,
    /// How long an idle connection to it may be kept before the server would close it.
    pub idle_timeout: Duration,
    /// When it was opened.
    pub opened_at: Instant,
    /// What its answers take, as the pool packs it; 0 is unknown.
    pub latency: AtomicU64,
    /// When that rose, likewise.
    pub latency_risen: AtomicU32,
    /// Most requests in flight.
    limit: u64,
    word: AtomicU64,
    stuck: AtomicBool,
    requests: AtomicU64,
    forsaken: AtomicBool,
    /// When a request was taken away that it had left unread, in milliseconds after it was opened, modulo 49 days; 0 where
    /// it was heard of since, or that never was.
    doubted: AtomicU32,
    /// Nobody was there for a request, and that was not looked into yet.
    missed: AtomicBool,
    idle: Notify,
    streams: CancellationToken,
}

/// Whether a connection failed because nobody listens there.
pub fn is_nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

impl Slot {
    /// An open slot that takes up to `limit` requests at once.
    pub fn new(
        id: WorkerId,
        pid: u32,
        address: Address,
        protocol: Protocol,
        idle_timeout: Duration,
        limit: Option<NonZeroU32>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            pid,
            address,
            protocol,
            idle_timeout,
            opened_at: Instant::now(),
            latency: AtomicU64::new(0),
            latency_risen: AtomicU32::new(0),
            limit: limit.map_or(IN_FLIGHT, |limit| limit.get().into()),
            word: AtomicU64::new(0),
            stuck: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            forsaken: AtomicBool::new(false),
            doubted: AtomicU32::new(0),
            missed: AtomicBool::new(false),
            idle: Notify::new(),
            streams: CancellationToken::new(),
        })
    }

    /// Counts one more request in flight and without an answer, unless the slot is closed or at its limit. Each success must be paired with [`Self::release`];
    /// `upstream::lease::Lease` does so.
    pub fn try_acquire(&self) -> bool {
        self.try_acquire_after(IN_FLIGHT)
    }

    /// As [`Self::try_acquire`], unless more than `seen` are in flight by now.
    pub fn try_acquire_after(&self, seen: u64) -> bool {
        let taken = self
            .word
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                (self.takes(word) && word & IN_FLIGHT <= seen).then_some(word + 1 + UNANSWERED)
            })
            .is_ok();
        if taken {
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// One request in flight has its answer. It must be given back by [`Self::release_answered`].
    pub fn answered(&self) {
        self.word.fetch_sub(UNANSWERED, Ordering::Relaxed);
    }

    /// Gives back a request that had no answer.
    pub fn release(&self) {
        self.give_back(1 + UNANSWERED);
    }

    /// Gives back a request that had its answer.
    pub fn release_answered(&self) {
        self.give_back(1);
    }

    /// Counts one request less. In one order with every look at the count: who joins the line for this slot and then finds it
    /// full is seen by whoever releases it and then looks at the line. The last one of a closed slot wakes whoever waits in
    /// [`Self::emptied`].
    fn give_back(&self, count: u64) {
        let before = self.word.fetch_sub(count, Ordering::SeqCst);
        debug_assert!(before & IN_FLIGHT > 0, "release without acquire");
        if before == CLOSED | count {
            self.idle.notify_waiters();
        }
    }

    /// Takes no more requests from now on. Idempotent.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Ends what has no end of its own: WebSockets get close code 1012, streamed answers are cut. Called when a draining
    /// worker's time is over, before its stop signal, which many servers would not obey with streams open. Idempotent.
    pub fn end_streams(&self) {
        self.streams.cancel();
    }

    /// Completes at [`Self::end_streams`]. Cancel-safe.
    pub fn streams_ended(&self) -> WaitForCancellationFutureOwned {
        self.streams.clone().cancelled_owned()
    }

    /// Takes no requests while its worker reads nothing.
    pub fn suspend(&self) {
        self.stuck.store(true, Ordering::Relaxed);
        self.close();
    }

    /// Its worker reads nothing and another takes requests: from now on what it has not read is asked of others.
    pub fn forsake(&self) {
        self.forsaken.store(true, Ordering::Relaxed);
    }

    /// Whether that was said, and the slot was not resumed since.
    pub fn is_forsaken(&self) -> bool {
        self.forsaken.load(Ordering::Relaxed)
    }

    /// A request that its worker had left unread was given to another.
    pub fn doubt(&self, now: Instant) {
        self.doubted.store(self.millis(now).max(1), Ordering::Relaxed);
    }

    /// Its worker has answered.
    pub fn trust(&self) {
        if self.doubted.load(Ordering::Relaxed) != 0 {
            self.doubted.store(0, Ordering::Relaxed);
        }
    }

    /// A connection for a request failed so.
    pub fn note_failure(&self, error: &io::Error) {
        if is_nobody_there(error) {
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether nobody was there for a request since this was asked last.
    pub fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Whether it left something unread a moment ago and was not heard of since: with nothing in flight, it is not idle.
    pub fn is_doubted(&self, now: Instant) -> bool {
        let since = self.doubted.load(Ordering::Relaxed);
        since != 0 && Duration::from_millis(self.millis(now).wrapping_sub(since).into()) < DOUBT
    }

    fn millis(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.opened_at).as_millis() as u32
    }

    /// Takes requests again. Not for a slot that somebody waits to see [`Self::emptied`].
    pub fn resume(&self) {
        self.stuck.store(false, Ordering::Relaxed);
        self.forsaken.store(false, Ordering::Relaxed);
        self.word.fetch_and(!CLOSED, Ordering::AcqRel);
    }

    /// Whether its worker reads nothing, or did not to its end.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }

    /// Whether it takes requests.
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Requests in flight if it would take another one.
    pub fn room(&self) -> Option<u64> {
        let word = self.word.load(Ordering::SeqCst);
        self.takes(word).then_some(word & IN_FLIGHT)
    }

    /// Requests in flight without an answer yet.
    pub fn unanswered(&self) -> u64 {
        (self.word.load(Ordering::Relaxed) & !CLOSED) / UNANSWERED
    }

    fn takes(&self, word: u64) -> bool {
        word & CLOSED == 0 && word & IN_FLIGHT < self.limit
    }

    /// Whether it has a limit, so that others may wait for a release.
    pub fn is_limited(&self) -> bool {
        self.limit < IN_FLIGHT
    }

    /// Requests in flight, WebSockets included.
    pub fn in_flight(&self) -> u64 {
        self.word.load(Ordering::Acquire) & IN_FLIGHT
    }

    /// Requests that occupy it: where it has a limit all in flight, otherwise those it has not begun to answer, so that streams
    /// and WebSockets do not count for ever.
    pub fn busy(&self) -> u64 {
        if self.is_limited() { self.in_flight() } else { self.unanswered() }
    }

    /// Most requests in flight, where it has a limit.
    pub fn limit(&self) -> Option<u64> {
        self.is_limited().then_some(self.limit)
    }

    /// Requests ever taken.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Requests that were answered, or given up.
    pub fn finished(&self) -> u64 {
        self.requests().saturating_sub(self.unanswered())
    }

    /// Completes once the slot is closed and nothing is in flight. Cancel-safe.
    pub async fn emptied(&self) {
        loop {
            let notified = self.idle.notified();
            tokio::pin!(notified);
            // Registered before the check, so that a release in between is not missed.
            notified.as_mut().enable();
            if self.word.load(Ordering::Acquire) == CLOSED {
                return;
            }
            notified.await;
        }
    }
}

/// The slots of one app that take requests now; replaced whole by the supervisor, read by every data-plane thread.
#[derive(Debug, Default)]
pub struct Roster {
    slots: ArcSwap<Vec<Arc<Slot>>>,
    ended: ArcSwapOption<String>,
    changed: Notify,
    /// Requests in line for a slot, kept by the app's pool.
    pub waiting: AtomicUsize,
}

impl Roster {
    /// Nobody yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Replaces the list and wakes everybody in [`Self::wait_for_change`]. One writer only.
    pub fn publish(&self, slots: Vec<Arc<Slot>>) {
        self.slots.store(Arc::new(slots));
        self.changed.notify_waiters();
    }

    /// Notes how a worker ended that was not asked to, or could not be started.
    pub fn note_end(&self, how: &str) {
        self.ended.store(Some(Arc::new(how.to_owned())));
    }

    /// How the last worker ended, while nobody takes requests.
    pub fn ended(&self) -> Option<Arc<String>> {
        if self.load().is_empty() { self.ended.load_full() } else { None }
    }

    /// The list now. The guard must not be held over an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<Vec<Arc<Slot>>>> {
        self.slots.load()
    }

    /// Completes at the next publication after this call. Cancel-safe.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        // Counts from its creation on, polled or not: `notify_waiters` reaches it.
        self.changed.notified()
    }

    /// Waits until `ready` holds for the list, looking again at each publication. Cancel-safe.
    pub async fn wait_for_change<T>(&self, mut ready: impl FnMut(&[Arc<Slot>]) -> Option<T>) -> T {
        loop {
            let notified = self.changed.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if let Some(found) = ready(&self.load()) {
                return found;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot() -> Arc<Slot> {
        let id = WorkerId { app: "api".parse().expect("valid"), slot: 0, incarnation: 1 };
        Slot::new(
            id,
            1,
            Address::Unix("/x".into()),
            Protocol::Http1,
            Duration::from_secs(60),
            NonZeroU32::new(2),
        )
    }

    #[tokio::test]
    async fn a_closed_slot_empties_and_takes_nothing_more() {
        let slot = slot();
        assert!(slot.try_acquire());
        assert!(slot.try_acquire());
        assert!(!slot.try_acquire(), "at its limit");
        slot.answered();
        assert_eq!((slot.in_flight(), slot.unanswered()), (2, 1));
        slot.release_answered();
        assert_eq!((slot.room(), slot.unanswered()), (Some(1), 1));
        slot.close();
        assert_eq!(slot.room(), None);
        assert!(!slot.try_acquire());
        let waiting = Arc::clone(&slot);
        let (_, ()) = tokio::join!(waiting.emptied(), async { slot.release() });
        assert_eq!(slot.in_flight(), 0);
        assert_eq!(slot.requests(), 2);
    }

    #[test]
    fn who_saw_fewer_in_flight_than_there_are_looks_again() {
        let slot = slot();
        assert!(slot.try_acquire_after(0));
        assert!(!slot.try_acquire_after(0), "another came first");
        assert!(slot.try_acquire_after(1));
        assert!(!slot.try_acquire_after(2), "at its limit");
        assert_eq!((slot.in_flight(), slot.requests()), (2, 2));
    }

    #[test]
    fn a_slot_is_in_doubt_for_a_while_or_until_it_answers() {
        let slot = slot();
        let at = |millis| slot.opened_at + Duration::from_millis(millis);
        assert!(!slot.is_doubted(at(0)));
        slot.doubt(at(0));
        assert!(slot.is_doubted(at(1)) && slot.is_doubted(at(1999)) && !slot.is_doubted(at(2001)));
        slot.doubt(at(5000));
        slot.trust();
        assert!(!slot.is_doubted(at(5001)));
    }
}
