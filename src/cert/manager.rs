//! Where certificates start: loads and publishes what is stored, then leaves the rest to `driver`. `schedule` decides when,
//! `issuer` obtains, `store` keeps, `resolver` shows.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use fastrand::Rng;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::cert::account;
use crate::cert::ca_id::CaId;
use crate::cert::challenge::Challenges;
use crate::cert::change::Prepared;
use crate::cert::disk;
use crate::cert::driver::{Driver, Event, Seams, look_at_internal};
use crate::cert::file_watch::Looked;
use crate::cert::gate::Gate;
use crate::cert::import::Kept;
use crate::cert::issuer::AcmeIssuer;
use crate::cert::names::{Loading, Names, Source, uses_internal};
use crate::cert::offer::Offer;
use crate::cert::resolver::Certificates;
use crate::cert::store::{AccountStore, DirStore};
use crate::cert::store_error::StoreError;
use crate::clock::Clock;
use crate::complaint::Reason;
use crate::config::model::Config;
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::status::CertificateStatus;

/// The running certificates of this process.
#[derive(Clone)]
pub struct Manager {
    events: mpsc::UnboundedSender<Event>,
    names: Rc<RefCell<Names>>,
    clock: Arc<dyn Clock>,
    root_file: Option<PathBuf>,
    accounts: Option<Arc<dyn AccountStore>>,
}

/// Starts over the real store and the configured CA. Everything stored is published before this returns; no CA is waited for.
/// Must be called on the control thread, inside its `LocalSet`.
pub fn start(
    config: &Arc<Config>,
    clock: Arc<dyn Clock>,
    certificates: Arc<Certificates>,
    challenges: Arc<Challenges>,
    scope: &Scope,
) -> Result<Manager, StoreError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let store = Arc::new(DirStore::open(&config.storage, Arc::clone(&provider))?);
    let issuer = AcmeIssuer::new(
        config.acme.clone(),
        Arc::clone(&provider),
        Arc::clone(&clock),
        challenges,
        Arc::clone(&store) as _,
        Arc::clone(&store) as _,
        Arc::clone(&store) as _,
    );
    let internal = store.internal();
    let volatile = store.is_volatile();
    let accounts = Arc::clone(&store) as Arc<dyn AccountStore>;
    let seams = Seams { clock, store, issuer: Rc::new(issuer), internal, provider };
    let mut manager = start_with(config, seams, certificates, scope)?;
    manager.accounts = Some(accounts);
    let (ordered, kept) = {
        let names = manager.names.borrow();
        let ordered: Vec<_> = names.iter().filter(|name| matches!(name.source, Source::Acme(_))).collect();
        (ordered.len(), ordered.iter().filter(|name| name.bundle.is_some()).count())
    };
    if ordered > 0 && kept == 0 {
        tracing::info!(
            storage = %config.storage.display(),
            names = ordered,
            "the storage has no certificate for any name: all are ordered. Where there were some before, it is another directory now, or was lost"
        );
    }
    if volatile && ordered > 0 {
        tracing::warn!(
            storage = %config.storage.display(),
            "certificates are kept where they do not outlive this machine or container; the CA's limits will be met. Mount a disk"
        );
    }
    Ok(manager)
}

