//! HTTP/1.1 towards a worker, without I/O: the head of a request out, the head of a response in, and how its body ends.
//!
//! What arrives here may have been HTTP/2, whose fields can hold what HTTP/1.1 cannot: everything is checked against the
//! HTTP/1.1 grammar once more and refused, never escaped.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Response, StatusCode, Version};

use crate::config::limits::ResponseLimits;

/// Fields for which there is room without asking for memory.
const USUAL_FIELDS: usize = 200;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A message that breaks HTTP/1.1 or our limits, in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// How the end of a request's body is told to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFraming {
    /// There is no body.
    None,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// How the end of a response's body is found (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseFraming {
    /// There is no body, whatever the fields say.
    None,
    /// That many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the worker closes.
    UntilClose,
}

impl ResponseFraming {
    /// Whether `input`, which follows the head, is the body and nothing else.
    pub(super) fn is_here(self, input: &[u8]) -> bool {
        match self {
            Self::None => input.is_empty(),
            Self::Length(length) => input.len() as u64 == length,
            Self::Chunked | Self::UntilClose => false,
        }
    }
}

/// What of the request decides how its answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// The method was HEAD: the answer has no body.
    pub head: bool,
    /// A WebSocket was asked for: 101 is an answer.
    pub upgrade: bool,
}

/// The head of a request as it goes to the worker. Everything is final, but for framing (`Content-Length`,
/// `Transfer-Encoding`, `Connection`), which is written by what is known of the body.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a Method,
    /// Origin-form target, exactly as it is to be sent.
    pub target: &'a str,
    /// The one `Host`.
    pub host: &'a HeaderValue,
    /// All other fields that are passed on.
    pub headers: &'a HeaderMap,
    /// Appends lines of edge's own, each with its end: they need no map.
    pub add: &'a dyn Fn(&mut Vec<u8>),
    /// For a WebSocket handshake: `Connection: Upgrade` and `Upgrade: websocket` are written.
    pub upgrade: bool,
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, 100 to 599; HTTP/1.1 or HTTP/1.0; fields without hop-by-hop ones, `Content-Length` only where it is true. A 101
    /// keeps `Upgrade`, and so does a 426.
    pub response: Response<()>,
    /// How its body ends.
    pub framing: ResponseFraming,
    /// Whether the worker lets the connection serve another request after a clean end.
    pub reusable: bool,
}

impl ResponseHead {
    /// Whether a body of known length follows.
    pub(super) fn announces_bytes(&self) -> bool {
        matches!(self.framing, ResponseFraming::Length(1..))
    }

    /// Whether a final response follows. 101 is final.
    pub fn is_interim(&self) -> bool {
        let status = self.response.status();
        status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Appends a request head. Framing fields in `headers` are left out: the only ones written are those of `framing`. So is
/// `Host`: the one written is `host`. `add` may append whole lines of its own.
pub fn write_request_head(
    out: &mut Vec<u8>,
    head: &RequestHead<'_>,
    framing: RequestFraming,
) -> Result<(), Malformed> {
    let RequestHead { method, target, host, headers, add, upgrade } = *head;
    check_request(method, target)?;
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    // RFC 9110 §7.2: Host comes first.
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    push_value(out, host)?;
    for (name, value) in headers {
        if *name == HOST || is_connection_field(name) || *name == CONTENT_LENGTH {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        push_value(out, value)?;
    }
    add(out);
    if upgrade {
        out.extend_from_slice(b"connection: Upgrade\r\nupgrade: websocket\r\n");
    }
    match framing {
        RequestFraming::Length(length) => push_length(out, length),
        RequestFraming::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        // RFC 9110 §8.6: methods that usually carry content say when there is none.
        RequestFraming::None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
            push_length(out, 0);
        }
        RequestFraming::None => {}
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Reads a response head from the front of `block`; with it, how long it was. `None` while it is incomplete.
/// Values are slices of `block`.
pub fn parse_response_head(
    block: &Bytes,
    asked: Asked,
    limits: &ResponseLimits,
) -> Result<Option<(ResponseHead, usize)>, Malformed> {
    let mut usual = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; USUAL_FIELDS];
    let mut many = Vec::new();
    let fields = match usual.get_mut(..limits.fields) {
        Some(fields) => fields,
        None => {
            many.resize_with(limits.fields, MaybeUninit::uninit);
            many.as_mut_slice()
        }
    };
    let mut response = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, block, fields);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limits.head_size => length,
        Ok(httparse::Status::Partial) if block.len() < limits.head_size => return Ok(None),
        Ok(_) => return Err(Malformed("its head is too long")),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed("its head has too many fields")),
        Err(httparse::Error::Version) => return Err(Malformed("it does not begin with an HTTP/1 version")),
        Err(httparse::Error::Status) => return Err(Malformed("its status line is malformed")),
        Err(_) => return Err(Malformed("its head is malformed")),
    };
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(Malformed("its status line is malformed"));
    };
    let status = match StatusCode::from_u16(code) {
        Ok(status) if code < 600 => status,
        Ok(_) | Err(_) => return Err(Malformed("its status is not between 100 and 599")),
    };
    let head = Fields::read(block, response.headers)?.finish(status, minor, asked)?;
    Ok(Some((head, length)))
}

