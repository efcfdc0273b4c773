//! One worker's life: Starting → Serving → Draining → Stopping → Dead, with a way from Serving to Suspect and back, or on to
//! Aborting. Decides; the supervisor performs.
//!
//! Must not do: read a clock, touch a process. A restart is a new worker with a life of its own, never a way back.

use std::time::{Duration, Instant};

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Spawned; has not answered yet.
    Starting {
        /// Stopped if it has not answered by then.
        ready_by: Instant,
    },
    /// Admitted: takes requests.
    Serving {
        /// Probes missed in a row.
        misses: u32,
    },
    /// Reads nothing: takes no new requests until it does.
    Suspect {
        /// Aborted if it still does not then.
        abort_at: Option<Instant>,
    },
    /// Was told to abort, so that it may print where it hangs.
    Aborting {
        /// Killed if it still lives then.
        kill_at: Instant,
    },
    /// Withdrawn: finishes its requests.
    Draining {
        /// Told to end then, whatever is still open.
        drain_by: Instant,
        /// Why it ends.
        why: Why,
    },
    /// Was sent its stop signal.
    Stopping {
        /// Killed if it still lives then.
        kill_at: Instant,
        /// Why it ends.
        why: Why,
    },
    /// Was sent SIGKILL with its whole group.
    Killing {
        /// Given up if it still is there then: the kernel does not let go of it.
        give_up_at: Instant,
        /// Why it ends.
        why: Why,
    },
    /// Its process is gone, or given up.
    Dead {
        /// Why it ended.
        why: Why,
    },
}

/// Why a worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Edge asked it to.
    Retired,
    /// It did not answer within its start time.
    NeverReady,
    /// It ended by itself before it had answered.
    DiedStarting,
    /// It ended by itself while it served.
    DiedServing,
    /// It hung, and was aborted.
    Hung,
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It answered.
    ProbePassed,
    /// It did not.
    ProbeMissed,
    /// It has left what edge sent it unread for a while.
    Stuck,
    /// It reads again.
    Reads,
    /// Nothing is in flight on its closed slot.
    Idle,
    /// Edge wants it to end when its requests are done.
    Retire,
    /// Edge wants it gone now.
    Abort,
    /// Its process ended.
    Exited,
    /// Time passed; the deadline of [`wake_at`] may have come.
    Tick,
}

/// What the supervisor must do, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish its slot.
    Admit,
    /// Close its slot and publish without it.
    Withdraw,
    /// Close its slot to new requests for the time being.
    Suspend,
    /// Open its slot again.
    Resume,
    /// Send SIGABRT to the process itself.
    Interrupt,
    /// Say that it misses its probes, so that a replacement can be started.
    ReportUnwell,
    /// Send its stop signal to the process itself.
    Terminate,
    /// Send SIGKILL to everything it started.
    Kill,
    /// Clean up after it and account for its end.
    Bury,
}

/// The times one life is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Spawn to first answer.
    pub start: Duration,
    /// Withdrawal to stop signal.
    pub drain: Duration,
    /// Stop signal to kill.
    pub stop: Duration,
    /// Found stuck to aborted; `None` for never.
    pub hang: Option<Duration>,
    /// SIGABRT to kill.
    pub abort: Duration,
    /// Kill to giving up.
    pub kill: Duration,
    /// Missed probes in a row before it counts as unwell.
    pub misses: u32,
}

/// A worker spawned at `now`.
pub fn begin(now: Instant, patience: &Patience) -> State {
    State::Starting { ready_by: now + patience.start }
}

/// One step of a life.
pub fn step(state: State, now: Instant, input: Input, patience: &Patience) -> (State, Vec<Action>) {
    match state {
        State::Starting { ready_by } => starting(ready_by, now, input, patience),
        State::Serving { misses } => serving(misses, now, input, patience),
        State::Suspect { abort_at } => suspect(abort_at, now, input, patience),
        State::Aborting { kill_at } => aborting(kill_at, now, input, patience),
        State::Draining { drain_by, why } => draining(drain_by, why, now, input, patience),
        State::Stopping { kill_at, why } => stopping(kill_at, why, now, input, patience),
        State::Killing { give_up_at, why } => killing(give_up_at, why, now, input),
        State::Dead { why } => (State::Dead { why }, Vec::new()),
    }
}

/// When the next [`Input::Tick`] is due.
pub fn wake_at(state: &State) -> Option<Instant> {
    match *state {
        State::Starting { ready_by } => Some(ready_by),
        State::Draining { drain_by, .. } => Some(drain_by),
        State::Stopping { kill_at, .. } | State::Aborting { kill_at } => Some(kill_at),
        State::Killing { give_up_at, .. } => Some(give_up_at),
        State::Suspect { abort_at } => abort_at,
        State::Serving { .. } | State::Dead { .. } => None,
    }
}

