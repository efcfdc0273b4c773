//! Messages to and from name servers (RFC 1035): questions and updates written, answers read.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, Query, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, Record, RecordSet, RecordType, TSigVerifier, TSigner};

use crate::config::model::{UpdateAlgorithm, UpdateKey};

/// What a server may send over UDP: no more than passes every network unbroken.
pub const MOST_OVER_UDP: u16 = 1232;
/// How far the clocks of edge and server may be apart in seconds (RFC 8945 §10).
const FUDGE: u16 = 300;
/// How long others may keep a record that is needed for minutes, in seconds.
const LIFE: u32 = 60;

/// What is asked of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// Which name it stands for.
    Alias,
    /// Which zone it is in.
    Zone,
    /// Which servers have the zone of this name.
    Servers,
    /// Its IPv4 addresses.
    Ipv4,
    /// Its IPv6 addresses.
    Ipv6,
    /// Its texts.
    Texts,
}

/// A message to be sent: number and bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number, which the answer repeats.
    pub id: u16,
    /// The message.
    pub bytes: Vec<u8>,
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// How it went.
    pub code: ResponseCode,
    /// Whether more was to be said than fits.
    pub truncated: bool,
    /// Names the asked one stands for, in the order of the answer.
    pub aliases: Vec<(Name, Name)>,
    /// The zone the asked name is in, where that is said.
    pub zone: Option<Name>,
    /// Servers of the zone.
    pub servers: Vec<Name>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Texts, each put together again.
    pub texts: Vec<Vec<u8>>,
    /// What the server says against the key that a message was signed with.
    pub key_error: Option<String>,
}

/// A message that cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadMessage(String);

fn bad(error: impl std::fmt::Display) -> BadMessage {
    BadMessage(error.to_string())
}

/// What a record in DNS is changed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is added to what stands there.
    Add,
    /// It alone is removed.
    Remove,
}

/// An absolute name.
pub fn name(text: &str) -> Result<Name, BadMessage> {
    let mut name = Name::from_ascii(text).map_err(bad)?;
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

/// As people write it: without the dot at its end.
pub fn spoken(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').filter(|bare| !bare.is_empty()).unwrap_or(&text).to_owned()
}

/// A question with the number `id`. A resolver is asked to look further, a zone's own server is not.
pub fn question(id: u16, about: About, of: &Name, look_further: bool) -> Result<Outgoing, BadMessage> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = look_further;
    message.add_query(Query::query(of.clone(), kind(about)));
    let mut edns = Edns::new();
    edns.set_max_payload(MOST_OVER_UDP);
    message.set_edns(edns);
    Ok(Outgoing { id, bytes: message.to_vec().map_err(bad)? })
}

/// An update (RFC 2136) of the texts of `of` in `zone`, signed (RFC 8945) at `now`, in seconds since 1970, where there is a key. With it
/// comes what the answer must pass.
pub fn update(
    id: u16,
    change: Change,
    zone: &Name,
    of: &Name,
    text: &str,
    key: Option<&UpdateKey>,
    now: u64,
) -> Result<(Outgoing, Option<TSigVerifier>), BadMessage> {
    if !zone.zone_of(of) {
        return Err(BadMessage(format!("{} is not in the zone {}", spoken(of), spoken(zone))));
    }
    let record = Record::from_rdata(of.clone(), LIFE, RData::TXT(TXT::new(vec![text.to_owned()])));
    let mut records = RecordSet::with_ttl(of.clone(), RecordType::TXT, LIFE);
    records.insert(record, 0);
    let mut message = match change {
        Change::Add => update_message::append(records, zone.clone(), false, false),
        Change::Remove => update_message::delete_by_rdata(records, zone.clone(), false),
    };
    message.metadata.id = id;
    let verifier = match key {
        Some(key) => message.finalize(&signer(key)?, now).map_err(bad)?,
        None => None,
    };
    Ok((Outgoing { id, bytes: message.to_vec().map_err(bad)? }, verifier))
}

