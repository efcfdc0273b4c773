//! Laws of the schedule and the gate over random lives of certificates. At full length these are a million steps.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseResult, TestRunner};

use super::lab::{DAY, HOUR, MINUTE, full_length};
use super::schedule::{admit, start, valid_for};
use crate::cert::advice::{Advice, NoAdvice, Window};
use crate::cert::delay::{LONGEST_WAIT, PER_HOUR, delay};
use crate::cert::failure::{Class, Failure};
use crate::cert::gate::Gate;
use crate::cert::history::History;
use crate::cert::schedule::{Action, Certificate, Input};
use crate::cert::validity::Validity;

const CLASSES: [Class; 10] = [
    Class::Transient,
    Class::Limited,
    Class::Validation,
    Class::Caa,
    Class::Dns,
    Class::Order,
    Class::Account,
    Class::Permanent,
    Class::Action,
    Class::Store,
];

/// Runs a law as often as the length of the run says, and tells how many steps that were.
fn hold<S: Strategy>(law: &str, shorter: u32, of: S, check: impl Fn(S::Value, &Cell<u64>) -> TestCaseResult) {
    let cases = if full_length() { shorter * 50 } else { shorter };
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let steps = Cell::new(0);
    let held = TestRunner::new(config).run(&of, |value| check(value, &steps));
    if let Err(error) = held {
        panic!("{error}");
    }
    println!("figure: {law}: {} steps of {cases} traces", steps.get());
}

fn failure(class: usize, retry_after: Option<u64>) -> Failure {
    let retry_after = retry_after.map(Duration::from_secs);
    Failure { retry_after, ..Failure::new(CLASSES[class % CLASSES.len()], "failed") }
}

#[derive(Debug, Clone)]
enum Event {
    Succeed,
    Fail(usize, Option<u64>),
    DiskFails,
    Unready,
    Crash,
    Wait(u64),
    Hold(u64, usize),
    Force,
    Settle(bool),
    Advise(i64, u64),
    NoAdvice,
    Set(u64, bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Succeed),
        12 => (0..CLASSES.len(), proptest::option::of(0..1_000_000u64)).prop_map(|(c, r)| Event::Fail(c, r)),
        2 => Just(Event::DiskFails),
        2 => Just(Event::Unready),
        3 => Just(Event::Crash),
        6 => (0..200_000u64).prop_map(Event::Wait),
        6 => (0..600u64).prop_map(Event::Wait),
        3 => (0..100_000u64, 0..CLASSES.len()).prop_map(|(s, c)| Event::Hold(s, c)),
        1 => Just(Event::Force),
        1 => any::<bool>().prop_map(Event::Settle),
        2 => (-10_000_000..10_000_000i64, 1..1_000_000u64).prop_map(|(at, width)| Event::Advise(at, width)),
        1 => Just(Event::NoAdvice),
        1 => (0..5_000_000u64, any::<bool>()).prop_map(|(by, forward)| Event::Set(by, forward)),
    ]
}

/// A certificate, and what a bystander knows of it.
struct Life {
    certificate: Certificate,
    rng: Rng,
    now: SystemTime,
    life: Duration,
    ordering: bool,
    begun: SystemTime,
    /// The CA's own wait.
    forbidden_until: SystemTime,
    /// Attempts that cost an order, since the last success or word of the operator.
    spent: Vec<SystemTime>,
    serial: u64,
    /// How many CAs there are besides the first, and which is asked.
    fallbacks: usize,
    asked: usize,
    /// When another one than the first was asked.
    others: Vec<SystemTime>,
    settings: &'static str,
}

impl Life {
    fn new(life: u64, fallbacks: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut certificate = Certificate::found(None, History::default(), &mut rng);
        certificate.settle("settings", fallbacks);
        Self {
            certificate,
            rng,
            now: start(),
            life: Duration::from_secs(life),
            ordering: false,
            begun: start(),
            forbidden_until: start(),
            spent: Vec::new(),
            serial: 0,
            fallbacks,
            asked: 0,
            others: Vec::new(),
            settings: "settings",
        }
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        self.certificate.step(input, self.now, &mut self.rng)
    }

