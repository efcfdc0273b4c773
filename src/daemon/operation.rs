//! What an operator can ask a running edge to do, as both ends of the admin socket write it.

use std::fmt;
use std::str::FromStr;

use crate::cert::bundle::MAX_SIZE;
use crate::config::care::WorkerCount;
use crate::name::{AppName, HostPattern};

/// One request to act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Put the changed file in force; with an app, replace its workers in any case.
    Reload(Option<AppName>),
    /// Replace an app's workers by fresh ones.
    Restart(AppName),
    /// Run that many workers.
    Scale(AppName, Number),
    /// Take an app out of service, with a text for visitors or the usual one.
    Maintain(AppName, Option<String>),
    /// Put it back.
    Resume(AppName),
    /// Obtain a new certificate for a name.
    Renew(String),
    /// Answer for a token on ports 80 and 443, as long as whoever asked listens.
    Answer {
        /// The token.
        token: String,
        /// The answer.
        answer: String,
    },
    /// Take over what another program obtained.
    Import(Import),
    /// What workers printed, of one app or all; and what they print from now on.
    Logs {
        /// Whose.
        app: Option<AppName>,
        /// Whether it goes on.
        follow: bool,
    },
}

/// Something of another program's on its way into a running edge. What it holds is secret and never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum Import {
    /// A certificate.
    Certificate {
        /// The name it is for.
        name: HostPattern,
        /// The CA it is from; empty where that is not known.
        ca: String,
        /// Its key and chain.
        pem: String,
    },
    /// An account.
    Account {
        /// At which CA.
        ca: String,
        /// As edge keeps it.
        record: String,
    },
}

impl Import {
    fn parse(what: &str, body: &[u8]) -> Option<Self> {
        let (first, rest) = std::str::from_utf8(body).ok()?.split_once('\n')?;
        match what {
            "certificate" => {
                let (ca, pem) = rest.split_once('\n')?;
                let name = first.parse().ok()?;
                Some(Self::Certificate { name, ca: ca.to_owned(), pem: pem.to_owned() })
            }
            "account" => Some(Self::Account { ca: first.to_owned(), record: rest.to_owned() }),
            _ => None,
        }
    }
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { name, .. } => write!(f, "Certificate({name})"),
            Self::Account { ca, .. } => write!(f, "Account({ca})"),
        }
    }
}

/// How many workers an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// As many as the file and the load say.
    Auto,
    /// This many, whatever those say.
    Held(u32),
}

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            text => match text.parse() {
                Ok(workers) if (1..=WorkerCount::MOST).contains(&workers) => Ok(Self::Held(workers)),
                Ok(_) | Err(_) => {
                    Err(format!("it is neither `auto` nor a whole number from 1 to {}", WorkerCount::MOST))
                }
            },
        }
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Held(number) => number.fmt(f),
        }
    }
}

/// The longest text for visitors, in bytes.
pub const LONGEST_TEXT: usize = 4096;

/// The longest body of the request at `path`.
pub fn longest(path: &str) -> usize {
    // Key and chain, and the lines about them.
    if path.starts_with("/import/") { 3 * MAX_SIZE as usize } else { LONGEST_TEXT }
}

impl Operation {
    /// Whether edge goes on afterwards as it did before.
    pub fn is_reading(&self) -> bool {
        match self {
            Self::Logs { .. } | Self::Answer { .. } => true,
            Self::Reload(_)
            | Self::Restart(_)
            | Self::Scale(..)
            | Self::Maintain(..)
            | Self::Resume(_)
            | Self::Renew(_)
            | Self::Import(_) => false,
        }
    }