fn signer(key: &UpdateKey) -> Result<TSigner, BadMessage> {
    let algorithm = match key.algorithm {
        UpdateAlgorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        UpdateAlgorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        UpdateAlgorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    TSigner::new(key.secret.clone(), algorithm, name(key.name.as_str())?, FUDGE).map_err(bad)
}

/// Reads the answer to `asked`; one to another question is none.
pub fn answer(asked: &Outgoing, bytes: &[u8]) -> Result<Answer, BadMessage> {
    let message = Message::from_vec(bytes).map_err(bad)?;
    let question = Message::from_vec(&asked.bytes).map_err(bad)?;
    if message.metadata.id != asked.id {
        return Err(BadMessage("it answers another question".to_owned()));
    }
    // Those that refuse may leave the question out.
    if !message.queries.is_empty() && message.queries != question.queries {
        return Err(BadMessage("it answers another question".to_owned()));
    }
    let mut answer = Answer {
        code: message.metadata.response_code,
        truncated: message.metadata.truncation,
        aliases: Vec::new(),
        zone: None,
        servers: Vec::new(),
        addresses: Vec::new(),
        texts: Vec::new(),
        key_error: message.signature().and_then(|signature| signature.data.error.as_ref()).map(key_error),
    };
    for record in &message.answers {
        match &record.data {
            RData::CNAME(target) => answer.aliases.push((record.name.clone(), target.0.to_lowercase())),
            RData::NS(server) => answer.servers.push(server.0.to_lowercase()),
            RData::A(address) => answer.addresses.push(IpAddr::V4(address.0)),
            RData::AAAA(address) => answer.addresses.push(IpAddr::V6(address.0)),
            RData::TXT(text) => answer.texts.push(text.txt_data.concat()),
            RData::SOA(_) => answer.zone = Some(record.name.to_lowercase()),
            _ => {}
        }
    }
    let asked_of = question.queries.first().map(|query| query.name().clone());
    for record in message.authorities.iter().filter(|record| record.record_type() == RecordType::SOA) {
        // A resolver that makes answers up says so by the zone it names.
        if answer.zone.is_none() && asked_of.as_ref().is_some_and(|of| record.name.zone_of(of)) {
            answer.zone = Some(record.name.to_lowercase());
        }
    }
    Ok(answer)
}

fn kind(about: About) -> RecordType {
    match about {
        About::Alias => RecordType::CNAME,
        About::Zone => RecordType::SOA,
        About::Servers => RecordType::NS,
        About::Ipv4 => RecordType::A,
        About::Ipv6 => RecordType::AAAA,
        About::Texts => RecordType::TXT,
    }
}

/// What a server's refusal means to an operator.
pub fn refusal(code: ResponseCode) -> String {
    match code {
        ResponseCode::Refused => "it refuses (REFUSED)".to_owned(),
        ResponseCode::NotAuth => {
            "it is not the primary server of the zone, or does not know the key (NOTAUTH)".to_owned()
        }
        ResponseCode::NotZone => "the name is not in the zone (NOTZONE)".to_owned(),
        ResponseCode::ServFail => "it failed (SERVFAIL)".to_owned(),
        ResponseCode::NXDomain => "the name does not exist (NXDOMAIN)".to_owned(),
        other => format!("it answers {other}"),
    }
}

fn key_error(error: &TsigError) -> String {
    match error {
        TsigError::BadKey => "it does not know the key of that name and algorithm (BADKEY)".to_owned(),
        TsigError::BadSig => "its secret of the key is another (BADSIG)".to_owned(),
        TsigError::BadTime => "its clock and this machine's are too far apart (BADTIME)".to_owned(),
        other => format!("it does not accept the key ({other:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Name {
        name(text).expect(text)
    }

    fn answered(asked: &Outgoing, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::from_vec(&asked.bytes).expect("readable").into_response();
        change(&mut message);
        message.to_vec().expect("written")
    }

    #[test]
    fn a_text_in_parts_is_put_together_and_an_answer_to_another_question_is_none() {
        let asked = question(7, About::Texts, &named("_acme-challenge.a.example"), false).expect("written");
        let record = Record::from_rdata(
            named("_acme-challenge.a.example"),
            60,
            RData::TXT(TXT::new(vec!["one".to_owned(), "two".to_owned()])),
        );
        let bytes = answered(&asked, |message| message.answers.push(record.clone()));
        assert_eq!(answer(&asked, &bytes).expect("read").texts, [b"onetwo".to_vec()]);
        let other = answered(&asked, |message| message.metadata.id = 8);
        assert!(answer(&asked, &other).is_err());
        let about = question(7, About::Texts, &named("b.example"), false).expect("written");
        assert!(answer(&about, &bytes).is_err());
    }

    #[test]
    fn a_zone_that_does_not_hold_the_name_is_not_believed() {
        use hickory_proto::rr::rdata::SOA;
        let asked = question(7, About::Zone, &named("a.example.com"), true).expect("written");
        for (zone, found) in [("example.com", true), ("made.up", false)] {
            let soa = SOA::new(named("ns"), named("root"), 1, 1, 1, 1, 1);
            let record = Record::from_rdata(named(zone), 60, RData::SOA(soa));
            let bytes = answered(&asked, |message| message.authorities.push(record));
            assert_eq!(answer(&asked, &bytes).expect("read").zone.is_some(), found, "{zone}");
        }
    }

    #[test]
    fn nothing_a_server_sends_panics() {
        let asked = question(7, About::Texts, &named("a.example"), false).expect("written");
        let good = answered(&asked, |_| {});
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..5000 {
            let mut bytes = good.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            let _read_or_not = answer(&asked, &bytes);
        }
    }

    #[test]
    fn only_names_in_the_zone_are_updated() {
        let update = |of: &str| update(1, Change::Add, &named("example.com"), &named(of), "x", None, 0);
        assert!(update("_acme-challenge.example.com").is_ok());
        assert!(update("_acme-challenge.example.org").is_err());
    }
}
