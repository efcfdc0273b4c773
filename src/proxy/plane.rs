//! What one data-plane thread needs to answer requests. Built once per thread by `daemon::threads`, shared by its connections.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::clock::Clock;
use crate::config::limits::Rules;
use crate::config::networks::Networks;
use crate::proxy::clients::Clients;
use crate::proxy::heads::Heads;
use crate::proxy::route::Routing;
use crate::scope::Scope;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::tally::Tally;
use crate::upstream::exchange::Reach;

/// Takes access records away. Called on the request path: it must not block, and what it cannot take it counts and drops.
pub trait AccessSink {
    /// One request is over.
    fn record(&self, record: &AccessRecord);
}

/// One data-plane thread's view of the program.
#[derive(Clone)]
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
    /// This thread's number, from 0: what it counts is its own.
    pub thread: usize,
    /// Requests for no app.
    pub strangers: Arc<Tally>,
    /// What each client holds, on whichever thread.
    pub clients: Arc<Clients>,
    /// The heads of requests that wait on this thread.
    pub heads: Rc<Heads>,
    /// Load balancers that say for whom they connect.
    pub proxy_protocol: Networks,
    /// Wall time, for access records.
    pub clock: Arc<dyn Clock>,
}

/// The plane that connections accepted from now on live with. One accepted earlier keeps the rules it began with, so that
/// what it was promised (HTTP/2 settings, time-outs) holds to its end. Clones are handles to the same.
#[derive(Clone)]
pub struct CurrentPlane(Rc<RefCell<Rc<Plane>>>);

impl CurrentPlane {
    /// Begins with `plane`.
    pub fn new(plane: Plane) -> Self {
        Self(Rc::new(RefCell::new(Rc::new(plane))))
    }

    /// The plane now.
    pub fn plane(&self) -> Rc<Plane> {
        Rc::clone(&self.0.borrow())
    }

    /// Puts other rules in its place.
    pub fn follow(&self, rules: Rules) {
        let mut plane = Plane::clone(&self.plane());
        plane.reach.timeouts = rules.timeouts;
        plane.reach.limits = rules.limits;
        plane.proxy_protocol = rules.before.proxy_protocol;
        self.0.replace(Rc::new(plane));
    }
}