    /// Time has come this far: what starts is allowed to.
    fn tick(&mut self) -> TestCaseResult {
        let actions = self.step(Input::Tick);
        prop_assert!(actions.iter().all(|action| matches!(action, Action::Store | Action::Ask)));
        let wake = self.certificate.wake_at(self.now);
        prop_assert!(wake.is_none_or(|at| at > self.now), "it wakes for nothing");
        if !self.certificate.is_due() {
            return Ok(());
        }
        prop_assert!(!self.ordering, "one order at a time");
        let actions = self.step(Input::Admitted);
        prop_assert_eq!(actions.len(), 1);
        let Action::Order { ca, .. } = actions[0] else {
            return Err(TestCaseError::fail("no order"));
        };
        if ca == 0 {
            prop_assert!(self.now >= self.forbidden_until, "before the CA's wait is over");
            let lately = self.spent.iter().filter(|at| **at + HOUR > self.now).count();
            prop_assert!(self.life < DAY || lately < PER_HOUR, "more than {PER_HOUR} orders in an hour");
        } else {
            let lately = self.others.iter().filter(|at| **at + DAY > self.now).count();
            prop_assert!(ca <= self.fallbacks && lately < self.fallbacks, "each of the others once a day");
            self.others.push(self.now);
        }
        self.asked = ca;
        let again = self.step(Input::Admitted);
        prop_assert!(again.is_empty());
        (self.ordering, self.begun) = (true, self.now);
        Ok(())
    }

    fn take(&mut self, event: &Event) -> TestCaseResult {
        match *event {
            Event::Succeed | Event::DiskFails if self.ordering => {
                self.serial += 1;
                let validity = valid_for(self.now, self.life);
                self.step(Input::Obtained { validity, serial: self.serial.to_string(), at: self.now });
                self.ordering = false;
                self.spent.clear();
                self.step(match event {
                    Event::DiskFails => Input::StoreFailed { message: "full".to_owned() },
                    _ => Input::Stored,
                });
                let due = self.certificate.due_at();
                prop_assert!(due.is_some_and(|at| at > self.now), "a success is never followed at once");
            }
            Event::Fail(class, retry_after) if self.ordering => {
                let failure = failure(class, retry_after);
                self.step(Input::Failed(failure.clone()));
                self.ordering = false;
                let next = self.certificate.history().next_attempt.expect("planned");
                prop_assert!(next > self.now || retry_after == Some(0), "always in the future");
                prop_assert!(next <= self.now + LONGEST_WAIT);
                if failure.class.may_cost_an_order() && self.asked == 0 {
                    self.spent.push(self.now);
                }
                if failure.class == Class::Store && self.asked > 0 {
                    self.others.pop();
                }
                if let (Class::Limited, Some(asked), 0) = (failure.class, retry_after, self.asked) {
                    self.forbidden_until = self.now + Duration::from_secs(asked.min(8 * 86_400));
                }
            }
            Event::Unready if self.ordering => {
                self.step(Input::Unready { message: "elsewhere".to_owned() });
                self.ordering = false;
                let next = self.certificate.history().next_attempt.expect("planned");
                prop_assert!(next > self.now, "looked at again");
                if self.asked > 0 {
                    self.others.pop();
                } else {
                    prop_assert!(next <= self.now + 6 * MINUTE, "soon");
                }
            }
            Event::Crash => self.crash()?,
            Event::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Event::Hold(seconds, class) => {
                let until = self.now + Duration::from_secs(seconds);
                let (class, held) =
                    (CLASSES[class], !self.ordering && self.certificate.wake_at(self.now).is_some());
                self.step(Input::Held { until, class, message: "held".to_owned() });
                if class == Class::Limited && held && self.certificate.history().limited_until >= Some(until)
                {
                    self.forbidden_until = self.forbidden_until.max(until);
                }
            }
            Event::Force => {
                self.step(Input::Force);
                self.spent.clear();
            }
            Event::Settle(other) => {
                self.settings = if other { "other" } else { "settings" };
                self.certificate.settle(self.settings, self.fallbacks);
                self.spent.clear();
            }
            Event::Advise(at, width) => {
                let by = Duration::from_secs(at.unsigned_abs());
                let start = if at < 0 { self.now - by } else { self.now + by };
                let window = Window { start, end: start + Duration::from_secs(width) };
                self.step(Input::Advised(Ok(Advice { window, again_in: None, explanation: None })));
            }
            Event::NoAdvice => {
                self.step(Input::Advised(Err(NoAdvice::Later("busy".to_owned()))));
            }
            Event::Set(by, forward) => self.set(Duration::from_secs(by), forward),
            // Nothing is under way: time passes until something may be.
            Event::Succeed | Event::DiskFails | Event::Fail(..) | Event::Unready => {
                if let Some(wake) = self.certificate.wake_at(self.now) {
                    self.now = self.now.max(wake);
                }
            }
        }
        Ok(())
    }

