//! The answers to pending challenges, published for the request path.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Pending HTTP-01 answers (RFC 8555 §8.3): one writer, the issuer; read by every data-plane thread.
#[derive(Default)]
pub struct Challenges {
    http01: ArcSwap<HashMap<Box<str>, Arc<str>>>,
}

/// A published answer; dropping it withdraws it.
#[must_use = "the answer is withdrawn when this is dropped"]
pub struct Published {
    challenges: Arc<Challenges>,
    token: Box<str>,
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
        self.http01.rcu(|answers| {
            let mut answers = HashMap::clone(answers);
            answers.insert(token.into(), key_authorization.into());
            answers
        });
        Ok(Published { challenges: Arc::clone(self), token: token.into() })
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        self.challenges.http01.rcu(|answers| {
            let mut answers = HashMap::clone(answers);
            answers.remove(&self.token);
            answers
        });
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges").field("pending", &self.http01.load().len()).finish()
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").field("token", &self.token).finish()
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
