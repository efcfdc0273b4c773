//! When a certificate is ordered: one state machine per name. Decides only; `driver` performs.
//!
//! Everything that must outlive a crash is in [`History`], which the driver saves before it acts: a restart never costs an
//! attempt at the CA.

use std::time::{Duration, SystemTime};

use fastrand::Rng;

use crate::cert::advice::{Advice, Advised, NoAdvice};
use crate::cert::delay::{LONGEST_WAIT, PER_HOUR, budget, delay, table_delay};
use crate::cert::failure::{Class, Failure, Reach};
use crate::cert::history::History;
use crate::cert::seconds::{self, is_plausible};
use crate::cert::turns::Others;
use crate::cert::validity::Validity;
use crate::telemetry::status::RenewBecause;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The gate let it through.
    Admitted,
    /// A checked certificate came back.
    Obtained {
        /// Its time.
        validity: Validity,
        /// Its serial number.
        serial: String,
        /// When the CA made it for edge; of one that another program obtained, its start.
        at: SystemTime,
    },
    /// It is on the disk.
    Stored,
    /// The disk refused it.
    StoreFailed {
        /// Why.
        message: String,
    },
    /// The attempt failed.
    Failed(Failure),
    /// The attempt was given up before it counted, because edge stops.
    Cancelled,
    /// Another name's failure stands in the way of this one until then.
    Held {
        /// No attempt before.
        until: SystemTime,
        /// What kind of failure it was.
        class: Class,
        /// Why, in words.
        message: String,
    },
    /// The name does not lead to this machine; the CA was not asked.
    Unready {
        /// Why, in words.
        message: String,
    },
    /// What the CA says about the renewal.
    Advised(Result<Advice, NoAdvice>),
    /// The operator wants a new certificate now.
    Force,
    /// The wall clock was set; monotonic time knows of no such step.
    ClockJump {
        /// How far.
        by: Duration,
        /// Which way.
        forward: bool,
    },
}

/// What the driver does. All of them, in order, before the next input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Save the history, then order; where saving fails, feed a `Store` failure instead of ordering, unless `regardless`.
    Order {
        /// The certificate is close to its end: better renewed without a record than expired.
        regardless: bool,
        /// Which CA: 0 is the first.
        ca: usize,
        /// Whether to look first if the name leads here, and to feed `Unready` where it does not.
        check: bool,
    },
    /// Ask the CA when it wants the certificate renewed; feed `Advised`.
    Ask,
    /// Write the certificate that just came to the disk; feed `Stored` or `StoreFailed`.
    Store,
    /// Serve it. After it was stored, so that a crash in between does not cost another order.
    Install,
    /// Save the history.
    Remember,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing to do until `due_at`.
    Resting,
    /// Wants to order; waits for the gate.
    Due,
    /// An order is under way.
    Ordering { ca: usize },
    /// Has a certificate that is on its way to the disk.
    Storing,
    /// As before; the disk refused.
    Unsaved { retry_at: SystemTime },
}

/// One name's certificate: what is installed, what happened, what is going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    state: State,
    installed: Option<Validity>,
    history: History,
    asking: bool,
    /// How many CAs there are besides the first.
    fallbacks: usize,
}

impl Certificate {
    /// What was found at start: the installed certificate with its serial number, and the saved history.
    pub fn found(installed: Option<(Validity, &str)>, history: History, rng: &mut Rng) -> Self {
        let installed_validity = installed.map(|(validity, _)| validity);
        let state = State::Resting;
        let mut certificate =
            Self { state, installed: installed_validity, history, asking: false, fallbacks: 0 };
        certificate.choose_renewal(installed, rng);
        if let Some(begun) = certificate.history.begun.take() {
            // Edge died in the middle of an attempt. That counts, or a crash loop would order without end.
            let message = "edge was stopped in the middle of the last attempt".to_owned();
            certificate.count(&Failure::new(Class::Transient, message), begun, rng);
        }
        certificate
    }

    fn choose_renewal(&mut self, installed: Option<(Validity, &str)>, rng: &mut Rng) {
        let Some((validity, serial)) = installed else {
            self.history.renew_at = None;
            self.history.renew_for = None;
            return;
        };
        let kept = self.history.renew_for.as_deref() == Some(serial)
            && self.history.renew_at.is_some_and(|at| at <= validity.backstop());
        if !kept {
            // Chosen as if at its start: what has no record may be due at once.
            self.history.renew_at = Some(seconds::whole(validity.renewal(validity.not_before, rng)));
            self.history.renew_because = RenewBecause::Lifetime;
            self.history.renew_for = Some(serial.to_owned());
            self.history.advised = Advised::default();
        }
    }

