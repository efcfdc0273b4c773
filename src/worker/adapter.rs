//! How each server program learns where to listen: from an app's command to the final arguments and environment.
//!
//! Must not do: look at files or the environment. The same input gives the same plan, so `check` and `explain` show what
//! `run` does. Facts about each program stand at its function.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::model::{ServerKind, Transport, WorkerSpec};
use crate::config::script;
use crate::name::AppName;
use crate::worker::background;
use crate::worker::deaf;
use crate::worker::flags::Command;
use crate::worker::program;

/// … and closes its own side after this long, so that a request never meets a closing connection.
pub(super) const RAISED_IDLE: Duration = Duration::from_secs(60);

/// Everything needed to start one worker, but for the account and edge's own environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which kind of server it was taken for.
    pub server: ServerKind,
    /// The program to execute.
    pub program: Program,
    /// Program and arguments as they are executed.
    pub argv: Vec<String>,
    /// The app's own environment and what edge adds; edge's additions win.
    pub environment: BTreeMap<String, String>,
    /// Whether it listens on a unix socket or a loopback port.
    pub wire: Wire,
    /// How long an idle connection to it may be kept; zero means that each is used once.
    pub idle_timeout: Duration,
    /// Requests it is given at once; `None` is no limit.
    pub concurrency: Option<NonZeroU32>,
    /// Whether each request occupies a process or thread of it, so that nothing slow must be attached to one.
    pub synchronous: bool,
    /// Processes the command itself starts behind one address, where it says so.
    pub delegated: Option<u32>,
    /// What the operator may want to know: something was replaced, or works otherwise than it looks.
    pub notes: Vec<String>,
    /// Why such a worker will never serve.
    pub warnings: Vec<String>,
}

/// What is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The first argument, found along PATH.
    Named,
    /// Edge's own executable.
    Edge,
}

/// What lies between edge and this worker: [`Transport`] decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A unix socket.
    Unix,
    /// A loopback port.
    Tcp,
}

/// Where one incarnation of a worker is told to listen. The port is a text so that a plan can be shown before one is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The app.
    pub app: AppName,
    /// Its place in the app.
    pub slot: u32,
    /// Path of the unix socket.
    pub socket: PathBuf,
    /// Loopback port.
    pub port: String,
}

impl Place {
    /// The place of an incarnation.
    pub fn new(app: &AppName, slot: u32, incarnation: u64, runtime_dir: &Path, port: String) -> Self {
        let socket = runtime_dir.join(app.as_str()).join(format!("{slot}-{incarnation}.sock"));
        Self { app: app.clone(), slot, socket, port }
    }

    /// Where a server that insists on a file with its process id may have one of its own.
    pub fn pid_file(&self) -> PathBuf {
        self.socket.with_extension("pid")
    }
}

/// The plan of a slot's first incarnation; `{port}` stands where a port will be chosen.
pub fn plan(app: &AppName, spec: &WorkerSpec, slot: u32, runtime_dir: &Path) -> Plan {
    plan_at(spec, &Place::new(app, slot, 1, runtime_dir, "{port}".to_owned()))
}

/// The plan of a worker that is to listen at `place`.
pub fn plan_at(spec: &WorkerSpec, place: &Place) -> Plan {
    let found = program::recognise(&spec.command);
    let server = if spec.server == ServerKind::Auto { found.server } else { spec.server };
    let script = script::of(&spec.command);
    let placeholders = Placeholders::of(&spec.command);
    let mut draft = Draft {
        told: placeholders.tell_address(),
        wire: wire(server, found.hello, spec.transport, placeholders),
        command: Command::new(
            fill(&spec.command, place),
            script.map_or(found.arguments, |script| script.arguments),
        ),
        scripted: script.is_some(),
        socket: place.socket.display().to_string(),
        port: place.port.clone(),
        grace: spec.stop_grace_period.as_secs().saturating_sub(2).max(1),
        user: &spec.environment,
        set: BTreeMap::new(),
        idle_timeout: UNKNOWN_IDLE,
        concurrency: None,
        unseen: program::in_a_script(&spec.command).filter(|_| server == ServerKind::Generic),
        notes: Vec::new(),
    };
    draft.transport_notes(server, spec.transport);
    draft.shell_notes(&spec.command);
    if spec.server == ServerKind::Auto && server == ServerKind::Generic {
        draft.deaf_note(&spec.command);
    }
    draft.edge(place);
    match server {
        ServerKind::Uvicorn => draft.uvicorn(),
        ServerKind::Fastapi => draft.fastapi(),
        ServerKind::Gunicorn => draft.gunicorn(place, spec.gunicorn_conf),
        ServerKind::Hypercorn => draft.hypercorn(),
        ServerKind::Daphne => draft.daphne(),
        ServerKind::Granian => draft.granian(),
        ServerKind::Waitress => draft.waitress(),
        ServerKind::Node => draft.node(),
        ServerKind::Puma => draft.puma(),
        ServerKind::Rails => draft.rails(place),
        ServerKind::Generic | ServerKind::Auto => draft.generic(found.hello, &spec.command),
    }
    draft.reloader_notes(server);
    draft.finish(spec, server, found.hello)
}

