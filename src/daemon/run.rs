//! Serve until told, then stop in order: nothing new, open requests to their end, workers, certificates, the log.

use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::cert::challenge::Challenges;
use crate::cert::manager::{self, Manager};
use crate::cert::resolver::Certificates;
use crate::clock::{Clock, SystemClock};
use crate::config::model::{AccessLog, Backend, Config, Log};
use crate::daemon::admin::{self, AdminSocket};
use crate::daemon::build::{self, Served, StartError};
use crate::daemon::signals::{Command, Signals};
use crate::daemon::threads::{self, DataThread, Shared};
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::log;
use crate::telemetry::sink::Sink;
use crate::telemetry::status::{AppState, AppStatus, ListenerStatus, Status, WorkerState, WorkerStatus};
use crate::worker::adapter;
use crate::worker::launch::{Launcher, ProcessLauncher, Tools};
use crate::worker::leftovers;
use crate::worker::supervisor::{self, Supervisor};

/// How long the certificate driver and the admin socket may take to end; they save what they have at every step.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// How long the log may take to write its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Runs edge on this thread until it is told to stop. Exit status: 0 drained, 1 failed or forced.
pub fn run(config: Config) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(StartError::Threads)
        .and_then(|runtime| LocalSet::new().block_on(&runtime, serve(Arc::new(config))));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("edge: {}", Report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Everything that runs, as the control plane holds it.
struct Running {
    apps: Vec<(Served, Option<Supervisor>)>,
    manager: Manager,
    listeners: Vec<ListenerStatus>,
    started: Instant,
}

/// Serves until stopped; returns whether everything was drained in time.
async fn serve(config: Arc<Config>) -> Result<bool, StartError> {
    let mut signals = Signals::new().map_err(StartError::Threads)?;
    let swept = leftovers::sweep(&config.runtime_dir).await?;
    // Before there is any other thread: it forks, and it keeps the limits workers are to start with.
    let launcher = Rc::new(ProcessLauncher::new(config.runtime_dir.clone())?);
    raise_descriptor_limit();
    let admin = AdminSocket::bind(&config.admin)?;
    let sockets = build::sockets(&config)?;
    let output = Output::open(&config.log)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (certificates, challenges) = (Certificates::new(), Challenges::new());
    if swept > 0 {
        tracing::warn!(processes = swept, "ended what an edge that was killed had left running");
    }
    let control = Scope::new();
    let manager = manager::start(
        &config,
        Arc::clone(&clock),
        Arc::clone(&certificates),
        Arc::clone(&challenges),
        &control,
    )?;
    let (served, routing) = build::apps(&config);
    let workers = Scope::new();
    drop(workers.spawn({
        let (launcher, workers) = (Rc::clone(&launcher), workers.clone());
        async move { launcher.reap_orphans(&workers).await }
    }));
    let apps = served
        .into_iter()
        .map(|one| {
            let supervisor = match &one.app.backend {
                Backend::Upstream(_) => None,
                Backend::Workers(spec) => {
                    for note in adapter::plan(&one.app.name, spec, 0, &config.runtime_dir).notes {
                        tracing::info!(app = %one.app.name, "{note}");
                    }
                    let tools = Tools {
                        launcher: Rc::clone(&launcher) as Rc<dyn Launcher>,
                        rng: fastrand::Rng::new(),
                    };
                    let (app, roster) = (Arc::clone(&one.app), Arc::clone(&one.roster));
                    Some(supervisor::supervise(app, spec, roster, tools, &workers))
                }
            };
            (one, supervisor)
        })
        .collect();
    let running = Rc::new(Running { apps, manager, listeners: sockets.listeners, started: Instant::now() });
    drop(control.spawn({
        let running = Rc::clone(&running);
        let status = move || {
            let running = Rc::clone(&running);
            Box::pin(async move { running.status().await }) as admin::Asked
        };
        admin.serve(control.clone(), Rc::new(status))
    }));

    let data = Scope::new();
    let shared = Shared {
        routing,
        certificates,
        challenges,
        clock,
        timeouts: config.timeouts,
        drain_timeout: config.drain_timeout,
        https_port: sockets.https_port,
        access: output.access.clone(),
    };
    let mut threads = Vec::new();
    for (index, mine) in sockets.by_thread.into_iter().enumerate() {
        threads.push(threads::start(index, mine, shared.clone(), &data).map_err(StartError::Threads)?);
    }
    announce(&running.listeners);
    tell_systemd(&[sd_notify::NotifyState::Ready]);

    let mut healthy = wait_for_stop(&mut signals, &mut threads, &output).await;
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    tracing::info!(
        "stopping: no new connections; open requests have {:?}; told to stop again, edge ends at once",
        config.drain_timeout
    );
    data.drain();
    let ended = async {
        let mut drained = true;
        for thread in &mut threads {
            drained &= thread.ended().await.unwrap_or(false);
        }
        drained
    };
    healthy &= forced_by(&mut signals, ended, || data.abort()).await;

    let retired = async {
        let stops =
            running.apps.iter().filter_map(|(_, supervisor)| supervisor.as_ref()).map(Supervisor::stop);
        futures_util::future::join_all(stops).await;
        true
    };
    healthy &= forced_by(&mut signals, retired, || workers.abort()).await;
    workers.close(Duration::ZERO).await;
    control.close(LAST_STEPS).await;
    tracing::info!(drained = healthy, "stopped");
    output.finish();
    Ok(healthy)
}

/// Waits for the order to stop. `false` where a thread died instead, which drains the rest and fails.
async fn wait_for_stop(signals: &mut Signals, threads: &mut [DataThread], output: &Output) -> bool {
    let died = async {
        let endings = threads.iter_mut().map(|thread| Box::pin(thread.ended()));
        futures_util::future::select_all(endings).await;
    };
    tokio::pin!(died);
    loop {
        tokio::select! {
            command = signals.next() => match command {
                Command::Stop => return true,
                Command::Reopen => output.reopen(),
                Command::Reload => {
                    tracing::warn!("this version cannot reload: restart edge to apply a changed configuration");
                }
            },
            () = &mut died => {
                tracing::error!("a data-plane thread ended unexpectedly: stopping so that the service manager restarts edge");
                return false;
            }
        }
    }
}

/// Waits for `work`; a second order to stop calls `force` and makes the outcome a failure.
async fn forced_by(signals: &mut Signals, work: impl Future<Output = bool>, force: impl Fn()) -> bool {
    tokio::pin!(work);
    let mut forced = false;
    loop {
        tokio::select! {
            outcome = &mut work => return outcome && !forced,
            command = signals.next() => if command == Command::Stop {
                tracing::warn!("told to stop again: ending open requests now");
                forced = true;
                force();
            },
        }
    }
}

/// Where lines go.
struct Output {
    stdout: Sink,
    access: Option<Sink>,
}

impl Output {
    fn open(config: &Log) -> Result<Self, StartError> {
        let stdout = Sink::stdout(log::stdout_shape(config.format)).map_err(StartError::Log)?;
        let access = match &config.access {
            AccessLog::Off => None,
            AccessLog::Stdout => Some(stdout.clone()),
            AccessLog::File(path) => {
                let file = Sink::file(log::file_shape(config.format), path);
                Some(file.map_err(|cause| StartError::AccessLog { path: path.clone(), cause })?)
            }
        };
        log::install(config.level, stdout.clone())?;
        // A panic is a bug and ends one task, not the process: it must not be the one event that is not in the log.
        std::panic::set_hook(Box::new(|panic| tracing::error!("bug in edge: {panic}")));
        Ok(Self { stdout, access })
    }

    fn reopen(&self) {
        if let Some(access) = &self.access {
            access.reopen();
        }
    }

    /// Writes what is still on its way, within bounds: a reader that stands still must not keep edge from ending.
    fn finish(&self) {
        for sink in self.access.iter().chain([&self.stdout]) {
            sink.close(LAST_LINES);
        }
    }
}

impl Running {
    async fn status(&self) -> Status {
        for supervisor in self.apps.iter().filter_map(|(_, supervisor)| supervisor.as_ref()) {
            supervisor.measure().await;
        }
        let app = |(served, supervisor): &(Served, Option<Supervisor>)| {
            let mut status = match supervisor {
                Some(supervisor) => supervisor.status(),
                None => upstream_status(served),
            };
            status.queue = served.pool.waiting();
            (served.app.name.to_string(), status)
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: self.started.elapsed().as_secs(),
            listeners: self.listeners.clone(),
            apps: self.apps.iter().map(app).collect(),
            certificates: self.manager.status(),
        }
    }
}

/// Servers edge does not run, in the words it has for workers.
fn upstream_status(served: &Served) -> AppStatus {
    let worker = |slot: &Arc<crate::worker::slot::Slot>| WorkerStatus {
        slot: slot.id.slot,
        pid: None,
        state: WorkerState::Ready,
        in_flight: slot.in_flight(),
        requests: slot.requests(),
        restarts: 0,
        memory_bytes: 0,
        age_s: 0,
        address: slot.address.to_string(),
        last_exit: None,
    };
    AppStatus {
        state: AppState::Up,
        generation: 1,
        queue: 0,
        workers: served.roster.load().iter().map(worker).collect(),
    }
}

fn announce(listeners: &[ListenerStatus]) {
    for listener in listeners {
        tracing::info!(kind = %listener.kind, address = %listener.address, "listening");
    }
}

/// Every connection and worker needs descriptors: the soft limit is a leftover of `select` (systemd's own advice).
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(error = %error, "cannot raise the limit of open files");
    }
}

fn tell_systemd(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(error = %error, "cannot tell the service manager");
    }
}
