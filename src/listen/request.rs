//! The head of a client's HTTP/1 request, without I/O: read, its framing decided, or refused.
//!
//! What may be read in two ways is refused here, not repaired: whoever stands behind edge must never see where one request ends
//! differently than edge did (RFC 9112 §6.3, §11.2).

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};

use crate::config::limits::Limits;
use crate::proxy::error::ProxyError;
use crate::upstream::wire::{Malformed, RequestFraming, content_length};

/// Empty lines a client may send before a request line (RFC 9112 §2.2), for what old ones append to a body.
const EMPTY_LINES: usize = 3;
/// Fields for which there is room without asking for memory.
const USUAL_FIELDS: usize = 100;
/// The first byte of a TLS record with a ClientHello.
const HANDSHAKE: u8 = 22;
/// What HTTP/2 begins with where nobody asked whether it is spoken (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// A request head.
#[derive(Debug)]
pub struct Head {
    /// Method, target, version and fields, all as the client sent them.
    pub parts: Parts,
    /// How its body ends.
    pub framing: RequestFraming,
    /// The client means to send another request on the connection.
    pub persistent: bool,
    /// The client sends the body once it is told to (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// The client takes trailers (RFC 9110 §6.5.1).
    pub takes_trailers: bool,
}

/// Why there is no request.
#[derive(Debug)]
pub enum Fault {
    /// It is answered with an error, and the connection closed. Holds what could be made out, for the log.
    Refused(Box<(Parts, ProxyError)>),
    /// It is not HTTP at all: nobody there would understand an answer.
    Foreign,
}

/// Reads a head from the front of `block`; with it, how long it was. `None` while it is incomplete. Values are slices of `block`.
pub fn read(block: &Bytes, limits: &Limits) -> Result<Option<(Head, usize)>, Fault> {
    if block.first() == Some(&HANDSHAKE) {
        return Err(Fault::Foreign);
    }
    let empty = empty_lines(block);
    if empty.count > EMPTY_LINES {
        return Err(refused(None, ProxyError::Malformed("it begins with empty lines")));
    }
    let text = block.slice(empty.length..);
    let mut usual = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; USUAL_FIELDS];
    let mut many = Vec::new();
    let fields = match usual.get_mut(..limits.header_fields) {
        Some(fields) => fields,
        None => {
            many.resize_with(limits.header_fields, MaybeUninit::uninit);
            many.as_mut_slice()
        }
    };
    let mut request = httparse::Request::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, &text, fields);
    match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limits.head_size => {
            let head = Reading::new(&text, &request)?.finish(&text, request.headers)?;
            Ok(Some((head, empty.length + length)))
        }
        Ok(httparse::Status::Partial) if text.len() < limits.head_size => Ok(None),
        Ok(_) if request.path.is_none() => Err(refused(None, ProxyError::UriTooLong)),
        Ok(_) => Err(refused(Some(&request), ProxyError::HeadTooLarge)),
        Err(error) => Err(refused(Some(&request), fault(error, &text))),
    }
}

struct EmptyLines {
    count: usize,
    length: usize,
}

fn empty_lines(block: &[u8]) -> EmptyLines {
    let mut lines = EmptyLines { count: 0, length: 0 };
    loop {
        let rest = &block[lines.length..];
        let length = match rest {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => return lines,
        };
        lines.length += length;
        lines.count += 1;
    }
}

fn fault(error: httparse::Error, text: &[u8]) -> ProxyError {
    match error {
        httparse::Error::TooManyHeaders => ProxyError::HeadTooLarge,
        httparse::Error::Version if !text.starts_with(PREFACE) => ProxyError::VersionUnsupported,
        httparse::Error::Version => ProxyError::Malformed("HTTP/2 is not spoken on this connection"),
        httparse::Error::HeaderName => ProxyError::Malformed("a field name is malformed"),
        httparse::Error::HeaderValue => ProxyError::Malformed("a field value holds control characters"),
        httparse::Error::NewLine => ProxyError::Malformed("a line does not end with CRLF"),
        httparse::Error::Token | httparse::Error::Status => {
            ProxyError::Malformed("its first line is malformed")
        }
    }
}

/// A head that did not come to its end in time.
pub fn too_slow() -> Box<(Parts, ProxyError)> {
    Box::new((unknown(None), ProxyError::HeadTooSlow))
}

fn refused(request: Option<&httparse::Request<'_, '_>>, error: ProxyError) -> Fault {
    Fault::Refused(Box::new((unknown(request), error)))
}

/// What is known of a refused request, for its line in the log: `-` is a method that nobody sends.
fn unknown(request: Option<&httparse::Request<'_, '_>>) -> Parts {
    let mut parts = Request::new(()).into_parts().0;
    let said = request.and_then(|request| Some((request.method?, request.path?)));
    let method = said.and_then(|(method, _)| Method::from_bytes(method.as_bytes()).ok());
    let uri = said.and_then(|(_, path)| path.parse().ok());
    parts.method = method.or_else(|| Method::from_bytes(b"-").ok()).unwrap_or_default();
    parts.uri = uri.unwrap_or_else(|| Uri::from_static("*"));
    parts
}

