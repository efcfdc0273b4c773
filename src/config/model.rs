//! The checked configuration: what the program uses. A value of these types holds no nonsense: names exist, files could be
//! read, limits are in range. Only `check` builds one. What each key means to operators is in `config/reference.yaml`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use crate::config::acme::{
    Acme, ChallengeKind, Dns, Eab, KeyType, Publish, Update, UpdateAlgorithm, UpdateKey,
};
pub use crate::config::care::{HealthCheck, Recycle, Resource, Ulimit, WorkerCount};
pub use crate::config::limits::{Before, ChunkLimits, Limits, ResponseLimits, Rules, Timeouts};
use crate::name::{AppName, HostPattern};

/// Everything `edge.yaml` says, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// How certificates are obtained.
    pub acme: Acme,
    /// Directory of certificates, account keys and renewal history.
    pub storage: PathBuf,
    /// Directory of worker sockets and the admin socket.
    pub runtime_dir: PathBuf,
    /// Where clients connect.
    pub listen: Listen,
    /// Who stands between clients and edge, and is believed.
    pub before: Before,
    /// Number of data-plane threads; `auto` is resolved when the file is checked.
    pub threads: NonZeroUsize,
    /// What is written where.
    pub log: Log,
    /// Path of the admin socket.
    pub admin: PathBuf,
    /// Where Prometheus asks, if it may.
    pub metrics: Option<ListenAddr>,
    /// How long open requests may take at shutdown.
    pub drain_timeout: Duration,
    /// Deadlines of connections and requests.
    pub timeouts: Timeouts,
    /// Bounds of connections and requests.
    pub limits: Limits,
    /// The apps in the order of the file.
    pub apps: Vec<Arc<App>>,
}

impl Config {
    /// What connections live under.
    pub fn rules(&self) -> Rules {
        Rules { timeouts: self.timeouts, limits: self.limits, before: self.before.clone() }
    }
}

/// Addresses clients connect to. An empty list turns that kind off. Port 0 lets the system choose (for tests).
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    /// Plain HTTP.
    pub http: Vec<ListenAddr>,
    /// HTTPS.
    pub https: Vec<ListenAddr>,
}

/// An address to bind. `:443` is one dual-stack socket on `[::]`, or `0.0.0.0` where the machine has no IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// Every address of the machine.
    Any(u16),
    /// One address.
    At(SocketAddr),
}

impl std::fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any(port) => write!(f, ":{port}"),
            Self::At(address) => write!(f, "{address}"),
        }
    }
}

/// What is written where.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// Least severity of events that are written.
    pub level: LogLevel,
    /// Shape of each line.
    pub format: LogFormat,
    /// Where a line for each request goes.
    pub access: AccessLog,
}

/// Severity of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Something failed and needs a person.
    Error,
    /// Something failed and will be tried again, or will fail soon.
    Warn,
    /// What an operator wants to read later.
    Info,
    /// What a developer wants to read.
    Debug,
    /// Everything.
    Trace,
}

/// Shape of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where access lines go.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, opened for appending, reopened on SIGUSR1.
    File(PathBuf),
}

/// One app: names, and who answers for them.
#[derive(Debug, Clone, PartialEq)]
pub struct App {
    /// The operator's name for it.
    pub name: AppName,
    /// Hosts it answers for.
    pub domains: Vec<HostPattern>,
    /// Whether it also takes names nobody configured.
    pub default: bool,
    /// Who answers.
    pub backend: Backend,
    /// What is spoken with them.
    pub protocol: Protocol,
    /// Where its certificates come from.
    pub tls: Tls,
    /// Certificates that its clients are asked for.
    pub client_auth: Option<ClientAuth>,
    /// What plain HTTP does.
    pub http: PlainHttp,
    /// Canonical host: the app's other domains answer 308.
    pub redirect_to: Option<crate::name::HostName>,
    /// `Strict-Transport-Security` max-age on https answers.
    pub hsts: Option<Duration>,
    /// Longest request body in bytes; 413 beyond.
    pub max_body: u64,
    /// Requests that wait for a worker.
    pub queue: Queue,
    /// Whether a client stays with one worker.
    pub sticky: Sticky,
}

