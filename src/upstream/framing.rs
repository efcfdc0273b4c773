//! Where a body begins and ends on the wire, without I/O: reading by length, chunks or close, and writing chunks (RFC 9112 §6, §7).

use std::io::Write as _;

use bytes::{Buf, Bytes};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::config::limits::ChunkLimits;
use crate::upstream::wire::{Malformed, RequestFraming, ResponseFraming, push_value};

/// Whose trailers they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// A client's, which may say less than a worker.
    Client,
    /// A worker's. The metadata of gRPC has dots and underscores in its names.
    Worker,
}

impl Speaker {
    fn may_say(self, name: &HeaderName) -> bool {
        may_trail(name) && (self == Self::Worker || !is_claim(name))
    }
}

/// A body being read.
#[derive(Debug)]
pub struct BodyDecoder(State);

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
    Ended,
}

/// What [`BodyDecoder::decode`] found.
#[derive(Debug, PartialEq)]
pub enum Decoded {
    /// A piece of the body, never empty; a slice of the input.
    Data(Bytes),
    /// Trailer fields: [`Self::End`] follows.
    Trailers(HeaderMap),
    /// The input is used up and the body is not over.
    More,
    /// The body is over. What is left of the input is not part of it.
    End,
}

impl BodyDecoder {
    /// A response's body of this framing, from its first byte.
    pub fn new(framing: ResponseFraming, limits: &ChunkLimits) -> Self {
        Self(match framing {
            ResponseFraming::None => State::Ended,
            ResponseFraming::Length(length) => State::Length(length),
            ResponseFraming::Chunked => State::Chunked(Chunks::new(*limits, Speaker::Worker)),
            ResponseFraming::UntilClose => State::UntilClose,
        })
    }

    /// A request's body of this framing, from its first byte.
    pub fn of_request(framing: RequestFraming, limits: &ChunkLimits) -> Self {
        Self(match framing {
            RequestFraming::None => State::Ended,
            RequestFraming::Length(length) => State::Length(length),
            RequestFraming::Chunked => State::Chunked(Chunks::new(*limits, Speaker::Client)),
        })
    }

    /// Takes the next piece off the front of `input`.
    pub fn decode(&mut self, input: &mut Bytes) -> Result<Decoded, Malformed> {
        match &mut self.0 {
            State::Ended | State::Length(0) => Ok(Decoded::End),
            State::Chunked(chunks) => {
                let decoded = chunks.decode(input);
                if input.is_empty() {
                    // An empty slice would keep all of its buffer until there is more.
                    *input = Bytes::new();
                }
                decoded
            }
            State::Length(_) | State::UntilClose if input.is_empty() => Ok(Decoded::More),
            State::Length(left) => Ok(Decoded::Data(split_up_to(input, left))),
            State::UntilClose => Ok(Decoded::Data(std::mem::take(input))),
        }
    }

    /// Bytes to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self.0 {
            State::Length(left) => Some(left),
            State::Ended => Some(0),
            State::Chunked(_) | State::UntilClose => None,
        }
    }

    /// Whether nothing more belongs to the body.
    pub fn is_over(&self) -> bool {
        match &self.0 {
            State::Ended | State::Length(0) => true,
            State::Chunked(chunks) => matches!(chunks.at, At::Ended),
            State::Length(_) | State::UntilClose => false,
        }
    }

    /// Whether the body is whole if the worker closes now.
    pub fn ends_with_close(&self) -> bool {
        matches!(self.0, State::UntilClose)
    }
}

fn split_up_to(input: &mut Bytes, left: &mut u64) -> Bytes {
    let size = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    *left -= size as u64;
    input.split_to(size)
}

/// The chunked coding. One byte at a time outside of data, so that input may be split anywhere.
#[derive(Debug)]
struct Chunks {
    limits: ChunkLimits,
    speaker: Speaker,
    at: At,
    left: u64,
    digits: u32,
    extensions: u32,
    trailers: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum At {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailersOrEnd,
    EndLf,
    Trailers,
    Ended,
}

impl Chunks {
    fn new(limits: ChunkLimits, speaker: Speaker) -> Self {
        Self { limits, speaker, at: At::Size, left: 0, digits: 0, extensions: 0, trailers: Vec::new() }
    }

