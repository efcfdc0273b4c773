//! What `edge status --json` prints: the stable form of the running state. Names are the contract's.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The whole status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the running program.
    pub version: String,
    /// Process id of edge.
    pub pid: u32,
    /// The configuration file it was started with.
    #[serde(default)]
    pub config_file: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Bound addresses.
    pub listeners: Vec<ListenerStatus>,
    /// Apps by name.
    pub apps: BTreeMap<String, AppStatus>,
    /// Certificates in the order of the configuration.
    pub certificates: Vec<CertificateStatus>,
}

/// A bound address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// `http` or `https`.
    pub kind: String,
    /// Address and port, the port as bound.
    pub address: String,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    /// Its state.
    pub state: AppState,
    /// Counts configurations its workers were started for, from 1.
    pub generation: u64,
    /// Requests waiting for a worker.
    pub queue: u64,
    /// How many workers it shall have; `null` where edge runs none.
    pub scale: Option<ScaleStatus>,
    /// Its workers by slot.
    pub workers: Vec<WorkerStatus>,
    /// How many workers have ended since edge was started, by reason: `asked`, `exit`, `signal`, `out_of_memory`,
    /// `hang`, `start_timeout`, `unwell`, `stuck`; as `not_started`, how many could not be started at all.
    pub worker_exits: BTreeMap<String, u64>,
    /// Why the last new generation did not take over, if none has since.
    #[serde(default)]
    pub failed_deploy: Option<String>,
    /// When that was, RFC 3339.
    #[serde(default)]
    pub failed_deploy_at: Option<String>,
}

/// How many workers an app shall have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleStatus {
    /// The least the file allows.
    pub min: u32,
    /// The most; where it is more than the least, the load decides between them.
    pub max: u32,
    /// How many there shall be now.
    pub target: u32,
    /// Whether that is what `edge scale` said, whatever the file and the load say.
    pub held: bool,
}

/// State of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppState {
    /// No worker has been ready yet.
    Starting,
    /// Every wanted worker is ready.
    Up,
    /// Some are.
    Degraded,
    /// None is, though one was.
    Down,
    /// Workers die before they are ready, again and again; retries go on.
    Failed,
    /// Workers of a new generation take over.
    Deploying,
    /// The operator has taken it out of service; its workers are left alone.
    Maintenance,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its place.
    pub slot: u32,
    /// Process id, where one runs.
    pub pid: Option<u32>,
    /// Its state.
    pub state: WorkerState,
    /// Requests in flight.
    pub in_flight: u64,
    /// Requests ever taken by this incarnation.
    pub requests: u64,
    /// Memory of its process tree in bytes.
    pub memory_bytes: u64,
    /// How many the kernel lets it use, where it keeps a limit.
    pub memory_limit_bytes: Option<u64>,
    /// Seconds since its spawn.
    pub age_s: u64,
    /// When it was spawned, in seconds since 1970 by the clock of then. Not printed: `age_s` is what operators ask for.
    #[serde(skip)]
    pub started: Option<u64>,
    /// Where it listens.
    pub address: String,
    /// What is the matter with it: why it is not ready after some seconds, or how it fails its health check.
    #[serde(default)]
    pub trouble: Option<String>,
    /// What came before it.
    #[serde(flatten)]
    pub past: PastStatus,
}

/// What a slot remembers of the workers before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PastStatus {
    /// Workers that were launched in its place before it. Not printed: the next two tell of those that took over.
    #[serde(skip)]
    pub after_first: u64,
    /// Workers that were started because the one before had failed.
    pub restarts: u64,
    /// Workers that took the place of one that was asked to go: deploys, recycling, another number of workers.
    #[serde(default)]
    pub replacements: u64,
    /// When a worker last failed, RFC 3339, also if others were asked to go since.
    #[serde(default)]
    pub last_failure: Option<String>,
    /// How it did, in words.
    #[serde(default)]
    pub last_failure_text: Option<String>,
    /// How the last one ended, in words, or why it could not be started.
    pub last_exit: Option<String>,
    /// When that was, RFC 3339.
    #[serde(default)]
    pub last_exit_at: Option<String>,
    /// The same in one word of [`AppStatus::worker_exits`].
    #[serde(default)]
    pub last_exit_reason: Option<String>,
    /// What the last one had printed when it ended.
    #[serde(default)]
    pub last_line: Option<String>,
}

/// State of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Spawned, not ready.
    Starting,
    /// Takes requests.
    Ready,
    /// Reads nothing; takes no new requests until it does.
    Suspect,
    /// Finishes its requests.
    Draining,
    /// Told to end.
    Stopping,
    /// Dead; the next incarnation waits for its delay.
    Backoff,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The name it is for.
    pub name: String,
    /// Its state.
    pub state: CertificateState,
    /// Issuer of the installed certificate, as the certificate says; empty without one.
    pub issuer: String,
    /// The CA's name for the kind of certificate that was ordered, where one was named.
    pub profile: Option<String>,
    /// Start of validity, RFC 3339.
    pub not_before: Option<String>,
    /// End of validity, RFC 3339.
    pub not_after: Option<String>,
    /// When it will be renewed, RFC 3339.
    pub renew_at: Option<String>,
    /// Why then.
    pub renew_because: Option<RenewBecause>,
    /// Why the last attempt failed, in words.
    pub last_error: Option<String>,
    /// When an attempt last failed, RFC 3339, also if one has succeeded since.
    pub last_failure: Option<String>,
    /// When the next attempt is made, RFC 3339.
    pub next_attempt: Option<String>,
    /// The TXT record that would prove the name for good, where its CA takes one and it is not there.
    #[serde(default)]
    pub dns_record: Option<String>,
    /// Orders since edge was started.
    pub orders: OrderCounts,
}

/// What a moment of renewal follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenewBecause {
    /// Two thirds of the certificate's life, or half of one below ten days.
    #[default]
    Lifetime,
    /// The CA's renewal window.
    #[serde(alias = "window")]
    CaWindow,
    /// An operator asked for it.
    Asked,
}

/// How orders ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrderCounts {
    /// With a certificate.
    pub issued: u64,
    /// With a failure.
    pub failed: u64,
    /// Before the CA was asked, because the name does not lead here.
    pub not_asked: u64,
}

/// State of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CertificateState {
    /// Installed and in time.
    Valid,
    /// None yet; being obtained.
    Pending,
    /// An attempt failed; another follows.
    Retrying,
    /// Waits for the operator.
    Parked,
    /// Installed, and its time is over.
    Expired,
}
