//! The small languages inside values: durations, sizes, addresses, signals, `${VAR}`. Each error completes the sentence that
//! begins with the text as written, and says what would be right.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::config::model::{Address, ListenAddr};
use crate::name::HostName;

/// Why a text is not the value it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message says it")]
pub enum ScalarError {
    #[error("is not a duration such as `30s`, `1h30m` or `500ms`")]
    Duration,
    #[error("lacks a unit: write `{0}s` for seconds, `{0}ms` for milliseconds")]
    DurationUnit(u64),
    #[error("is longer than ten years")]
    DurationTooLong,
    #[error("must be longer than 0")]
    Zero,
    #[error("is not a size such as `100MB` (1000 × 1000 bytes each) or `64KiB` (1024 bytes each)")]
    Size,
    #[error("is not a size from {0} to {1} bytes, such as `16KB`")]
    SizeWithin(u64, u64),
    #[error("is not `true` or `false`")]
    Boolean,
    #[error("is not a whole number from {0} to {1}")]
    Number(u64, u64),
    #[error("begins with 0, which many programs take for a number to the base of 8: write `{0}`")]
    LeadingZero(u64),
    #[error("is not an address to listen on, such as `:443`, `127.0.0.1:8443` or `[::1]:443`")]
    Listen,
    #[error("is not an address to listen on: write `:{0}` for that port of every address")]
    ListenPort(u16),
    #[error(
        "is not the address of a server, such as `http://10.0.0.7:8080`, `10.0.0.7:8080` or `unix:/run/x.sock`"
    )]
    Upstream,
    #[error("asks for TLS to the server, which is not supported: use `http://`")]
    UpstreamTls,
    #[error("has a path: only the address of the server is taken")]
    UpstreamPath,
    #[error("lacks a port")]
    UpstreamPort,
    #[error("is longer than the 107 bytes that the path of a unix socket may have")]
    SocketPath,
    #[error("is not an absolute path")]
    NotAbsolute,
    #[error("is not a signal that asks a process to end, such as `SIGTERM`, `SIGINT` or `SIGQUIT`")]
    Signal,
    #[error("uses the environment variable `{0}`, which is not set (`${{{0}:-text}}` gives a default)")]
    Unset(String),
    #[error("has a `${{` that is not `${{NAME}}` or `${{NAME:-default}}` (write `$${{` for a plain `${{`)")]
    Expansion,
}

/// Longest path of a unix socket: `sun_path` has 108 bytes, the last is zero.
pub const LONGEST_SOCKET_PATH: usize = 107;

/// `0`, `30s`, `500ms`, `1h30m`, `7d`: whole numbers with a unit, the greater unit first.
pub fn duration(text: &str) -> Result<Duration, ScalarError> {
    const UNITS: [(&str, u64); 5] =
        [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    const LONGEST: u64 = 3653 * 86_400_000;
    if let Ok(number) = text.parse::<u64>() {
        return if number == 0 { Ok(Duration::ZERO) } else { Err(ScalarError::DurationUnit(number)) };
    }
    let (mut rest, mut from, mut total) = (text, 0, 0u64);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        if number.is_empty() {
            return Err(ScalarError::Duration);
        }
        let place = UNITS.iter().position(|(name, _)| *name == unit).ok_or(ScalarError::Duration)?;
        if place < from {
            return Err(ScalarError::Duration);
        }
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(UNITS[place].1));
        total = part.and_then(|part| total.checked_add(part)).ok_or(ScalarError::DurationTooLong)?;
        (rest, from) = (tail, place + 1);
    }
    match total {
        _ if text.is_empty() => Err(ScalarError::Duration),
        LONGEST.. => Err(ScalarError::DurationTooLong),
        total => Ok(Duration::from_millis(total)),
    }
}

/// A duration that is not 0.
pub fn positive_duration(text: &str) -> Result<Duration, ScalarError> {
    duration(text).and_then(|span| if span.is_zero() { Err(ScalarError::Zero) } else { Ok(span) })
}

