//! A record that edge has published, written down before it is, so that whatever ends an attempt, the record is removed.

use serde::{Deserialize, Serialize};

/// One TXT record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Its name, without the dot at its end, CNAMEs followed.
    pub name: String,
    /// Its text.
    pub value: String,
    /// The domain that is proven by it.
    pub domain: String,
}

impl DnsRecord {
    /// Whether its text is one that edge makes: a digest in base64url (RFC 8555 §8.4), which may name a file.
    pub fn is_sound(&self) -> bool {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (16..=64).contains(&self.value.len()) && self.value.bytes().all(allowed)
    }
}
