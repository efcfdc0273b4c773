//! What Prometheus is told: parsed strictly, by the promises of its format, and safe from whoever asks.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::ca::free_port;
use crate::support::client::{Connection, Wire, connect, shared_websocket, websocket};
use crate::support::edge::{Edge, Setup};
use crate::support::until;

/// One sample: its name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

const SCRAPE: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

/// How long a connection may last.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// How late a busy machine may be.
const MARGIN: Duration = Duration::from_secs(8);

/// Connections that are answered at once.
const AT_ONCE: usize = 16;

/// The text format 0.0.4, each of its rules held to.
fn parse(page: &str) -> Vec<Sample> {
    assert!(page.ends_with('\n'), "the last line ends with a line feed");
    let (mut samples, mut types, mut helped) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    let mut current = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect(line);
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            assert!(name.starts_with("edge_") && helped.contains(name), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}: typed twice");
            current = name.to_owned();
        } else {
            let sample = sample(line);
            let family = match types.get(&current).map(String::as_str) {
                Some("histogram") => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| sample.0.strip_suffix(end))
                    .unwrap_or_else(|| panic!("{line}: no part of a histogram")),
                _ => &sample.0,
            };
            assert_eq!(family, current, "{line}: not below its type");
            assert!(seen.insert((sample.0.clone(), sample.1.clone())), "{line}: twice");
            samples.push(sample);
        }
    }
    samples
}

