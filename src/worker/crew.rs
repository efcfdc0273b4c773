//! The workers of one app as its supervisor holds them: what each is, and who hears of what happens.
//!
//! Never waits: whatever takes time is a task that sends an [`Event`] when it is done. How each decision is carried out
//! stands in `staffing`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc};

use crate::backoff::Backoff;
use crate::config::model::{App, WorkerCount, WorkerSpec};
use crate::name::WorkerId;
use crate::scope::Scope;
use crate::telemetry::status::{AppState, AppStatus, WorkerState, WorkerStatus};
use crate::worker::change::{Changes, Reply, RollError, Wish};
use crate::worker::child::{Child, Exit};
use crate::worker::headcount::Headcount;
use crate::worker::launch::{LaunchError, Tools};
use crate::worker::lifecycle::{self, Action, Input, State};
use crate::worker::member::Member;
use crate::worker::past::{Past, Rejected};
use crate::worker::probe::NotReady;
use crate::worker::rollout::{self, Policy, Rollout, Seat};
use crate::worker::setup::{Launching, Setup};
use crate::worker::slot::Roster;
use crate::worker::usage;

/// What the tasks around a crew report, and what it is told.
#[derive(Debug)]
pub(super) enum Event {
    /// The files that a worker is started from have not answered for a while: these.
    Silent(Seat, String),
    /// They have answered, or are not waited for any longer.
    Answered(Seat, Result<(), LaunchError>),
    /// Something happened to a worker.
    Happened(WorkerId, Input),
    /// A probe said why a worker is not ready.
    Missed(WorkerId, NotReady),
    /// A worker still is not ready, some time later, and listens there if not where edge asks; none where it has begun to
    /// listen where it is asked since it was asked last.
    Slow(WorkerId, Option<Vec<SocketAddr>>),
    /// A worker was asked for its health, and what is the matter with it.
    Checked(WorkerId, Option<String>),
    /// A worker's process ended.
    Exited(WorkerId, Exit),
    /// Nothing is left of a dead worker; these were its last lines.
    Buried(Seat, Vec<String>),
    /// A worker's memory was measured.
    Measured(WorkerId, u64),
    /// A worker that serves has reached a limit.
    Due(WorkerId, String),
    /// What comes before the first worker of a generation has ended.
    Prepared(u64, Result<(), RollError>),
    /// The same where nobody is to be started yet.
    Rehearsed(u64, Result<(), RollError>),
    /// Change what runs, when its turn comes.
    Change(Wish, Reply),
    /// That many workers from now on, or as many as the file and the load say.
    Scale(Option<u32>, Reply),
    /// The file says another number of workers.
    Resize(WorkerCount, Reply),
    /// Retire everybody.
    Stop,
    /// Kill everybody.
    Abort,
    /// The moment of [`Crew::wake_at`] has come.
    Tick,
}

