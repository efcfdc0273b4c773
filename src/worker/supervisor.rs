//! Driver of one app's workers: feeds what happens to `lifecycle` and `rollout`, performs what they decide.
//!
//! Runs on the main thread, where workers must be spawned. It ends only when it is told to: workers go last, when nobody asks
//! them for anything any more, so a draining scope alone means nothing to it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::model::{App, Backend, WorkerCount, WorkerSpec};
use crate::name::WorkerId;
use crate::scope::Scope;
use crate::telemetry::status::AppStatus;
pub use crate::worker::change::RollError;
use crate::worker::change::{Reply, Wish};
use crate::worker::crew::{Crew, Event};
use crate::worker::launch::Tools;
use crate::worker::slot::{Roster, Slot};

/// One app's workers, kept running. Clones are handles to the same.
#[derive(Clone)]
pub struct Supervisor {
    crew: Rc<RefCell<Crew>>,
    events: mpsc::UnboundedSender<Event>,
    gone: CancellationToken,
}

/// Starts an app's workers and keeps them running. Those that are ready are published in `roster`. When `scope` aborts, all
/// are killed; when it drains, nothing happens: see [`Supervisor::stop`].
pub fn supervise(
    app: Arc<App>,
    spec: &WorkerSpec,
    roster: Arc<Roster>,
    tools: Tools,
    scope: &Scope,
) -> Supervisor {
    let (events, inbox) = mpsc::unbounded_channel();
    let crew = Crew::new(app, spec.clone(), roster, tools, events.clone(), scope.child());
    let crew = Rc::new(RefCell::new(crew));
    let gone = CancellationToken::new();
    let driver = drive(Rc::clone(&crew), inbox, scope.clone());
    // Also when the driver panics nobody waits for ever.
    let guard = gone.clone().drop_guard();
    scope.drive(async move {
        let _guard = guard;
        driver.await;
    });
    Supervisor { crew, events, gone }
}

/// The roster of an app whose servers edge does not run: one slot for each address, for ever. Empty for any other app.
pub fn fixed_roster(app: &App) -> Arc<Roster> {
    /// Below what common servers allow an idle connection.
    const IDLE: Duration = Duration::from_secs(4);
    let roster = Roster::new();
    match &app.backend {
        Backend::Upstream(addresses) => {
            let id = |slot| WorkerId { app: app.name.clone(), slot, incarnation: 1 };
            let slots = (0..).zip(addresses);
            roster.publish(
                slots
                    .map(|(slot, address)| Slot::new(id(slot), 0, address.clone(), app.protocol, IDLE, None))
                    .collect(),
            );
        }
        Backend::Workers(_) => {}
    }
    roster
}

impl Supervisor {
    /// The app and its workers now. The queue is not the supervisor's to know and reads 0; memory is as last measured.
    pub fn status(&self) -> AppStatus {
        self.crew.borrow().status()
    }

    /// Whether any of its workers takes requests.
    pub fn serves(&self) -> bool {
        self.crew.borrow().serves()
    }

    /// Whether what comes before its first worker is done.
    pub fn is_prepared(&self) -> bool {
        self.crew.borrow().rollout.is_prepared()
    }

    /// Whether memory has room for a successor beside the workers there are, as last measured.
    pub fn has_room(&self) -> bool {
        self.crew.borrow().has_room()
    }

    /// What is worth a word to those who wait for a change, from now on: who is not ready yet and why, and who was killed.
    pub fn remarks(&self) -> broadcast::Receiver<String> {
        self.crew.borrow().remarks.subscribe()
    }

    /// Measures the memory of every worker for [`Self::status`], away from the event loop.
    pub async fn measure(&self) {
        let running = self.crew.borrow().running();
        for (id, child) in running {
            let bytes = child.memory().await;
            self.crew.borrow_mut().measured(&id, bytes);
        }
    }

