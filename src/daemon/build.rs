//! Opens everything a configuration names and serves nothing yet, so that what cannot be opened is an error of the start.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model::{App, Backend, Config};
use crate::listen::accept::Kind;
use crate::listen::socket::{self, BindError};
use crate::proxy::route::{Routing, Site};
use crate::telemetry::status::ListenerStatus;
use crate::upstream::pool::Pool;
use crate::worker::slot::Roster;
use crate::worker::supervisor;

/// Edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate store cannot be used.
    #[error(transparent)]
    Store(#[from] crate::cert::store::StoreError),
    /// The admin socket cannot be opened.
    #[error(transparent)]
    Admin(#[from] crate::daemon::admin::AdminError),
    /// Standard output cannot be written by a thread of its own.
    #[error("cannot start the log's writer")]
    Log(#[source] std::io::Error),
    /// The access log cannot be opened.
    #[error("cannot open the access log {path}", path = .path.display())]
    AccessLog {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Events have nowhere to go.
    #[error(transparent)]
    Events(#[from] crate::telemetry::log::InstallError),
    /// The system gives no thread, runtime or signal handler.
    #[error("cannot start the program's threads")]
    Threads(#[source] std::io::Error),
    /// Another edge runs here.
    #[error(transparent)]
    InUse(#[from] crate::worker::leftovers::InUse),
    /// Workers cannot be run at all.
    #[error(transparent)]
    Launch(#[from] crate::worker::launch::LaunchError),
}

/// The bound sockets, dealt out to threads.
pub struct Sockets {
    /// For each thread, its socket of every address.
    pub by_thread: Vec<Vec<(TcpListener, Kind)>>,
    /// What was bound.
    pub listeners: Vec<ListenerStatus>,
    /// The port of the first https address, where it is not 443: redirects name it.
    pub https_port: Option<u16>,
}

/// Binds every address of `config` for each of its threads.
pub fn sockets(config: &Config) -> Result<Sockets, BindError> {
    let threads = config.threads.get();
    let mut by_thread: Vec<Vec<(TcpListener, Kind)>> = (0..threads).map(|_| Vec::new()).collect();
    let mut listeners = Vec::new();
    let mut https_port = None;
    let wanted = config
        .listen
        .http
        .iter()
        .map(|address| (*address, Kind::Http))
        .chain(config.listen.https.iter().map(|address| (*address, Kind::Https)));
    for (address, kind) in wanted {
        let bound = socket::bind(address, threads)?;
        if kind == Kind::Https && https_port.is_none() {
            https_port = Some(bound.address.port());
        }
        let name = match kind {
            Kind::Http => "http",
            Kind::Https => "https",
        };
        listeners.push(ListenerStatus { kind: name.to_owned(), address: bound.address.to_string() });
        for (mine, socket) in by_thread.iter_mut().zip(bound.sockets) {
            mine.push((socket, kind));
        }
    }
    Ok(Sockets { by_thread, listeners, https_port: https_port.filter(|port| *port != 443) })
}

/// One app as the daemon holds it.
pub struct Served {
    /// The app.
    pub app: Arc<App>,
    /// Its workers, published by its supervisor or, for an `upstream`, once.
    pub roster: Arc<Roster>,
    /// Its pool.
    pub pool: Arc<Pool>,
}

/// Pools and routing of every app.
pub fn apps(config: &Config) -> (Vec<Served>, Arc<ArcSwap<Routing>>) {
    let served: Vec<Served> = config
        .apps
        .iter()
        .map(|app| {
            let roster = match &app.backend {
                Backend::Workers(_) => Roster::new(),
                Backend::Upstream(_) => supervisor::fixed_roster(app),
            };
            let pool = Pool::new(app.name.clone(), Arc::clone(&roster));
            Served { app: Arc::clone(app), roster, pool }
        })
        .collect();
    let routing =
        Routing::new(served.iter().map(|one| Site::new(Arc::clone(&one.app), Arc::clone(&one.pool))));
    (served, Arc::new(ArcSwap::from_pointee(routing)))
}