    /// The settings towards the CAs are these, and so many stand behind the first. What failed for other settings, and could be
    /// repaired by changing them, is forgotten; that a CA asked to wait is not.
    pub fn settle(&mut self, settings: &str, fallbacks: usize) {
        self.fallbacks = fallbacks;
        if self.history.settings.as_deref().is_some_and(|known| known != settings) {
            self.history.dns_record = None;
            self.history.forgive();
        }
        self.history.settings = Some(settings.to_owned());
    }

    /// The TXT record that would prove the name for good is not there; or it is, or its CA takes none.
    pub fn note_record(&mut self, record: Option<String>) {
        self.history.dns_record = record;
    }

    /// Until when the CA's own wait stands in the way of an order that is forced.
    pub fn limited_until(&self, now: SystemTime) -> Option<SystemTime> {
        self.history.limited_until.filter(|until| *until > now)
    }

    /// Takes one input. Inputs that do not fit the state change nothing; a certificate that came fits every state.
    pub fn step(&mut self, input: Input, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
        match (input, self.state) {
            (Input::Tick, _) => self.tick(now),
            (Input::Admitted, State::Due) => self.admitted(now),
            (Input::Obtained { validity, serial, at }, _) => self.obtained(validity, serial, at, now, rng),
            (Input::Stored, State::Storing) => {
                self.state = State::Resting;
                self.history.failures.clear();
                self.history.last_error = None;
                self.history.last_class = None;
                vec![Action::Install, Action::Remember]
            }
            (Input::StoreFailed { message }, State::Storing) => self.not_stored(message, now),
            (Input::Failed(failure), State::Ordering { ca }) => self.failed(failure, ca, now, rng),
            (Input::Cancelled, State::Ordering { ca }) => {
                self.state = State::Resting;
                self.history.begun = None;
                if ca > 0 {
                    self.history.give_turn_back(ca, None);
                }
                vec![Action::Remember]
            }
            (Input::Held { until, class, message }, State::Resting | State::Due) => {
                self.hold(until, class, message)
            }
            (Input::Unready { message }, State::Ordering { ca }) => self.unready(message, ca, now),
            (Input::Advised(answer), _) => self.advised(&answer, now, rng),
            (Input::Force, State::Resting) if self.limited_until(now).is_none() => self.force(now),
            (Input::ClockJump { by, forward }, _) if is_plausible(now) => self.shift(by, forward, now),
            // By an impossible clock nothing is decided, and it will be set again.
            (Input::ClockJump { .. }, _)
            | (
                Input::Admitted
                | Input::Stored
                | Input::StoreFailed { .. }
                | Input::Failed(_)
                | Input::Cancelled
                | Input::Held { .. }
                | Input::Unready { .. }
                | Input::Force,
                State::Resting | State::Due | State::Ordering { .. } | State::Storing | State::Unsaved { .. },
            ) => Vec::new(),
        }
    }

    fn admitted(&mut self, now: SystemTime) -> Vec<Action> {
        let ca = self.history.take_turn(self.others(), now);
        self.state = State::Ordering { ca };
        self.history.begun = Some(now);
        let check = self.history.anyway_at.is_none_or(|at| now < at);
        vec![Action::Order { regardless: self.is_ending(now), ca, check }]
    }

    fn obtained(
        &mut self,
        validity: Validity,
        serial: String,
        at: SystemTime,
        now: SystemTime,
        rng: &mut Rng,
    ) -> Vec<Action> {
        self.installed = Some(validity);
        // That another CA has issued ends no wait the first has asked for.
        let limited_until = match self.state {
            State::Ordering { ca } if ca > 0 => self.history.limited_until,
            State::Resting | State::Due | State::Ordering { .. } | State::Storing | State::Unsaved { .. } => {
                None
            }
        };
        self.history = History {
            limited_until,
            limits_account: limited_until.is_some() && self.history.limits_account,
            renew_at: Some(seconds::whole(validity.renewal(now, rng))),
            renew_for: Some(serial),
            obtained_at: Some(seconds::whole(at)),
            fallback_at: self.history.fallback_at,
            fallback: self.history.fallback,
            failed_at: self.history.failed_at,
            settings: self.history.settings.take(),
            dns_record: self.history.dns_record.take(),
            ..History::default()
        };
        self.state = State::Storing;
        // What is asked now is of the one before.
        self.asking = false;
        vec![Action::Store]
    }

    fn not_stored(&mut self, message: String, now: SystemTime) -> Vec<Action> {
        let tries = self.history.count(Class::Store).saturating_add(1);
        self.history.failures.insert(Class::Store, tries);
        let wait = table_delay(Class::Store, tries, self.life()).unwrap_or(MINUTE);
        self.state = State::Unsaved { retry_at: now + wait };
        self.history.last_error = Some(message);
        self.history.last_class = Some(Class::Store);
        self.history.failed_at = Some(seconds::whole(now));
        // A full disk must not keep a valid certificate from clients.
        vec![Action::Install]
    }

