//! With real processes: a small Python server that can be as stubborn as servers are.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::task::LocalSet;

use super::*;
use crate::config::model::{
    Account, HealthCheck, PlainHttp, Queue, Recycle, Restart, ServerKind, Sticky, Tls, Transport, WorkerCount,
};
use crate::telemetry::status::{AppState, WorkerState};
use crate::worker::adapter::{self, Wire};
use crate::worker::delegation::Refusal;
use crate::worker::family;
use crate::worker::launch::{LaunchError, Launcher, Order, ProcessLauncher};
use crate::worker::leftovers;
use crate::worker::usage;

#[path = "roll_tests.rs"]
mod roll;
#[path = "stuck_tests.rs"]
mod stuck;

const SERVER: &str = r#"
import os, signal, socket, sys, time
modes = sys.argv[1:]
if 'stubborn' in modes:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
def note(name):
    with open(name + '.new', 'w') as file:
        file.write(str(os.getpid()))
    os.rename(name + '.new', name)
if 'graceful' in modes:
    def goodbye(*_):
        # It takes its time, and by then the shell is long gone.
        time.sleep(0.3)
        note('said goodbye')
        os._exit(0)
    signal.signal(signal.SIGTERM, goodbye)
if 'child' in modes and os.fork() == 0:
    note('child')
    time.sleep(1000)
if 'daemon' in modes and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note('daemon')
        time.sleep(1000)
    os._exit(0)
if 'mute' in modes:
    # Not yet, but before it is looked where it listens; whoever connects then waits.
    time.sleep(0.5)
    server = socket.create_server(('0.0.0.0', int(os.environ['PORT'])))
    time.sleep(1000)
if 'stuck' in modes and not os.path.exists('caught'):
    note('caught')
    import threading
    threading.Thread(target=os.stat, args=('dead/file',), daemon=True).start()
if 'astray' in modes:
    server = socket.create_server(('127.0.0.1', 0))
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.environ['EDGE_SOCKET'])
    server.listen()
