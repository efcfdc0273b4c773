//! A running `edge`: started from a configuration, asked for its state, stopped and looked after.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::client::Trust;
use super::{processes, until, within};

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_edge");

/// How `edge` is executed, each time.
struct Way {
    environment: Vec<(String, String)>,
    /// Words that execute what follows them.
    wrapper: Vec<String>,
    /// A socket that is passed to it.
    held: Option<std::net::TcpListener>,
}

/// A configuration being written, and how `edge` will be executed with it.
pub(crate) struct Setup {
    dir: TempDir,
    top: String,
    apps: String,
    http: String,
    https: String,
    way: Way,
    storage: PathBuf,
}

impl Setup {
    /// Nothing but listeners on free ports and directories of its own.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("edge-").tempdir().expect("a temporary directory");
        // Workers may run as another user, who has to get through to their sockets.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("permissions");
        let bin = Path::new(BINARY).parent().expect("the binary is in a directory");
        let path = std::env::var("PATH").unwrap_or_default();
        Self {
            storage: dir.path().join("storage"),
            dir,
            top: String::new(),
            apps: String::new(),
            http: "127.0.0.1:0".into(),
            https: "127.0.0.1:0".into(),
            way: Way {
                environment: vec![("PATH".into(), format!("{}:{path}", bin.display()))],
                wrapper: Vec::new(),
                held: None,
            },
        }
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds top-level lines.
    pub(crate) fn top(mut self, yaml: &str) -> Self {
        self.top.push_str(yaml.trim_end());
        self.top.push('\n');
        self
    }

    /// Listens on these ports instead of free ones.
    pub(crate) fn ports(mut self, http: u16, https: u16) -> Self {
        self.http = format!("127.0.0.1:{http}");
        self.https = format!("127.0.0.1:{https}");
        self
    }

    /// Listens at each of these hosts of the machine, on these ports.
    pub(crate) fn at(mut self, hosts: &[&str], http: u16, https: u16) -> Self {
        let all =
            |port: u16| hosts.iter().map(|host| format!("{host}:{port}")).collect::<Vec<_>>().join("\", \"");
        (self.http, self.https) = (all(http), all(https));
        self
    }

    /// Keeps its certificates there, as another edge does.
    pub(crate) fn storage(mut self, dir: &Path) -> Self {
        self.storage = dir.to_owned();
        self
    }

    /// Writes the file, as [`Self::start`] does; returned is where it is.
    pub(crate) fn written(&self) -> PathBuf {
        let config = self.dir.path().join("edge.yaml");
        fs::write(&config, self.text()).expect("the configuration is written");
        config
    }

    /// Adds an app whose keys are the lines of `yaml`. As root, its workers stay root unless the lines name a user: the
    /// checkout and the directory of the test may be closed to everybody else.
    pub(crate) fn app(self, name: &str, yaml: &str) -> Self {
        let commands = yaml.lines().any(|line| line.starts_with("command:"));
        let names_user = yaml.lines().any(|line| line.starts_with("user:"));
        let user = if commands && !names_user && processes::root() { "user: root\n" } else { "" };
        self.app_as_written(name, &format!("{user}{yaml}"))
    }

    /// Adds an app exactly as `yaml` says.
    pub(crate) fn app_as_written(mut self, name: &str, yaml: &str) -> Self {
        writeln!(self.apps, "  {name}:").expect("a string");
        for line in yaml.lines() {
            writeln!(self.apps, "    {line}").expect("a string");
        }
        self
    }

    /// Sets a variable of `edge`'s own environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.way.environment.retain(|(known, _)| known != name);
        self.way.environment.push((name.into(), value.into()));
        self
    }

    /// Has edge executed by these words, which execute what follows them.
    pub(crate) fn inside(mut self, wrapper: &[impl AsRef<str>]) -> Self {
        self.way.wrapper = wrapper.iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Passes a socket to edge as a service manager does, and holds it while edge is restarted.
    pub(crate) fn holding(mut self, socket: std::net::TcpListener) -> Self {
        self.way.held = Some(socket);
        let pass = "export LISTEN_PID=$$; exec \"$@\" 3<&0 0</dev/null";
        self.environment("LISTEN_FDS", "1").inside(&["sh", "-c", pass, "sh"])
    }

    /// The file's text.
    fn text(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "storage: {}\nruntime_dir: {dir}/run\nlisten:\n  http: [\"{}\"]\n  https: [\"{}\"]\n{}apps:\n{}",
            self.storage.display(),
            self.http,
            self.https,
            self.top,
            self.apps
        )
    }

    /// Starts `edge` and waits until it listens.
    pub(crate) async fn start(self) -> Edge {
        let mut edge = self.launch();
        edge.wait_until_listening().await;
        edge
    }

    /// Starts `edge` and waits for nothing; where it listens is known if its ports were given.
    pub(crate) fn launch(self) -> Edge {
        let config = self.written();
        Edge {
            launched: Launched::spawn(self.dir.path(), &config, &self.way),
            dir: self.dir,
            config,
            way: self.way,
            http: self.http.parse().unwrap_or(unbound()),
            https: self.https.parse().unwrap_or(unbound()),
        }
    }
}

