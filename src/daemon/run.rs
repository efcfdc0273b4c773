//! Serve until told, then stop in order: nothing new, open requests to their end, workers, certificates, the log.

use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::LocalSet;

use crate::cert::challenge::Challenges;
use crate::cert::manager;
use crate::cert::resolver::Certificates;
use crate::cert::store_error::StoreError;
use crate::clock::{Clock, SystemClock};
use crate::config::model::{AccessLog, Config, Log};
use crate::daemon::admin::{AdminSocket, Desk, PendingStatus};
use crate::daemon::check_certificates;
use crate::daemon::listeners::Listeners;
use crate::daemon::live::{Hands, Live};
use crate::daemon::metrics::{self, Measure};
use crate::daemon::perform;
use crate::daemon::reload;
use crate::daemon::signals::{Command, Signals};
use crate::daemon::start_error::StartError;
use crate::daemon::threads::{self, DataThread, Shared};
use crate::listen::inherited::Inherited;
use crate::listen::socket::Neighbours;
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::log;
use crate::telemetry::sink::Sink;
use crate::telemetry::status::ListenerStatus;
use crate::worker::cgroup::Groups;
use crate::worker::launch::{Launcher, ProcessLauncher};
use crate::worker::leftovers;
use crate::worker::supervisor::Supervisor;

/// How long the certificate driver and the admin socket may take to end; they save what they have at every step.
const LAST_STEPS: Duration = Duration::from_secs(2);

/// How long the log may take to write its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Runs edge on this thread until it is told to stop. Exit status: 0 drained, 1 failed or forced, 78 where what
/// the configuration names cannot be used.
pub fn run(config: Config) -> ExitCode {
    keep_memory_private();
    // Before anything else is opened: their numbers are all that is known of them.
    let outcome = Inherited::take().map_err(StartError::from).and_then(|inherited| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build().map_err(StartError::Threads)?;
        let outcome = LocalSet::new().block_on(&runtime, serve(Arc::new(config), inherited));
        // Whoever reads a file that does not answer is not waited for.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            for line in Report(&error).to_string().lines() {
                eprintln!("edge: {line}");
            }
            ExitCode::from(error.status())
        }
    }
}

/// Keys are in this process's memory: it leaves no core dump, and nobody but root looks into it, not even workers that run as
/// the same user. Programs that are executed from here are as others.
fn keep_memory_private() {
    let kept = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(error) = kept {
        eprintln!("edge: cannot keep its memory from core dumps: {error}");
    }
}

/// Serves until stopped; returns whether everything was drained in time.
async fn serve(config: Arc<Config>, inherited: Inherited) -> Result<bool, StartError> {
    let mut signals = Signals::new().map_err(StartError::Threads)?;
    let mut running = Running::start(config, inherited).await?;
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let healthy = running.wait_for_stop(&mut signals).await;
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    Ok(running.stop(&mut signals, healthy).await)
}

/// All that runs. The scopes end in this order.
struct Running {
    /// What operators ask for: it ends before what it changes.
    operations: Scope,
    /// Client connections.
    data: Scope,
    workers: Scope,
    /// The certificate driver, the admin socket, the metrics.
    control: Scope,
    live: Rc<Live>,
    threads: Vec<DataThread>,
    output: Output,
}

impl Running {
    /// Opens everything, and serves once all of it is open.
    async fn start(config: Arc<Config>, inherited: Inherited) -> Result<Self, StartError> {
        let swept = leftovers::sweep(&config.runtime_dir).await?;
        // Before there is any other thread: it moves edge, forks, and keeps the limits workers are to start with.
        let launcher = Rc::new(ProcessLauncher::new(config.runtime_dir.clone(), Groups::claim())?);
        raise_descriptor_limit();
        let admin = AdminSocket::bind(&config.admin)?;
        let (listeners, sockets) = Listeners::bind(&config, inherited)?;
        let metrics = config.metrics.map(|wanted| metrics::reserve(wanted, Neighbours::None)).transpose()?;
        let output = Output::open(&config.log)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let (certificates, challenges) = (Certificates::new(), Challenges::new());
        if swept > 0 {
            tracing::warn!(processes = swept, "ended what an edge that was killed had left running");
        }
        let (operations, data, workers, control) = (Scope::new(), Scope::new(), Scope::new(), Scope::new());
        let half_renewed = |error: &StoreError| {
            tracing::warn!(error = %Report(error), "{}", check_certificates::LOOKING_AGAIN);
        };
        check_certificates::renewed(&config, half_renewed).await;
        let manager = manager::start(
            &config,
            Arc::clone(&clock),
            Arc::clone(&certificates),
            Arc::clone(&challenges),
            &control,
        )?;
        drop(workers.drive({
            let (launcher, workers) = (Rc::clone(&launcher), workers.clone());
            async move { launcher.reap_orphans(&workers).await }
        }));
        let hands = Hands { launcher: launcher as Rc<dyn Launcher>, workers: workers.clone() };
        let live =
            Rc::new(Live::start(Arc::clone(&config), (manager, Arc::clone(&challenges)), listeners, hands));
        drop(control.drive(admin.serve(control.clone(), Rc::new(desk(&live, &operations, &control)))));
        live.metrics.attach(&control, measure(&live));
        live.metrics.move_to(metrics);

        let shared = Shared {
            routing: Arc::clone(&live.routing),
            certificates,
            challenges,
            clients: Arc::clone(&live.clients),
            strangers: Arc::clone(&live.strangers),
            threads: u32::try_from(config.threads.get()).unwrap_or(u32::MAX),
            clock,
            rules: config.rules(),
            drain_timeout: config.drain_timeout,
            access: output.access.clone(),
        };
        let start = |(index, mine)| threads::start(index, mine, shared.clone(), &data);
        let threads: io::Result<Vec<DataThread>> = sockets.into_iter().enumerate().map(start).collect();
        let threads = threads.map_err(StartError::Threads)?;
        live.listeners.borrow_mut().attach(&threads);
        announce(&live.listeners.borrow().status());
        live.listeners.borrow().tell_inherited();
        Ok(Self { operations, data, workers, control, live, threads, output })
    }

