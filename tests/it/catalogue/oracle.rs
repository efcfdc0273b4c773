//! Two connections, one truth: whatever a client sends, valid or nearly so, pipelined or in streams, the requests that edge
//! says it forwarded are those that the worker read, as many, in order, with the same bodies.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::support::client::{PATIENCE, Raw, Trust};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{DATA, END_STREAM, H2, HEADERS, RST_STREAM, block, frame, headers};
use crate::support::recorder::{Recorded, Recorder};
use crate::support::{full_length, until};

/// How long inputs are made up and sent.
fn length() -> Duration {
    Duration::from_secs(if full_length() { 600 } else { 8 })
}

/// A request as a client means it, and perhaps says it wrongly.
#[derive(Debug, Clone)]
struct Asked {
    method: &'static str,
    path: String,
    fields: Vec<(String, String)>,
    framing: Framing,
    body: Vec<u8>,
    /// Where its bytes are changed, and into what.
    slip: Option<(prop::sample::Index, u8)>,
}

#[derive(Debug, Clone, Copy)]
enum Framing {
    None,
    Length,
    /// In chunks of this size.
    Chunks(usize),
    /// A length that is not the body's.
    Off(i8),
    /// Both at once.
    Both,
}

fn asked() -> impl Strategy<Value = Asked> {
    let framing = prop_oneof![
        4 => Just(Framing::None),
        4 => Just(Framing::Length),
        4 => (1_usize..40).prop_map(Framing::Chunks),
        1 => (-3_i8..4).prop_map(Framing::Off),
        1 => Just(Framing::Both),
    ];
    let name = prop_oneof![
        3 => "x-[a-z]{1,6}",
        1 => "[A-Za-z_.-]{1,10}",
        1 => prop::sample::select(vec![
            "Connection", "Transfer-Encoding", "Content-Length", "Host", "Expect", "TE", "Trailer", "Upgrade",
            "Keep-Alive", "X-Forwarded-For", "Content_Length", "Cookie",
        ]).prop_map(str::to_owned),
    ];
    let value = prop_oneof![
        3 => "[ -~]{0,12}",
        1 => prop::sample::select(vec!["chunked", "close", "keep-alive", "0", "5", "100-continue", "a.test", "gzip, chunked"])
            .prop_map(str::to_owned),
    ];
    let path = prop_oneof![3 => "/[a-z0-9/]{0,8}", 1 => "/[!-~]{0,12}", 1 => "[!-~]{0,6}"];
    let method =
        prop::sample::select(vec!["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "brew", "CONNECT"]);
    let slip = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
    let body = vec(any::<u8>(), 0..100);
    (method, path, vec((name, value), 0..4), framing, body, slip).prop_map(
        |(method, path, fields, framing, body, slip)| Asked { method, path, fields, framing, body, slip },
    )
}

/// Names one request, so that a label with a changed byte names none.
fn label(number: usize, at: usize) -> String {
    format!("{number}.{at}.{}", (number * 31 + at * 17) % 9973)
}

fn labelled(text: &str) -> Option<(usize, usize)> {
    let mut parts = text.split('.').map_while(|part| part.parse().ok());
    let (number, at) = (parts.next()?, parts.next()?);
    (label(number, at) == text).then_some((number, at))
}

impl Asked {
    /// As HTTP/1.1 has it.
    fn text(&self, number: usize, at: usize) -> Vec<u8> {
        let mut bytes = format!(
            "{} {} HTTP/1.1\r\nHost: a.test\r\nX-N: {}\r\n",
            self.method,
            self.path,
            label(number, at)
        )
        .into_bytes();
        for (name, value) in &self.fields {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        let length = self.body.len();
        match self.framing {
            Framing::None => bytes.extend(b"\r\n"),
            Framing::Length => bytes.extend(format!("Content-Length: {length}\r\n\r\n").bytes()),
            Framing::Off(by) => {
                let length = length.saturating_add_signed(by.into());
                bytes.extend(format!("Content-Length: {length}\r\n\r\n").bytes());
            }
            Framing::Chunks(_) => bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n"),
            Framing::Both => {
                bytes.extend(
                    format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n").bytes(),
                );
            }
        }
        match self.framing {
            Framing::None => {}
            Framing::Length | Framing::Off(_) => bytes.extend(&self.body),
            Framing::Both => bytes.extend(b"0\r\n\r\n"),
            Framing::Chunks(size) => {
                for chunk in self.body.chunks(size) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        if let Some((at, byte)) = &self.slip {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        bytes
    }

    /// As frames of HTTP/2.
    fn frames(&self, stream: u32, number: usize, at: usize) -> Vec<u8> {
        let path = self.slipped();
        let numbered = label(number, at);
        let names: Vec<String> = self.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        let length = match self.framing {
            Framing::Off(by) => self.body.len().saturating_add_signed(by.into()).to_string(),
            Framing::None | Framing::Length | Framing::Chunks(_) | Framing::Both => {
                self.body.len().to_string()
            }
        };
        let mut fields: Vec<(&[u8], &[u8])> = vec![
            (b":method", self.method.as_bytes()),
            (b":scheme", b"https"),
            (b":authority", b"a.test"),
            (b":path", &path),
            (b"x-n", numbered.as_bytes()),
        ];
        fields.extend(
            names.iter().zip(&self.fields).map(|(name, (_, value))| (name.as_bytes(), value.as_bytes())),
        );
        if matches!(self.framing, Framing::Length | Framing::Off(_)) {
            fields.push((b"content-length", length.as_bytes()));
        }
        if matches!(self.framing, Framing::None) {
            return headers(stream, true, &block(&fields));
        }
        let mut frames = headers(stream, false, &block(&fields));
        frames.extend(frame(DATA, END_STREAM, stream, &self.body));
        frames
    }

    /// Its path, changed where a byte is.
    fn slipped(&self) -> Vec<u8> {
        let mut path = self.path.clone().into_bytes();
        if let Some((at, byte)) = self.slip.as_ref().filter(|_| !path.is_empty()) {
            let at = at.index(path.len());
            path[at] = *byte;
        }
        path
    }

    fn path_as_sent(&self) -> String {
        String::from_utf8_lossy(&self.slipped()).into_owned()
    }

    /// Whether it ends where it says: what follows it can be told from it.
    fn is_honest(&self) -> bool {
        let framed = |name: &str| {
            ["content-length", "transfer-encoding"].iter().any(|framing| name.eq_ignore_ascii_case(framing))
        };
        self.slip.is_none()
            && !matches!(self.framing, Framing::Off(_) | Framing::Both)
            && !self.fields.iter().any(|(name, _)| framed(name))
    }

    /// What of it a worker reads, if it reads it.
    fn meant(&self, path: &str) -> (String, Vec<u8>) {
        let body = if matches!(self.framing, Framing::None) { Vec::new() } else { self.body.clone() };
        // HTTP/2's library cuts a fragment off, and takes what is nothing then for the root; over HTTP/1 it is refused.
        let path = path.split('#').next().filter(|path| !path.is_empty()).unwrap_or("/");
        (format!("{} {path}", self.method), body)
    }
}

/// What became of all of it.
#[derive(Default)]
struct Books {
    /// Batches on one connection each, by number.
    batches: Vec<(bool, Vec<Asked>)>,
    seen: Vec<Recorded>,
}

#[tokio::test]
async fn p2_what_edge_forwards_is_what_a_worker_reads() {
    let recorder = Recorder::start().await;
    let yaml = format!("domains: [a.test]\nhttp: serve\n{}", recorder.origin.upstream());
    // A changed digit can make one body take in all that follows: such a connection is idle, and ends as that.
    let brief = "timeouts: {headers: 1s, body: 1s, keepalive: 1s}";
    let edge = Setup::new().top(brief).app("a", &yaml).start().await;
    let trust = edge.trust().await;
    let seed = std::env::var("EDGE_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() });
    let (batch, begun, mut books) = (vec(asked(), 1..6), Instant::now(), Books::default());
    while begun.elapsed() < length() {
        let requests = batch.new_tree(&mut runner).expect("a batch").current();
        let (number, http2) = (books.batches.len(), books.batches.len() % 3 == 2);
        if http2 {
            streams(&edge, &trust, number, &requests).await;
        } else {
            pipelined(&edge, number, &requests).await;
        }
        books.batches.push((http2, requests));
        books.seen.extend(recorder.take());
    }
    let lines = lines(&edge, &books.seen).await;
    books.seen.extend(recorder.take());
    let asked: usize = books.batches.iter().map(|(_, requests)| requests.len()).sum();
    let whole = books.check(&lines);
    println!(
        "figure: oracle (seed {seed}) {asked} requests on {} connections, {} reached a worker, {whole} of them exactly as meant",
        books.batches.len(),
        books.seen.len()
    );
    edge.stop().await;
}

impl Books {
    /// Checks everything that a worker read against what was meant, and against what edge says; how much was exactly as meant.
    fn check(&self, lines: &HashMap<String, Value>) -> usize {
        let mut whole = 0;
        let mut last = (0, 0);
        for request in &self.seen {
            let line = &lines[request.field("x-request-id")];
            let said = format!("{} {}", line["method"].as_str().unwrap(), line["path"].as_str().unwrap());
            assert_eq!(said, request.asked(), "what edge says is not what a worker read: {line} {request:?}");
            assert_eq!(line["bytes_in"], request.body.len(), "another boundary: {line} {request:?}");
            let Some((number, at)) = labelled(request.field("x-n")) else { continue };
            let Some((http2, batch)) = self.batches.get(number) else { continue };
            let Some(asked) = batch.get(at) else { continue };
            let path = if *http2 { asked.path_as_sent() } else { asked.path.clone() };
            // A stream is its own; one announced as empty is whole before its data belies it, and reset then.
            let certain = if *http2 {
                let announced =
                    asked.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
                !announced && !matches!(asked.framing, Framing::Off(_))
            } else {
                batch[..=at].iter().all(Asked::is_honest)
            };
            if certain {
                let read = (request.asked().to_owned(), request.body.clone());
                assert_eq!(read, asked.meant(&path), "not what was meant, batch {number}: {batch:?}");
                whole += 1;
            }
            if !http2 {
                assert!(
                    (number, at) > last || (number, at) == (0, 0),
                    "out of order, batch {number}: {batch:?}"
                );
                last = (number, at);
            }
        }
        let reached =
            self.seen.iter().filter(|request| lines.contains_key(request.field("x-request-id"))).count();
        let told = lines.values().filter(|line| line["status"] == 200 && line["worker"].is_number()).count();
        assert!(told <= reached, "edge tells of {told} requests at workers, which read {reached}");
        assert!(whole > 20, "hardly any of {} was honest", self.seen.len());
        whole
    }
}

/// Edge's own lines, by request id, once there is one for each that a worker read.
async fn lines(edge: &Edge, seen: &[Recorded]) -> HashMap<String, Value> {
    until(PATIENCE, "edge's lines", async || {
        let lines = edge.log_objects().into_iter().filter(|line| line["request_id"].is_string());
        let lines: HashMap<_, _> =
            lines.map(|line| (line["request_id"].as_str().unwrap_or_default().to_owned(), line)).collect();
        seen.iter().all(|request| lines.contains_key(request.field("x-request-id"))).then_some(lines)
    })
    .await
}

/// A batch on a connection of HTTP/1.1, all at once.
async fn pipelined(edge: &Edge, number: usize, requests: &[Asked]) {
    let mut client = Raw::new(TcpStream::connect(edge.http).await.expect("edge listens"));
    let texts = requests.iter().enumerate().map(|(at, request)| request.text(number, at));
    let last = b"GET /last HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n".to_vec();
    client.try_write(texts.chain([last]).collect::<Vec<_>>().concat()).await;
    client.read_to_close().await;
}

/// A batch as streams of one connection of HTTP/2.
async fn streams(edge: &Edge, trust: &Trust, number: usize, requests: &[Asked]) {
    let mut client = H2::from(edge.https, "a.test", [127, 0, 0, 1], trust, &[]).await.expect("a connection");
    let mut open: HashSet<u32> = HashSet::new();
    let mut frames = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        let stream = 1 + 2 * u32::try_from(at).expect("few");
        open.insert(stream);
        frames.extend(request.frames(stream, number, at));
    }
    client.send(frames).await;
    while !open.is_empty() {
        let Some(frame) = client.next().await else { return };
        let ends = matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0;
        if ends || frame.kind == RST_STREAM {
            open.remove(&frame.stream);
        }
    }
}
