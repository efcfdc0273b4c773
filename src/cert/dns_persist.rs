//! The record of dns-persist-01 (draft-ietf-acme-dns-persist): made once by the operator, it stands for every order of one
//! account at one CA.

use std::time::{Duration, SystemTime};

use crate::cert::dns_record::standing_at;
use crate::name::HostPattern;

/// The record that a CA wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Names of the CA, each as good as the others.
    issuers: Vec<String>,
    account: String,
    wildcard: bool,
}

impl Standing {
    /// The record for `pattern` that binds it to the account at this URL, of a CA that goes by these names.
    pub fn new(pattern: &HostPattern, issuers: Vec<String>, account: &str) -> Self {
        let (domain, wildcard) = match pattern {
            HostPattern::Exact(host) => (host, false),
            HostPattern::Wildcard(suffix) => (suffix, true),
        };
        Self { name: standing_at(domain.as_str()), issuers, account: account.to_owned(), wildcard }
    }

    /// What the operator creates; `None` where the CA does not say its name.
    pub fn text(&self) -> Option<String> {
        let issuer = self.issuers.first()?;
        let policy = if self.wildcard { "; policy=wildcard" } else { "" };
        Some(format!("{issuer}; accounturi={}{policy}", self.account))
    }

    /// Whether `text` is such a record, at `now`. It is written like the value of a CAA record (RFC 8659 §4.2).
    pub fn is_met_by(&self, text: &[u8], now: SystemTime) -> bool {
        let Ok(text) = std::str::from_utf8(text) else { return false };
        let mut parts = text.split(';').map(str::trim);
        let issuer = parts.next().unwrap_or_default().trim_end_matches('.');
        let named = self.issuers.iter().any(|known| known.trim_end_matches('.').eq_ignore_ascii_case(issuer));
        let (mut account, mut wildcard, mut alive) = (false, false, true);
        for part in parts.filter(|part| !part.is_empty()) {
            let Some((key, value)) = part.split_once('=') else { return false };
            let (key, value) = (key.trim(), value.trim());
            if key.eq_ignore_ascii_case("accounturi") {
                account = value == self.account;
            } else if key.eq_ignore_ascii_case("policy") {
                wildcard = value.eq_ignore_ascii_case("wildcard");
            } else if key.eq_ignore_ascii_case("persistuntil") {
                let until = value
                    .parse()
                    .ok()
                    .and_then(|at| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(at)));
                alive = until.is_some_and(|until| until > now);
            }
        }
        named && account && alive && (wildcard || !self.wildcard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(pattern: &str) -> Standing {
        let issuers = vec!["ca.example".to_owned(), "other.example".to_owned()];
        Standing::new(&pattern.parse().expect(pattern), issuers, "https://ca.example/acct/7")
    }

    #[test]
    fn what_is_printed_is_what_is_looked_for() {
        for (pattern, policy) in [("a.example", ""), ("*.a.example", "; policy=wildcard")] {
            let standing = standing(pattern);
            assert_eq!(standing.name, "_validation-persist.a.example");
            let text = standing.text().expect("has one");
            assert_eq!(text, format!("ca.example; accounturi=https://ca.example/acct/7{policy}"));
            assert!(standing.is_met_by(text.as_bytes(), SystemTime::UNIX_EPOCH));
        }
    }

    #[test]
    fn only_a_record_of_this_ca_this_account_and_this_time_counts() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let met = |pattern: &str, text: &str| standing(pattern).is_met_by(text.as_bytes(), now);
        let good = "Other.Example.;accountUri=https://ca.example/acct/7 ; persistUntil=101";
        assert!(met("a.example", good));
        assert!(!met("*.a.example", good), "it does not say that it is for wildcards");
        for bad in [
            "",
            "ca.example",
            "ca.example; accounturi=https://ca.example/acct/8",
            "stranger.example; accounturi=https://ca.example/acct/7",
            "ca.example; accounturi=https://ca.example/acct/7; persistUntil=100",
            "ca.example; accounturi=https://ca.example/acct/7; persistUntil=soon",
            "ca.example; accounturi",
        ] {
            assert!(!met("a.example", bad), "{bad}");
        }
    }
}
