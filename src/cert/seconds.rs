//! Moments as whole seconds since 1970: what is decided, shown and saved is the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The end of the year 9999. What a damaged file says beyond must not overflow where a delay is added.
const LAST: u64 = 253_402_300_799;

/// 2026-01-01: a clock before this is wrong, and neither validity nor delays mean anything.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Whether `now` can be true.
pub fn is_plausible(now: SystemTime) -> bool {
    now >= UNIX_EPOCH + EARLIEST
}

/// The next whole second: nothing happens earlier than it says.
pub fn whole(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs() + u64::from(since.subsec_nanos() > 0))
}

/// A wall time for people and scripts, in whole seconds. Beyond what RFC 3339 can say, the seconds since 1970.
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = written(at);
    let known = i64::try_from(seconds).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    known.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| seconds.to_string())
}

/// For `#[serde(with = …)]`.
pub fn serialize<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    at.map(written).serialize(to)
}

/// For `#[serde(with = …)]`.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
    Ok(Option::<u64>::deserialize(from)?.map(read))
}

/// For `#[serde(with = …)]` of several.
pub mod list {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// For `#[serde(with = …)]`.
    pub fn serialize<S: Serializer>(all: &[SystemTime], to: S) -> Result<S::Ok, S::Error> {
        all.iter().map(|at| crate::cert::seconds::written(*at)).collect::<Vec<_>>().serialize(to)
    }

    /// For `#[serde(with = …)]`.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SystemTime>, D::Error> {
        Ok(Vec::<u64>::deserialize(from)?.into_iter().map(crate::cert::seconds::read).collect())
    }
}

fn written(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))
}