    fn failed(&mut self, failure: Failure, ca: usize, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
        let planned = self.history.next_attempt.filter(|_| ca > 0);
        let failure = if ca == 0 { failure } else { self.history.stand_in(failure, now) };
        self.state = State::Resting;
        self.history.begun = None;
        self.count(&failure, now, rng);
        self.look_again(now);
        if ca > 0 && failure.class == Class::Store {
            self.history.give_turn_back(ca, self.history.next_attempt);
        }
        // What came of another CA does not make the first be asked sooner.
        self.history.next_attempt = self.history.next_attempt.max(planned);
        if failure.class == Class::Limited {
            self.history.limited_until = self.history.next_attempt;
            self.history.limits_account = failure.reach == Reach::Account;
        }
        vec![Action::Remember]
    }

    fn others(&self) -> Others {
        Others { many: self.fallbacks, installed: self.installed }
    }

    /// Whether it would be another CA's turn: what stands against the first is nothing to wait for.
    pub fn is_for_another_ca(&self, now: SystemTime) -> bool {
        self.history.other(self.others(), now).is_some()
    }

    /// Whether what is installed is in the last tenth of its life.
    pub fn is_ending(&self, now: SystemTime) -> bool {
        self.installed.is_some_and(|validity| validity.left(now) < validity.life() / 10)
    }

    /// After a failure: where the name did not seem to lead here before, the next look comes soon, and the CA is asked at once
    /// when it does.
    fn look_again(&mut self, now: SystemTime) {
        let unseen = self.history.anyway_at.take().is_some_and(|at| at <= now);
        if unseen && self.history.unready > 0 && self.history.last_class == Some(Class::Validation) {
            let planned = self.history.next_attempt;
            self.history.anyway_at = planned;
            self.history.next_attempt = planned.map(|at| at.min(seconds::whole(now + self.look_wait())));
        } else {
            self.history.unready = 0;
        }
    }

    fn look_wait(&self) -> Duration {
        if self.history.unready <= 10 { MINUTE } else { 5 * MINUTE }
    }

    fn unready(&mut self, message: String, ca: usize, now: SystemTime) -> Vec<Action> {
        let tried = self.history.count(Class::Validation);
        let patience = table_delay(Class::Validation, tried.saturating_add(1), self.life());
        self.history.anyway_at.get_or_insert(seconds::whole(now + patience.unwrap_or(DAY).min(DAY)));
        self.history.unready = self.history.unready.saturating_add(1);
        let again = seconds::whole(now + self.look_wait());
        self.state = State::Resting;
        self.history.begun = None;
        self.history.last_class = Some(Class::Validation);
        self.history.last_error = Some(message);
        let planned = self.history.next_attempt.filter(|_| ca > 0);
        self.history.next_attempt = planned.max(Some(again));
        if ca > 0 {
            self.history.give_turn_back(ca, Some(again));
        }
        vec![Action::Remember]
    }

    fn advised(&mut self, answer: &Result<Advice, NoAdvice>, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
        self.asking = false;
        self.history.advised.take(answer, now);
        if let (Ok(advice), Some(validity)) = (answer, self.installed) {
            if self.history.renew_at.is_none_or(|at| !advice.window.holds(at)) {
                let obtained = self.history.obtained_at.unwrap_or(validity.not_before);
                let chosen = advice.window.choose(validity, obtained, now, rng);
                self.history.renew_at = Some(seconds::whole(chosen));
            }
            // Before the window is what the certificate's life does not let be later.
            let early = self.history.renew_at.is_some_and(|at| at < advice.window.start);
            self.history.renew_because = if early { RenewBecause::Lifetime } else { RenewBecause::CaWindow };
        }
        vec![Action::Remember]
    }

    fn force(&mut self, now: SystemTime) -> Vec<Action> {
        self.history.forgive();
        self.history.anyway_at = Some(seconds::whole(now));
        self.history.renew_at = self.installed.and(Some(now));
        self.history.renew_because = RenewBecause::Asked;
        self.state = State::Due;
        vec![Action::Remember]
    }

    fn shift(&mut self, by: Duration, forward: bool, now: SystemTime) -> Vec<Action> {
        let moved = self.history.shift(by, forward, now);
        match &mut self.state {
            State::Unsaved { retry_at } => *retry_at = moved(*retry_at),
            // By the old time; the next tick says whether by the new one as well.
            State::Due => self.state = State::Resting,
            State::Resting | State::Ordering { .. } | State::Storing => {}
        }
        vec![Action::Remember]
    }

