//! How much one thread holds in memory so that workers need not wait for clients.

use std::cell::Cell;
use std::rc::Rc;

/// Most bytes taken in ahead for one message.
pub const MESSAGE: usize = 1 << 20;
/// Most bytes taken in ahead for all messages of a thread; beyond, a message waits for its client as if there were no budget.
const THREAD: usize = 64 << 20;

/// One thread's budget.
#[derive(Debug, Default)]
pub struct Budget {
    used: Cell<usize>,
}

/// What one message has of it; given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Budget {
    /// Nothing used.
    pub fn new() -> Rc<Self> {
        Rc::new(Self::default())
    }

    /// A share of nothing yet.
    pub fn share(self: &Rc<Self>) -> Share {
        Share { budget: Rc::clone(self), bytes: 0 }
    }
}

impl Share {
    /// Whether more may be taken in.
    pub fn has_room(&self) -> bool {
        self.bytes < MESSAGE && self.budget.used.get() < THREAD
    }

    /// Whether nothing is taken in.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// So much more was taken in.
    pub fn grow(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.budget.used.set(self.budget.used.get() + bytes);
    }

    /// All of it has gone on its way.
    pub fn clear(&mut self) {
        self.shrink(self.bytes);
    }

    /// So much has gone on its way.
    pub fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.budget.used.set(self.budget.used.get() - bytes);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_a_thread_have_their_bounds_and_what_is_dropped_is_free_again() {
        let budget = Budget::new();
        let mut share = budget.share();
        share.grow(MESSAGE);
        assert!(!share.has_room());
        share.shrink(1);
        assert!(share.has_room());
        let shares: Vec<_> = (0..THREAD / MESSAGE)
            .map(|_| {
                let mut share = budget.share();
                share.grow(MESSAGE);
                share
            })
            .collect();
        assert!(!share.has_room());
        drop(shares);
        assert!(share.has_room());
        drop(share);
        assert_eq!(budget.used.get(), 0);
    }
}
