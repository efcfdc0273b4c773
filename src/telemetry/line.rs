//! The alphabet of every line edge writes: shapes, time stamps, and text made safe for JSON and for terminals.
//!
//! Pure: appends to buffers. Bytes of clients and workers pass through here and nowhere else, so that none of them can
//! break a line, a JSON document or a terminal.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;

/// Longest text of one field, in bytes before escaping; what is beyond is cut and marked with `…`.
pub const FIELD_LIMIT: usize = 1024;

const CUT: &str = "…";

/// Shape of the lines of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// For people.
    Text {
        /// Whether the reader is a terminal that wants colours.
        colour: bool,
    },
    /// One JSON object a line.
    Json,
}

/// Colours by meaning, as ANSI sequences; all empty where colour is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct Palette {
    pub good: &'static str,
    pub warn: &'static str,
    pub bad: &'static str,
    pub faint: &'static str,
    pub strong: &'static str,
    pub name: &'static str,
    pub reset: &'static str,
}

impl Palette {
    /// With colours or without.
    pub const fn new(colour: bool) -> Self {
        if colour {
            Self {
                good: "\x1b[32m",
                warn: "\x1b[33m",
                bad: "\x1b[31m",
                faint: "\x1b[2m",
                strong: "\x1b[1m",
                name: "\x1b[36m",
                reset: "\x1b[0m",
            }
        } else {
            Self { good: "", warn: "", bad: "", faint: "", strong: "", name: "", reset: "" }
        }
    }
}

/// Formats wall times as RFC 3339 in UTC with milliseconds; remembers the last second, in which most calls fall.
#[derive(Debug, Clone)]
pub struct Stamp {
    second: u64,
    text: [u8; 24],
}

impl Default for Stamp {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

impl Stamp {
    /// `2026-01-31T23:59:59.999Z`. Times before 1970 or after 9999 print as the nearest end of that range.
    pub fn full(&mut self, at: SystemTime) -> &[u8; 24] {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            self.set_second();
        }
        let millis = since.subsec_millis();
        put_digits(&mut self.text[20..23], millis);
        &self.text
    }

    /// `23:59:59.999Z`, for eyes.
    pub fn short(&mut self, at: SystemTime) -> &[u8] {
        &self.full(at)[11..]
    }

    fn set_second(&mut self) {
        const LAST: i64 = 253_402_300_799;
        let second = i64::try_from(self.second).unwrap_or(LAST).min(LAST);
        let time = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        put_digits(&mut self.text[0..4], time.year().unsigned_abs());
        put_digits(&mut self.text[5..7], u32::from(u8::from(time.month())));
        put_digits(&mut self.text[8..10], u32::from(time.day()));
        put_digits(&mut self.text[11..13], u32::from(time.hour()));
        put_digits(&mut self.text[14..16], u32::from(time.minute()));
        put_digits(&mut self.text[17..19], u32::from(time.second()));
    }
}

fn put_digits(place: &mut [u8], mut number: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Appends a whole number.
pub fn put_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a time in milliseconds with three decimals.
pub fn put_millis(out: &mut Vec<u8>, time: Duration) {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    put_number(out, micros / 1000);
    let mut decimals = *b".000";
    put_digits(&mut decimals[1..], (micros % 1000) as u32);
    out.extend_from_slice(&decimals);
}

/// Appends `text` as a JSON string (RFC 8259 §7) with its quotes: control characters escaped, invalid UTF-8 replaced, cut at
/// [`FIELD_LIMIT`].
pub fn put_json(out: &mut Vec<u8>, text: &[u8]) {
    let (text, cut) = clip(text);
    out.push(b'"');
    put_escaped(out, text);
    if cut {
        out.extend_from_slice(CUT.as_bytes());
    }
    out.push(b'"');
}

/// As [`put_json`], without the limit: for lines whose length was bounded where they were read.
pub fn put_whole_json(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    put_escaped(out, text);
    out.push(b'"');
}

fn put_escaped(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.extend_from_slice(text);
    } else {
        each_character(text, |character, encoded| match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            other if other.is_control() => put_unicode(out, other),
            _ => out.extend_from_slice(encoded),
        });
    }
}

/// Appends `text` for eyes: control characters (terminal sequences begin with one) as `\u001b`, invalid UTF-8 replaced, cut
/// at [`FIELD_LIMIT`].
pub fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let (text, cut) = clip(text);
    put_whole_text(out, text);
    if cut {
        out.extend_from_slice(CUT.as_bytes());
    }
}

/// As [`put_text`], without the limit.
pub fn put_whole_text(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) {
        out.extend_from_slice(text);
        return;
    }
    each_character(text, |character, encoded| match character {
        '\t' => out.push(b'\t'),
        '\n' => out.extend_from_slice(b"\\n"),
        '\r' => out.extend_from_slice(b"\\r"),
        other if other.is_control() => put_unicode(out, other),
        _ => out.extend_from_slice(encoded),
    });
}

