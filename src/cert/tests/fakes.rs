//! A manager with a CA and a disk that do as they are told.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use super::setup::{SetClock, app, config, now, pattern, provider};
use crate::cert::advice::{Advice, NoAdvice};
use crate::cert::bundle::CertBundle;
use crate::cert::ca_id::CaId;
use crate::cert::driver::Seams;
use crate::cert::failure::{Class, Failure, Reach};
use crate::cert::history::History;
use crate::cert::internal::InternalCa;
use crate::cert::issuer::{Issuer, NotObtained, Wanted};
use crate::cert::manager::{self, Manager};
use crate::cert::resolver::Certificates;
use crate::cert::store::{CertStore, DirStore, Stored};
use crate::cert::store_error::StoreError;
use crate::clock::Clock;
use crate::config::model::{Config, Tls};
use crate::durable::DurableError;
use crate::name::HostPattern;
use crate::scope::Scope;
use crate::telemetry::status::CertificateState;

/// A CA that answers with the failures it was given, then with certificates.
pub(super) struct FakeCa {
    pub(super) ca: InternalCa,
    pub(super) clock: Arc<SetClock>,
    pub(super) failures: RefCell<VecDeque<Failure>>,
    pub(super) orders: Cell<u32>,
    /// How many attempts panic first.
    pub(super) deaths: Cell<u32>,
    pub(super) at_once: Cell<u32>,
    pub(super) most_at_once: Cell<u32>,
    /// What an order takes.
    pub(super) takes: Cell<Duration>,
    /// When each order started, and for whom.
    pub(super) started: RefCell<Vec<(SystemTime, HostPattern)>>,
}

impl Issuer for FakeCa {
    fn obtain<'a>(
        &'a self,
        wanted: &'a Wanted,
        scope: &'a Scope,
    ) -> Pin<Box<dyn Future<Output = Result<CertBundle, NotObtained>> + 'a>> {
        Box::pin(async move {
            self.orders.set(self.orders.get() + 1);
            if let Some(left) = self.deaths.get().checked_sub(1) {
                self.deaths.set(left);
                panic!("as a library may");
            }
            self.at_once.set(self.at_once.get() + 1);
            self.most_at_once.set(self.most_at_once.get().max(self.at_once.get()));
            self.started.borrow_mut().push((self.clock.now(), wanted.name.clone()));
            tokio::time::sleep(self.takes.get()).await;
            tokio::task::yield_now().await;
            self.at_once.set(self.at_once.get() - 1);
            if scope.is_draining() {
                return Err(NotObtained::Cancelled);
            }
            if let Some(failure) = self.failures.borrow_mut().pop_front() {
                return Err(NotObtained::Failed(failure));
            }
            Ok(self.ca.issue(&wanted.name, self.clock.now()).expect("issued"))
        })
    }

    fn advice<'a>(
        &'a self,
        _ca: usize,
        _bundle: &'a CertBundle,
    ) -> Pin<Box<dyn Future<Output = Result<Advice, NoAdvice>> + 'a>> {
        Box::pin(std::future::ready(Err(NoAdvice::NotOffered)))
    }
}

/// A disk that can be full, or take its time.
pub(super) struct Disk {
    pub(super) real: DirStore,
    pub(super) full: AtomicBool,
    /// A certificate that is to be saved waits for this.
    pub(super) slow: Mutex<Option<mpsc::Receiver<()>>>,
    /// One waits.
    pub(super) saving: AtomicBool,
}

impl Disk {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        if !self.full.load(Ordering::SeqCst) {
            return Ok(());
        }
        let source = std::io::ErrorKind::StorageFull.into();
        Err(DurableError { action: "write", path: "/store".into(), source }.into())
    }
}

impl CertStore for Disk {
    fn load(&self, ca: &CaId, name: &HostPattern) -> Stored {
        self.real.load(ca, name)
    }
    fn save(&self, ca: &CaId, name: &HostPattern, bundle: &CertBundle) -> Result<(), StoreError> {
        self.check()?;
        let gate = self.slow.lock().expect("not poisoned").take();
        if let Some(gate) = gate {
            self.saving.store(true, Ordering::SeqCst);
            // It opens when the other end is dropped, also by a test that fails.
            assert!(gate.recv().is_err());
        }
        self.real.save(ca, name, bundle)
    }
    fn remember(&self, ca: &CaId, name: &HostPattern, history: &History) -> Result<(), StoreError> {
        self.check()?;
        self.real.remember(ca, name, history)
    }
    fn try_own(&self) -> Result<bool, StoreError> {
        self.real.try_own()
    }
}