/// What edge speaks with workers and upstream servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, from the first byte (RFC 9113 §3.3).
    H2c,
}

/// Bounds of the requests that wait for a worker; 503 beyond either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Most that wait.
    pub size: u32,
    /// The longest one waits.
    pub timeout: Duration,
}

/// What keeps a client with one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sticky {
    /// Nothing.
    None,
    /// A cookie that edge sets.
    Cookie,
    /// The client's address.
    Ip,
}

impl App {
    /// Where the certificate of one of its domains comes from: an `auto` app ([`Tls::Acme`]) uses edge's own CA for domains
    /// that no public CA would certify.
    pub fn tls_for(&self, domain: &HostPattern) -> Tls {
        match &self.tls {
            Tls::Acme if domain.is_internal() => Tls::Internal,
            Tls::Acme | Tls::Internal | Tls::Off | Tls::Files { .. } => self.tls.clone(),
        }
    }
}

impl HostPattern {
    /// Whether only this machine or its own network can know the host: `localhost`, `*.localhost`, `*.test`, `*.internal`
    /// (RFC 6761), a name without dots, a private address.
    pub fn is_internal(&self) -> bool {
        let (name, single) = match self {
            Self::Exact(name) => (name, true),
            // Every top-level domain would be such a name.
            Self::Wildcard(suffix) => (suffix, false),
        };
        if let Some(ip) = name.ip() {
            return is_private(ip);
        }
        let last = name.as_str().rsplit('.').next();
        matches!(last, Some("localhost" | "test" | "internal")) || (single && name.parent().is_none())
    }
}

/// Whether only this machine or its own network can reach the address, so that no public CA would certify it.
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b); // RFC 6598
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || ip.is_unspecified() || shared
        }
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified()
        }
    }
}

/// Who answers an app's requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Backend {
    /// Processes edge runs.
    Workers(Box<WorkerSpec>),
    /// Servers edge does not run.
    Upstream(Vec<Address>),
}

