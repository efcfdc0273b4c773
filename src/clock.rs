//! Wall time as a seam: certificates expire by it, logs are stamped with it, and tests move it.
//! Monotonic time is tokio's, which tests pause.

use std::time::SystemTime;

/// Tells the wall time. One implementation reads the system's clock; tests bring their own.
pub trait Clock: Send + Sync + 'static {
    /// The wall time now. May jump either way between two calls.
    fn now(&self) -> SystemTime;

    /// The same in whole seconds since 1970.
    fn seconds(&self) -> u64 {
        self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }
}

/// The system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the seam")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}
