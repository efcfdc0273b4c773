//! What stands against a start.

use std::path::PathBuf;

use crate::cert::store_error::StoreError;
use crate::daemon::cli;
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
    Store(#[from] StoreError),
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

impl StartError {
    /// The exit status: whether starting again may mend it.
    pub fn status(&self) -> u8 {
        match self {
            Self::Store(error) if error.is_of_a_configured_file() => cli::CONFIG,
            Self::Store(_)
            | Self::Bind(_)
            | Self::Inherit(_)
            | Self::Admin(_)
            | Self::Log(_)
            | Self::AccessLog { .. }
            | Self::Events(_)
            | Self::Threads(_)
            | Self::InUse(_)
            | Self::Launch(_) => FAILED,
        }
    }
}

/// Exit status of whatever else went wrong.
const FAILED: u8 = 1;
