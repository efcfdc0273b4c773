//! What the pure steps of a request take, each for itself: `cargo bench --bench hot [-- WORD]`.
//!
//! For the one who changes one of them: figures of two builds on one quiet machine can be compared, those of two machines cannot.
//! A request is more than their sum, most of it in the kernel; `tests/bench/compare` has the whole.

#![allow(clippy::expect_used, reason = "a tool that cannot run says why and ends")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use edge::config::limits::Limits;
use edge::config::load;
use edge::config::model::Config;
use edge::config::surroundings::Surroundings;
use edge::listen::{request, response};
use edge::name::HostName;
use edge::proxy::headers::{self, Forwarding};
use edge::proxy::route::{Asked, Decision, Routing, Secured, Site};
use edge::proxy::target::{self, Authority};
use edge::telemetry::access::AccessRecord;
use edge::telemetry::line::{Shape, Stamp};
use edge::telemetry::tally::Tally;
use edge::upstream::framing::{BodyDecoder, Decoded};
use edge::upstream::pool::Pool;
use edge::upstream::wire::{self, RequestFraming, RequestHead, ResponseFraming};
use edge::worker::slot::Roster;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

/// As a browser asks.
const REQUEST: &str = "GET /shop/items/4711?page=2&sort=price HTTP/1.1\r\nHost: www.shop-42.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\nReferer: https://www.shop-42.example/shop/items\r\n\
    Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\nConnection: keep-alive\r\n\
    Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\n\
    X-Forwarded-For: 192.0.2.1\r\nPriority: u=0, i\r\n\r\n";

/// As uvicorn answers.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ndate: Wed, 25 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: 100\r\n\
    content-type: application/json\r\ncache-control: no-store\r\nvary: accept-encoding\r\n\
    set-cookie: session=0123456789abcdef0123456789abcdef; Path=/; HttpOnly; Secure\r\n\r\n";

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));

fn main() {
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    let bench = Bench { wanted };
    println!("{:>8} {:>8}  nanoseconds", "median", "least");
    let config = config();
    requests(&bench, &config.limits);
    routing(&bench, &config);
    towards_workers(&bench, &config.limits);
    towards_clients(&bench);
    access_lines(&bench);
}

struct Bench {
    wanted: String,
}

impl Bench {
    fn of<I, O>(&self, name: &str, input: impl FnMut() -> I, step: impl FnMut(I) -> O) {
        if name.contains(&self.wanted) {
            let took = timed(input, step);
            println!("{:>8.0} {:>8.0}  {name}", took.median, took.least);
        }
    }
}

/// Calls between two looks at the clock, which takes some 30 ns itself.
const BATCH: usize = 256;
/// How often that is done.
const SAMPLES: usize = 400;

/// Nanoseconds of one call.
struct Took {
    /// The median: what others on the machine do is in half of the samples.
    median: f64,
    /// The least disturbed.
    least: f64,
}

/// What `step` takes, and dropping what it gives, as memory that is used again and again is what a request meets. Its input is made
/// before.
fn timed<I, O>(mut input: impl FnMut() -> I, mut step: impl FnMut(I) -> O) -> Took {
    let mut samples: Vec<f64> = (0..SAMPLES)
        .map(|_| {
            let inputs: Vec<I> = (0..BATCH).map(|_| input()).collect();
            let began = Instant::now();
            for input in inputs {
                black_box(step(black_box(input)));
            }
            began.elapsed().as_nanos() as f64 / BATCH as f64
        })
        .collect();
    samples.sort_unstable_by(f64::total_cmp);
    Took { median: samples[SAMPLES / 2], least: samples[0] }
}

/// A hundred sites, a tenth of them with a wildcard.
fn config() -> Config {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("edge.yaml");
    let at = dir.path().display();
    let mut text = format!("storage: {at}/storage\nruntime_dir: {at}/run\napps:\n");
    for number in 0..100 {
        let wildcard =
            if number % 10 == 0 { format!(", \"*.shop-{number}.example\"") } else { String::new() };
        text += &format!(
            "  shop-{number}:\n    domains: [www.shop-{number}.example{wildcard}]\n    tls: internal\n    upstream: 127.0.0.1:9\n"
        );
    }
    std::fs::write(&file, text).expect("it is written");
    load::load(&file, &Surroundings::of_this_process()).unwrap_or_else(|problems| unreachable!("{problems}"))
}

fn head(limits: &Limits) -> request::Head {
    request::read(&Bytes::from_static(REQUEST.as_bytes()), limits)
        .expect("a request")
        .expect("a whole head")
        .0
}

