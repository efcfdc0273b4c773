//! Ownership of tasks: the only place that spawns. A scope ends in two steps, drain and abort, and waits for completion.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Owns tasks. Clones are handles to the same scope and may be sent to other threads: a task runs on the thread that
/// spawned it, which must be inside a `tokio::task::LocalSet`.
///
/// `drain` says "finish what you have, take nothing new"; `abort` says "end now". Tasks watch the tokens they care about.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    drain: CancellationToken,
    abort: CancellationToken,
    /// One for the whole tree: whoever runs it hears of a driver's end wherever that was.
    broken: CancellationToken,
    tasks: TaskTracker,
}

/// Work of a scope that is done by a task of another.
#[derive(Debug)]
pub struct Held {
    _token: TaskTrackerToken,
}

impl Scope {
    /// A scope of its own, above which nothing stands.
    pub fn new() -> Self {
        Self::default()
    }

    /// A scope below this one: it drains and aborts when this one does, or earlier by itself.
    pub fn child(&self) -> Self {
        Self {
            drain: self.drain.child_token(),
            abort: self.abort.child_token(),
            broken: self.broken.clone(),
            tasks: TaskTracker::new(),
        }
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

    /// The scope waits until what this returns is dropped, as for a task.
    pub fn hold(&self) -> Held {
        Held { _token: self.tasks.token() }
    }

    /// As [`Self::spawn`], for a task without which the rest is worth nothing: its panic is told by [`Self::broken`].
    pub fn drive<F>(&self, driver: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let broken = Broken(self.broken.clone());
        self.spawn(async move {
            let _broken = broken;
            driver.await
        })
    }

    /// Completes once a driver has panicked, in this scope's tree from its top down. Cancel-safe.
    pub async fn broken(&self) {
        self.broken.cancelled().await;
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

/// Dropped by a panic, it says so. The runtime catches the panic after it has dropped the task.
struct Broken(CancellationToken);

impl Drop for Broken {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn a_driver_that_panics_is_heard_of_at_the_top_and_a_task_that_panics_is_not() {
        LocalSet::new()
            .run_until(async {
                let top = Scope::new();
                let below = top.child().child();
                assert!(below.spawn(async { panic!("one of many") }).await.is_err());
                assert!(below.drive(async { 7 }).await.is_ok_and(|seven| seven == 7));
                let ended = below.drive(std::future::pending::<()>());
                ended.abort();
                assert!(ended.await.is_err_and(|error| error.is_cancelled()));
                assert!(futures_util::poll!(Box::pin(top.broken())).is_pending());
                assert!(below.drive(async { panic!("the one") }).await.is_err());
                top.broken().await;
                assert!(top.close(Duration::from_secs(5)).await);
            })
            .await;
    }
}
