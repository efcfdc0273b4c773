//! WebSockets and other protocols a server switches to.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{PATIENCE, raw, websocket};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::{until, within};

/// RFC 6455 §1.2's own example.
const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn websocket_messages_pass_both_ways_whatever_their_size() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let sent = Message::binary(vec![7; size]);
        socket.send(sent.clone()).await.unwrap();
        let back = within(PATIENCE, "the echo", socket.next()).await.expect("open").unwrap();
        assert_eq!(back.len(), size);
        assert!(back == sent, "{size} bytes changed");
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = within(PATIENCE, "the close", socket.next()).await {}
    edge.stop().await;
}

#[tokio::test]
async fn a_websocket_counts_as_in_flight_while_it_is_open() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    let socket = websocket(&edge, "a.test", "/ws").await;
    let in_flight = async |wanted: u64| {
        until(PATIENCE, &format!("{wanted} in flight"), async || {
            let status = edge.status().await;
            (status["apps"]["a"]["workers"][0]["in_flight"].as_u64() == Some(wanted)).then_some(())
        })
        .await;
    };
    in_flight(1).await;
    drop(socket);
    in_flight(0).await;
    edge.stop().await;
}

#[tokio::test]
async fn bytes_sent_before_the_switch_arrive_and_each_end_hears_the_others_close() {
    let origin = Origin::start(async |mut peer| {
        let Some(head) = peer.head().await else { return };
        assert_eq!(head.header("upgrade"), Some("websocket"));
        assert!(head.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
        )
        .await;
        let heard = peer.body(4).await.expect("four bytes");
        peer.write(heard.to_ascii_uppercase()).await;
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut client = raw(&edge, "a.test").await;
    // The client's first bytes come together with its request.
    client.write(&format!("{HANDSHAKE}echo")).await;
    let head = client.read_to("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(client.read_to("ECHO").await, "helloECHO");
    assert_eq!(client.read_to_close().await, "");
    edge.stop().await;
}

#[tokio::test]
async fn a_server_may_decline_to_switch() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut client = raw(&edge, "a.test").await;
    client.write("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n").await;
    assert!(client.read_to("\r\n").await.starts_with("HTTP/1.1 200 "));
    edge.stop().await;
}

#[tokio::test]
async fn an_idle_tunnel_is_ended() {
    let edge = Setup::new()
        .top("timeouts:\n  tunnel: 1s")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    within(Duration::from_secs(6), "the idle tunnel ends", async {
        while let Some(Ok(_)) = socket.next().await {}
    })
    .await;
    edge.stop().await;
}
