//! The answers to pending challenges, published for the request path and for handshakes.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use crate::name::HostName;

/// Pending answers: one writer, the issuer; read by every data-plane thread.
#[derive(Default)]
pub struct Challenges {
    /// HTTP-01 (RFC 8555 §8.3): key authorizations by token. CAs choose tokens by themselves, so that two may be alike.
    http01: ArcSwap<HashMap<Box<str>, Vec<Pending>>>,
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
    Http01(Box<str>, Arc<str>),
    TlsAlpn01(Vec<Box<str>>, Arc<ServerConfig>),
}

#[derive(Clone)]
struct Pending {
    /// Whose challenge it is; a look of edge at itself is nobody's.
    name: Option<HostName>,
    answer: Arc<str>,
}

impl Pending {
    /// The account that the answer speaks for.
    fn account(&self) -> Option<&str> {
        self.name.as_ref().and_then(|_| Some(self.answer.rsplit_once('.')?.1))
    }
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

    /// The key authorization for `token`, while its challenge is pending, for a request to `host`. A server that redirects a
    /// CA here changes the host, so the challenge of another name is answered as well, but never with the account at another
    /// CA than the one that is validating `host`.
    pub fn http01(&self, token: &str, host: Option<&HostName>) -> Option<Arc<str>> {
        let pending = self.http01.load();
        let here = pending.get(token)?;
        if let Some(own) = here.iter().rev().find(|one| host.is_some() && one.name.as_ref() == host) {
            return Some(Arc::clone(&own.answer));
        }
        let one = here.first()?;
        let alike = here.iter().all(|other| other.answer == one.answer);
        let mut own = pending.values().flatten().filter(|own| host.is_some() && own.name.as_ref() == host);
        let foreign = one.name.is_some() && own.any(|own| own.account() != one.account());
        (alike && !foreign).then(|| Arc::clone(&one.answer))
    }

    /// What a validating handshake for `server_name` is answered with, while its challenge is pending.
    pub fn tls_alpn01(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        let pending = self.tls_alpn01.load();
        if pending.is_empty() {
            return None;
        }
        pending.get(server_name.to_ascii_lowercase().as_str()).cloned()
    }

    /// Answers for `token` with `key_authorization` until the guard is dropped. `name` is whose challenge it is, where it is
    /// one of a CA.
    pub fn publish_http01(
        self: &Arc<Self>,
        name: Option<&HostName>,
        token: &str,
        key_authorization: &str,
    ) -> Result<Published, BadToken> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if token.is_empty() || token.len() > 512 || !token.bytes().all(allowed) {
            return Err(BadToken);
        }
        let answer: Arc<str> = key_authorization.into();
        change(&self.http01, |pending| {
            let one = Pending { name: name.cloned(), answer: Arc::clone(&answer) };
            pending.entry(token.into()).or_default().push(one);
        });
        Ok(Published { challenges: Arc::clone(self), answer: Answer::Http01(token.into(), answer) })
    }

    /// Answers validating handshakes for `server_name` with `config` until the guard is dropped.
    pub fn publish_tls_alpn01(self: &Arc<Self>, server_name: &str, config: Arc<ServerConfig>) -> Published {
        change(&self.tls_alpn01, |pending| {
            pending.insert(server_name.into(), Arc::clone(&config));
        });
        Published {
            challenges: Arc::clone(self),
            answer: Answer::TlsAlpn01(vec![server_name.into()], config),
        }
    }

    /// As [`Self::publish_tls_alpn01`], but where a CA's challenge is pending that is answered: edge looks at itself. All at once,
    /// because each change copies the whole.
    pub fn lend_tls_alpn01(
        self: &Arc<Self>,
        server_names: Vec<Box<str>>,
        config: Arc<ServerConfig>,
    ) -> Published {
        change(&self.tls_alpn01, |pending| {
            for name in &server_names {
                pending.entry(name.clone()).or_insert_with(|| Arc::clone(&config));
            }
        });
        Published { challenges: Arc::clone(self), answer: Answer::TlsAlpn01(server_names, config) }
    }
}

fn change<T: Clone>(answers: &ArcSwap<HashMap<Box<str>, T>>, mut by: impl FnMut(&mut HashMap<Box<str>, T>)) {
    answers.rcu(|answers| {
        let mut answers = HashMap::clone(answers);
        by(&mut answers);
        answers
    });
}

impl Drop for Published {
    fn drop(&mut self) {
        match &self.answer {
            Answer::Http01(token, answer) => change(&self.challenges.http01, |pending| {
                if let Some(all) = pending.get_mut(token) {
                    all.retain(|one| !Arc::ptr_eq(&one.answer, answer));
                }
                pending.retain(|_, all| !all.is_empty());
            }),
            Answer::TlsAlpn01(names, config) => change(&self.challenges.tls_alpn01, |pending| {
                for name in names {
                    if pending.get(name).is_some_and(|one| Arc::ptr_eq(one, config)) {
                        pending.remove(name);
                    }
                }
            }),
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

    fn host(text: &str) -> HostName {
        HostName::parse(text).expect(text)
    }

    #[test]
    fn an_answer_stands_exactly_as_long_as_its_guard() {
        let challenges = Challenges::new();
        let one = challenges.publish_http01(None, "one", "one.key").expect("valid token");
        let two = challenges.publish_http01(None, "two", "two.key").expect("valid token");
        assert_eq!(challenges.http01("one", None).as_deref(), Some("one.key"));
        drop(one);
        assert_eq!(challenges.http01("one", None), None);
        assert_eq!(challenges.http01("two", None).as_deref(), Some("two.key"));
        drop(two);
        assert_eq!(challenges.http01("two", None), None);
        assert!(challenges.http01.load().is_empty());
    }

    #[test]
    fn only_base64url_tokens_are_answered_for() {
        let challenges = Challenges::new();
        for token in ["", "a/b", "a.b", "<script>", "a b", "é", &"a".repeat(513)] {
            assert!(challenges.publish_http01(None, token, "x").is_err(), "{token}");
        }
    }

    #[test]
    fn a_name_is_never_answered_for_with_the_account_at_another_ca() {
        let challenges = Challenges::new();
        let (a, b, c) = (host("a.example"), host("b.example"), host("c.example"));
        let asked = |token, host: &HostName| challenges.http01(token, Some(host));
        let _a = challenges.publish_http01(Some(&a), "same", "same.first").expect("valid token");
        let of_b = challenges.publish_http01(Some(&b), "same", "same.second").expect("valid token");
        assert_eq!(asked("same", &a).as_deref(), Some("same.first"));
        assert_eq!(asked("same", &b).as_deref(), Some("same.second"));
        assert_eq!(asked("same", &c), None, "whose account?");
        assert_eq!(challenges.http01("same", None), None);
        let _other = challenges.publish_http01(Some(&b), "other", "other.second").expect("valid token");
        assert_eq!(asked("other", &a), None, "another CA's account");
        assert_eq!(asked("other", &c).as_deref(), Some("other.second"), "the CA was redirected here");
        drop(of_b);
        assert_eq!(asked("same", &c).as_deref(), Some("same.first"));
        let _look = challenges.publish_http01(None, "look", "look.7").expect("valid token");
        assert_eq!(asked("look", &a).as_deref(), Some("look.7"), "edge looks at itself");
    }
}
