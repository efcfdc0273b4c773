//! Every configured name with its certificate: loaded at start, changed by the manager. Touches the disk while loading only.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use fastrand::Rng;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;

use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::cas::Cas;
use crate::cert::client_policy::ClientPolicy;
use crate::cert::files::{FilePair, Stamp};
use crate::cert::history::History;
use crate::cert::internal::InternalCa;
use crate::cert::resolver::Served;
use crate::cert::schedule::Certificate;
use crate::cert::store::{CertStore, Stored, load_best};
use crate::cert::store_error::StoreError;
use crate::config::model::{App, Config, Tls};
use crate::name::{AppName, HostPattern};
use crate::report::Report;
use crate::telemetry::status::OrderCounts;

/// Where a name's certificate comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// The ACME CAs, in the order they are asked.
    Acme(Arc<Cas>),
    /// Edge's own CA.
    Internal,
    /// Files of the operator.
    Files(FilePair, Stamp),
    /// Nowhere: plain HTTP only.
    Off,
}

/// Tells a name from every other one of this run, also from an earlier one of the same spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameId(u64);

/// One configured name.
pub struct Name {
    /// Its identity.
    pub id: NameId,
    /// The name.
    pub pattern: HostPattern,
    /// Whose it is.
    pub app: AppName,
    /// Whether its app takes names nobody configured.
    pub default: bool,
    /// Where its certificate comes from.
    pub source: Source,
    /// When it is ordered.
    pub machine: Certificate,
    /// What is installed.
    pub bundle: Option<Arc<CertBundle>>,
    /// Position of the CA that issued it.
    pub issued_by: usize,
    /// Position of the CA that is being asked for the next.
    pub asked: usize,
    /// The settings it was asked under.
    pub asked_under: Option<Arc<Cas>>,
    /// How its orders ended.
    pub orders: OrderCounts,
    pub(in crate::cert) served: Option<Arc<Served>>,
    /// What is wrong with the operator's files.
    pub file_error: Option<String>,
    /// What they hold now, where that waits for its time.
    pub(in crate::cert) early: Option<Arc<CertBundle>>,
    /// What will be served instead, while it is on its way to the disk.
    pub(in crate::cert) coming: Option<Arc<Served>>,
}

/// What names are loaded from.
pub struct Loading<'k> {
    /// What CAs issued, with its history.
    pub store: &'k dyn CertStore,
    /// Whose certificates are worth something, where edge's own CA could be opened.
    pub internal: Option<&'k InternalCa>,
    /// The time.
    pub now: SystemTime,
    /// Draws the moments of renewals that were not recorded.
    pub rng: &'k mut Rng,
}

/// All of them, in the order of the configuration.
pub struct Names {
    pub(in crate::cert) list: Vec<Name>,
    pub(in crate::cert) provider: Arc<CryptoProvider>,
    pub(in crate::cert) tickets: HashMap<AppName, Arc<dyn ProducesTickets>>,
    /// Of the apps that ask clients for certificates.
    pub(in crate::cert) clients: HashMap<AppName, ClientPolicy>,
    /// Why clients refuse the certificates of apps, as was told.
    pub(in crate::cert) refused: HashSet<(AppName, String)>,
}

impl Names {
    /// Loads everything that is stored. Damage is logged and affects its name only; files of the operator that cannot be
    /// used are an error that names each.
    pub fn load(
        config: &Config,
        provider: &Arc<CryptoProvider>,
        from: &mut Loading<'_>,
    ) -> Result<Self, StoreError> {
        let mut errors = Vec::new();
        let mut names = Self {
            list: Vec::new(),
            provider: Arc::clone(provider),
            tickets: HashMap::new(),
            clients: ClientPolicy::all(config, provider, &mut errors),
            refused: HashSet::new(),
        };
        let cas = Cas::of(&config.acme);
        for app in &config.apps {
            if let Ok(tickets) = rustls::crypto::aws_lc_rs::Ticketer::new() {
                names.tickets.insert(app.name.clone(), tickets);
            }
            for pattern in &app.domains {
                match names.load_one(app, pattern, &cas, from) {
                    Ok(name) => names.list.push(name),
                    Err(error) => errors.push(error),
                }
            }
        }
        StoreError::together(errors).map(|()| names)
    }

    pub(in crate::cert) fn load_one(
        &self,
        app: &App,
        pattern: &HostPattern,
        cas: &Arc<Cas>,
        from: &mut Loading<'_>,
    ) -> Result<Name, StoreError> {
        /// Numbers names as they are loaded.
        static LOADED: AtomicU64 = AtomicU64::new(0);
        let empty = Certificate::found(None, History::default(), from.rng);
        let mut name = Name {
            id: NameId(LOADED.fetch_add(1, Ordering::Relaxed)),
            pattern: pattern.clone(),
            app: app.name.clone(),
            default: app.default,
            source: Source::Off,
            machine: empty,
            bundle: None,
            issued_by: 0,
            asked: 0,
            asked_under: None,
            orders: OrderCounts::default(),
            served: None,
            file_error: None,
            early: None,
            coming: None,
        };
        match app.tls_for(pattern) {
            Tls::Off => {}
            Tls::Acme => {
                name.source = Source::Acme(Arc::clone(cas));
                let (stored, issued_by) = load_best(from.store, &cas.ids, pattern, from.now);
                name.issued_by = issued_by;
                self.adopt(&mut name, stored, from.rng)?;
                name.machine.settle(&cas.settings, cas.ids.len() - 1);
            }
            Tls::Internal => {
                name.source = Source::Internal;
                let mut stored = from.store.load(&CaId::internal(), pattern);
                // One of an earlier root is worthless to whoever trusts the present one.
                stored.bundle.take_if(|bundle| from.internal.is_some_and(|ca| !ca.issued(bundle)));
                self.adopt(&mut name, stored, from.rng)?;
            }
            Tls::Files { cert, key } => {
                let pair = FilePair { app: app.name.clone(), cert, key };
                let stamp = pair.stamp();
                let bundle = pair.load(&self.provider)?;
                pair.tell_unfit(pattern, &bundle);
                name.source = Source::Files(pair, stamp);
                self.fit(&mut name, Arc::new(bundle))?;
            }
        }
        Ok(name)
    }

