//! One worker's life: Starting → Serving → Draining → Stopping → Dead. Decides; the supervisor performs.
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
        /// Why it ends.
        why: Why,
    },
    /// Its process is gone.
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
}

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It answered.
    ProbePassed,
    /// It did not.
    ProbeMissed,
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
        State::Draining { drain_by, why } => draining(drain_by, why, now, input, patience),
        State::Stopping { kill_at, why } => stopping(kill_at, why, now, input),
        State::Killing { why } => killing(why, input),
        State::Dead { why } => (State::Dead { why }, Vec::new()),
    }
}

/// When the next [`Input::Tick`] is due.
pub fn wake_at(state: &State) -> Option<Instant> {
    match *state {
        State::Starting { ready_by } => Some(ready_by),
        State::Draining { drain_by, .. } => Some(drain_by),
        State::Stopping { kill_at, .. } => Some(kill_at),
        State::Serving { .. } | State::Killing { .. } | State::Dead { .. } => None,
    }
}

fn starting(ready_by: Instant, now: Instant, input: Input, patience: &Patience) -> (State, Vec<Action>) {
    match input {
        Input::ProbePassed => (State::Serving { misses: 0 }, vec![Action::Admit]),
        Input::Retire => (terminated(now, Why::Retired, patience), vec![Action::Terminate]),
        Input::Abort => (State::Killing { why: Why::Retired }, vec![Action::Terminate, Action::Kill]),
        Input::Exited => (State::Dead { why: Why::DiedStarting }, vec![Action::Bury]),
        Input::Tick if now >= ready_by => {
            (terminated(now, Why::NeverReady, patience), vec![Action::Terminate])
        }
        Input::ProbeMissed | Input::Idle | Input::Tick => (State::Starting { ready_by }, Vec::new()),
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
            (State::Killing { why: Why::Retired }, vec![Action::Withdraw, Action::Terminate, Action::Kill])
        }
        Input::Exited => (State::Dead { why: Why::DiedServing }, vec![Action::Withdraw, Action::Bury]),
        Input::Idle | Input::Tick => (State::Serving { misses }, Vec::new()),
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
        Input::Abort => (State::Killing { why }, vec![Action::Terminate, Action::Kill]),
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed | Input::ProbeMissed | Input::Retire | Input::Tick => {
            (State::Draining { drain_by, why }, Vec::new())
        }
    }
}

fn stopping(kill_at: Instant, why: Why, now: Instant, input: Input) -> (State, Vec<Action>) {
    match input {
        Input::Tick if now >= kill_at => (State::Killing { why }, vec![Action::Kill]),
        Input::Abort => (State::Killing { why }, vec![Action::Kill]),
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed | Input::ProbeMissed | Input::Idle | Input::Retire | Input::Tick => {
            (State::Stopping { kill_at, why }, Vec::new())
        }
    }
}

fn killing(why: Why, input: Input) -> (State, Vec<Action>) {
    match input {
        Input::Exited => (State::Dead { why }, vec![Action::Bury]),
        Input::ProbePassed
        | Input::ProbeMissed
        | Input::Idle
        | Input::Retire
        | Input::Abort
        | Input::Tick => (State::Killing { why }, Vec::new()),
    }
}

