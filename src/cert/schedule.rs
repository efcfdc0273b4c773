//! When a certificate is ordered: one state machine per name. Decides only; `driver` performs.
//!
//! Everything that must outlive a crash is in [`History`], which the driver saves before it acts: a restart never costs an
//! attempt at the CA.

use std::time::{Duration, SystemTime};

use fastrand::Rng;

use crate::cert::advice::{Advice, Advised, NoAdvice};
use crate::cert::delay::{PER_HOUR, budget, delay, table_delay};
use crate::cert::failure::{Class, Failure, Reach};
use crate::cert::history::History;
use crate::cert::seconds;
use crate::cert::validity::Validity;
use crate::telemetry::status::RenewBecause;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Longest wait a CA may ask for. Beyond it the clock or the CA is wrong.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8 * 24 * 3600 + 600);

/// 2026-01-01: a clock before this is wrong, and neither validity nor delays mean anything.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Whether `now` can be true.
pub fn is_plausible(now: SystemTime) -> bool {
    now >= SystemTime::UNIX_EPOCH + EARLIEST
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The gate let it through.
    Admitted {
        /// How many CAs there are besides the first.
        fallbacks: usize,
    },
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
}

impl Certificate {
    /// What was found at start: the installed certificate with its serial number, and the saved history.
    pub fn found(installed: Option<(Validity, &str)>, history: History, rng: &mut Rng) -> Self {
        let installed_validity = installed.map(|(validity, _)| validity);
        let mut certificate =
            Self { state: State::Resting, installed: installed_validity, history, asking: false };
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

    /// The settings towards the CA are these. What failed for other ones, and could be repaired by changing them, is
    /// forgotten; that a CA asked to wait is not.
    pub fn settle(&mut self, settings: &str) {
        if self.history.settings.as_deref().is_some_and(|known| known != settings) {
            self.history.dns_record = None;
            self.forgive();
        }
        self.history.settings = Some(settings.to_owned());
    }

    /// The TXT record that would prove the name for good is not there; or it is, or its CA takes none.
    pub fn note_record(&mut self, record: Option<String>) {
        self.history.dns_record = record;
    }

    fn forgive(&mut self) {
        self.history.failures.retain(|class, _| *class == Class::Limited);
        self.history.next_attempt = self.history.limited_until;
        self.history.anyway_at = None;
        self.history.spent.clear();
    }

    /// Until when the CA's own wait stands in the way of an order that is forced.
    pub fn limited_until(&self, now: SystemTime) -> Option<SystemTime> {
        self.history.limited_until.filter(|until| *until > now)
    }

    /// Takes one input. Inputs that do not fit the state change nothing; a certificate that came fits every state.
    pub fn step(&mut self, input: Input, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
        match input {
            Input::Tick => self.tick(now),
            Input::Admitted { fallbacks } => match self.state {
                State::Due => {
                    let ca = self.choose_ca(fallbacks, now);
                    self.state = State::Ordering { ca };
                    self.history.begun = Some(now);
                    let check = self.history.anyway_at.is_none_or(|at| now < at);
                    vec![Action::Order { regardless: self.is_ending(now), ca, check }]
                }
                State::Resting | State::Ordering { .. } | State::Storing | State::Unsaved { .. } => {
                    Vec::new()
                }
            },
            Input::Obtained { validity, serial, at } => {
                self.installed = Some(validity);
                self.history = History {
                    renew_at: Some(seconds::whole(validity.renewal(now, rng))),
                    renew_for: Some(serial),
                    obtained_at: Some(seconds::whole(at)),
                    fallback_at: self.history.fallback_at,
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
            Input::Stored => match self.state {
                State::Storing => {
                    self.state = State::Resting;
                    self.history.failures.clear();
                    self.history.last_error = None;
                    self.history.last_class = None;
                    vec![Action::Install, Action::Remember]
                }
                State::Resting | State::Due | State::Ordering { .. } | State::Unsaved { .. } => Vec::new(),
            },
            Input::StoreFailed { message } => match self.state {
                State::Storing => {
                    let tries =
                        self.history.failures.get(&Class::Store).map_or(1, |tries| tries.saturating_add(1));
                    self.history.failures.insert(Class::Store, tries);
                    let wait = table_delay(Class::Store, tries, self.life()).unwrap_or(MINUTE);
                    self.state = State::Unsaved { retry_at: now + wait };
                    self.history.last_error = Some(message);
                    self.history.last_class = Some(Class::Store);
                    self.history.failed_at = Some(seconds::whole(now));
                    // A full disk must not keep a valid certificate from clients.
                    vec![Action::Install]
                }
                State::Resting | State::Due | State::Ordering { .. } | State::Unsaved { .. } => Vec::new(),
            },
            Input::Failed(failure) => match self.state {
                State::Ordering { ca } => {
                    let failure = if ca == 0 { failure } else { self.stand_in(failure, now) };
                    self.state = State::Resting;
                    self.history.begun = None;
                    self.count(&failure, now, rng);
                    self.look_again(now);
                    if failure.class == Class::Limited {
                        self.history.limited_until = self.history.next_attempt;
                        self.history.limits_account = failure.reach == Reach::Account;
                    }
                    vec![Action::Remember]
                }
                State::Resting | State::Due | State::Storing | State::Unsaved { .. } => Vec::new(),
            },
            Input::Cancelled => match self.state {
                State::Ordering { .. } => {
                    self.state = State::Resting;
                    self.history.begun = None;
                    vec![Action::Remember]
                }
                State::Resting | State::Due | State::Storing | State::Unsaved { .. } => Vec::new(),
            },
            Input::Held { until, class, message } => self.hold(until, class, message),
            Input::Unready { message } => self.unready(message, now),
            Input::Advised(answer) => self.advised(&answer, now, rng),
            Input::Force => self.force(now),
            Input::ClockJump { by, forward } => {
                if !is_plausible(now) {
                    // By such a clock nothing is decided, and it will be set again.
                    return Vec::new();
                }
                self.shift(by, forward, now);
                if self.state == State::Due {
                    // By the old time; the next tick says whether by the new one as well.
                    self.state = State::Resting;
                }
                vec![Action::Remember]
            }
        }
    }

    /// The first CA, unless it has failed in a way another one may not; that one is asked once a day.
    fn choose_ca(&mut self, fallbacks: usize, now: SystemTime) -> usize {
        let failed = |class| self.history.count(class);
        let rounds = failed(Class::Transient);
        let wanted = rounds >= 3
            || failed(Class::Account) > 0
            || (failed(Class::Limited) >= 2 && (self.installed.is_none() || self.is_ending(now)));
        let lately = self.history.fallback_at.is_some_and(|at| at <= now + LONGEST_WAIT && at + DAY > now);
        if fallbacks == 0 || !wanted || lately {
            return 0;
        }
        self.history.fallback_at = Some(seconds::whole(now));
        1 + rounds as usize % fallbacks
    }

    /// What a CA refuses that stands in for the first is no reason to keep from that one, whose turn it is for a day now; or for
    /// longer, where the other wants to be left alone so long.
    fn stand_in(&mut self, failure: Failure, now: SystemTime) -> Failure {
        match failure.class {
            Class::Transient | Class::Validation | Class::Dns | Class::Store => failure,
            Class::Limited
            | Class::Caa
            | Class::Order
            | Class::Account
            | Class::Permanent
            | Class::Action => {
                let over = failure.retry_after.map(|wait| wait.min(8 * DAY).saturating_sub(DAY));
                self.history.fallback_at = Some(seconds::whole(now + over.unwrap_or_default()));
                Failure { class: Class::Transient, retry_after: None, ..failure }
            }
        }
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

    fn unready(&mut self, message: String, now: SystemTime) -> Vec<Action> {
        match self.state {
            State::Ordering { .. } => {
                let tried = self.history.count(Class::Validation);
                let patience = table_delay(Class::Validation, tried.saturating_add(1), self.life());
                self.history.anyway_at.get_or_insert(seconds::whole(now + patience.unwrap_or(DAY).min(DAY)));
                self.history.unready = self.history.unready.saturating_add(1);
                let again = self.look_wait();
                self.state = State::Resting;
                self.history.begun = None;
                self.history.last_class = Some(Class::Validation);
                self.history.last_error = Some(message);
                self.history.next_attempt = Some(seconds::whole(now + again));
                vec![Action::Remember]
            }
            State::Resting | State::Due | State::Storing | State::Unsaved { .. } => Vec::new(),
        }
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
        match self.state {
            State::Resting if self.limited_until(now).is_none() => {
                self.forgive();
                self.history.anyway_at = Some(seconds::whole(now));
                self.history.renew_at = self.installed.and(Some(now));
                self.history.renew_because = RenewBecause::Asked;
                self.state = State::Due;
                vec![Action::Remember]
            }
            State::Resting | State::Due | State::Ordering { .. } | State::Storing | State::Unsaved { .. } => {
                Vec::new()
            }
        }
    }

    /// Waits are lengths of time: they move with a clock that is set, while the moment of renewal belongs to the calendar.
    fn shift(&mut self, by: Duration, forward: bool, now: SystemTime) {
        let set = |at: SystemTime, forward: bool| {
            let to = if forward { at.checked_add(by) } else { at.checked_sub(by) };
            to.unwrap_or(at)
        };
        // What was on record as edge started by an impossible clock was written under a true one, and is true again.
        let from_impossible = !is_plausible(set(now, !forward));
        let moved = |at: SystemTime| if from_impossible && is_plausible(at) { at } else { set(at, forward) };
        let history = &mut self.history;
        let waits = [&mut history.next_attempt, &mut history.limited_until, &mut history.anyway_at];
        for at in waits.into_iter().chain([&mut history.begun, &mut history.fallback_at]) {
            *at = at.map(moved);
        }
        for at in &mut history.spent {
            *at = moved(*at);
        }
        if let State::Unsaved { retry_at } = &mut self.state {
            *retry_at = moved(*retry_at);
        }
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
                if self.is_ending(now) {
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
        match self.state {
            State::Resting | State::Due => {
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
            State::Ordering { .. } | State::Storing | State::Unsaved { .. } => Vec::new(),
        }
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
        renewal.max(self.history.next_attempt).max(self.history.limited_until)
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
