//! Fields of heads and trailers, each way: which pass, which stay, and which are edge's own.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc};

use crate::support::client::{Connection, PATIENCE, Wire, by_frames, empty, raw, tcp_from, tls, tls_over};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::within;

#[tokio::test]
async fn fields_for_one_connection_stay_on_it() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            let fields = "Connection: X-Private, keep-alive\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
                          Proxy-Connection: x\r\nX-Public: 1\r\n";
            peer.answer("200 OK", fields, &head.text).await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let request = connection
        .request("GET", "/")
        .header("connection", "keep-alive, x-mine")
        .header("x-mine", "1")
        .header("keep-alive", "timeout=3")
        .header("proxy-connection", "keep-alive")
        .header("te", "gzip")
        .header("x-theirs", "1")
        .body(empty())
        .unwrap();
    let answer = connection.exchange(request).await.unwrap();
    let seen = answer.text().to_ascii_lowercase();
    for gone in ["x-mine", "keep-alive: timeout", "proxy-connection", "te: gzip"] {
        assert!(!seen.contains(gone), "{gone} in {seen}");
    }
    assert!(seen.contains("x-theirs: 1"), "{seen}");
    for gone in ["x-private", "keep-alive", "proxy-connection"] {
        assert!(answer.headers.get(gone).is_none(), "{gone} in {:?}", answer.headers);
    }
    assert_eq!(answer.header("x-public"), "1");
    edge.stop().await;
}

