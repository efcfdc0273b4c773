//! What of the store, or of the operator's files, cannot be used, and why.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;

use crate::cert::bundle::BundleError;
use crate::durable::DurableError;
use crate::name::AppName;
use crate::report::Report;

/// Something of the store, or a file of the operator, that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("certificate storage failed")]
    Disk(#[from] DurableError),
    /// A directory cannot be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than its owner could have read a key.
    #[error("{} can be read by others than its owner (mode {mode:04o}); refusing to use it. Run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another account could have replaced a key.
    #[error("{} belongs to user {uid}, not to edge's; refusing to use it. Run: chown {own} {}", path.display(), path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Who edge is.
        own: u32,
    },
    /// A generation of a certificate that is no bundle, or one of another name.
    #[error("cannot use {}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BundleError,
    },
    /// A record that cannot be read.
    #[error("cannot read {}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A certificate the operator maintains.
    #[error("apps.{app}.tls: cannot use certificate {}", path.display())]
    File {
        /// Whose certificate.
        app: AppName,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FileError,
    },
    /// The CA of client certificates.
    #[error("apps.{app}.client_auth.ca: cannot use {}", path.display())]
    ClientCa {
        /// Whose clients.
        app: AppName,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FileError,
    },
    /// Edge's own CA.
    #[error("edge's internal CA in {} cannot be used", path.display())]
    Internal {
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More than one.
    #[error("{}", .0.iter().map(|error| Report(error).to_string()).collect::<Vec<_>>().join("\n"))]
    Several(Vec<StoreError>),
    /// TLS itself refuses.
    #[error("TLS cannot be set up for {name}")]
    Tls {
        /// For whom.
        name: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

impl StoreError {
    /// All of them as one, each once, so that nobody mends one to be told of the next.
    pub fn together(errors: Vec<Self>) -> Result<(), Self> {
        let mut told = HashSet::new();
        let mut errors: Vec<Self> =
            errors.into_iter().filter(|error| told.insert(Report(error).to_string())).collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Whether it is of a file that the configuration names: a fault of the configuration, as a missing one is, which trying again
    /// does not mend.
    pub fn is_of_a_configured_file(&self) -> bool {
        match self {
            Self::File { .. } | Self::ClientCa { .. } => true,
            Self::Several(all) => all.iter().all(Self::is_of_a_configured_file),
            Self::Disk(_)
            | Self::List { .. }
            | Self::Exposed { .. }
            | Self::Foreign { .. }
            | Self::Bundle { .. }
            | Self::Record { .. }
            | Self::Internal { .. }
            | Self::Tls { .. } => false,
        }
    }

    /// Whether it is what is read while a renewal tool has written one file of a pair and not yet the other.
    pub fn is_half_renewed(&self) -> bool {
        matches!(self, Self::File { source: FileError::Bundle(BundleError::KeyMismatch), .. })
    }
}

/// Why an operator's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum FileError {
    #[error(transparent)]
    Disk(#[from] DurableError),
    #[error("there is no such file")]
    Missing,
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{0}")]
    Roots(String),
}