    /// Replaces every worker by one of this app and spec: one new worker is ready before an old one drains. Completes when all
    /// new workers serve and the old processes are gone. On an error the old ones serve on as before. A second roll waits for
    /// the first.
    pub async fn roll(&self, app: Arc<App>, spec: WorkerSpec) -> Result<(), RollError> {
        self.change(Wish::Roll(Box::new((app, spec)))).await
    }

    /// Runs what comes before the first worker of this app and spec, once earlier changes are done. Touches no worker:
    /// [`Self::take_over`] follows.
    pub async fn prepare(&self, app: Arc<App>, spec: WorkerSpec) -> Result<(), RollError> {
        self.change(Wish::Prepare(Box::new((app, spec)))).await
    }

    /// Like [`Self::roll`], where what comes before the first worker has been run.
    pub async fn take_over(&self, app: Arc<App>, spec: WorkerSpec) -> Result<(), RollError> {
        self.change(Wish::TakeOver(Box::new((app, spec)))).await
    }

    /// Replaces every worker by a fresh one of the same spec, like [`Self::roll`].
    pub async fn restart(&self) -> Result<(), RollError> {
        self.change(Wish::Restart).await
    }

    /// Holds the number of workers at this, at least 1, whatever the load; with `None`, the file and the load decide again.
    /// Completes when that many serve and those that are too many are gone. On an error the number stays changed and retries
    /// go on.
    pub async fn scale(&self, workers: Option<u32>) -> Result<(), RollError> {
        self.ask(|reply| Event::Scale(workers, reply)).await
    }

    /// Another number or range of workers from the file, as [`Self::scale`]. What is allowed by it stays as it is.
    pub async fn resize(&self, workers: WorkerCount) -> Result<(), RollError> {
        self.ask(|reply| Event::Resize(workers, reply)).await
    }

    async fn change(&self, wish: Wish) -> Result<(), RollError> {
        self.ask(|reply| Event::Change(wish, reply)).await
    }

    async fn ask(&self, event: impl FnOnce(Reply) -> Event) -> Result<(), RollError> {
        let (reply, answer) = oneshot::channel();
        // Dropped at once: where nobody takes it any more, the reply in it must go, or the answer would be awaited for ever.
        drop(self.events.send(event(reply)));
        answer.await.unwrap_or_else(|_| Err(RollError::stopping()))
    }

    /// Retires every worker: its slot is closed, its open requests finish, then it gets its stop signal, then it is killed.
    /// Completes when every process is reaped and every socket removed. May be called again, and abandoned.
    pub async fn stop(&self) {
        self.ask_to_stop();
        self.gone.cancelled().await;
    }

    /// As [`Self::stop`], for who does not wait for it now.
    pub fn ask_to_stop(&self) {
        let _ended_already = self.events.send(Event::Stop);
    }

    /// Whether it was told to stop and has done so.
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Whether both are handles to the same.
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.crew, &other.crew)
    }

    /// Kills every worker, open requests or not; completes like [`Self::stop`].
    pub async fn kill_now(&self) {
        let _ended_already = self.events.send(Event::Abort);
        self.gone.cancelled().await;
    }
}

async fn drive(crew: Rc<RefCell<Crew>>, mut inbox: mpsc::UnboundedReceiver<Event>, scope: Scope) {
    crew.borrow_mut().begin();
    let mut aborting = false;
    loop {
        let wake_at = {
            let crew = crew.borrow();
            if crew.is_gone() {
                break;
            }
            crew.wake_at()
        };
        // Every arm is cancel-safe: a channel, a timer, a token.
        tokio::select! {
            event = inbox.recv() => match event {
                Some(event) => crew.borrow_mut().handle(event),
                // Cannot be: the crew itself holds a sender.
                None => break,
            },
            () = sleep_until(wake_at) => crew.borrow_mut().handle(Event::Tick),
            () = scope.aborted(), if !aborting => {
                aborting = true;
                crew.borrow_mut().handle(Event::Abort);
            }
        }
    }
}

async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "supervisor_tests.rs"]
mod tests;
