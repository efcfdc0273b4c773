//! The subcommands that ask or read and then print: each turns a checked configuration into text for standard output.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use time::OffsetDateTime;

use crate::cert::store_error::StoreError;
use crate::clock::{Clock, SystemClock};
use crate::config::load::Whereabouts;
use crate::config::model::{Account, Backend, Config, WorkerSpec};
use crate::config::schema;
use crate::daemon::ask::{AskError, Running};
use crate::daemon::check_certificates;
use crate::daemon::cli::{self, Operate, Switch};
use crate::daemon::explain::{self, Address, Checked};
use crate::daemon::interrupted::{self, Waiting};
use crate::daemon::operation::{LONGEST_TEXT, Operation};
use crate::daemon::progress::Said;
use crate::daemon::render;
use crate::daemon::render_certificates;
use crate::name::{AppName, HostPattern};
use crate::report::Report;
use crate::telemetry::log::wants_colour;
use crate::telemetry::status::{CertificateStatus, Status};
use crate::worker::adapter::{self, Place, Plan, Program, Wire};
use crate::worker::environment::inherited;
use crate::worker::runnable::{self, View};

/// With less no program runs.
const LEAST_MEMORY: u64 = 1_000_000;

/// Why a subcommand has nothing to print.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum CommandError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("edge's own CA has no root certificate yet at {}: it is made when an app with `tls: internal` is first served", .0.display())]
    NoRoot(PathBuf),
    #[error("cannot read {}", .path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("{} has no app named \"{app}\"; it has {known}", .file.display())]
    NoApp { file: PathBuf, app: String, known: String },
    #[error("{}", .0.iter().map(|error| Report(error).to_string()).collect::<Vec<_>>().join("\nedge: "))]
    Unusable(Vec<StoreError>),
    #[error("cannot wait for the running edge")]
    Wait(#[source] io::Error),
    #[error("cannot look at the certificates")]
    Look(#[source] io::Error),
    #[error("no app can be named \"{0}\"")]
    NoName(String),
    #[error("no host can be named \"{0}\"")]
    NoHost(String),
    #[error("the message is longer than {LONGEST_TEXT} bytes")]
    LongText,
    #[error("app \"{0}\" has no workers: it forwards to servers edge does not run")]
    NoWorkers(String),
}

impl CommandError {
    /// The exit status that goes with it.
    pub fn status(&self) -> u8 {
        match self {
            Self::Unusable(_) => cli::CONFIG,
            Self::NoName(_) | Self::NoHost(_) | Self::LongText => cli::USAGE,
            Self::Ask(_)
            | Self::NoRoot(_)
            | Self::Root { .. }
            | Self::NoApp { .. }
            | Self::Wait(_)
            | Self::Look(_)
            | Self::NoWorkers(_) => 1,
        }
    }
}

/// `edge schema`.
pub fn schema() -> String {
    format!("{:#}\n", schema::schema())
}

/// `edge check`, of a configuration in which no problem was found.
pub fn check(config: &Arc<Config>) -> Result<String, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let half_renewed = |error: &StoreError| {
        // Where this cannot be printed, what comes of it has to do.
        let _ = writeln!(io::stderr(), "edge: {}; {}", Report(error), check_certificates::LOOKING_AGAIN);
    };
    runtime.map_err(CommandError::Look)?.block_on(check_certificates::renewed(config, half_renewed));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (mut unusable, mut checked) = (Vec::new(), Vec::new());
    for app in &config.apps {
        let of_files = check_certificates::look(app, &provider, SystemClock.now());
        unusable.extend(of_files.errors);
        let (line, notes, warnings) = match &app.backend {
            Backend::Workers(spec) => {
                let plan = adapter::plan(&app.name, spec, 0, &config.runtime_dir);
                (explain::command_line(&plan.argv), plan.notes.clone(), warnings(spec, &plan))
            }
            Backend::Upstream(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                (format!("→ {}", addresses.join(", ")), Vec::new(), Vec::new())
            }
        };
        let warnings = [warnings, of_files.warnings].concat();
        checked.push(Checked { app: app.name.as_str(), line, notes, warnings });
    }
    if unusable.is_empty() { Ok(explain::check(&checked)) } else { Err(CommandError::Unusable(unusable)) }
}

