//! Words: host names, app names and worker identities. Parsed once, compared and printed everywhere.
//!
//! Must not do: look anything up. A name that exists as one of these types is well formed, not necessarily reachable.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// A host name or IP address as a client may ask for it: lower case, without trailing dot or port.
///
/// Labels hold letters, digits, `-` and `_` (RFC 9110 §4.2.3 leaves the grammar to RFC 3986; underscores occur in practice).
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why a text is not a [`HostName`] or [`HostPattern`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("a host name cannot be empty")]
    Empty,
    /// More than 253 bytes, or a label of more than 63.
    #[error("a host name has at most 253 characters and 63 in each label")]
    TooLong,
    /// A character that no host name holds.
    #[error("a host name holds letters, digits, `-` and `.` only")]
    BadCharacter,
    /// Two dots in a row, or a label that begins or ends with `-`.
    #[error("each label of a host name begins and ends with a letter or digit")]
    BadLabel,
    /// A `*` elsewhere than as the whole first label.
    #[error("`*` stands for one whole label at the front, as in `*.example.com`")]
    BadWildcard,
}

impl HostName {
    /// Parses a host name or IP address; the result is lower case and has no trailing dot. IPv6 may stand in brackets.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::from_ip(address));
        }
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > 253 {
            return Err(NameError::TooLong);
        }
        for label in text.split('.') {
            check_label(label)?;
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name of an IP address in its canonical spelling.
    pub fn from_ip(address: IpAddr) -> Self {
        Self(address.to_canonical().to_string().into())
    }

    /// The address, where the name is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the first label, where anything does: `example.com` of `www.example.com`.
    pub fn parent(&self) -> Option<&str> {
        if self.ip().is_some() {
            return None;
        }
        self.0.split_once('.').map(|(_, rest)| rest)
    }
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::BadLabel);
    }
    if label.len() > 63 {
        return Err(NameError::TooLong);
    }
    if label.contains('*') {
        return Err(NameError::BadWildcard);
    }
    if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return Err(NameError::BadCharacter);
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::BadLabel);
    }
    Ok(())
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What an operator writes under `domains`: one host, or every host one label below a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// Exactly this host.
    Exact(HostName),
    /// `*.NAME`: every host with exactly one label before NAME.
    Wildcard(HostName),
}

impl HostPattern {
    /// Whether a certificate or app of this pattern covers `host`.
    pub fn covers(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Wildcard(suffix) => host.parent() == Some(suffix.as_str()),
        }
    }
}

impl FromStr for HostPattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("*.") {
            Some(rest) => HostName::parse(rest).map(Self::Wildcard),
            None => HostName::parse(text).map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// The operator's name for an app: letters, digits, `-`, `_`; at most 40 characters, so that socket paths stay short.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppName(Arc<str>);

/// A text that cannot name an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an app's name holds 1 to 40 letters, digits, `-` or `_`, the first a letter or digit")]
pub struct AppNameError;

impl AppName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AppName {
    type Err = AppNameError;

    fn from_str(text: &str) -> Result<Self, AppNameError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if first && rest && text.len() <= 40 { Ok(Self(text.into())) } else { Err(AppNameError) }
    }
}

impl fmt::Display for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// One worker process: its app, its stable place there, and which spawn of that place it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkerId {
    /// The app it serves.
    pub app: AppName,
    /// Its place, 0 to workers − 1; an upstream server's place in its list.
    pub slot: u32,
    /// Counts the spawns of this slot from 1; a restart is a new incarnation, never a way back.
    pub incarnation: u64,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app, self.slot)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_for_one_host() {
        for (written, read) in [
            ("A.Test", "a.test"),
            ("a.test.", "a.test"),
            ("[2001:DB8::0:1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("my_app.internal", "my_app.internal"),
        ] {
            assert_eq!(HostName::parse(written).expect(written).as_str(), read);
        }
    }

    #[test]
    fn refuses_what_no_host_is_called() {
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", "-a.b", "a-.b", "a b", "a/b", "u@h", "a:1", "*.a", "a%2e", &long] {
            assert!(HostName::parse(text).is_err(), "{text}");
        }
        assert!("a.*.b".parse::<HostPattern>().is_err());
        assert!("*".parse::<HostPattern>().is_err());
    }

    proptest! {
        /// P3: whoever reads a host again reads the same one, in whatever case and with whatever dot it was written.
        #[test]
        fn a_host_reads_as_itself(text in "[a-zA-Z0-9.:_-]{1,20}|\\[[0-9a-fA-F:.]{2,20}\\]|\\PC{1,12}") {
            if let Ok(host) = HostName::parse(&text) {
                let again = HostName::parse(host.as_str());
                prop_assert_eq!(again.as_ref(), Ok(&host), "{}", text);
                prop_assert_eq!(HostName::parse(&text.to_uppercase()), again, "{}", text);
                prop_assert!(host.as_str().bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{}", text);
            }
        }
    }

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        let pattern: HostPattern = "*.example.com".parse().expect("valid");
        let covers = |host: &str| pattern.covers(&HostName::parse(host).expect(host));
        assert!(covers("a.example.com"));
        assert!(!covers("example.com"));
        assert!(!covers("a.b.example.com"));
    }
}
