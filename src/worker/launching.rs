//! How a crew starts a worker: its files are looked at first, by somebody whom they may keep waiting; then it is spawned, heard
//! and watched.

use std::cell::Cell;
use std::rc::Rc;

use tokio::task::JoinHandle;

use crate::clock::{Clock, SystemClock};
use crate::name::WorkerId;
use crate::report::Report;
use crate::worker::adapter;
use crate::worker::change::RollError;
use crate::worker::child::{Child, Exit};
use crate::worker::crew::{Crew, Event, now};
use crate::worker::deserted;
use crate::worker::launch::{LaunchError, Order};
use crate::worker::lifecycle::{self, Input};
use crate::worker::listening;
use crate::worker::member::Member;
use crate::worker::output::{self, Source, Tail};
use crate::worker::past;
use crate::worker::priority;
use crate::worker::probe::NotReady;
use crate::worker::remarks;
use crate::worker::rollout::{self, Seat};
use crate::worker::setup::Launching;
use crate::worker::usage;

impl Crew {
    /// Starts a worker, or says that it cannot be, as soon as that keeps nobody waiting.
    pub(super) fn launch(&mut self, at: Seat, generation: u64) {
        // Only generations that have one are launched.
        let Some(setup) = self.setups.get(&generation).cloned() else { return };
        self.launching.insert(at, Launching { setup: Rc::clone(&setup), generation, waits_for: None });
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let slow = |what: &str| {
                let _nobody_listens = events.send(Event::Silent(at, what.to_owned()));
            };
            let (spec, plan) = (&setup.spec, &setup.plan);
            let answered = setup.look.answered(spec, plan, spec.start_timeout, slow).await;
            let _nobody_listens = events.send(Event::Answered(at, answered));
        });
    }

    /// A worker is not wanted any more. Whether it had not been started.
    pub(super) fn forgo(&mut self, at: Seat) -> bool {
        self.launching.remove(&at).is_some()
    }

    /// The files of a worker have answered, or are not waited for any longer.
    pub(super) fn answered(&mut self, at: Seat, answered: Result<(), LaunchError>) {
        let Some(launching) = self.launching.remove(&at) else { return };
        let Err(error) = answered.and_then(|()| self.start(at, &launching)) else { return };
        self.headcount.failed();
        let cause = Report(&error).to_string();
        let told = launching.setup.not_started.told(&cause, now());
        tracing::error!(app = %self.app().name, worker = at.slot, error = %told, "cannot start a worker");
        *self.exits.entry(past::NOT_STARTED).or_default() += 1;
        self.failed(at, cause.clone(), past::NOT_STARTED);
        self.changes.failed(at, RollError::because(cause));
        self.roll(rollout::Input::Died(at));
    }

    fn start(&mut self, at: Seat, launching: &Launching) -> Result<(), LaunchError> {
        let (setup, generation) = (Rc::clone(&launching.setup), launching.generation);
        let count = self.past.entry(at.slot).or_default().launched(at.incarnation);
        let id = WorkerId { app: setup.app.name.clone(), slot: at.slot, incarnation: at.incarnation };
        let place = self.tools.launcher.place(&id, &setup.spec.account, setup.wire)?;
        let plan = adapter::plan_at(&setup.spec, &place);
        let order = Order { id: &id, spec: &setup.spec, plan: &plan, place: &place };
        let child = Rc::new(self.tools.launcher.launch(&order)?);
        let address = child.address(plan.wire);
        tracing::info!(app = %id.app, worker = at.slot, pid = child.pid(), %address, generation, "worker started");
        let tail = Tail::default();
        let worker = Member {
            count,
            state: lifecycle::begin(now(), &setup.patience),
            followers: self.follow(&id, &child, &tail),
            tasks: self.tasks.child(),
            child,
            address,
            idle_timeout: plan.idle_timeout,
            concurrency: plan.concurrency,
            slot: None,
            launched_at: now(),
            started: SystemClock.seconds(),
            exit: Exit::Unknown,
            missed: None,
            elsewhere: Vec::new(),
            trouble: None,
            unwell: false,
            memory: 0,
            oom_before: usage::out_of_memory_kills(),
            tail,
            id,
            setup,
        };
        self.watch(&worker);
        if let Some(nice) = worker.setup.spec.nice {
            let child = Rc::clone(&worker.child);
            worker.alongside(async move { priority::share(&child, nice).await });
        }
        self.workers.insert(at, worker);
        Ok(())
    }

    fn follow(&self, id: &WorkerId, child: &Child, tail: &Tail) -> Vec<JoinHandle<()>> {
        let Some((stdout, stderr)) = child.take_output() else { return Vec::new() };
        let streams = [(stdout, "stdout"), (stderr, "stderr")];
        let follow = |(pipe, stream)| {
            let (app, worker, journal) = (id.app.clone(), Some(id.slot), Rc::clone(&self.tools.journal));
            let source = Source { app, worker, pid: child.pid(), stream, journal };
            self.tasks.spawn(output::follow(pipe, source, tail.clone()))
        };
        streams.into_iter().map(follow).collect()
    }

    fn watch(&self, worker: &Member) {
        let (id, child, events) = (worker.id.clone(), Rc::clone(&worker.child), self.events.clone());
        // Without it a death would never be noticed.
        self.tasks.drive(async move {
            let exit = child.exited().await;
            let _nobody_listens = events.send(Event::Exited(id, exit));
        });
        let question = worker.setup.question();
        let (id, address, events) = (worker.id.clone(), worker.address.clone(), self.events.clone());
        let (child, pause) = (Rc::clone(&worker.child), remarks::pause(worker.setup.spec.start_timeout));
        worker.alongside(async move {
            let unreachable = Cell::new(false);
            let missed = |reason| {
                unreachable.set(matches!(reason, NotReady::Unreachable { .. }));
                let _nobody_listens = events.send(Event::Missed(id.clone(), reason));
            };
            let waits = async {
                loop {
                    tokio::time::sleep(pause).await;
                    let elsewhere = if !unreachable.get() {
                        Some(Vec::new())
                    } else if deserted::is_attended(&address).await {
                        None
                    } else {
                        Some(listening::addresses(child.finder()).await)
                    };
                    if events.send(Event::Slow(id.clone(), elsewhere)).is_err() {
                        break;
                    }
                }
            };
            tokio::select! {
                () = question.until_ready(&address, missed) => {}
                () = waits => {}
            }
            let _nobody_listens = events.send(Event::Happened(id.clone(), Input::ProbePassed));
        });
    }
}