/// Shorter than any server's habit we know of.
const UNKNOWN_IDLE: Duration = Duration::from_millis(1500);

/// Which placeholders a command holds.
#[derive(Debug, Clone, Copy)]
struct Placeholders {
    socket: bool,
    port: bool,
}

impl Placeholders {
    fn of(command: &[String]) -> Self {
        let holds = |what: &str| command.iter().any(|word| word.contains(what));
        Self { socket: holds("{socket}"), port: holds("{port}") }
    }

    fn tell_address(self) -> bool {
        self.socket || self.port
    }
}

fn fill(command: &[String], place: &Place) -> Vec<String> {
    let socket = place.socket.display().to_string();
    let slot = place.slot.to_string();
    let fill = |word: &String| {
        word.replace("{socket}", &socket)
            .replace("{worker}", &slot)
            .replace("{app}", place.app.as_str())
            // Last: a port that is not chosen yet is shown as `{port}` itself.
            .replace("{port}", &place.port)
    };
    command.iter().map(fill).collect()
}

fn wire(server: ServerKind, hello: bool, wanted: Transport, placeholders: Placeholders) -> Wire {
    if placeholders.tell_address() {
        return match (wanted, placeholders.socket, placeholders.port) {
            (Transport::Tcp, _, true) | (_, false, true) => Wire::Tcp,
            (Transport::Auto | Transport::Unix | Transport::Tcp, _, _) => Wire::Unix,
        };
    }
    match (server, wanted) {
        (ServerKind::Fastapi | ServerKind::Rails, _) | (_, Transport::Tcp) => Wire::Tcp,
        (_, Transport::Unix) => Wire::Unix,
        (ServerKind::Node, Transport::Auto) => Wire::Tcp,
        (ServerKind::Generic | ServerKind::Auto, Transport::Auto) if !hello => Wire::Tcp,
        (
            ServerKind::Auto
            | ServerKind::Uvicorn
            | ServerKind::Gunicorn
            | ServerKind::Hypercorn
            | ServerKind::Daphne
            | ServerKind::Granian
            | ServerKind::Waitress
            | ServerKind::Puma
            | ServerKind::Generic,
            Transport::Auto,
        ) => Wire::Unix,
    }
}

/// A plan being made.
pub(super) struct Draft<'a> {
    /// The command tells the address itself by a placeholder.
    pub(super) told: bool,
    pub(super) wire: Wire,
    pub(super) command: Command,
    /// A shell runs a script, which may say more than the command shows.
    pub(super) scripted: bool,
    pub(super) socket: String,
    pub(super) port: String,
    /// What a server may take to stop, a little less than edge's patience, in seconds.
    pub(super) grace: u64,
    pub(super) user: &'a BTreeMap<String, String>,
    pub(super) set: BTreeMap<String, String>,
    pub(super) idle_timeout: Duration,
    pub(super) concurrency: Option<u32>,
    /// What may say how many requests it works on, and is not read.
    pub(super) unseen: Option<&'static str>,
    pub(super) notes: Vec<String>,
}