#[tokio::test]
async fn forwarded_fields_are_edges_own() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            let mut lines = Vec::new();
            for name in ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded"]
            {
                lines.push(format!("{name}={}", head.headers(name).join("|")));
            }
            lines.push(format!("x-request-id={}", head.header("x-request-id").unwrap_or_default()));
            peer.answer("200 OK", "", &lines.join("\n")).await;
        }
    })
    .await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream()))
        .start()
        .await;
    let from = [127, 0, 0, 9].into();
    let trust = edge.trust().await;
    for wire in Wire::BOTH {
        let tcp = tcp_from(from, edge.https).await.unwrap();
        let stream = tls_over(tcp, "a.test", trust.offering(&[wire.alpn()])).await.unwrap();
        let authority = format!("a.test:{}", edge.https.port());
        let mut connection = Connection::over(stream, "https", &authority, wire).await.unwrap();
        let request = connection
            .request("GET", "/")
            .header("x-forwarded-for", "6.6.6.6")
            .header("x-forwarded-proto", "gopher")
            .header("x-forwarded-host", "evil.example")
            .header("x-real-ip", "6.6.6.6")
            .header("forwarded", "for=6.6.6.6;proto=gopher")
            .body(empty())
            .unwrap();
        let seen = connection.exchange(request).await.unwrap().text();
        for wanted in [
            "x-forwarded-for=127.0.0.9\n",
            "x-forwarded-proto=https\n",
            &format!("x-forwarded-host={authority}\n"),
            "x-real-ip=127.0.0.9\n",
        ] {
            assert!(seen.contains(wanted), "{wire:?}: {wanted} not in {seen}");
        }
        let forwarded = seen.lines().find(|line| line.starts_with("forwarded=")).unwrap();
        assert!(forwarded.contains("for=127.0.0.9") && forwarded.contains("proto=https"), "{forwarded}");
        assert!(!seen.contains("6.6.6.6") && !seen.contains("gopher") && !seen.contains("evil"), "{seen}");
        assert!(
            seen.lines().any(|line| line.len() > "x-request-id=".len() && line.starts_with("x-request-id="))
        );
    }
    let plain = Connection::plain(&edge, "a.test").await.get("/").await.text();
    assert!(plain.contains("x-forwarded-proto=http\n"), "{plain}");
    edge.stop().await;
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let report = report.clone();
        async move {
            while let Some(head) = peer.head().await {
                assert_eq!((head.header("te"), head.header("connection")), (Some("trailers"), Some("te")));
                while peer.chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
                report.send(peer.trailers().await.unwrap_or_default()).expect("the test listens");
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n").await;
                peer.write("2\r\nok\r\n0\r\nX-Sum: 42\r\n\r\n").await;
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let (frames, body) = by_frames();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-check", "7".parse().unwrap());
        frames.send(Frame::data(Bytes::from_static(b"data"))).unwrap();
        frames.send(Frame::trailers(trailers)).unwrap();
        drop(frames);
        let request = connection
            .request("POST", "/")
            .header("te", "trailers")
            .header("trailer", "x-check")
            .body(body)
            .unwrap();
        let answer = connection.exchange(request).await.unwrap();
        assert_eq!(answer.text(), "ok");
        assert_eq!(answer.trailers.expect("trailers")["x-sum"], "42", "{wire:?}");
        let sent = within(PATIENCE, "the request's trailers", seen.recv()).await.expect("trailers");
        assert_eq!(sent.to_ascii_lowercase().trim(), "x-check: 7", "{wire:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a12_trailers_reach_nobody_who_did_not_ask_for_them_or_whom_they_could_mislead() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let report = report.clone();
        async move {
            while let Some(head) = peer.head().await {
                assert_eq!(head.header("te"), None);
                while peer.chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
                report.send(peer.trailers().await.unwrap_or_default()).expect("the test listens");
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n").await;
                peer.write("X-Sum: 42\r\nSet-Cookie: a=b\r\nContent-Length: 7\r\n\r\n").await;
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let (frames, body) = by_frames();
        let fields =
            [("x-check", "7"), ("x-forwarded-for", "9.9.9.9"), ("host", "b.test"), ("cookie", "a=b")];
        let trailers = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        frames.send(Frame::data(Bytes::from_static(b"data"))).unwrap();
        frames.send(Frame::trailers(trailers.collect())).unwrap();
        drop(frames);
        // Without it this client of HTTP/1.1 sends none.
        let announced = "x-check, x-forwarded-for, host, cookie";
        let request = connection.request("POST", "/").header("trailer", announced).body(body).unwrap();
        let answer = connection.exchange(request).await.unwrap();
        assert_eq!(answer.text(), "ok");
        // HTTP/2 has a place for trailers in every answer, HTTP/1.1 only for clients that say so.
        let names =
            answer.trailers.map(|trailers| trailers.keys().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names, (wire == Wire::H2).then(|| vec!["x-sum".to_owned()]), "{wire:?}");
        let sent = within(PATIENCE, "the request's trailers", seen.recv()).await.expect("trailers");
        assert_eq!(sent.to_ascii_lowercase().trim(), "x-check: 7", "{wire:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn early_hints_reach_clients_at_once_unless_they_are_of_http_1_0() {
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let origin = Origin::start(move |mut peer| {
        let wait = Arc::clone(&wait);
        async move {
            while let Some(head) = peer.head().await {
                peer.write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n")
                    .await;
                peer.write("Connection: x-hop\r\nX-Hop: 1\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n").await;
                if head.request_line().contains("wait") {
                    wait.notified().await;
                }
                peer.answer("200 OK", "", "page").await;
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut client = raw(&edge, "a.test").await;
    for _ in 0..2 {
        client.write("GET /wait HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let hints = client.read_to("\r\n\r\n").await;
        assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n");
        assert_eq!(client.read_to("\r\n\r\n").await, "HTTP/1.1 102 Processing\r\n\r\n");
        go_on.notify_one();
        assert!(client.read_to("page").await.starts_with("HTTP/1.1 200 OK\r\n"));
    }
    client.write("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    assert!(client.read_to_close().await.starts_with("HTTP/1.1 200 OK\r\n"));
    let stream = tls(edge.https, "a.test", edge.trust().await.offering(&["h2"])).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..2 {
        let request = Request::builder().uri("https://a.test/wait").body(()).unwrap();
        let (mut response, _) = sender.send_request(request, true).unwrap();
        for expected in [(103, Some("</a.css>")), (102, None)] {
            let interim = poll_fn(|cx| response.poll_informational(cx));
            let interim = within(PATIENCE, "an interim answer", interim).await.unwrap().unwrap();
            let fields = interim.headers();
            let link = fields.get("link").map(|link| link.to_str().unwrap());
            assert_eq!((interim.status().as_u16(), link), expected);
            assert_eq!(fields.len(), usize::from(link.is_some()), "{fields:?}");
        }
        go_on.notify_one();
        assert_eq!(within(PATIENCE, "the answer", response).await.unwrap().status(), 200);
    }
    drop(sender);
    within(PATIENCE, "the end", connection).await.unwrap().unwrap();
    edge.stop().await;
}