/// What the fields of a head say, sorted by what they are about.
#[derive(Default)]
struct Fields {
    /// With those that are passed on.
    response: Response<()>,
    length: Option<(u64, HeaderValue)>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    upgrade: Option<HeaderValue>,
    /// Fields that `Connection` names.
    hop_by_hop: Vec<HeaderName>,
}

impl Fields {
    fn read(block: &Bytes, lines: &[httparse::Header<'_>]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        fields.response.headers_mut().reserve(lines.len());
        for line in lines {
            let name = HeaderName::from_bytes(line.name.as_bytes())
                .map_err(|_| Malformed("a field name is malformed"))?;
            fields.take(name, line.value, || {
                HeaderValue::from_maybe_shared(block.slice_ref(line.value))
                    .map_err(|_| Malformed("a field value holds control characters"))
            })?;
        }
        Ok(fields)
    }

    /// Takes a field that says `text`; `value` makes it one to pass on.
    fn take(
        &mut self,
        name: HeaderName,
        text: &[u8],
        value: impl FnOnce() -> Result<HeaderValue, Malformed>,
    ) -> Result<(), Malformed> {
        if name == CONTENT_LENGTH {
            let length = content_length(text)?;
            match &self.length {
                Some((known, _)) if *known != length => {
                    return Err(Malformed("it has two different Content-Length fields"));
                }
                // One spelling: `007` is passed on as `7`.
                None if text.len() > 1 && text.starts_with(b"0") => {
                    self.length = Some((length, HeaderValue::from(length)));
                }
                None => self.length = Some((length, value()?)),
                Some(_) => {}
            }
        } else if name == TRANSFER_ENCODING {
            // Exactly one `chunked`: lists and codings in front of it are where parsers disagree.
            if self.chunked || !text.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed("its Transfer-Encoding is not `chunked`"));
            }
            self.chunked = true;
        } else if name == CONNECTION {
            self.take_connection(text);
        } else if name == UPGRADE {
            self.upgrade = Some(value()?);
        } else if !is_connection_field(&name) {
            self.response.headers_mut().append(name, value()?);
        }
        Ok(())
    }

    fn take_connection(&mut self, text: &[u8]) {
        for option in text.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if let Ok(name) = HeaderName::from_bytes(option) {
                self.hop_by_hop.push(name);
            }
        }
    }

    fn finish(mut self, status: StatusCode, minor: u8, asked: Asked) -> Result<ResponseHead, Malformed> {
        if self.chunked && minor == 0 {
            return Err(Malformed("it is HTTP/1.0 and has a Transfer-Encoding"));
        }
        for name in &self.hop_by_hop {
            self.response.headers_mut().remove(name);
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.check_switch(asked)?;
        } else if status == StatusCode::UPGRADE_REQUIRED
            && let Some(upgrade) = self.upgrade.take()
        {
            // RFC 9110 §15.5.22: without it nobody learns what is required.
            self.response.headers_mut().insert(UPGRADE, upgrade);
        }
        let bodiless = status.is_informational() || status == StatusCode::NO_CONTENT;
        let framing = if asked.head || bodiless || status == StatusCode::NOT_MODIFIED {
            ResponseFraming::None
        } else if self.chunked {
            ResponseFraming::Chunked
        } else {
            self.length
                .as_ref()
                .map_or(ResponseFraming::UntilClose, |(length, _)| ResponseFraming::Length(*length))
        };
        let promised = self.chunked || self.length.as_ref().is_some_and(|(length, _)| *length > 0);
        let reusable = !self.close
            && (minor == 1 || self.keep_alive)
            && framing != ResponseFraming::UntilClose
            // RFC 9112 §6.3: both may be an attack, and after it nothing on the connection can be trusted.
            && !(self.chunked && self.length.is_some())
            // Whoever announces a body with 204 may send it, too.
            && !(status == StatusCode::NO_CONTENT && promised)
            // Whether a server that declined reads another request here is not worth finding out.
            && !asked.upgrade;
        if let Some((_, value)) = self.length.take()
            && !self.chunked
            && !bodiless
        {
            self.response.headers_mut().insert(CONTENT_LENGTH, value);
        }
        *self.response.status_mut() = status;
        *self.response.version_mut() = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        Ok(ResponseHead { response: self.response, framing, reusable })
    }

    /// RFC 6455 §4.1: what a client must see before it may speak WebSocket.
    fn check_switch(&mut self, asked: Asked) -> Result<(), Malformed> {
        if !asked.upgrade {
            return Err(Malformed("it switches protocols, which was not asked for"));
        }
        let upgrade = self.upgrade.take().ok_or(Malformed("its 101 has no Upgrade"))?;
        if !upgrade.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket") {
            return Err(Malformed("its 101 is not for WebSocket"));
        }
        let headers = self.response.headers_mut();
        if !headers.contains_key(SEC_WEBSOCKET_ACCEPT) {
            return Err(Malformed("its 101 has no Sec-WebSocket-Accept"));
        }
        headers.insert(UPGRADE, upgrade);
        Ok(())
    }
}