/// Bytes: `0`, `512`, `100MB` (decimal: KB is 1000), `64KiB` (binary: KiB is 1024). Upper and lower case are the same.
pub fn size(text: &str) -> Result<u64, ScalarError> {
    refuse_leading_zero(text)?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(ScalarError::Size),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(bytes)).ok_or(ScalarError::Size)
}

/// Bytes, from `least` to `most`.
pub fn size_within(text: &str, least: u64, most: u64) -> Result<u64, ScalarError> {
    refuse_leading_zero(text)?;
    let size = size(text).ok().filter(|size| (least..=most).contains(size));
    size.ok_or(ScalarError::SizeWithin(least, most))
}

/// As an operator would write it: in the largest unit, decimal or binary, that it is a whole number of.
pub fn size_in_words(bytes: u64) -> String {
    const UNITS: [(u64, &str); 8] = [
        (1 << 40, "TiB"),
        (1_000_000_000_000, "TB"),
        (1 << 30, "GiB"),
        (1_000_000_000, "GB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
        (1000, "KB"),
    ];
    let whole = UNITS.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    whole.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{} {name}", bytes / unit))
}

/// About how many, in the unit that leaves at most three digits before the point.
pub fn size_about(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "KB")];
    let unit = UNITS.iter().find(|(unit, _)| bytes >= *unit);
    unit.map_or_else(
        || format!("{bytes} bytes"),
        |(unit, name)| format!("{:.1} {name}", bytes as f64 / *unit as f64),
    )
}

/// `true` or `false`; YAML 1.1's `yes`, `no`, `on` and `off` are mistakes more often than meant.
pub fn boolean(text: &str) -> Result<bool, ScalarError> {
    text.parse().map_err(|_| ScalarError::Boolean)
}

/// A whole number from `least` to `most`.
pub fn number(text: &str, least: u64, most: u64) -> Result<u64, ScalarError> {
    refuse_leading_zero(text)?;
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or(ScalarError::Number(least, most))
}

/// `010` is 10 here and 8 to whatever reads YAML as Compose does: nobody can tell what was meant.
fn refuse_leading_zero(text: &str) -> Result<(), ScalarError> {
    let ambiguous = text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if ambiguous => Err(ScalarError::LeadingZero(number)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// `:443`, `127.0.0.1:8443`, `[::1]:443`.
pub fn listen(text: &str) -> Result<ListenAddr, ScalarError> {
    if let Some(port) = text.strip_prefix(':') {
        return port.parse().map(ListenAddr::Any).map_err(|_| ScalarError::Listen);
    }
    if let Ok(port) = text.parse() {
        return Err(ScalarError::ListenPort(port));
    }
    text.parse().map(ListenAddr::At).map_err(|_| ScalarError::Listen)
}

/// `http://10.0.0.7:8080`, `10.0.0.7:8080`, `[::1]:80`, `http://name:8080`, `unix:/run/x.sock`. With `http://` the port may
/// be left out and is 80.
pub fn upstream(text: &str) -> Result<Address, ScalarError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(Address::Unix);
    }
    if text.starts_with("https://") {
        return Err(ScalarError::UpstreamTls);
    }
    let (authority, implied) = match text.strip_prefix("http://") {
        Some(rest) => (rest.strip_suffix('/').unwrap_or(rest), Some(80)),
        None => (text, None),
    };
    if authority.contains(['/', '?', '#']) {
        return Err(if implied.is_some() { ScalarError::UpstreamPath } else { ScalarError::Upstream });
    }
    let (host, port) = split_port(authority)?;
    let port = port.or(implied).ok_or(ScalarError::UpstreamPort)?;
    if port == 0 {
        return Err(ScalarError::Upstream);
    }
    let name = HostName::parse(host).map_err(|_| ScalarError::Upstream)?;
    Ok(match name.ip() {
        Some(ip) => Address::Tcp(SocketAddr::new(ip, port)),
        None => Address::Name(name.as_str().to_owned(), port),
    })
}

