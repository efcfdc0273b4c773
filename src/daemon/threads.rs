//! The data-plane threads: one runtime each, with its own listening sockets, worker connections and deadlines.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::clock::Clock;
use crate::config::model::Rules;
use crate::deadline::Deadlines;
use crate::listen::accept::{self, Door, Kind};
use crate::listen::arrivals::Arrivals;
use crate::listen::handshakes::Handshakes;
use crate::listen::share::Share;
use crate::listen::stage::Stage;
use crate::listen::standby::Standby;
use crate::proxy::clients::Clients;
use crate::proxy::heads::Heads;
use crate::proxy::plane::{AccessSink, CurrentPlane, Plane};
use crate::proxy::route::Routing;
use crate::scope::Scope;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::buffer::AccessLog;
use crate::telemetry::sink::Sink;
use crate::telemetry::tally::Tally;
use crate::upstream::budget::Budget;
use crate::upstream::exchange::Reach;
use crate::upstream::idle::IdleConnections;
use crate::upstream::multiplex::SharedConnections;

/// What every data-plane thread reads.
#[derive(Clone)]
pub struct Shared {
    /// Who answers for which host.
    pub routing: Arc<ArcSwap<Routing>>,
    /// What can be served.
    pub certificates: Arc<Certificates>,
    /// Pending challenges.
    pub challenges: Arc<Challenges>,
    /// What each client holds.
    pub clients: Arc<Clients>,
    /// Requests for no app.
    pub strangers: Arc<Tally>,
    /// How many threads there are.
    pub threads: u32,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// What connections live under, until that changes.
    pub rules: Rules,
    /// How long open requests may take at drain.
    pub drain_timeout: Duration,
    /// Where access lines go.
    pub access: Option<Sink>,
}

/// A running data-plane thread.
pub struct DataThread {
    ended: oneshot::Receiver<bool>,
    /// How it ended, once that was told: it is told once, and asked for again at the stop.
    outcome: Option<Option<bool>>,
    orders: mpsc::UnboundedSender<Order>,
}

/// One thread's socket of a listener.
#[derive(Debug)]
pub struct Mine {
    /// Which listener of this run.
    pub listener: u64,
    /// The socket.
    pub socket: TcpListener,
    /// What is spoken there.
    pub kind: Kind,
    /// Whether a service manager holds it, too.
    pub held: bool,
}

/// What changes for a running thread.
#[derive(Debug)]
pub enum Order {
    /// Another socket.
    Open(Mine),
    /// One socket less: what the kernel has accepted is served, and its connections live on. The sender is dropped once it is closed.
    Close(u64, oneshot::Sender<()>),
    /// Other rules for connections accepted from now on. The sender is dropped once they hold.
    Rules(Box<Rules>, oneshot::Sender<()>),
}

impl DataThread {
    /// Where the thread is told what changes.
    pub fn orders(&self) -> mpsc::UnboundedSender<Order> {
        self.orders.clone()
    }

    /// Waits until the thread has drained, or been aborted: `Some(true)` where every request was finished in time, `None` where
    /// it died of a panic.
    pub async fn ended(&mut self) -> Option<bool> {
        if self.outcome.is_none() {
            self.outcome = Some((&mut self.ended).await.ok());
        }
        self.outcome.flatten()
    }
}

/// Starts thread number `index` on `sockets`. It ends when `scope` has drained.
pub fn start(index: usize, sockets: Vec<Mine>, shared: Shared, scope: &Scope) -> io::Result<DataThread> {
    let scope = scope.child();
    let (tell, ended) = oneshot::channel();
    let (orders, inbox) = mpsc::unbounded_channel();
    // Built here, so that running out of descriptors is an error of the start.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    std::thread::Builder::new().name(format!("edge-data-{index}")).spawn(move || {
        let local = LocalSet::new();
        // A task of its own: what is run itself here would be polled in every turn of the thread, whoever was woken.
        let served = local.block_on(&runtime, async {
            Scope::new().spawn(serve(index, sockets, inbox, shared, scope)).await
        });
        match served {
            // Nobody listens only where edge is being torn down already.
            Ok(Ok(drained)) => drop(tell.send(drained)),
            Ok(Err(error)) => tracing::error!(error = %error, "data-plane thread cannot take its sockets"),
            // A panic, which was logged: whoever waits hears that nothing was told.
            Err(_panicked) => {}
        }
    })?;
    Ok(DataThread { ended, outcome: None, orders })
}

