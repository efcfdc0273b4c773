//! How a crew comes to another number of workers: an operator says so, the file does, or the load.

use std::sync::atomic::Ordering;

use crate::config::model::WorkerCount;
use crate::worker::change::{Reply, RollError};
use crate::worker::crew::{Crew, Event, now};
use crate::worker::headcount::{LOOK, MEASURE};
use crate::worker::rollout;
use crate::worker::scale::{Load, Step};
use crate::worker::usage;

impl Crew {
    /// What operators said of the number, unless a generation is about to take over: workers of the old one would be replaced
    /// at once.
    pub(super) fn hold_in_turn(&mut self) {
        if self.changes.is_under_way() || self.rollout.is_rolling() {
            return;
        }
        for (number, reply) in std::mem::take(&mut self.changes.holding) {
            self.hold(number, reply);
        }
    }

    /// An operator holds the number, or lets the file and the load decide again.
    fn hold(&mut self, number: Option<u32>, reply: Reply) {
        if number == Some(0) {
            let _nobody_waits = reply.send(Err(RollError::because("an app has at least one worker")));
            return;
        }
        let workers = self.headcount.hold(number, self.rollout.wanted());
        self.want(workers, reply);
    }

    /// The file says another number.
    pub(super) fn resize(&mut self, range: WorkerCount, reply: Reply) {
        let workers = self.headcount.take(range, self.rollout.wanted());
        self.want(workers, reply);
    }

    fn want(&mut self, workers: u32, reply: Reply) {
        if !self.stopping {
            self.changes.scaling.push(reply);
            self.roll(rollout::Input::Want(workers));
        }
    }

    /// Looks at the load, if it is time to.
    pub(super) fn look_at_load(&mut self) {
        let now = now();
        if self.stopping || self.headcount.wake_at().is_none_or(|at| now < at) {
            return;
        }
        self.headcount.look_at = now + LOOK;
        if now >= self.headcount.measure_at {
            self.headcount.measure_at = now + MEASURE;
            self.measure();
        }
        let workers = self.rollout.wanted();
        let steady =
            !self.rollout.is_rolling() && !self.rollout.is_crash_loop() && self.rollout.ready() >= workers;
        if steady {
            self.headcount.grows_from = None;
        }
        let (load, largest, available) = (self.load(), self.largest(), self.tools.available);
        let room = || usage::room(available(), largest);
        let step = self.headcount.scale.look(now, load, workers, steady, room);
        let app = self.app();
        match step {
            None => {}
            Some(Step::Up(more, why)) => {
                tracing::info!(app = %app.name, from = workers, to = more, reason = %why, "scaling up");
                self.headcount.grows_from = Some(workers);
                self.roll(rollout::Input::Want(more));
            }
            Some(Step::Down(fewer)) => {
                let reason = "its load is little for as many";
                tracing::info!(app = %app.name, from = workers, to = fewer, reason, "scaling down");
                self.roll(rollout::Input::Want(fewer));
            }
            Some(Step::NoRoom(why)) => {
                tracing::warn!(app = %app.name, workers, reason = %why, "memory has no room for one more worker");
            }
        }
    }

    /// What one more worker will take is what the largest takes now.
    fn measure(&self) {
        for (id, child) in self.running() {
            let events = self.events.clone();
            self.tasks.spawn(async move {
                let bytes = child.memory().await;
                let _nobody_listens = events.send(Event::Measured(id, bytes));
            });
        }
    }

    fn load(&self) -> Load {
        let slots = self.roster.load();
        let limits = slots.iter().filter_map(|slot| slot.limit());
        Load {
            busy: slots.iter().map(|slot| slot.busy()).sum(),
            waiting: self.roster.waiting.load(Ordering::Relaxed) as u64,
            each: limits.max().unwrap_or(UNLIMITED),
            open: slots.len() as u32,
        }
    }
}

/// A worker without a limit counts as full with so many requests that it has not begun to answer.
const UNLIMITED: u64 = 8;
