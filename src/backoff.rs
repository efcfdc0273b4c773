//! Growing delays between attempts.

use std::time::Duration;

/// Doubles from `base` to `cap`, each delay spread by `jitter` (0.2 = ±20 %).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// The delay after the first failure.
    pub base: Duration,
    /// The longest delay, before jitter.
    pub cap: Duration,
    /// Share of the delay by which it may be shorter or longer.
    pub jitter: f64,
}

impl Backoff {
    /// The delay before attempt `attempt + 2`, counting failures from 0.
    pub fn delay(&self, attempt: u32, rng: &mut fastrand::Rng) -> Duration {
        let factor = 2f64.powi(attempt.min(30) as i32);
        let plain = (self.base.as_secs_f64() * factor).min(self.cap.as_secs_f64());
        let spread = 1.0 + self.jitter * (2.0 * rng.f64() - 1.0);
        Duration::from_secs_f64((plain * spread).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_cap_within_its_jitter() {
        let backoff = Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(30), jitter: 0.2 };
        let mut rng = fastrand::Rng::with_seed(7);
        for (attempt, plain) in [(0, 0.2), (1, 0.4), (4, 3.2), (10, 30.0), (u32::MAX, 30.0)] {
            let delay = backoff.delay(attempt, &mut rng).as_secs_f64();
            assert!(delay >= plain * 0.8 && delay <= plain * 1.2, "{attempt}: {delay}");
        }
    }
}