/// Whether all is printable ASCII that means nothing in a JSON string. Looks at every byte even after a special one: that way
/// the compiler looks at many at once, and special ones are rare.
fn is_plain(text: &[u8]) -> bool {
    let plain = |byte: u8| (0x20..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\');
    text.iter().fold(true, |all, byte| all & plain(*byte))
}

/// The part of `text` that is printed, and whether that is not all. Never cuts inside a UTF-8 sequence.
fn clip(text: &[u8]) -> (&[u8], bool) {
    if text.len() <= FIELD_LIMIT {
        return (text, false);
    }
    let mut end = FIELD_LIMIT;
    while end > FIELD_LIMIT - 4 && text[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    (&text[..end], true)
}

/// `text`, or as much of its end as the other functions print whole, marked with `…`; from the beginning of a line, if one
/// begins there.
pub fn last_part(text: String) -> String {
    if text.len() <= FIELD_LIMIT {
        return text;
    }
    let least = text.len() - (FIELD_LIMIT - CUT.len());
    let start = (least..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let rest = &text[start..];
    let rest = match rest.split_once('\n') {
        Some((_, lines)) if !lines.is_empty() => lines,
        Some(_) | None => rest,
    };
    format!("{CUT}{rest}")
}

fn each_character(text: &[u8], mut put: impl FnMut(char, &[u8])) {
    let mut encoded = [0; 4];
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            put(character, character.encode_utf8(&mut encoded).as_bytes());
        }
        if !chunk.invalid().is_empty() {
            let character = char::REPLACEMENT_CHARACTER;
            put(character, character.encode_utf8(&mut encoded).as_bytes());
        }
    }
}

/// Control characters all lie below U+00A0.
fn put_unicode(out: &mut Vec<u8>, character: char) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let code = u32::from(character) as usize;
    out.extend_from_slice(b"\\u00");
    out.push(HEX[(code >> 4) & 15]);
    out.push(HEX[code & 15]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(text: &[u8]) -> String {
        let mut out = Vec::new();
        put_json(&mut out, text);
        String::from_utf8(out).expect("UTF-8")
    }

    fn text(text: &[u8]) -> String {
        let mut out = Vec::new();
        put_text(&mut out, text);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn nothing_breaks_out_of_its_field() {
        for (raw, in_json, in_text) in [
            (&b"/a?b=c"[..], r#""/a?b=c""#, "/a?b=c"),
            (b"a\"b\\c", r#""a\"b\\c""#, r#"a"b\c"#),
            (b"a\nb\r\tc", r#""a\nb\r\tc""#, "a\\nb\\r\tc"),
            (b"\x1b[31m\x00\x7f", r#""\u001b[31m\u0000\u007f""#, r"\u001b[31m\u0000\u007f"),
            ("\u{9b}31m".as_bytes(), r#""\u009b31m""#, r"\u009b31m"),
            ("grüße".as_bytes(), r#""grüße""#, "grüße"),
            (b"a\xffb\xc3", "\"a\u{fffd}b\u{fffd}\"", "a\u{fffd}b\u{fffd}"),
        ] {
            assert_eq!(json(raw), in_json);
            assert_eq!(text(raw), in_text);
        }
    }

    #[test]
    fn long_fields_are_cut_between_characters() {
        let long = "ü".repeat(FIELD_LIMIT);
        let read: String = serde_json::from_str(&json(&long.as_bytes()[1..])).expect("JSON");
        assert!(read.ends_with("ü…"), "{read}");
        assert!(read.len() <= FIELD_LIMIT + 8);
        assert_eq!(text(&[b'a'; FIELD_LIMIT]).len(), FIELD_LIMIT);
        assert_eq!(text(&[b'a'; FIELD_LIMIT + 1]).len(), FIELD_LIMIT + CUT.len());
    }

    #[test]
    fn of_last_lines_the_last_are_printed() {
        assert_eq!(last_part("a\nb".to_owned()), "a\nb");
        let lines = format!("{}\nRuntimeError: no database url", "ü".repeat(40).repeat(20) + "\nwhere");
        assert_eq!(last_part(lines), "…where\nRuntimeError: no database url");
        let one = last_part("ü".repeat(FIELD_LIMIT));
        assert!(one.starts_with("…ü"), "{one}");
        assert_eq!(text(one.as_bytes()), one, "is not cut again");
    }

    #[test]
    fn stamps_are_rfc_3339_in_any_order() {
        let mut stamp = Stamp::default();
        for (millis, printed) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (1_767_225_600_007, "2026-01-01T00:00:00.007Z"),
            (1_709_208_000_120, "2024-02-29T12:00:00.120Z"),
            (999_999_999_999_999, "9999-12-31T23:59:59.999Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(std::str::from_utf8(stamp.full(at)), Ok(printed));
        }
        assert_eq!(stamp.short(SystemTime::UNIX_EPOCH), b"00:00:00.000Z");
        assert_eq!(stamp.full(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), b"1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        for (time, printed) in [
            (Duration::ZERO, "0.000"),
            (Duration::from_micros(7), "0.007"),
            (Duration::from_micros(12_345), "12.345"),
            (Duration::from_secs(60), "60000.000"),
        ] {
            let mut out = Vec::new();
            put_millis(&mut out, time);
            assert_eq!(out, printed.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_become_one_json_string_and_one_printable_line(raw: Vec<u8>) {
            let read: String = serde_json::from_str(&json(&raw)).expect("JSON");
            if raw.len() <= FIELD_LIMIT {
                prop_assert_eq!(read, String::from_utf8_lossy(&raw));
            }
            prop_assert!(!text(&raw).chars().any(|c| c.is_control() && c != '\t'));
        }
    }
}
