//! `edge check`: the certificates that operators keep themselves, read as a start would read them.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;

use crate::cert::bundle::CertBundle;
use crate::cert::client_policy::ClientPolicy;
use crate::cert::files::FilePair;
use crate::cert::store_error::StoreError;
use crate::config::model::{App, Tls};
use crate::report::Report;

/// What is wrong with the files of an app.
#[derive(Debug, Default)]
pub struct Findings {
    /// With them edge does not start.
    pub errors: Vec<StoreError>,
    /// With them clients will be refused, or it cannot be told.
    pub warnings: Vec<String>,
}

/// Reads what `tls` and `client_auth` of `app` name.
pub fn look(app: &App, provider: &Arc<CryptoProvider>, now: SystemTime) -> Findings {
    let mut findings = Findings::default();
    if let Tls::Files { cert, key } = &app.tls {
        let pair = FilePair { app: app.name.clone(), cert: cert.clone(), key: key.clone() };
        match pair.load(provider) {
            Ok(bundle) => findings.warnings.extend(refused(app, &pair, &bundle, now)),
            Err(error) => findings.add(error),
        }
    }
    if let Some(auth) = &app.client_auth
        && let Err(error) = ClientPolicy::read(&app.name, auth, provider)
    {
        findings.add(error);
    }
    findings
}

impl Findings {
    /// Whoever runs edge may read what who checks may not.
    fn add(&mut self, error: StoreError) {
        if is_denied(&error) {
            self.warnings.push(format!("{}; the user that edge runs as may be allowed to", Report(&error)));
        } else {
            self.errors.push(error);
        }
    }
}

fn is_denied(error: &StoreError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Why clients will not accept a certificate that edge can serve.
fn refused(app: &App, pair: &FilePair, bundle: &CertBundle, now: SystemTime) -> Vec<String> {
    let mut warnings: Vec<String> = pair.refused(bundle.validity(), now).into_iter().collect();
    let missing: Vec<String> =
        app.domains.iter().filter(|domain| !bundle.covers(domain)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        warnings.push(format!(
            "the certificate {} does not name {}: clients refuse it there",
            pair.cert.display(),
            missing.join(", ")
        ));
    }
    warnings
}
