//! HTTP/2 frame by frame (RFC 9113), for clients that say what no client should.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::client::{PATIENCE, Trust, tcp_from, tls_over};
use super::edge::Edge;
use super::within;

/// What a connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The size of header table that edge may use: none, so that each of its blocks can be read alone.
const NO_TABLE: (u16, u32) = (1, 0);

/// The setting of how much a stream may send before it is told to go on.
pub(crate) const FLOW: u16 = 4;

/// A name and a value, whatever their bytes.
pub(crate) type Field<'a> = (&'a [u8], &'a [u8]);

/// One frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// What became of a stream or of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It was answered.
    Status(u16),
    /// The stream alone ended, with this error code.
    Reset(u32),
    /// The connection ends, with this error code.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
}

/// A frame's bytes.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field block: each field a literal that stays out of every table.
pub(crate) fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        put_text(&mut bytes, name);
        put_text(&mut bytes, value);
    }
    bytes
}

/// A literal that is remembered: each further one of its kind is a byte, `0xbe` for the newest.
pub(crate) fn remembered(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40];
    put_text(&mut bytes, name);
    put_text(&mut bytes, value);
    bytes
}

/// HEADERS, and CONTINUATION where one frame does not hold the block.
pub(crate) fn headers(stream: u32, ends: bool, block: &[u8]) -> Vec<u8> {
    const MOST: usize = 16_384;
    let (first, mut rest) = block.split_at(block.len().min(MOST));
    let last = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
    let ends = if ends { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, ends | last(rest), stream, first);
    while !rest.is_empty() {
        let (next, more) = rest.split_at(rest.len().min(MOST));
        bytes.extend(frame(CONTINUATION, last(more), stream, next));
        rest = more;
    }
    bytes
}

/// The four fields of a GET, and more.
pub(crate) fn get<'a>(authority: &'a str, path: &'a str, more: &[Field<'a>]) -> Vec<u8> {
    request("GET", authority, path, more)
}

/// The four fields of a request, and more.
pub(crate) fn request<'a>(method: &'a str, authority: &'a str, path: &'a str, more: &[Field<'a>]) -> Vec<u8> {
    let mut fields: Vec<Field<'_>> = vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"https"),
        (b":authority", authority.as_bytes()),
        (b":path", path.as_bytes()),
    ];
    fields.extend(more);
    block(&fields)
}