pub(super) struct Rig {
    pub(super) dir: tempfile::TempDir,
    pub(super) clock: Arc<SetClock>,
    pub(super) ca: Rc<FakeCa>,
}

pub(super) struct Running {
    pub(super) scope: Scope,
    pub(super) manager: Manager,
    pub(super) certificates: Arc<Certificates>,
    pub(super) disk: Arc<Disk>,
}

pub(super) fn rig() -> Rig {
    let dir = tempfile::tempdir().expect("temporary directory");
    let clock = SetClock::new();
    let ca = FakeCa {
        ca: InternalCa::open(&dir.path().join("fake-ca"), provider(), now()).expect("made"),
        clock: Arc::clone(&clock),
        failures: RefCell::default(),
        orders: Cell::default(),
        deaths: Cell::default(),
        at_once: Cell::default(),
        most_at_once: Cell::default(),
        takes: Cell::default(),
        started: RefCell::default(),
    };
    Rig { dir, clock, ca: Rc::new(ca) }
}

impl Rig {
    pub(super) fn storage(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(super) fn try_run(&self, config: &Config) -> Result<Running, StoreError> {
        let real = DirStore::open(&config.storage, provider()).expect("opened");
        let internal = real.internal();
        let (full, slow, saving) = Default::default();
        let disk = Arc::new(Disk { real, full, slow, saving });
        let seams = Seams {
            clock: Arc::clone(&self.clock) as _,
            store: Arc::clone(&disk) as _,
            issuer: Rc::clone(&self.ca) as _,
            internal,
            provider: provider(),
        };
        let (scope, certificates) = (Scope::new(), Certificates::new());
        let manager = manager::start_with(config, seams, Arc::clone(&certificates), &scope)?;
        Ok(Running { scope, manager, certificates, disk })
    }

    pub(super) fn run(&self, domains: &[&str]) -> Running {
        let apps = vec![app("api", domains, Tls::Acme)];
        self.try_run(&config(&self.storage(), apps)).expect("started")
    }

    /// Stores a certificate for each name, issued that long ago.
    pub(super) fn store<'a>(&self, names: impl Iterator<Item = &'a str>, age: impl Fn(usize) -> Duration) {
        let store = DirStore::open(&self.storage(), provider()).expect("opened");
        let ca = CaId::of(&config(&self.storage(), Vec::new()).acme.directory);
        for (index, name) in names.enumerate() {
            let name = pattern(name);
            let bundle = self.ca.ca.issue(&name, self.clock.now() - age(index)).expect("issued");
            store.save(&ca, &name, &bundle).expect("saved");
        }
    }

    /// Time passes, on every clock.
    pub(super) async fn advance(&self, by: Duration) {
        tokio::time::advance(by).await;
    }

    pub(super) fn fail_with(&self, class: Class, reach: Reach, retry_after: Option<Duration>) {
        let message = "the CA said no".to_owned();
        self.ca.failures.borrow_mut().push_back(Failure {
            reach,
            retry_after,
            ..Failure::new(class, message)
        });
    }
}

impl Running {
    /// Waits until `holds`. Sleeps pass at once (tokio's time is paused); the wall clock moves where a test moves it.
    pub(super) async fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let watched = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(3600), watched).await;
        assert!(ended.is_ok(), "not in time: {what}: {:?}", self.manager.status());
    }

    pub(super) fn state(&self, index: usize) -> CertificateState {
        self.manager.status()[index].state
    }

    pub(super) fn error(&self, index: usize) -> String {
        self.manager.status()[index].last_error.clone().unwrap_or_default()
    }

    pub(super) async fn stop(self) {
        assert!(self.scope.close(Duration::from_secs(10)).await, "it drains by itself");
    }
}
