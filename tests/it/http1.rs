//! HTTP/1.1 with clients, byte by byte: who is answered what, in which order, and when the connection ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Connection, PATIENCE, Raw, Wire, raw};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::Origin;
use crate::support::within;

/// An edge whose app `a.test` is `origin`, over TLS and plain.
async fn before(origin: &Origin) -> Edge {
    let yaml = format!("domains: [a.test]\nhttp: serve\nmax_body: 1MB\n{}", origin.upstream());
    Setup::new().app("a", &yaml).start().await
}

async fn plain(edge: &Edge) -> Raw<TcpStream> {
    Raw::new(TcpStream::connect(edge.http).await.expect("edge listens"))
}

/// Answers each request with its path as the body.
async fn echo_paths() -> Origin {
    Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            if let Some(length) = head.header("content-length") {
                peer.body(length.parse().expect("a length")).await;
            }
            let path = head.request_line().split(' ').nth(1).unwrap_or_default().to_owned();
            peer.answer("200 OK", "", &path).await;
        }
    })
    .await
}

#[tokio::test]
async fn a20_pipelined_requests_are_answered_in_order_and_asked_one_at_a_time() {
    let origin = echo_paths().await;
    let edge = before(&origin).await;
    let mut client = raw(&edge, "a.test").await;
    let requests: String = (0..100)
        .map(|n| match n % 2 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: a.test\r\n\r\n"),
            _ => format!("POST /{n} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nGET /"),
        })
        .collect();
    client.write(&requests).await;
    for n in 0..100 {
        let answer = client.read_to(&format!("\r\n\r\n/{n}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{n}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{n}: {answer}");
    }
    assert_eq!(origin.accepted(), 1, "one after the other");
    edge.stop().await;
}

#[tokio::test]
async fn a17_100_is_said_once_the_body_is_wanted_and_not_otherwise() {
    let origin = echo_paths().await;
    let edge = before(&origin).await;
    let head = "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";

    let mut client = raw(&edge, "a.test").await;
    client.write(head).await;
    assert_eq!(client.read_to("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.write("body").await;
    let answer = client.read_to("/p").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // Who does not wait is not told to go on.
    client.write(format!("{head}body")).await;
    let answer = client.read_to("/p").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    // A final answer in its place leaves open whether the body comes: nothing may follow.
    let mut client = raw(&edge, "a.test").await;
    let too_long = head.replace("Content-Length: 4", "Content-Length: 4000000");
    client.write(format!("{too_long}GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
    let answer = client.read_to_close().await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");

    let mut client = raw(&edge, "a.test").await;
    client.write(head.replace("100-continue", "tea")).await;
    assert!(client.read_to_close().await.starts_with("HTTP/1.1 417 "));
    edge.stop().await;
}

#[tokio::test]
async fn a09_a10_a11_a_body_that_is_not_well_framed_is_400_and_no_fault_of_the_worker() {
    let origin = Origin::start(async |mut peer| {
        peer.head().await;
        peer.closed().await;
    })
    .await;
    let edge = before(&origin).await;
    for (id, body) in [
        ("A09 hex", "0x5\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A09 sign", "+5\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A09 underscore", "5_\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A09 space", " 5\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A09 empty", "\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A09 long", "00000000000000005\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A10 line feed", "5;a\nb\r\nhello\r\n0\r\n\r\n".to_owned()),
        ("A10 long", format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(5000))),
        ("A11 after size", "5\nhello\r\n0\r\n\r\n".to_owned()),
        ("A11 after data", "5\r\nhello\n0\r\n\r\n".to_owned()),
        ("A11 longer", "5\r\nhello!\r\n0\r\n\r\n".to_owned()),
    ] {
        let mut client = raw(&edge, "a.test").await;
        let path = format!("/{}", id.replace(' ', "-"));
        let head = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.write(format!("{head}{body}GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
        let answer = client.read_to_close().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{id}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{id}: {answer}");
        let line = edge.wait_for_access(&path).await;
        let cause = line["error"].as_str().unwrap_or_default();
        assert!(cause.starts_with("the request body ended early or was malformed: "), "{id}: {line}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn h08_what_is_left_of_a_small_body_after_an_early_answer_does_not_end_the_connection() {
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        }
    })
    .await;
    let edge = before(&origin).await;
    let mut client = raw(&edge, "a.test").await;
    for _ in 0..3 {
        client.write("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello").await;
        let answer = client.read_to("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    }
    // Where the rest is not here, the connection ends after the answer, and no byte of the rest is a request.
    client.write("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 500\r\n\r\nhello").await;
    let answer = client.read_to("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    client.write("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(client.read_to_close().await, "");
    edge.stop().await;
}

#[tokio::test]
async fn http_1_0_is_answered_as_it_understands() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            if head.request_line().contains("/chunks") {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n").await;
            } else {
                peer.answer("200 OK", "", "known").await;
            }
        }
    })
    .await;
    let edge = before(&origin).await;
    let mut client = plain(&edge).await;
    client.write("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = client.read_to("known").await;
    assert!(answer.contains("connection: keep-alive\r\n"), "{answer}");
    client.write("GET /chunks HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = client.read_to_close().await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\nab"), "{answer}");
    assert!(!answer.contains("chunked"), "{answer}");

    let mut client = plain(&edge).await;
    client.write("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    assert!(client.read_to_close().await.ends_with("known"));
    edge.stop().await;
}

#[tokio::test]
async fn h04_an_answer_that_ends_with_its_connection_is_reset_where_it_broke_off() {
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").await;
        }
    })
    .await;
    let edge = before(&origin).await;
    let mut client = TcpStream::connect(edge.http).await.expect("edge listens");
    client.write_all(b"GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await.expect("written");
    let mut text = Vec::new();
    let read = within(PATIENCE, "the end", client.read_to_end(&mut text)).await;
    assert_eq!(read.expect_err("no clean end").kind(), std::io::ErrorKind::ConnectionReset);
    edge.stop().await;
}

#[tokio::test]
async fn h04_an_answer_that_ends_with_its_connection_is_reset_where_its_client_stalls() {
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            // More than all buffers on the way hold.
            for _ in 0..64 {
                peer.write(format!("100000\r\n{}\r\n", "x".repeat(0x10_0000))).await;
            }
        }
    })
    .await;
    let yaml = format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream());
    let edge = Setup::new().top("timeouts: {write: 1s}").app("a", &yaml).start().await;
    let mut client = TcpStream::connect(edge.http).await.expect("edge listens");
    client.write_all(b"GET /endless HTTP/1.0\r\nHost: a.test\r\n\r\n").await.expect("written");
    edge.wait_for_access("/endless").await;
    let mut text = Vec::new();
    let read = within(PATIENCE, "the end", client.read_to_end(&mut text)).await;
    assert_eq!(read.expect_err("no clean end").kind(), std::io::ErrorKind::ConnectionReset);
    edge.stop().await;
}

