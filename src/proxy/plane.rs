//! What one data-plane thread needs to answer requests. Built once per thread by `daemon::threads`, shared by its connections.

use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::clock::Clock;
use crate::proxy::route::Routing;
use crate::scope::Scope;
use crate::telemetry::access::AccessRecord;
use crate::upstream::exchange::Reach;

/// Takes access records away. Called on the request path: it must not block, and what it cannot take it counts and drops.
pub trait AccessSink {
    /// One request is over.
    fn record(&self, record: &AccessRecord);
}

/// One data-plane thread's view of the program.
pub struct Plane {
    /// Which host belongs to which app.
    pub routing: Arc<ArcSwap<Routing>>,
    /// Which hosts still wait for their certificate.
    pub certificates: Arc<Certificates>,
    /// Answers to pending HTTP-01 challenges.
    pub challenges: Arc<Challenges>,
    /// The way to the workers, with the thread's deadlines and the configured time-outs.
    pub reach: Reach,
    /// Where access records go.
    pub access: Rc<dyn AccessSink>,
    /// Owns the tasks that outlive an answer's head or the answer, as answers read ahead and uploads read on; ends open WebSockets.
    pub tunnels: Scope,
    /// Wall time, for access records.
    pub clock: Arc<dyn Clock>,
}
