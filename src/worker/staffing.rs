//! How a crew carries out each decision but the launch: a generation prepared, a worker admitted, withdrawn, ended, buried.

use std::rc::Rc;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::worker::before_start;
use crate::worker::change::RollError;
use crate::worker::child::Exit;
use crate::worker::crew::{Crew, Event};
use crate::worker::deserted;
use crate::worker::last_words;
use crate::worker::lifecycle::{Input, State, Why};
use crate::worker::listening;
use crate::worker::member::Member;
use crate::worker::output;
use crate::worker::past::{self, Blame, Rejected};
use crate::worker::recycling::Limits;
use crate::worker::rollout::{self, Seat};
use crate::worker::setup::Setup;
use crate::worker::slot::Slot;

impl Crew {
    /// Runs what comes before a generation's first worker; what is known at once.
    pub(super) fn prepare(&mut self, generation: u64) -> Option<rollout::Input> {
        let setup = self.setups.get(&generation).cloned()?;
        if setup.prepared || setup.spec.before_start.is_empty() {
            return Some(rollout::Input::Prepared(generation));
        }
        self.run_before_start(generation, setup, Event::Prepared);
        None
    }

    pub(super) fn run_before_start(
        &mut self,
        generation: u64,
        setup: Rc<Setup>,
        ended: fn(u64, Result<(), RollError>) -> Event,
    ) {
        let scope = self.tasks.child();
        self.preparing.insert(generation, scope.clone());
        let (events, tools) = (self.events.clone(), self.tools.clone());
        self.tasks.spawn(async move {
            let outcome = before_start::run(&setup, generation, &tools, &scope).await;
            let _nobody_listens = events.send(ended(generation, outcome));
        });
    }

    /// What comes before a first worker has ended, and the workers there are stay for now.
    pub(super) fn rehearsed(&mut self, generation: u64, outcome: Result<(), RollError>) {
        self.preparing.remove(&generation);
        if self.stopping {
            return;
        }
        if let Err(error) = &outcome {
            self.rejected =
                Some(Rejected::because(error.reason.clone(), SystemClock.seconds(), None, &error.last_lines));
            let (app, last_lines) = (self.app(), error.last_lines.join("\n"));
            tracing::error!(app = %app.name, generation, error = error.reason, last_lines, "no new worker can start: those that run stay");
        }
        self.changes.prepared(outcome);
    }

    pub(super) fn prepared(&mut self, generation: u64, outcome: Result<(), RollError>) {
        let interrupted = self.preparing.remove(&generation).is_some_and(|scope| scope.is_draining());
        if self.stopping {
            return;
        }
        match outcome {
            Ok(()) => self.roll(rollout::Input::Prepared(generation)),
            Err(_) if interrupted => {
                let app = self.app();
                tracing::warn!(app = %app.name, generation, "what comes before the first worker was ended: another change of the workers takes its place");
                self.roll(rollout::Input::Interrupted(generation));
            }
            Err(error) => {
                let (app, last_lines) = (self.app(), error.last_lines.join("\n"));
                tracing::error!(app = %app.name, generation, error = error.reason, last_lines, "no worker can start");
                if generation == self.rollout.generation_number() {
                    for slot in 0..self.rollout.wanted() {
                        let past = self.past.entry(slot).or_default();
                        past.ended(
                            0,
                            error.reason.clone(),
                            past::NOT_STARTED,
                            SystemClock.seconds(),
                            Blame::Slot,
                        );
                        if let Some(line) = last_words::telling(&error.last_lines) {
                            past.said(0, line);
                        }
                    }
                } else {
                    self.rejected = Some(Rejected::because(
                        error.reason.clone(),
                        SystemClock.seconds(),
                        None,
                        &error.last_lines,
                    ));
                }
                self.changes.unprepared = Some(error);
                self.roll(rollout::Input::Unprepared(generation));
            }
        }
    }

    pub(super) fn admit(&mut self, at: Seat) {
        let Some(worker) = self.workers.get_mut(&at) else { return };
        let (id, pid) = (worker.id.clone(), worker.child.pid());
        worker.slot = Some(Slot::new(
            id.clone(),
            pid,
            worker.address.clone(),
            worker.setup.app.protocol,
            worker.idle_timeout,
            worker.concurrency,
        ));
        (worker.missed, worker.trouble) = (None, None);
        let start_ms = worker.launched_at.elapsed().as_millis() as u64;
        tracing::info!(app = %id.app, worker = at.slot, pid, start_ms, "worker ready");
        self.was_ready = true;
        self.publish();
        self.roll(rollout::Input::Ready(at));
        self.measure_and_limit(at);
        self.watch_over(at);
        self.locate(at);
    }