/// A head whose fields are being read.
struct Reading {
    parts: Parts,
    length: Option<u64>,
    codings: Codings,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    takes_trailers: bool,
}

/// What `Transfer-Encoding` says.
#[derive(PartialEq)]
enum Codings {
    None,
    /// Exactly one `chunked`: lists and codings in front of it are where parsers disagree.
    Chunked,
    Other,
}

impl Reading {
    fn new(text: &Bytes, request: &httparse::Request<'_, '_>) -> Result<Self, Fault> {
        let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
            return Err(refused(None, ProxyError::Malformed("its first line is malformed")));
        };
        let mut parts = Request::new(()).into_parts().0;
        parts.version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        parts.method = Method::from_bytes(method.as_bytes())
            .map_err(|_| refused(Some(request), ProxyError::Malformed("its method is not a token")))?;
        // What follows `#` would be lost with it (RFC 9112 §3.2 allows none).
        if memchr::memchr(b'#', path.as_bytes()).is_some() {
            return Err(refused(Some(request), ProxyError::Malformed("its target has a fragment")));
        }
        parts.uri = Uri::from_maybe_shared(text.slice_ref(path.as_bytes()))
            .ok()
            .and_then(|uri| if path.starts_with('/') { Some(uri) } else { with_path(uri) })
            .ok_or_else(|| refused(Some(request), ProxyError::Malformed("its target is not a path")))?;
        Ok(Self {
            parts,
            length: None,
            codings: Codings::None,
            close: false,
            keep_alive: false,
            expects_continue: false,
            takes_trailers: false,
        })
    }

    fn finish(mut self, text: &Bytes, lines: &[httparse::Header<'_>]) -> Result<Head, Fault> {
        match self.take_all(text, lines).and_then(|()| self.framing()) {
            Ok(framing) => Ok(Head {
                framing,
                persistent: !self.close && (self.parts.version == Version::HTTP_11 || self.keep_alive),
                // RFC 9110 §10.1.1: HTTP/1.0 has no interim answers.
                expects_continue: self.expects_continue && self.parts.version == Version::HTTP_11,
                takes_trailers: self.takes_trailers,
                parts: self.parts,
            }),
            Err(error) => Err(Fault::Refused(Box::new((self.parts, error)))),
        }
    }

    fn take_all(&mut self, text: &Bytes, lines: &[httparse::Header<'_>]) -> Result<(), ProxyError> {
        self.parts.headers = HeaderMap::with_capacity(lines.len());
        for line in lines {
            let name = HeaderName::from_bytes(line.name.as_bytes())
                .map_err(|_| ProxyError::Malformed("a field name is malformed"))?;
            let value = HeaderValue::from_maybe_shared(text.slice_ref(line.value))
                .map_err(|_| ProxyError::Malformed("a field value holds control characters"))?;
            self.note(&name, &value)?;
            self.parts.headers.append(name, value);
        }
        Ok(())
    }

    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), ProxyError> {
        if *name == CONTENT_LENGTH {
            let length =
                content_length(value.as_bytes()).map_err(|Malformed(what)| ProxyError::Malformed(what))?;
            if self.length.is_some_and(|known| known != length) {
                return Err(ProxyError::Malformed("it has two different Content-Length fields"));
            }
            self.length = Some(length);
        } else if *name == TRANSFER_ENCODING {
            let chunked = value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
            self.codings =
                if chunked && self.codings == Codings::None { Codings::Chunked } else { Codings::Other };
        } else if *name == CONNECTION {
            for option in tokens(value) {
                self.close |= option.eq_ignore_ascii_case(b"close");
                self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if *name == EXPECT {
            self.expects_continue |= value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        } else if *name == TE {
            self.takes_trailers |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"trailers"));
        }
        Ok(())
    }

    fn framing(&self) -> Result<RequestFraming, ProxyError> {
        match (&self.codings, self.length) {
            (Codings::None, None | Some(0)) => Ok(RequestFraming::None),
            (Codings::None, Some(length)) => Ok(RequestFraming::Length(length)),
            (Codings::Other, _) => Err(ProxyError::CodingUnsupported),
            (Codings::Chunked, _) if self.parts.version == Version::HTTP_10 => {
                Err(ProxyError::Malformed("it is HTTP/1.0 and has a Transfer-Encoding"))
            }
            // RFC 9112 §6.3 allows to read it by its chunks alone; nobody sends it who means well.
            (Codings::Chunked, Some(_)) => {
                Err(ProxyError::Malformed("it has both Content-Length and Transfer-Encoding"))
            }
            (Codings::Chunked, None) => Ok(RequestFraming::Chunked),
        }
    }
}

/// `uri` as it is, but for an absolute target with a query and no path, which is then `/` (RFC 9110 §4.2.3).
fn with_path(uri: Uri) -> Option<Uri> {
    let pathless = uri.path_and_query().filter(|target| target.as_str().starts_with('?'));
    let Some(target) = pathless.filter(|_| uri.scheme().is_some()) else { return Some(uri) };
    // Printed, it has its path.
    let target = PathAndQuery::try_from(target.to_string()).ok()?;
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).ok()
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests;
