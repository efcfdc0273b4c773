//! The certificates that operators keep themselves, as a start, a reload and `edge check` find them.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::crypto::CryptoProvider;

use crate::cert::bundle::CertBundle;
use crate::cert::client_policy::ClientPolicy;
use crate::cert::files::FilePair;
use crate::cert::store_error::StoreError;
use crate::clock::{Clock, SystemClock};
use crate::config::model::{App, Config, Tls};
use crate::report::Report;

/// A renewal tool replaces the two files of a certificate one after the other, and who looks between them reads a pair that does
/// not belong together: so often, and with such pauses, it is read again. Nobody would start edge, or its reload, once more.
const LOOKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What is said meanwhile.
pub const LOOKING_AGAIN: &str =
    "looking again for 2 s, in case that the certificate and its key are being replaced";

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

/// Waits until both files of each certificate are of one renewal, as far as that can be waited for; `told` hears of it once.
pub async fn renewed(config: &Arc<Config>, told: impl FnOnce(&StoreError)) {
    let mut told = Some(told);
    for _ in 0..LOOKS {
        let config = Arc::clone(config);
        let half = move || {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let now = SystemClock.now();
            let mut errors = config.apps.iter().flat_map(|app| look(app, &provider, now).errors);
            errors.find(StoreError::is_half_renewed)
        };
        // Files may be slow.
        let Ok(Some(error)) = tokio::task::spawn_blocking(half).await else { return };
        if let Some(told) = told.take() {
            told(&error);
        }
        tokio::time::sleep(PAUSE).await;
    }
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
