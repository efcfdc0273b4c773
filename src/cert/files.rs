//! Certificates the operator maintains as files: read at start, read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;

use crate::cert::bundle::{CertBundle, MAX_SIZE};
use crate::cert::seconds::rfc3339;
use crate::cert::store_error::{FileError, StoreError};
use crate::cert::validity::Validity;
use crate::durable;
use crate::name::{AppName, HostPattern};

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
        let file = self.cert.display();
        if validity.not_after <= now {
            let date = OffsetDateTime::from(validity.not_after).date();
            return Some(format!(
                "the certificate {file} has been expired since {date}: clients refuse it; put a renewed one in its place: a \
                 running edge serves it within a minute"
            ));
        }
        (validity.not_before > now).then(|| {
            let at = rfc3339(validity.not_before);
            format!(
                "the certificate {file} is not valid before {at}: it is served all the same, and clients refuse it until then; put \
                 one that is valid already in its place: a running edge serves that within a minute; or set this machine's clock, \
                 if that is wrong"
            )
        })
    }

    /// Why what these files hold is not served yet.
    pub fn early(&self, validity: Validity) -> String {
        format!(
            "the certificate {} is not valid before {}: the one before it is served until then, or until that one ends; set this \
             machine's clock, if that is wrong",
            self.cert.display(),
            rfc3339(validity.not_before)
        )
    }

    /// Tells what clients may dislike about the certificate for `pattern`, which is served all the same.
    pub fn tell_unfit(&self, pattern: &HostPattern, bundle: &CertBundle) {
        let file = self.cert.display();
        if !bundle.covers(pattern) {
            tracing::warn!(cert = %pattern, %file, "the certificate does not name this host");
        }
        if let Err(error) = bundle.check_chain() {
            tracing::warn!(cert = %pattern, %file, "clients may refuse the certificate: {error}");
        }
        if bundle.certified().cert.len() == 1 && !bundle.is_self_signed() {
            tracing::info!(
                cert = %pattern,
                %file,
                "the file has no certificate but the host's: clients that do not know who signed that refuse it, and need the whole chain here, as in certbot's fullchain.pem"
            );
        }
        if bundle.wants_staple() {
            tracing::warn!(
                cert = %pattern,
                %file,
                "the certificate demands an OCSP answer in each handshake (must-staple), and edge sends none: some clients refuse it. Order one without that"
            );
        }
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