/// Digits only, as RFC 9110 §8.6 has it: no sign, no list, no more than 63 bits.
pub fn content_length(text: &[u8]) -> Result<u64, Malformed> {
    const BAD: Malformed = Malformed("its Content-Length is malformed");
    let digits = text.trim_ascii();
    if digits.is_empty() {
        return Err(BAD);
    }
    let length = digits.iter().try_fold(0_u64, |length, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    });
    length.filter(|length| *length <= i64::MAX.unsigned_abs()).ok_or(BAD)
}

/// Fields about one connection (RFC 9110 §7.6.1), which never cross a proxy.
pub(super) fn is_connection_field(name: &HeaderName) -> bool {
    *name == CONNECTION
        || *name == TRANSFER_ENCODING
        || *name == TE
        || *name == UPGRADE
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

pub(super) fn check_request(method: &Method, target: &str) -> Result<(), Malformed> {
    if !method.as_str().bytes().all(is_token_byte) {
        return Err(Malformed("the method is not a token"));
    }
    let origin_form = target.starts_with('/') || (target == "*" && *method == Method::OPTIONS);
    // Folded, not searched: without an early exit the compiler checks many bytes at once.
    let graphic = target.bytes().fold(true, |fine, byte| fine & byte.is_ascii_graphic() & (byte != b'#'));
    if origin_form && graphic { Ok(()) } else { Err(Malformed("the target is not a path")) }
}

/// RFC 9110 §5.6.2.
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 9110 §5.5: a value holds no control character but the tab. CR and LF would end the line.
pub(super) fn push_value(out: &mut Vec<u8>, value: &HeaderValue) -> Result<(), Malformed> {
    let bytes = value.as_bytes();
    if bytes.iter().fold(false, |bad, byte| bad | ((*byte < b' ') & (*byte != b'\t')) | (*byte == 0x7f)) {
        return Err(Malformed("a field value holds control characters"));
    }
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn push_length(out: &mut Vec<u8>, length: u64) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
