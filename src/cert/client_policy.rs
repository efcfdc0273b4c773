//! What an app asks of its clients in a handshake: a certificate of a CA of the operator's. The CA's file is read at start, and
//! again when it changes.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::cert::store_error::{FileError, StoreError};
use crate::config::model::{ClientAuth, ClientAuthMode, Config};
use crate::config::trusted::Trusted;
use crate::durable;
use crate::name::AppName;
use crate::report::Report;

/// Longest file of CA certificates.
const LONGEST: u64 = 1024 * 1024;

/// Tells one content of the file from the next.
type Stamp = Option<(u64, i64, i64, u64)>;

/// The policy of one app, with what its file holds now.
#[derive(Clone)]
pub struct ClientPolicy {
    app: AppName,
    auth: ClientAuth,
    stamp: Stamp,
    content: Arc<[u8]>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Why the file's present content cannot be used.
    unusable: Option<String>,
}

impl ClientPolicy {
    /// The policies of all apps that have one, without those whose file cannot be used, which `errors` tells of.
    pub fn all(
        config: &Config,
        provider: &Arc<CryptoProvider>,
        errors: &mut Vec<StoreError>,
    ) -> HashMap<AppName, Self> {
        let mut policies = HashMap::new();
        for app in &config.apps {
            match app.client_auth.as_ref().map(|auth| Self::read(&app.name, auth, provider)) {
                Some(Ok(policy)) => drop(policies.insert(app.name.clone(), policy)),
                Some(Err(error)) => errors.push(error),
                None => {}
            }
        }
        policies
    }

    /// The same with the file's present content, if that has changed and can be used.
    pub fn renewed(&mut self, provider: &Arc<CryptoProvider>) -> Option<Self> {
        let stamp = stamp(&self.auth);
        // What could not be used is read each time: whoever sets its permissions right leaves the file as it is.
        if stamp == self.stamp && self.unusable.is_none() {
            return None;
        }
        self.stamp = stamp;
        match Self::read(&self.app, &self.auth, provider) {
            Ok(renewed) => {
                self.unusable = None;
                (!renewed.is_same(self)).then_some(renewed)
            }
            Err(error) => {
                let error = Report(&error).to_string();
                if self.unusable.as_ref() != Some(&error) {
                    tracing::error!(app = %self.app, error, "the changed CA of client certificates cannot be used; keeping the old one");
                }
                self.unusable = Some(error);
                None
            }
        }
    }

    /// Whether both ask the same of a client.
    pub fn is_same(&self, other: &Self) -> bool {
        self.auth == other.auth && self.content == other.content
    }

    /// Why the file cannot be used as it is now: what it held before is in force.
    pub fn unusable(&self) -> Option<&str> {
        self.unusable.as_deref()
    }

    /// As the file of the configuration says it.
    pub fn auth(&self) -> &ClientAuth {
        &self.auth
    }

    /// Checks what a client presents.
    pub fn verifier(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.verifier
    }

    /// The policy `auth` of `app`, with what its file holds now.
    pub fn read(
        app: &AppName,
        auth: &ClientAuth,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, StoreError> {
        let stamp = stamp(auth);
        let fail = |source| StoreError::ClientCa { app: app.clone(), path: auth.ca.clone(), source };
        let content = durable::read(&auth.ca, LONGEST).map_err(|error| fail(error.into()))?;
        let content = content.ok_or_else(|| fail(FileError::Missing))?;
        let verifier = verifier(&content, auth.mode, provider).map_err(|why| fail(FileError::Roots(why)))?;
        let (app, auth, content) = (app.clone(), auth.clone(), content.into());
        Ok(Self { app, auth, stamp, content, verifier, unusable: None })
    }
}

fn verifier(
    pem: &[u8],
    mode: ClientAuthMode,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let roots = Arc::new(Trusted::parse(pem)?.roots());
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = match mode {
        ClientAuthMode::Require => builder,
        ClientAuthMode::Request => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| error.to_string())
}

fn stamp(auth: &ClientAuth) -> Stamp {
    let metadata = fs::metadata(&auth.ca).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}