fn starting(ready_by: Instant, now: Instant, input: Input, patience: &Patience) -> (State, Vec<Action>) {
    match input {
        Input::ProbePassed => (State::Serving { misses: 0 }, vec![Action::Admit]),
        Input::Retire => (terminated(now, Why::Retired, patience), vec![Action::Terminate]),
        Input::Abort => (killed(now, Why::Retired, patience), vec![Action::Terminate, Action::Kill]),
        Input::Exited => (State::Dead { why: Why::DiedStarting }, vec![Action::Bury]),
        Input::Tick if now >= ready_by => {
            (terminated(now, Why::NeverReady, patience), vec![Action::Terminate])
        }
        Input::ProbeMissed | Input::Stuck | Input::Reads | Input::Idle | Input::Tick => {
            (State::Starting { ready_by }, Vec::new())
        }
    }
}

fn serving(misses: u32, now: Instant, input: Input, patience: &Patience) -> (State, Vec<Action>) {
    match input {
        Input::ProbePassed => (State::Serving { misses: 0 }, Vec::new()),
        Input::ProbeMissed => {
            let misses = misses.saturating_add(1);
            let actions = if misses == patience.misses { vec![Action::ReportUnwell] } else { Vec::new() };
            (State::Serving { misses }, actions)
        }
        Input::Retire => {
            (State::Draining { drain_by: now + patience.drain, why: Why::Retired }, vec![Action::Withdraw])
        }
        Input::Abort => {
            (killed(now, Why::Retired, patience), vec![Action::Withdraw, Action::Terminate, Action::Kill])
        }
        Input::Exited => (State::Dead { why: Why::DiedServing }, vec![Action::Withdraw, Action::Bury]),
        Input::Stuck => {
            let abort_at = patience.hang.map(|hang| now + hang);
            (State::Suspect { abort_at }, vec![Action::Suspend])
        }
        Input::Reads | Input::Idle | Input::Tick => (State::Serving { misses }, Vec::new()),
    }
}

fn suspect(
    abort_at: Option<Instant>,
    now: Instant,
    input: Input,
    patience: &Patience,
) -> (State, Vec<Action>) {
    match input {
        Input::Reads => (State::Serving { misses: 0 }, vec![Action::Resume]),
        Input::Tick if abort_at.is_some_and(|at| now >= at) => {
            let kill_at = now + patience.abort;
            (State::Aborting { kill_at }, vec![Action::Withdraw, Action::Interrupt])
        }
        Input::Retire | Input::Abort | Input::Exited => serving(0, now, input, patience),
        Input::ProbePassed | Input::ProbeMissed | Input::Stuck | Input::Idle | Input::Tick => {
            (State::Suspect { abort_at }, Vec::new())
        }
    }
}

fn aborting(kill_at: Instant, now: Instant, input: Input, patience: &Patience) -> (State, Vec<Action>) {
    let why = Why::Hung;
    match input {
        Input::Tick if now >= kill_at => (killed(now, why, patience), vec![Action::Kill]),
        Input::Abort => (killed(now, why, patience), vec![Action::Kill]),
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed
        | Input::ProbeMissed
        | Input::Stuck
        | Input::Reads
        | Input::Idle
        | Input::Retire
        | Input::Tick => (State::Aborting { kill_at }, Vec::new()),
    }
}

fn draining(
    drain_by: Instant,
    why: Why,
    now: Instant,
    input: Input,
    patience: &Patience,
) -> (State, Vec<Action>) {
    match input {
        Input::Idle => (terminated(now, why, patience), vec![Action::Terminate]),
        Input::Tick if now >= drain_by => (terminated(now, why, patience), vec![Action::Terminate]),
        Input::Abort => (killed(now, why, patience), vec![Action::Terminate, Action::Kill]),
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed
        | Input::ProbeMissed
        | Input::Stuck
        | Input::Reads
        | Input::Retire
        | Input::Tick => (State::Draining { drain_by, why }, Vec::new()),
    }
}

fn stopping(
    kill_at: Instant,
    why: Why,
    now: Instant,
    input: Input,
    patience: &Patience,
) -> (State, Vec<Action>) {
    match input {
        Input::Tick if now >= kill_at => (killed(now, why, patience), vec![Action::Kill]),
        Input::Abort => (killed(now, why, patience), vec![Action::Kill]),
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed
        | Input::ProbeMissed
        | Input::Stuck
        | Input::Reads
        | Input::Idle
        | Input::Retire
        | Input::Tick => (State::Stopping { kill_at, why }, Vec::new()),
    }
}

fn killing(give_up_at: Instant, why: Why, now: Instant, input: Input) -> (State, Vec<Action>) {
    match input {
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::Tick if now >= give_up_at => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed
        | Input::ProbeMissed
        | Input::Stuck
        | Input::Reads
        | Input::Idle
        | Input::Retire
        | Input::Abort
        | Input::Tick => (State::Killing { give_up_at, why }, Vec::new()),
    }
}

fn terminated(now: Instant, why: Why, patience: &Patience) -> State {
    State::Stopping { kill_at: now + patience.stop, why }
}

fn killed(now: Instant, why: Why, patience: &Patience) -> State {
    State::Killing { give_up_at: now + patience.kill, why }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
