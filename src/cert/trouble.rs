//! An attempt's failure between the ACME library and an operator's sentence; and patience with nonces, the one refusal that
//! is no failure.

use std::time::Duration;

use instant_acme::{Error, RetryPolicy};
use rustls::CertificateError;

use crate::cert::ca_client::{CallError, Refusal};
use crate::cert::failure::{Answer, Call, Class, Failure, short};
use crate::report::Report;
use crate::tls_words;

/// How long a CA may take to validate or to issue.
pub const POLL_LIMIT: Duration = Duration::from_secs(180);

/// An attempt's failure before it is put into words.
#[derive(Debug)]
pub enum Trouble {
    /// The CA, or the way to it.
    Ca(Call, Error),
    /// Already in words.
    Failed(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Trouble {
    /// Whether the CA has forgotten the account, which registering again repairs.
    pub fn is_unknown_account(&self) -> bool {
        match self {
            Self::Ca(_, error) => refusal(error).is_some_and(|refusal| refusal.is("accountDoesNotExist")),
            Self::Failed(_) => false,
        }
    }

    /// Whether the CA dislikes what the order says it replaces (RFC 9773 §5), rather than the order.
    pub fn is_about_replaces(&self) -> bool {
        let Self::Ca(_, error) = self else { return false };
        let Some(refusal) = refusal(error) else { return matches!(error, Error::Unsupported(_)) };
        let told =
            refusal.detail.as_deref().is_some_and(|detail| detail.to_ascii_lowercase().contains("replace"));
        let named = refusal.is("alreadyReplaced");
        named || told || matches!(refusal.status, 404 | 409)
    }

    /// Whether the CA dislikes the order's profile.
    pub fn is_about_profile(&self) -> bool {
        match self {
            Self::Ca(_, error) => refusal(error).is_some_and(|refusal| refusal.is("invalidProfile")),
            Self::Failed(_) => false,
        }
    }

    /// Whether the CA wants the account to be bound to one made at its site.
    pub fn is_about_binding(&self) -> bool {
        match self {
            Self::Ca(_, error) => refusal(error).is_some_and(|refusal| refusal.is("externalAccountRequired")),
            Self::Failed(_) => false,
        }
    }

    /// Whether the CA says that the order is not where a request expects it, which looking at the order settles.
    pub fn is_not_ready(&self) -> bool {
        match self {
            Self::Ca(_, error) => refusal(error).is_some_and(|refusal| refusal.is("orderNotReady")),
            Self::Failed(_) => false,
        }
    }

    /// In words, with its class.
    pub fn into_failure(self, ca: &str, name: &str) -> Failure {
        let (call, error) = match self {
            Self::Failed(failure) => return failure,
            Self::Ca(call, error) => (call, error),
        };
        if let Some(refusal) = refusal(&error) {
            return refused(ca, name, call, refusal);
        }
        match error {
            // What an order or challenge object says about itself comes with HTTP status 200.
            Error::Api(problem) => {
                let told = |kind: &Option<String>, detail: &Option<String>| {
                    let (kind, detail) = (kind.as_deref().map(short), detail.as_deref());
                    let answer = Answer { status: problem.status, kind, detail, ..Answer::default() };
                    Failure::refused(ca, name, call, answer)
                };
                let compound = problem.r#type.as_deref().map(short) == Some("compound");
                let parts = problem.subproblems.iter().filter(|_| compound);
                worst(parts.map(|part| told(&part.r#type, &part.detail)))
                    .unwrap_or_else(|| told(&problem.r#type, &problem.detail))
            }
            Error::Json(_) => Failure::new(
                Class::Transient,
                format!("{ca} answered with something that is not ACME. Is its URL right?"),
            ),
            Error::Timeout(_) => Failure::new(
                Class::Transient,
                format!("{ca} did not finish the order for {name} within {} s", POLL_LIMIT.as_secs()),
            ),
            other => {
                let why = tls_words::cause(&other).map_or_else(|| Report(&other).to_string(), in_handshake);
                Failure::new(Class::Transient, format!("{ca} cannot be reached: {why}"))
            }
        }
    }
}

/// Why no handshake with a CA succeeds, and what helps.
fn in_handshake(error: &rustls::Error) -> String {
    let told = tls_words::told(error);
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            format!(
                "{told}; `acme.ca_root` names the file with the root of the CA's own https, without it the system's roots count"
            )
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )
        | rustls::Error::InvalidMessage(_) => format!("{told}; is the URL in `acme.ca` right?"),
        _ => told,
    }
}

/// How an order is watched. Slowing down slowly: a CA that needs ten seconds is noticed within three more.
pub fn poll_policy() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(100)).backoff(1.3).timeout(POLL_LIMIT)
}

/// Repeats a call as long as the CA refuses its nonce, which the library itself does only three times. Nonces are the CA's
/// bookkeeping: one that is refused says nothing about the request.
pub async fn patient<T>(mut call: impl AsyncFnMut() -> Result<T, Error>) -> Result<T, Error> {
    const TRIES: u32 = 40;
    let mut tries = 1;
    loop {
        match call().await {
            Err(Error::Api(problem))
                if tries < TRIES && problem.r#type.as_deref().map(short) == Some("badNonce") =>
            {
                tries += 1;
                // After a few at full speed the CA gets time to settle.
                if tries > 10 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            other => return other,
        }
    }
}

/// Whether the way to the CA broke, so that nobody knows if the CA has heard.
pub fn is_broken(error: &Error) -> bool {
    match error {
        Error::Json(_) => true,
        Error::Other(source) => match refusal(error) {
            Some(refusal) => refusal.status >= 500 && refusal.retry_after.is_none(),
            None => source.is::<CallError>(),
        },
        _ => false,
    }
}

fn refused(ca: &str, name: &str, call: Call, refusal: &Refusal) -> Failure {
    worst(refusal.parts.iter().map(|part| refused(ca, name, call, part)))
        .unwrap_or_else(|| Failure::refused(ca, name, call, refusal.answer()))
}

/// Of a refusal in parts: what asks to wait the longest, then what is the hardest to mend.
fn worst(parts: impl Iterator<Item = Failure>) -> Option<Failure> {
    parts.max_by_key(|failure| (failure.retry_after, failure.class))
}

fn refusal(error: &Error) -> Option<&Refusal> {
    match error {
        Error::Other(source) => source.downcast_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_refusal_in_parts_the_worst_decides() {
        let part = |kind: &str, parts| Refusal {
            status: 403,
            kind: Some(kind.to_owned()),
            detail: None,
            retry_after: Some(Duration::from_secs(9)),
            page: None,
            parts,
        };
        for (kinds, wanted) in [
            (["dns", "rejectedIdentifier"], Class::Permanent),
            (["caa", "dns"], Class::Caa),
            (["rejectedIdentifier", "rateLimited"], Class::Limited),
        ] {
            let parts = kinds.map(|kind| part(kind, Vec::new())).to_vec();
            let compound = part("compound", parts);
            let error = Error::Other(Box::new(part("compound", vec![compound])));
            let failure = Trouble::Ca(Call::NewOrder, error).into_failure("the CA", "a.example");
            assert_eq!(failure.class, wanted, "{kinds:?}: {}", failure.message);
        }
        let order = serde_json::json!({"type": "urn:ietf:params:acme:error:compound", "subproblems": [
            {"type": "urn:ietf:params:acme:error:dns"}, {"type": "urn:ietf:params:acme:error:caa"}]});
        let error = Error::Api(serde_json::from_value(order).expect("a problem"));
        let failure = Trouble::Ca(Call::Finalize, error).into_failure("the CA", "a.example");
        assert_eq!(failure.class, Class::Caa, "{}", failure.message);
    }
}
