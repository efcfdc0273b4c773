//! What the workers of one generation are run by.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::complaint::Reason;
use crate::config::model::{App, ServerKind, WorkerSpec};
use crate::worker::adapter::{self, Plan, Wire};
use crate::worker::answering::Look;
use crate::worker::lifecycle::Patience;
use crate::worker::probe::Question;
use crate::worker::watchdog::{self, Watch};

/// One generation's app and settings.
pub(super) struct Setup {
    pub(super) app: Arc<App>,
    pub(super) spec: WorkerSpec,
    pub(super) server: ServerKind,
    pub(super) wire: Wire,
    /// Its program and environment; the address in it is nobody's.
    pub(super) plan: Plan,
    /// At the files its workers are started from.
    pub(super) look: Look,
    pub(super) patience: Patience,
    pub(super) watch: Watch,
    /// Whether a worker of it was looked at for where it listens.
    pub(super) located: Cell<bool>,
    /// Why no worker of it could be started.
    pub(super) not_started: Reason,
    /// Whether what comes before its first worker has been run.
    pub(super) prepared: bool,
}

/// A worker that is to be started once its files have answered.
pub(super) struct Launching {
    pub(super) setup: Rc<Setup>,
    pub(super) generation: u64,
    /// What has not answered for a while.
    pub(super) waits_for: Option<String>,
}

impl Setup {
    pub(super) fn new(app: Arc<App>, spec: WorkerSpec) -> Self {
        let patience = Patience {
            start: spec.start_timeout,
            drain: spec.drain_timeout,
            stop: spec.stop_grace_period,
            hang: hang(&spec),
            abort: ABORT,
            kill: KILL,
            misses: spec.healthcheck.retries,
        };
        // The wire follows from the command alone; this plan's address is never used.
        let plan = adapter::plan(&app.name, &spec, 0, Path::new("/"));
        let (server, wire, watch) = (plan.server, plan.wire, Watch::of(&plan));
        Self {
            app,
            spec,
            server,
            wire,
            plan,
            look: Look::default(),
            patience,
            watch,
            located: Cell::new(false),
            not_started: Reason::default(),
            prepared: false,
        }
    }

    /// What a worker is asked for readiness.
    pub(super) fn question(&self) -> Question {
        Question::new(&self.app, self.spec.healthcheck_path.as_deref())
    }
}

/// From being found stuck to being aborted.
fn hang(spec: &WorkerSpec) -> Option<Duration> {
    (!spec.hang_timeout.is_zero()).then(|| spec.hang_timeout.saturating_sub(watchdog::UNREAD))
}

/// How long a worker may take to print where it hangs.
const ABORT: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a worker that is killed: it gives back all of its memory, and one that waits for a disk or
/// a file server which does not answer never ends.
pub(super) const KILL: Duration = Duration::from_secs(10);
