//! Times, sizes and texts of others as an operator reads them: short, and harmless to a terminal.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::line::put_text;

/// Where there is nothing to say.
pub fn dash() -> String {
    "-".to_owned()
}

/// Texts of CAs, certificates and exits come from elsewhere.
pub fn safe(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    put_text(&mut out, text.as_bytes());
    String::from_utf8_lossy(&out).into_owned()
}

/// Seconds in the largest unit that leaves at least two of it.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// From now to a time in RFC 3339; the time itself where it cannot be read.
pub fn until(at: &str, now: OffsetDateTime) -> String {
    let Ok(time) = OffsetDateTime::parse(at, &Rfc3339) else { return safe(at) };
    let seconds = (time - now).whole_seconds();
    let text = span(seconds.unsigned_abs());
    if seconds < 0 { format!("{text} ago") } else { text }
}

/// So many workers.
pub fn workers(count: u32) -> String {
    if count == 1 { "1 worker".to_owned() } else { format!("{count} workers") }
}

/// Bytes in the unit that leaves at most three digits.
pub fn size(bytes: u64) -> String {
    const STEP: f64 = 1024.0;
    if bytes == 0 {
        return dash();
    }
    let mut value = bytes as f64 / STEP;
    for unit in ["K", "M", "G"] {
        if value < 1000.0 {
            return if value < 10.0 { format!("{value:.1}{unit}") } else { format!("{value:.0}{unit}") };
        }
        value /= STEP;
    }
    format!("{value:.1}T")
}

/// How long ago a time in RFC 3339 was, in seconds; `None` where it cannot be read.
pub fn seconds_since(at: &str, now: OffsetDateTime) -> Option<i64> {
    Some((now - OffsetDateTime::parse(at, &Rfc3339).ok()?).whole_seconds())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

    #[test]
    fn numbers_are_short() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")] {
            assert_eq!(span(seconds), text);
        }
        for (bytes, text) in
            [(0, "-"), (512, "0.5K"), (64 << 20, "64M"), (1_288_490_189, "1.2G"), (5 << 40, "5.0T")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(until("2025-12-31T00:00:00Z", NOW), "24h ago");
        assert_eq!(until("soon", NOW), "soon");
    }
}
