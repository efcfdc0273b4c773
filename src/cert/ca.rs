//! One CA as edge uses it: its directory, its account, its client, and what it turned out not to be able to do.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
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
    client: OnceLock<CaClient>,
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
            client: OnceLock::new(),
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
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }
        let client = CaClient::new(settings.ca_root.as_ref(), provider, Arc::clone(clock))
            .map_err(|error| Failure::new(Class::Transient, Report(&error).to_string()))?;
        Ok(self.client.get_or_init(|| client).clone())
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
