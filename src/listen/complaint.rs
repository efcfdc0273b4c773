//! Trouble that may come thousands of times a second and is told once.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use h2::Reason;

use crate::report::Report;

/// Between two lines in the log about the same trouble.
const EVERY: Duration = Duration::from_secs(1);

/// One kind of trouble of one thread.
#[derive(Default)]
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

/// What a thread's doors and connections may have to complain of.
#[derive(Default)]
pub struct Complaints {
    /// There are too many connections.
    pub crowded: Complaint,
    /// A load balancer does not say for whom it connects.
    pub unintroduced: Complaint,
    /// A client's frames over HTTP/2 cost more than they are worth.
    pub flooding: Complaint,
}

impl Complaints {
    /// A client's connection over HTTP/2 ended with an error. That it was ended for what it sent is for operators to know.
    pub fn tell_ended(&self, client: IpAddr, error: &h2::Error) {
        let calm = !error.is_reset() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM);
        if !calm || error.is_remote() {
            tracing::debug!(%client, error = %Report(error), "connection ended");
        } else if let Some(times) = self.flooding.is_due(1) {
            tracing::warn!(%client, connections = times, "too many requests taken back, or empty frames: the connection is closed");
        }
    }
}