    /// Says, once for each generation, where a worker can be reached past edge.
    fn locate(&self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        if worker.setup.located.get() {
            return;
        }
        let (id, child, setup) = (worker.id.clone(), Rc::clone(&worker.child), Rc::clone(&worker.setup));
        worker.alongside(async move {
            let addresses = listening::beyond_this_machine(child.finder()).await;
            if !setup.located.replace(true) && !addresses.is_empty() {
                tracing::warn!(
                    app = %id.app,
                    worker = id.slot,
                    pid = child.pid(),
                    addresses = addresses.join(" "),
                    "the worker can be reached past edge, without its certificates, limits and log: \
                     let it listen on 127.0.0.1, or close its ports in a firewall"
                );
            }
        });
    }

    /// Looks whether it listens and whether it hangs, and asks for its health.
    fn watch_over(&self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        let Some(slot) = worker.slot.clone() else { return };
        let (setup, id, events) = (Rc::clone(&worker.setup), worker.id.clone(), self.events.clone());
        let checked = {
            let (id, events) = (id.clone(), events.clone());
            move |trouble| {
                let _nobody_listens = events.send(Event::Checked(id.clone(), trouble));
            }
        };
        {
            let (id, events, slot) = (id.clone(), events.clone(), Arc::clone(&slot));
            worker.alongside(async move {
                deserted::found(&slot).await;
                let reason = format!("nobody listens at {} any more", slot.address);
                let _nobody_listens = events.send(Event::Due(id, reason));
            });
        }
        let happened = move |input| {
            let _nobody_listens = events.send(Event::Happened(id.clone(), input));
        };
        if !setup.spec.hang_timeout.is_zero() {
            let (happened, setup) = (happened.clone(), Rc::clone(&setup));
            worker.alongside(async move { setup.watch.over(&slot, &setup.question(), happened).await });
        }
        if setup.spec.healthcheck_path.is_some() {
            let address = worker.address.clone();
            worker.alongside(async move {
                let (question, check) = (setup.question(), setup.spec.healthcheck);
                loop {
                    tokio::time::sleep(check.interval).await;
                    let asked = question.ask_within(check.timeout, &address).await;
                    let trouble = asked.err().map(|reason| reason.to_string());
                    let input = if trouble.is_none() { Input::ProbePassed } else { Input::ProbeMissed };
                    checked(trouble);
                    happened(input);
                }
            });
        }
    }

    /// Looks at a new worker's memory once, and from then on at its limits.
    fn measure_and_limit(&mut self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        let limits = Limits::draw(&worker.setup.spec.recycle, &mut self.tools.rng);
        let (id, child, events) = (worker.id.clone(), Rc::clone(&worker.child), self.events.clone());
        let Some(slot) = worker.slot.clone() else { return };
        worker.alongside(async move {
            let measured = |bytes| {
                let _nobody_listens = events.send(Event::Measured(id.clone(), bytes));
            };
            measured(child.memory().await);
            let reason = limits.reached(slot, child, measured).await;
            let _nobody_listens = events.send(Event::Due(id.clone(), reason));
        });
    }

    pub(super) fn withdraw(&mut self, at: Seat) {
        if let Some(slot) = self.workers.get(&at).and_then(|worker| worker.slot.as_ref()) {
            slot.close();
        }
        self.publish();
        let Some(worker) = self.workers.get(&at) else { return };
        if let (State::Draining { .. }, Some(slot)) = (worker.state, worker.slot.clone()) {
            let (id, events) = (worker.id.clone(), self.events.clone());
            tracing::info!(app = %id.app, worker = at.slot, pid = slot.pid, in_flight = slot.in_flight(), "worker draining");
            let told = self.told_of_draining(at.slot, slot.clone(), worker.setup.spec.drain_timeout);
            worker.alongside(async move {
                tokio::select! {
                    () = slot.emptied() => {}
                    () = told => {}
                }
                let _nobody_listens = events.send(Event::Happened(id, Input::Idle));
            });
        }
    }

    fn publish(&self) {
        let slots = self.workers.values().filter_map(|worker| worker.slot.clone());
        self.roster.publish(slots.filter(|slot| slot.is_open()).collect());
    }

    pub(super) fn terminate(&mut self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        let late = matches!(worker.state, State::Stopping { why: Why::NeverReady, .. });
        if late {
            let reason = worker.why_not_ready();
            let (app, pid) = (&worker.id.app, worker.child.pid());
            let seconds = worker.setup.spec.start_timeout.as_secs_f64();
            tracing::error!(%app, worker = at.slot, pid, %reason, seconds, "worker was not ready in time");
            let reason = format!("not ready in {seconds} s: {reason}");
            let (word, last_lines) = (word(Why::NeverReady, worker), worker.tail.last(output::REPORTED));
            self.failed(at, reason.clone(), word);
            self.changes.failed(at, RollError { reason, last_lines });
        }
        let Some(worker) = self.workers.get(&at) else { return };
        if let Some(slot) = &worker.slot {
            slot.end_streams();
        }
        worker.child.ask_to_end(worker.setup.spec.stop_signal);
        if late {
            self.roll(rollout::Input::Late(at));
        }
    }

