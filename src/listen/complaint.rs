//! What clients do that operators are told of.

use std::net::IpAddr;

use h2::Reason;

use crate::complaint::Complaint;
use crate::report::Report;

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
