//! The time of a certificate, and the moment in it to renew.

use std::time::{Duration, SystemTime};

use fastrand::Rng;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// From when to when a certificate may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub not_before: SystemTime,
    /// End.
    pub not_after: SystemTime,
}

impl Validity {
    /// Its whole length.
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// What is left at `now`.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    /// A moment to renew a certificate that was installed at `now`: two thirds into its life, or half of a life under ten
    /// days, give or take one percent so that certificates of one day spread.
    pub fn renewal(&self, now: SystemTime, rng: &mut Rng) -> SystemTime {
        let share = self.share() + (rng.f64() * 0.02 - 0.01);
        let usual = self.not_before + self.life().mul_f64(share);
        // A CA that backdates by most of the life must not be asked again at once.
        usual.max(now + self.left(now) / 3)
    }

    /// The latest moment to renew, whatever the CA advises.
    pub fn latest_renewal(&self) -> SystemTime {
        self.not_before + self.life().mul_f64(self.share() + 0.02)
    }

    fn share(&self) -> f64 {
        if self.life() < 10 * DAY { 1.0 / 2.0 } else { 2.0 / 3.0 }
    }

    /// A recorded moment of renewal after this is not believed: the last tenth of the life is for retries.
    pub fn backstop(&self) -> SystemTime {
        self.not_before + self.life().mul_f64(0.9)
    }
}
