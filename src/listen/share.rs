//! How many of all connections one thread serves, for a socket at which all threads wait: whoever has more than its share leaves
//! the next one to the others. Left to chance, four of five went to one of two threads, and stayed.

use std::cell::Cell;
use std::rc::Rc;

/// The connections of one thread.
#[derive(Debug, Clone)]
pub struct Share {
    threads: u32,
    mine: Rc<Cell<u32>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Counted(Rc<Cell<u32>>);

impl Share {
    /// That of one of `threads`, which has none yet.
    pub fn new(threads: u32) -> Self {
        Self { threads, mine: Rc::default() }
    }

    /// Counts one more.
    pub fn count(&self) -> Counted {
        self.mine.set(self.mine.get() + 1);
        Counted(Rc::clone(&self.mine))
    }

    /// Whether the thread has clearly more than its share of the process's `all`. Whoever has the fewest never has.
    pub fn is_exceeded(&self, all: u32) -> bool {
        let even = all / self.threads.max(1);
        self.mine.get() > even + even / 8 + 4
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_more_than_the_others_are_within_a_share() {
        let share = Share::new(4);
        let mut held: Vec<Counted> = (0..14).map(|_| share.count()).collect();
        assert!(share.is_exceeded(35) && !share.is_exceeded(36), "four more than nine, and an eighth");
        assert!(!share.is_exceeded(14 * 4), "as many as all others");
        held.pop();
        assert!(!share.is_exceeded(35));
        let few: Vec<Counted> = held.drain(..4).collect();
        drop(held);
        assert!(!share.is_exceeded(4), "all of a few: {}", few.len());
    }
}