/// A running `edge`. Dropped, it is killed, and if the test is failing its log is shown.
pub(crate) struct Edge {
    launched: Launched,
    dir: TempDir,
    config: PathBuf,
    way: Way,
    /// Where plain HTTP is served.
    pub(crate) http: SocketAddr,
    /// Where HTTPS is served.
    pub(crate) https: SocketAddr,
}

impl Edge {
    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces a part of its configuration file; edge does not know yet.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.config).expect("the configuration is there");
        assert!(text.contains(from), "{from:?} is not in\n{text}");
        fs::write(&self.config, text.replace(from, to)).expect("the configuration is written");
    }

    /// `edge reload`, which must succeed; returned is what it said.
    pub(crate) async fn reload(&self) -> String {
        self.done(&["reload"]).await
    }

    /// A command that must succeed; returned is what it printed.
    pub(crate) async fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "edge {arguments:?}: {}\n{errors}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A command that must fail; returned are its exit status and what it complained of.
    pub(crate) async fn failing(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).await;
        assert!(!output.status.success(), "edge {arguments:?} succeeded");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().expect("it ended by itself"), errors)
    }

    /// A reload that must fail and say last that nothing was changed; returned is the same as of [`Self::failing`].
    pub(crate) async fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let (status, errors) = self.failing(arguments).await;
        let last =
            format!("{}: the configuration in force stays; nothing was changed\n", self.config.display());
        assert!(errors.ends_with(&last) && errors != last, "{errors}");
        assert_eq!(errors.matches("nothing was changed").count(), 1, "{errors}");
        (status, errors)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.launched.pid
    }

    /// When it was executed.
    pub(crate) fn executed_at(&self) -> Instant {
        self.launched.at
    }

    /// When it said to the service manager that it is ready.
    pub(crate) fn ready_after(&self) -> Option<Duration> {
        self.launched.ready.map(|at| at - self.launched.at)
    }

    /// What `edge status --json` says.
    pub(crate) async fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]).await;
        assert!(output.status.success(), "edge status: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("status is JSON")
    }

    /// Runs `edge` with `arguments` and this configuration.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Output {
        run(&self.way.environment, arguments, &self.config).await
    }

    /// Waits until every worker of `app` is ready, and returns the state of the app.
    pub(crate) async fn wait_until_up(&self, app: &str) -> Value {
        until(Duration::from_secs(60), &format!("{app} is up"), async || {
            let state = self.status().await["apps"][app].take();
            (state["state"] == "up").then_some(state)
        })
        .await
    }

    /// Process ids of the app's ready workers.
    pub(crate) async fn workers(&self, app: &str) -> Vec<u32> {
        let status = self.status().await;
        let workers = status["apps"][app]["workers"].as_array().expect("workers").clone();
        workers.iter().filter(|worker| worker["state"] == "ready").filter_map(pid).collect()
    }

    /// The status of one certificate.
    pub(crate) async fn certificate(&self, name: &str) -> Value {
        let status = self.status().await;
        let certificates = status["certificates"].as_array().expect("certificates");
        certificates.iter().find(|certificate| certificate["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// The root of its internal CA, as clients that trust it.
    pub(crate) async fn trust(&self) -> Trust {
        let root = self.dir.path().join("storage/internal/root.pem");
        until(Duration::from_secs(10), "the internal root is there", async || Trust::in_file(&root)).await
    }

    /// Everything printed so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.launched.log).unwrap_or_default()
    }

    /// The printed lines that are JSON objects.
    pub(crate) fn log_objects(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a printed object that satisfies `wanted`.
    pub(crate) async fn wait_for_log(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let limit = Duration::from_secs(15);
        until(limit, what, async || self.log_objects().into_iter().find(|line| wanted(line))).await
    }

    /// Waits for the access line of a request to `path`.
    pub(crate) async fn wait_for_access(&self, path: &str) -> Value {
        self.wait_for_log(&format!("an access line for {path}"), |line| {
            line["path"] == path && line["status"].is_u64()
        })
        .await
    }

    /// Sends a signal to `edge` alone.
    pub(crate) fn signal(&self, signal: Signal) {
        processes::signal(self.launched.pid, signal);
    }

    /// Waits for the end of the process.
    pub(crate) async fn ended(&mut self, limit: Duration) -> ExitStatus {
        within(limit, "edge has ended", self.launched.child.wait()).await.expect("a child can be waited for")
    }

    /// SIGTERM, then everything a clean stop promises: exit status 0, no process, no socket left.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended(Duration::from_secs(25)).await;
        assert_eq!(status.code(), Some(0), "exit status after SIGTERM: {status}");
        self.assert_nothing_left().await;
    }

    /// No process and no socket of this run exists any more. A process may take a moment to vanish after it was told to.
    pub(crate) async fn assert_nothing_left(&self) {
        let limit = Duration::from_secs(1);
        let begun = Instant::now();
        let left = until(limit * 2, "the process table is read", async || {
            let left = processes::belonging_to(self.dir.path());
            (left.is_empty() || begun.elapsed() > limit).then_some(left)
        })
        .await;
        assert!(left.is_empty(), "processes left behind: {left:?}");
        let sockets = sockets_below(&self.dir.path().join("run"));
        assert!(sockets.is_empty(), "sockets left behind: {sockets:?}");
    }

    /// Kills `edge` with SIGKILL and reaps it.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended(Duration::from_secs(5)).await;
    }

    /// Executes `edge` again, in the same directory with the same configuration, after it has ended.
    pub(crate) async fn restart(&mut self) {
        self.execute_again();
        self.wait_until_listening().await;
    }

    /// As [`Self::restart`], without waiting for anything.
    pub(crate) fn execute_again(&mut self) {
        self.launched = Launched::spawn(self.dir.path(), &self.config, &self.way);
    }

    /// Waits until an edge that was just executed listens.
    pub(crate) async fn wait_until_listening(&mut self) {
        let listeners = until(Duration::from_secs(20), "edge listens", async || {
            if let Ok(Some(status)) = self.launched.child.try_wait() {
                panic!(
                    "edge ended: {status}\n{}",
                    fs::read_to_string(&self.launched.log).unwrap_or_default()
                );
            }
            self.launched.note_readiness();
            let output = run(&self.way.environment, &["status", "--json"], &self.config).await;
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            let listeners = status["listeners"].as_array()?;
            (!listeners.is_empty()).then(|| listeners.clone())
        })
        .await;
        self.launched.note_readiness();
        let bound = |kind: &str| {
            let listener = listeners.iter().find(|listener| listener["kind"] == kind)?;
            listener["address"].as_str()?.parse::<SocketAddr>().ok()
        };
        self.http = bound("http").unwrap_or(unbound());
        self.https = bound("https").unwrap_or(unbound());
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("── edge.yaml ──\n{}", fs::read_to_string(&self.config).unwrap_or_default());
            eprintln!("── log ──\n{}──", self.log());
        }
    }
}