pub(super) struct Crew {
    pub(super) roster: Arc<Roster>,
    pub(super) tools: Tools,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) tasks: Scope,
    pub(super) rollout: Rollout,
    pub(super) headcount: Headcount,
    /// By generation; those that no worker is of any more are forgotten.
    pub(super) setups: BTreeMap<u64, Rc<Setup>>,
    pub(super) workers: BTreeMap<Seat, Member>,
    pub(super) launching: BTreeMap<Seat, Launching>,
    pub(super) past: BTreeMap<u32, Past>,
    /// How many have ended, by reason.
    pub(super) exits: BTreeMap<&'static str, u64>,
    /// Dead workers whose families are still being ended.
    pub(super) burials: BTreeSet<Seat>,
    /// The generation that is being prepared, and what ends that. Never two: what runs for one must not meet the other's.
    pub(super) preparing: BTreeMap<u64, Scope>,
    pub(super) changes: Changes,
    /// What is said to those who wait for a change.
    pub(super) remarks: broadcast::Sender<String>,
    /// Why the last new generation did not take over, if none has since.
    pub(super) rejected: Option<Rejected>,
    pub(super) was_ready: bool,
    pub(super) stopping: bool,
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
        let policy = Policy {
            backoff: backoff(&spec),
            proven: PROVEN,
            served: SERVED,
            crash_loop: CRASH_LOOP,
            overlap: OVERLAP,
        };
        Self {
            headcount: Headcount::new(spec.workers, now()),
            roster,
            tools,
            events,
            tasks,
            rollout: Rollout::new(policy, now()),
            setups: BTreeMap::from([(FIRST, Rc::new(Setup::new(app, spec)))]),
            workers: BTreeMap::new(),
            launching: BTreeMap::new(),
            past: BTreeMap::new(),
            exits: BTreeMap::new(),
            burials: BTreeSet::new(),
            preparing: BTreeMap::new(),
            changes: Changes::default(),
            remarks: broadcast::Sender::new(UNREAD_REMARKS),
            rejected: None,
            was_ready: false,
            stopping: false,
        }
    }

    /// Launches the first workers.
    pub(super) fn begin(&mut self) {
        if !self.stopping {
            self.roll(rollout::Input::Want(self.headcount.first()));
        }
    }

    /// Takes in one event and performs all that follows.
    pub(super) fn handle(&mut self, event: Event) {
        match event {
            Event::Silent(at, what) => self.silent(at, what),
            Event::Answered(at, answered) => self.answered(at, answered),
            Event::Happened(id, input) => self.feed(&id, input),
            Event::Missed(id, reason) => {
                if let Some(worker) = self.find(&id) {
                    tracing::debug!(app = %id.app, worker = id.slot, %reason, "not ready yet");
                    worker.missed = Some(reason);
                }
            }
            Event::Slow(id, elsewhere) => self.slow(&id, elsewhere),
            Event::Checked(id, trouble) => self.checked(&id, trouble),
            Event::Exited(id, exit) => {
                if let Some(worker) = self.find(&id) {
                    worker.exit = exit;
                }
                self.feed(&id, Input::Exited);
            }
            Event::Buried(seat, last_lines) => {
                self.burials.remove(&seat);
                self.last_words(seat, &last_lines);
                self.changes.buried(seat, last_lines);
            }
            Event::Measured(id, bytes) => self.measured(&id, bytes),
            Event::Due(id, reason) => {
                tracing::info!(app = %id.app, worker = id.slot, reason, "worker is to be replaced");
                self.roll(rollout::Input::Recycle(seat(&id)));
            }
            Event::Prepared(generation, outcome) => self.prepared(generation, outcome),
            Event::Rehearsed(generation, outcome) => self.rehearsed(generation, outcome),
            Event::Change(wish, reply) => self.changes.ask(wish, reply),
            Event::Scale(workers, reply) => self.changes.holding.push((workers, reply)),
            Event::Resize(workers, reply) => self.resize(workers, reply),
            Event::Stop => self.stop(),
            Event::Abort => {
                self.stop();
                self.preparing.values().for_each(Scope::abort);
                self.feed_all(Input::Abort);
            }
            Event::Tick => {
                self.feed_all(Input::Tick);
                self.roll(rollout::Input::Tick);
                self.look_at_load();
            }
        }
        let cleared = self.burials.is_empty();
        if cleared {
            self.changes.cleared();
        }
        self.begin_change();
        self.hold_in_turn();
        if cleared && self.rollout.is_settled() {
            self.changes.settled();
        }
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let lives = self.workers.values().filter_map(|worker| lifecycle::wake_at(&worker.state));
        let look = self.headcount.wake_at().filter(|_| !self.stopping);
        lives.chain(self.rollout.wake_at()).chain(look).min()
    }

    /// Whether it was told to stop and nothing is left.
    pub(super) fn is_gone(&self) -> bool {
        self.stopping && self.workers.is_empty() && self.burials.is_empty() && self.preparing.is_empty()
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
        let suspect =
            |worker: &&Member| matches!(worker.state, State::Suspect { .. } | State::Aborting { .. });
        let suspects = self.workers.values().filter(suspect).count() as u32;
        let (ready, wanted) = (self.rollout.ready().saturating_sub(suspects), self.rollout.wanted());
        let state = match () {
            () if self.rollout.is_rolling() => AppState::Deploying,
            () if self.was_ready && !self.preparing.is_empty() => AppState::Deploying,
            () if self.rollout.is_crash_loop() => AppState::Failed,
            () if ready > 0 && ready >= self.headcount.needed(wanted) => AppState::Up,
            () if ready > 0 => AppState::Degraded,
            () if self.was_ready => AppState::Down,
            () => AppState::Starting,
        };
        let mut workers: Vec<_> =
            self.workers.iter().map(|(seat, worker)| self.worker(*seat, worker)).collect();
        let vacant = |slot: &u32| *slot < wanted && self.workers.keys().all(|seat| seat.slot != *slot);
        let slots: BTreeSet<u32> =
            self.past.keys().copied().chain(self.launching.keys().map(|seat| seat.slot)).collect();
        workers.extend(slots.into_iter().filter(vacant).map(|slot| self.vacancy(slot)));
        workers.sort_by_key(|worker| worker.slot);
        let scale = Some(self.headcount.status(wanted));
        let (failed_deploy, failed_deploy_at) = self.rejected.as_ref().map(Rejected::told).unzip();
        AppStatus {
            state,
            generation: self.rollout.generation_number(),
            queue: 0,
            scale,
            workers,
            worker_exits: self.exits.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            failed_deploy,
            failed_deploy_at: failed_deploy_at.flatten(),
        }
    }

    fn worker(&self, seat: Seat, worker: &Member) -> WorkerStatus {
        let past = self.past.get(&seat.slot).map(|past| past.status(Some(worker.count)));
        worker.status(past.unwrap_or_default())
    }

    fn vacancy(&self, slot: u32) -> WorkerStatus {
        let launching = self.launching.iter().find(|(seat, _)| seat.slot == slot).map(|(_, one)| one);
        let waits_for = launching.and_then(|launching| launching.waits_for.as_ref());
        WorkerStatus {
            slot,
            pid: None,
            state: if launching.is_some() { WorkerState::Starting } else { WorkerState::Backoff },
            in_flight: 0,
            requests: 0,
            memory_bytes: 0,
            memory_limit_bytes: None,
            age_s: 0,
            started: None,
            address: String::new(),
            trouble: waits_for.map(|what| format!("not started yet: {what} does not answer")),
            past: self.past.get(&slot).map(|past| past.status(None)).unwrap_or_default(),
        }
    }

    fn find(&mut self, id: &WorkerId) -> Option<&mut Member> {
        self.workers.get_mut(&seat(id))
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.preparing.values().for_each(Scope::drain);
        self.changes.stop();
        self.roll(rollout::Input::Want(0));
    }

    fn feed_all(&mut self, input: Input) {
        let ids: Vec<WorkerId> = self.workers.values().map(|worker| worker.id.clone()).collect();
        for id in ids {
            self.feed(&id, input);
        }
    }

    /// One input to one worker's life; what it decides is done.
    pub(super) fn feed(&mut self, id: &WorkerId, input: Input) {
        let Some(worker) = self.find(id) else { return };
        let (state, actions) = lifecycle::step(worker.state, now(), input, &worker.setup.patience);
        worker.state = state;
        let at = seat(id);
        for action in actions {
            match action {
                Action::Admit => self.admit(at),
                Action::Withdraw => self.withdraw(at),
                Action::ReportUnwell => self.unwell(at),
                Action::Suspend => self.suspend(at, true),
                Action::Resume => self.suspend(at, false),
                Action::Interrupt => self.interrupt(at),
                Action::Terminate => self.terminate(at),
                Action::Kill => self.kill(at, input),
                Action::Bury => self.bury(at),
            }
        }
    }

    /// One input to the app's plan; what it decides is done, and what comes of that.
    pub(super) fn roll(&mut self, input: rollout::Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let failed_before = self.rollout.is_crash_loop();
            let begins = matches!(input, rollout::Input::Recycle(_) | rollout::Input::Roll(..));
            if begins || self.rollout.is_changing() {
                self.rollout.set_room(self.has_room());
            }
            let actions = self.rollout.step(now(), input, &mut self.tools.rng);
            if self.rollout.is_crash_loop() && !failed_before {
                tracing::error!(app = %self.app().name, "no worker becomes ready; trying again without end");
            }
            for action in actions {
                match action {
                    rollout::Action::Prepare(generation) => inputs.extend(self.prepare(generation)),
                    rollout::Action::Launch(seat, generation) => self.launch(seat, generation),
                    rollout::Action::Retire(seat) => inputs.extend(self.retire(seat)),
                    rollout::Action::MakeRoom(seat) => {
                        let app = self.app();
                        tracing::warn!(app = %app.name, worker = seat.slot, "memory has no room for a successor beside this worker: it goes first, and requests wait if there is no other");
                        inputs.extend(self.retire(seat));
                    }
                    rollout::Action::Completed(generation) => {
                        tracing::info!(app = %self.app().name, generation, "all workers are of the new generation");
                        self.headcount.ended(true);
                        self.changes.completed();
                        self.rejected = None;
                        if let Some(setup) = self.setups.get(&generation) {
                            self.rollout.set_backoff(backoff(&setup.spec));
                        }
                        self.forget_setups();
                    }
                    rollout::Action::Abandoned(generation, culprit) => {
                        tracing::error!(app = %self.app().name, generation, "the new generation does not start: the old one stays");
                        self.headcount.ended(false);
                        self.changes.abandoned(culprit);
                        self.forget_setups();
                    }
                }
            }
        }
    }

    /// Asks a worker to go; what is known at once.
    fn retire(&mut self, seat: Seat) -> Option<rollout::Input> {
        if self.forgo(seat) {
            return Some(rollout::Input::Died(seat));
        }
        if let Some(id) = self.workers.get(&seat).map(|worker| worker.id.clone()) {
            self.feed(&id, Input::Retire);
        }
        None
    }

    /// The memory of the largest worker, as last measured.
    pub(super) fn largest(&self) -> u64 {
        self.workers.values().map(|worker| worker.memory).max().unwrap_or(0)
    }

    pub(super) fn serves(&self) -> bool {
        self.rollout.ready() > 0
    }

    pub(super) fn has_room(&self) -> bool {
        usage::room((self.tools.available)(), self.largest()) > 0
    }

    /// The app as its present workers serve it.
    pub(super) fn app(&self) -> Arc<App> {
        let present = self.setups.get(&self.rollout.generation_number()).or(self.setups.values().next_back());
        // There is always one: only those that nobody is of are forgotten, and never the present one.
        Arc::clone(&present.expect("the present generation has a setup").app)
    }

    /// Begins the change that waited longest, if none is under way.
    fn begin_change(&mut self) {
        if self.stopping || self.rollout.is_rolling() {
            return;
        }
        if self.changes.is_next() && !self.preparing.is_empty() {
            self.preparing.values().for_each(Scope::drain);
            return;
        }
        let Some(wish) = self.changes.next() else { return };
        let present = self.rollout.generation_number();
        let Some(setup) = self.setups.get(&present).cloned() else { return };
        let number = self.setups.keys().next_back().map_or(FIRST, |last| last + 1).max(self.changes.number());
        let (setup, workers) = match wish {
            Wish::Prepare(both) => {
                self.run_before_start(number, Rc::new(Setup::new(both.0, both.1)), Event::Rehearsed);
                return;
            }
            Wish::Roll(both) => {
                let workers = self.headcount_of(&both.1, &setup.spec);
                (Setup::new(both.0, both.1), workers)
            }
            Wish::TakeOver(both) => {
                let workers = self.headcount_of(&both.1, &setup.spec);
                (Setup { prepared: true, ..Setup::new(both.0, both.1) }, workers)
            }
            Wish::Restart => (Setup::new(Arc::clone(&setup.app), setup.spec.clone()), self.rollout.wanted()),
        };
        self.changes.begun(number);
        tracing::info!(app = %setup.app.name, generation = number, "a new generation of workers takes over");
        self.setups.insert(number, Rc::new(setup));
        self.roll(rollout::Input::Roll(number, workers));
    }

    /// How many workers a roll-out to this spec leads to.
    fn headcount_of(&mut self, spec: &WorkerSpec, present: &WorkerSpec) -> u32 {
        // Their number may have changed since, without a roll-out.
        let known = WorkerSpec { workers: self.headcount.range(), ..present.clone() };
        self.headcount.begin(spec, self.rollout.wanted(), known == *spec)
    }

    fn forget_setups(&mut self) {
        let present = self.rollout.generation_number();
        self.setups.retain(|number, setup| *number == present || Rc::strong_count(setup) > 1);
    }
}

fn backoff(spec: &WorkerSpec) -> Backoff {
    Backoff { base: spec.restart.backoff, cap: spec.restart.max_backoff, jitter: JITTER }
}

pub(super) fn seat(id: &WorkerId) -> Seat {
    Seat { slot: id.slot, incarnation: id.incarnation }
}

pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Remarks that somebody who waits has not read yet; beyond, the oldest are lost.
const UNREAD_REMARKS: usize = 64;
/// Number of the first generation.
const FIRST: u64 = 1;
const JITTER: f64 = 0.2;
/// Ready this long, earlier failures are forgotten.
const PROVEN: Duration = Duration::from_secs(60);
/// Ready this long, a death is answered at once.
const SERVED: Duration = Duration::from_secs(1);
/// Early deaths with nobody ready that make the app a failed one.
const CRASH_LOOP: u32 = 5;
/// How long a roll-out waits for a draining worker before it goes on with the next.
const OVERLAP: Duration = Duration::from_secs(1);