    /// Path, query and body of the request.
    pub fn written(&self) -> (String, String) {
        match self {
            Self::Reload(None) => ("/reload".to_owned(), String::new()),
            Self::Reload(Some(app)) => (format!("/reload/{app}"), String::new()),
            Self::Restart(app) => (format!("/restart/{app}"), String::new()),
            Self::Scale(app, workers) => (format!("/scale/{app}/{workers}"), String::new()),
            Self::Maintain(app, text) => (format!("/maintenance/{app}/on"), text.clone().unwrap_or_default()),
            Self::Resume(app) => (format!("/maintenance/{app}/off"), String::new()),
            // In the body: a name may hold what a path cannot.
            Self::Renew(name) => ("/renew".to_owned(), name.clone()),
            Self::Answer { token, answer } => ("/answer".to_owned(), format!("{token} {answer}")),
            Self::Import(Import::Certificate { name, ca, pem }) => {
                ("/import/certificate".to_owned(), format!("{name}\n{ca}\n{pem}"))
            }
            Self::Import(Import::Account { ca, record }) => {
                ("/import/account".to_owned(), format!("{ca}\n{record}"))
            }
            Self::Logs { app, follow } => {
                let app = app.as_ref().map(|app| format!("/{app}")).unwrap_or_default();
                (format!("/logs{app}{}", if *follow { "?follow" } else { "" }), String::new())
            }
        }
    }

    /// The operation that was written so.
    pub fn parse(path: &str, query: Option<&str>, body: &[u8]) -> Option<Self> {
        let mut words = path.strip_prefix('/')?.split('/');
        let verb = words.next()?;
        let app = words.next().map(|word| word.parse::<AppName>()).transpose().ok()?;
        let last = words.next();
        if words.next().is_some() || body.len() > longest(path) {
            return None;
        }
        match (verb, app, last) {
            ("reload", app, None) => Some(Self::Reload(app)),
            ("restart", Some(app), None) => Some(Self::Restart(app)),
            ("scale", Some(app), Some(workers)) => Some(Self::Scale(app, workers.parse().ok()?)),
            ("maintenance", Some(app), Some("on")) => {
                let text = std::str::from_utf8(body).ok()?.trim();
                Some(Self::Maintain(app, (!text.is_empty()).then(|| text.to_owned())))
            }
            ("maintenance", Some(app), Some("off")) => Some(Self::Resume(app)),
            ("renew", None, None) => {
                let name = std::str::from_utf8(body).ok()?;
                name.parse::<HostPattern>().ok().map(|name| Self::Renew(name.to_string()))
            }
            ("answer", None, None) => {
                let (token, answer) = std::str::from_utf8(body).ok()?.split_once(' ')?;
                Some(Self::Answer { token: token.to_owned(), answer: answer.to_owned() })
            }
            ("import", Some(what), None) => Import::parse(what.as_str(), body).map(Self::Import),
            ("logs", app, None) => Some(Self::Logs { app, follow: query == Some("follow") }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_end_writes_the_other_understands() {
        let app = || "a".parse::<AppName>().expect("valid");
        for operation in [
            Operation::Reload(None),
            Operation::Reload(Some(app())),
            Operation::Restart(app()),
            Operation::Scale(app(), Number::Held(7)),
            Operation::Scale(app(), Number::Auto),
            Operation::Maintain(app(), Some("Back at nine.".to_owned())),
            Operation::Maintain(app(), None),
            Operation::Resume(app()),
            Operation::Renew("*.a.example".to_owned()),
            Operation::Answer { token: "a-token".to_owned(), answer: "an answer".to_owned() },
            Operation::Import(Import::Certificate {
                name: "*.a.example".parse().expect("valid"),
                ca: String::new(),
                pem: "one\ntwo\n".to_owned(),
            }),
            Operation::Import(Import::Account { ca: "ca.example".to_owned(), record: "{\n}".to_owned() }),
            Operation::Logs { app: None, follow: false },
            Operation::Logs { app: Some(app()), follow: true },
        ] {
            let (target, body) = operation.written();
            let (path, query) = match target.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (target.as_str(), None),
            };
            assert_eq!(Operation::parse(path, query, body.as_bytes()), Some(operation.clone()), "{target}");
        }
        for nonsense in [
            "/",
            "/reload/a/b",
            "/restart",
            "/scale/a",
            "/scale/a/x",
            "/scale/a/0",
            "/scale/a/1001",
            "/logs/..",
            "/stop",
            "reload",
            "/renew",
            "/import/certificate",
            "/import/key",
        ] {
            assert_eq!(Operation::parse(nonsense, None, b""), None, "{nonsense}");
        }
    }
}