impl Draft<'_> {
    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.set.insert(name.to_owned(), value.into());
    }

    /// Takes options out of the command that would lead the server elsewhere, and says so.
    pub(super) fn replace(&mut self, names: &[&str]) {
        if self.told {
            return;
        }
        for (name, value) in self.command.take(names) {
            self.notes.push(format!("`{name} {value}` is replaced: edge says where a worker listens"));
        }
    }

    /// Idle time by the keep-alive seconds the command insists on, or those edge sets.
    pub(super) fn keep_alive(&mut self, names: &[&str]) {
        self.idle_timeout = match self.command.number(names) {
            Some(seconds) => Duration::from_secs(seconds.saturating_sub(1)).min(RAISED_IDLE),
            None => RAISED_IDLE,
        };
    }

    fn edge(&mut self, place: &Place) {
        self.set("EDGE_APP", place.app.as_str());
        self.set("EDGE_WORKER", place.slot.to_string());
        match self.wire {
            Wire::Unix => self.set("EDGE_SOCKET", self.socket.clone()),
            Wire::Tcp => self.set("PORT", self.port.clone()),
        }
        self.set("WEB_CONCURRENCY", "1");
        self.set("PYTHONUNBUFFERED", "1");
        // What hangs is aborted, and then Python says where it was.
        self.set("PYTHONFAULTHANDLER", "1");
    }

    pub(super) fn address(&mut self, name: &str, value: impl Into<String>) {
        if !self.told {
            self.set(name, value);
        }
    }

    fn transport_notes(&mut self, server: ServerKind, wanted: Transport) {
        match (server, wanted, self.wire) {
            (ServerKind::Fastapi | ServerKind::Rails, Transport::Unix, Wire::Tcp) if !self.told => {
                let command = if server == ServerKind::Rails { "rails server" } else { "fastapi run" };
                self.notes
                    .push(format!("`{command}` cannot listen on a unix socket: a loopback port is used"));
            }
            (_, Transport::Unix, Wire::Tcp) => {
                self.notes
                    .push("`transport: unix` needs `{socket}` in the command, which holds `{port}`".into());
            }
            (_, Transport::Tcp, Wire::Unix) => {
                self.notes
                    .push("`transport: tcp` needs `{port}` in the command, which holds `{socket}`".into());
            }
            (_, Transport::Auto | Transport::Unix | Transport::Tcp, Wire::Unix | Wire::Tcp) => {}
        }
    }

    fn shell_notes(&mut self, command: &[String]) {
        let names_it = |word: &String| word.contains("$PORT") || word.contains("${PORT");
        if script::of(command).is_none() && command.iter().any(names_it) {
            self.notes
                .push("`$PORT` is not replaced, because no shell runs the command: write `{port}`".into());
        }
    }

    fn deaf_note(&mut self, command: &[String]) {
        if let Some(name) = program::deaf_in_a_script(command) {
            self.notes.push(format!(
                "the script names `{name}`, which does not read `PORT`, and edge tells a script nothing else: set `server: {}`, \
                 or say in the script that it listens on `$PORT`",
                name.trim_end_matches("-serve")
            ));
        }
    }

    fn finish(mut self, spec: &WorkerSpec, server: ServerKind, hello: bool) -> Plan {
        let delegated = match server {
            ServerKind::Uvicorn
            | ServerKind::Fastapi
            | ServerKind::Gunicorn
            | ServerKind::Hypercorn
            | ServerKind::Granian
            | ServerKind::Puma => self.command.number(&["--workers", "-w"]),
            ServerKind::Auto
            | ServerKind::Daphne
            | ServerKind::Waitress
            | ServerKind::Node
            | ServerKind::Rails
            | ServerKind::Generic => None,
        };
        // Several such processes behind one address are no less so.
        let synchronous = self.concurrency.is_some();
        let delegated = delegated.filter(|count| *count > 1).and_then(|count| u32::try_from(count).ok());
        if let Some(each) = delegated {
            self.concurrency = None;
            let workers = spec.workers;
            if workers.max > 1 {
                let all = u64::from(each) * u64::from(workers.max);
                self.notes
                    .push(format!("each of {workers} workers starts {each} processes itself: {all} in all"));
            }
        }
        if let Some(unseen) = self.unseen.filter(|_| spec.concurrency.is_none() && delegated.is_none()) {
            self.notes.push(format!(
                "concurrency unknown: what {unseen} says is not read, so a worker gets any number of requests at once; set \
                 `concurrency` to 1 for a synchronous worker, to its threads for `gthread`, to 0 for an asynchronous one"
            ));
        }
        let unserving = deaf::warning(&spec.command, self.told).filter(|_| spec.server == ServerKind::Auto);
        let mut environment = spec.environment.clone();
        for (name, value) in self.set {
            if name != "GUNICORN_CMD_ARGS" && environment.get(&name).is_some_and(|user| *user != value) {
                self.notes.push(format!("`{name}` of the environment is replaced by edge's own value"));
            }
            environment.insert(name, value);
        }
        Plan {
            server,
            program: if hello { Program::Edge } else { Program::Named },
            argv: self.command.into_words(),
            environment,
            wire: self.wire,
            idle_timeout: self.idle_timeout,
            concurrency: spec.concurrency.or(self.concurrency).and_then(NonZeroU32::new),
            synchronous: synchronous || spec.concurrency == Some(1),
            delegated,
            notes: self.notes,
            warnings: background::told(&spec.command).or(unserving).into_iter().collect(),
        }
    }
}

#[cfg(test)]
#[path = "adapter_tests.rs"]
mod tests;
