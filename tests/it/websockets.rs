//! WebSockets over HTTP/2 (RFC 8441): many on one connection, each a handshake of HTTP/1.1 for its worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::ext::Protocol;
use nix::sys::signal::Signal;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::client::{
    Answer, Connection, PATIENCE, SharedSocket, Wire, connect, empty, shared_websocket,
};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::{Head, Origin};
use crate::support::{python, until, within};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 1\n";

/// A connection on which edge's settings have arrived.
async fn opened(edge: &Edge) -> Connection {
    let mut connection = Connection::open(edge, "a.test", Wire::H2).await;
    connection.get("/").await;
    connection
}

async fn open_socket(connection: &mut Connection) -> SharedSocket {
    let request = connect(connection, "/ws");
    shared_websocket(connection, request).await.0
}

async fn in_flight(edge: &Edge, wanted: u64) {
    until(PATIENCE, &format!("{wanted} in flight"), async || {
        let status = edge.status().await;
        (status["apps"]["a"]["workers"][0]["in_flight"].as_u64() == Some(wanted)).then_some(())
    })
    .await;
}

/// The close code a socket ends with.
async fn closed_with(socket: &mut SharedSocket) -> Option<CloseCode> {
    within(PATIENCE, "the WebSocket ends", async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    })
    .await
}

fn switch(head: &Head, fields: &str) -> String {
    let accept = derive_accept_key(head.header("sec-websocket-key").expect("a key").as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Accept: {accept}\r\n{fields}\r\n"
    )
}

