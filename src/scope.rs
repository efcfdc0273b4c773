//! Ownership of tasks: the only place that spawns. A scope ends in two steps, drain and abort, and waits for completion.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Owns tasks. Clones are handles to the same scope and may be sent to other threads: a task runs on the thread that
/// spawned it, which must be inside a `tokio::task::LocalSet`.
///
/// `drain` says "finish what you have, take nothing new"; `abort` says "end now". Tasks watch the tokens they care about.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    drain: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Scope {
    /// A scope of its own, above which nothing stands.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope below this one: it drains and aborts when this one does, or earlier by itself.
    pub fn child(&self) -> Self {
        Self { drain: self.drain.child_token(), abort: self.abort.child_token(), tasks: TaskTracker::new() }
    }

    /// Runs `task` to its end on this thread. The scope waits for it; a panic ends it alone, and is logged by the
    /// process's panic hook.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        self.tasks.spawn_local(task)
    }

    /// Asks every task to finish what it has. Idempotent.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Asks every task to end now. Idempotent; implies drain.
    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Whether [`Self::drain`] was called here or above.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether [`Self::abort`] was called here or above.
    pub fn is_aborting(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Completes at drain. Cancel-safe.
    pub async fn drained(&self) {
        self.drain.cancelled().await;
    }

    /// Completes at abort. Cancel-safe.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Number of tasks that have not ended.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Drains, waits up to `grace` for every task, then aborts and waits for the rest. Returns whether the drain sufficed.
    pub async fn close(&self, grace: Duration) -> bool {
        self.drain();
        self.tasks.close();
        let drained = tokio::select! {
            () = self.tasks.wait() => true,
            () = self.abort.cancelled() => false,
            () = tokio::time::sleep(grace) => false,
        };
        if !drained {
            self.abort();
            self.tasks.wait().await;
        }
        drained
    }
}