/// One execution of the binary.
struct Launched {
    child: Child,
    pid: u32,
    at: Instant,
    ready: Option<Instant>,
    notices: UnixDatagram,
    log: PathBuf,
}

impl Launched {
    fn spawn(dir: &Path, config: &Path, way: &Way) -> Self {
        let notify = dir.join("notify.sock");
        let _ = fs::remove_file(&notify);
        let notices = UnixDatagram::bind(&notify).expect("a notify socket");
        notices.set_nonblocking(true).expect("a socket can be non-blocking");
        let log = dir.join("edge.log");
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let at = Instant::now();
        let stdin = match &way.held {
            Some(socket) => Stdio::from(OwnedFd::from(socket.try_clone().expect("a descriptor"))),
            None => Stdio::null(),
        };
        let mut words = way.wrapper.iter().map(String::as_str).chain([BINARY, "--config"]);
        let child = Command::new(words.next().expect("the binary at least"))
            .args(words)
            .arg(config)
            .envs(way.environment.iter().map(|(name, value)| (name, value)))
            .env("NOTIFY_SOCKET", &notify)
            .stdin(stdin)
            .stdout(output.try_clone().expect("a descriptor"))
            .stderr(output)
            .spawn()
            .expect("edge starts");
        let pid = child.id().expect("it has not been waited for");
        Self { child, pid, at, ready: None, notices, log }
    }

    fn note_readiness(&mut self) {
        let mut notice = [0; 4096];
        while let Ok(length) = self.notices.recv(&mut notice) {
            let text = String::from_utf8_lossy(&notice[..length]);
            if self.ready.is_none() && text.lines().any(|line| line == "READY=1") {
                self.ready = Some(Instant::now());
            }
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            processes::signal(self.pid, Signal::SIGKILL);
            let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(self.pid.cast_signed()), None);
        }
    }
}

/// Runs the binary with `arguments` and a configuration, to its end.
pub(crate) async fn run(environment: &[(String, String)], arguments: &[&str], config: &Path) -> Output {
    let output = Command::new(BINARY)
        .args(arguments)
        .arg("--config")
        .arg(config)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    within(Duration::from_secs(20), "the command ends", output).await.expect("edge runs")
}

/// The pid of a worker's status.
pub(crate) fn pid(worker: &Value) -> Option<u32> {
    worker["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

/// Socket files below a directory.
pub(crate) fn sockets_below(dir: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(sockets_below(&entry.path())),
            Ok(kind) if kind.is_socket() => found.push(entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
    found
}

fn unbound() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}
