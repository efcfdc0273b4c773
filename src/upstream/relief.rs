//! How many requests that lie unread at one worker may be given to another.
//!
//! A worker that computes reads nothing meanwhile. What it was sent before lies in its socket, and it may carry that out yet, for
//! nobody, once it reads again: closing the connection takes nothing back. So this is for requests that may be carried out
//! twice, and cannot add more than a tenth to what an app has to do.

/// Of so many requests of an app, one may be given to another worker …
const EACH: u64 = 10;
/// … and so many at once.
const BURST: u64 = 10;

/// What an app's requests have earned.
#[derive(Debug)]
pub struct Allowance {
    left: u64,
    /// Up to this many requests were counted.
    counted: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: BURST, counted: 0 }
    }
}

impl Allowance {
    /// Whether one more may be given to another worker, of an app whose workers have taken `requests` so far. New workers have
    /// taken none yet: what those before them took earns nothing twice.
    pub fn take(&mut self, requests: u64) -> bool {
        let earned = requests.saturating_sub(self.counted) / EACH;
        self.counted = if requests < self.counted { requests } else { self.counted + earned * EACH };
        self.left = self.left.saturating_add(earned).min(BURST);
        let granted = self.left > 0;
        self.left -= u64::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_in_ten_and_ten_at_once() {
        let mut allowance = Allowance::default();
        let granted = (0..100).filter(|_| allowance.take(5)).count();
        assert_eq!(granted, 10);
        assert!(!allowance.take(9));
        assert!(allowance.take(10));
        assert!(!allowance.take(19));
        assert_eq!((0..100).filter(|_| allowance.take(100_000)).count(), 10, "no more is saved");
        assert!(!allowance.take(3), "a new generation begins at nothing");
        assert!(allowance.take(13));
    }

    proptest! {
        #[test]
        fn never_more_than_a_tenth_and_the_first_ten(steps in proptest::collection::vec(0u64..40, 1..200)) {
            let (mut allowance, mut requests, mut granted) = (Allowance::default(), 0, 0);
            for more in steps {
                requests += more;
                granted += u64::from(allowance.take(requests));
                prop_assert!(granted <= BURST + requests / EACH);
            }
        }
    }
}
