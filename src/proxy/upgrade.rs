//! WebSocket over HTTP/1.1 (RFC 6455) and HTTP/2 (RFC 8441): which handshakes are passed on, how one is translated where client
//! and worker speak different versions, and the tunnel after it. Nothing is tunnelled before the worker has agreed.

use std::rc::Rc;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::config::model::Protocol;
use crate::proxy::entry::Entry;
use crate::proxy::error::ProxyError;
use crate::proxy::plane::Plane;
use crate::proxy::relay::{End, Patience, relay};
use crate::upstream::exchange::Tunnel;

/// How long the other side of a tunnel may be silent once one has ended: a WebSocket has no use for half a connection
/// (RFC 6455 §7.1.1), other protocols may.
const HALF_CLOSED: std::time::Duration = std::time::Duration::from_secs(5);

/// Whether the request is a WebSocket handshake; one that is wrong is refused (RFC 6455 §4.2.1). Every other `Upgrade` is
/// ignored, as RFC 9110 §7.8 allows, and does not reach the worker.
fn is_handshake(parts: &Parts, has_body: bool) -> Result<bool, ProxyError> {
    let headers = &parts.headers;
    if parts.version > Version::HTTP_11 || !is_websocket(headers) || !lists(headers, CONNECTION, b"upgrade") {
        return Ok(false);
    }
    if parts.version != Version::HTTP_11 || parts.method != Method::GET || has_body {
        return Err(ProxyError::Malformed("a WebSocket begins with a GET of HTTP/1.1 without a body"));
    }
    check_version(headers)?;
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    match (keys.next(), keys.next()) {
        (Some(key), None) if is_key(key.as_bytes().trim_ascii()) => Ok(true),
        _ => Err(ProxyError::Malformed("its Sec-WebSocket-Key is missing or wrong")),
    }
}

/// How a client opens a WebSocket. What its worker speaks shows with the answer: while an app changes that, it has workers of both
/// kinds.
pub enum Opening {
    /// Over HTTP/1.1, with a key.
    Handshake {
        /// The proof that the key was read.
        accept: String,
    },
    /// Over HTTP/2, which has no keys: the worker is given one of edge's own.
    Connect {
        /// The proof that it read it.
        accept: String,
    },
}

/// How the WebSocket of a request is opened; `None` for other requests. An extended CONNECT becomes the handshake that workers of
/// HTTP/1.1 know (RFC 8441 §5); for those of HTTP/2 its key is left out.
pub fn opening(parts: &mut Parts, has_body: bool) -> Result<Option<Opening>, ProxyError> {
    if parts.method == Method::CONNECT {
        check_version(&parts.headers)?;
        parts.method = Method::GET;
        let key = generate_key();
        let accept = derive_accept_key(key.as_bytes());
        let key = HeaderValue::try_from(key).expect("base64 is a field value");
        parts.headers.insert(SEC_WEBSOCKET_KEY, key);
        return Ok(Some(Opening::Connect { accept }));
    }
    if !is_handshake(parts, has_body)? {
        return Ok(None);
    }
    let accept = |key: &HeaderValue| derive_accept_key(key.as_bytes().trim_ascii());
    Ok(parts.headers.get(SEC_WEBSOCKET_KEY).map(|key| Opening::Handshake { accept: accept(key) }))
}

impl Opening {
    /// What the client is told, made from what the worker told, which the exchange has checked. Subprotocol and extensions are
    /// the client's to see, the rest is between edge and either of them.
    pub fn open(&self, answer: Response<()>, worker: Protocol) -> Result<Response<()>, ProxyError> {
        let mut response = answer;
        let headers = response.headers_mut();
        match (self, worker) {
            (Self::Handshake { accept }, Protocol::Http1 | Protocol::H2c) => {
                if worker == Protocol::H2c {
                    let accept = HeaderValue::try_from(accept).expect("base64 is a field value");
                    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
                }
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            }
            (Self::Connect { accept }, Protocol::Http1) => {
                let accepted = headers.remove(SEC_WEBSOCKET_ACCEPT);
                if accepted.is_none_or(|accepted| accepted.as_bytes().trim_ascii() != accept.as_bytes()) {
                    return Err(ProxyError::BadUpgrade("its Sec-WebSocket-Accept does not fit the key"));
                }
                headers.remove(UPGRADE);
                *response.status_mut() = StatusCode::OK;
            }
            // Any success opens it, also one that would have no content (RFC 9110 §9.3.6).
            (Self::Connect { .. }, Protocol::H2c) => *response.status_mut() = StatusCode::OK,
        }
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    /// A worker of HTTP/1.1 may decline, but not with a success: to a client of HTTP/2 that would be an open WebSocket.
    pub fn check_declined(&self, status: StatusCode) -> Result<(), ProxyError> {
        match self {
            Self::Connect { .. } if status.is_success() => {
                Err(ProxyError::BadUpgrade("it answers a WebSocket handshake with a success other than 101"))
            }
            Self::Connect { .. } | Self::Handshake { .. } => Ok(()),
        }
    }
}

/// What a connection is after a 101, or a stream after its 200: a tunnel to the worker, at the end of which the request's entry
/// is written.
pub struct Switch {
    worker: Tunnel,
    entry: Box<Entry>,
}

impl Switch {
    /// A tunnel to `worker`.
    pub fn new(worker: Tunnel, entry: Box<Entry>) -> Self {
        Self { worker, entry }
    }

