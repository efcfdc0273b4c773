//! A worker's place in its pool, as the request path sees it: address, whether it takes requests, how many it has.
//!
//! The supervisor opens and closes slots; the request path takes and returns leases on them. Both meet in one atomic word,
//! so that a slot found closed and empty stays empty.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::config::model::Address;
use crate::name::WorkerId;

const CLOSED: u64 = 1 << 63;

/// One incarnation of a worker, or one upstream server.
#[derive(Debug)]
pub struct Slot {
    /// Who it is.
    pub id: WorkerId,
    /// Process id; 0 for a server edge does not run.
    pub pid: u32,
    /// Where it listens.
    pub address: Address,
    /// How long an idle connection to it may be kept before the server would close it.
    pub idle_timeout: Duration,
    word: AtomicU64,
    requests: AtomicU64,
    idle: Notify,
}

impl Slot {
    /// An open slot.
    pub fn new(id: WorkerId, pid: u32, address: Address, idle_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            id,
            pid,
            address,
            idle_timeout,
            word: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            idle: Notify::new(),
        })
    }

    /// Counts one more request in flight, unless the slot is closed. Each success must be paired with [`Self::release`];
    /// `upstream::lease::Lease` does so.
    pub fn try_acquire(&self) -> bool {
        let taken = self
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                (word & CLOSED == 0).then_some(word + 1)
            })
            .is_ok();
        if taken {
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        taken
    }

    /// Counts one request less; the last one of a closed slot wakes whoever waits in [`Self::emptied`].
    pub fn release(&self) {
        let before = self.word.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before & !CLOSED > 0, "release without acquire");
        if before == CLOSED | 1 {
            self.idle.notify_waiters();
        }
    }

    /// Takes no more requests from now on. Idempotent.
    pub fn close(&self) {
        self.word.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Whether it takes requests.
    pub fn is_open(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Requests in flight, WebSockets included.
    pub fn in_flight(&self) -> u64 {
        self.word.load(Ordering::Acquire) & !CLOSED
    }

    /// Requests ever taken.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
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
    changed: Notify,
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

    /// The list now. The guard must not be held over an await.
    pub fn load(&self) -> arc_swap::Guard<Arc<Vec<Arc<Slot>>>> {
        self.slots.load()
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
        Slot::new(id, 1, Address::Unix("/x".into()), Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_closed_slot_empties_and_takes_nothing_more() {
        let slot = slot();
        assert!(slot.try_acquire());
        slot.close();
        assert!(!slot.try_acquire());
        let waiting = Arc::clone(&slot);
        let (_, ()) = tokio::join!(waiting.emptied(), async { slot.release() });
        assert_eq!(slot.in_flight(), 0);
        assert_eq!(slot.requests(), 1);
    }
}
