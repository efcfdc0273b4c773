//! When a certificate is ordered: one state machine per name. Decides only; `driver` performs.
//!
//! Everything that must outlive a crash is in [`History`], which the driver saves before it acts: a restart never costs an
//! attempt at the CA.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::cert::delay::{delay, table_delay};
use crate::cert::failure::{Class, Failure};
use crate::cert::validity::Validity;

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

/// What is remembered of a name between attempts and over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Failures since the last success, by class.
    pub failures: BTreeMap<Class, u32>,
    /// Class of the last one.
    pub last_class: Option<Class>,
    /// What it said.
    pub last_error: Option<String>,
    /// No attempt before.
    #[serde(with = "seconds")]
    pub next_attempt: Option<SystemTime>,
    /// When an attempt began that has not ended.
    #[serde(with = "seconds")]
    pub begun: Option<SystemTime>,
    /// The chosen moment of renewal.
    #[serde(with = "seconds")]
    pub renew_at: Option<SystemTime>,
    /// Serial number of the certificate it was chosen for.
    pub renew_for: Option<String>,
}

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
        /// Why, in words.
        message: String,
    },
}

/// What the driver does. All of them, in order, before the next input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Save the history, then order; where saving fails, feed a `Store` failure instead of ordering, unless `regardless`.
    Order {
        /// The certificate is close to its end: better renewed without a record than expired.
        regardless: bool,
    },
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
    Ordering,
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
}

impl Certificate {
    /// What was found at start: the installed certificate with its serial number, and the saved history.
    pub fn found(installed: Option<(Validity, &str)>, history: History, rng: &mut Rng) -> Self {
        let mut certificate =
            Self { state: State::Resting, installed: installed.map(|(validity, _)| validity), history };
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
            self.history.renew_at = Some(whole_second(validity.renewal(validity.not_before, rng)));
            self.history.renew_for = Some(serial.to_owned());
        }
    }

    /// Takes one input. Inputs that do not fit the state change nothing; a certificate that came fits every state.
    pub fn step(&mut self, input: Input, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
        match input {
            Input::Tick => self.tick(now),
            Input::Admitted => match self.state {
                State::Due => {
                    self.state = State::Ordering;
                    self.history.begun = Some(now);
                    let regardless =
                        self.installed.is_some_and(|validity| validity.left(now) < validity.life() / 10);
                    vec![Action::Order { regardless }]
                }
                State::Resting | State::Ordering | State::Storing | State::Unsaved { .. } => Vec::new(),
            },
            Input::Obtained { validity, serial } => {
                self.installed = Some(validity);
                self.history = History {
                    renew_at: Some(whole_second(validity.renewal(now, rng))),
                    renew_for: Some(serial),
                    ..History::default()
                };
                self.state = State::Storing;
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
                State::Resting | State::Due | State::Ordering | State::Unsaved { .. } => Vec::new(),
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
                    // A full disk must not keep a valid certificate from clients.
                    vec![Action::Install]
                }
                State::Resting | State::Due | State::Ordering | State::Unsaved { .. } => Vec::new(),
            },
            Input::Failed(failure) => match self.state {
                State::Ordering => {
                    self.state = State::Resting;
                    self.history.begun = None;
                    self.count(&failure, now, rng);
                    vec![Action::Remember]
                }
                State::Resting | State::Due | State::Storing | State::Unsaved { .. } => Vec::new(),
            },
            Input::Cancelled => match self.state {
                State::Ordering => {
                    self.state = State::Resting;
                    self.history.begun = None;
                    vec![Action::Remember]
                }
                State::Resting | State::Due | State::Storing | State::Unsaved { .. } => Vec::new(),
            },
            Input::Held { until, message } => self.hold(until, message),
        }
    }

    fn tick(&mut self, now: SystemTime) -> Vec<Action> {
        // A wait beyond any we could have chosen was written under another clock.
        if self.history.next_attempt.is_some_and(|at| at > now + LONGEST_WAIT) {
            self.history.next_attempt = Some(now + DAY);
        }
        match self.state {
            State::Resting => {
                if self.due_at().is_none_or(|at| at <= now) {
                    self.state = State::Due;
                }
                Vec::new()
            }
            State::Unsaved { retry_at, .. } => {
                let ending = self.installed.is_some_and(|validity| validity.left(now) < validity.life() / 10);
                if ending {
                    self.state = State::Due;
                    return Vec::new();
                }
                if retry_at > now {
                    return Vec::new();
                }
                self.state = State::Storing;
                vec![Action::Store]
            }
            State::Due | State::Ordering | State::Storing => Vec::new(),
        }
    }

    fn hold(&mut self, until: SystemTime, message: String) -> Vec<Action> {
        match self.state {
            State::Resting | State::Due => {
                if self.history.next_attempt.is_some_and(|at| at >= until) {
                    return Vec::new();
                }
                self.state = State::Resting;
                self.history.next_attempt = Some(whole_second(until));
                self.history.last_error = Some(message);
                vec![Action::Remember]
            }
            State::Ordering | State::Storing | State::Unsaved { .. } => Vec::new(),
        }
    }

    fn count(&mut self, failure: &Failure, at: SystemTime, rng: &mut Rng) {
        let count = self.history.failures.entry(failure.class).or_default();
        *count = count.saturating_add(1);
        let wait = delay(failure, *count, self.installed, at, rng);
        self.history.last_class = Some(failure.class);
        self.history.last_error = Some(failure.message.clone());
        self.history.next_attempt = Some(whole_second(at + wait));
    }

    /// When it wants to order next; `None` is at once.
    pub fn due_at(&self) -> Option<SystemTime> {
        let renewal = self.installed.and(self.history.renew_at);
        match (renewal, self.history.next_attempt) {
            (Some(renewal), Some(attempt)) => Some(renewal.max(attempt)),
            (renewal, attempt) => renewal.or(attempt),
        }
    }

    /// When it must see a `Tick` at the latest; `None` while it waits for something other than time.
    pub fn wake_at(&self, now: SystemTime) -> Option<SystemTime> {
        match self.state {
            State::Resting => Some(self.due_at().unwrap_or(now)),
            State::Unsaved { retry_at, .. } => Some(retry_at),
            State::Due | State::Ordering | State::Storing => None,
        }
    }

    /// Whether it waits for the gate.
    pub fn is_due(&self) -> bool {
        match self.state {
            State::Due => true,
            State::Resting | State::Ordering | State::Storing | State::Unsaved { .. } => false,
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

/// The next whole second: what is decided, shown and saved is the same, and nothing happens earlier than it says.
fn whole_second(at: SystemTime) -> SystemTime {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs() + u64::from(since.subsec_nanos() > 0))
}

/// Whole seconds since 1970.
mod seconds {
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).serialize(to)
    }

    /// The end of the year 9999. What a damaged file says beyond must not overflow where a delay is added.
    const LAST: u64 = 253_402_300_799;

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
        let seconds = Option::<u64>::deserialize(from)?;
        Ok(seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))))
    }
}