fn requests(bench: &Bench, limits: &Limits) {
    let block = Bytes::from_static(REQUEST.as_bytes());
    bench.of("request: its head read, 14 fields", || (), |()| request::read(&block, limits));
    let least = Bytes::from_static(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    bench.of("request: its head read, 1 field", || (), |()| request::read(&least, limits));
    let (parts, local) = (head(limits).parts, "192.0.2.7:443".parse().expect("an address"));
    let check = |()| {
        let present = target::look_over(&parts, limits)?;
        target::check_target(&parts, true)?;
        if present.framing {
            target::check_framing(&parts.headers)?;
        }
        target::authority(&parts, &present, true, local)
    };
    bench.of("request: size, target, framing and authority checked", || (), check);
}

fn routing(bench: &Bench, config: &Config) {
    let sites = config.apps.iter().map(|app| {
        Site::new(Arc::clone(app), Pool::new(app.name.clone(), Roster::new()), Arc::new(Tally::new(1)))
    });
    let routing = Routing::new(sites);
    for (what, host, covers) in [
        ("one of 100 hosts", "www.shop-42.example", 42),
        ("in another case", "WWW.Shop-42.example", 42),
        ("by a wildcard", "deals.shop-40.example", 40),
    ] {
        let sni = HostName::parse(host).expect("a name");
        let secured = Secured { sni: Some(&sni), names: &config.apps[covers].domains, client_auth: None };
        let decide = |host| {
            let authority = Authority::parse(host).expect("an authority");
            let (secured, path_and_query) = (Some(secured), "/shop/items/4711?page=2&sort=price");
            let asked = Asked { authority, path_and_query, secured, secure: true, https_port: None };
            routing.decide(&asked, |_| None)
        };
        assert!(
            matches!(decide(host), Decision::Forward(site) if Arc::ptr_eq(&site.app, &config.apps[covers]))
        );
        bench.of(&format!("routing: {what}"), || host, decide);
    }
}

fn towards_workers(bench: &Bench, limits: &Limits) {
    let parts = head(limits).parts;
    let present = target::look_over(&parts, limits).expect("it is within bounds");
    let rewrite = |mut fields: HeaderMap| {
        headers::request(&mut fields, &present);
        fields
    };
    bench.of("header fields: rewritten, 14 of them", || parts.headers.clone(), rewrite);
    let (client, host) =
        (HeaderValue::from_static("198.51.100.7"), HeaderValue::from_static("www.shop-42.example"));
    let about = Forwarding {
        client: CLIENT,
        client_text: &client,
        secure: true,
        host: &host,
        request_id: 0x0123_4567_89ab_cdef,
        client_subject: None,
        trailers: false,
    };
    let fields = rewrite(parts.headers.clone());
    let request = RequestHead {
        method: &Method::GET,
        target: "/shop/items/4711?page=2&sort=price",
        host: &host,
        headers: &fields,
        add: &|out| headers::forwarding(out, &about),
        upgrade: false,
    };
    let mut out = Vec::with_capacity(4096);
    let write = |()| {
        out.clear();
        wire::write_request_head(&mut out, &request, RequestFraming::None).map(|()| out.len())
    };
    bench.of("upstream codec: a request's head written", || (), write);
    let block = Bytes::from_static(ANSWER.as_bytes());
    let asked = wire::Asked { head: false, upgrade: false };
    let read = |()| wire::parse_response_head(&block, asked, &limits.response);
    bench.of("upstream codec: an answer's head read, 7 fields", || (), read);
    let body = Bytes::from(vec![b'x'; 16 << 10]);
    let mut chunked = Vec::new();
    for piece in body.chunks(4 << 10) {
        chunked.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        chunked.extend_from_slice(piece);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let chunked = Bytes::from(chunked);
    for (what, framing, input) in [
        ("16 KiB by length", ResponseFraming::Length(16 << 10), body),
        ("16 KiB in 4 chunks", ResponseFraming::Chunked, chunked),
    ] {
        let decode = |mut input: Bytes| {
            let mut decoder = BodyDecoder::new(framing, &limits.chunks);
            let mut length = 0;
            while let Decoded::Data(data) = decoder.decode(&mut input).expect("a body") {
                length += data.len();
            }
            assert_eq!(length, 16 << 10);
        };
        bench.of(&format!("upstream codec: a body read, {what}"), || input.clone(), decode);
    }
}

fn towards_clients(bench: &Bench) {
    let mut answer = Response::new(());
    let fields = ANSWER.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().expect("a name");
        answer.headers_mut().append(name, HeaderValue::from_static(value));
    }
    let answer = answer.into_parts().0;
    let asked = response::Asked { head: false, version: Version::HTTP_11, trailers: false };
    let body = response::Announced { length: Some(100), empty: false };
    let mut out = Vec::with_capacity(4096);
    let write = |()| {
        out.clear();
        response::write_head(&mut out, &answer, body, asked, false, || *b"Wed, 25 Nov 2026 12:00:00 GMT");
        out.len()
    };
    bench.of("answer: its head written, 7 fields", || (), write);
}

fn access_lines(bench: &Bench) {
    let mut record = AccessRecord {
        at: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_600_000_123),
        app: "shop-42".parse().ok(),
        worker: Some((3, 4711)),
        client: CLIENT,
        host: Some(HeaderValue::from_static("www.shop-42.example")),
        method: Method::GET,
        uri: "/shop/items/4711?page=2&sort=price".parse().expect("a target"),
        version: Version::HTTP_2,
        status: StatusCode::OK,
        bytes_in: 0,
        bytes_out: 100,
        duration: Duration::from_micros(12_345),
        queued: Duration::ZERO,
        upstream: Some(Duration::from_micros(12_300)),
        retries: 0,
        tls: Some("TLSv1.3"),
        request_id: 0x0123_4567_89ab_cdef,
        error: None,
    };
    for (what, shape) in [("as JSON", Shape::Json), ("as text", Shape::Text { colour: false })] {
        let (mut stamp, mut out) = (Stamp::default(), Vec::with_capacity(4096));
        let write = |()| {
            out.clear();
            // A thousand lines a second: the stamp is made anew as often as then.
            record.at += Duration::from_millis(1);
            black_box(&record).write(shape, &mut stamp, &mut out);
            out.len()
        };
        bench.of(&format!("access line: {what}"), || (), write);
    }
}
