//! Trouble that comes again and again and is told once.

use std::cell::{Cell, RefCell};
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

/// After this long a reason is told whole again: what was told before may be gone from the log.
const WHOLE: Duration = Duration::from_secs(600);

/// The reason of one kind of trouble, which is mostly the same as before.
#[derive(Debug, Default)]
pub struct Reason(RefCell<Option<(String, Instant)>>);

impl Reason {
    /// What to say of `reason`: all of it, or only its beginning where it was told lately.
    pub fn told(&self, reason: &str, now: Instant) -> String {
        let mut last = self.0.borrow_mut();
        let lately = |(text, at): &(String, Instant)| text == reason && now.duration_since(*at) < WHOLE;
        match reason.split_once(": ") {
            Some((beginning, _)) if last.as_ref().is_some_and(lately) => {
                format!("{beginning}, as said before")
            }
            Some(_) | None => {
                *last = Some((reason.to_owned(), now));
                reason.to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_whole_at_first_when_it_changes_and_after_a_while() {
        let (reason, begun) = (Reason::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let (missing, other) =
            ("cannot run `a`: it is not in PATH (/bin)", "cannot run `a`: may not: denied");
        for (seconds, said, told) in [
            (0, missing, missing),
            (1, missing, "cannot run `a`, as said before"),
            (2, other, other),
            (3, other, "cannot run `a`, as said before"),
            (4, missing, missing),
            (603, missing, "cannot run `a`, as said before"),
            (604, missing, missing),
            (605, "no free port", "no free port"),
            (606, "no free port", "no free port"),
        ] {
            assert_eq!(reason.told(said, at(seconds)), told, "{seconds}");
        }
    }
}