    /// Notes that the client was not there to see it open.
    pub fn abandon(mut self, why: &str) {
        self.entry.blame(|| why.to_owned());
    }

    /// Carries bytes both ways until the tunnel ends. The head of the answer must be out, or ahead of them on its stream.
    pub async fn carry<C: AsyncRead + AsyncWrite + Unpin>(mut self, client: &mut C, plane: &Rc<Plane>) {
        let timeouts = &plane.reach.timeouts;
        let deadline = plane.reach.deadlines.deadline();
        let slot = self.worker.lease.slot();
        let replaced = slot.streams_ended();
        let parting = match slot.protocol {
            Protocol::Http1 => None,
            Protocol::H2c => Some(HALF_CLOSED),
        };
        let patience = Patience { idle: timeouts.tunnel, half_closed: HALF_CLOSED, parting };
        let relayed =
            relay(client, &mut self.worker.stream, &deadline, patience, &plane.tunnels, replaced).await;
        let record = &mut self.entry.record;
        record.bytes_in = relayed.to_worker;
        record.bytes_out = relayed.to_client;
        let why = match relayed.end {
            End::Closed => return,
            End::Idle => "the WebSocket was silent for too long".to_owned(),
            End::Told => "the WebSocket was open when edge ended".to_owned(),
            End::Aborted => {
                self.entry.cut_at_end();
                return;
            }
            End::Replaced => "the WebSocket was open when its worker was replaced".to_owned(),
            // Whatever TLS or the system calls that: it left without a Close frame.
            End::ClientGone(_) => "the client was gone before the WebSocket was closed".to_owned(),
            End::WorkerGone(error) => format!("the worker broke the WebSocket off: {error}"),
        };
        self.entry.blame(|| why);
    }
}

/// RFC 6455 §4.4.
fn check_version(headers: &HeaderMap) -> Result<(), ProxyError> {
    match headers.get(SEC_WEBSOCKET_VERSION) {
        Some(version) if version.as_bytes().trim_ascii() == b"13" => Ok(()),
        Some(_) | None => Err(ProxyError::WebSocketVersion),
    }
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let mut protocols = headers.get_all(UPGRADE).iter();
    match (protocols.next(), protocols.next()) {
        (Some(protocol), None) => protocol.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"),
        _ => false,
    }
}

fn lists(headers: &HeaderMap, name: HeaderName, token: &[u8]) -> bool {
    let mut listed = headers.get_all(name).iter().flat_map(|list| list.as_bytes().split(|b| *b == b','));
    listed.any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// The base64 of 16 bytes.
fn is_key(key: &[u8]) -> bool {
    key.len() == 24
        && key.ends_with(b"==")
        && key[..22].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn handshake(change: impl FnOnce(&mut Parts)) -> Parts {
        let request = Request::builder()
            .uri("/ws")
            .header(CONNECTION, "keep-alive, Upgrade")
            .header(UPGRADE, "WebSocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, KEY)
            .body(());
        let mut parts = request.expect("well formed").into_parts().0;
        change(&mut parts);
        parts
    }

    #[test]
    fn only_a_whole_handshake_is_passed_on() {
        let set = |name: HeaderName, value: &'static str| {
            handshake(|parts| {
                parts.headers.insert(name, HeaderValue::from_static(value));
            })
        };
        let without = |name: HeaderName| {
            handshake(|parts| {
                parts.headers.remove(name);
            })
        };
        for (id, parts, expected) in [
            ("whole", handshake(|_| ()), Ok(true)),
            ("C05 h2c", set(UPGRADE, "h2c"), Ok(false)),
            ("C05 TLS", set(UPGRADE, "TLS/1.0"), Ok(false)),
            ("C05 list", set(UPGRADE, "websocket, h2c"), Ok(false)),
            ("no Connection", without(CONNECTION), Ok(false)),
            ("Connection without it", set(CONNECTION, "close"), Ok(false)),
            ("h2", handshake(|parts| parts.version = Version::HTTP_2), Ok(false)),
            ("G3u POST", handshake(|parts| parts.method = Method::POST), Err(400)),
            ("G3u HTTP/1.0", handshake(|parts| parts.version = Version::HTTP_10), Err(400)),
            ("G3u no key", without(SEC_WEBSOCKET_KEY), Err(400)),
            ("G3u short key", set(SEC_WEBSOCKET_KEY, "abc"), Err(400)),
            ("G3u version", set(SEC_WEBSOCKET_VERSION, "8"), Err(426)),
            ("G3u no version", without(SEC_WEBSOCKET_VERSION), Err(426)),
        ] {
            let found = is_handshake(&parts, false).map_err(|error| error.status().as_u16());
            assert_eq!(found, expected, "{id}");
        }
        assert!(is_handshake(&handshake(|_| ()), true).is_err(), "G3u with a body");
    }

    fn connect(version: &str) -> Parts {
        let request = Request::builder().method("CONNECT").uri("https://a.test/ws").version(Version::HTTP_2);
        let request = request.header(SEC_WEBSOCKET_VERSION, version).header(SEC_WEBSOCKET_KEY, KEY).body(());
        request.expect("well formed").into_parts().0
    }

    fn switched(accept: &str) -> Response<()> {
        let response = Response::builder().status(101).header(UPGRADE, "websocket");
        let response = response.header(SEC_WEBSOCKET_ACCEPT, accept).header("sec-websocket-protocol", "chat");
        response.body(()).expect("well formed")
    }

    #[test]
    fn a_connect_becomes_a_handshake_with_a_key_of_edges_own() {
        let mut parts = connect("13");
        let opening = opened(&mut parts);
        assert_eq!(parts.method, Method::GET);
        let key = parts.headers[SEC_WEBSOCKET_KEY].as_bytes();
        assert!(is_key(key) && key != KEY.as_bytes(), "{key:?}");
        let open = opening.open(switched(&derive_accept_key(key)), Protocol::Http1).expect("the key fits");
        assert_eq!(open.status(), 200);
        assert_eq!(open.headers()["sec-websocket-protocol"], "chat");
        assert_eq!(open.headers().len(), 1);
        let wrong = opening.open(switched(&derive_accept_key(KEY.as_bytes())), Protocol::Http1).map(drop);
        assert_eq!(wrong.expect_err("another key").status(), 502);
        for (status, passes) in [(200, false), (204, false), (302, true), (403, true), (426, true)] {
            let status = StatusCode::from_u16(status).expect("valid");
            assert_eq!(opening.check_declined(status).is_ok(), passes, "{status}");
        }
        let old = super::opening(&mut connect("8"), false).map(drop);
        assert_eq!(old.expect_err("another version").status(), 426);
        let mut get = handshake(|parts| drop(parts.headers.remove(UPGRADE)));
        assert!(super::opening(&mut get, false).is_ok_and(|opening| opening.is_none()));
    }

    #[test]
    fn a_worker_of_http2_has_no_key_and_a_client_of_http1_gets_its_proof() {
        let agreed = || {
            let response = Response::builder().status(200).header("sec-websocket-protocol", "chat");
            response.body(()).expect("well formed")
        };
        let open = opened(&mut handshake(|_| ())).open(agreed(), Protocol::H2c).expect("agreed");
        assert_eq!(open.status(), 101);
        assert_eq!(open.headers()[SEC_WEBSOCKET_ACCEPT], derive_accept_key(KEY.as_bytes()));
        assert_eq!(
            (&open.headers()[UPGRADE], open.headers().len()),
            (&HeaderValue::from_static("websocket"), 4)
        );
        let open = opened(&mut connect("13")).open(agreed(), Protocol::H2c).expect("agreed");
        assert_eq!((open.status().as_u16(), open.headers().len()), (200, 1));
    }

    fn opened(parts: &mut Parts) -> Opening {
        opening(parts, false).expect("a handshake").expect("one")
    }
}
