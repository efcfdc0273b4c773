//! One worker as its crew holds it: its process, its slot, its last words.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::config::model::Address;
use crate::name::WorkerId;
use crate::scope::Scope;
use crate::telemetry::status::{WorkerState, WorkerStatus};
use crate::worker::adapter::Wire;
use crate::worker::child::{Child, Exit};
use crate::worker::lifecycle::{State, Why};
use crate::worker::listening;
use crate::worker::output::Tail;
use crate::worker::probe::NotReady;
use crate::worker::slot::Slot;

/// One worker of a crew, from spawn to burial.
pub(super) struct Member {
    pub(super) id: WorkerId,
    pub(super) state: State,
    pub(super) child: Rc<Child>,
    pub(super) address: Address,
    pub(super) idle_timeout: Duration,
    pub(super) concurrency: Option<NonZeroU32>,
    pub(super) slot: Option<Arc<Slot>>,
    pub(super) launched_at: Instant,
    pub(super) exit: Exit,
    pub(super) missed: Option<NotReady>,
    pub(super) memory: u64,
    pub(super) tail: Tail,
    pub(super) followers: Vec<JoinHandle<()>>,
    /// Tasks that end with the worker.
    pub(super) tasks: Scope,
}

impl Member {
    /// The worker as operators see it.
    pub(super) fn status(&self, restarts: u64, last_exit: Option<String>) -> WorkerStatus {
        let state = match self.state {
            State::Starting { .. } => WorkerState::Starting,
            State::Serving { .. } => WorkerState::Ready,
            State::Draining { .. } => WorkerState::Draining,
            State::Stopping { .. } | State::Killing { .. } | State::Dead { .. } => WorkerState::Stopping,
        };
        WorkerStatus {
            slot: self.id.slot,
            pid: Some(self.child.pid()),
            state,
            in_flight: self.slot.as_ref().map_or(0, |slot| slot.in_flight()),
            requests: self.slot.as_ref().map_or(0, |slot| slot.requests()),
            restarts,
            memory_bytes: self.memory,
            age_s: self.launched_at.elapsed().as_secs(),
            address: self.address.to_string(),
            last_exit,
        }
    }

    /// What kept it from being ready, and where it listens instead if it does.
    pub(super) fn why_not_ready(&self, wire: Wire) -> String {
        let reason =
            self.missed.as_ref().map_or_else(|| "it was never asked".to_owned(), NotReady::to_string);
        let elsewhere: Vec<String> = match self.missed {
            Some(NotReady::Unreachable { .. }) => {
                listening::addresses(&self.child.family()).iter().map(ToString::to_string).collect()
            }
            Some(NotReady::Silent { .. } | NotReady::NotHttp { .. } | NotReady::Status { .. }) | None => {
                Vec::new()
            }
        };
        if elsewhere.is_empty() {
            return reason;
        }
        let hint = match wire {
            Wire::Tcp => "--port {port}",
            Wire::Unix => "{socket}, or {port}",
        };
        format!("{reason}; it listens on {}: add {hint} to its command", elsewhere.join(", "))
    }

    /// Ends what it left, and says how it ended once its last words are in.
    pub(super) async fn bury(self, why: Why) {
        self.child.bury().await;
        for mut follower in self.followers {
            // Only a process that escaped holds a pipe open now.
            if tokio::time::timeout(LAST_WORDS, &mut follower).await.is_err() {
                follower.abort();
            }
        }
        let (app, worker, pid, exit) = (&self.id.app, self.id.slot, self.child.pid(), self.exit);
        let age_s = self.launched_at.elapsed().as_secs();
        let lines = self.tail.lines();
        let last_lines = lines[lines.len().saturating_sub(REPORTED)..].join("\n");
        match why {
            Why::Retired => tracing::info!(%app, worker, pid, %exit, age_s, "worker stopped"),
            Why::DiedServing => {
                tracing::error!(%app, worker, pid, %exit, age_s, "worker died while it served");
            }
            // Status 0 too: a server that ends before it serves has failed, whatever it says.
            Why::NeverReady | Why::DiedStarting => {
                tracing::error!(%app, worker, pid, %exit, age_s, last_lines, "worker ended before it was ready");
            }
        }
    }
}

/// How long a dead worker's pipes may stay open.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Lines of output in the report of a death.
const REPORTED: usize = 20;
