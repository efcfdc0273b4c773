//! What went wrong with a certificate: the class decides when to try again, the sentence tells an operator what to do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Kinds of failure, by what helps against them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The CA could not be reached or was not itself: time helps.
    Transient,
    /// The CA asked to wait: only waiting helps.
    Limited,
    /// The CA could not see our answer at the name: DNS, firewall, another server.
    Validation,
    /// A CAA record stands against it, or DNS did not answer about it.
    Caa,
    /// The record that would prove the name could not be published, or is not seen; the CA was not asked to look.
    Dns,
    /// The order itself is spent: a new one helps.
    Order,
    /// The CA refuses the account.
    Account,
    /// The CA will never issue this: the configuration must change.
    Permanent,
    /// An operator must do something at the CA or here.
    Action,
    /// Our own disk refused.
    Store,
}

impl Class {
    /// Whether what failed so may have cost an order at the CA, which counts against its limits. An attempt that broke off
    /// goes on with the same order.
    pub fn may_cost_an_order(self) -> bool {
        match self {
            Self::Transient | Self::Limited | Self::Dns | Self::Store => false,
            Self::Validation | Self::Caa | Self::Order | Self::Account | Self::Permanent | Self::Action => {
                true
            }
        }
    }
}

/// How much one failure stands in the way of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This name only.
    Name,
    /// Every order of this account.
    Account,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What helps against it.
    pub class: Class,
    /// What else it stops.
    pub reach: Reach,
    /// How long the CA asked to wait.
    pub retry_after: Option<Duration>,
    /// After how long edge's own CA, which costs nothing, is asked again at first.
    pub free_after: Option<Duration>,
    /// Cause and remedy in one or two sentences, with the name in it where it matters.
    pub message: String,
}

/// What a CA was being asked when it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Its directory.
    Directory,
    /// Registration, or a change of it.
    Account,
    /// Registration that is bound to an account made at the CA's site.
    Binding,
    /// A new order.
    NewOrder,
    /// An order of an earlier attempt.
    Resume,
    /// State of an authorization, or the request to validate.
    Authorization,
    /// Issue now.
    Finalize,
    /// The certificate.
    Download,
}

/// The parts of a CA's refusal (RFC 8555 §6.7) that matter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Answer<'a> {
    /// HTTP status.
    pub status: Option<u16>,
    /// Type of the problem document, without its URN prefix where it has the usual one.
    pub kind: Option<&'a str>,
    /// The CA's own words.
    pub detail: Option<&'a str>,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
    /// A page where an operator can do something about it.
    pub page: Option<&'a str>,
}

/// The type of a problem document without its usual prefix (RFC 8555 §6.7).
pub fn short(kind: &str) -> &str {
    kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or(kind)
}

