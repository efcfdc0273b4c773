//! HTTP/2 to workers: shared connections, what becomes of their streams, and what of those that a worker does not take.

mod origin;
mod timeouts;
mod websockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use h2::Reason;
use h2::server::Builder;
use http::Response;
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc};

use self::origin::{Asked, Http2Origin, answer, read};
use crate::support::client::{Connection, PATIENCE, Wire, by_frames, empty, full, next_chunk, raw};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::{python, until, within};

#[tokio::test]
async fn requests_share_a_connection_and_say_what_they_say_in_http_1() {
    let origin = Http2Origin::answering(async |(request, respond): Asked| {
        let (head, _) = request.into_parts();
        let mut fields: Vec<String> =
            head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        fields.sort();
        answer(respond, 200, format!("{} {}\n{}", head.method, head.uri, fields.join("\n")));
    })
    .await;
    let edge = origin.edge("").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection
            .request("GET", "/path?a=b")
            .header("te", "trailers")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-own", "1")
            .body(empty())
            .unwrap();
        let text = connection.exchange(request).await.unwrap().text();
        let host = connection.authority();
        assert!(text.starts_with(&format!("GET http://{host}/path?a=b\n")), "{text}");
        for line in [
            "x-own: 1",
            "te: trailers",
            "x-forwarded-for: 127.0.0.1",
            "x-real-ip: 127.0.0.1",
            &format!("x-forwarded-host: {host}"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
        assert!(!text.contains("connection:") && !text.contains("\nhost:"), "{text}");
    }
    let mut connections = Vec::new();
    for _ in 0..20 {
        connections.push(Connection::open(&edge, "a.test", Wire::H1).await);
    }
    let answers = join_all(connections.iter_mut().map(|connection| connection.get("/"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert_eq!(origin.accepted(), 1, "of one thread");
    edge.stop().await;
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways_and_interim_answers_to_who_understands_them() {
    let origin = Http2Origin::answering(async |(request, mut respond): Asked| {
        let hints = Response::builder().status(103).header("link", "</a.css>").header("content-length", "2");
        let hints = hints.body(()).unwrap();
        respond.send_informational(hints).unwrap();
        let (body, trailers) = read(&mut request.into_body()).await;
        let trailers = trailers.unwrap_or_default();
        let check = trailers.get("x-check").map_or("none", |value| value.to_str().unwrap());
        assert!(!trailers.contains_key("x-forwarded-for"));
        let head = Response::builder().header("x-seen", format!("{} {check}", body.len())).body(()).unwrap();
        let mut stream = respond.send_response(head, false).unwrap();
        stream.send_data(Bytes::from_static(b"ok"), false).unwrap();
        let trailers = [("x-sum", "42"), ("set-cookie", "a=b"), ("cache-control", "no-store")];
        let trailers = trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        stream.send_trailers(trailers.collect()).unwrap();
    })
    .await;
    let edge = origin.edge("").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let (frames, body) = by_frames();
        let trailers = [("x-check", "7"), ("x-forwarded-for", "6.6.6.6")];
        let trailers = trailers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        frames.send(Frame::data(Bytes::from(vec![1; 3 << 20]))).unwrap();
        frames.send(Frame::trailers(trailers.collect())).unwrap();
        drop(frames);
        let request = connection.request("POST", "/").header("te", "trailers");
        let request = request.header("trailer", "x-check, x-forwarded-for").body(body).unwrap();
        let answer = connection.exchange(request).await.unwrap();
        assert_eq!((answer.text().as_str(), answer.header("x-seen")), ("ok", "3145728 7"), "{wire:?}");
        let trailers = answer.trailers.expect("trailers");
        assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"42".parse().unwrap()), "{wire:?}");
    }
    let mut client = raw(&edge, "a.test").await;
    client.write("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let hints = client.read_to("\r\n\r\n").await;
    assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
    assert!(client.read_to("0\r\n\r\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
    edge.stop().await;
}

#[tokio::test]
async fn what_a_worker_did_not_take_is_asked_twice_more_at_most_with_its_body_and_what_it_took_is_not() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Http2Origin::answering(move |(mut request, mut respond): Asked| {
        let report = report.clone();
        async move {
            let path = request.uri().path().to_owned();
            report.send(path.clone()).expect("the test listens");
            let first = request.headers().get("x-first").is_some();
            match path.as_str() {
                "/refuse" => {
                    // With its body read or not: it says that it did nothing with it.
                    let _ = request.body_mut().data().await;
                    respond.send_reset(Reason::REFUSED_STREAM);
                }
                "/reset" => respond.send_reset(Reason::INTERNAL_ERROR),
                _ => answer(respond, 200, if first { "first" } else { "again" }),
            }
        }
    })
    .await;
    let edge = origin.edge("").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let count = |seen: &mut mpsc::UnboundedReceiver<String>| {
        let mut count = 0;
        while seen.try_recv().is_ok() {
            count += 1;
        }
        count
    };
    for (path, method, status, times) in [
        ("/refuse", "POST", 503, 3),
        ("/refuse", "GET", 503, 3),
        ("/reset", "POST", 502, 1),
        ("/reset", "GET", 502, 1),
        ("/", "POST", 200, 1),
    ] {
        let body = if method == "POST" { full("body") } else { empty() };
        let request = connection.request(method, path).body(body).unwrap();
        let answer = connection.exchange(request).await.unwrap();
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(count(&mut seen), times, "{method} {path}");
    }
    // What is no longer here cannot be sent again.
    let request = connection.request("POST", "/refuse").body(full(vec![1; 1 << 20])).unwrap();
    assert_eq!(connection.exchange(request).await.unwrap().status, 503);
    assert_eq!(count(&mut seen), 1);
    assert_eq!(origin.accepted(), 1, "a stream's end is not its connection's");
    edge.stop().await;
}

#[tokio::test]
async fn requests_that_cross_a_goaway_are_asked_on_a_new_connection_and_those_before_it_are_answered() {
    let app = python::app("node goaway.js", "workers: 1\ntransport: tcp\nprotocol: h2c");
    let edge =
        python::setup().top("threads: 1\nlimits: {in_flight_per_client: 0}").app("a", &app).start().await;
    edge.wait_until_up("a").await;
    let mut connections = Vec::new();
    for number in 0..60 {
        connections.push((number, Connection::open(&edge, "a.test", Wire::H2).await));
    }
    let answers = join_all(connections.iter_mut().map(async |(number, connection)| {
        let answer = connection.post("/echo", number.to_string()).await;
        (answer.status.as_u16(), answer.text() == number.to_string())
    }))
    .await;
    assert!(answers.iter().all(|answer| *answer == (200, true)), "{answers:?}");
    let served = Connection::open(&edge, "a.test", Wire::H1).await.get("/served").await;
    assert_eq!(served.text(), "60", "each was served once");
    edge.wait_for_log("a request that crossed the GOAWAY", |line| line["retries"].as_u64() > Some(0)).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_connection_carries_as_many_streams_as_its_worker_allows_and_another_the_rest() {
    let mut builder = Builder::new();
    builder.max_concurrent_streams(2);
    let all = Arc::new(tokio::sync::Barrier::new(6));
    let arrived = Arc::new(AtomicUsize::new(0));
    let arriving = Arc::clone(&arrived);
    let origin = Http2Origin::start(builder, move |mut link| {
        let (all, arriving) = (Arc::clone(&all), Arc::clone(&arriving));
        async move {
            while let Some(Ok((_, respond))) = link.accept().await {
                arriving.fetch_add(1, Ordering::Relaxed);
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    // All six are open at the same time, or none is answered.
                    all.wait().await;
                    answer(respond, 200, "ok");
                });
            }
        }
    })
    .await;
    let edge = origin.edge("").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(Connection::open(&edge, "a.test", Wire::H1).await);
    }
    let first = connection.get("/");
    let rest = join_all(others.iter_mut().enumerate().map(async |(at, other)| {
        // One after the other, so that the worker's limit is known to edge.
        let before = async || (arrived.load(Ordering::Relaxed) > at).then_some(());
        until(PATIENCE, "the one before is with the worker", before).await;
        other.get("/").await.status
    }));
    let (first, rest) = tokio::join!(first, rest);
    assert_eq!(first.status, 200);
    assert!(rest.iter().all(|status| *status == 200));
    assert_eq!(origin.accepted(), 3);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_resets_its_stream_and_leaves_the_others_alone() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Http2Origin::answering(move |(request, mut respond): Asked| {
        let report = report.clone();
        async move {
            if request.uri().path() == "/" {
                return answer(respond, 200, "ok");
            }
            let head = Response::builder().body(()).unwrap();
            let mut body = None;
            if request.uri().path() == "/begun" {
                body = Some(respond.send_response(head, false).unwrap());
                body.as_mut().unwrap().send_data(Bytes::from_static(b"begun"), false).unwrap();
            }
            let reason = match &mut body {
                Some(body) => std::future::poll_fn(|cx| body.poll_reset(cx)).await,
                None => std::future::poll_fn(|cx| respond.poll_reset(cx)).await,
            };
            report.send(reason.expect("a reset")).expect("the test listens");
        }
    })
    .await;
    let edge = origin.edge("").await;
    for wire in Wire::BOTH {
        for path in ["/silent", "/begun"] {
            let mut connection = Connection::open(&edge, "a.test", wire).await;
            let request = connection.request("GET", path).body(empty()).unwrap();
            if path == "/begun" {
                let mut body = connection.send(request).await.unwrap().into_body();
                assert_eq!(next_chunk(&mut body).await.unwrap().unwrap(), "begun");
                drop((body, connection));
            } else {
                let asked = tokio::time::timeout(Duration::from_millis(300), connection.send(request)).await;
                assert!(asked.is_err(), "nobody answers");
                drop(connection);
            }
            let reason = within(PATIENCE, "the reset", seen.recv()).await.expect("a reset");
            assert_eq!(reason, Reason::CANCEL, "{path} {wire:?}");
        }
    }
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.text(), "ok");
    assert_eq!(origin.accepted(), 1);
    edge.stop().await;
}

#[tokio::test]
async fn an_answer_whose_end_comes_after_its_head_is_no_cancelled_one() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let next = Arc::new(Notify::new());
    let origin = Http2Origin::answering(move |(request, mut respond): Asked| {
        let (report, next) = (report.clone(), Arc::clone(&next));
        async move {
            let status = match request.uri().path() {
                "/next" => {
                    next.notify_one();
                    return answer(respond, 200, "ok");
                }
                "/none" => 204,
                "/same" => 304,
                _ => 200,
            };
            let head = Response::builder().status(status).header("content-length", "0").body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            // What edge says of the stream comes before the next request.
            next.notified().await;
            let is_reset = std::future::poll_fn(|cx| Poll::Ready(body.poll_reset(cx).is_ready())).await;
            report.send(is_reset).expect("the test listens");
            let _ = body.send_data(Bytes::new(), true);
        }
    })
    .await;
    let edge = origin.edge("").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for (method, path) in [("GET", "/none"), ("GET", "/same"), ("GET", "/empty"), ("HEAD", "/")] {
            let request = connection.request(method, path).body(empty()).unwrap();
            connection.exchange(request).await.unwrap();
            assert_eq!(connection.get("/next").await.text(), "ok");
            let is_reset = within(PATIENCE, "the first is over", seen.recv()).await;
            assert_eq!(is_reset, Some(false), "{method} {path} {wire:?}");
        }
    }
    assert_eq!(origin.accepted(), 1);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_own_stream_only() {
    const ALL: usize = 32 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let origin = Http2Origin::answering(move |(request, mut respond): Asked| {
        let count = Arc::clone(&count);
        async move {
            if request.uri().path() == "/" {
                return answer(respond, 200, "ok");
            }
            let mut body = respond.send_response(Response::new(()), false).unwrap();
            let mut left = ALL;
            while left > 0 {
                body.reserve_capacity(left.min(1 << 16));
                let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { return };
                let piece = room.min(left);
                left -= piece;
                count.fetch_add(piece, Ordering::Relaxed);
                body.send_data(Bytes::from(vec![7; piece]), left == 0).unwrap();
            }
        }
    })
    .await;
    let edge = origin.edge("").await;
    let mut slow = Vec::new();
    for _ in 0..6 {
        let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
        let request = connection.request("GET", "/large").body(empty()).unwrap();
        slow.push((connection.send(request).await.unwrap().into_body(), connection));
    }
    let mut before = usize::MAX;
    let held = until(PATIENCE, "all are held back", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = written.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now).then_some(now)
    })
    .await;
    assert!(held < 6 * ALL / 2, "{held} bytes were taken for clients that read none");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.text(), "ok");
    assert_eq!(origin.accepted(), 1, "it is the same connection");
    let (mut body, _connection) = slow.pop().unwrap();
    let mut read = 0;
    while let Some(data) = next_chunk(&mut body).await.unwrap() {
        read += data.len();
    }
    assert_eq!(read, ALL);
    drop(slow);
    edge.stop().await;
}

#[tokio::test]
async fn a_server_that_speaks_no_http2_is_a_bad_gateway() {
    let origin = Origin::mirror().await;
    let app = format!("domains: [a.test]\n{}\nprotocol: h2c", origin.upstream());
    let edge = Setup::new().app("a", &app).start().await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 502);
    edge.stop().await;
}