fn split_port(authority: &str) -> Result<(&str, Option<u16>), ScalarError> {
    // Without brackets nobody can say where the address ends and the port begins.
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Err(ScalarError::Upstream);
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            port.parse().map(|port| (host, Some(port))).map_err(|_| ScalarError::Upstream)
        }
        Some(_) | None => Ok((authority, None)),
    }
}

/// An absolute path that fits the address of a unix socket.
pub fn socket_path(text: &str) -> Result<PathBuf, ScalarError> {
    if !text.starts_with('/') {
        return Err(ScalarError::NotAbsolute);
    }
    if text.len() > LONGEST_SOCKET_PATH {
        return Err(ScalarError::SocketPath);
    }
    Ok(Path::new(text).to_owned())
}

/// A signal number; `SIG` may be left out. Signals that stop or continue a process do not end it and are refused.
pub fn signal(text: &str) -> Result<i32, ScalarError> {
    let full = if text.starts_with("SIG") { text.to_owned() } else { format!("SIG{text}") };
    match full.parse::<Signal>() {
        Ok(
            Signal::SIGSTOP
            | Signal::SIGTSTP
            | Signal::SIGTTIN
            | Signal::SIGTTOU
            | Signal::SIGCONT
            | Signal::SIGCHLD
            | Signal::SIGURG,
        )
        | Err(_) => Err(ScalarError::Signal),
        Ok(signal) => Ok(signal as i32),
    }
}

/// Replaces `${NAME}` and `${NAME:-default}` (also used where the variable is empty, as in a shell); `$${` is a plain `${`.
pub fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, ScalarError> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            rest = after;
            continue;
        }
        let (inner, tail) = after.split_once('}').ok_or(ScalarError::Expansion)?;
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        // A variable in a default would end at the first `}`: half of it would stay as text.
        if !is_variable_name(name) || default.is_some_and(|default| default.contains("${")) {
            return Err(ScalarError::Expansion);
        }
        result.push_str(before);
        match (variable(name), default) {
            (Some(value), None) => result.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => result.push_str(&value),
            (_, Some(default)) => result.push_str(default),
            (None, None) => return Err(ScalarError::Unset(name.to_owned())),
        }
        rest = tail;
    }
    result.push_str(rest);
    Ok(result)
}

