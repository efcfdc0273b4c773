//! What runs, as the control plane holds it: the configuration in force, its apps with their workers, what is listened on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use crate::cert::challenge::Challenges;
use crate::cert::manager::Manager;
use crate::clock::{Clock, SystemClock};
use crate::config::model::{App, Backend, Config};
use crate::daemon::listeners::Listeners;
use crate::daemon::metrics::Endpoint;
use crate::daemon::progress::Turn;
use crate::name::AppName;
use crate::proxy::clients::Clients;
use crate::proxy::route::{Routing, Site};
use crate::scope::Scope;
use crate::telemetry::metrics::{self, Measured};
use crate::telemetry::status::{AppState, AppStatus, PastStatus, Status, WorkerState, WorkerStatus};
use crate::telemetry::tally::{Counted, Tally};
use crate::upstream::pool::Pool;
use crate::worker::adapter;
use crate::worker::journal::Journal;
use crate::worker::launch::{Launcher, Tools};
use crate::worker::slot::{Roster, Slot};
use crate::worker::supervisor::{self, Supervisor};
use crate::worker::usage;

/// One app. Clones are handles to the same.
#[derive(Clone)]
pub struct LiveApp {
    /// The app as it is configured now.
    pub app: Arc<App>,
    /// Who takes its requests; written by its supervisor or, for an `upstream`, once.
    pub roster: Arc<Roster>,
    /// Where its requests wait.
    pub pool: Arc<Pool>,
    /// What is counted of its requests.
    pub tally: Arc<Tally>,
    /// Its workers, where edge runs them.
    pub supervisor: Option<Supervisor>,
    /// What they printed.
    pub journal: Rc<Journal>,
    /// What visitors are told while it is under maintenance.
    pub maintenance: Option<Arc<str>>,
}

/// What makes workers.
pub struct Hands {
    /// Starts processes.
    pub launcher: Rc<dyn Launcher>,
    /// Owns the supervisors.
    pub workers: Scope,
}

/// The running state; one for the process.
pub struct Live {
    config: RefCell<Arc<Config>>,
    apps: RefCell<Vec<LiveApp>>,
    /// Of every app that was started and has not ended, routed to or not.
    supervisors: RefCell<Vec<Supervisor>>,
    /// What requests are routed by.
    pub routing: Arc<ArcSwap<Routing>>,
    /// The certificates.
    pub manager: Manager,
    /// What requests for challenges are answered with.
    pub challenges: Arc<Challenges>,
    /// The bound addresses.
    pub listeners: RefCell<Listeners>,
    /// Held by whoever changes the configuration in force.
    pub turn: Turn,
    /// Whether a reload that a signal asked for waits for its turn: it will see whatever the next signal is about.
    pub reload_waits: Cell<bool>,
    hands: Hands,
    started: Instant,
    /// When that was, in seconds since 1970: what is said of it later must not follow the clock's steps.
    started_at: u64,
    threads: usize,
    /// Requests for no app.
    pub strangers: Arc<Tally>,
    /// What each client holds.
    pub clients: Arc<Clients>,
    /// Where Prometheus asks.
    pub metrics: Endpoint,
}