fn terminated(now: Instant, why: Why, patience: &Patience) -> State {
    State::Stopping { kill_at: now + patience.stop, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Patience = Patience {
        start: Duration::from_secs(60),
        drain: Duration::from_secs(30),
        stop: Duration::from_secs(10),
        misses: 3,
    };

    const INPUTS: [Input; 7] = [
        Input::ProbePassed,
        Input::ProbeMissed,
        Input::Idle,
        Input::Retire,
        Input::Abort,
        Input::Exited,
        Input::Tick,
    ];

    fn name(state: &State) -> String {
        match state {
            State::Starting { .. } => "Starting".into(),
            State::Serving { misses } => format!("Serving({misses})"),
            State::Draining { why, .. } => format!("Draining({why:?})"),
            State::Stopping { why, .. } => format!("Stopping({why:?})"),
            State::Killing { why } => format!("Killing({why:?})"),
            State::Dead { why } => format!("Dead({why:?})"),
        }
    }

    /// Every state and input, with each deadline just passed.
    fn table() -> String {
        let now = Instant::now();
        let why = Why::Retired;
        let states = [
            State::Starting { ready_by: now },
            State::Serving { misses: 2 },
            State::Draining { drain_by: now, why },
            State::Stopping { kill_at: now, why },
            State::Killing { why },
            State::Dead { why },
        ];
        let mut text = String::new();
        for state in states {
            for input in INPUTS {
                let (next, actions) = step(state, now, input, &PATIENCE);
                let actions: Vec<_> = actions.iter().map(|action| format!("{action:?}")).collect();
                let line = format!("{} + {input:?} = {} {}", name(&state), name(&next), actions.join(" "));
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text
    }

    #[test]
    fn every_state_answers_every_input_as_agreed() {
        assert_eq!(table(), EXPECTED);
    }

    const EXPECTED: &str = "\
Starting + ProbePassed = Serving(0) Admit
Starting + ProbeMissed = Starting
Starting + Idle = Starting
Starting + Retire = Stopping(Retired) Terminate
Starting + Abort = Killing(Retired) Terminate Kill
Starting + Exited = Dead(DiedStarting) Bury
Starting + Tick = Stopping(NeverReady) Terminate
Serving(2) + ProbePassed = Serving(0)
Serving(2) + ProbeMissed = Serving(3) ReportUnwell
Serving(2) + Idle = Serving(2)
Serving(2) + Retire = Draining(Retired) Withdraw
Serving(2) + Abort = Killing(Retired) Withdraw Terminate Kill
Serving(2) + Exited = Dead(DiedServing) Withdraw Bury
Serving(2) + Tick = Serving(2)
Draining(Retired) + ProbePassed = Draining(Retired)
Draining(Retired) + ProbeMissed = Draining(Retired)
Draining(Retired) + Idle = Stopping(Retired) Terminate
Draining(Retired) + Retire = Draining(Retired)
Draining(Retired) + Abort = Killing(Retired) Terminate Kill
Draining(Retired) + Exited = Dead(Retired) Bury
Draining(Retired) + Tick = Stopping(Retired) Terminate
Stopping(Retired) + ProbePassed = Stopping(Retired)
Stopping(Retired) + ProbeMissed = Stopping(Retired)
Stopping(Retired) + Idle = Stopping(Retired)
Stopping(Retired) + Retire = Stopping(Retired)
Stopping(Retired) + Abort = Killing(Retired) Kill
Stopping(Retired) + Exited = Dead(Retired) Bury
Stopping(Retired) + Tick = Killing(Retired) Kill
Killing(Retired) + ProbePassed = Killing(Retired)
Killing(Retired) + ProbeMissed = Killing(Retired)
Killing(Retired) + Idle = Killing(Retired)
Killing(Retired) + Retire = Killing(Retired)
Killing(Retired) + Abort = Killing(Retired)
Killing(Retired) + Exited = Dead(Retired) Bury
Killing(Retired) + Tick = Killing(Retired)
Dead(Retired) + ProbePassed = Dead(Retired)
Dead(Retired) + ProbeMissed = Dead(Retired)
Dead(Retired) + Idle = Dead(Retired)
Dead(Retired) + Retire = Dead(Retired)
Dead(Retired) + Abort = Dead(Retired)
Dead(Retired) + Exited = Dead(Retired)
Dead(Retired) + Tick = Dead(Retired)
";

    proptest! {
        #[test]
        fn every_life_keeps_the_laws(moves in prop::collection::vec((0usize..7, 0u64..40), 0..60)) {
            let mut now = Instant::now();
            let mut state = begin(now, &PATIENCE);
            let (mut admits, mut withdraws, mut terminates, mut buries) = (0, 0, 0, 0);
            for (which, seconds) in moves {
                now += Duration::from_secs(seconds);
                let was_dead = matches!(state, State::Dead { .. });
                let (next, actions) = step(state, now, INPUTS[which], &PATIENCE);
                prop_assert!(!was_dead || (next == state && actions.is_empty()), "Dead absorbs");
                for action in actions {
                    match action {
                        Action::Admit => {
                            prop_assert_eq!(admits, 0, "Admit at most once");
                            prop_assert_eq!(terminates, 0, "never after Terminate");
                            admits += 1;
                        }
                        Action::Withdraw => {
                            withdraws += 1;
                            prop_assert_eq!(withdraws, admits, "one Withdraw for an Admit");
                            prop_assert_eq!(terminates + buries, 0, "before Terminate and Bury");
                        }
                        Action::Terminate => {
                            prop_assert_eq!(terminates, 0);
                            prop_assert_eq!(withdraws, admits, "withdrawn before Terminate");
                            terminates += 1;
                        }
                        Action::Kill => prop_assert_eq!(terminates, 1, "Kill only after Terminate"),
                        Action::Bury => {
                            prop_assert_eq!(buries, 0, "Bury exactly once");
                            prop_assert_eq!(withdraws, admits, "withdrawn before Bury");
                            buries += 1;
                        }
                        Action::ReportUnwell => prop_assert_eq!((admits, withdraws), (1, 0)),
                    }
                }
                state = next;
                prop_assert_eq!(buries == 1, matches!(state, State::Dead { .. }));
            }
        }

        #[test]
        fn a_retired_worker_ends_by_its_deadlines_alone(ready in any::<bool>()) {
            let mut now = Instant::now();
            let mut state = begin(now, &PATIENCE);
            if ready {
                state = step(state, now, Input::ProbePassed, &PATIENCE).0;
            }
            state = step(state, now, Input::Retire, &PATIENCE).0;
            let mut killed = false;
            while let Some(at) = wake_at(&state) {
                prop_assert!(at > now, "a deadline lies ahead");
                now = at;
                let (next, actions) = step(state, now, Input::Tick, &PATIENCE);
                killed |= actions.contains(&Action::Kill);
                state = next;
            }
            prop_assert!(killed);
        }
    }
}