print('listening', flush=True)
while True:
    client, _ = server.accept()
    client.recv(65536)
    ill = os.path.exists('ill') and open('ill').read() == str(os.getpid())
    client.sendall(b'HTTP/1.1 ' + (b'500' if ill else b'200') + b' OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
    client.close()
"#;

struct Stage {
    root: TempDir,
    scope: Scope,
    launcher: Rc<ProcessLauncher>,
    roster: Arc<Roster>,
}

impl Stage {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let launcher = ProcessLauncher::new(root.path().join("run"), Err(Refusal::Root)).expect("a launcher");
        Self { root, scope: Scope::new(), launcher: Rc::new(launcher), roster: Roster::new() }
    }

    fn start(&self, spec: WorkerSpec) -> Supervisor {
        let rng = fastrand::Rng::with_seed(7);
        let tools = Tools {
            launcher: self.launcher.clone(),
            rng,
            journal: Rc::default(),
            available: usage::available,
        };
        supervise(app(), &spec, Arc::clone(&self.roster), tools, &self.scope)
    }

    fn server(&self, modes: &[&str]) -> WorkerSpec {
        server(self.root.path(), modes)
    }

    /// The first slot whose process is not `other`.
    async fn ready(&self, other: u32) -> Arc<Slot> {
        let found = self.roster.wait_for_change(|slots| slots.iter().find(|slot| slot.pid != other).cloned());
        tokio::time::timeout(PATIENCE, found).await.expect("a worker becomes ready")
    }

    fn leaves_nothing(&self) {
        let left: Vec<PathBuf> = std::fs::read_dir(self.root.path().join("run"))
            .expect("the runtime directory stays")
            .map(|entry| entry.expect("readable").path())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn app() -> Arc<App> {
    Arc::new(App {
        name: "api".parse().expect("valid"),
        domains: vec!["api.test".parse().expect("valid")],
        default: false,
        backend: Backend::Upstream(Vec::new()),
        tls: Tls::Internal,
        http: PlainHttp::Redirect,
        redirect_to: None,
        hsts: None,
        max_body: 1,
        queue: Queue { size: 100, timeout: Duration::from_secs(10) },
        protocol: crate::config::model::Protocol::Http1,
        client_auth: None,
        sticky: Sticky::None,
    })
}

fn server(root: &Path, modes: &[&str]) -> WorkerSpec {
    let script = root.join("server.py");
    std::fs::write(&script, SERVER).expect("writable");
    let command = ["python3", script.to_str().expect("plain path")];
    spec(root, command.iter().chain(modes).map(|word| (*word).to_owned()).collect())
}

fn spec(root: &Path, command: Vec<String>) -> WorkerSpec {
    WorkerSpec {
        command,
        server: ServerKind::Auto,
        transport: Transport::Unix,
        workers: WorkerCount::fixed(1),
        concurrency: None,
        working_dir: root.to_owned(),
        gunicorn_conf: false,
        account: Account::Own,
        environment: std::collections::BTreeMap::new(),
        healthcheck_path: None,
        healthcheck: HealthCheck {
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            retries: 3,
        },
        hang_timeout: Duration::from_secs(30),
        start_timeout: PATIENCE,
        drain_timeout: PATIENCE,
        stop_signal: 15,
        stop_grace_period: Duration::from_millis(300),
        restart: Restart { backoff: Duration::from_millis(1), max_backoff: Duration::from_millis(20) },
        nice: None,
        ulimits: Vec::new(),
        recycle: Recycle {
            max_requests: 0,
            jitter_percent: 0,
            max_lifetime: Duration::ZERO,
            max_memory: None,
        },
        memory_limit: None,
        before_start: Vec::new(),
        before_start_timeout: Duration::from_secs(300),
    }
}

fn shell(root: &Path, script: &str) -> WorkerSpec {
    spec(root, ["sh", "-c", script].map(str::to_owned).to_vec())
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let holds = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn alive(pid: u32) -> bool {
    family::process(pid).is_some_and(|one| !one.zombie)
}

fn noted(root: &Path, name: &str) -> Option<u32> {
    std::fs::read_to_string(root.join(name)).ok()?.parse().ok()
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
}

#[tokio::test]
async fn a_worker_that_is_killed_is_replaced() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&[]));
            let first = stage.ready(0).await;
            assert_eq!(app.status().state, AppState::Up);
            kill(first.pid);
            let second = stage.ready(first.pid).await;
            assert!(!first.is_open() && second.is_open());
            assert_eq!((second.id.slot, second.id.incarnation), (0, 2));
            app.measure().await;
            let worker = app.status().workers.remove(0);
            assert_eq!(
                (worker.past.restarts, worker.pid, worker.state),
                (1, Some(second.pid), WorkerState::Ready)
            );
            assert_eq!(worker.past.last_exit.as_deref(), Some("SIGKILL while it served"));
            assert!(worker.memory_bytes > 1024 * 1024, "{worker:?}");
            app.stop().await;
            assert!(stage.roster.load().is_empty());
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn a_worker_that_fails_its_health_checks_ends_with_a_word_of_its_own() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let healthcheck = HealthCheck {
                interval: Duration::from_millis(20),
                timeout: Duration::from_secs(5),
                retries: 2,
            };
            let server = stage.server(&[]);
            let app = stage.start(WorkerSpec { healthcheck_path: Some("/".into()), healthcheck, ..server });
            let first = stage.ready(0).await;
            std::fs::write(stage.root.path().join("ill"), first.pid.to_string()).expect("writable");
            stage.ready(first.pid).await;
            eventually("it is gone", || !app.status().worker_exits.is_empty()).await;
            let status = app.status();
            assert_eq!(status.worker_exits, [("unwell".to_owned(), 1)].into());
            let past = &status.workers[0].past;
            assert_eq!(past.last_exit_reason.as_deref(), Some("unwell"));
            let how = past.last_exit.as_deref().unwrap_or_default();
            assert!(how.ends_with("after it failed its health checks"), "{how}");
            assert_eq!(past.last_failure_text, past.last_exit);
            assert_eq!((past.restarts, past.replacements), (1, 0));
            app.stop().await;
        })
        .await;
}