    fn tick(&mut self, now: SystemTime) -> Vec<Action> {
        // A wait beyond any we could have chosen was written under another clock.
        if self.history.next_attempt.is_some_and(|at| at > now + LONGEST_WAIT) {
            self.history.next_attempt = Some(now + DAY);
        }
        if self.history.limited_until.is_some_and(|at| at <= now || at > now + LONGEST_WAIT) {
            self.history.limited_until = None;
        }
        match self.state {
            State::Resting => {
                if self.due_at().is_none_or(|at| at <= now) {
                    self.state = State::Due;
                } else if self.ask_at(now).is_some_and(|at| at <= now) {
                    self.asking = true;
                    return vec![Action::Ask];
                }
                Vec::new()
            }
            State::Unsaved { retry_at, .. } => {
                let may_order = self.limited_until(now).is_none() || self.is_for_another_ca(now);
                if self.is_ending(now) && may_order {
                    self.state = State::Due;
                    return Vec::new();
                }
                if retry_at > now {
                    return Vec::new();
                }
                self.state = State::Storing;
                vec![Action::Store]
            }
            State::Due | State::Ordering { .. } | State::Storing => Vec::new(),
        }
    }

    fn hold(&mut self, until: SystemTime, class: Class, message: String) -> Vec<Action> {
        if class == Class::Limited {
            self.history.limited_until = self.history.limited_until.max(Some(seconds::whole(until)));
            self.history.limits_account = true;
        }
        if class == Class::Account {
            // Another CA may be asked for this name as well.
            self.history.failures.entry(class).or_insert(1);
        }
        if self.history.next_attempt.is_some_and(|at| at >= until) {
            return Vec::new();
        }
        self.state = State::Resting;
        self.history.next_attempt = Some(seconds::whole(until));
        self.history.last_error = Some(message);
        self.history.last_class = Some(class);
        vec![Action::Remember]
    }

    fn count(&mut self, failure: &Failure, at: SystemTime, rng: &mut Rng) {
        let count = self.history.failures.entry(failure.class).or_default();
        *count = count.saturating_add(1);
        let mut wait = delay(failure, *count, self.installed, at, rng);
        if failure.class.may_cost_an_order() {
            let life = self.life();
            let spent = &mut self.history.spent;
            spent.push(seconds::whole(at));
            spent.drain(..spent.len().saturating_sub(PER_HOUR));
            wait = wait.max(budget(spent, life, at));
        }
        self.history.last_class = Some(failure.class);
        self.history.last_error = Some(failure.message.clone());
        self.history.next_attempt = Some(seconds::whole(at + wait));
        self.history.failed_at = Some(seconds::whole(at));
    }

    /// When it wants to order next; `None` is at once.
    pub fn due_at(&self) -> Option<SystemTime> {
        let renewal = self.installed.and(self.history.renew_at);
        let first = self.history.next_attempt.max(self.history.limited_until);
        let elsewhere = self.history.elsewhere_at(self.others());
        renewal.max(elsewhere.map_or(first, |at| first.min(Some(at))))
    }

    /// When the next attempt is made after one that failed.
    pub fn next_attempt(&self, now: SystemTime) -> Option<SystemTime> {
        let planned = self.history.next_attempt?;
        let elsewhere = self.history.elsewhere_at(self.others());
        Some(elsewhere.map_or(planned, |at| planned.min(at.max(now))))
    }

    /// When it must see a `Tick` at the latest; `None` while it waits for something other than time.
    pub fn wake_at(&self, now: SystemTime) -> Option<SystemTime> {
        match self.state {
            State::Resting => {
                let due = self.due_at().unwrap_or(now);
                Some(self.ask_at(now).map_or(due, |ask| ask.min(due)))
            }
            State::Unsaved { retry_at, .. } => Some(retry_at),
            State::Due | State::Ordering { .. } | State::Storing => None,
        }
    }

    /// When the CA is to be asked about the renewal; `None` while it is being asked and where there is nothing to ask about.
    fn ask_at(&self, now: SystemTime) -> Option<SystemTime> {
        let alive = self.installed.is_some_and(|validity| validity.not_after > now);
        let planned = self.history.advised.ask_at().filter(|at| *at <= now + DAY + MINUTE);
        // Later than an answer puts it was written under another clock.
        (alive && !self.asking).then(|| planned.unwrap_or(now))
    }

    /// Whether it waits for the gate.
    pub fn is_due(&self) -> bool {
        match self.state {
            State::Due => true,
            State::Resting | State::Ordering { .. } | State::Storing | State::Unsaved { .. } => false,
        }
    }

    /// Whether nothing is under way for it and nothing wanted yet.
    pub fn rests(&self) -> bool {
        match self.state {
            State::Resting => true,
            State::Due | State::Ordering { .. } | State::Storing | State::Unsaved { .. } => false,
        }
    }

    /// What is installed.
    pub fn installed(&self) -> Option<Validity> {
        self.installed
    }

    /// What is remembered.
    pub fn history(&self) -> &History {
        &self.history
    }

    fn life(&self) -> Option<Duration> {
        self.installed.map(|validity| validity.life())
    }
}