/// Starts over `seams`.
pub fn start_with(
    config: &Config,
    seams: Seams,
    certificates: Arc<Certificates>,
    scope: &Scope,
) -> Result<Manager, StoreError> {
    let mut rng = Rng::new();
    let now = seams.clock.now();
    let owner = seams.store.try_own().unwrap_or_else(|error| {
        tracing::warn!(error = %Report(&error), "the storage cannot be locked; make sure that no other edge uses it");
        true
    });
    if !owner {
        tracing::warn!("another edge orders certificates into this storage; serving what it obtains");
    }
    let internal = uses_internal(config).then(|| look_at_internal(&seams, now)).flatten();
    let mut loading = Loading { store: &*seams.store, internal: internal.as_ref(), now, rng: &mut rng };
    let names = Names::load(config, &seams.provider, &mut loading)?;
    let ordered = names.iter().filter(|name| matches!(name.source, Source::Acme(_)));
    let gate = Gate::after(ordered.filter_map(|name| name.machine.history().obtained_at));
    let names = Rc::new(RefCell::new(names));
    let (sender, events) = mpsc::unbounded_channel();
    let manager = Manager {
        events: sender.clone(),
        names: Rc::clone(&names),
        clock: Arc::clone(&seams.clock),
        root_file: internal.as_ref().map(|ca| ca.root_file().to_owned()),
        accounts: None,
    };
    let mut driver = Driver {
        names,
        certificates,
        gate,
        rng,
        owner,
        internal,
        not_opened: None,
        not_issued: Reason::default(),
        jobs: disk::start(Arc::clone(&seams.store), scope),
        seams,
        events: sender,
        writing: 0,
        clock_told: None,
        waiting: Vec::new(),
        asking: Rc::new(Semaphore::new(4)),
        scope: scope.clone(),
    };
    if driver.owner {
        driver.seams.issuer.tidy(scope);
    }
    driver.names.borrow_mut().tell_refused(now);
    driver.advance();
    driver.publish();
    scope.drive(driver.run(events));
    Ok(manager)
}

impl Manager {
    /// Each certificate, in the order of the configuration.
    pub fn status(&self) -> Vec<CertificateStatus> {
        self.names.borrow().status(self.clock.now())
    }

    /// Loads what another configuration's names need, and changes nothing: files of the operator that cannot be used are an
    /// error. `None` where certificates are not managed any more, because edge ends.
    pub async fn prepare(&self, config: Arc<Config>) -> Option<Result<Prepared, StoreError>> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Prepare(config, reply)).ok()?;
        answer.await.ok()
    }

    /// Serves and orders for the prepared configuration from now on; what is installed for a name that stays, stays. Completes
    /// once it is published.
    pub async fn adopt(&self, prepared: Prepared) {
        let (reply, published) = oneshot::channel();
        // Neither fails unless edge ends, and then it makes no difference.
        if self.events.send(Event::Adopt(prepared, reply)).is_ok() {
            let _ended = published.await;
        }
    }

    /// Orders a new certificate for a configured name at once, and waits until it is served and stored, or why it is not.
    pub async fn renew(&self, name: &str) -> Result<(), String> {
        let stopping = || "edge is stopping".to_owned();
        let (reply, ended) = oneshot::channel();
        self.events.send(Event::Renew(name.to_owned(), reply)).map_err(|_| stopping())?;
        ended.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Stores and serves a certificate that another program obtained, and waits until both are done, or why they are not; the one
    /// that edge has may be as good.
    pub async fn import(&self, offer: Offer) -> Result<Result<(), Kept>, String> {
        let stopping = || "edge is stopping".to_owned();
        let (reply, ended) = oneshot::channel();
        let (stored, storing) = oneshot::channel();
        self.events.send(Event::Import(Box::new(offer), reply, stored)).map_err(|_| stopping())?;
        match ended.await.unwrap_or_else(|_| Err(stopping()))? {
            Ok(()) => storing.await.unwrap_or_else(|_| Err(stopping())).map(Ok),
            Err(kept) => Ok(Err(kept)),
        }
    }

    /// Keeps an account that another program made, where edge has none at that CA yet; says whether it did.
    pub async fn import_account(&self, ca: CaId, record: Vec<u8>) -> Result<bool, String> {
        if !account::is_usable(&record) {
            return Err("its record cannot be used".to_owned());
        }
        let Some(store) = self.accounts.clone() else { return Ok(false) };
        let kept = account::off_thread(move || store.add_account(&ca, &record)).await;
        kept.map_err(|trouble| trouble.into_failure("the CA", "the account").message)
    }

    /// Serves the operator's certificate files as they are now, without waiting for the next regular look at them.
    /// Sees nothing where edge is ending.
    pub async fn look_at_files(&self) -> Looked {
        let (reply, looked) = oneshot::channel();
        if self.events.send(Event::Look(reply)).is_ok() {
            looked.await.unwrap_or_default()
        } else {
            Looked::default()
        }
    }

    /// The root certificate of edge's own CA, where any name uses it: what a client must trust.
    pub fn internal_root(&self) -> Option<&Path> {
        self.root_file.as_deref()
    }
}