#[tokio::test]
async fn stopping_ends_everything_a_worker_started_however_stubborn() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&["stubborn", "child", "daemon"]));
            let leader = stage.ready(0).await.pid;
            let root = stage.root.path();
            eventually("both are there", || {
                noted(root, "child").is_some() && noted(root, "daemon").is_some()
            })
            .await;
            app.stop().await;
            for pid in [Some(leader), noted(root, "child"), noted(root, "daemon")] {
                let pid = pid.expect("noted");
                assert!(family::process(pid).is_none(), "{pid} is reaped");
            }
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn what_a_dead_worker_started_dies_with_it() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&["child", "daemon"]));
            let first = stage.ready(0).await;
            let root = stage.root.path();
            eventually("both are there", || {
                noted(root, "child").is_some() && noted(root, "daemon").is_some()
            })
            .await;
            let (child, daemon) =
                (noted(root, "child").expect("noted"), noted(root, "daemon").expect("noted"));
            kill(first.pid);
            eventually("both are gone", || !alive(child) && !alive(daemon)).await;
            app.stop().await;
        })
        .await;
}

#[tokio::test]
async fn the_server_of_a_shell_that_ends_first_is_asked_to_end_too() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let WorkerSpec { command, .. } = stage.server(&["graceful", "child"]);
            let root = stage.root.path();
            // Two words, so that no shell replaces itself; what it starts has a session of its own, as from a runner.
            let shell = shell(root, &format!("setsid {}; true", command.join(" ")));
            let app = stage.start(WorkerSpec { stop_grace_period: PATIENCE, ..shell });
            let leader = stage.ready(0).await.pid;
            eventually("both are there", || noted(root, "child").is_some()).await;
            app.stop().await;
            let child = noted(root, "child");
            assert_eq!(noted(root, "said goodbye"), child, "its child was asked after it had ended");
            for pid in [leader, child.expect("noted")] {
                assert!(family::process(pid).is_none(), "{pid} is reaped");
            }
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn open_requests_finish_before_the_stop_signal() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&[]));
            let slot = stage.ready(0).await;
            assert!(slot.try_acquire());
            let stopping = app.stop();
            tokio::pin!(stopping);
            let early = tokio::time::timeout(Duration::from_millis(300), stopping.as_mut()).await;
            assert!(early.is_err() && alive(slot.pid));
            assert_eq!(app.status().workers[0].state, WorkerState::Draining);
            slot.release();
            stopping.await;
            assert!(!alive(slot.pid));
        })
        .await;
}

#[tokio::test]
async fn a_second_word_kills_at_once() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(stage.server(&["stubborn"]));
            let slot = stage.ready(0).await;
            assert!(slot.try_acquire());
            let patient = app.clone();
            let at_once = async {
                eventually("it drains", || !slot.is_open()).await;
                app.kill_now().await;
            };
            tokio::join!(patient.stop(), at_once);
            assert!(family::process(slot.pid).is_none());
        })
        .await;
}

#[tokio::test]
async fn workers_that_never_start_are_tried_for_ever_and_explained() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let app = stage.start(shell(stage.root.path(), "echo no database >&2; exit 3"));
            eventually("the app failed", || app.status().state == AppState::Failed).await;
            let tries = app.status().workers[0].past.restarts;
            let worker = || app.status().workers.remove(0);
            assert_eq!(worker().past.last_exit.as_deref(), Some("exit status 3 before it was ready"));
            eventually("it goes on", || worker().past.restarts > tries + 3).await;
            app.stop().await;

            let app = stage.start(spec(stage.root.path(), vec!["no-such-program".into()]));
            eventually("the app failed", || app.status().state == AppState::Failed).await;
            let said = app.status().workers[0].past.last_exit.clone().expect("said");
            assert!(
                said.starts_with("cannot run `no-such-program`: `no-such-program` is not in PATH ("),
                "{said}"
            );
            assert!(app.status().worker_exits["not_started"] > 0);
            app.stop().await;
            stage.leaves_nothing();
        })
        .await;
}