    /// Keeps new requests from a worker that reads nothing, or lets them come again.
    pub(super) fn suspend(&mut self, at: Seat, suspended: bool) {
        let Some(worker) = self.workers.get(&at) else { return };
        let Some(slot) = &worker.slot else { return };
        let (app, pid, in_flight) = (&worker.id.app, slot.pid, slot.in_flight());
        if suspended {
            slot.suspend();
            if self.workers.values().filter_map(|other| other.slot.as_ref()).any(|other| other.is_open()) {
                slot.forsake();
            }
            tracing::warn!(%app, worker = at.slot, pid, in_flight, "worker reads nothing: it gets no new requests until it does");
        } else {
            slot.resume();
            tracing::info!(%app, worker = at.slot, pid, in_flight, "worker reads again");
        }
        self.publish();
    }

    /// Makes a worker that hangs say where: run-times print a stack when they are aborted, if they are told to beforehand.
    pub(super) fn interrupt(&mut self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        let seconds = worker.setup.spec.hang_timeout.as_secs_f64();
        let (app, pid) = (&worker.id.app, worker.child.pid());
        tracing::error!(%app, worker = at.slot, pid, seconds, "worker has read nothing for too long: aborting it");
        let child = Rc::clone(&worker.child);
        worker.tasks.spawn(async move { child.interrupt().await });
    }

    /// A worker has failed its health check as often as is allowed: it is to go.
    pub(super) fn unwell(&mut self, at: Seat) {
        let Some(worker) = self.workers.get_mut(&at) else { return };
        worker.unwell = true;
        self.told_unwell(at);
        self.past.entry(at.slot).or_default().failing(at.incarnation);
        self.roll(rollout::Input::Recycle(at));
    }

    /// Kills a worker and all it started, because of `input`.
    pub(super) fn kill(&mut self, at: Seat, input: Input) {
        let Some(worker) = self.workers.get(&at) else { return };
        worker.child.kill();
        self.told_killed(at, input);
    }

    pub(super) fn bury(&mut self, at: Seat) {
        let Some(mut worker) = self.workers.remove(&at) else { return };
        let State::Dead { why } = worker.state else { return };
        if !worker.child.has_ended() {
            worker.exit = Exit::Stuck;
            self.told_stuck(&worker);
        }
        worker.tasks.abort();
        let word = word(why, &worker);
        *self.exits.entry(word).or_default() += 1;
        match why {
            Why::Retired if worker.unwell => {
                self.failed(at, format!("{} after it failed its health checks", worker.exit), word);
            }
            Why::Retired if worker.exit == Exit::Stuck => {
                self.failed(at, format!("{} after it was asked to stop", worker.exit), word);
            }
            Why::Retired => {
                let how = format!("{} after it was asked to stop", worker.exit);
                let past = self.past.entry(at.slot).or_default();
                past.ended(at.incarnation, how, word, SystemClock.seconds(), Blame::Nobody);
            }
            // Said when its time was over; how it then ended says less.
            Why::NeverReady => self.headcount.failed(),
            Why::DiedStarting => {
                self.headcount.failed();
                let how = format!("{} before it was ready{}", worker.ending(), worker.left());
                self.changes.dying(at, how.clone());
                self.failed(at, how, word);
            }
            Why::Hung => self.failed(at, format!("{} because it hung", worker.exit), word),
            Why::DiedServing => self.failed(at, format!("{} while it served", worker.ending()), word),
        }
        self.burials.insert(at);
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let last_lines = worker.bury(why).await;
            let _nobody_listens = events.send(Event::Buried(at, last_lines));
        });
        self.roll(rollout::Input::Died(at));
    }

    /// Notes that the worker at `at` has failed, before the rollout hears of it.
    pub(super) fn failed(&mut self, at: Seat, how: String, word: &'static str) {
        self.roster.note_end(&how);
        let blame = if self.rollout.is_candidate(at) { Blame::Candidate } else { Blame::Slot };
        if blame == Blame::Candidate {
            self.rejected = Some(Rejected::because(how.clone(), SystemClock.seconds(), Some(at), &[]));
        }
        let past = self.past.entry(at.slot).or_default();
        past.ended(at.incarnation, how, word, SystemClock.seconds(), blame);
    }
}

/// Why a worker ended, in one word of a closed list.
fn word(why: Why, worker: &Member) -> &'static str {
    match (why, worker.exit) {
        (_, Exit::Stuck) => "stuck",
        (Why::Retired, _) if worker.unwell => "unwell",
        (Why::Retired, _) => "asked",
        (Why::NeverReady, _) => "start_timeout",
        (Why::Hung, _) => "hang",
        (Why::DiedStarting | Why::DiedServing, Exit::Code(_) | Exit::Unknown) => "exit",
        (Why::DiedStarting | Why::DiedServing, Exit::Signal(_)) => "signal",
        (Why::DiedStarting | Why::DiedServing, Exit::OutOfMemory(_)) => "out_of_memory",
    }
}
