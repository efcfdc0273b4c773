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

/// Where the answer to a DNS-01 challenge for `domain` is looked for (RFC 8555 §8.4).
pub fn challenge_at(domain: &str) -> String {
    format!("_acme-challenge.{domain}")
}

/// Where the record of dns-persist-01 for `domain` is looked for.
pub fn standing_at(domain: &str) -> String {
    format!("_validation-persist.{domain}")
}

impl DnsRecord {
    /// Whether its text is one that edge makes: a digest in base64url (RFC 8555 §8.4), which may name a file; and its name one
    /// that no program takes for anything else, wherever a CNAME leads.
    pub fn is_sound(&self) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let value = (16..=64).contains(&self.value.len()) && self.value.bytes().all(plain);
        let name = !self.name.is_empty() && !self.name.starts_with('-');
        value && name && self.name.bytes().all(|b| plain(b) || b == b'.')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_could_be_taken_for_something_else_is_published() {
        let sound = |name: &str, value: &str| {
            let (name, value) = (name.to_owned(), value.to_owned());
            DnsRecord { name, value, domain: "a.example".to_owned() }.is_sound()
        };
        let value = "gfj9Xq-Rg85nM_gfj9Xq";
        assert!(sound("_acme-challenge.a.example", value));
        for name in
            ["", "-x.example", "a b.example", "a\"b.example", "a\\032b.example", "a/b", "$(x).example"]
        {
            assert!(!sound(name, value), "{name}");
        }
        for value in ["", "short", "../../../etc/passwd-1", "twenty letters or so"] {
            assert!(!sound("_acme-challenge.a.example", value), "{value}");
        }
    }
}
