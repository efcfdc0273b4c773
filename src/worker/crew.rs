//! The workers of one app as its supervisor holds them: what each is, and how each decision is carried out.
//!
//! Never waits: whatever takes time is a task that sends an [`Event`] when it is done.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::backoff::Backoff;
use crate::config::model::{App, WorkerSpec};
use crate::name::WorkerId;
use crate::report::Report;
use crate::scope::Scope;
use crate::telemetry::status::{AppState, AppStatus, WorkerState, WorkerStatus};
use crate::worker::adapter::{self, Wire};
use crate::worker::child::{Child, Exit};
use crate::worker::launch::{LaunchError, Order, Tools};
use crate::worker::lifecycle::{self, Action, Input, Patience, State, Why};
use crate::worker::member::Member;
use crate::worker::output::{self, Tail};
use crate::worker::probe::{NotReady, Question};
use crate::worker::rollout::{self, Policy, Rollout};
use crate::worker::slot::{Roster, Slot};
use crate::worker::usage;

/// What the tasks around a crew report, and what it is told.
#[derive(Debug)]
pub(super) enum Event {
    /// Something happened to a worker.
    Happened(WorkerId, Input),
    /// A probe said why a worker is not ready.
    Missed(WorkerId, NotReady),
    /// A worker's process ended.
    Exited(WorkerId, Exit),
    /// Nothing is left of a dead worker.
    Buried,
    /// A worker's memory was measured.
    Measured(WorkerId, u64),
    /// Retire everybody.
    Stop,
    /// Kill everybody.
    Abort,
    /// The moment of [`Crew::wake_at`] has come.
    Tick,
}

pub(super) struct Crew {
    app: Arc<App>,
    spec: WorkerSpec,
    roster: Arc<Roster>,
    tools: Tools,
    events: mpsc::UnboundedSender<Event>,
    tasks: Scope,
    wire: Wire,
    patience: Patience,
    rollout: Rollout,
    workers: BTreeMap<u32, Member>,
    past: BTreeMap<u32, Past>,
    /// Dead workers whose families are still being ended.
    burials: usize,
    was_ready: bool,
    stopping: bool,
}

/// What a slot remembers of its earlier workers.
#[derive(Debug, Default)]
struct Past {
    incarnations: u64,
    last_exit: Option<String>,
}

impl Crew {
    pub(super) fn new(
        app: Arc<App>,
        spec: WorkerSpec,
        roster: Arc<Roster>,
        tools: Tools,
        events: mpsc::UnboundedSender<Event>,
        tasks: Scope,
    ) -> Self {
        let backoff = Backoff { base: spec.restart.backoff, cap: spec.restart.max_backoff, jitter: JITTER };
        let policy = Policy { backoff, proven: PROVEN, served: SERVED, crash_loop: CRASH_LOOP };
        let patience = Patience {
            start: spec.start_timeout,
            drain: spec.drain_timeout,
            stop: spec.stop_grace_period,
            misses: MISSES,
        };
        // The wire follows from the command alone; this plan's address is never used.
        let wire = adapter::plan(&app.name, &spec, 0, std::path::Path::new("/")).wire;
        Self {
            app,
            spec,
            roster,
            tools,
            events,
            tasks,
            wire,
            patience,
            rollout: Rollout::new(policy),
            workers: BTreeMap::new(),
            past: BTreeMap::new(),
            burials: 0,
            was_ready: false,
            stopping: false,
        }
    }

    /// Launches the first workers.
    pub(super) fn begin(&mut self) {
        if !self.stopping {
            self.roll(rollout::Input::Want(self.spec.workers));
        }
    }

