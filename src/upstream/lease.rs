//! One in-flight request on one slot, given back when dropped.

use std::fmt;
use std::sync::Arc;

use crate::worker::slot::Slot;

/// Hears of each release of a slot that has a limit: somebody may be waiting for it.
pub trait Freed: Send + Sync {
    /// A slot has room again.
    fn freed(self: Arc<Self>);
}

/// Holds a slot's count of requests in flight up by one.
pub struct Lease {
    slot: Arc<Slot>,
    held: bool,
    answered: bool,
    freed: Option<Arc<dyn Freed>>,
}

impl Lease {
    /// A lease on `slot`, unless it is closed or at its limit.
    pub fn take(slot: &Arc<Slot>) -> Option<Self> {
        slot.try_acquire().then(|| Self::on(slot))
    }

    /// As [`Self::take`], unless more than `seen` are in flight there by now; its release is told to `line` where the slot has a
    /// limit.
    pub fn take_after<F: Freed + 'static>(slot: &Arc<Slot>, seen: u64, line: &Arc<F>) -> Option<Self> {
        let mut lease = slot.try_acquire_after(seen).then(|| Self::on(slot))?;
        if slot.is_limited() {
            lease.freed = Some(Arc::clone(line) as Arc<dyn Freed>);
        }
        Some(lease)
    }

    fn on(slot: &Arc<Slot>) -> Self {
        Self { slot: Arc::clone(slot), held: true, answered: false, freed: None }
    }

    /// The slot it is on, or was.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// The worker has answered, or is not to blame that it has not. Idempotent.
    pub fn answered(&mut self) {
        if self.held && !std::mem::replace(&mut self.answered, true) {
            self.slot.answered();
        }
    }

    /// Gives it back before it is dropped. Idempotent.
    pub fn release(&mut self) {
        if std::mem::take(&mut self.held) {
            if self.answered {
                self.slot.release_answered();
            } else {
                self.slot.release();
            }
            if let Some(freed) = self.freed.take() {
                freed.freed();
            }
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot.id).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.release();
    }
}
