//! Trouble that may come thousands of times a second and is told once.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Between two lines in the log about the same trouble.
const EVERY: Duration = Duration::from_secs(1);

/// One kind of trouble of one thread.
#[derive(Debug, Default)]
pub struct Complaint {
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Complaint {
    /// It came `times` more; returns how often since it was told last, where it is time to tell.
    pub fn is_due(&self, times: u64) -> Option<u64> {
        let untold = self.untold.get() + times;
        if self.told.get().is_some_and(|told| told.elapsed() < EVERY) {
            self.untold.set(untold);
            return None;
        }
        self.told.set(Some(Instant::now()));
        self.untold.set(0);
        Some(untold)
    }
}
