//! What proxies in front of edge say of a request's client, and how much of it is believed.
//!
//! Each proxy adds, at the right end, the address that it was reached from. So the chain is read from the right: the peer of the
//! connection vouches for the last entry; if that is a trusted proxy, too, it vouches for the one before. What stands further to
//! the left was sent by the client and may say anything. An entry that names no address ends the chain at whoever vouched for it.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderValue};

use crate::config::networks::Networks;
use crate::name::HostName;
use crate::proxy::target::Authority;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const X_FORWARDED_PROTO: &str = "x-forwarded-proto";
const X_FORWARDED_HOST: &str = "x-forwarded-host";
const FORWARDED: &str = "forwarded";

/// What is believed of a request's client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Believed {
    /// Its address.
    pub client: IpAddr,
    /// Whether it came by https; `None` where nobody says so, or two say differently.
    pub secure: Option<bool>,
    /// The authority it asked for, where that is a host and port.
    pub host: Option<HeaderValue>,
}

/// What is believed of a request that came from `peer`; `None` where that is nobody who is believed.
pub fn believed(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Option<Believed> {
    if !trusted.contain(peer) {
        return None;
    }
    let listed = headers.contains_key(X_FORWARDED_FOR).then(|| {
        let hops = elements(headers, X_FORWARDED_FOR).map(|text| address(text.trim_ascii()));
        walk(peer, hops.map(|address| Hop { address, ..Hop::default() }), trusted)
    });
    let told = headers.contains_key(FORWARDED).then(|| {
        let hops = elements(headers, FORWARDED).map(|text| hop(text).unwrap_or_default());
        walk(peer, hops, trusted)
    });
    let client = match (&listed, &told) {
        (None, None) => peer,
        (Some(one), None) | (None, Some(one)) => one.client(),
        (Some(one), Some(other)) => one.common(other),
    };
    // Told of the believed client by whoever vouches for it.
    let hop = told.map(|chain| chain.last).filter(|hop| hop.address == Some(client)).unwrap_or_default();
    let proto = last(headers, X_FORWARDED_PROTO).and_then(is_secure);
    let host = last(headers, X_FORWARDED_HOST).and_then(authority);
    Some(Believed { client, secure: agreed(proto, hop.secure), host: agreed(host, hop.host) })
}

/// One proxy's entry.
#[derive(Debug, Default, PartialEq)]
struct Hop {
    address: Option<IpAddr>,
    secure: Option<bool>,
    host: Option<HeaderValue>,
}

/// The addresses that are believed, the peer's first, and the last entry that was.
struct Chain {
    addresses: Vec<IpAddr>,
    last: Hop,
}

impl Chain {
    fn client(&self) -> IpAddr {
        // It begins with the peer.
        self.addresses[self.addresses.len() - 1]
    }

    /// The client of both, or, where they name different ones, the last address on the way of both.
    fn common(&self, other: &Self) -> IpAddr {
        if self.client() == other.client() {
            return self.client();
        }
        let both = self.addresses.iter().zip(&other.addresses).take_while(|(one, other)| one == other);
        both.last().map_or(self.addresses[0], |(address, _)| *address)
    }
}

fn walk(peer: IpAddr, hops: impl Iterator<Item = Hop>, trusted: &Networks) -> Chain {
    let mut chain = Chain { addresses: vec![peer], last: Hop::default() };
    for hop in hops {
        let Some(address) = hop.address else { break };
        chain.addresses.push(address);
        chain.last = hop;
        if !trusted.contain(address) {
            break;
        }
    }
    chain
}

/// What both say, or the one that says anything.
fn agreed<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => (one == other).then_some(one),
        (one, other) => one.or(other),
    }
}

/// The elements of a list field from the last to the first, over all its lines; empty ones mean nothing (RFC 9110 §5.6.1).
fn elements<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.get_all(name).iter().rev().map(HeaderValue::as_bytes);
    lines.flat_map(FromTheRight::of).filter(|element| !element.trim_ascii().is_empty())
}

fn last<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    elements(headers, name).next().map(<[u8]>::trim_ascii)
}

/// Splits a line at its commas, beginning at the right end: quotes that a client left open cannot swallow what a proxy has
/// added after them.
struct FromTheRight<'h>(Option<&'h [u8]>);

