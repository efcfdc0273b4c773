//! The date of a response, written once a second.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::listen::response::Date;

/// The last second that has a date (RFC 9110 §5.6.7 gives the year four digits).
const LAST_SECOND: u64 = 253_402_300_799;

thread_local! {
    /// What the last answer told, and the second it was told in.
    static DATE: Cell<(u64, Date)> = const { Cell::new((u64::MAX, [b' '; 29])) };
}

/// `now` as a response tells it.
pub fn date(now: SystemTime) -> Date {
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(LAST_SECOND);
    let (told, mut text) = DATE.get();
    if told != second {
        let written = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        text = written.into_bytes().try_into().unwrap_or(text);
        DATE.set((second, text));
    }
    text
}
