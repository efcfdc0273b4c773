//! This thread's idle connections to workers, last in first out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::upstream::connection::Connection;
use crate::worker::slot::Slot;

/// How often connections of closed slots and aged ones are looked for while any are kept.
pub const PRUNE_EVERY: Duration = Duration::from_millis(250);

/// Idle connections by slot incarnation. One per data-plane thread; never shared.
#[derive(Default)]
pub struct IdleConnections {
    /// By the slot's address in memory, which is its own as long as the entry holds the slot.
    slots: RefCell<BTreeMap<*const Slot, Entry>>,
    filled: Notify,
    /// How long a connection is kept whatever its slot says; `None` is as long as the slot says.
    patience: Cell<Option<Duration>>,
}

struct Entry {
    slot: Arc<Slot>,
    /// The last was put last; so the first is the oldest.
    connections: Vec<(Instant, Connection)>,
}

impl IdleConnections {
    /// None yet.
    pub fn new() -> Rc<Self> {
        Rc::new(Self::default())
    }

    /// Keeps connections for this long from now on; `None` is as long as suits each slot.
    pub fn keep_for(&self, patience: Option<Duration>) {
        self.patience.set(patience);
    }

    /// The connection to `slot` that was used last, if it is young enough `now` and nothing was heard on it since.
    pub fn take(&self, slot: &Arc<Slot>, now: Instant) -> Option<Connection> {
        let mut slots = self.slots.borrow_mut();
        let connections = &mut slots.get_mut(&Arc::as_ptr(slot))?.connections;
        while let Some((since, connection)) = connections.pop() {
            if now.saturating_duration_since(since) >= self.patience.get().unwrap_or(slot.idle_timeout) {
                // The others are older still.
                connections.clear();
            } else if connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose last answer ended cleanly `now`, or closes it where it must not be kept.
    pub fn put(&self, slot: &Arc<Slot>, mut connection: Connection, now: Instant) {
        if slot.idle_timeout.is_zero() || !slot.is_open() {
            return;
        }
        connection.mark_used();
        let mut slots = self.slots.borrow_mut();
        if slots.is_empty() {
            self.filled.notify_one();
        }
        slots
            .entry(Arc::as_ptr(slot))
            .or_insert_with(|| Entry { slot: Arc::clone(slot), connections: Vec::new() })
            .connections
            .push((now, connection));
    }

    /// Closes connections of closed slots and those kept too long.
    pub fn prune(&self) {
        let now = tokio::time::Instant::now().into_std();
        self.slots.borrow_mut().retain(|_, entry| {
            if !entry.slot.is_open() {
                return false;
            }
            let timeout = self.patience.get().unwrap_or(entry.slot.idle_timeout);
            let aged = entry.connections.partition_point(|(since, _)| now.duration_since(*since) >= timeout);
            entry.connections.drain(..aged);
            !entry.connections.is_empty()
        });
    }

    /// Prunes from time to time; never returns. One task of each data-plane thread. Cancel-safe.
    pub async fn run(&self) {
        loop {
            if self.slots.borrow().is_empty() {
                self.filled.notified().await;
            }
            tokio::time::sleep(PRUNE_EVERY).await;
            self.prune();
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.slots.borrow().values().map(|entry| entry.connections.len()).sum()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
