//! What stands against a start.

use std::path::PathBuf;

use crate::listen::inherited::InheritError;
use crate::listen::socket::BindError;

/// Edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// What a service manager passes is no use.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The certificate store cannot be used.
    #[error(transparent)]
    Store(#[from] crate::cert::store_error::StoreError),
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
