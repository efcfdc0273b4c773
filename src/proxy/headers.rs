//! Header fields on their way through: what one hop may say to the next ends here, what clients may not claim is dropped, and
//! what workers must know is written anew. In place: this runs for each request. A response needs nothing: its fields of one
//! hop ended where they were read, in the exchange.

use std::net::IpAddr;

use http::header::{CONNECTION, CONTENT_TYPE, COOKIE, TE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::proxy::target::Present;

/// Room for so many fields that are not there is given back: no browser says enough of them to leave as much.
const SPARE: usize = 32;

/// What a worker learns of the client from edge alone.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// The same as a field value.
    pub client_text: &'a HeaderValue,
    /// Whether the client came over TLS.
    pub secure: bool,
    /// The authority the client asked for, as it wrote it: the request's own, or what a trusted proxy says.
    pub host: &'a HeaderValue,
    /// Identifies the request in logs.
    pub request_id: u64,
    /// The verified subject of the client's certificate.
    pub client_subject: Option<&'a HeaderValue>,
    /// Whether the client takes trailers; a worker may keep them to itself otherwise (RFC 9110 §6.5.1).
    pub trailers: bool,
}

/// Takes out of a client's fields what must not reach a worker, `Host` and framing excepted: those the exchange leaves out.
/// `present` tells what they held when they came.
pub fn request(headers: &mut HeaderMap, present: &Present) {
    if present.connection {
        // The client's own list first, so that it can never name a field that edge writes (RFC 9110 §7.6.1).
        remove_named_by_connection(headers);
    }
    remove_where(headers, |name| is_of_one_hop(name) || is_refused_from_clients(name));
    if present.crumbs {
        join_cookies(headers);
    }
}

/// Makes a map of very many fields as large as they are: it doubles as it grows, and nothing but a copy of it gives the rest
/// back. Over HTTP/2 a client says so many with a byte each. To be asked of fields that share their bytes, as HTTP/2 has them:
/// those that do not would get a counter each.
pub fn fit(headers: &mut HeaderMap) {
    if headers.capacity().saturating_sub(headers.keys_len()) >= SPARE {
        *headers = headers.clone();
    }
}

/// Whether a client's fields say that it takes trailers. To be asked before they are taken out.
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let mut listed = headers.get_all(TE).iter().flat_map(|list| list.as_bytes().split(|b| *b == b','));
    listed.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Whether a response's fields say that it is an event stream.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.as_bytes().split(|byte| *byte == b';').next());
    kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
}

/// Appends the lines that tell a worker of the client. Not by way of the map: seven fields a request would be its largest cost.
pub fn forwarding(out: &mut Vec<u8>, about: &Forwarding<'_>) {
    let (client, host) = (about.client_text.as_bytes(), about.host.as_bytes());
    let scheme: &[u8] = if about.secure { b"https" } else { b"http" };
    let mut line = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
    line(&[
        b"x-forwarded-for: ",
        client,
        b"\r\nx-forwarded-proto: ",
        scheme,
        b"\r\nx-forwarded-host: ",
        host,
    ]);
    line(&[b"\r\nx-real-ip: ", client, b"\r\nx-request-id: ", &request_id(about.request_id), b"\r\n"]);
    if let Some(subject) = about.client_subject {
        line(&[b"x-client-cert-subject: ", subject.as_bytes(), b"\r\n"]);
    }
    // RFC 7239 §4; §6: an IPv6 address is bracketed, and therefore quoted.
    let (before, after): (&[u8], &[u8]) = match about.client {
        IpAddr::V4(_) => (b"", b""),
        IpAddr::V6(_) => (b"\"[", b"]\""),
    };
    let plain = host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let quote: &[u8] = if plain { b"" } else { b"\"" };
    line(&[
        b"forwarded: for=",
        before,
        client,
        after,
        b";host=",
        quote,
        host,
        quote,
        b";proto=",
        scheme,
        b"\r\n",
    ]);
    if about.trailers {
        // RFC 9110 §10.1.4: a field of one hop, named as such.
        line(&[b"te: trailers\r\nconnection: te\r\n"]);
    }
}

/// The id as it is sent and logged.
pub fn request_id(id: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 16];
    for (at, digit) in text.iter_mut().enumerate() {
        *digit = DIGITS[(id >> (60 - 4 * at)) as usize & 15];
    }
    text
}

/// Removes `Connection` and the fields it names. `Host` is not its to remove: without it the next hop would read another
/// request than was sent. What needs no removing by name (`close`, and fields that go anyway) is passed over.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    const PASSED_OVER: [&[u8]; 5] = [b"keep-alive", b"close", b"upgrade", b"te", b"host"];
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|list| list.as_bytes().split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|token| !PASSED_OVER.iter().any(|name| token.eq_ignore_ascii_case(name)))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    headers.remove(CONNECTION);
    for name in listed {
        headers.remove(name);
    }
}

/// Removes every field whose name `unwanted` says. Most requests hold none, and then nothing is allocated.
fn remove_where(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Fields that speak to the next hop only (RFC 9110 §7.6.1), besides `Connection` and framing.
fn is_of_one_hop(name: &str) -> bool {
    matches!(name, "keep-alive" | "te" | "trailer" | "upgrade" | "http2-settings" | "proxy")
        || name.starts_with("proxy-")
}

/// Fields a client may not send to a worker: what only a gateway can know, names that some servers take for another name
/// (`X_Real_IP` and `X-Real-IP` are one variable in CGI), and what edge answers itself.
fn is_refused_from_clients(name: &str) -> bool {
    if memchr::memchr2(b'_', b'.', name.as_bytes()).is_some() {
        return true;
    }
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || name.starts_with("x-client-cert")
                || matches!(
                    name,
                    "x-real-ip"
                        | "x-request-id"
                        | "x-client-ip"
                        | "x-cluster-client-ip"
                        | "x-original-forwarded-for"
                        | "x-original-host"
                        | "x-remote-ip"
                        | "x-remote-addr"
                        | "x-scheme"
                        | "x-url-scheme"
                )
        }
        Some(_) => matches!(
            name,
            "forwarded"
                | "via"
                | "expect"
                | "true-client-ip"
                | "client-ip"
                | "cf-connecting-ip"
                | "cf-connecting-ipv6"
                | "fastly-client-ip"
                | "front-end-https"
        ),
        None => false,
    }
}

/// HTTP/2 splits cookies into crumbs; HTTP/1.1 has one field (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
        .expect("field values joined by a field value are one");
    headers.insert(COOKIE, joined);
}

#[cfg(test)]
mod tests;