impl Live {
    /// Starts every app of `config`.
    pub fn start(
        config: Arc<Config>,
        (manager, challenges): (Manager, Arc<Challenges>),
        listeners: Listeners,
        hands: Hands,
    ) -> Self {
        let threads = config.threads.get();
        let live = Self {
            apps: RefCell::new(Vec::new()),
            supervisors: RefCell::default(),
            config: RefCell::new(Arc::clone(&config)),
            routing: Arc::default(),
            manager,
            challenges,
            listeners: RefCell::new(listeners),
            turn: Turn::default(),
            reload_waits: Cell::new(false),
            hands,
            started: Instant::now(),
            started_at: SystemClock.seconds(),
            threads,
            strangers: Arc::new(Tally::new(threads)),
            clients: Arc::default(),
            metrics: Endpoint::default(),
        };
        let apps = config.apps.iter().map(|app| live.open(app)).collect();
        live.replace(config, apps);
        live
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Every app, in the order of the configuration.
    pub fn apps(&self) -> Vec<LiveApp> {
        self.apps.borrow().clone()
    }

    /// One app.
    pub fn app(&self, name: &AppName) -> Option<LiveApp> {
        self.apps.borrow().iter().find(|live| live.app.name == *name).cloned()
    }

    /// Starts an app; nothing is routed to it yet.
    pub fn open(&self, app: &Arc<App>) -> LiveApp {
        let journal = Rc::<Journal>::default();
        let (roster, supervisor) = match &app.backend {
            Backend::Upstream(_) => (supervisor::fixed_roster(app), None),
            Backend::Workers(spec) => {
                let runtime_dir = &self.config.borrow().runtime_dir;
                let plan = adapter::plan(&app.name, spec, 0, runtime_dir);
                for note in plan.notes {
                    tracing::info!(app = %app.name, "{note}");
                }
                for warning in plan.warnings {
                    tracing::warn!(app = %app.name, "{warning}");
                }
                let tools = Tools {
                    launcher: Rc::clone(&self.hands.launcher),
                    rng: fastrand::Rng::new(),
                    journal: Rc::clone(&journal),
                    available: usage::available,
                };
                let roster = Roster::new();
                let workers = &self.hands.workers;
                let supervisor =
                    supervisor::supervise(Arc::clone(app), spec, Arc::clone(&roster), tools, workers);
                let mut supervisors = self.supervisors.borrow_mut();
                supervisors.retain(|one| !one.is_gone());
                supervisors.push(supervisor.clone());
                (roster, Some(supervisor))
            }
        };
        let pool = Pool::new(app.name.clone(), Arc::clone(&roster));
        let tally = Arc::new(Tally::new(self.threads));
        LiveApp { app: Arc::clone(app), roster, pool, tally, supervisor, journal, maintenance: None }
    }

    /// Those of every app that was started and has not ended: also of one that a reload was about to add, or to remove.
    pub fn supervisors(&self) -> Vec<Supervisor> {
        self.supervisors.borrow().clone()
    }

    /// Asks the workers of apps that nothing is routed to, and what comes before them, to end. Waits for nobody.
    pub fn give_up_new_apps(&self) {
        let routed = self.apps();
        let serves = |one: &Supervisor| {
            routed.iter().filter_map(|live| live.supervisor.as_ref()).any(|other| other.is(one))
        };
        self.supervisors.borrow().iter().filter(|one| !serves(one)).for_each(Supervisor::ask_to_stop);
    }

    /// Puts a configuration and its apps in force.
    pub fn replace(&self, config: Arc<Config>, apps: Vec<LiveApp>) {
        *self.config.borrow_mut() = config;
        *self.apps.borrow_mut() = apps;
        self.route();
    }

    /// Takes an app out of service, or back into it with `None`. `false` where there is no such app.
    pub fn maintain(&self, name: &AppName, text: Option<Arc<str>>) -> bool {
        let known = match self.apps.borrow_mut().iter_mut().find(|live| live.app.name == *name) {
            Some(live) => {
                live.maintenance = text;
                true
            }
            None => false,
        };
        self.route();
        known
    }

    /// Publishes the routing that follows from all this.
    pub fn route(&self) {
        let apps = self.apps.borrow();
        let sites = apps.iter().map(|live| {
            let (app, pool, tally) = (Arc::clone(&live.app), Arc::clone(&live.pool), Arc::clone(&live.tally));
            match &live.maintenance {
                None => Site::new(app, pool, tally),
                Some(text) => Site::in_maintenance(app, pool, tally, Arc::clone(text)),
            }
        });
        let routing = Routing::new(sites)
            .with_https_port(self.listeners.borrow().https_port())
            .with_trusted_proxies(self.config.borrow().before.trusted_proxies.clone());
        self.routing.store(Arc::new(routing));
    }

    /// As others find it, who work in another directory.
    fn config_file(&self) -> String {
        let file = self.config().file.clone();
        std::path::absolute(&file).unwrap_or(file).display().to_string()
    }

    /// Requests that workers have or that wait for one; an open WebSocket counts.
    pub fn in_flight(&self) -> u64 {
        let of = |app: AppStatus| app.queue + app.workers.iter().map(|worker| worker.in_flight).sum::<u64>();
        self.apps().iter().map(|live| of(live.status())).sum()
    }

    /// What `edge status` prints.
    pub async fn status(&self) -> Status {
        let apps = self.apps();
        for supervisor in apps.iter().filter_map(|live| live.supervisor.as_ref()) {
            supervisor.measure().await;
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            config_file: self.config_file(),
            uptime_s: self.started.elapsed().as_secs(),
            listeners: self.listeners.borrow().status(),
            apps: apps.iter().map(|live| (live.app.name.to_string(), live.status())).collect(),
            certificates: self.manager.status(),
        }
    }

    /// How many requests of which apps were cut because edge ended, in words; `None` where none was.
    pub fn cut(&self) -> Option<String> {
        let apps = self.apps();
        let of = |tally: &Tally, whose: &str| {
            let cut = tally.counted().cut;
            (cut > 0).then(|| format!("{cut} of {whose}"))
        };
        let cut = apps.iter().filter_map(|live| of(&live.tally, live.app.name.as_str()));
        let cut: Vec<String> = cut.chain(of(&self.strangers, "no app")).collect();
        (!cut.is_empty()).then(|| cut.join(", "))
    }

    /// What Prometheus is told.
    pub async fn measured(&self) -> String {
        let status = self.status().await;
        let mut requests: Vec<(String, Counted)> =
            self.apps().iter().map(|live| (live.app.name.to_string(), live.tally.counted())).collect();
        requests.push((String::new(), self.strangers.counted()));
        let (connections, started) = (self.clients.counted(), self.started_at);
        metrics::text(&Measured { status, requests, connections, started })
    }
}

impl LiveApp {
    fn status(&self) -> AppStatus {
        let mut status = match &self.supervisor {
            Some(supervisor) => supervisor.status(),
            None => self.upstream_status(),
        };
        status.queue = self.pool.waiting();
        if self.maintenance.is_some() {
            status.state = AppState::Maintenance;
        }
        status
    }

    /// Servers edge does not run, in the words it has for workers.
    fn upstream_status(&self) -> AppStatus {
        let worker = |slot: &Arc<Slot>| WorkerStatus {
            slot: slot.id.slot,
            pid: None,
            state: WorkerState::Ready,
            in_flight: slot.in_flight(),
            requests: slot.requests(),
            memory_bytes: 0,
            memory_limit_bytes: None,
            age_s: 0,
            started: None,
            address: slot.address.to_string(),
            trouble: None,
            past: PastStatus::default(),
        };
        let workers = self.roster.load().iter().map(worker).collect();
        AppStatus {
            state: AppState::Up,
            generation: 1,
            queue: 0,
            scale: None,
            workers,
            worker_exits: BTreeMap::new(),
            failed_deploy: None,
            failed_deploy_at: None,
        }
    }
}