#[tokio::test]
async fn a_worker_that_listens_elsewhere_is_told_so() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let spec = WorkerSpec { start_timeout: Duration::from_secs(4), ..stage.server(&["astray"]) };
            let app = stage.start(spec);
            let said = || app.status().workers.first().and_then(|worker| worker.past.last_exit.clone());
            eventually("it is explained", || said().is_some()).await;
            let said = said().expect("checked");
            assert!(said.starts_with("not ready in 4 s: nothing listens at unix:"), "{said}");
            assert!(said.contains("it listens on 127.0.0.1:"), "{said}");
            app.stop().await;
        })
        .await;
}

#[tokio::test]
async fn a_worker_that_listens_late_and_does_not_answer_is_told_so() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let spec = WorkerSpec {
                start_timeout: Duration::from_secs(4),
                transport: Transport::Tcp,
                ..stage.server(&["mute"])
            };
            let app = stage.start(spec);
            let said = || app.status().workers.first().and_then(|worker| worker.past.last_exit.clone());
            eventually("it is explained", || said().is_some()).await;
            assert_eq!(said().as_deref(), Some("not ready in 4 s: no answer to GET /"));
            app.stop().await;
        })
        .await;
}

#[tokio::test]
async fn a_worker_runs_as_its_account_from_a_directory_only_root_can_enter() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let root = stage.root.path();
            // Others may pass to the sockets but not into the checkout.
            set_mode(root, 0o711);
            let checkout = root.join("checkout");
            std::fs::create_dir(&checkout).expect("writable");
            set_mode(&checkout, 0o700);
            let account = Account::Other {
                uid: 65534,
                gid: 65534,
                groups: vec![],
                name: "nobody".into(),
                home: "/".into(),
            };
            let mut spec = spec(&checkout, ["sleep", "100"].map(str::to_owned).to_vec());
            spec.account = account.clone();
            let id = WorkerId { app: "api".parse().expect("valid"), slot: 0, incarnation: 1 };
            let place = stage.launcher.place(&id, &account, Wire::Unix).expect("a place");
            let plan = adapter::plan_at(&spec, &place);
            let order = Order { id: &id, spec: &spec, plan: &plan, place: &place };
            let child = stage.launcher.launch(&order).expect("started");
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).expect("it runs");
            let line = |key: &str| status.lines().find(|line| line.starts_with(key)).expect(key).to_owned();
            assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
            assert_eq!(line("Groups:").trim(), "Groups:");
            let own = std::fs::read_to_string("/proc/self/status").expect("readable");
            let own = own.lines().find(|line| line.starts_with("Umask:")).expect("a umask");
            assert_eq!(line("Umask:"), own, "the service manager's word counts, as for any service");
            // The first 31; the C library keeps the ones behind to itself.
            let ignored =
                u64::from_str_radix(&line("SigIgn:")["SigIgn:\t".len()..], 16).expect("hexadecimal");
            assert_eq!(ignored & 0x7fff_ffff, 0);
            let cwd = std::fs::read_link(format!("/proc/{}/cwd", child.pid())).expect("readable");
            assert_eq!(cwd, checkout);
            let one = family::process(child.pid()).expect("it runs");
            assert_eq!((one.session, one.group), (child.pid(), child.pid()));
            child.kill();
            child.exited().await;
            child.bury().await;
        })
        .await;
}

/// Has a bug.
struct Buggy;

impl Launcher for Buggy {
    fn place(&self, _: &WorkerId, _: &Account, _: Wire) -> Result<adapter::Place, LaunchError> {
        panic!("a bug in edge");
    }

    fn launch(&self, _: &Order<'_>) -> Result<crate::worker::child::Child, LaunchError> {
        panic!("a bug in edge");
    }
}

#[tokio::test]
async fn a_supervisor_that_panics_is_heard_of_and_nobody_waits_for_it() {
    LocalSet::new()
        .run_until(async {
            let stage = Stage::new();
            let tools = Tools {
                launcher: Rc::new(Buggy),
                rng: fastrand::Rng::new(),
                journal: Rc::default(),
                available: usage::available,
            };
            let spec = stage.server(&[]);
            let app = supervise(app(), &spec, Roster::new(), tools, &stage.scope);
            tokio::time::timeout(PATIENCE, stage.scope.broken()).await.expect("it is heard of");
            tokio::time::timeout(PATIENCE, app.stop()).await.expect("nobody waits for ever");
            assert!(app.restart().await.is_err());
        })
        .await;
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("changed");
}

