//! HTTP/2 to workers: shared connections, what becomes of their streams, and what of those that a worker does not take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use h2::server::{Builder, Connection as Server, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use hyper::body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{
    Connection, PATIENCE, Wire, by_frames, connect, empty, full, next_chunk, raw, shared_websocket, websocket,
};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{self as frames, End, H2};
use crate::support::origin::Origin;
use crate::support::{python, within};

type Link = Server<TcpStream, Bytes>;
type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A server of HTTP/2 whose every stream the test decides.
struct Http2Origin {
    address: std::net::SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Http2Origin {
    /// Runs `serve` for each connection.
    async fn start<F, Fut>(builder: Builder, serve: F) -> Self
    where
        F: Fn(Link) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let link = builder.handshake(stream).await.expect("edge speaks HTTP/2");
                tokio::spawn(serve(link));
            }
        });
        Self { address, accepted, accepting }
    }

    /// Answers each stream in a task of its own.
    async fn answering<F, Fut>(answer: F) -> Self
    where
        F: Fn(Asked) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::start(Builder::new(), move |mut link| {
            let answer = answer.clone();
            async move {
                while let Some(Ok(asked)) = link.accept().await {
                    tokio::spawn(answer(asked));
                }
            }
        })
        .await
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    async fn edge(&self, top: &str) -> Edge {
        let app = format!("domains: [a.test]\nupstream: http://{}\nprotocol: h2c", self.address);
        Setup::new().top(&format!("threads: 1\n{top}")).app("a", &app).start().await
    }
}

impl Drop for Http2Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers with `status` and `text`.
fn answer(mut respond: SendResponse<Bytes>, status: u16, text: impl Into<Bytes>) {
    let head = Response::builder().status(status).body(()).unwrap();
    // Whoever is gone is none of the test's business.
    if let Ok(mut body) = respond.send_response(head, false) {
        let _ = body.send_data(text.into(), true);
    }
}

