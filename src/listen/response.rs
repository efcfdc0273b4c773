//! The head of an HTTP/1 response to a client, and the framing of its body, without I/O.

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use http::{StatusCode, Version, response};

use crate::upstream::framing::{Speaker, write_last_chunk};

/// What of the request decides how its answer is written.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The method was HEAD: the answer has no body, whatever it says.
    pub head: bool,
    /// The client's version.
    pub version: Version,
    /// The client takes trailers.
    pub trailers: bool,
}

/// What is known of a response's body before its first byte.
#[derive(Debug, Clone, Copy)]
pub struct Announced {
    /// Its length, where that is known.
    pub length: Option<u64>,
    /// It is over already.
    pub empty: bool,
}

/// The date of a response, as long as it is always.
pub type Date = [u8; 29];

/// How the end of a response is told to the client (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// By its length: the bytes to come.
    Length(u64),
    /// By a last chunk.
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    UntilClose,
}

/// Appends the head of a response. `close` says that the connection ends with it; the fields may say so, too. With the framing,
/// whether the connection may carry another request.
///
/// `Connection` and framing in the fields are not passed on as they are: `Content-Length` only where it is the body's, or stands
/// for a body that HEAD and 304 leave out. `date` is added where the response has none (RFC 9110 §6.6.1).
pub fn write_head(
    out: &mut Vec<u8>,
    head: &response::Parts,
    body: Announced,
    asked: Asked,
    close: bool,
    date: impl FnOnce() -> Date,
) -> (Framing, bool) {
    let framing = framing(head, body, asked);
    let fields = &head.headers;
    let (mut close, mut dated) = (close || framing == Framing::UntilClose, false);
    put_status(out, head.status);
    // One look over all of them spares a search for each.
    for (name, value) in fields {
        if *name == CONNECTION {
            close |= value.as_bytes().eq_ignore_ascii_case(b"close");
        } else if *name != CONTENT_LENGTH && *name != TRANSFER_ENCODING {
            dated |= *name == DATE;
            put_field(out, name.as_str(), value.as_bytes());
        }
    }
    match framing {
        Framing::Length(length) => {
            put_field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => put_field(out, "transfer-encoding", b"chunked"),
        Framing::None if head.status == StatusCode::NOT_MODIFIED || asked.head => {
            if let Some(length) = fields.get(CONTENT_LENGTH) {
                put_field(out, "content-length", length.as_bytes());
            }
        }
        Framing::None | Framing::UntilClose => {}
    }
    if !dated {
        put_field(out, "date", &date());
    }
    if head.status == StatusCode::UPGRADE_REQUIRED && fields.contains_key(UPGRADE) {
        // RFC 9110 §7.8: a field of one hop, named as such.
        put_field(out, "connection", b"upgrade");
    }
    let connection: &[u8] = match asked.version {
        _ if close => b"connection: close\r\n\r\n",
        Version::HTTP_10 => b"connection: keep-alive\r\n\r\n",
        _ => b"\r\n",
    };
    out.extend_from_slice(connection);
    (framing, !close)
}

/// Appends an interim answer.
pub fn write_interim(out: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    put_status(out, status);
    for (name, value) in fields {
        put_field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a 101 as it is: from here on the connection is a tunnel.
pub fn write_switch(out: &mut Vec<u8>, head: &response::Parts) {
    write_interim(out, head.status, &head.headers);
}

/// Follows a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";
/// Follows the last piece of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";

/// Appends the end of a chunked body.
pub fn write_end(out: &mut Vec<u8>, trailers: Option<&HeaderMap>, asked: Asked) {
    write_last_chunk(out, trailers.filter(|_| asked.trailers), Speaker::Worker);
}

fn framing(head: &response::Parts, body: Announced, asked: Asked) -> Framing {
    let status = head.status;
    if asked.head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
    {
        return Framing::None;
    }
    match body.length {
        Some(length) => Framing::Length(length),
        None if body.empty => Framing::Length(0),
        None if asked.version == Version::HTTP_10 => Framing::UntilClose,
        None => Framing::Chunked,
    }
}

fn put_status(out: &mut Vec<u8>, status: StatusCode) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        // RFC 9112 §4: the space stands also where there is no phrase.
        let phrase = status.canonical_reason().unwrap_or("");
        for part in ["HTTP/1.1 ", status.as_str(), " ", phrase, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
}

fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Response};

    use super::*;

    const GET: Asked = Asked { head: false, version: Version::HTTP_11, trailers: false };
    const KNOWN: Announced = Announced { length: Some(3), empty: false };
    const UNKNOWN: Announced = Announced { length: None, empty: false };

    fn write(
        status: u16,
        fields: &[(&'static str, &'static str)],
        body: Announced,
        asked: Asked,
    ) -> (String, Framing, bool) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).expect("valid");
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        let (mut out, date) = (Vec::new(), || *b"Thu, 01 Jan 1970 00:00:00 GMT");
        let (framing, more) = write_head(&mut out, &response.into_parts().0, body, asked, false, date);
        let text = String::from_utf8(out).expect("text");
        (text.replace("Thu, 01 Jan 1970 00:00:00 GMT", "now"), framing, more)
    }

    #[test]
    fn there_is_one_framing_and_it_is_edges() {
        let fields = [("content-length", "3"), ("transfer-encoding", "chunked"), ("x", "y")];
        let head = Asked { head: true, ..GET };
        let old = Asked { version: Version::HTTP_10, ..GET };
        for (status, body, asked, framing, more, lines) in [
            (200, KNOWN, GET, Framing::Length(3), true, "x: y\r\ncontent-length: 3\r\ndate: now\r\n\r\n"),
            (
                200,
                UNKNOWN,
                GET,
                Framing::Chunked,
                true,
                "x: y\r\ntransfer-encoding: chunked\r\ndate: now\r\n\r\n",
            ),
            (200, KNOWN, head, Framing::None, true, "x: y\r\ncontent-length: 3\r\ndate: now\r\n\r\n"),
            (304, KNOWN, GET, Framing::None, true, "x: y\r\ncontent-length: 3\r\ndate: now\r\n\r\n"),
            (204, UNKNOWN, GET, Framing::None, true, "x: y\r\ndate: now\r\n\r\n"),
            (200, UNKNOWN, old, Framing::UntilClose, false, "x: y\r\ndate: now\r\nconnection: close\r\n\r\n"),
            (
                200,
                KNOWN,
                old,
                Framing::Length(3),
                true,
                "x: y\r\ncontent-length: 3\r\ndate: now\r\nconnection: keep-alive\r\n\r\n",
            ),
        ] {
            let (text, found, keeps) = write(status, &fields, body, asked);
            assert_eq!((found, keeps), (framing, more), "{status} {asked:?}");
            assert_eq!(text.split_once("\r\n").expect("a line").1, lines, "{status} {asked:?}");
        }
        let empty = Announced { length: None, empty: true };
        assert_eq!(write(200, &[], empty, GET).1, Framing::Length(0));
    }

    #[test]
    fn a_refusal_ends_the_connection_and_a_status_without_name_has_its_space() {
        let (text, _, more) = write(400, &[("connection", "close")], KNOWN, GET);
        assert!(!more && text.ends_with("connection: close\r\n\r\n"), "{text}");
        assert!(write(299, &[], KNOWN, GET).0.starts_with("HTTP/1.1 299 \r\n"));
        assert!(write(404, &[], KNOWN, GET).0.starts_with("HTTP/1.1 404 Not Found\r\n"));
    }

    #[test]
    fn what_an_upgrade_is_required_to_is_said_to_the_next_hop() {
        let (text, _, more) = write(426, &[("upgrade", "websocket")], KNOWN, GET);
        assert!(more && text.ends_with("date: now\r\nconnection: upgrade\r\n\r\n"), "{text}");
        assert!(text.contains("\r\nupgrade: websocket\r\n"), "{text}");
        assert!(!write(426, &[], KNOWN, GET).0.contains("connection:"));
    }

    #[test]
    fn trailers_reach_only_who_takes_them() {
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", HeaderValue::from_static("1"));
        for (taken, text) in [(true, "0\r\nsum: 1\r\n\r\n"), (false, "0\r\n\r\n")] {
            let mut out = Vec::new();
            write_end(&mut out, Some(&trailers), Asked { trailers: taken, ..GET });
            assert_eq!(out, text.as_bytes());
        }
    }
}