    fn adopt(&self, name: &mut Name, stored: Stored, rng: &mut Rng) -> Result<(), StoreError> {
        for problem in &stored.problems {
            tracing::error!(cert = %name.pattern, error = %Report(problem), "stored certificate state is damaged");
        }
        let installed = stored.bundle.as_ref().map(|bundle| (bundle.validity(), bundle.serial()));
        name.machine = Certificate::found(installed, stored.history, rng);
        match stored.bundle {
            Some(bundle) => self.fit(name, Arc::new(bundle)),
            None => Ok(()),
        }
    }

    pub(in crate::cert) fn fit(&self, name: &mut Name, bundle: Arc<CertBundle>) -> Result<(), StoreError> {
        let fail = |source| StoreError::Tls { name: name.pattern.to_string(), source };
        let made;
        let tickets = match self.tickets.get(&name.app) {
            Some(tickets) => tickets,
            None => {
                made = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(fail)?;
                &made
            }
        };
        let clients = self.clients.get(&name.app);
        name.served = Some(Served::new(&bundle, &self.provider, tickets, clients).map_err(fail)?);
        name.bundle = Some(bundle);
        Ok(())
    }

    /// Serves `bundle` for the name at `index` from the next publication on.
    pub fn install(&mut self, index: usize, bundle: Arc<CertBundle>) -> Result<(), StoreError> {
        let mut name = self.list.swap_remove(index);
        let fitted = self.fit(&mut name, bundle);
        self.list.push(name);
        let last = self.list.len() - 1;
        self.list.swap(index, last);
        fitted
    }

    /// Makes `bundle` ready for the name at `index`, to be served at [`Self::serve`].
    pub fn hold(&mut self, index: usize, bundle: CertBundle) -> Result<(), StoreError> {
        let before = self.at(index).and_then(|name| name.served.clone());
        self.install(index, Arc::new(bundle))?;
        if let Some(name) = self.at_mut(index) {
            name.coming = std::mem::replace(&mut name.served, before);
        }
        Ok(())
    }

    /// Serves what was held, from the next publication on.
    pub fn serve(&mut self, index: usize) {
        if let Some(name) = self.at_mut(index)
            && let Some(coming) = name.coming.take()
        {
            name.served = Some(coming);
        }
    }

    /// Takes over what another process has stored since: returns whether anything changed.
    pub fn refresh(&mut self, index: usize, stored: Stored, from: usize, rng: &mut Rng) -> bool {
        let Some(name) = self.list.get_mut(index) else { return false };
        name.issued_by = from;
        let found = stored.bundle.as_ref().map(|bundle| (bundle.validity(), bundle.serial()));
        if found.is_some() || name.bundle.is_none() {
            name.machine = Certificate::found(found, stored.history, rng);
            if let Source::Acme(cas) = &name.source {
                name.machine.settle(&cas.settings, cas.ids.len() - 1);
            }
        }
        let Some(bundle) = stored.bundle else { return false };
        let changed = name.bundle.as_ref().is_none_or(|known| known.serial() != bundle.serial());
        changed && self.install(index, Arc::new(bundle)).is_ok()
    }

    /// The names.
    pub fn iter(&self) -> impl Iterator<Item = &Name> {
        self.list.iter()
    }

    /// One of them.
    pub fn at(&self, index: usize) -> Option<&Name> {
        self.list.get(index)
    }

    /// Where one stands now: a task may outlive several configurations.
    pub fn index(&self, id: NameId) -> Option<usize> {
        self.list.iter().position(|name| name.id == id)
    }

    /// One of them, to be changed.
    pub fn at_mut(&mut self, index: usize) -> Option<&mut Name> {
        self.list.get_mut(index)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Name {
    /// Whether edge's own CA issues for it.
    pub fn is_of_own_ca(&self) -> bool {
        matches!(self.source, Source::Internal)
    }

    /// Whether the settings towards its CA have changed since it was asked.
    pub fn is_asked_under_others(&self) -> bool {
        match (&self.source, &self.asked_under) {
            (Source::Acme(now), Some(then)) => now.settings != then.settings,
            (Source::Acme(_) | Source::Internal | Source::Files(..) | Source::Off, _) => false,
        }
    }
}

/// Whether any name is served by edge's own CA.
pub fn uses_internal(config: &Config) -> bool {
    config.apps.iter().any(|app| app.domains.iter().any(|pattern| app.tls_for(pattern) == Tls::Internal))
}
