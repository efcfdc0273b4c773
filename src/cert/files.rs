//! Certificates the operator maintains as files: read at start, read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;

use crate::cert::bundle::{CertBundle, MAX_SIZE};
use crate::cert::store_error::{FileError, StoreError};
use crate::cert::validity::Validity;
use crate::durable;
use crate::name::AppName;

/// A pair of files.
#[derive(Debug, Clone)]
pub struct FilePair {
    /// Whose certificate.
    pub app: AppName,
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Tells one content of a pair of files from the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp([Option<(u64, i64, i64, u64)>; 2]);

impl FilePair {
    /// Reads and checks both.
    pub fn load(&self, provider: &Arc<CryptoProvider>) -> Result<CertBundle, StoreError> {
        let fail =
            |path: &Path, source| StoreError::File { app: self.app.clone(), path: path.to_owned(), source };
        let chain = content(&self.cert).map_err(|error| fail(&self.cert, error))?;
        let key = content(&self.key).map_err(|error| fail(&self.key, error))?;
        CertBundle::parse_parts(provider, &chain, &key).map_err(|error| fail(&self.cert, error.into()))
    }

    /// Why clients refuse a certificate of these files at `now`, by whatever name they ask for it.
    pub fn refused(&self, validity: Validity, now: SystemTime) -> Option<String> {
        let date = |at: SystemTime| OffsetDateTime::from(at).date();
        let (when, mend) = if validity.not_after <= now {
            let when = format!("has been expired since {}", date(validity.not_after));
            (when, "put a renewed one in its place")
        } else if validity.not_before > now {
            let when = format!("is not valid before {}", date(validity.not_before));
            (when, "put one that is valid already in its place, or set this machine's clock if that is wrong")
        } else {
            return None;
        };
        let file = self.cert.display();
        Some(format!(
            "the certificate {file} {when}: clients refuse it; {mend}: a running edge serves it within a minute"
        ))
    }

    /// What tells whether they changed: a renewal tool may replace either, also within one second.
    pub fn stamp(&self) -> Stamp {
        let of = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
        };
        Stamp([of(&self.cert), of(&self.key)])
    }
}

fn content(path: &Path) -> Result<Vec<u8>, FileError> {
    durable::read(path, MAX_SIZE)?.ok_or(FileError::Missing)
}