/// WINDOW_UPDATE.
pub(crate) fn window_update(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// A connection.
pub(crate) struct H2<S> {
    stream: S,
    read: Vec<u8>,
}

impl H2<TlsStream<TcpStream>> {
    /// To `edge`, with the settings exchanged.
    pub(crate) async fn open(edge: &Edge, host: &str, settings: &[(u16, u32)]) -> Self {
        let trust = edge.trust().await;
        Self::from(edge.https, host, [127, 0, 0, 1], &trust, settings).await.expect("a connection")
    }

    /// As [`Self::open`], with this address of the client.
    pub(crate) async fn from(
        edge: SocketAddr,
        host: &str,
        address: [u8; 4],
        trust: &Trust,
        settings: &[(u16, u32)],
    ) -> std::io::Result<Self> {
        let tcp = tcp_from(address.into(), edge).await?;
        let stream = tls_over(tcp, host, trust.offering(&["h2"])).await?;
        let mut connection = Self { stream, read: Vec::new() };
        connection.begin(settings).await?;
        Ok(connection)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> H2<S> {
    async fn begin(&mut self, settings: &[(u16, u32)]) -> std::io::Result<()> {
        let mut payload = Vec::new();
        for (name, value) in settings.iter().chain([&NO_TABLE]) {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        self.stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).await?;
        // Its own settings hold once it has heard that they were seen.
        while let Some(frame) = self.next().await {
            if frame.kind == SETTINGS && frame.flags == 0 {
                return Ok(());
            }
        }
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }

    /// Writes frames; an end of the connection shows in what is read.
    pub(crate) async fn send(&mut self, frames: impl AsRef<[u8]>) {
        let sent = async {
            self.stream.write_all(frames.as_ref()).await?;
            self.stream.flush().await
        };
        let _ = within(PATIENCE, "the frames are written", sent).await;
    }

    /// As [`Self::send`], where the other end may take nothing: whether it took them.
    pub(crate) async fn try_send(&mut self, frames: &[u8], limit: std::time::Duration) -> bool {
        matches!(tokio::time::timeout(limit, self.stream.write_all(frames)).await, Ok(Ok(())))
    }

    /// The next frame; `None` at the end. Settings and pings are acknowledged.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        let frame = self.take().await?;
        if matches!(frame.kind, SETTINGS | PING) && frame.flags & 1 == 0 {
            let payload: &[u8] = if frame.kind == PING { &frame.payload } else { b"" };
            self.send(self::frame(frame.kind, 1, 0, payload)).await;
        }
        Some(frame)
    }

    /// Reads until `stream` is answered or ended, or the connection is.
    pub(crate) async fn end_of(&mut self, stream: u32) -> End {
        while let Some(frame) = self.next().await {
            match frame.kind {
                HEADERS if frame.stream == stream => return End::Status(status(&frame.payload)),
                RST_STREAM if frame.stream == stream => return End::Reset(code(&frame.payload)),
                GOAWAY if code(&frame.payload[4..]) != 0 => return End::GoAway(code(&frame.payload[4..])),
                _ => {}
            }
        }
        End::Closed
    }

    /// Reads the connection to its end; returned is the error code it gave, 0 where it gave none.
    pub(crate) async fn end(&mut self) -> u32 {
        let mut last = 0;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                last = code(&frame.payload[4..]);
            }
        }
        last
    }

    async fn take(&mut self) -> Option<Frame> {
        let head: [u8; 9] = self.bytes(9).await?.try_into().ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let payload = self.bytes(length as usize).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    async fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            let reading = self.stream.read_buf(&mut self.read);
            let read = within(PATIENCE * 3, "edge sends or closes", reading).await;
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
        let rest = self.read.split_off(length);
        Some(std::mem::replace(&mut self.read, rest))
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &[u8]) {
    // RFC 7541 §5.1: seven bits, then as many as it needs.
    let mut left = text.len();
    if left < 127 {
        bytes.push(left as u8);
    } else {
        bytes.push(127);
        left -= 127;
        while left >= 128 {
            bytes.push((left % 128) as u8 | 128);
            left /= 128;
        }
        bytes.push(left as u8);
    }
    bytes.extend(text);
}

fn code(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().expect("an error code"))
}

/// The status in a block of edge's, which begins with it.
fn status(mut block: &[u8]) -> u16 {
    while block[0] & 0xe0 == 0x20 {
        // The size of the table, told anew.
        block = &block[1..];
    }
    match block[0] {
        indexed @ 0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        0x08..=0x0e | 0x48..=0x4e => {
            let (length, text) = (usize::from(block[1] & 0x7f), &block[2..]);
            let digits = if block[1] & 0x80 == 0 { text[..length].to_vec() } else { digits(&text[..length]) };
            String::from_utf8(digits).expect("digits").parse().expect("a status")
        }
        other => panic!("a block that does not begin with a status: {other:#x}"),
    }
}

/// RFC 7541 appendix B, of which a status needs ten codes.
fn digits(coded: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = coded.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let number = |bits: &[u8]| bits.iter().fold(0, |number, bit| number << 1 | bit);
    let (mut found, mut rest) = (Vec::new(), &bits[..]);
    while found.len() < 3 {
        let (digit, length) = match number(&rest[..5]) {
            short @ 0..3 => (short, 5),
            _ => (number(&rest[..6]) - 0x19 + 3, 6),
        };
        found.push(b'0' + digit);
        rest = &rest[length..];
    }
    found
}