/// Whether `${name}` can mean a variable.
pub fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_carry_units() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("1h30m", 5_400_000),
            ("2m5s250ms", 125_250),
            ("60d", 5_184_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "30",
            "-1s",
            "1.5s",
            "30S",
            "1 h",
            "30s1h",
            "1s1s",
            "1w",
            "99999999999999999999s",
            "11y",
            "4000d",
            "9999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(
            duration("30").unwrap_err().to_string(),
            "lacks a unit: write `30s` for seconds, `30ms` for milliseconds"
        );
    }

    #[test]
    fn kb_is_decimal_and_kib_is_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("16KB", 16_000),
            ("16KiB", 16_384),
            ("100MB", 100_000_000),
            ("1mib", 1 << 20),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(size(&size_in_words(bytes).replace(' ', "")), Ok(bytes), "{text}");
        }
        for text in ["", "KB", "-1", "1.5MB", "1 MB", "1M", "99999999TB", "1e3"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_number_to_the_base_of_8_is_not_taken_for_another() {
        for text in ["010", "080", "00", "0755"] {
            let written = text.parse().expect("a number");
            assert_eq!(number(text, 0, 10_000), Err(ScalarError::LeadingZero(written)));
            assert_eq!(size(text), Err(ScalarError::LeadingZero(written)));
            assert_eq!(size_within(text, 0, 10_000), Err(ScalarError::LeadingZero(written)));
        }
        assert_eq!((number("0", 0, 9), number("10", 0, 99)), (Ok(0), Ok(10)));
        assert_eq!((number("0x10", 0, 99), size("0KB")), (Err(ScalarError::Number(0, 99)), Ok(0)));
    }

    #[test]
    fn a_measured_size_is_told_in_a_unit() {
        for (bytes, told) in
            [(512, "512 bytes"), (36_834_304, "36.8 MB"), (1000, "1.0 KB"), (4_000_000_000_000, "4.0 TB")]
        {
            assert_eq!(size_about(bytes), told);
        }
    }

    #[test]
    fn addresses_say_what_they_mean() {
        assert_eq!(listen(":443"), Ok(ListenAddr::Any(443)));
        assert_eq!(listen("[::1]:443").unwrap().to_string(), "[::1]:443");
        assert_eq!(listen("443"), Err(ScalarError::ListenPort(443)));
        for text in ["", ":", ":x", ":70000", "localhost:443", "1.2.3.4", "*:443"] {
            assert!(listen(text).is_err(), "{text}");
        }
        for (text, shown) in [
            ("http://10.0.0.7:8080", "10.0.0.7:8080"),
            ("10.0.0.7:8080", "10.0.0.7:8080"),
            ("http://Backend/", "backend:80"),
            ("http://[::1]", "[::1]:80"),
            ("[::1]:9", "[::1]:9"),
            ("name:8080", "name:8080"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(upstream(text).unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "10.0.0.7",
            "https://a:1",
            "http://a:1/x",
            "unix:x",
            "::1",
            "a:0",
            "ftp://a:1",
            "u@h:1",
            "http://",
        ] {
            assert!(upstream(text).is_err(), "{text}");
        }
        assert_eq!(upstream(&format!("unix:/{}", "x".repeat(107))), Err(ScalarError::SocketPath));
    }

    #[test]
    fn only_signals_that_can_end_a_process_are_taken() {
        assert_eq!(signal("SIGTERM"), Ok(15));
        assert_eq!(signal("INT"), Ok(2));
        for text in ["", "SIG", "sigterm", "15", "SIGSTOP", "CONT"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_are_replaced_and_missing_ones_named() {
        let vars = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (text, result) in [
            ("x${A}y${A}", "x1y1"),
            ("${EMPTY}", ""),
            ("${EMPTY:-d}", "d"),
            ("${NO:-}", ""),
            ("$${A} $A $", "${A} $A $"),
            ("{socket}", "{socket}"),
        ] {
            assert_eq!(expand(text, vars).as_deref(), Ok(result), "{text}");
        }
        assert_eq!(expand("${NO}", vars), Err(ScalarError::Unset("NO".into())));
        for text in ["${", "${A", "${}", "${A-x}", "${1}", "${A:-${B}}", "${NO:-${B:-c}}"] {
            assert_eq!(expand(text, vars), Err(ScalarError::Expansion), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_as_itself(millis in 0u64..300_000_000_000) {
            let (s, ms) = (millis / 1000, millis % 1000);
            prop_assert_eq!(duration(&format!("{s}s{ms}ms")), Ok(Duration::from_millis(millis)));
            let (h, m) = (s / 3600, s / 60 % 60);
            prop_assert_eq!(duration(&format!("{h}h{m}m{}s", s % 60)), Ok(Duration::from_secs(s)));
        }

        #[test]
        fn a_written_size_reads_as_itself(bytes in 0u64..1 << 20) {
            prop_assert_eq!(size(&format!("{bytes}")), Ok(bytes));
            prop_assert_eq!(size(&format!("{bytes}MiB")), Ok(bytes << 20));
        }

        #[test]
        fn a_printed_address_reads_as_itself(ip: std::net::IpAddr, port in 1u16..) {
            let address = SocketAddr::new(ip.to_canonical(), port);
            prop_assert_eq!(listen(&address.to_string()), Ok(ListenAddr::At(address)));
            prop_assert_eq!(upstream(&address.to_string()), Ok(Address::Tcp(address)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[0-9a-z:./$\\{\\}\\[\\]-]{0,40}") {
            let _ = (duration(&text), size(&text), listen(&text), upstream(&text), signal(&text));
            let _ = expand(&text, |_| None);
        }
    }
}