/// Where a worker or upstream server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// An IP address and port.
    Tcp(SocketAddr),
    /// A host name and port, resolved at each connection.
    Name(String, u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// How an app's workers are run. Printed for debugging, it keeps the values of the environment to itself.
#[derive(Clone, PartialEq)]
pub struct WorkerSpec {
    /// Program and arguments as the operator wrote them, split, placeholders still in.
    pub command: Vec<String>,
    /// How the worker learns its address; `Auto` is decided from the command.
    pub server: ServerKind,
    /// Unix socket or loopback port.
    pub transport: Transport,
    /// How many there are; `auto` is resolved when the file is checked.
    pub workers: WorkerCount,
    /// Requests in flight at one worker: `None` by the kind of server, 0 without limit.
    pub concurrency: Option<u32>,
    /// Directory they start in; absolute.
    pub working_dir: PathBuf,
    /// Whether that holds a `gunicorn.conf.py`, which gunicorn reads unasked.
    pub gunicorn_conf: bool,
    /// Account they run as: always decided, also where the file is silent.
    pub account: Account,
    /// Extra environment, env files first, then `environment`; `${VAR}` already replaced.
    pub environment: BTreeMap<String, String>,
    /// Path asked for readiness; with none, any HTTP answer to `/` means ready.
    pub healthcheck_path: Option<String>,
    /// How a worker that serves is asked, if a path was named.
    pub healthcheck: HealthCheck,
    /// A worker that reads nothing this long is replaced; zero for never.
    pub hang_timeout: Duration,
    /// Spawn to ready.
    pub start_timeout: Duration,
    /// A worker's open requests, before its stop signal.
    pub drain_timeout: Duration,
    /// What asks a worker to end; a signal number.
    pub stop_signal: i32,
    /// Stop signal to kill.
    pub stop_grace_period: Duration,
    /// First and longest delay between restarts.
    pub restart: Restart,
    /// Priority of its processes, −20 (first) to 19; edge's own where nothing is written.
    pub nice: Option<i32>,
    /// Limits of its processes: the system's name, soft and hard value; `None` is unlimited.
    pub ulimits: Vec<Ulimit>,
    /// When a worker that serves is replaced all the same.
    pub recycle: Recycle,
    /// Bytes of memory the kernel lets a worker and all it starts use, where it can be told to.
    pub memory_limit: Option<u64>,
    /// Commands run once before the first worker of a generation, each split.
    pub before_start: Vec<Vec<String>>,
    /// How long they may take together.
    pub before_start_timeout: Duration,
}

impl std::fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A new field must be named here, and thought about.
        let Self {
            command,
            server,
            transport,
            workers,
            concurrency,
            working_dir,
            gunicorn_conf,
            account,
            environment,
            healthcheck_path,
            healthcheck,
            hang_timeout,
            start_timeout,
            drain_timeout,
            stop_signal,
            stop_grace_period,
            restart,
            nice,
            ulimits,
            recycle,
            memory_limit,
            before_start,
            before_start_timeout,
        } = self;
        f.debug_struct("WorkerSpec")
            .field("program", &command.first())
            .field("server", server)
            .field("transport", transport)
            .field("workers", workers)
            .field("concurrency", concurrency)
            .field("working_dir", working_dir)
            .field("gunicorn_conf", gunicorn_conf)
            .field("account", account)
            .field("environment", &environment.keys())
            .field("healthcheck_path", healthcheck_path)
            .field("healthcheck", healthcheck)
            .field("hang_timeout", hang_timeout)
            .field("start_timeout", start_timeout)
            .field("drain_timeout", drain_timeout)
            .field("stop_signal", stop_signal)
            .field("stop_grace_period", stop_grace_period)
            .field("restart", restart)
            .field("nice", nice)
            .field("ulimits", ulimits)
            .field("recycle", recycle)
            .field("memory_limit", memory_limit)
            .field("before_start", &before_start.len())
            .field("before_start_timeout", before_start_timeout)
            .finish()
    }
}

/// Delays between restarts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restart {
    /// Delay after the second failure in a row (the first is replaced at once).
    pub backoff: Duration,
    /// Longest delay.
    pub max_backoff: Duration,
}

/// The account a worker runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// Edge's own: nothing is changed.
    Own,
    /// Another one; edge runs as root.
    Other {
        /// User id.
        uid: u32,
        /// Primary group id.
        gid: u32,
        /// Supplementary groups.
        groups: Vec<u32>,
        /// Login name, for USER and LOGNAME.
        name: String,
        /// Home directory, for HOME.
        home: PathBuf,
    },
}

/// Server programs whose ways of being told an address edge knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the program of that name")]
pub enum ServerKind {
    Auto,
    Uvicorn,
    Fastapi,
    Gunicorn,
    Hypercorn,
    Daphne,
    Granian,
    Waitress,
    Node,
    Puma,
    Rails,
    Generic,
}

/// What lies between edge and a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Unix where the server can, TCP otherwise.
    Auto,
    /// A unix socket.
    Unix,
    /// A loopback port.
    Tcp,
}

/// Where an app's certificates come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Tls {
    /// From the ACME CA.
    Acme,
    /// From edge's own CA.
    Internal,
    /// Plain HTTP only.
    Off,
    /// From PEM files the operator maintains.
    Files {
        /// Certificate chain.
        cert: PathBuf,
        /// Private key.
        key: PathBuf,
    },
}

/// Certificates that clients are asked for: a policy of the connection, which its requests cannot leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// PEM file of the CAs that sign them.
    pub ca: PathBuf,
    /// Whether a client may have none.
    pub mode: ClientAuthMode,
}

/// Whether a client may have no certificate. One that it presents must be right in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuthMode {
    /// It may not: its handshake fails.
    Require,
    /// It may.
    Request,
}

/// What plain HTTP requests get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainHttp {
    /// 308 to https.
    Redirect,
    /// The app.
    Serve,
}