/// `edge explain APP`: its first worker.
pub fn explain(config: &Config, name: &str) -> Result<String, CommandError> {
    let Some(app) = config.apps.iter().find(|app| app.name.as_str() == name) else {
        let known: Vec<&str> = config.apps.iter().map(|app| app.name.as_str()).collect();
        return Err(CommandError::NoApp {
            file: config.file.clone(),
            app: name.to_owned(),
            known: known.join(", "),
        });
    };
    let spec = match &app.backend {
        Backend::Workers(spec) => spec,
        Backend::Upstream(_) => return Err(CommandError::NoWorkers(name.to_owned())),
    };
    // Edge's own sockets are not for who tries the command by hand.
    let own = Place::new(&app.name, 0, 1, &config.runtime_dir, explain::PORT.to_owned());
    let place = Place { socket: explain::SOCKET.into(), ..own.clone() };
    let mut plan = adapter::plan_at(spec, &place);
    if let (Program::Edge, Ok(edge), Some(first)) =
        (plan.program, std::env::current_exe(), plan.argv.first_mut())
    {
        *first = edge.to_string_lossy().into_owned();
    }
    let text = |word: OsString| word.to_string_lossy().into_owned();
    let mut environment: BTreeMap<String, String> =
        inherited(&spec.account).into_iter().map(|(name, value)| (text(name), text(value))).collect();
    environment.extend(plan.environment.clone());
    let address = match plan.wire {
        Wire::Unix => Address::Socket(&own.socket),
        Wire::Tcp => Address::Port,
    };
    let user = match &spec.account {
        Account::Own => None,
        Account::Other { name, .. } => Some(name.as_str()),
    };
    Ok(explain::explain(&explain::Worker {
        app: app.name.as_str(),
        slot: 0,
        argv: &plan.argv,
        environment: &environment,
        written: &spec.environment,
        working_dir: &spec.working_dir,
        address,
        user,
        notes: &plan.notes,
        warnings: &warnings(spec, &plan),
    }))
}

/// What keeps the app's commands from being run, as this process sees the files, or its workers from living. Only warned of: `before_start` may make a program,
/// and whoever runs edge may see more.
fn warnings(spec: &WorkerSpec, plan: &Plan) -> Vec<String> {
    let view = View::new(spec, spec.environment.get("PATH"));
    let mut programs: Vec<&String> = Vec::new();
    for program in spec.before_start.iter().filter_map(|command| command.first()) {
        if !programs.contains(&program) {
            programs.push(program);
        }
    }
    let obstacles = programs.into_iter().filter_map(|program| view.obstacle(program));
    let mut warnings: Vec<String> =
        obstacles.map(|obstacle| format!("on this machine, `before_start`: {obstacle}")).collect();
    for (key, limit) in [("max_memory", spec.recycle.max_memory), ("memory_limit", spec.memory_limit)] {
        if let Some(bytes) = limit.filter(|bytes| *bytes < LEAST_MEMORY) {
            warnings.push(format!(
                "`{key}` is {bytes} bytes, less than any worker needs: without a unit a size is in bytes, write such as `{key}: 512MB`"
            ));
        }
    }
    if let Some(obstacle) = runnable::obstacle(spec, plan) {
        let made = if spec.before_start.is_empty() { "" } else { ", unless `before_start` sees to that" };
        warnings.push(format!("on this machine, {obstacle}{made}"));
    }
    warnings.extend(plan.warnings.iter().cloned());
    warnings
}