    fn decode(&mut self, input: &mut Bytes) -> Result<Decoded, Malformed> {
        loop {
            if matches!(self.at, At::Ended) {
                return Ok(Decoded::End);
            }
            let Some(byte) = input.first().copied() else { return Ok(Decoded::More) };
            if matches!(self.at, At::Data) {
                let data = split_up_to(input, &mut self.left);
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Decoded::Data(data));
            }
            input.advance(1);
            self.at = self.step(byte)?;
            if matches!(self.at, At::Trailers) && self.trailers.ends_with(b"\r\n\r\n") {
                self.at = At::Ended;
                let section = std::mem::take(&mut self.trailers);
                return parse_trailers(section, self.limits.trailer_fields, self.speaker)
                    .map(Decoded::Trailers);
            }
        }
    }

    fn step(&mut self, byte: u8) -> Result<At, Malformed> {
        match (self.at, byte) {
            (At::Size, _) => self.size(byte),
            (At::Extension, b'\r') => Ok(At::SizeLf),
            (At::Extension, _) => self.extension(byte),
            (At::SizeLf, b'\n') if self.left == 0 => Ok(At::TrailersOrEnd),
            (At::SizeLf, b'\n') => Ok(At::Data),
            (At::DataCr, b'\r') => Ok(At::DataLf),
            (At::DataLf, b'\n') => {
                self.digits = 0;
                Ok(At::Size)
            }
            (At::TrailersOrEnd, b'\r') => Ok(At::EndLf),
            (At::TrailersOrEnd | At::Trailers, _) => self.trailer(byte),
            (At::EndLf, b'\n') => Ok(At::Ended),
            (At::SizeLf | At::EndLf, _) => Err(Malformed("a chunk line does not end with CRLF")),
            (At::DataCr | At::DataLf, _) => Err(Malformed("a chunk is longer than its size")),
            (At::Data | At::Ended, _) => Ok(self.at),
        }
    }

    fn size(&mut self, byte: u8) -> Result<At, Malformed> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            // Sixteen digits are all of 64 bits.
            if self.digits == 16 {
                return Err(Malformed("a chunk size is too long"));
            }
            self.left = self.left << 4 | u64::from(digit);
            self.digits += 1;
            return Ok(At::Size);
        }
        match byte {
            _ if self.digits == 0 => Err(Malformed("a chunk size is missing")),
            b'\r' => Ok(At::SizeLf),
            b';' | b' ' | b'\t' => self.extension(byte),
            _ => Err(Malformed("a chunk size is malformed")),
        }
    }

    fn extension(&mut self, byte: u8) -> Result<At, Malformed> {
        self.extensions += 1;
        if self.extensions > self.limits.extensions {
            return Err(Malformed("its chunk extensions are too long"));
        }
        if byte.is_ascii_control() && byte != b'\t' {
            return Err(Malformed("a chunk extension holds control characters"));
        }
        Ok(At::Extension)
    }

    fn trailer(&mut self, byte: u8) -> Result<At, Malformed> {
        if self.trailers.len() == self.limits.trailer_size as usize {
            return Err(Malformed("its trailers are too long"));
        }
        if byte == b'\n' && self.trailers.last() != Some(&b'\r') {
            return Err(Malformed("a trailer line does not end with CRLF"));
        }
        self.trailers.push(byte);
        Ok(At::Trailers)
    }
}

fn parse_trailers(section: Vec<u8>, most: u32, speaker: Speaker) -> Result<HeaderMap, Malformed> {
    let section = Bytes::from(section);
    let mut lines = vec![httparse::EMPTY_HEADER; most as usize];
    let lines = match httparse::parse_headers(&section, &mut lines) {
        Ok(httparse::Status::Complete((length, lines))) if length == section.len() => lines,
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed("it has too many trailers")),
        Ok(_) | Err(_) => return Err(Malformed("its trailers are malformed")),
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(section.slice_ref(line.value));
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Malformed("its trailers are malformed"));
        };
        if speaker.may_say(&name) {
            trailers.append(name, value);
        }
    }
    Ok(trailers)
}

/// Appends the size line of a chunk; its data and CRLF follow. `size` must not be 0, which would end the body.
pub fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    // Writing to a vector cannot fail.
    let _ = write!(out, "{size:x}\r\n");
}