#[tokio::test]
async fn d02_a_head_that_does_not_end_is_408_with_a_line_in_the_log() {
    let origin = Origin::mirror().await;
    let yaml = format!("domains: [a.test]\n{}", origin.upstream());
    let edge = Setup::new().top("timeouts: {headers: 1s}").app("a", &yaml).start().await;
    let mut client = raw(&edge, "a.test").await;
    client.write("GET /slow HTTP/1.1\r\nHost: a.test\r\nX: ").await;
    let answer = client.read_to_close().await;
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    let line = edge.wait_for_access("*").await;
    assert_eq!((&line["status"], &line["method"]), (&408.into(), &"-".into()), "{line}");

    // Who says nothing is told nothing.
    let mut silent = raw(&edge, "a.test").await;
    assert_eq!(silent.read_to_close().await, "");
    edge.stop().await;
}

#[tokio::test]
async fn a_head_may_come_a_byte_at_a_time() {
    let origin = echo_paths().await;
    let edge = before(&origin).await;
    let mut client = raw(&edge, "a.test").await;
    for head in ["GET /drip HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET /drip HTTP/1.1\nHost: a.test\n\n"] {
        for byte in head.bytes() {
            client.write([byte]).await;
        }
        assert!(client.read_to("/drip").await.starts_with("HTTP/1.1 200 "));
    }
    edge.stop().await;
}

#[tokio::test]
async fn g1u_what_follows_a_declined_handshake_is_the_next_request() {
    let origin = echo_paths().await;
    let edge = before(&origin).await;
    let mut client = raw(&edge, "a.test").await;
    let handshake = "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write(format!("{handshake}GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n")).await;
    let answer = client.read_to("/ws").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(client.read_to("/next").await.starts_with("HTTP/1.1 200 "));
    edge.stop().await;
}

#[tokio::test]
async fn a19_what_is_not_http_1_is_told_so_or_left() {
    let origin = Origin::mirror().await;
    let edge = before(&origin).await;
    for (said, heard) in [
        ("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "HTTP/1.1 400 "),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 400 "),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0", ""),
    ] {
        let mut client = plain(&edge).await;
        client.write(said).await;
        let answer = client.read_to_close().await;
        assert!(answer.starts_with(heard) && heard.is_empty() == answer.is_empty(), "{said:?}: {answer}");
    }
    assert_eq!(origin.accepted(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_while_an_endless_answer_is_silent_is_noticed() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let gone = gone.clone();
        async move {
            if peer.head().await.is_some() {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n").await;
                peer.closed().await;
                gone.send(()).expect("the test listens");
            }
        }
    })
    .await;
    let edge = before(&origin).await;
    let mut client = raw(&edge, "a.test").await;
    client.write("GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.read_to("ab\r\n").await;
    drop(client);
    within(Duration::from_secs(5), "the server hears of it", left.recv()).await.expect("told");
    edge.stop().await;
}

#[tokio::test]
async fn what_a_worker_requires_an_upgrade_to_is_named_to_clients_of_http_1_1_alone() {
    let origin = Origin::start(async |mut peer| {
        while peer.head().await.is_some() {
            peer.answer("426 Upgrade Required", "Connection: upgrade\r\nUpgrade: websocket\r\n", "no").await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for _ in 0..2 {
            let answer = connection.get("/").await;
            let named = (answer.header("upgrade"), answer.header("connection"));
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (426, "no"), "{wire:?}");
            assert_eq!(named, if wire == Wire::H1 { ("websocket", "upgrade") } else { ("", "") }, "{wire:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn an_absolute_target_may_have_a_query_and_no_path() {
    let origin = Origin::mirror().await;
    let app = format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream());
    let edge =
        Setup::new().app("a", &app).app("b", "domains: [b.test]\nupstream: http://127.0.0.1:1").start().await;
    let mut client = Raw::new(TcpStream::connect(edge.http).await.unwrap());
    client.write("GET http://a.test?b=c HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(client.read_to("\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    assert!(client.read_to("\r\n\r\n").await.starts_with("GET /?b=c HTTP/1.1\r\n"));
    client.write("GET http://b.test?b=c HTTP/1.1\r\nHost: b.test\r\n\r\n").await;
    let redirect = client.read_to("\r\n\r\n").await;
    assert!(redirect.contains("/?b=c\r\n") && redirect.starts_with("HTTP/1.1 308 "), "{redirect}");
    edge.stop().await;
}