    fn crash(&mut self) -> TestCaseResult {
        let saved = serde_json::to_vec(self.certificate.history()).expect("plain data");
        let history = serde_json::from_slice(&saved).expect("round trip");
        let serial = self.serial.to_string();
        let installed = self.certificate.installed().map(|validity| (validity, serial.as_str()));
        let renewal = self.certificate.history().renew_at;
        let trusted =
            installed.is_some_and(|(validity, _)| renewal.is_some_and(|at| at <= validity.backstop()));
        self.certificate = Certificate::found(installed, history, &mut self.rng);
        self.certificate.settle(self.settings, self.fallbacks);
        if let (Some(before), Some(after), true) = (renewal, self.certificate.history().renew_at, trusted) {
            let moved = after.duration_since(before).unwrap_or_default();
            prop_assert!(moved <= Duration::from_secs(1), "the chosen moment is kept");
        }
        let waits = self.certificate.due_at().is_some_and(|at| at > self.begun);
        // Another CA has a turn a day, whatever becomes of it.
        prop_assert!(!self.ordering || waits || self.fallbacks > 0, "a crash costs a wait");
        self.ordering = false;
        Ok(())
    }

    /// The wall clock is set; waits keep their length.
    fn set(&mut self, by: Duration, forward: bool) {
        let moved = |at: SystemTime| if forward { at + by } else { at - by };
        self.now = moved(self.now);
        self.begun = moved(self.begun);
        self.forbidden_until = moved(self.forbidden_until);
        self.spent.iter_mut().chain(&mut self.others).for_each(|at| *at = moved(*at));
        self.step(Input::ClockJump { by, forward });
    }
}

#[test]
fn laws_hold_on_every_trace() {
    let lives = prop_oneof![Just(60u64), Just(576_000), Just(7_776_000)];
    let traces = (proptest::collection::vec(event(), 1..200), any::<u64>(), lives, 0..3usize);
    hold("laws of one certificate", 400, traces, |(events, seed, life, fallbacks), steps| {
        let mut one = Life::new(life, fallbacks, seed);
        for event in events {
            one.tick()?;
            one.take(&event)?;
            steps.set(steps.get() + 1);
        }
        Ok(())
    });
}

#[test]
fn equal_inputs_give_equal_outputs() {
    let traces = (proptest::collection::vec(event(), 1..50), any::<u64>());
    hold("equal inputs", 30, traces, |(events, seed), steps| {
        let run = || {
            let mut one = Life::new(576_000, 1, seed);
            for event in &events {
                one.tick()?;
                one.take(event)?;
                steps.set(steps.get() + 1);
            }
            Ok::<_, TestCaseError>(one.certificate)
        };
        prop_assert_eq!(run()?, run()?);
        Ok(())
    });
}

#[test]
fn a_limit_is_never_waited_for_too_short() {
    hold("limits", 300, (0..2_000_000u64, any::<u64>()), |(asked, seed), steps| {
        let failure = failure(1, Some(asked));
        let asked = Duration::from_secs(asked.min(8 * 86_400));
        let wait = delay(&failure, 1, None, start(), &mut Rng::with_seed(seed));
        prop_assert!(wait >= asked && wait <= asked + 10 * MINUTE);
        steps.set(steps.get() + 1);
        Ok(())
    });
}

