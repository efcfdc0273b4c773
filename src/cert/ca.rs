//! One CA as edge uses it: its directory, its account, its client, and what it turned out not to be able to do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::time::Instant;

use crate::cert::account::{Accounts, Registration};
use crate::cert::ca_client::CaClient;
use crate::cert::ca_id::CaId;
use crate::cert::directory::Directory;
use crate::cert::failure::{Class, Failure};
use crate::cert::store::AccountStore;
use crate::cert::trouble::Trouble;
use crate::clock::Clock;
use crate::config::model::Acme;
use crate::report::Report;

/// A CA may move its parts and change its offers.
const DIRECTORY_LIFE: Duration = Duration::from_secs(3600);
/// A client knows the roots that this system trusts as it is made; a system that is kept up to date gets others, and a CA's own
/// https may need them, while edge runs for years.
const CLIENT_LIFE: Duration = Duration::from_secs(24 * 3600);
/// With a clock that far off, neither validity nor the CA's dates mean anything.
const CLOCK_WRONG: u64 = 24 * 3600;
const CLOCK_ODD: u64 = 300;

/// A CA.
pub(in crate::cert) struct Ca {
    /// Its name in messages.
    pub(in crate::cert) spoken: String,
    /// Its place in the storage.
    pub(in crate::cert) id: CaId,
    pub(in crate::cert) accounts: Accounts,
    /// It does not confirm which certificate an order replaces, so it is not told.
    pub(in crate::cert) ignores_replaces: Cell<bool>,
    url: String,
    client: RefCell<Option<(Instant, CaClient)>>,
    directory: RefCell<Option<(Instant, Rc<Directory>)>>,
    warned: Cell<Option<Instant>>,
}

impl Ca {
    /// Contacts nobody.
    pub(in crate::cert) fn new(url: &str, settings: &Acme, store: Arc<dyn AccountStore>) -> Self {
        let registration = Registration { email: settings.email.clone(), eab: settings.eab.clone() };
        Self {
            spoken: spoken_name(url),
            id: CaId::of(url),
            accounts: Accounts::new(url.to_owned(), registration, store),
            ignores_replaces: Cell::new(false),
            url: url.to_owned(),
            client: RefCell::default(),
            directory: RefCell::default(),
            warned: Cell::default(),
        }
    }

    /// Whether it refuses requests whose subject has no common name.
    pub(in crate::cert) fn wants_common_name(&self) -> bool {
        self.url.starts_with("https://acme.zerossl.com/")
    }

    /// The client towards it.
    pub(in crate::cert) fn client(
        &self,
        settings: &Acme,
        provider: &Arc<CryptoProvider>,
        clock: &Arc<dyn Clock>,
    ) -> Result<CaClient, Failure> {
        let mut known = self.client.borrow_mut();
        if let Some((_, client)) = known.as_ref().filter(|(since, _)| since.elapsed() < CLIENT_LIFE) {
            return Ok(client.clone());
        }
        let client = CaClient::new(settings.ca_root.as_ref(), provider, Arc::clone(clock))
            .map_err(|error| Failure::new(Class::Transient, Report(&error).to_string()))?;
        let before = known.take().map(|(_, before)| before);
        Ok(known.insert((Instant::now(), better(before, client))).1.clone())
    }

    /// What it offers. Fails also where its clock and this machine's have nothing to do with each other.
    pub(in crate::cert) async fn directory(&self, client: &CaClient) -> Result<Rc<Directory>, Trouble> {
        let known =
            self.directory.borrow().as_ref().and_then(|(since, directory)| {
                (since.elapsed() < DIRECTORY_LIFE).then(|| Rc::clone(directory))
            });
        let directory = match known {
            Some(known) => known,
            None => {
                let read = Rc::new(Directory::read(client, &self.url, &self.spoken).await?);
                *self.directory.borrow_mut() = Some((Instant::now(), Rc::clone(&read)));
                read
            }
        };
        self.check_clock(client.clock_ahead())?;
        Ok(directory)
    }

