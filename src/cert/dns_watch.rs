//! Waits until every server of a zone shows a record: a CA that looks too soon remembers for minutes that there is none.

use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::Name;
use tokio::time::Instant;

use crate::cert::dns_ask::ask;
use crate::cert::dns_message::{About, refusal, spoken};
use crate::cert::dns_zone::NameServer;
use crate::report::Report;

/// Between two looks, at first and later: servers that copy a zone do so within seconds or by a slow timer.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// What one server showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cert) enum Seen {
    /// The record.
    There,
    /// No such record, in these words.
    Missing(String),
    /// Nothing: it did not answer.
    Silent(String),
}

/// What all of them showed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cert) enum View {
    /// Every server shows it.
    Clear,
    /// Those that answer show it; these do not answer.
    Partial(String),
    /// Not every one, as the sentence says.
    Missing(String),
}

/// Tells the text that is looked for from others.
pub(in crate::cert) type Wanted<'a> = &'a dyn Fn(&[u8]) -> bool;

/// Looks until every server shows a wanted text at `of`, or the time is over.
pub(in crate::cert) async fn until_seen(
    servers: &[NameServer],
    of: &Name,
    wanted: Wanted<'_>,
    limit: Duration,
) -> View {
    let deadline = Instant::now() + limit;
    let mut pause = FIRST_PAUSE;
    loop {
        let view = look(servers, of, wanted).await;
        if view == View::Clear || Instant::now() + pause >= deadline {
            return view;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Looks once.
pub(in crate::cert) async fn look(servers: &[NameServer], of: &Name, wanted: Wanted<'_>) -> View {
    let looks =
        servers.iter().map(|server| async { (server.name.as_str(), at_server(server, of, wanted).await) });
    judge(of, &join_all(looks).await)
}

/// Every address counts: a CA may ask any of them. One that this machine cannot reach says nothing.
async fn at_server(server: &NameServer, of: &Name, wanted: Wanted<'_>) -> Seen {
    if server.addresses.is_empty() {
        return Seen::Silent("has no address".to_owned());
    }
    let looks = server.addresses.iter().map(|address| async {
        match ask(*address, About::Texts, of, false).await {
            Ok(answer) if answer.texts.iter().any(|text| wanted(text)) => Seen::There,
            Ok(answer) => Seen::Missing(match (answer.code, answer.texts.len()) {
                (ResponseCode::NoError | ResponseCode::NXDomain, 0) => "does not have it".to_owned(),
                (ResponseCode::NoError | ResponseCode::NXDomain, others) => {
                    format!("does not have it, but {others} other texts")
                }
                (code, _) => format!("does not tell: {}", refusal(code)),
            }),
            Err(error) => Seen::Silent(format!("({}): {}", address.ip(), Report(&error))),
        }
    });
    let seen = join_all(looks).await;
    let missing = seen.iter().find(|one| matches!(one, Seen::Missing(_)));
    let there = seen.iter().find(|one| **one == Seen::There);
    missing.or(there).or(seen.first()).cloned().unwrap_or(Seen::Silent("has no address".to_owned()))
}

fn judge(of: &Name, seen: &[(&str, Seen)]) -> View {
    let missing: Vec<String> = seen
        .iter()
        .filter_map(|(server, seen)| match seen {
            Seen::Missing(how) => Some(format!("{server} {how}")),
            Seen::There | Seen::Silent(_) => None,
        })
        .collect();
    if !missing.is_empty() {
        return View::Missing(format!(
            "the TXT record {} is not everywhere: {}",
            spoken(of),
            missing.join("; ")
        ));
    }
    let silent: Vec<String> = seen
        .iter()
        .filter_map(|(server, seen)| match seen {
            Seen::Silent(how) => Some(format!("{server} {how}")),
            Seen::There | Seen::Missing(_) => None,
        })
        .collect();
    if silent.is_empty() { View::Clear } else { View::Partial(silent.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cert::dns_message::name;

    #[test]
    fn the_sentence_names_the_server_that_lacks_the_record() {
        let of = name("_acme-challenge.a.example").expect("a name");
        let seen = |ns1: Seen, ns2: Seen| judge(&of, &[("ns1.a.example", ns1), ("ns2.a.example", ns2)]);
        assert_eq!(seen(Seen::There, Seen::There), View::Clear);
        let silent = Seen::Silent("(192.0.2.1): it does not answer".to_owned());
        assert!(
            matches!(seen(Seen::There, silent.clone()), View::Partial(told) if told.starts_with("ns2.a.example (192"))
        );
        let View::Missing(told) = seen(silent, Seen::Missing("does not have it".to_owned())) else {
            panic!("missing")
        };
        assert!(
            told.contains("_acme-challenge.a.example") && told.contains("ns2.a.example does not have it"),
            "{told}"
        );
        assert!(!told.contains("ns1"), "{told}");
    }
}
