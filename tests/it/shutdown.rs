//! Stopping: what is open is finished, and nothing is left behind.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::client::{Answer, Connection, PATIENCE, Wire, empty, next_chunk, websocket};
use crate::support::edge::{Edge, Setup};
use crate::support::{full_length, python, until, within};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 2";

async fn in_flight(edge: &Edge) {
    until(PATIENCE, "a request is in flight", async || {
        let status = edge.status().await;
        let workers = status["apps"]["a"]["workers"].as_array()?.clone();
        workers.iter().any(|worker| worker["in_flight"].as_u64() > Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_open_at_sigterm_is_answered_whole() {
    let path = if full_length() { "/slow/5000" } else { "/slow/2000" };
    for wire in Wire::BOTH {
        let edge = Setup::new().app("a", HELLO).start().await;
        edge.wait_until_up("a").await;
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request("GET", path).body(empty()).unwrap();
        let asking = tokio::spawn(async move { connection.exchange(request).await });
        in_flight(&edge).await;
        edge.stop().await;
        let answer = asking.await.unwrap().unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        assert_eq!(answer.status, 200, "{wire:?}");
        assert!(!answer.body.is_empty());
    }
}

#[tokio::test]
async fn new_connections_are_refused_while_open_requests_finish() {
    let mut edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let request = connection.request("GET", "/slow/3000").body(empty()).unwrap();
    let asking = tokio::spawn(async move { connection.exchange(request).await });
    in_flight(&edge).await;
    edge.signal(Signal::SIGTERM);
    let https = edge.https;
    until(Duration::from_secs(2), "connections are refused", async || {
        tokio::net::TcpStream::connect(https).await.err()
    })
    .await;
    let answer = asking.await.unwrap().unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), "close", "the client is told not to ask again here");
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(0));
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn idle_connections_do_not_delay_the_end() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut idle = Vec::new();
    for wire in [Wire::H1, Wire::H2, Wire::H1, Wire::H2] {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        assert_eq!(connection.get("/").await.status, 200);
        idle.push(connection);
    }
    let silent = tokio::net::TcpStream::connect(edge.https).await.unwrap();
    let begun = Instant::now();
    edge.stop().await;
    println!("figure: stopped with idle connections open: {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop((idle, silent));
}

#[tokio::test]
async fn websockets_are_told_at_once_and_hold_up_nothing() {
    for (setup, yaml) in
        [(Setup::new(), HELLO), (python::setup(), &python::app("uvicorn main:app", "workers: 1"))]
    {
        // Longer than the test waits.
        let mut edge = setup.top("drain_timeout: 10m").app("a", yaml).start().await;
        edge.wait_until_up("a").await;
        let mut answered = websocket(&edge, "a.test", "/ws").await;
        let silent = websocket(&edge, "a.test", "/ws").await;
        let begun = Instant::now();
        edge.signal(Signal::SIGTERM);
        let heard = within(PATIENCE, "the WebSocket ends", answered.next()).await;
        let Some(Ok(Message::Close(Some(close)))) = heard else { panic!("{heard:?}") };
        assert_eq!(close.code, CloseCode::Away);
        assert!(within(PATIENCE, "the end of the connection", answered.next()).await.is_none());
        // The other neither reads nor answers.
        assert_eq!(edge.ended(PATIENCE).await.code(), Some(0), "tunnels that were told are no loss");
        let took = begun.elapsed();
        println!("figure: stopped with two WebSockets open, one of them silent: {took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}: nothing but requests is waited for");
        let line = edge.wait_for_access("/ws").await;
        assert_eq!(line["error"], "the WebSocket was open when edge ended");
        edge.assert_nothing_left().await;
        drop(silent);
    }
}

#[tokio::test]
async fn a_websocket_that_stands_still_within_a_frame_is_cut_and_said_to_be() {
    let worker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let yaml = format!("domains: [a.test]\nhttp: serve\nupstream: http://{}", worker.local_addr().unwrap());
    let mut edge = Setup::new().app("a", &yaml).start().await;
    let mut client = tokio::net::TcpStream::connect(edge.http).await.unwrap();
    let handshake = b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    client.write_all(handshake).await.unwrap();
    let (mut worker, _) = within(PATIENCE, "the worker is asked", worker.accept()).await.unwrap();
    read_until(&mut worker, b"\r\n\r\n").await;
    // Two bytes of a frame of five.
    let begun = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x82\x05ab";
    worker.write_all(begun).await.unwrap();
    read_until(&mut client, b"\x82\x05ab").await;
    edge.signal(Signal::SIGTERM);
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(1), "a message was cut");
    let line = edge.wait_for_access("/ws").await;
    assert_eq!(line["error"], "edge ended before the end of the answer");
    let stopped = edge.wait_for_log("the last line", |line| line["msg"] == "stopped").await;
    assert_eq!((&stopped["drained"], &stopped["cut"]), (&false.into(), &"1 of a".into()));
}

async fn read_until(stream: &mut tokio::net::TcpStream, end: &[u8]) {
    let mut read = Vec::new();
    while !read.ends_with(end) {
        let count = within(PATIENCE, "more bytes", stream.read_buf(&mut read)).await.unwrap();
        assert!(count > 0, "ended after {:?}", String::from_utf8_lossy(&read));
    }
}

#[tokio::test]
async fn endless_answers_are_ended_at_the_drain_timeout_and_said_to_be_cut() {
    let mut edge = Setup::new().top("drain_timeout: 1s").app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let request = connection.request("GET", "/events").body(empty()).unwrap();
        let mut events = connection.send(request).await.unwrap().into_body();
        next_chunk(&mut events).await.unwrap().expect("an event");
        open.push(events);
    }
    let begun = Instant::now();
    edge.signal(Signal::SIGTERM);
    for mut events in open {
        while let Ok(Some(_)) = next_chunk(&mut events).await {}
    }
    assert_eq!(edge.ended(Duration::from_secs(10)).await.code(), Some(1), "answers were cut");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(900), "ended before the drain timeout: {took:?}");
    let stopped = edge.wait_for_log("the last line", |line| line["msg"] == "stopped").await;
    assert_eq!((&stopped["drained"], &stopped["cut"]), (&false.into(), &"2 of a".into()));
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn a_second_signal_cuts_open_requests_with_status_1() {
    let mut edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let request = connection.request("GET", "/slow/15000").body(empty()).unwrap();
    let asking = tokio::spawn(async move { Answer::read(connection.send(request).await?).await });
    in_flight(&edge).await;
    edge.signal(Signal::SIGTERM);
    edge.wait_for_log("what it waits for", |line| {
        line["msg"].as_str().is_some_and(|text| {
            text.starts_with("stopping: no new connections; 1 open request has 30s")
                && text.ends_with("told to stop again (Ctrl-C, SIGTERM), edge cuts what is open")
        })
    })
    .await;
    edge.signal(Signal::SIGTERM);
    assert_eq!(edge.ended(Duration::from_secs(8)).await.code(), Some(1));
    assert!(asking.await.unwrap().is_err());
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn sigint_stops_as_sigterm_does() {
    let mut edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    edge.signal(Signal::SIGINT);
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(0));
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn workers_that_ignore_their_stop_signal_are_killed_with_everything_they_started() {
    let yaml = "domains: [a.test]\nworkers: 1\nserver: generic\ntransport: tcp\nstop_grace_period: 1s\n\
                command: sh -c 'trap \"\" TERM; sleep 1000 & edge hello & while true; do wait; done'";
    let edge = Setup::new().app("a", yaml).start().await;
    edge.wait_until_up("a").await;
    let begun = Instant::now();
    edge.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn edge_stops_while_its_workers_are_still_starting() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: sleep 1000\nworkers: 2").start().await;
    let begun = Instant::now();
    edge.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
