//! The answers to pending challenges, published for the request path and for handshakes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

/// Pending answers: one writer, the issuer; read by every data-plane thread.
#[derive(Default)]
pub struct Challenges {
    /// HTTP-01 (RFC 8555 §8.3): key authorizations by token.
    http01: ArcSwap<HashMap<Box<str>, Arc<str>>>,
    /// TLS-ALPN-01 (RFC 8737): what a handshake for a server name is answered with.
    tls_alpn01: ArcSwap<HashMap<Box<str>, Arc<ServerConfig>>>,
}

/// A published answer; dropping it withdraws it.
#[must_use = "the answer is withdrawn when this is dropped"]
pub struct Published {
    challenges: Arc<Challenges>,
    answer: Answer,
}

#[derive(Debug)]
enum Answer {
    Http01(Box<str>),
    TlsAlpn01(Box<str>),
}

/// A token no CA may send (RFC 8555 §8.1 allows base64url characters only).
#[derive(Debug, thiserror::Error)]
#[error("the CA sent a challenge token that is not base64url")]
pub struct BadToken;

impl Challenges {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The key authorization for `token`, while its challenge is pending.
    pub fn http01(&self, token: &str) -> Option<Arc<str>> {
        self.http01.load().get(token).cloned()
    }

    /// What a validating handshake for `server_name` is answered with, while its challenge is pending.
    pub fn tls_alpn01(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        let pending = self.tls_alpn01.load();
        if pending.is_empty() {
            return None;
        }
        pending.get(server_name.to_ascii_lowercase().as_str()).cloned()
    }

    /// Answers for `token` with `key_authorization` until the guard is dropped.
    pub fn publish_http01(
        self: &Arc<Self>,
        token: &str,
        key_authorization: &str,
    ) -> Result<Published, BadToken> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if token.is_empty() || token.len() > 512 || !token.bytes().all(allowed) {
            return Err(BadToken);
        }
        put(&self.http01, token, Arc::from(key_authorization));
        Ok(Published { challenges: Arc::clone(self), answer: Answer::Http01(token.into()) })
    }

    /// Answers validating handshakes for `server_name` with `config` until the guard is dropped.
    pub fn publish_tls_alpn01(self: &Arc<Self>, server_name: &str, config: Arc<ServerConfig>) -> Published {
        put(&self.tls_alpn01, server_name, config);
        Published { challenges: Arc::clone(self), answer: Answer::TlsAlpn01(server_name.into()) }
    }
}

fn put<T: Clone>(answers: &ArcSwap<HashMap<Box<str>, T>>, key: &str, answer: T) {
    answers.rcu(|answers| {
        let mut answers = HashMap::clone(answers);
        answers.insert(key.into(), answer.clone());
        answers
    });
}

fn take<T: Clone>(answers: &ArcSwap<HashMap<Box<str>, T>>, key: &str) {
    answers.rcu(|answers| {
        let mut answers = HashMap::clone(answers);
        answers.remove(key);
        answers
    });
}

impl Drop for Published {
    fn drop(&mut self) {
        match &self.answer {
            Answer::Http01(token) => take(&self.challenges.http01, token),
            Answer::TlsAlpn01(name) => take(&self.challenges.tls_alpn01, name),
        }
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges")
            .field("http01", &self.http01.load().len())
            .field("tls_alpn01", &self.tls_alpn01.load().len())
            .finish()
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("answer", &self.answer).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_exactly_as_long_as_its_guard() {
        let challenges = Challenges::new();
        let one = challenges.publish_http01("one", "one.key").expect("valid token");
        let two = challenges.publish_http01("two", "two.key").expect("valid token");
        assert_eq!(challenges.http01("one").as_deref(), Some("one.key"));
        drop(one);
        assert_eq!(challenges.http01("one"), None);
        assert_eq!(challenges.http01("two").as_deref(), Some("two.key"));
        drop(two);
        assert_eq!(challenges.http01("two"), None);
    }

    #[test]
    fn only_base64url_tokens_are_answered_for() {
        let challenges = Challenges::new();
        for token in ["", "a/b", "a.b", "<script>", "a b", "é", &"a".repeat(513)] {
            assert!(challenges.publish_http01(token, "x").is_err(), "{token}");
        }
    }
}