/// Whatever a CA says before, a renewal comes in time once it issues again two hours before the end.
#[test]
fn a_ca_that_recovers_in_time_renews_before_the_end() {
    let failures =
        proptest::collection::vec((0..CLASSES.len() + 2, proptest::option::of(0..40_000u64)), 1..8);
    let lives = prop_oneof![Just(90 * DAY), Just(160 * HOUR), Just(45 * DAY)];
    hold(
        "recovery",
        400,
        (failures, lives, 0.0..1.0f64, any::<u64>()),
        |(failures, life, share, seed), steps| {
            let mut rng = Rng::with_seed(seed);
            let installed = valid_for(start(), life);
            let (due, latest) =
                (life.mul_f64(if life < 10 * DAY { 0.5 } else { 2.0 / 3.0 }), life - 2 * HOUR);
            let recovers = start() + due + (latest - due).mul_f64(share);
            let mut certificate = Certificate::found(Some((installed, "1")), History::default(), &mut rng);
            let mut turn = failures.iter().cycle();
            loop {
                let now = certificate.due_at().expect("planned");
                prop_assert!(now < installed.not_after, "too late: {:?}", certificate.history());
                admit(&mut certificate, now, &mut rng);
                steps.set(steps.get() + 1);
                if now >= recovers {
                    return Ok(());
                }
                let (class, asked) = *turn.next().expect("a cycle");
                let input = match class.checked_sub(CLASSES.len()) {
                    Some(0) => Input::Unready { message: "elsewhere".to_owned() },
                    Some(_) => {
                        let saved = serde_json::to_vec(certificate.history()).expect("plain data");
                        let history = serde_json::from_slice(&saved).expect("round trip");
                        certificate = Certificate::found(Some((installed, "1")), history, &mut rng);
                        continue;
                    }
                    None => {
                        // A wait that the CA asks for beyond its recovery is the CA's doing.
                        let fits = |asked: &u64| now + Duration::from_secs(*asked) + 10 * MINUTE < recovers;
                        Input::Failed(failure(class, asked.filter(fits)))
                    }
                };
                certificate.step(input, now, &mut rng);
            }
        },
    );
}

/// Many names behind one gate, of which each order takes a while and may fail.
#[test]
fn the_gate_keeps_its_limits_and_its_order() {
    let crowds = (1..400usize, 0..40u64, any::<u64>());
    hold("gate", 20, crowds, |(many, takes, seed), steps| {
        let mut rng = Rng::with_seed(seed);
        let mut gate = Gate::default();
        let mut now = start();
        let mut waiting: Vec<_> = (0..many)
            .map(|index| {
                let left = HOUR * rng.u32(0..2160);
                (index, rng.u8(..) > 20).1.then(|| valid_for(now + left - 90 * DAY, 90 * DAY))
            })
            .enumerate()
            .collect();
        let (mut running, mut starts, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..4 * many {
            let admitted = gate.admit(&waiting, now);
            for index in &admitted {
                let at = waiting.iter().position(|(one, _)| one == index).expect("waits");
                let (_, installed) = waiting.remove(at);
                if let Some(validity) = installed {
                    prop_assert!(starts.last().is_none_or(|last| *last + Duration::from_secs(1) <= now));
                    let sooner = |other: &(usize, Option<Validity>)| {
                        other.1.is_some_and(|v: Validity| v.left(now) < validity.left(now))
                    };
                    prop_assert!(!waiting.iter().any(sooner), "oldest expiry first");
                }
                starts.push(now);
                running.push((now + Duration::from_secs(rng.u64(0..=takes)), rng.u8(..) > 40));
            }
            prop_assert!(running.len() <= 4);
            prop_assert!(starts.iter().filter(|at| **at + Duration::from_secs(10) > now).count() <= 10);
            let lately = orders.iter().filter(|at| **at + 3 * HOUR > now).count();
            prop_assert!(lately <= 300, "{lately} orders in three hours");
            steps.set(steps.get() + 1);
            if waiting.is_empty() {
                break;
            }
            let whenever = now + 9 * HOUR;
            prop_assert!(
                running.len() == 4 || gate.opens_at(whenever).is_some(),
                "nothing wakes those who wait"
            );
            let ends = running.iter().map(|(end, _)| *end).min();
            let next = ends.into_iter().chain(gate.opens_at(now)).min().expect("one of them");
            now = now.max(next);
            running.retain(|(end, cost)| {
                if *end <= now {
                    gate.release(*cost, now);
                    orders.extend(cost.then_some(now));
                }
                *end > now
            });
        }
        prop_assert!(waiting.is_empty(), "{} never came in", waiting.len());
        Ok(())
    });
}