    /// Waits for the order to stop. `false` where a thread or a driver died instead: the rest is drained, and the service manager
    /// starts edge again.
    async fn wait_for_stop(&mut self, signals: &mut Signals) -> bool {
        let Self { operations, data, workers, control, live, threads, output } = self;
        let died = async {
            let endings = threads.iter_mut().map(|thread| Box::pin(thread.ended()));
            futures_util::future::select_all(endings).await;
        };
        let broken = async {
            tokio::select! {
                () = data.broken() => "an accept loop",
                () = workers.broken() => "a supervisor of workers",
                () = control.broken() => "the driver of certificates or the admin socket",
            }
        };
        tokio::pin!(died, broken);
        loop {
            tokio::select! {
                command = signals.next() => match command {
                    Command::Stop => return true,
                    Command::Reopen => output.reopen(),
                    Command::Reload => {
                        let reload = reload::signalled(Rc::clone(live));
                        drop(operations.spawn(stoppable(reload, operations.clone())));
                    }
                },
                () = &mut died => {
                    tracing::error!("a data-plane thread ended unexpectedly: stopping so that the service manager restarts edge");
                    return false;
                }
                what = &mut broken => {
                    tracing::error!("{what} ended because of a bug in edge: stopping so that the service manager restarts edge");
                    return false;
                }
            }
        }
    }

    /// Ends all of it, in order. `healthy` says whether that was asked for; returned is whether it was drained in time as well.
    async fn stop(self, signals: &mut Signals, mut healthy: bool) -> bool {
        let Self { operations, data, workers, control, live, mut threads, output } = self;
        operations.close(Duration::ZERO).await;
        live.give_up_new_apps();
        let last_requests = last_requests(live.in_flight(), live.config().drain_timeout);
        tracing::info!("stopping: no new connections; {last_requests}");
        data.drain();
        let ended = async {
            let mut drained = true;
            for thread in &mut threads {
                drained &= thread.ended().await.unwrap_or(false);
            }
            drained
        };
        let ending = "told to stop again: ending open requests now";
        healthy &= forced_by(signals, ended, || data.abort(), ending, &output).await;
        tracing::info!(
            "no request is open any more: workers are told to end; told to stop again, edge kills them"
        );

        let retired = async {
            let supervisors = live.supervisors();
            futures_util::future::join_all(supervisors.iter().map(Supervisor::stop)).await;
            true
        };
        let killing = "told to stop again: killing the workers";
        healthy &= forced_by(signals, retired, || workers.abort(), killing, &output).await;
        workers.close(Duration::ZERO).await;
        control.close(LAST_STEPS).await;
        // Also what was cut before its time was over, because it stood still.
        let cut = live.cut();
        healthy &= cut.is_none();
        if healthy {
            tracing::info!(drained = true, "stopped");
        } else {
            tracing::warn!(drained = false, cut, "stopped");
        }
        output.finish();
        healthy
    }
}

/// What edge waits for before it ends, and how not to.
fn last_requests(open: u64, patience: Duration) -> String {
    let requests = match open {
        0 => return "no requests are open".to_owned(),
        1 => "1 open request has".to_owned(),
        more => format!("{more} open requests have"),
    };
    format!(
        "{requests} {patience:?} (`drain_timeout`) to finish, WebSockets among them are closed now; told to stop again (Ctrl-C, \
         SIGTERM), edge cuts what is open"
    )
}

/// Waits for `work`; a second order to stop calls `force`, says `told`, and makes the outcome a failure.
async fn forced_by(
    signals: &mut Signals,
    work: impl Future<Output = bool>,
    force: impl Fn(),
    told: &str,
    output: &Output,
) -> bool {
    tokio::pin!(work);
    let mut forced = false;
    loop {
        tokio::select! {
            outcome = &mut work => return outcome && !forced,
            command = signals.next() => match command {
                Command::Stop => {
                    tracing::warn!("{told}");
                    forced = true;
                    force();
                }
                // Logs are rotated by the hour, whoever is about to end.
                Command::Reopen => output.reopen(),
                Command::Reload => tracing::warn!("edge is stopping: the configuration is not read again"),
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
        // A panic is a bug and ends one task, and the process only where that drives something: it must not be the one event that
        // is not in the log.
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

/// What the admin socket answers with.
fn desk(live: &Rc<Live>, operations: &Scope, readings: &Scope) -> Desk {
    let status = {
        let live = Rc::clone(live);
        move || {
            let live = Rc::clone(&live);
            Box::pin(async move { live.status().await }) as PendingStatus
        }
    };
    let (live, operations, readings) = (Rc::clone(live), operations.clone(), readings.clone());
    let perform = move |operation| perform::perform(&live, operation, &operations, &readings);
    Desk { status: Box::new(status), perform: Box::new(perform) }
}

/// What Prometheus is answered with. The endpoint is the live state's own and must not keep it.
fn measure(live: &Rc<Live>) -> Measure {
    let live = Rc::downgrade(live);
    Rc::new(move || {
        let live = live.upgrade();
        Box::pin(async move {
            match live {
                Some(live) => live.measured().await,
                None => String::new(),
            }
        })
    })
}

/// `work`, unless `scope` drains before it has ended.
async fn stoppable(work: impl Future<Output = ()>, scope: Scope) {
    tokio::select! {
        () = work => {}
        () = scope.drained() => {}
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
