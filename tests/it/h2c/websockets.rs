//! WebSockets on streams of HTTP/2 to workers that take them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use h2::server::Builder;
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::origin::{Asked, Http2Origin, answer, read};
use crate::support::client::{Connection, PATIENCE, Wire, connect, empty, raw, shared_websocket, websocket};
use crate::support::edge::Setup;
use crate::support::h2::{self as frames, End, H2};
use crate::support::within;

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