impl Failure {
    /// A failure of one name.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, reach: Reach::Name, retry_after: None, free_after: None, message: message.into() }
    }

    /// A refusal by `ca` of something asked for `name`.
    pub fn refused(ca: &str, name: &str, call: Call, answer: Answer<'_>) -> Self {
        let detail = spoken(answer.detail);
        let (class, message) = match answer.kind {
            Some("rateLimited") => return Self::limited(ca, name, call, answer),
            Some("badNonce") => (
                Class::Transient,
                format!("{ca} refused every nonce it gave out itself; its servers are out of step"),
            ),
            Some("connection" | "dns" | "tls" | "incorrectResponse") => {
                return Self::challenge(ca, name, answer.kind, answer.detail);
            }
            Some("caa") => return Self::challenge(ca, name, answer.kind, answer.detail),
            Some("unauthorized" | "malformed") if call == Call::Binding => (
                Class::Action,
                format!(
                    "{ca} does not accept the key given as `acme.eab`{detail}. Correct its `kid` or `hmac_key_file`"
                ),
            ),
            Some("unauthorized") => match call {
                Call::Directory | Call::Account | Call::Binding | Call::NewOrder => (
                    Class::Account,
                    format!("{ca} refuses this account{detail}. Ask the CA about it; its key is kept"),
                ),
                Call::Resume => (
                    Class::Order,
                    format!("{ca} does not show the order for {name}{detail}. A new one follows"),
                ),
                Call::Authorization | Call::Finalize | Call::Download => {
                    return Self::challenge(ca, name, answer.kind, answer.detail);
                }
            },
            Some("accountDoesNotExist") => (
                Class::Account,
                format!("{ca} does not know this account{detail}. It will be registered again"),
            ),
            Some("externalAccountRequired") => (
                Class::Action,
                format!(
                    "{ca} wants an account that is bound to one made at its site{detail}. Give its key as `acme.eab`, or \
                     choose another `acme.ca`"
                ),
            ),
            Some("userActionRequired") => {
                let how = answer.page.map_or(String::new(), |page| format!(": open {page}"));
                (
                    Class::Action,
                    format!(
                        "{ca} wants its terms of service accepted again{detail}. Do so at its site{how}. It is tried again once a day, \
                         and by `edge certs renew`"
                    ),
                )
            }
            Some("invalidContact" | "unsupportedContact") => {
                (Class::Action, format!("{ca} refuses the contact address{detail}. Correct `email`"))
            }
            Some(
                "rejectedIdentifier"
                | "unsupportedIdentifier"
                | "badCSR"
                | "badPublicKey"
                | "badSignatureAlgorithm",
            ) => (
                Class::Permanent,
                format!("{ca} will not issue for {name}{detail}. Remove the name or use another CA"),
            ),
            Some("malformed") => (Class::Permanent, format!("{ca} refused the request as malformed{detail}")),
            Some("invalidProfile") => {
                (Class::Permanent, format!("{ca} does not know the profile{detail}. Correct `acme.profile`"))
            }
            Some("orderNotReady" | "alreadyReplaced" | "conflict") => {
                (Class::Order, format!("{ca} dropped the order for {name}{detail}. A new one follows"))
            }
            Some(other) if answer.status.is_none_or(|status| status < 500) => match answer.status {
                Some(404 | 409) => (
                    Class::Order,
                    format!("{ca} no longer knows the order for {name}{detail}. A new one follows"),
                ),
                _ => (Class::Transient, format!("{ca} answered with `{other}`{detail}")),
            },
            Some(_) | None => return Self::by_status(ca, name, call, answer),
        };
        let registers = matches!(call, Call::Account | Call::Binding);
        let about_account = class == Class::Account || (class == Class::Action && registers);
        let reach = if about_account { Reach::Account } else { Reach::Name };
        Self { reach, ..Self::new(class, message) }
    }

    fn by_status(ca: &str, name: &str, call: Call, answer: Answer<'_>) -> Self {
        let detail = spoken(answer.detail);
        match answer.status {
            Some(429) => Self::limited(ca, name, call, answer),
            Some(500..) if answer.retry_after.is_some() => Self::limited(ca, name, call, answer),
            Some(404 | 409) if !matches!(call, Call::Directory | Call::Account | Call::Binding) => Self::new(
                Class::Order,
                format!("{ca} no longer knows the order for {name}{detail}. A new one follows"),
            ),
            Some(status) => Self::new(
                Class::Transient,
                format!(
                    "{ca} answered with HTTP status {status}{detail}. It is probably down or the URL is wrong"
                ),
            ),
            None => Self::new(Class::Transient, format!("{ca} refused without saying why{detail}")),
        }
    }

    fn limited(ca: &str, name: &str, call: Call, answer: Answer<'_>) -> Self {
        let detail = answer.detail.unwrap_or_default();
        // A paused account is told to visit a page; waiting for the limit alone would never end it.
        let paused = detail.contains("paused") && detail.contains("http");
        let class = if paused { Class::Action } else { Class::Limited };
        // A limit met while ordering may be this name's or the account's. Only the text knows; the CA's service as a whole
        // (no problem document) and registration are certainly not about this name.
        let about_account = matches!(call, Call::Directory | Call::Account | Call::Binding)
            || answer.kind.is_none()
            || detail.contains("new orders");
        let reach = if about_account && !paused { Reach::Account } else { Reach::Name };
        let message = if paused {
            format!(
                "{ca} has paused {name} after many failures{}. Follow its link, then it is tried again",
                spoken(answer.detail)
            )
        } else {
            // The one limit that is easy to meet without noticing, and that nothing lifts.
            let same = if detail.contains("exact set") {
                ". Was the storage of certificates deleted or is it lost at each deploy?"
            } else {
                ""
            };
            format!(
                "{ca} limits requests for {name}{}. Edge waits as long as it is told to{same}",
                spoken(answer.detail)
            )
        };
        Self { class, reach, retry_after: answer.retry_after, free_after: None, message }
    }

    /// A challenge the CA found wanting: `kind` and `detail` are those of the challenge's own error, which names the
    /// address the CA saw.
    pub fn challenge(ca: &str, name: &str, kind: Option<&str>, detail: Option<&str>) -> Self {
        let said = spoken(detail);
        match kind {
            Some("dns") => Self::new(
                Class::Validation,
                format!(
                    "{ca} could not resolve {name}{said}. Add an A or AAAA record that points at this machine"
                ),
            ),
            Some("connection") => Self::new(
                Class::Validation,
                format!(
                    "{ca} could not connect to {name} on port 80{said}. Point its A and AAAA records here and open port 80"
                ),
            ),
            Some("tls") => Self::new(
                Class::Validation,
                format!(
                    "{ca} could not finish a TLS handshake with {name}{said}. Does another server redirect port 80?"
                ),
            ),
            Some("unauthorized" | "incorrectResponse") => Self::new(
                Class::Validation,
                format!(
                    "{ca} reached another server at {name}{said}. Point its A and AAAA records at this machine"
                ),
            ),
            Some("caa")
                if detail
                    .is_some_and(|detail| detail.contains("SERVFAIL") || detail.contains("timed out")) =>
            {
                Self::new(
                    Class::Caa,
                    format!(
                        "{ca} got no answer about the CAA records of {name}{said}. Repair the zone's name servers"
                    ),
                )
            }
            Some("caa") => Self::new(
                Class::Caa,
                format!(
                    "a CAA record of {name} does not allow {ca}{said}. Add one that does, or use another CA"
                ),
            ),
            Some("rateLimited") => {
                Self::limited(ca, name, Call::Authorization, Answer { kind, detail, ..Answer::default() })
            }
            Some(_) | None => Self::new(Class::Validation, format!("{ca} could not validate {name}{said}")),
        }
    }
}

