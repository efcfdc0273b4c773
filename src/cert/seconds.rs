//! Moments as whole seconds since 1970: what is decided, shown and saved is the same.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The end of the year 9999. What a damaged file says beyond must not overflow where a delay is added.
const LAST: u64 = 253_402_300_799;

/// The next whole second: nothing happens earlier than it says.
pub fn whole(at: SystemTime) -> SystemTime {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs() + u64::from(since.subsec_nanos() > 0))
}

/// For `#[serde(with = …)]`.
pub fn serialize<S: Serializer>(at: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).serialize(to)
}

/// For `#[serde(with = …)]`.
pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
    let seconds = Option::<u64>::deserialize(from)?;
    Ok(seconds.map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds.min(LAST))))
}