impl<'h> FromTheRight<'h> {
    fn of(line: &'h [u8]) -> Self {
        Self(Some(line))
    }
}

impl<'h> Iterator for FromTheRight<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        let line = self.0?;
        let mut quoted = false;
        for (at, byte) in line.iter().enumerate().rev() {
            match byte {
                b'"' if !quoted => quoted = true,
                // One that is escaped is part of the text.
                b'"' => quoted = line[..at].iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1,
                b',' if !quoted => {
                    self.0 = Some(&line[..at]);
                    return Some(&line[at + 1..]);
                }
                _ => {}
            }
        }
        self.0.take()
    }
}

/// One element of `Forwarded` (RFC 7239 §4); `None` where it is malformed or says something twice.
fn hop(element: &[u8]) -> Option<Hop> {
    let (mut address, mut secure, mut host) = (None, None, None);
    let mut rest = element.trim_ascii();
    while !rest.is_empty() {
        let (name, value, after) = pair(rest)?;
        let before = match name.to_ascii_lowercase().as_slice() {
            b"for" => address.replace(self::address(&value)).is_some(),
            b"proto" => secure.replace(is_secure(&value)).is_some(),
            b"host" => host.replace(authority(&value)).is_some(),
            _ => false,
        };
        if before {
            return None;
        }
        rest = after;
    }
    Some(Hop { address: address?, secure: secure.flatten(), host: host.flatten() })
}

/// The first pair, and what follows its semicolon. A value may hold what the grammar wants quoted: some proxies write ports and
/// IPv6 addresses bare.
fn pair(text: &[u8]) -> Option<(&[u8], Vec<u8>, &[u8])> {
    let equals = text.iter().position(|b| *b == b'=')?;
    let is_plain = |b: &u8| b.is_ascii_graphic() && *b != b'"';
    let (name, text) = (text[..equals].trim_ascii(), &text[equals + 1..]);
    let (value, rest) = match text.strip_prefix(b"\"") {
        Some(text) => quoted(text)?,
        None => {
            let end = text.iter().position(|b| *b == b';').unwrap_or(text.len());
            let value = text[..end].trim_ascii();
            value.iter().all(is_plain).then(|| (value.to_vec(), &text[end..]))?
        }
    };
    let rest = rest.trim_ascii();
    let rest = if rest.is_empty() { rest } else { rest.strip_prefix(b";")?.trim_ascii() };
    (!name.is_empty() && name.iter().all(is_plain)).then_some((name, value, rest))
}

/// A quoted string without its first quote, and what follows it (RFC 9110 §5.6.4).
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut bytes = text.iter().enumerate();
    loop {
        match bytes.next()? {
            (at, b'"') => return Some((value, &text[at + 1..])),
            (_, b'\\') => value.push(*bytes.next()?.1),
            (_, byte) => value.push(*byte),
        }
    }
}

/// The address of a node, its port dropped; `None` where it is unknown, obfuscated or malformed (RFC 7239 §6).
fn address(node: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(node).ok()?;
    let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']')?;
        (IpAddr::V6(host.parse::<Ipv6Addr>().ok()?), port)
    } else if let Ok(address) = text.parse::<IpAddr>() {
        (address, "")
    } else {
        let colon = text.find(':')?;
        (text[..colon].parse().ok()?, &text[colon..])
    };
    let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')?) };
    port.is_none_or(is_port).then(|| host.to_canonical())
}

fn is_port(text: &str) -> bool {
    let number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok();
    let obfuscated = text.strip_prefix('_').is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    });
    number || obfuscated
}

fn is_secure(scheme: &[u8]) -> Option<bool> {
    let is = |names: [&str; 2]| names.iter().any(|name| scheme.eq_ignore_ascii_case(name.as_bytes()));
    if is(["https", "wss"]) {
        return Some(true);
    }
    is(["http", "ws"]).then_some(false)
}

/// An authority that can be passed on: workers make links of it.
fn authority(text: &[u8]) -> Option<HeaderValue> {
    let parsed = Authority::parse(std::str::from_utf8(text).ok()?).ok()?;
    HostName::parse(parsed.host).ok()?;
    HeaderValue::from_bytes(text).ok()
}

#[cfg(test)]
mod tests;