impl AccessSink for AccessLog {
    fn record(&self, record: &AccessRecord) {
        Self::record(self, record);
    }
}

/// A running accept loop.
struct Accepting {
    open: Scope,
    ended: JoinHandle<()>,
}

/// A thread's listening sockets.
struct Doors {
    /// What a door at another socket is like.
    model: Door,
    open: HashMap<u64, Accepting>,
}

impl Doors {
    /// Does what it is told, until the thread drains.
    async fn obey(&mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            let order = tokio::select! {
                () = self.model.scope.drained() => return,
                Some(order) = orders.recv() => order,
            };
            match order {
                Order::Open(mine) => {
                    if let Err(error) = self.open(mine) {
                        tracing::error!(%error, "a thread cannot take a listening socket");
                    }
                }
                Order::Rules(rules, told) => {
                    self.follow(*rules);
                    drop(told);
                }
                Order::Close(listener, closed) => self.close(listener, closed),
            }
        }
    }

    fn open(&mut self, mine: Mine) -> io::Result<()> {
        let arrivals = Arrivals::new(mine.socket)?;
        let door = Door { kind: mine.kind, held: mine.held, ..self.model.clone() };
        let open = self.model.scope.child();
        let ended = self.model.scope.drive(accept::run(arrivals, door, open.clone()));
        self.open.insert(mine.listener, Accepting { open, ended });
        Ok(())
    }

    fn close(&mut self, listener: u64, closed: oneshot::Sender<()>) {
        if let Some(Accepting { open, ended }) = self.open.remove(&listener) {
            open.drain();
            drop(self.model.scope.spawn(async move {
                let _panicked = ended.await;
                drop(closed);
            }));
        }
    }

    fn follow(&self, rules: Rules) {
        let reach = &self.model.plane.plane().reach;
        reach.idle.keep_for(rules.timeouts.pool_idle);
        reach.shared.keep_for(rules.timeouts.pool_idle);
        self.model.plane.follow(rules);
    }
}

async fn serve(
    index: usize,
    sockets: Vec<Mine>,
    orders: mpsc::UnboundedReceiver<Order>,
    shared: Shared,
    scope: Scope,
) -> io::Result<bool> {
    let access = shared.access.clone().map_or_else(AccessLog::off, AccessLog::new);
    let plane = plane(index, &shared, &access, &scope);
    let (reach, stage) = (plane.reach.clone(), Stage::default());
    let model = Door {
        kind: Kind::Https,
        held: false,
        share: Share::new(shared.threads),
        plane: CurrentPlane::new(plane),
        handshakes: Handshakes::new(shared.threads),
        stage: stage.clone(),
        complaints: Rc::default(),
        scope: scope.clone(),
        standby: Standby::default(),
    };
    let connections = async {
        let mut doors = Doors { model, open: HashMap::new() };
        doors.follow(shared.rules);
        for mine in sockets {
            doors.open(mine)?;
        }
        doors.obey(orders).await;
        Ok(scope.close(shared.drain_timeout).await)
    };
    // These outlive the connections, which need them while they drain, and end with this future.
    let outcome = tokio::select! {
        outcome = connections => outcome,
        () = stage.follow(&scope, &reach.deadlines) => Ok(false),
        () = reach.deadlines.run() => Ok(false),
        () = reach.idle.run() => Ok(false),
        () = reach.shared.run() => Ok(false),
        () = access.run() => Ok(false),
    };
    access.flush();
    outcome
}

/// What thread number `index` answers with. Its tasks are those of `scope`.
fn plane(index: usize, shared: &Shared, access: &AccessLog, scope: &Scope) -> Plane {
    Plane {
        routing: Arc::clone(&shared.routing),
        certificates: Arc::clone(&shared.certificates),
        challenges: Arc::clone(&shared.challenges),
        reach: Reach {
            idle: IdleConnections::new(),
            // Of a scope that nobody waits for: connections to workers stay open for the requests that are.
            shared: SharedConnections::new(Scope::new()),
            deadlines: Deadlines::new(),
            timeouts: shared.rules.timeouts,
            limits: shared.rules.limits,
            budget: Budget::new(),
        },
        access: Rc::new(access.clone()),
        tunnels: scope.clone(),
        thread: index,
        strangers: Arc::clone(&shared.strangers),
        clients: Arc::clone(&shared.clients),
        heads: Rc::new(Heads::new(shared.threads)),
        proxy_protocol: shared.rules.before.proxy_protocol.clone(),
        clock: Arc::clone(&shared.clock),
    }
}
