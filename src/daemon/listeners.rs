//! The bound addresses of this run, dealt out to the data-plane threads: opened and closed while connections live on.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::config::diff::{self, Listener};
use crate::config::model::{Config, ListenAddr, Rules};
use crate::daemon::threads::{DataThread, Mine, Order};
use crate::listen::accept::Kind;
use crate::listen::inherited::Inherited;
use crate::listen::socket::{self, BindError, Bound, Neighbours};
use crate::report::Report;
use crate::telemetry::status::ListenerStatus;

/// What is listened on now.
pub struct Listeners {
    open: Vec<Open>,
    opened: u64,
    threads: usize,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    inherited: Inherited,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    number: u64,
    what: Listener,
    address: SocketAddr,
}

/// A bound address nobody can connect to yet. Dropped, it was never there.
pub struct Reserved {
    what: Listener,
    bound: Bound,
}

impl Listeners {
    /// Binds every address of `config` for which no socket was `inherited`; also returned are each thread's sockets.
    pub fn bind(config: &Config, inherited: Inherited) -> Result<(Self, Vec<Vec<Mine>>), BindError> {
        let threads = config.threads.get();
        let mut listeners = Self { open: Vec::new(), opened: 0, threads, orders: Vec::new(), inherited };
        let mut by_thread: Vec<Vec<Mine>> = (0..threads).map(|_| Vec::new()).collect();
        for what in diff::listeners(&config.listen) {
            let bound = match listeners.inherited.at(what.address, threads) {
                Some(inherited) => inherited?,
                None => {
                    socket::bind(what.address, threads).map_err(|error| listeners.inherited.explain(error))?
                }
            };
            for (thread, mine) in by_thread.iter_mut().zip(listeners.enlist(what, bound)) {
                thread.push(mine);
            }
        }
        Ok((listeners, by_thread))
    }

    /// The threads to be told of changes.
    pub fn attach(&mut self, threads: &[DataThread]) {
        self.orders = threads.iter().map(DataThread::orders).collect();
    }

    /// Binds further addresses. Those in `closing` may stand in the way: they are this process's own.
    pub fn reserve(&self, wanted: &[Listener], closing: &[Listener]) -> Result<Vec<Reserved>, BindError> {
        let reserve = |what: &Listener| {
            if let Some(inherited) = self.inherited.at(what.address, self.threads) {
                return Ok(Reserved { what: *what, bound: inherited? });
            }
            let neighbours = Neighbours::of(what.address, closing.iter().map(|gone| gone.address));
            let bound = socket::reserve(what.address, self.threads, neighbours)
                .map_err(|error| self.inherited.explain(error))?;
            Ok(Reserved { what: *what, bound })
        };
        wanted.iter().map(reserve).collect()
    }

    /// Lets clients connect to what was reserved.
    pub fn open(&mut self, reserved: Vec<Reserved>) {
        for Reserved { what, bound } in reserved {
            let address = bound.address;
            if let Err(error) = bound.listen() {
                tracing::error!(%address, error = %Report(&error), "cannot listen on a bound address");
                continue;
            }
            tracing::info!(kind = name(what), %address, "listening");
            let mine = self.enlist(what, bound);
            for (thread, mine) in self.orders.iter().zip(mine) {
                // A thread that has ended ends edge: nothing to be told here.
                let _ended = thread.send(Order::Open(mine));
            }
        }
    }

    /// Connections accepted once this completes live under other rules.
    pub fn tell_rules(&self, rules: &Rules) -> impl Future<Output = ()> + use<> {
        let mut waiting = Vec::new();
        for thread in &self.orders {
            let (told, wait) = oneshot::channel();
            // A thread that has ended ends edge: nothing to be told here.
            if thread.send(Order::Rules(Box::new(rules.clone()), told)).is_ok() {
                waiting.push(wait);
            }
        }
        async move {
            drop(futures_util::future::join_all(waiting).await);
        }
    }

    /// Takes no more connections on these addresses; completes when the sockets are closed. Open connections live on.
    pub fn close(&mut self, gone: &[Listener]) -> impl Future<Output = ()> + use<> {
        let mut waiting = Vec::new();
        let (closing, open) = self.open.iter().partition(|open| gone.contains(&open.what));
        self.open = open;
        let closing: Vec<Open> = closing;
        for one in closing {
            tracing::info!(kind = name(one.what), address = %one.address, "not listening any more");
            for thread in &self.orders {
                let (closed, wait) = oneshot::channel();
                if thread.send(Order::Close(one.number, closed)).is_ok() {
                    waiting.push(wait);
                }
            }
        }
        async move {
            drop(futures_util::future::join_all(waiting).await);
        }
    }

    /// Says which inherited sockets are used, and which are not.
    pub fn tell_inherited(&self) {
        let listened: Vec<ListenAddr> = self.open.iter().map(|open| open.what.address).collect();
        let (used, idle) = self.inherited.addresses(&listened);
        for address in used {
            tracing::info!(%address, "the socket is the service manager's, and outlives edge");
        }
        for address in idle {
            tracing::warn!(%address, "the service manager passes a socket that is no address of `listen`: who connects there is not answered");
        }
    }

    /// In the order of `config`, which now holds.
    pub fn arrange(&mut self, config: &Arc<Config>) {
        let order = diff::listeners(&config.listen);
        self.open.sort_by_key(|open| order.iter().position(|what| *what == open.what));
    }

    /// The port of the first https address, where it is not 443: redirects name it.
    pub fn https_port(&self) -> Option<u16> {
        let first = self.open.iter().find(|open| open.what.secure)?;
        Some(first.address.port()).filter(|port| *port != 443)
    }

    /// For `edge status`.
    pub fn status(&self) -> Vec<ListenerStatus> {
        let told = |open: &Open| ListenerStatus {
            kind: name(open.what).to_owned(),
            address: open.address.to_string(),
        };
        self.open.iter().map(told).collect()
    }

    fn enlist(&mut self, what: Listener, bound: Bound) -> Vec<Mine> {
        self.opened += 1;
        let (number, kind) = (self.opened, if what.secure { Kind::Https } else { Kind::Http });
        self.open.push(Open { number, what, address: bound.address });
        let (sockets, held) = (bound.sockets, bound.held);
        sockets.into_iter().map(|socket| Mine { listener: number, socket, kind, held }).collect()
    }
}

fn name(what: Listener) -> &'static str {
    if what.secure { "https" } else { "http" }
}