/// All of a request's body, and its trailers.
async fn read(body: &mut RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    (all, body.trailers().await.unwrap_or_default())
}

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
    let origin = Http2Origin::start(builder, move |mut link| {
        let all = Arc::clone(&all);
        async move {
            while let Some(Ok((_, respond))) = link.accept().await {
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
        tokio::time::sleep(Duration::from_millis(100 * (at as u64 + 1))).await;
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
    let held = crate::support::until(PATIENCE, "all are held back", async || {
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
async fn a_worker_that_is_late_stops_or_breaks_its_answer_is_told_apart() {
    let half_seen = Arc::new(Notify::new());
    let go_on = Arc::clone(&half_seen);
    let origin = Http2Origin::answering(move |(request, mut respond): Asked| {
        let go_on = Arc::clone(&go_on);
        async move {
            let path = request.uri().path();
            if path == "/never" {
                return std::future::pending().await;
            }
            if path == "/hints" {
                for _ in 0..20 {
                    let hints = Response::builder().status(103).body(()).unwrap();
                    let _ = respond.send_informational(hints);
                }
                return answer(respond, 200, "ok");
            }
            let with_fields = || (0..300).fold(Response::builder(), |head, _| head.header("a", "b"));
            if path == "/switch" || path == "/hint" {
                let early =
                    if path == "/hint" { with_fields().status(103) } else { Response::builder().status(101) };
                respond.send_informational(early.body(()).unwrap()).unwrap();
                return answer(respond, 200, "ok");
            }
            let head = if path == "/fields" { with_fields() } else { Response::builder() };
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            let _ = body.send_data(Bytes::from_static(b"half"), false);
            match path {
                "/stops" | "/fields" => std::future::pending().await,
                _ => {
                    go_on.notified().await;
                    body.send_reset(Reason::INTERNAL_ERROR);
                }
            }
        }
    })
    .await;
    let edge = origin.edge("timeouts: {first_byte: 1s, upstream_idle: 1s}").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for (path, status) in
            [("/never", 504), ("/hints", 502), ("/hint", 502), ("/switch", 502), ("/fields", 502)]
        {
            assert_eq!(connection.get(path).await.status, status, "{path} {wire:?}");
        }
        for path in ["/stops", "/breaks"] {
            let mut connection = Connection::open(&edge, "a.test", wire).await;
            let request = connection.request("GET", path).body(empty()).unwrap();
            let mut body = connection.send(request).await.unwrap().into_body();
            assert_eq!(next_chunk(&mut body).await.unwrap().unwrap(), "half");
            if path == "/breaks" {
                half_seen.notify_one();
            }
            next_chunk(&mut body).await.expect_err("it is seen to be cut");
        }
    }
    let line = edge.wait_for_access("/breaks").await;
    assert!(line["error"].as_str().is_some_and(|error| error.contains("reset its answer")), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_is_given_up_though_no_client_waits_it_out_and_a_slow_worker_keeps_its_own()
 {
    const LEAVES: Duration = Duration::from_millis(1200);
    /// Whether a client that leaves soon is answered.
    async fn is_answered(edge: &Edge, path: &str) -> bool {
        let mut client = Connection::open(edge, "a.test", Wire::H1).await;
        tokio::time::timeout(LEAVES, client.get(path)).await.is_ok_and(|answer| answer.status == 200)
    }
    // A connection is not read any more once it is asked for this.
    let wedged = Http2Origin::start(Builder::new(), |mut link| async move {
        while let Some(Ok((request, respond))) = link.accept().await {
            if request.uri().path() == "/wedge" {
                return std::future::pending().await;
            }
            answer(respond, 200, "ok");
        }
    })
    .await;
    let slow = Http2Origin::answering(|(request, respond): Asked| async move {
        if request.uri().path() == "/never" {
            return std::future::pending().await;
        }
        answer(respond, 200, "ok");
    })
    .await;
    let (wedged_edge, slow_edge) = (wedged.edge("").await, slow.edge("").await);
    let gives_up = async {
        assert!(is_answered(&wedged_edge, "/").await);
        assert!(!is_answered(&wedged_edge, "/wedge").await);
        while !is_answered(&wedged_edge, "/").await {}
        assert_eq!(wedged.accepted(), 2);
    };
    let keeps = async {
        for _ in 0..5 {
            assert!(!is_answered(&slow_edge, "/never").await);
        }
        assert!(is_answered(&slow_edge, "/").await);
        assert_eq!(slow.accepted(), 1);
    };
    tokio::join!(within(PATIENCE, "the connection is given up", gives_up), keeps);
    wedged_edge.stop().await;
    slow_edge.stop().await;
}

#[tokio::test]
async fn a_connection_that_was_idle_for_long_is_closed_and_the_next_request_has_another() {
    let (report, mut ended) = mpsc::unbounded_channel();
    let origin = Http2Origin::start(Builder::new(), move |mut link| {
        let report = report.clone();
        async move {
            while let Some(Ok((_, respond))) = link.accept().await {
                answer(respond, 200, "ok");
            }
            report.send(()).expect("the test listens");
        }
    })
    .await;
    let edge = origin.edge("timeouts: {pool_idle: 1s}").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    for accepted in 1..=2 {
        assert_eq!(connection.get("/").await.text(), "ok");
        assert_eq!(origin.accepted(), accepted);
        within(PATIENCE, "edge closes the connection", ended.recv()).await.expect("an end");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_call_of_grpc_may_be_slow_and_silent_both_ways_and_another_body_may_not() {
    let origin = Http2Origin::answering(async |(request, mut respond): Asked| {
        let mut body = request.into_body();
        let mut back = respond.send_response(Response::new(()), false).unwrap();
        while let Some(Ok(data)) = body.data().await {
            body.flow_control().release_capacity(data.len()).unwrap();
            if back.send_data(data, false).is_err() {
                return;
            }
        }
        let _ = back.send_data(Bytes::new(), true);
    })
    .await;
    let edge = origin.edge("timeouts: {body: 1s, first_byte: 1s, upstream_idle: 1s}").await;
    for (kind, whole) in [("application/grpc+proto", true), ("application/grpcx", false)] {
        let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
        let (frames, body) = by_frames();
        let request = connection.request("POST", "/").header("content-type", kind).body(body).unwrap();
        let mut back = connection.send(request).await.unwrap().into_body();
        // Slower than `body_rate`, and then silent for longer than `body`.
        let mut echoed = 0;
        for pause in [700, 700, 700, 2500] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            // It may be over already.
            let _ = frames.send(Frame::data(Bytes::from_static(b"hello")));
            match next_chunk(&mut back).await {
                Ok(Some(_)) => echoed += 1,
                Ok(None) | Err(_) => break,
            }
        }
        assert_eq!(echoed == 4, whole, "{kind}: {echoed} were echoed");
        drop(frames);
        if whole {
            while let Some(last) = next_chunk(&mut back).await.unwrap() {
                assert!(last.is_empty(), "{last:?}");
            }
        }
    }
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

/// Agrees to a WebSocket, says what it was asked, and echoes bytes.
async fn echo((request, mut respond): Asked) {
    let (head, mut body) = request.into_parts();
    if head.method == "GET" || head.uri.path() == "/declined" {
        return answer(respond, 403, "no");
    }
    let protocol = head.extensions.get::<h2::ext::Protocol>().map_or("none", |protocol| protocol.as_str());
    let asked = format!("{} {protocol} {}", head.method, head.headers.contains_key("sec-websocket-key"));
    let mut agreed = Response::builder().header("x-asked", asked);
    if let Some(wanted) = head.headers.get("sec-websocket-protocol") {
        agreed = agreed.header("sec-websocket-protocol", wanted);
    }
    let mut back = respond.send_response(agreed.body(()).unwrap(), false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        if !data.is_empty() {
            back.send_data(unmasked(&data), false).unwrap();
        }
    }
    // Whoever asked may have left before the end.
    drop(back.send_data(Bytes::new(), true));
}

/// A client's one small frame as a server sends it.
fn unmasked(frame: &[u8]) -> Bytes {
    let (head, rest) = frame.split_at(2);
    let (mask, data) = rest.split_at(4);
    let data = data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [head[0], head[1] & 0x7f].into_iter().chain(data).collect()
}

#[tokio::test]
async fn a_worker_that_takes_websockets_gets_those_of_all_clients_and_another_gets_none() {
    let mut builder = Builder::new();
    builder.enable_connect_protocol();
    let origin = Http2Origin::start(builder, |mut link| async move {
        while let Some(Ok(asked)) = link.accept().await {
            tokio::spawn(echo(asked));
        }
    })
    .await;
    let (asked, chat) = ("CONNECT websocket false".parse().unwrap(), "chat".parse().unwrap());
    let edge = origin.edge("").await;
    // The first on a fresh connection to the worker, which has said nothing yet.
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    echoes(&mut socket).await;
    drop(socket);
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 403);
    for _ in 0..2 {
        let request = connect(&connection, "/ws").header("sec-websocket-protocol", "chat");
        let (mut socket, headers) = shared_websocket(&mut connection, request).await;
        assert_eq!((&headers["x-asked"], &headers["sec-websocket-protocol"]), (&asked, &chat));
        echoes(&mut socket).await;
    }
    let request = connect(&connection, "/declined").body(empty()).unwrap();
    assert_eq!(connection.exchange(request).await.unwrap().status, 403);
    assert_eq!(origin.accepted(), 1);
    edge.stop().await;

    let origin = Http2Origin::answering(echo).await;
    let edge = origin.edge("").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 403);
    let request = connect(&connection, "/ws").body(empty()).unwrap();
    assert_eq!(connection.exchange(request).await.unwrap().status, 501);
    let mut client = raw(&edge, "a.test").await;
    client
        .write(
            "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    assert!(client.read_to("\r\n\r\n").await.starts_with("HTTP/1.1 501 "));
    edge.stop().await;
}

async fn echoes<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) {
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        let back = within(PATIENCE, "an echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(back, Message::text(text));
    }
}

/// The fields of a CONNECT to a WebSocket.
fn asks_for_websocket(path: &str) -> Vec<u8> {
    let (method, protocol, scheme) =
        ((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"));
    let fields = [
        method,
        protocol,
        scheme,
        (":authority", "a.test"),
        (":path", path),
        ("sec-websocket-version", "13"),
    ];
    frames::block(&fields.map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

#[tokio::test]
async fn what_a_client_said_last_reaches_the_worker_though_the_client_is_gone() {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut builder = Builder::new();
    builder.enable_connect_protocol();
    let origin = Http2Origin::start(builder, move |mut link| {
        let heard = heard.clone();
        async move {
            while let Some(Ok((request, mut respond))) = link.accept().await {
                let heard = heard.clone();
                tokio::spawn(async move {
                    let _open = respond.send_response(Response::new(()), false).unwrap();
                    let (data, _) = read(&mut request.into_body()).await;
                    heard.send(data).unwrap();
                });
            }
        }
    })
    .await;
    let edge = origin.edge("").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    client.send(frames::headers(1, false, &asks_for_websocket("/ws"))).await;
    assert_eq!(client.end_of(1).await, End::Status(200));
    let said = b"\x81\x83\0\0\0\0bye";
    let gone =
        [frames::frame(frames::DATA, 0, 1, said), frames::frame(frames::RST_STREAM, 0, 1, &[0, 0, 0, 2])];
    client.send(gone.concat()).await;
    assert_eq!(within(PATIENCE, "what was said", hearing.recv()).await.unwrap(), said);
    edge.stop().await;
}

#[tokio::test]
async fn a_websocket_that_ends_with_its_head_was_never_open() {
    let mut builder = Builder::new();
    builder.enable_connect_protocol();
    let origin = Http2Origin::start(builder, |mut link| async move {
        while let Some(Ok((_, mut respond))) = link.accept().await {
            let head = Response::builder().status(204).body(()).unwrap();
            respond.send_response(head, true).unwrap();
        }
    })
    .await;
    let edge = origin.edge("").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    client.send(frames::headers(1, false, &asks_for_websocket("/ws"))).await;
    assert_eq!(client.end_of(1).await, End::Status(502));
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_whose_settings_are_late_is_waited_for_also_by_who_comes_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (pinged, late) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let app =
        format!("domains: [a.test]\nupstream: http://{}\nprotocol: h2c", listener.local_addr().unwrap());
    let (seen, settle) = (Arc::clone(&pinged), Arc::clone(&late));
    let origin = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut begun, ping) = ([0; 256], frames::frame(frames::PING, 0, 0, b""));
        // The head of a PING, but for its length.
        while memchr::memmem::find(&begun, &[&[8][..], &ping[3..]].concat()).is_none_or(|at| at <= 24) {
            stream.peek(&mut begun).await.unwrap();
            tokio::task::yield_now().await;
        }
        seen.notify_one();
        settle.notified().await;
        let mut link = Builder::new().enable_connect_protocol().handshake(stream).await.unwrap();
        while let Some(Ok(asked)) = link.accept().await {
            tokio::spawn(echo(asked));
        }
    });
    let edge = Setup::new().top("threads: 1\ntimeouts: {connect: 20s}").app("a", &app).start().await;
    let mut first = H2::open(&edge, "a.test", &[]).await;
    first.send(frames::headers(1, false, &asks_for_websocket("/first"))).await;
    within(PATIENCE, "the worker is asked", pinged.notified()).await;
    drop(first);
    assert_eq!(edge.wait_for_access("/first").await["status"], 499);
    let mut second = H2::open(&edge, "a.test", &[]).await;
    second.send(frames::headers(1, false, &asks_for_websocket("/second"))).await;
    second.send(frames::headers(3, true, &frames::get("a.test", "/%00", &[]))).await;
    assert_eq!(second.end_of(3).await, End::Status(400), "the one before it is on its way");
    late.notify_one();
    assert_eq!(second.end_of(1).await, End::Status(200));
    origin.abort();
    edge.stop().await;
}