#[tokio::test]
async fn several_share_a_connection_with_each_other_and_with_requests() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = opened(&edge).await;
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(open_socket(&mut connection).await);
    }
    in_flight(&edge, 3).await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        for socket in &mut sockets {
            let sent = Message::binary(vec![7; size]);
            socket.send(sent.clone()).await.unwrap();
            let back = within(PATIENCE, "the echo", socket.next()).await.expect("open").unwrap();
            assert!(back == sent, "{size} bytes came back as {}", back.len());
        }
        assert_eq!(connection.get("/").await.status, 200);
    }
    let mut first = sockets.remove(0);
    first.close(None).await.unwrap();
    closed_with(&mut first).await;
    drop(first);
    in_flight(&edge, 2).await;
    let line = edge.wait_for_access("/ws").await;
    assert_eq!(
        (&line["method"], &line["status"], &line["proto"], &line["error"]),
        (&"CONNECT".into(), &200.into(), &"HTTP/2".into(), &serde_json::Value::Null)
    );
    assert!(
        line["bytes_in"].as_u64() > Some(1 << 20) && line["bytes_out"].as_u64() > Some(1 << 20),
        "{line}"
    );
    drop(sockets);
    in_flight(&edge, 0).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_sees_a_handshake_of_http_1_and_the_client_what_the_worker_chose() {
    let origin = Origin::start(async |mut peer| {
        let Some(head) = peer.head().await else { return };
        if head.request_line().starts_with("GET / ") {
            return peer.answer("200 OK", "", "").await;
        }
        assert_eq!(head.request_line(), "GET /chat?a=b HTTP/1.1");
        assert!(head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        assert_eq!(head.header("upgrade"), Some("websocket"));
        assert_eq!(head.header("sec-websocket-version"), Some("13"));
        assert_eq!(head.header("sec-websocket-protocol"), Some("chat, talk"));
        assert_eq!(head.header("sec-websocket-extensions"), Some("permessage-deflate"));
        assert_eq!(head.header("origin"), Some("https://a.test"));
        assert_eq!(head.header("x-forwarded-proto"), Some("https"));
        assert_eq!(head.header("content-length"), None);
        peer.write(switch(
            &head,
            "Sec-WebSocket-Protocol: talk\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
        ))
        .await;
        // What it says first, and its end.
        peer.write(b"\x82\x05hello\x88\x02\x03\xe8").await;
        peer.closed().await;
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = opened(&edge).await;
    let request = connect(&connection, "/chat?a=b")
        .header("sec-websocket-protocol", "chat, talk")
        .header("sec-websocket-extensions", "permessage-deflate")
        .header("origin", "https://a.test");
    let (mut socket, headers) = shared_websocket(&mut connection, request).await;
    assert_eq!(headers["sec-websocket-protocol"], "talk");
    assert_eq!(headers["sec-websocket-extensions"], "permessage-deflate");
    for name in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!headers.contains_key(name), "{name}: {headers:?}");
    }
    let first = within(PATIENCE, "a message", socket.next()).await.expect("open").unwrap();
    assert_eq!(first, Message::binary(b"hello".to_vec()));
    assert_eq!(closed_with(&mut socket).await, Some(CloseCode::Normal));
    drop(socket);
    edge.stop().await;
}

#[tokio::test]
async fn f10_what_is_no_websocket_is_refused_and_what_a_worker_declines_is_passed_on() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            match head.request_line() {
                "GET /forged HTTP/1.1" => {
                    let forged =
                        switch(&head, "").replace("Sec-WebSocket-Accept: ", "Sec-WebSocket-Accept: A");
                    peer.write(forged).await;
                    peer.closed().await;
                }
                "GET /no HTTP/1.1" => peer.answer("403 Forbidden", "", "not you").await,
                _ => peer.answer("200 OK", "", "a page").await,
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = opened(&edge).await;
    let other = |connection: &Connection| {
        let mut request = connect(connection, "/ws");
        request.extensions_mut().expect("a request").insert(Protocol::from_static("connect-udp"));
        request
    };
    let old = connection.request("CONNECT", "/ws").extension(Protocol::from_static("websocket"));
    let plain = http::Request::builder().method("CONNECT").uri(connection.authority().to_owned());
    for (what, request, status) in [
        ("another protocol", other(&connection), 501),
        ("no version", old, 426),
        ("a plain CONNECT", plain, 405),
        ("declined", connect(&connection, "/no"), 403),
        ("a page instead", connect(&connection, "/page"), 502),
        ("a wrong Sec-WebSocket-Accept", connect(&connection, "/forged"), 502),
    ] {
        let response = connection.send(request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), status, "{what}");
        let answer = Answer::read(response).await.unwrap();
        assert!(status != 403 || answer.text() == "not you", "{what}");
    }
    assert_eq!(connection.get("/").await.status, 200, "the connection lives on");
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_resets_its_stream_is_gone_for_the_worker_and_a_worker_that_dies_for_the_client() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = opened(&edge).await;
    let socket = open_socket(&mut connection).await;
    let mut other = open_socket(&mut connection).await;
    in_flight(&edge, 2).await;
    drop(socket);
    in_flight(&edge, 1).await;
    let worker = edge.workers("a").await[0];
    crate::support::processes::signal(worker, Signal::SIGKILL);
    assert_eq!(closed_with(&mut other).await, Some(CloseCode::Restart));
    until(PATIENCE, "another worker serves", async || {
        (connection.get("/").await.status == 200).then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn each_is_told_why_it_ends_when_its_worker_is_replaced_and_when_edge_stops() {
    let mut edge = Setup::new().app("a", &format!("{HELLO}drain_timeout: 1s\n")).start().await;
    edge.wait_until_up("a").await;
    let mut connection = opened(&edge).await;
    let mut socket = open_socket(&mut connection).await;
    in_flight(&edge, 1).await;
    edge.done(&["restart", "a"]).await;
    assert_eq!(closed_with(&mut socket).await, Some(CloseCode::Restart));
    let mut sockets = [open_socket(&mut connection).await, open_socket(&mut connection).await];
    edge.signal(Signal::SIGTERM);
    for socket in &mut sockets {
        assert_eq!(closed_with(socket).await, Some(CloseCode::Away));
    }
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(0), "they were told, and nothing else was open");
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn a_silent_one_is_ended_and_the_connection_lives_on() {
    let edge = Setup::new().top("timeouts:\n  tunnel: 1s").app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = opened(&edge).await;
    let mut socket = open_socket(&mut connection).await;
    assert_eq!(closed_with(&mut socket).await, Some(CloseCode::Away));
    assert_eq!(connection.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_worker_and_nobody_else() {
    const ALL: usize = 64 << 20;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let origin = Origin::start(move |mut peer| {
        let count = Arc::clone(&count);
        async move {
            let Some(head) = peer.head().await else { return };
            if head.header("upgrade").is_none() {
                return peer.answer("200 OK", "", "").await;
            }
            peer.write(switch(&head, "")).await;
            let mut frame = b"\x82\x7f\0\0\0\0\0\x10\0\0".to_vec();
            frame.resize(10 + (1 << 20), 7);
            for _ in 0..ALL >> 20 {
                peer.write(&frame).await;
                count.fetch_add(1 << 20, Ordering::Relaxed);
            }
            peer.write(b"\x88\x02\x03\xe8").await;
            peer.closed().await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = opened(&edge).await;
    let mut socket = open_socket(&mut connection).await;
    // It stands still once the windows are full.
    let mut before = usize::MAX;
    let held = until(PATIENCE, "the worker is held back", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = written.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now).then_some(now)
    })
    .await;
    assert!(held < ALL / 2, "{held} bytes were taken for a client that reads none");
    let mut other = opened(&edge).await;
    assert_eq!(other.get("/").await.status, 200);
    let mut read = 0;
    while let Some(Ok(Message::Binary(data))) = within(PATIENCE, "a message", socket.next()).await {
        read += data.len();
    }
    assert_eq!(read, ALL);
    drop(socket);
    edge.stop().await;
}

#[tokio::test]
async fn the_h2_library_and_the_servers_people_run() {
    let root = python::root();
    for command in ["uvicorn main:app", "hypercorn main:app", "daphne main:app"] {
        let edge = python::setup().app("a", &python::app(command, "workers: 1")).start().await;
        edge.wait_until_up("a").await;
        edge.trust().await;
        let output = tokio::process::Command::new(root.join("target/test-venv/bin/python"))
            .arg(root.join("tests/apps/websocket_h2.py"))
            .args([&edge.https.port().to_string(), "a.test"])
            .arg(edge.dir().join("storage/internal/root.pem"))
            .args(["/ws", "5"])
            .kill_on_drop(true)
            .output();
        let output = within(PATIENCE * 2, "the client ends", output).await.expect("python runs");
        let (out, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(out.trim(), "ok", "{command}: {errors}");
        edge.stop().await;
    }
}