    /// Takes in one event and performs all that follows.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Happened(id, input) => self.feed(&id, input),
            Event::Missed(id, reason) => {
                if let Some(worker) = self.find(&id) {
                    tracing::debug!(app = %id.app, worker = id.slot, %reason, "not ready yet");
                    worker.missed = Some(reason);
                }
            }
            Event::Exited(id, exit) => {
                if let Some(worker) = self.find(&id) {
                    worker.exit = exit;
                }
                self.feed(&id, Input::Exited);
            }
            Event::Buried => self.burials = self.burials.saturating_sub(1),
            Event::Measured(id, bytes) => self.measured(&id, bytes),
            Event::Stop => {
                self.stopping = true;
                self.roll(rollout::Input::Want(0));
            }
            Event::Abort => {
                self.stopping = true;
                self.roll(rollout::Input::Want(0));
                self.feed_all(Input::Abort);
            }
            Event::Tick => {
                self.feed_all(Input::Tick);
                self.roll(rollout::Input::Tick);
            }
        }
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let lives = self.workers.values().filter_map(|worker| lifecycle::wake_at(&worker.state));
        lives.chain(self.rollout.wake_at()).min()
    }

    /// Whether it was told to stop and nothing is left.
    pub(super) fn is_gone(&self) -> bool {
        self.stopping && self.workers.is_empty() && self.burials == 0
    }

    /// The processes that run.
    pub(super) fn running(&self) -> Vec<(WorkerId, Rc<Child>)> {
        self.workers.values().map(|worker| (worker.id.clone(), Rc::clone(&worker.child))).collect()
    }

    /// Notes a worker's memory.
    pub(super) fn measured(&mut self, id: &WorkerId, bytes: u64) {
        if let Some(worker) = self.find(id) {
            worker.memory = bytes;
        }
    }

    /// The app as operators see it.
    pub(super) fn status(&self) -> AppStatus {
        let (ready, wanted) = (self.rollout.ready(), self.rollout.wanted());
        let state = match () {
            () if self.rollout.is_crash_loop() => AppState::Failed,
            () if ready > 0 && ready >= wanted => AppState::Up,
            () if ready > 0 => AppState::Degraded,
            () if self.was_ready => AppState::Down,
            () => AppState::Starting,
        };
        let slots = self.past.keys().filter(|slot| **slot < wanted || self.workers.contains_key(slot));
        let workers = slots.map(|slot| self.worker_status(*slot)).collect();
        AppStatus { state, generation: 1, queue: 0, workers }
    }

    fn worker_status(&self, slot: u32) -> WorkerStatus {
        let past = self.past.get(&slot);
        let restarts = past.map_or(0, |past| past.incarnations.saturating_sub(1));
        let last_exit = past.and_then(|past| past.last_exit.clone());
        let Some(worker) = self.workers.get(&slot) else {
            return WorkerStatus {
                slot,
                pid: None,
                state: WorkerState::Backoff,
                in_flight: 0,
                requests: 0,
                restarts,
                memory_bytes: 0,
                age_s: 0,
                address: String::new(),
                last_exit,
            };
        };
        worker.status(restarts, last_exit)
    }

    fn find(&mut self, id: &WorkerId) -> Option<&mut Member> {
        self.workers.get_mut(&id.slot).filter(|worker| worker.id == *id)
    }

    fn feed_all(&mut self, input: Input) {
        let ids: Vec<WorkerId> = self.workers.values().map(|worker| worker.id.clone()).collect();
        for id in ids {
            self.feed(&id, input);
        }
    }

    /// One input to one worker's life; what it decides is done.
    fn feed(&mut self, id: &WorkerId, input: Input) {
        let patience = self.patience;
        let Some(worker) = self.find(id) else { return };
        let (state, actions) = lifecycle::step(worker.state, now(), input, &patience);
        worker.state = state;
        for action in actions {
            match action {
                Action::Admit => self.admit(id.slot),
                Action::Withdraw => self.withdraw(id.slot),
                Action::ReportUnwell => {
                    tracing::warn!(app = %id.app, worker = id.slot, "a worker misses its health checks");
                }
                Action::Terminate => self.terminate(id.slot),
                Action::Kill => self.kill(id.slot),
                Action::Bury => self.bury(id.slot),
            }
        }
    }

    /// One input to the app's plan; what it decides is done, and what comes of that.
    fn roll(&mut self, input: rollout::Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let failed_before = self.rollout.is_crash_loop();
            let actions = self.rollout.step(now(), input, &mut self.tools.rng);
            if self.rollout.is_crash_loop() && !failed_before {
                tracing::error!(app = %self.app.name, "no worker becomes ready; trying again without end");
            }
            for action in actions {
                match action {
                    rollout::Action::Launch(slot) => {
                        if let Err(error) = self.launch(slot) {
                            let cause = Report(&error).to_string();
                            tracing::error!(app = %self.app.name, worker = slot, error = %cause, "cannot start a worker");
                            self.past.entry(slot).or_default().last_exit = Some(cause);
                            inputs.push_back(rollout::Input::Died(slot));
                        }
                    }
                    rollout::Action::Retire(slot) => {
                        if let Some(id) = self.workers.get(&slot).map(|worker| worker.id.clone()) {
                            self.feed(&id, Input::Retire);
                        }
                    }
                }
            }
        }
    }

    fn launch(&mut self, slot: u32) -> Result<(), LaunchError> {
        let past = self.past.entry(slot).or_default();
        past.incarnations += 1;
        let id = WorkerId { app: self.app.name.clone(), slot, incarnation: past.incarnations };
        let place = self.tools.launcher.place(&id, &self.spec.account, self.wire)?;
        let plan = adapter::plan_at(&self.spec, &place);
        let order = Order { id: &id, spec: &self.spec, plan: &plan, place: &place };
        let child = Rc::new(self.tools.launcher.launch(&order)?);
        let address = child.address(plan.wire);
        tracing::info!(app = %id.app, worker = slot, pid = child.pid(), %address, "worker started");
        let tail = Tail::default();
        let worker = Member {
            state: lifecycle::begin(now(), &self.patience),
            followers: self.follow(&id, &child, &tail),
            tasks: self.tasks.child(),
            child,
            address,
            idle_timeout: plan.idle_timeout,
            concurrency: plan.concurrency,
            slot: None,
            launched_at: now(),
            exit: Exit::Unknown,
            missed: None,
            memory: 0,
            tail,
            id,
        };
        self.watch(&worker);
        self.workers.insert(slot, worker);
        Ok(())
    }

    fn follow(&self, id: &WorkerId, child: &Child, tail: &Tail) -> Vec<JoinHandle<()>> {
        let Some((stdout, stderr)) = child.take_output() else { return Vec::new() };
        let streams = [(stdout, "stdout"), (stderr, "stderr")];
        let follow = |(pipe, stream)| {
            self.tasks.spawn(output::follow(pipe, id.clone(), child.pid(), stream, tail.clone()))
        };
        streams.into_iter().map(follow).collect()
    }

    fn watch(&self, worker: &Member) {
        let (id, child, events) = (worker.id.clone(), Rc::clone(&worker.child), self.events.clone());
        self.tasks.spawn(async move {
            let exit = child.exited().await;
            let _nobody_listens = events.send(Event::Exited(id, exit));
        });
        let question = Question::new(&self.app, self.spec.healthcheck_path.as_deref());
        let (id, address, events) = (worker.id.clone(), worker.address.clone(), self.events.clone());
        self.with_worker(worker, async move {
            let missed = |reason| {
                let _nobody_listens = events.send(Event::Missed(id.clone(), reason));
            };
            question.until_ready(&address, missed).await;
            let _nobody_listens = events.send(Event::Happened(id.clone(), Input::ProbePassed));
        });
    }

    /// Runs a task no longer than the worker lives.
    fn with_worker(&self, worker: &Member, task: impl Future<Output = ()> + 'static) {
        let scope = worker.tasks.clone();
        worker.tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = scope.aborted() => {}
            }
        });
    }

    fn admit(&mut self, at: u32) {
        let Some(worker) = self.workers.get_mut(&at) else { return };
        let (id, pid) = (worker.id.clone(), worker.child.pid());
        worker.slot =
            Some(Slot::new(id.clone(), pid, worker.address.clone(), worker.idle_timeout, worker.concurrency));
        worker.missed = None;
        let start_ms = worker.launched_at.elapsed().as_millis() as u64;
        tracing::info!(app = %id.app, worker = at, pid, start_ms, "worker ready");
        self.was_ready = true;
        self.publish();
        self.roll(rollout::Input::Ready(at));
        let Some(worker) = self.workers.get(&at) else { return };
        let (mark, events) = (worker.child.mark().to_owned(), self.events.clone());
        self.with_worker(worker, async move {
            let bytes = usage::memory(pid, mark).await;
            let _nobody_listens = events.send(Event::Measured(id, bytes));
        });
    }

    fn withdraw(&mut self, at: u32) {
        if let Some(slot) = self.workers.get(&at).and_then(|worker| worker.slot.as_ref()) {
            slot.close();
        }
        self.publish();
        let Some(worker) = self.workers.get(&at) else { return };
        if let (State::Draining { .. }, Some(slot)) = (worker.state, worker.slot.clone()) {
            let (id, events) = (worker.id.clone(), self.events.clone());
            tracing::info!(app = %id.app, worker = at, pid = slot.pid, in_flight = slot.in_flight(), "worker draining");
            self.with_worker(worker, async move {
                slot.emptied().await;
                let _nobody_listens = events.send(Event::Happened(id, Input::Idle));
            });
        }
    }

    fn publish(&self) {
        let slots = self.workers.values().filter_map(|worker| worker.slot.clone());
        self.roster.publish(slots.filter(|slot| slot.is_open()).collect());
    }

    fn terminate(&mut self, at: u32) {
        let Some(worker) = self.workers.get(&at) else { return };
        if let State::Stopping { why: Why::NeverReady, .. } = worker.state {
            let reason = worker.why_not_ready(self.wire);
            let (app, pid) = (&self.app.name, worker.child.pid());
            let seconds = self.spec.start_timeout.as_secs_f64();
            tracing::error!(%app, worker = at, pid, %reason, seconds, "worker was not ready in time");
            self.past.entry(at).or_default().last_exit = Some(format!("not ready in {seconds} s: {reason}"));
        }
        if let Some(slot) = &worker.slot {
            slot.end_streams();
        }
        worker.child.signal(self.spec.stop_signal);
    }

    fn kill(&mut self, at: u32) {
        let Some(worker) = self.workers.get(&at) else { return };
        tracing::warn!(app = %self.app.name, worker = at, pid = worker.child.pid(), "killing a worker and all it started");
        worker.child.kill();
    }

    fn bury(&mut self, at: u32) {
        let Some(worker) = self.workers.remove(&at) else { return };
        let State::Dead { why } = worker.state else { return };
        worker.tasks.abort();
        let past = self.past.entry(at).or_default();
        match why {
            Why::Retired => past.last_exit = Some(format!("{} after it was asked to stop", worker.exit)),
            // Said when its time was over; how it then ended says less.
            Why::NeverReady => {}
            Why::DiedStarting => past.last_exit = Some(format!("{} before it was ready", worker.exit)),
            Why::DiedServing => past.last_exit = Some(format!("{} while it served", worker.exit)),
        }
        self.burials += 1;
        let events = self.events.clone();
        self.tasks.spawn(async move {
            worker.bury(why).await;
            let _nobody_listens = events.send(Event::Buried);
        });
        self.roll(rollout::Input::Died(at));
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

const JITTER: f64 = 0.2;
/// Ready this long, earlier failures are forgotten.
const PROVEN: Duration = Duration::from_secs(60);
/// Ready this long, a death is answered at once.
const SERVED: Duration = Duration::from_secs(1);
/// Early deaths with nobody ready that make the app a failed one.
const CRASH_LOOP: u32 = 5;
/// Missed health checks in a row that are reported.
const MISSES: u32 = 3;