impl Failure {
    /// A record in DNS that the CA found wanting.
    pub fn record(ca: &str, record: &str, kind: Option<&str>, detail: Option<&str>) -> Self {
        let said = spoken(detail);
        let message = match kind {
            Some("caa" | "rateLimited") => return Self::challenge(ca, record, kind, detail),
            Some("dns" | "connection") => format!(
                "{ca} got no answer about the TXT record {record}{said}. Repair the zone's name servers and its DNSSEC"
            ),
            Some(_) | None => format!(
                "{ca} does not see the TXT record {record} as it should be{said}. Do all name servers of the zone show the \
                 same to the whole internet?"
            ),
        };
        Self::new(Class::Validation, message)
    }
}

/// The CA's words as a clause that can follow any sentence: one line, no final stop, bounded.
fn spoken(detail: Option<&str>) -> String {
    let Some(detail) = detail else { return String::new() };
    let line: String = detail.chars().map(|c| if c.is_control() { ' ' } else { c }).take(400).collect();
    let line = line.trim().trim_end_matches('.');
    if line.is_empty() { String::new() } else { format!(" ({line})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(call: Call, status: u16, kind: Option<&str>, retry_after: Option<u64>) -> (Class, Reach) {
        let answer = Answer {
            status: Some(status),
            kind,
            detail: Some("why."),
            retry_after: retry_after.map(Duration::from_secs),
            page: None,
        };
        let failure = Failure::refused("the CA", "a.example", call, answer);
        assert!(failure.message.contains("the CA"), "{}", failure.message);
        assert_eq!(failure.retry_after.is_some(), failure.class == Class::Limited && retry_after.is_some());
        (failure.class, failure.reach)
    }

    #[test]
    fn each_answer_of_a_ca_has_its_class() {
        use Call::{Account, Authorization, Directory, Finalize, NewOrder};
        for (call, status, kind, retry_after, wanted) in [
            (Directory, 503, None, None, Class::Transient),
            (Directory, 503, None, Some(60), Class::Limited),
            (NewOrder, 429, None, None, Class::Limited),
            (NewOrder, 429, Some("rateLimited"), Some(3600), Class::Limited),
            (NewOrder, 500, Some("serverInternal"), None, Class::Transient),
            (NewOrder, 500, Some("serverInternal"), Some(60), Class::Limited),
            (Finalize, 502, None, Some(60), Class::Limited),
            (Directory, 504, None, Some(60), Class::Limited),
            (NewOrder, 400, Some("badNonce"), None, Class::Transient),
            (NewOrder, 403, Some("unauthorized"), None, Class::Account),
            (NewOrder, 400, Some("accountDoesNotExist"), None, Class::Account),
            (Authorization, 403, Some("unauthorized"), None, Class::Validation),
            (Authorization, 400, Some("dns"), None, Class::Validation),
            (Finalize, 403, Some("caa"), None, Class::Caa),
            (Finalize, 403, Some("orderNotReady"), None, Class::Order),
            (Finalize, 404, None, None, Class::Order),
            (NewOrder, 409, Some("conflict"), None, Class::Order),
            (NewOrder, 400, Some("rejectedIdentifier"), None, Class::Permanent),
            (Finalize, 400, Some("badCSR"), None, Class::Permanent),
            (Account, 403, Some("externalAccountRequired"), None, Class::Action),
            (Account, 400, Some("invalidContact"), None, Class::Action),
            (NewOrder, 403, Some("userActionRequired"), None, Class::Action),
        ] {
            assert_eq!(class(call, status, kind, retry_after).0, wanted, "{status} {kind:?}");
        }
    }

    #[test]
    fn a_limit_on_the_service_holds_every_name_and_a_limit_on_a_name_only_that() {
        assert_eq!(class(Call::NewOrder, 503, None, Some(9)), (Class::Limited, Reach::Account));
        assert_eq!(class(Call::NewOrder, 429, Some("rateLimited"), Some(9)), (Class::Limited, Reach::Name));
    }

    #[test]
    fn a_paused_name_asks_for_its_operator() {
        let answer = Answer {
            status: Some(429),
            kind: Some("rateLimited"),
            detail: Some("a.example is paused, see https://ca.test/unpause"),
            ..Answer::default()
        };
        let failure = Failure::refused("the CA", "a.example", Call::NewOrder, answer);
        assert_eq!(failure.class, Class::Action);
        assert!(failure.message.contains("https://ca.test/unpause"));
    }

    #[test]
    fn terms_that_are_to_be_accepted_come_with_their_page() {
        let page = Some("https://ca.test/terms");
        let answer =
            Answer { status: Some(403), kind: Some("userActionRequired"), page, ..Answer::default() };
        let failure = Failure::refused("the CA", "a.example", Call::NewOrder, answer);
        assert!(failure.message.contains("open https://ca.test/terms."), "{}", failure.message);
    }

    #[test]
    fn the_cas_words_stay_on_one_line() {
        let failure =
            Failure::challenge("the CA", "a.example", Some("dns"), Some("no\nsuch\u{1b}[31m name."));
        assert!(!failure.message.contains(char::is_control), "{:?}", failure.message);
    }
}
