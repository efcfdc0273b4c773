//! One worker as its crew holds it: its process, its slot, its last words.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::config::model::{Address, ServerKind};
use crate::name::WorkerId;
use crate::scope::Scope;
use crate::telemetry::status::{PastStatus, WorkerState, WorkerStatus};
use crate::worker::adapter::Wire;
use crate::worker::background;
use crate::worker::child::{Child, Exit};
use crate::worker::last_words;
use crate::worker::lifecycle::{State, Why};
use crate::worker::output::{self, Tail};
use crate::worker::past::Count;
use crate::worker::probe::NotReady;
use crate::worker::setup::Setup;
use crate::worker::slot::Slot;
use crate::worker::usage;

/// One worker of a crew, from spawn to burial.
pub(super) struct Member {
    pub(super) id: WorkerId,
    /// Which one it is in its slot, by kinds.
    pub(super) count: Count,
    pub(super) state: State,
    pub(super) child: Rc<Child>,
    pub(super) address: Address,
    pub(super) idle_timeout: Duration,
    pub(super) concurrency: Option<NonZeroU32>,
    pub(super) slot: Option<Arc<Slot>>,
    pub(super) launched_at: Instant,
    /// When that was, in seconds since 1970.
    pub(super) started: u64,
    pub(super) exit: Exit,
    pub(super) missed: Option<NotReady>,
    /// Where it listened when that was last looked at, because nobody listened where edge asks.
    pub(super) elsewhere: Vec<SocketAddr>,
    /// Why it is not ready though that was expected, or what its last health check said.
    pub(super) trouble: Option<String>,
    /// It failed its health checks and is to go.
    pub(super) unwell: bool,
    pub(super) memory: u64,
    /// Processes that had been ended for lack of memory when it was launched.
    pub(super) oom_before: u64,
    pub(super) tail: Tail,
    pub(super) followers: Vec<JoinHandle<()>>,
    /// Tasks that end with the worker.
    pub(super) tasks: Scope,
    pub(super) setup: Rc<Setup>,
}

impl Member {
    /// The worker as operators see it.
    pub(super) fn status(&self, past: PastStatus) -> WorkerStatus {
        let state = match self.state {
            State::Starting { .. } => WorkerState::Starting,
            State::Serving { .. } => WorkerState::Ready,
            State::Suspect { .. } => WorkerState::Suspect,
            State::Draining { .. } => WorkerState::Draining,
            State::Aborting { .. } | State::Stopping { .. } | State::Killing { .. } | State::Dead { .. } => {
                WorkerState::Stopping
            }
        };
        WorkerStatus {
            slot: self.id.slot,
            pid: Some(self.child.pid()),
            state,
            in_flight: self.slot.as_ref().map_or(0, |slot| slot.in_flight()),
            requests: self.slot.as_ref().map_or(0, |slot| slot.requests()),
            memory_bytes: self.memory,
            memory_limit_bytes: self.child.memory_limit(),
            age_s: self.launched_at.elapsed().as_secs(),
            started: Some(self.started),
            address: self.address.to_string(),
            trouble: self.told_trouble(),
            past,
        }
    }

    fn told_trouble(&self) -> Option<String> {
        let trouble = self.trouble.as_ref()?;
        match self.state {
            State::Starting { .. } => Some(format!("not ready yet: {trouble}")),
            State::Serving { misses: 0 } => None,
            State::Serving { misses: 1 } => Some(format!("failed its last health check: {trouble}")),
            State::Serving { misses } => Some(format!("failed its last {misses} health checks: {trouble}")),
            State::Suspect { .. }
            | State::Aborting { .. }
            | State::Draining { .. }
            | State::Stopping { .. }
            | State::Killing { .. }
            | State::Dead { .. } => None,
        }
    }

    /// What keeps it from being ready, and whether that may well pass by itself: it only does not listen yet.
    pub(super) fn why_not_ready_yet(&self) -> (String, bool) {
        match self.missed {
            None => (format!("{} yet", self.why_not_ready()), true),
            Some(NotReady::Unreachable { .. }) => (self.why_not_ready(), self.elsewhere().is_empty()),
            Some(
                NotReady::Silent { .. }
                | NotReady::NotHttp { .. }
                | NotReady::NotHttp2 { .. }
                | NotReady::Status { .. },
            ) => (self.why_not_ready(), false),
        }
    }

