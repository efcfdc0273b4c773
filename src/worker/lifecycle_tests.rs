use super::*;
use proptest::prelude::*;

const PATIENCE: Patience = Patience {
    start: Duration::from_secs(60),
    drain: Duration::from_secs(30),
    stop: Duration::from_secs(10),
    hang: Some(Duration::from_secs(28)),
    abort: Duration::from_secs(2),
    kill: Duration::from_secs(10),
    misses: 3,
};

const INPUTS: [Input; 9] = [
    Input::ProbePassed,
    Input::ProbeMissed,
    Input::Stuck,
    Input::Reads,
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
        State::Suspect { .. } => "Suspect".into(),
        State::Aborting { .. } => "Aborting".into(),
        State::Draining { why, .. } => format!("Draining({why:?})"),
        State::Stopping { why, .. } => format!("Stopping({why:?})"),
        State::Killing { why, .. } => format!("Killing({why:?})"),
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
        State::Suspect { abort_at: Some(now) },
        State::Aborting { kill_at: now },
        State::Draining { drain_by: now, why },
        State::Stopping { kill_at: now, why },
        State::Killing { give_up_at: now, why },
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
Starting + Stuck = Starting
Starting + Reads = Starting
Starting + Idle = Starting
Starting + Retire = Stopping(Retired) Terminate
Starting + Abort = Killing(Retired) Terminate Kill
Starting + Exited = Dead(DiedStarting) Bury
Starting + Tick = Stopping(NeverReady) Terminate
Serving(2) + ProbePassed = Serving(0)
Serving(2) + ProbeMissed = Serving(3) ReportUnwell
Serving(2) + Stuck = Suspect Suspend
Serving(2) + Reads = Serving(2)
Serving(2) + Idle = Serving(2)
Serving(2) + Retire = Draining(Retired) Withdraw
Serving(2) + Abort = Killing(Retired) Withdraw Terminate Kill
Serving(2) + Exited = Dead(DiedServing) Withdraw Bury
Serving(2) + Tick = Serving(2)
Suspect + ProbePassed = Suspect
Suspect + ProbeMissed = Suspect
Suspect + Stuck = Suspect
Suspect + Reads = Serving(0) Resume
Suspect + Idle = Suspect
Suspect + Retire = Draining(Retired) Withdraw
Suspect + Abort = Killing(Retired) Withdraw Terminate Kill
Suspect + Exited = Dead(DiedServing) Withdraw Bury
Suspect + Tick = Aborting Withdraw Interrupt
Aborting + ProbePassed = Aborting
Aborting + ProbeMissed = Aborting
Aborting + Stuck = Aborting
Aborting + Reads = Aborting
Aborting + Idle = Aborting
Aborting + Retire = Aborting
Aborting + Abort = Killing(Hung) Kill
Aborting + Exited = Dead(Hung) Bury
Aborting + Tick = Killing(Hung) Kill
Draining(Retired) + ProbePassed = Draining(Retired)
Draining(Retired) + ProbeMissed = Draining(Retired)
Draining(Retired) + Stuck = Draining(Retired)
Draining(Retired) + Reads = Draining(Retired)
Draining(Retired) + Idle = Stopping(Retired) Terminate
Draining(Retired) + Retire = Draining(Retired)
Draining(Retired) + Abort = Killing(Retired) Terminate Kill
Draining(Retired) + Exited = Dead(Retired) Bury
Draining(Retired) + Tick = Stopping(Retired) Terminate
Stopping(Retired) + ProbePassed = Stopping(Retired)
Stopping(Retired) + ProbeMissed = Stopping(Retired)
Stopping(Retired) + Stuck = Stopping(Retired)
Stopping(Retired) + Reads = Stopping(Retired)
Stopping(Retired) + Idle = Stopping(Retired)
Stopping(Retired) + Retire = Stopping(Retired)
Stopping(Retired) + Abort = Killing(Retired) Kill
Stopping(Retired) + Exited = Dead(Retired) Bury
Stopping(Retired) + Tick = Killing(Retired) Kill
Killing(Retired) + ProbePassed = Killing(Retired)
Killing(Retired) + ProbeMissed = Killing(Retired)
Killing(Retired) + Stuck = Killing(Retired)
Killing(Retired) + Reads = Killing(Retired)
Killing(Retired) + Idle = Killing(Retired)
Killing(Retired) + Retire = Killing(Retired)
Killing(Retired) + Abort = Killing(Retired)
Killing(Retired) + Exited = Dead(Retired) Bury
Killing(Retired) + Tick = Dead(Retired) Bury
Dead(Retired) + ProbePassed = Dead(Retired)
Dead(Retired) + ProbeMissed = Dead(Retired)
Dead(Retired) + Stuck = Dead(Retired)
Dead(Retired) + Reads = Dead(Retired)
Dead(Retired) + Idle = Dead(Retired)
Dead(Retired) + Retire = Dead(Retired)
Dead(Retired) + Abort = Dead(Retired)
Dead(Retired) + Exited = Dead(Retired)
Dead(Retired) + Tick = Dead(Retired)
";

proptest! {
    #[test]
    fn every_life_keeps_the_laws(moves in prop::collection::vec((0usize..9, 0u64..40), 0..60)) {
        let mut now = Instant::now();
        let mut state = begin(now, &PATIENCE);
        let (mut admits, mut withdraws, mut terminates, mut buries) = (0, 0, 0, 0);
        let mut suspended = false;
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
                    Action::Suspend | Action::Resume => {
                        prop_assert_eq!((admits, withdraws), (1, 0));
                        prop_assert_eq!(suspended, action == Action::Resume, "in turn");
                        suspended = !suspended;
                    }
                    Action::Interrupt => {
                        prop_assert_eq!((terminates, withdraws), (0, 1));
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
        prop_assert!(matches!(state, State::Dead { .. }), "also where the kernel does not let go of it");
    }
}