fn sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(name_end);
    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").expect(line);
            assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
            let (mut value, mut chars) = (String::new(), after.char_indices());
            let end = loop {
                match chars.next().expect(line) {
                    (at, '"') => break at + 1,
                    (_, '\\') => value.push(match chars.next().expect(line).1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("{line}: \\{c}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            rest = &after[end..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect(line);
    }
    let value = rest.strip_prefix(' ').expect(line).parse().expect(line);
    (name.to_owned(), labels, value)
}

fn ask(address: SocketAddr, request: &str) -> String {
    answer(asking(address, request))
}

fn asking(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn answer(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(TIME_LIMIT + MARGIN)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn scrape(address: SocketAddr) -> Vec<Sample> {
    samples(&ask(address, SCRAPE))
}

fn samples(answer: &str) -> Vec<Sample> {
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    parse(page)
}

fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let of = |sample: &&Sample| {
        sample.0 == name
            && labels.iter().all(|(label, value)| sample.1.get(*label).is_some_and(|it| it == value))
    };
    samples.iter().find(of).map(|sample| sample.2)
}

/// The clock of the wall.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Edge ends each of these, to which it has nothing to say, until then.
fn closes(silent: &mut [TcpStream], until: Instant) {
    for (at, stream) in silent.iter_mut().enumerate() {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).unwrap();
        let end = stream.read(&mut [0]);
        assert_eq!(end.as_ref().ok(), Some(&0), "silent connection {at}: {end:?}");
    }
}

async fn closed(address: SocketAddr) {
    until(Duration::from_secs(5), "nobody answers there", async || TcpStream::connect(address).err()).await;
}

fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

async fn edge_with_metrics(port: u16) -> Edge {
    let edge = Setup::new()
        .top(&format!("metrics: 127.0.0.1:{port}"))
        .app("a", "domains: [a.test, \"*.w.test\"]\ncommand: edge hello\nworkers: 2")
        .start()
        .await;
    edge.wait_until_up("a").await;
    edge
}

#[tokio::test]
async fn requests_workers_and_certificates_are_measured_in_prometheus_own_format() {
    let port = free_port();
    let edge = edge_with_metrics(port).await;
    let at = local(port);
    let before = scrape(at);
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    for path in ["/", "/", "/nothing/here"] {
        connection.get(path).await;
    }
    let (a, two) = (("app", "a"), ("class", "2xx"));
    let after = until(Duration::from_secs(10), "three requests are counted", async || {
        let after = scrape(at);
        let count = value(&after, "edge_http_request_duration_seconds_count", &[a])?;
        (count == value(&before, "edge_http_request_duration_seconds_count", &[a])? + 3.0).then_some(after)
    })
    .await;
    let grown = |name: &str, labels: &[(&str, &str)]| {
        value(&after, name, labels).unwrap() - value(&before, name, labels).unwrap()
    };
    assert_eq!(grown("edge_http_requests_total", &[a, two]), 2.0);
    assert_eq!(grown("edge_http_requests_total", &[a, ("class", "4xx")]), 1.0);
    let buckets: Vec<f64> = after
        .iter()
        .filter(|(name, labels, _)| name.ends_with("_bucket") && labels["app"] == "a")
        .map(|sample| sample.2)
        .collect();
    assert!(buckets.len() == 16 && buckets.is_sorted(), "{buckets:?}");
    assert_eq!(value(&after, "edge_workers", &[a, ("state", "ready")]), Some(2.0));
    assert_eq!(value(&after, "edge_app_state", &[a, ("state", "up")]), Some(1.0));
    let restarts = |samples: &[Sample]| value(samples, "edge_worker_exits_total", &[a, ("reason", "signal")]);
    assert_eq!(restarts(&after), None);
    let now = now();
    for name in ["a.test", "*.w.test"] {
        let certificate = ("certificate", name);
        let end = value(&after, "edge_certificate_not_after_timestamp_seconds", &[certificate]).unwrap();
        assert!(end > now + 80.0 * 86_400.0 && end < now + 91.0 * 86_400.0, "{end}");
        assert_eq!(value(&after, "edge_certificate_state", &[certificate, ("state", "valid")]), Some(1.0));
        assert_eq!(
            value(&after, "edge_certificate_orders_total", &[certificate, ("outcome", "issued")]),
            Some(1.0)
        );
    }
    assert!(value(&after, "edge_connections", &[]).unwrap() >= 1.0);
    assert!(value(&after, "edge_connections_accepted_total", &[]).unwrap() >= 1.0);
    assert_eq!(value(&after, "edge_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));

    let worker = edge.workers("a").await[0];
    crate::support::processes::signal(worker, nix::sys::signal::Signal::SIGKILL);
    until(Duration::from_secs(10), "the death is counted", async || {
        restarts(&scrape(at)).filter(|count| *count == 1.0)
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn while_workers_are_replaced_each_place_is_one_series_and_what_has_started_stays_where_it_was() {
    let (setup, port) = (Setup::new(), free_port());
    let hold = setup.dir().join("hold");
    let yaml = format!(
        "domains: [a.test]\nworkers: 1\nserver: generic\n\
         command: sh -c 'while test -e {}; do sleep 0.05; done; exec edge hello'",
        hold.display()
    );
    let begun = now().floor();
    let edge = setup.top(&format!("metrics: 127.0.0.1:{port}")).app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let (at, place) = (local(port), [("app", "a"), ("worker", "0")]);
    let starts = |samples: &[Sample]| {
        let worker = value(samples, "edge_worker_start_timestamp_seconds", &place).unwrap();
        (value(samples, "edge_start_timestamp_seconds", &[]).unwrap(), worker)
    };
    let before = scrape(at);
    let first = starts(&before);
    assert!(begun <= first.0 && first.0 <= first.1 && first.1 <= now(), "{begun} {first:?}");

    // The successor starts in another second.
    until(Duration::from_secs(5), "the next second", async || (now() >= first.1 + 1.0).then_some(())).await;
    std::fs::write(&hold, "").unwrap();
    let restart = async { edge.done(&["restart", "a"]).await };
    let look = async {
        let starting = [("app", "a"), ("state", "starting")];
        let mut seen: Option<Instant> = None;
        until(Duration::from_secs(20), "several texts with a successor", async || {
            let samples = scrape(at);
            assert_eq!(starts(&samples), first);
            assert_eq!(value(&samples, "edge_worker_ready", &place), Some(1.0));
            assert_eq!(value(&samples, "edge_worker_restarts_total", &place), Some(0.0));
            let is_there = value(&samples, "edge_workers", &starting) == Some(1.0);
            // A text is good for half a second.
            (is_there && seen.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(2))
                .then_some(())
        })
        .await;
        std::fs::remove_file(&hold).unwrap();
    };
    tokio::join!(restart, look);
    let after = until(Duration::from_secs(10), "the successor is shown", async || {
        let samples = scrape(at);
        (value(&samples, "edge_worker_restarts_total", &place) == Some(1.0)).then_some(samples)
    })
    .await;
    let second = starts(&after);
    assert!(second.0 == first.0 && first.1 < second.1 && second.1 <= now(), "{first:?} {second:?}");
    edge.stop().await;
}

#[tokio::test]
async fn websockets_are_counted_and_have_no_duration_over_either_version_of_http() {
    let port = free_port();
    let edge = edge_with_metrics(port).await;
    let (at, a) = (local(port), ("app", "a"));
    let counts = |samples: &[Sample]| {
        let class = |class| value(samples, "edge_http_requests_total", &[a, ("class", class)]).unwrap();
        (
            class("1xx"),
            class("2xx"),
            value(samples, "edge_http_request_duration_seconds_count", &[a]).unwrap(),
        )
    };
    let before = counts(&scrape(at));
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    connection.get("/").await;
    let request = connect(&connection, "/ws");
    let (socket, _) = shared_websocket(&mut connection, request).await;
    drop(socket);
    let socket = websocket(&edge, "a.test", "/ws").await;
    drop(socket);
    until(Duration::from_secs(10), "a request and two WebSockets are counted", async || {
        let after = counts(&scrape(at));
        (after == (before.0 + 1.0, before.1 + 2.0, before.2 + 1.0)).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn i11_no_client_makes_a_series() {
    let port = free_port();
    let edge = edge_with_metrics(port).await;
    for (host, path) in [("a.test", "/secret-path"), ("evil-host.w.test", "/"), ("b.evil-host.example", "/")]
    {
        let request = format!(
            "PURGE-ME {path}?evil=1 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: evil-agent\r\n\
                               Connection: close\r\n\r\n"
        );
        ask(edge.http, &request);
    }
    let samples = scrape(local(port));
    let count = value(&samples, "edge_http_requests_total", &[("app", ""), ("class", "4xx")]);
    assert_eq!(count, Some(1.0), "a host of nobody is counted for no app");
    let slots = BTreeSet::from(["0", "1"]);
    for (name, labels, _) in &samples {
        for (label, value) in labels {
            let known = match label.as_str() {
                "app" => ["", "a"].contains(&value.as_str()),
                "worker" => slots.contains(value.as_str()),
                "certificate" => ["a.test", "*.w.test"].contains(&value.as_str()),
                "class" => ["1xx", "2xx", "3xx", "4xx", "5xx", "client_gone"].contains(&value.as_str()),
                "le" => value == "+Inf" || value.parse::<f64>().is_ok(),
                "state" | "reason" | "outcome" => value.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "version" => value == env!("CARGO_PKG_VERSION"),
                other => panic!("{name}: label {other}"),
            };
            assert!(known && !value.contains("evil"), "{name}: {label}={value:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_reload_moves_the_endpoint_and_takes_it_away_and_a_taken_address_changes_nothing() {
    let (one, two) = (free_port(), free_port());
    let edge = edge_with_metrics(one).await;
    scrape(local(one));
    let taken = std::net::TcpListener::bind(local(two)).unwrap();
    edge.edit(&format!("metrics: 127.0.0.1:{one}"), &format!("metrics: 127.0.0.1:{two}"));
    let (status, complaint) = edge.refused(&["reload"]).await;
    assert!(status == 1 && complaint.contains("another program listens there"), "{complaint}");
    scrape(local(one));
    drop(taken);
    edge.reload().await;
    scrape(local(two));
    closed(local(one)).await;
    // The same port of every address, while the present one has it.
    edge.edit(&format!("metrics: 127.0.0.1:{two}"), &format!("metrics: \":{two}\""));
    edge.reload().await;
    scrape(local(two));
    edge.edit(&format!("metrics: \":{two}\"\n"), "");
    edge.reload().await;
    closed(local(two)).await;
    edge.stop().await;
}

#[tokio::test]
async fn who_asks_badly_slowly_or_too_much_is_refused_and_serving_goes_on() {
    let port = free_port();
    let edge = edge_with_metrics(port).await;
    let at = local(port);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("GET /metrics/../status HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".to_owned(), "405"),
        (format!("GET /metrics HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(40_000)), "431"),
        ("\u{1}\u{2}\r\n\r\n".to_owned(), "400"),
    ] {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        // A head that is too long is refused, and its connection closed, before all of it is written.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        // A reset may overtake the answer to a head that is too long.
        assert!(
            (status == "431" && answer.is_empty()) || answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:.40}: {answer:.80}"
        );
    }
    // As many as are answered at once say nothing: whoever comes after them takes the place of the one that was silent for longest.
    let silent = || TcpStream::connect(at).unwrap();
    let begun = Instant::now();
    let mut first: Vec<TcpStream> = (0..AT_ONCE).map(|_| silent()).collect();
    samples(&answer(asking(at, SCRAPE)));
    closes(&mut first[..1], begun + TIME_LIMIT);
    let mut rest: Vec<TcpStream> = (0..24).map(|_| silent()).collect();
    closes(&mut first[1..], begun + TIME_LIMIT);
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    assert_eq!(connection.get("/").await.status, 200);
    edge.status().await;
    assert!(begun.elapsed() < TIME_LIMIT, "somebody waited for whoever asks for metrics");
    // Whoever has just come is let ask, however many come after it.
    let mut scraper = silent();
    let crowd: Vec<TcpStream> = (0..AT_ONCE).map(|_| silent()).collect();
    scraper.write_all(SCRAPE.as_bytes()).unwrap();
    samples(&answer(scraper));
    drop(crowd);
    // Where nobody comes, they may be silent for as long as a connection may last.
    closes(&mut rest, begun + TIME_LIMIT + MARGIN);
    assert!(begun.elapsed() >= TIME_LIMIT, "they were not let wait for {TIME_LIMIT:?}");
    drop(rest);
    scrape(at);
    edge.stop().await;
}
