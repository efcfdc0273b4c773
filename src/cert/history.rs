//! What is remembered of a name between attempts and over restarts: whatever a crash must not make edge forget.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::cert::advice::Advised;
use crate::cert::failure::Class;
use crate::cert::seconds::{self, is_plausible};
use crate::telemetry::status::RenewBecause;

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
    /// When an attempt last failed, also if one has succeeded since.
    #[serde(with = "seconds")]
    pub failed_at: Option<SystemTime>,
    /// The chosen moment of renewal.
    #[serde(with = "seconds")]
    pub renew_at: Option<SystemTime>,
    /// What it follows from.
    pub renew_because: RenewBecause,
    /// Serial number of the certificate it was chosen for.
    pub renew_for: Option<String>,
    /// When that came.
    #[serde(with = "seconds")]
    pub obtained_at: Option<SystemTime>,
    /// What the CA said about its renewal.
    pub advised: Advised,
    /// Until when the CA wants no order; nothing but time and a certificate end this wait.
    #[serde(with = "seconds")]
    pub limited_until: Option<SystemTime>,
    /// Whether the CA said so of the whole account.
    pub limits_account: bool,
    /// When the last attempts failed that may each have cost an order at the CA, the newest last.
    #[serde(with = "seconds::list")]
    pub spent: Vec<SystemTime>,
    /// When another CA than the first was last asked.
    #[serde(with = "seconds")]
    pub fallback_at: Option<SystemTime>,
    /// Which one that was, 1 being the one after the first.
    pub fallback: usize,
    /// No other CA before.
    #[serde(with = "seconds")]
    pub fallback_from: Option<SystemTime>,
    /// How often in a row the name was found not to lead here.
    pub unready: u32,
    /// When the CA is asked although the name does not seem to lead here.
    #[serde(with = "seconds")]
    pub anyway_at: Option<SystemTime>,
    /// The TXT record that would prove the name for good, where its CA takes one and it was not there.
    pub dns_record: Option<String>,
    /// The settings towards the CA that the failures came from.
    pub settings: Option<String>,
}

impl History {
    /// Failures of a class since the last success.
    pub fn count(&self, class: Class) -> u32 {
        self.failures.get(&class).copied().unwrap_or_default()
    }

    /// Forgets the failures that other settings, or an operator, may have mended. That a CA asked to wait is no such failure.
    pub fn forgive(&mut self) {
        self.failures.retain(|class, _| *class == Class::Limited);
        self.next_attempt = self.limited_until;
        self.anyway_at = None;
        self.spent.clear();
    }

    /// The clock was set `by` so much and says `now`. Waits are lengths of time: they move with it, while the moment of renewal
    /// belongs to the calendar. Returned is how moments move.
    pub fn shift(
        &mut self,
        by: Duration,
        forward: bool,
        now: SystemTime,
    ) -> impl Fn(SystemTime) -> SystemTime {
        let set = move |at: SystemTime, forward: bool| {
            let to = if forward { at.checked_add(by) } else { at.checked_sub(by) };
            to.unwrap_or(at)
        };
        // What was on record as edge started by an impossible clock was written under a true one, and is true again.
        let from_impossible = !is_plausible(set(now, !forward));
        let moved =
            move |at: SystemTime| if from_impossible && is_plausible(at) { at } else { set(at, forward) };
        let waits = [&mut self.next_attempt, &mut self.limited_until, &mut self.anyway_at];
        for at in waits.into_iter().chain([&mut self.begun, &mut self.fallback_at, &mut self.fallback_from]) {
            *at = at.map(moved);
        }
        for at in &mut self.spent {
            *at = moved(*at);
        }
        moved
    }
}