/// Appends the last chunk with those trailers of `speaker` that may be one (RFC 9110 §6.5.1) and can be written.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: Option<&HeaderMap>, speaker: Speaker) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        let start = out.len();
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        if !speaker.may_say(name) || push_value(out, value).is_err() {
            out.truncate(start);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Takes out of `trailers` what may not be one, or may not be said by this speaker.
pub(super) fn keep_trailers(trailers: &mut HeaderMap, speaker: Speaker) {
    let unwanted: Vec<HeaderName> = trailers.keys().filter(|name| !speaker.may_say(name)).cloned().collect();
    for name in unwanted {
        trailers.remove(name);
    }
}

/// Fields that mean nothing, or something dangerous, after the content: framing, routing, identity, control and content type.
fn may_trail(name: &HeaderName) -> bool {
    const NEVER: [&str; 37] = [
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "proxy",
        "range",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "via",
        "warning",
        "www-authenticate",
    ];
    let name = name.as_str();
    NEVER.binary_search(&name).is_err() && !name.starts_with("proxy-")
}

/// Fields that only edge may write to a worker, and names that some servers take for theirs.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "x-real-ip" | "x-request-id")
        || name.starts_with("x-forwarded")
        || name.starts_with("x-client-cert")
        || name.contains(['_', '.'])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: ChunkLimits = ChunkLimits { extensions: 4000, trailer_size: 16_000, trailer_fields: 32 };

    type Body = Result<(Vec<u8>, Option<HeaderMap>, Vec<u8>), &'static str>;

    /// Feeds `text` in pieces that end at `cuts`; what was decoded, its trailers and what was left over.
    fn decode(framing: ResponseFraming, text: &[u8], cuts: &[usize]) -> Body {
        let mut decoder = BodyDecoder::new(framing, &LIMITS);
        let (mut body, mut trailers, mut from) = (Vec::new(), None, 0);
        for to in cuts.iter().copied().chain([text.len()]) {
            let mut input = Bytes::copy_from_slice(&text[from..to]);
            loop {
                match decoder.decode(&mut input).map_err(|Malformed(what)| what)? {
                    Decoded::Data(data) => body.extend_from_slice(&data),
                    Decoded::Trailers(fields) => trailers = Some(fields),
                    Decoded::More => break,
                    Decoded::End => return Ok((body, trailers, [&input[..], &text[to..]].concat())),
                }
            }
            from = to;
        }
        if decoder.ends_with_close() { Ok((body, trailers, Vec::new())) } else { Err("truncated") }
    }

    fn chunked(text: &[u8]) -> Body {
        decode(ResponseFraming::Chunked, text, &[])
    }

    #[test]
    fn chunks_are_joined_and_their_extensions_dropped() {
        for text in ["5\r\nhello\r\n0\r\n\r\n", "2;a=b\r\nhe\r\n03  \r\nllo\r\n00;x\r\n\r\n"] {
            assert_eq!(chunked(text.as_bytes()), Ok((b"hello".to_vec(), None, Vec::new())), "{text:?}");
        }
        assert_eq!(chunked(b"A\r\n0123456789\r\n0\r\n\r\nrest").expect("valid").2, b"rest");
    }

    #[test]
    fn what_is_used_up_keeps_no_buffer() {
        for text in ["5\r\nhello\r\n", "5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\na: b\r\n\r\n"] {
            let read = Bytes::copy_from_slice(text.as_bytes());
            let (mut decoder, mut input) =
                (BodyDecoder::new(ResponseFraming::Chunked, &LIMITS), read.clone());
            while !matches!(decoder.decode(&mut input), Ok(Decoded::More | Decoded::End)) {}
            assert!(read.is_unique(), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_chunked_coding_is_refused() {
        let long =
            [b"5;".as_slice(), &[b'x'; LIMITS.extensions as usize + 1], b"\r\nhello\r\n0\r\n\r\n"].concat();
        let trailers = [b"0\r\na: ".as_slice(), &[b'x'; LIMITS.trailer_size as usize], b"\r\n\r\n"].concat();
        let many = ["0\r\n", &"a: b\r\n".repeat(LIMITS.trailer_fields as usize + 1), "\r\n"].concat();
        for text in [
            b"\r\n".as_slice(),
            b";a\r\n",
            b"0x5\r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"5_\r\nhello\r\n",
            b" 5\r\nhello\r\n",
            b"-1\r\n",
            b"00000000000000005\r\nhello\r\n",
            b"5\nhello\r\n",
            b"5\r\nhello\n",
            b"5\r\nhelloo\r\n",
            b"5\rhello",
            b"5;a\n\r\n",
            b"5;a\0\r\nhello\r\n",
            b"0\r\n\n",
            b"0\r\na: b\n\r\n",
            b"0\r\nno colon\r\n\r\n",
            b"0\r\na: b\r\n c\r\n\r\n",
            b"5\r\nhel",
            b"5\r\nhello\r\n0\r\n",
            &long,
            &trailers,
            many.as_bytes(),
        ] {
            assert!(chunked(text).is_err(), "{:?}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn a12_trailers_cannot_change_how_a_message_is_read() {
        let names = |speaker| {
            let all = [
                "content-length",
                "transfer-encoding",
                "set-cookie",
                "cache-control",
                "http2-settings",
                "proxy",
                "proxy-status",
                "strict-transport-security",
                "www-authenticate",
                "x-real-ip",
                "x-client-cert-subject",
                "x_a",
                "a.b",
                "x",
            ];
            let all = all.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("y")));
            let mut trailers = HeaderMap::from_iter(all);
            keep_trailers(&mut trailers, speaker);
            trailers.keys().map(HeaderName::to_string).collect::<BTreeSet<_>>()
        };
        let expected = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names(Speaker::Client), expected(&["x"]));
        let of_worker = ["a.b", "x", "x-client-cert-subject", "x-real-ip", "x_a"];
        assert_eq!(names(Speaker::Worker), expected(&of_worker));
    }

    #[test]
    fn trailers_pass_but_for_those_with_a_meaning_to_recipients() {
        let text = b"0\r\nGrpc-Status: 0\r\nContent-Length: 5\r\nHost: x\r\nX-Forwarded-For: y\r\nX_a.b: z\r\nCookie: c\r\n\r\n";
        let trailers = chunked(text).expect("valid").1.expect("trailers");
        let names: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["grpc-status", "x-forwarded-for", "x_a.b"], "what a worker may say");
        let mut client = BodyDecoder::of_request(RequestFraming::Chunked, &LIMITS);
        let Ok(Decoded::Trailers(said)) = client.decode(&mut Bytes::from_static(text)) else {
            panic!("trailers")
        };
        assert_eq!(said.keys().collect::<Vec<_>>(), ["grpc-status"], "what a client may say");
        for (speaker, length) in [(Speaker::Worker, 3), (Speaker::Client, 1)] {
            let mut out = Vec::new();
            write_last_chunk(&mut out, Some(&trailers), speaker);
            let text = String::from_utf8(out).expect("text");
            assert_eq!(text.matches(": ").count(), length, "{text}");
        }
        let mut out = Vec::new();
        let both = HeaderMap::from_iter([
            (http::header::HOST, HeaderValue::from_static("x")),
            (HeaderName::from_static("checksum"), HeaderValue::from_static("1")),
        ]);
        write_last_chunk(&mut out, Some(&both), Speaker::Client);
        assert_eq!(out, b"0\r\nchecksum: 1\r\n\r\n");
    }

    #[test]
    fn other_framings_end_where_they_say() {
        let decoded = |framing| decode(framing, b"hello", &[2]);
        assert_eq!(decoded(ResponseFraming::Length(3)), Ok((b"hel".to_vec(), None, b"lo".to_vec())));
        assert_eq!(decoded(ResponseFraming::Length(6)), Err("truncated"));
        assert_eq!(decoded(ResponseFraming::UntilClose), Ok((b"hello".to_vec(), None, Vec::new())));
        assert_eq!(decoded(ResponseFraming::None), Ok((Vec::new(), None, b"hello".to_vec())));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_split(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            trailer in proptest::option::of("[!-~]{1,20}"),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                write_chunk_size(&mut text, chunk.len());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            let trailers = trailer.map(|value| HeaderMap::from_iter([
                (HeaderName::from_static("checksum"), HeaderValue::from_str(&value).expect("visible")),
            ]));
            write_last_chunk(&mut text, trailers.as_ref(), Speaker::Worker);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len())).collect();
            cuts.sort_unstable();
            let decoded = decode(ResponseFraming::Chunked, &text, &cuts);
            prop_assert_eq!(decoded, Ok((chunks.concat(), trailers, Vec::new())));
        }

        #[test]
        fn splitting_changes_no_result_and_no_bytes_panic(
            text in proptest::collection::vec(prop::sample::select(b"012af;:= \t\r\n\0x".to_vec()), 0..60),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.sort_unstable();
            prop_assert_eq!(decode(ResponseFraming::Chunked, &text, &cuts), chunked(&text));
        }
    }
}