/// `edge status`, with `all` of every worker.
pub fn status(place: &Whereabouts, json: bool, all: bool) -> Result<String, CommandError> {
    let running = running(place);
    if json {
        return Ok(String::from_utf8_lossy(&running.ask("/status")?).into_owned());
    }
    let status: Status = running.ask_json("/status")?;
    Ok(render::status(&status, now(), colour(), all))
}

/// `edge certs`, and whether all of them are well.
pub fn certs(place: &Whereabouts, json: bool) -> Result<(String, bool), CommandError> {
    let status: serde_json::Value = running(place).ask_json("/status")?;
    let shown = &status["certificates"];
    let certificates: Vec<CertificateStatus> = serde_json::from_value(shown.clone()).unwrap_or_default();
    let healthy = certificates.iter().all(|certificate| render_certificates::is_well(certificate, now()));
    let text = if json {
        format!("{shown}\n")
    } else {
        render_certificates::certificates(&certificates, now(), colour())
    };
    Ok((text, healthy))
}

/// `edge certs renew`.
pub fn renewal(name: &str) -> Result<Operation, CommandError> {
    match name.parse::<HostPattern>() {
        Ok(name) => Ok(Operation::Renew(name.to_string())),
        Err(_) => Err(CommandError::NoHost(name.to_owned())),
    }
}

/// `edge trust`.
pub fn trust(config: &Config) -> Result<String, CommandError> {
    let path = config.storage.join("internal").join("root.pem");
    std::fs::read_to_string(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => CommandError::NoRoot(path),
        _ => CommandError::Root { path, source },
    })
}

/// What the call asks a running edge to do.
pub fn operation(call: &Operate) -> Result<Operation, CommandError> {
    let name = |app: &str| app.parse::<AppName>().map_err(|_| CommandError::NoName(app.to_owned()));
    let optional = |app: &Option<String>| app.as_deref().map(name).transpose();
    match call {
        Operate::Reload { app } => optional(app).map(Operation::Reload),
        Operate::Restart { app } => name(app).map(Operation::Restart),
        Operate::Scale { app, workers } => name(app).map(|app| Operation::Scale(app, *workers)),
        Operate::Logs { app, follow } => optional(app).map(|app| Operation::Logs { app, follow: *follow }),
        Operate::Maintenance { message: Some(text), .. } if text.len() > LONGEST_TEXT => {
            Err(CommandError::LongText)
        }
        Operate::Maintenance { switch: Switch::On, app, message } => {
            name(app).map(|app| Operation::Maintain(app, message.clone()))
        }
        Operate::Maintenance { switch: Switch::Off, app, message: _ } => name(app).map(Operation::Resume),
    }
}

/// Has the running edge perform `operation` and prints what it says; returns the exit status.
pub fn operate(place: &Whereabouts, operation: Operation) -> Result<u8, CommandError> {
    let running = running(place);
    if operation.is_reading() {
        return Ok(running.operate(&operation, print_said)?);
    }
    running.uses_this_file()?;
    let (waiting, file) = (Waiting::default(), place.file.clone());
    let (hears, place) = (waiting.clone(), place.clone());
    let work = move || {
        self::running(&place).operate(&operation, |said| {
            hears.hear(said);
            print_said(said)
        })
    };
    match interrupted::unless_interrupted(&waiting, &file, work).map_err(CommandError::Wait)? {
        Ok(outcome) => Ok(outcome?),
        Err(status) => Ok(status),
    }
}

fn print_said(said: &Said) -> io::Result<()> {
    match said {
        Said::Word(text) => writeln!(io::stdout().lock(), "{text}"),
        Said::Complaint(text) => writeln!(io::stderr().lock(), "{text}"),
        Said::End(_) => Ok(()),
    }
}

/// Prints to standard output. A reader that has gone, as `head` does, wants no more and is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

pub(in crate::daemon) fn running(place: &Whereabouts) -> Running<'_> {
    Running { admin: &place.admin, config: &place.file }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(SystemClock.now())
}

fn colour() -> bool {
    wants_colour(io::stdout().is_terminal())
}
