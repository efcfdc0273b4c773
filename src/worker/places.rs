//! The slots of one app: who is in each, and when the next worker may be launched there.
//!
//! Must not do: decide who is replaced; `rollout` does.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// One worker of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seat {
    /// Its slot.
    pub slot: u32,
    /// Which one in that slot, from 1.
    pub incarnation: u64,
}

/// What the supervisor must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run what comes before a generation's first worker, and report whether it worked as an input.
    Prepare(u64),
    /// Start a worker of this generation.
    Launch(Seat, u64),
    /// Ask this worker to go.
    Retire(Seat),
    /// Ask this worker to go although its successor has not started: memory has no room for both.
    MakeRoom(Seat),
    /// Every worker is of the new generation and no other is left.
    Completed(u64),
    /// The new generation does not start: because of this worker, or of what comes before it.
    Abandoned(u64, Option<Seat>),
}

/// When a slot is filled again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Delays between replacements, after the first, which follows at once.
    pub backoff: Backoff,
    /// Ready this long, a worker's earlier failures are forgotten.
    pub proven: Duration,
    /// Ready this long, a worker's death is no failure to start and is answered at once.
    pub served: Duration,
    /// Deaths before readiness, with nobody ready, that make the app a failed one.
    pub crash_loop: u32,
    /// How long a roll-out waits for a worker that goes before it starts the next successor beside it.
    pub overlap: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    /// Failures in a row that the next delay is drawn for.
    pub(super) failures: u32,
    pub(super) incarnations: u64,
    /// Nothing is launched earlier.
    pub(super) launch_at: Instant,
    pub(super) current: Option<Worker>,
    pub(super) successor: Option<Worker>,
    pub(super) leaving: Vec<Leaving>,
    /// The next worker waits until nobody is left.
    pub(super) waits: bool,
    /// The current worker is to be replaced.
    pub(super) recycle: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Worker {
    pub(super) seat: Seat,
    pub(super) generation: u64,
    pub(super) stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Leaving {
    pub(super) seat: Seat,
    pub(super) since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Stage {
    /// Launched, has not answered.
    Starting,
    /// Did not answer in time and is being ended.
    Late,
    /// Takes requests.
    Ready { since: Instant },
}

impl Place {
    pub(super) fn vacant(now: Instant) -> Self {
        Self {
            failures: 0,
            incarnations: 0,
            launch_at: now,
            current: None,
            successor: None,
            leaving: Vec::new(),
            waits: false,
            recycle: false,
        }
    }

    /// Whether nobody is there and somebody may come.
    pub(super) fn is_vacant(&self) -> bool {
        self.current.is_none() && self.successor.is_none() && !self.waits
    }

    /// Whoever comes next comes at once, as if nobody had failed here.
    pub(super) fn forgive(&mut self, now: Instant) {
        self.failures = 0;
        self.launch_at = now;
    }

    pub(super) fn is_ready(&self) -> bool {
        self.current.is_some_and(|current| current.is_ready())
    }

    pub(super) fn launch(&mut self, slot: u32, generation: u64, actions: &mut Vec<Action>) -> Worker {
        self.incarnations += 1;
        let seat = Seat { slot, incarnation: self.incarnations };
        actions.push(Action::Launch(seat, generation));
        Worker { seat, generation, stage: Stage::Starting }
    }

    pub(super) fn leave(&mut self, worker: Worker, now: Instant, actions: &mut Vec<Action>) {
        self.leaving.push(Leaving { seat: worker.seat, since: now });
        if worker.stage != Stage::Late {
            actions.push(Action::Retire(worker.seat));
        }
    }

    /// How long after this death the next worker is started.
    pub(super) fn delay(
        &mut self,
        stage: Stage,
        now: Instant,
        policy: &Policy,
        rng: &mut fastrand::Rng,
    ) -> Duration {
        match stage {
            Stage::Ready { since } if now.duration_since(since) >= policy.proven => {
                self.failures = 1;
                Duration::ZERO
            }
            // Somebody kills them, or one request in many does: the start works, so capacity comes first. What a short life
            // adds to the delay, a longer one halves.
            Stage::Ready { since } if now.duration_since(since) >= policy.served => {
                self.failures /= 2;
                Duration::ZERO
            }
            Stage::Starting | Stage::Late | Stage::Ready { .. } => {
                self.failures = self.failures.saturating_add(1);
                policy.delay(self.failures, rng)
            }
        }
    }
}

impl Worker {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready { .. })
    }
}

impl Policy {
    /// Before the next attempt after that many failures in a row.
    pub(super) fn delay(&self, failures: u32, rng: &mut fastrand::Rng) -> Duration {
        match failures {
            0 | 1 => Duration::ZERO,
            // Jitter may not stretch the longest delay: an app that is repaired is back within it.
            n => self.backoff.delay(n - 2, rng).min(self.backoff.cap),
        }
    }
}
