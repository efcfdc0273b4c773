//! What is remembered of a name between attempts and over restarts: whatever a crash must not make edge forget.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::cert::advice::Advised;
use crate::cert::failure::Class;
use crate::cert::seconds;
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
}