    /// What kept it from being ready, and where it listens instead if it does.
    pub(super) fn why_not_ready(&self) -> String {
        let path = self.setup.spec.healthcheck_path.as_deref().unwrap_or("/");
        let unanswered = || format!("no answer to GET {path}");
        let reason = self.missed.as_ref().map_or_else(unanswered, NotReady::to_string);
        let elsewhere = self.elsewhere();
        if elsewhere.is_empty() {
            return reason;
        }
        let is_own = |port: u16| matches!(self.address, Address::Tcp(own) if own.port() == port);
        let hint = match (self.setup.server, self.setup.wire) {
            (_, Wire::Tcp) if elsewhere.iter().any(|address| is_own(address.port())) => {
                "let it listen on 127.0.0.1, too"
            }
            (ServerKind::Node, _) => "let it listen on process.env.PORT",
            (_, Wire::Tcp) => "give it {port} (`--port {port}`, or as it takes one) in its command",
            (_, Wire::Unix) => "give it {socket} or {port} in its command",
        };
        let elsewhere: Vec<String> = elsewhere.iter().map(ToString::to_string).collect();
        format!("{reason}; it listens on {}: {hint}", elsewhere.join(", "))
    }

    /// Where it listens though nobody listens where edge asks.
    fn elsewhere(&self) -> &[SocketAddr] {
        match self.missed {
            Some(NotReady::Unreachable { .. }) => &self.elsewhere,
            Some(
                NotReady::Silent { .. }
                | NotReady::NotHttp { .. }
                | NotReady::NotHttp2 { .. }
                | NotReady::Status { .. },
            )
            | None => &[],
        }
    }

    /// How it ended, in words. Where its control group cannot tell, somebody else's SIGKILL is the kernel's if memory ran out
    /// in its time.
    pub(super) fn ending(&self) -> String {
        let killed = self.exit == Exit::Signal(nix::libc::SIGKILL);
        if killed && self.child.is_uncounted() && usage::out_of_memory_kills() > self.oom_before {
            return format!("{} (the kernel ended processes for lack of memory)", self.exit);
        }
        self.exit.to_string()
    }

    /// What it did wrong where it ended as if all were well before it was ready.
    pub(super) fn left(&self) -> String {
        if self.exit != Exit::Code(0) {
            return String::new();
        }
        let background = background::told(&self.setup.spec.command);
        let sentence = background.unwrap_or_else(|| {
            "it ended with success: does it go to the background, or is it not a server?".to_owned()
        });
        format!(": {sentence}")
    }

    /// Runs a task no longer than the worker lives.
    pub(super) fn alongside(&self, task: impl Future<Output = ()> + 'static) {
        let scope = self.tasks.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = scope.aborted() => {}
            }
        });
    }

    /// Ends what it left, and says how it ended once its last words are in: these.
    pub(super) async fn bury(self, why: Why) -> Vec<String> {
        let exit = match why {
            Why::DiedStarting | Why::DiedServing => self.ending(),
            Why::Retired | Why::NeverReady | Why::Hung => self.exit.to_string(),
        };
        self.child.bury().await;
        for mut follower in self.followers {
            // Only a process that escaped holds a pipe open now.
            if tokio::time::timeout(LAST_WORDS, &mut follower).await.is_err() {
                follower.abort();
            }
        }
        let (app, worker, pid) = (&self.id.app, self.id.slot, self.child.pid());
        let age_s = self.launched_at.elapsed().as_secs();
        let lines = self.tail.last(output::REPORTED);
        let last = |count: usize| lines[lines.len().saturating_sub(count)..].join("\n");
        match why {
            Why::Retired => tracing::info!(%app, worker, pid, %exit, age_s, "worker stopped"),
            Why::Hung => {
                let last_lines = last(output::REPORTED);
                tracing::error!(%app, worker, pid, %exit, age_s, last_lines, "worker that hung was ended");
            }
            Why::DiedServing => {
                let last_lines = last_words::with_cause(&lines, LAST_OF_SERVING).join("\n");
                tracing::error!(%app, worker, pid, %exit, age_s, last_lines, "worker died while it served");
            }
            // Status 0 too: a server that ends before it serves has failed, whatever it says.
            Why::NeverReady | Why::DiedStarting => {
                let last_lines = last(output::REPORTED);
                tracing::error!(%app, worker, pid, %exit, age_s, last_lines, "worker ended before it was ready");
            }
        }
        lines
    }
}

/// How long a dead worker's pipes may stay open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Lines of output in the report of the death of one that served, if what says most is among them: most of what it wrote says
/// nothing of its end.
const LAST_OF_SERVING: usize = 5;
