//! One in-flight request on one slot, given back when dropped.

use std::sync::Arc;

use crate::worker::slot::Slot;

/// Holds a slot's count of requests in flight up by one.
#[derive(Debug)]
pub struct Lease {
    slot: Arc<Slot>,
    held: bool,
}

impl Lease {
    /// A lease on `slot`, unless it is closed.
    pub fn take(slot: &Arc<Slot>) -> Option<Self> {
        slot.try_acquire().then(|| Self { slot: Arc::clone(slot), held: true })
    }

    /// The slot it is on, or was.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// Gives it back before it is dropped. Idempotent.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            self.slot.release();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
    }
}