    fn check_clock(&self, ahead: i64) -> Result<(), Failure> {
        let off = ahead.unsigned_abs();
        if off <= CLOCK_ODD {
            return Ok(());
        }
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        let message =
            format!("the clock of this machine is {} {way} that of {}", spoken_time(off), self.spoken);
        if off > CLOCK_WRONG {
            // The next attempt may find it repaired, and must not believe an old comparison.
            *self.directory.borrow_mut() = None;
            return Err(Failure::new(Class::Transient, format!("{message}; nothing is ordered. Fix NTP")));
        }
        if self.warned.get().is_none_or(|at| at.elapsed() > DIRECTORY_LIFE) {
            self.warned.set(Some(Instant::now()));
            tracing::warn!("{message}. Fix NTP");
        }
        Ok(())
    }
}

/// A moment in which the system's roots cannot be read, for want of a descriptor, is no reason to forget those that were.
fn better(before: Option<CaClient>, made: CaClient) -> CaClient {
    match before {
        Some(before) if made.has_built_in_roots() && !before.has_built_in_roots() => before,
        Some(_) | None => made,
    }
}

fn spoken_time(seconds: u64) -> String {
    match seconds {
        0..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn spoken_name(directory: &str) -> String {
    match directory {
        "https://acme-v02.api.letsencrypt.org/directory" => "Let's Encrypt".to_owned(),
        "https://acme-staging-v02.api.letsencrypt.org/directory" => "Let's Encrypt (staging)".to_owned(),
        "https://acme.zerossl.com/v2/DV90" => "ZeroSSL".to_owned(),
        "https://dv.acme-v02.api.pki.goog/directory" => "Google Trust Services".to_owned(),
        other => {
            let bare = other.split_once("://").map_or(other, |(_, rest)| rest);
            format!("the CA {}", bare.split('/').next().unwrap_or(bare))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::store::DirStore;
    use crate::clock::SystemClock;
    use crate::config::model::{Dns, KeyType};

    #[tokio::test(start_paused = true)]
    async fn the_roots_that_the_system_trusts_are_read_anew_each_day() {
        let dir = tempfile::tempdir().expect("a directory");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Arc::new(DirStore::open(dir.path(), Arc::clone(&provider)).expect("opened"));
        let dns = Dns {
            publish: None,
            timeout: Duration::ZERO,
            propagation: Duration::ZERO,
            resolvers: Vec::new(),
            name_servers: Vec::new(),
        };
        let settings = Acme {
            email: None,
            directory: "https://ca.test/dir".to_owned(),
            fallbacks: Vec::new(),
            ca_root: None,
            key_type: KeyType::P256,
            challenges: Vec::new(),
            profile: None,
            eab: None,
            self_check: false,
            dns,
        };
        let ca = Ca::new("https://ca.test/dir", &settings, store);
        let made = || {
            ca.client(&settings, &provider, &clock).expect("made");
            ca.client.borrow().as_ref().map(|(since, _)| *since).expect("kept")
        };
        let first = made();
        tokio::time::advance(CLIENT_LIFE / 2).await;
        assert_eq!(made(), first, "the same within a day");
        tokio::time::advance(CLIENT_LIFE / 2).await;
        assert!(made() > first, "another on the next");
    }

    #[test]
    fn roots_that_cannot_be_read_once_are_not_forgotten() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = |built_in| {
            let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider));
            let builder = builder.with_safe_default_protocol_versions().expect("usual");
            let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
            CaClient::over(config, Arc::new(SystemClock), built_in)
        };
        for (before, made, kept) in [
            (Some(false), true, false),
            (Some(true), false, false),
            (Some(true), true, true),
            (None, true, true),
            (Some(false), false, false),
        ] {
            let found = better(before.map(client), client(made)).has_built_in_roots();
            assert_eq!(found, kept, "{before:?} {made}");
        }
    }
}