#[tokio::test]
async fn a_working_directory_that_is_missing_is_named() {
    let stage = Stage::new();
    let spec = spec(Path::new("/no/such/place"), vec!["true".into()]);
    let id = WorkerId { app: "api".parse().expect("valid"), slot: 0, incarnation: 1 };
    let place = stage.launcher.place(&id, &Account::Own, Wire::Unix).expect("a place");
    let plan = adapter::plan_at(&spec, &place);
    let error = stage.launcher.launch(&Order { id: &id, spec: &spec, plan: &plan, place: &place });
    assert!(matches!(error, Err(LaunchError::WorkingDirectory { .. })));
}

/// Nothing to be tested by itself: the process that the two below start with a directory, and kill.
#[tokio::test]
async fn edge_to_be_killed() {
    let Some(root) = std::env::var_os("EDGE_TEST_ROOT").map(PathBuf::from) else { return };
    LocalSet::new()
        .run_until(async {
            let launcher = ProcessLauncher::new(root.join("run"), Err(Refusal::Root));
            let launcher = Rc::new(launcher.expect("a launcher"));
            let tools = Tools {
                launcher,
                rng: fastrand::Rng::new(),
                journal: Rc::default(),
                available: usage::available,
            };
            let spec = server(&root, &["stubborn", "child", "daemon"]);
            let _app = supervise(app(), &spec, Roster::new(), tools, &Scope::new());
            std::future::pending::<()>().await;
        })
        .await;
}

/// Starts that edge, waits until its worker and all it starts are there: the edge and those processes.
async fn doomed(root: &Path) -> (std::process::Child, Vec<u32>) {
    let edge = std::process::Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "worker::supervisor::tests::edge_to_be_killed", "--nocapture"])
        .env("EDGE_TEST_ROOT", root)
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("started");
    let socket = root.join("run/api/0-1.sock");
    eventually("it all runs", || {
        noted(root, "child").is_some() && noted(root, "daemon").is_some() && socket.exists()
    })
    .await;
    let (child, daemon) = (noted(root, "child").expect("noted"), noted(root, "daemon").expect("noted"));
    let leader = family::process(child).expect("it runs").session;
    (edge, vec![leader, child, daemon])
}

#[tokio::test]
async fn nothing_survives_a_killed_edge() {
    let root = tempfile::tempdir().expect("temporary directory");
    let (mut edge, processes) = doomed(root.path()).await;
    edge.kill().expect("killed");
    edge.wait().expect("reaped");
    let since = std::time::Instant::now();
    eventually("all are gone", || processes.iter().all(|pid| !alive(*pid))).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    assert_eq!(leftovers::sweep(&root.path().join("run")).await.expect("free"), 0);
    assert_eq!(std::fs::read_dir(root.path().join("run")).expect("there").count(), 0);
}

#[tokio::test]
async fn the_next_start_removes_what_survived() {
    let root = tempfile::tempdir().expect("temporary directory");
    let run = root.path().join("run");
    let (mut edge, processes) = doomed(root.path()).await;
    let in_use = leftovers::sweep(&run).await.expect_err("that edge lives");
    assert_eq!(in_use.pid, edge.id());
    let guards = family::processes().into_iter().filter(|one| one.parent == edge.id());
    let guard = guards.into_iter().find(|one| !processes.contains(&one.pid)).expect("a guard");
    kill(guard.pid);
    edge.kill().expect("killed");
    edge.wait().expect("reaped");
    assert!(processes.iter().all(|pid| alive(*pid)), "all ignore what they are told");
    assert_eq!(leftovers::sweep(&run).await.expect("free"), processes.len());
    assert!(processes.iter().all(|pid| !alive(*pid)));
    assert_eq!(std::fs::read_dir(&run).expect("there").count(), 0);
}
