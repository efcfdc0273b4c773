//! Connections and requests are bounded, by client and in total; who is within the bounds does not notice who is not.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::{Connection, PATIENCE, Raw, Wire, empty, next_chunk, raw, tcp_from, tls_over};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::Origin;
use crate::support::{until, within};

/// An edge with one app, `a.test`, which also answers plain HTTP, and these limits.
async fn edge(origin: &Origin, top: &str) -> Edge {
    let app = format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream());
    Setup::new().top(top).app("a", &app).start().await
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// Whether edge answers on a new connection from `from`.
async fn is_served(from: IpAddr, to: SocketAddr) -> bool {
    let Ok(mut stream) = tcp_from(from, to).await else { return false };
    let asked = stream.write_all(GET.as_bytes()).await;
    let mut answer = [0; 12];
    let read = within(PATIENCE, "an answer or an end", stream.read_exact(&mut answer)).await;
    asked.is_ok() && read.is_ok() && answer == *b"HTTP/1.1 200"
}

fn client(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}

#[tokio::test]
async fn d05_a_client_has_so_many_connections_and_others_are_not_affected() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {connections_per_client: 3}").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut held_one = Raw::new(tcp_from(client(2), edge.http).await.unwrap());
        held_one.write(GET).await;
        assert!(held_one.read_to("\r\n").await.starts_with("HTTP/1.1 200 "));
        held.push(held_one);
    }
    assert!(!is_served(client(2), edge.http).await, "a fourth");
    assert!(is_served(client(3), edge.http).await, "another client");
    edge.wait_for_log("a line that names the limit", |line| line["limit"] == "limits.connections_per_client")
        .await;
    held.pop();
    until(PATIENCE, "a place is free again", async || is_served(client(2), edge.http).await.then_some(()))
        .await;
    edge.stop().await;
}

#[tokio::test]
async fn d06_idle_connections_make_room_for_new_ones() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {connections: 16, connections_per_client: 0}\nthreads: 1").await;
    let mut idle = Vec::new();
    for _ in 0..14 {
        let mut connection = Raw::new(tcp_from(client(2), edge.http).await.unwrap());
        connection.write(GET).await;
        connection.read_to("\r\n\r\n").await;
        idle.push(connection);
    }
    // Each that comes beyond seven eighths sends the oldest away.
    let mut later = Vec::new();
    for _ in 0..40 {
        let mut connection = until(PATIENCE, "a place", async || {
            let mut connection = tcp_from(client(3), edge.http).await.ok()?;
            connection.write_all(GET.as_bytes()).await.ok()?;
            let mut answer = [0; 12];
            connection.read_exact(&mut answer).await.ok()?;
            Some(Raw::new(connection))
        })
        .await;
        connection.read_to("\r\n\r\n").await;
        later.push(connection);
    }
    for mut connection in idle {
        connection.read_to_close().await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn d07_handshakes_that_stall_hold_up_nobody_for_long() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {handshakes: 4}\nthreads: 1").await;
    let mut established = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut begins = Raw::new(TcpStream::connect(edge.https).await.unwrap());
        begins.write([0x16, 3, 1]).await;
        stalled.push(begins);
    }
    let begun = Instant::now();
    let fresh = Connection::open(&edge, "a.test", Wire::H1);
    assert_eq!(established.get("/").await.status, 200);
    assert_eq!(fresh.await.get("/").await.status, 200);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "less than the ten seconds of `timeouts.handshake`: {took:?}");
    edge.stop().await;
}

#[tokio::test]
async fn d07_who_says_nothing_has_no_turn_for_a_handshake() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {handshakes: 1}\ntimeouts: {handshake: 60s}\nthreads: 1").await;
    let mut silent = Vec::new();
    // If each had a turn, this many would be more than a client waits for.
    for _ in 0..60 {
        silent.push(TcpStream::connect(edge.https).await.unwrap());
    }
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    // One that speaks after all is served like any other.
    let late = silent.pop().unwrap();
    let mut late = tls_over(late, "a.test", edge.trust().await.offering(&["http/1.1"])).await.unwrap();
    late.write_all(GET.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    late.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    edge.stop().await;
}

#[tokio::test]
async fn f12_a_connection_ends_gracefully_after_its_requests_and_its_age() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {requests_per_connection: 3}").await;
    let mut h2 = Connection::open(&edge, "a.test", Wire::H2).await;
    for _ in 0..3 {
        assert_eq!(h2.get("/").await.status, 200);
    }
    until(PATIENCE, "no fourth is taken", async || h2.try_get("/").await.is_err().then_some(())).await;
    let mut h1 = raw(&edge, "a.test").await;
    h1.write(GET.repeat(5)).await;
    let answers = h1.read_to_close().await;
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 3, "{answers}");
    assert_eq!(answers.to_lowercase().matches("connection: close").count(), 1, "{answers}");
    edge.stop().await;

    let edge = self::edge(&origin, "timeouts: {connection_age: 1s, write: 1s}").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        until(PATIENCE, "its age ends it", async || connection.try_get("/").await.is_err().then_some(()))
            .await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn f04_requests_beyond_a_clients_share_wait_for_a_second_and_are_503() {
    let (release, gate) = tokio::sync::watch::channel(false);
    let origin = Origin::start(move |mut peer| {
        let mut gate = gate.clone();
        async move {
            while peer.head().await.is_some() {
                let _ = gate.wait_for(|open| *open).await;
                peer.answer("200 OK", "", "").await;
            }
        }
    })
    .await;
    let edge = edge(&origin, "limits: {in_flight_per_client: 2}").await;
    let mut connections = Vec::new();
    for _ in 0..3 {
        connections.push(Connection::open(&edge, "a.test", Wire::H2).await);
    }
    let mut third = connections.pop().unwrap();
    let held: Vec<_> = connections
        .into_iter()
        .map(|mut connection| tokio::spawn(async move { connection.get("/").await.status }))
        .collect();
    until(PATIENCE, "two are at the server", async || (origin.accepted() == 2).then_some(())).await;
    let begun = Instant::now();
    let answer = third.get("/crowded").await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(5));
    // Another client is served meanwhile, as far as edge is concerned.
    let trust = edge.trust().await;
    let tcp = tcp_from(client(9), edge.https).await.unwrap();
    let stream = tls_over(tcp, "a.test", trust.offering(&["h2"])).await.unwrap();
    let authority = format!("a.test:{}", edge.https.port());
    let mut other = Connection::over(stream, "https", &authority, Wire::H2).await.unwrap();
    let other = tokio::spawn(async move { other.get("/").await.status });
    until(PATIENCE, "a third is at the server", async || (origin.accepted() == 3).then_some(())).await;
    release.send(true).unwrap();
    for status in held.into_iter().chain([other]) {
        assert_eq!(status.await.unwrap(), 200);
    }
    assert_eq!(third.get("/").await.status, 200, "there is room again");
    edge.stop().await;
}

#[tokio::test]
async fn f04_event_streams_leave_a_clients_share_to_its_requests_until_they_are_too_many() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            if head.request_line().contains("/page") {
                peer.answer("200 OK", "", "page").await;
                continue;
            }
            let kind = "Content-Type: text/event-stream; charset=utf-8\r\n";
            peer.write(format!("HTTP/1.1 200 OK\r\n{kind}Transfer-Encoding: chunked\r\n\r\n")).await;
            peer.write("9\r\ndata: 1\n\n\r\n").await;
            peer.closed().await;
        }
    })
    .await;
    let edge = edge(&origin, "limits: {in_flight_per_client: 2, connections_per_client: 4}").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let open = async |connection: &mut Connection, method| {
        let request = connection.request(method, "/events").body(empty()).unwrap();
        let mut response = connection.send(request).await.unwrap();
        assert_eq!(next_chunk(response.body_mut()).await.unwrap().unwrap(), "data: 1\n\n");
        response
    };
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(open(&mut connection, "GET").await);
        assert_eq!(connection.get("/page").await.status, 200);
    }
    // What a POST streams may cost its worker as much as any request, and of what a GET streams there are enough.
    let posted = open(&mut connection, "POST").await;
    assert_eq!(connection.get("/page").await.status, 200);
    let fifth = open(&mut connection, "GET").await;
    assert_eq!(connection.get("/page").await.status, 503);
    drop(posted);
    let served = async || (connection.get("/page").await.status == 200).then_some(());
    until(PATIENCE, "the end of one is noticed", served).await;
    drop((streams, fifth));
    edge.stop().await;
}

#[tokio::test]
async fn d03_a_dripped_body_is_408_however_steady() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "timeouts: {body: 1s}").await;
    let mut slow = raw(&edge, "a.test").await;
    slow.write("POST /drip HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\n").await;
    let answer = until(PATIENCE, "an end", async || {
        slow.write("x").await;
        tokio::time::timeout(Duration::from_millis(200), slow.read_to("\r\n")).await.ok()
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    edge.stop().await;
}

#[tokio::test]
async fn h09_a_dripped_head_is_504_however_steady() {
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\n").await;
            loop {
                peer.write("x: y\r\n").await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
    .await;
    let edge = edge(&origin, "timeouts: {first_byte: 1s}").await;
    let begun = Instant::now();
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/drip").await.status, 504);
    assert!(begun.elapsed() < Duration::from_secs(8), "before it has too many fields");
    edge.stop().await;
}

#[tokio::test]
async fn h07_h10_what_a_worker_may_answer_is_configured() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            let (interim, fields) = match head.request_line() {
                line if line.contains("interim") => (3, 0),
                line if line.contains("fields") => (0, 10),
                _ => (0, 0),
            };
            peer.write("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim)).await;
            peer.answer("200 OK", &"a: b\r\n".repeat(fields), "").await;
        }
    })
    .await;
    let edge = edge(&origin, "limits: {interim_responses: 2, response_header_fields: 10}").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for (path, status) in [("/", 200), ("/interim", 502), ("/fields", 502)] {
            assert_eq!(connection.get(path).await.status, status, "{path} {wire:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn d08_without_descriptors_edge_rests_and_is_itself_again_once_there_are_some() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "threads: 1").await;
    assert!(is_served(client(2), edge.http).await);
    let pid = rustix::process::Pid::from_raw(i32::try_from(edge.pid()).unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", edge.pid())).unwrap().count() as u64;
    let ours = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = |current| rustix::process::Rlimit { current: Some(current), maximum: ours.maximum };
    let before = rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit(open + 2)).unwrap();
    let mut held = Vec::new();
    for last in 10..40 {
        // Who is refused may hear of it before it is told that it is connected.
        held.push(tcp_from(client(last), edge.http).await);
    }
    let line = edge
        .wait_for_log("the trouble is told", |line| line.to_string().contains("cannot accept connections"))
        .await;
    assert!(line.to_string().contains("refused"), "{line}");
    drop(held);
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, before).unwrap();
    until(PATIENCE, "edge serves again", async || is_served(client(2), edge.http).await.then_some(())).await;
    edge.stop().await;
}

#[tokio::test]
async fn c07_f11_a_head_has_so_many_fields_each_crumb_counted() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin, "limits: {header_fields: 20}").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for (crumbs, status) in [(15, 200), (30, 431)] {
            let mut request = connection.request("GET", "/");
            for _ in 0..crumbs {
                request = request.header("cookie", "a=b");
            }
            let answer = connection.exchange(request.body(empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status, status, "{wire:?}: {crumbs} crumbs");
            if status == 431 && wire == Wire::H1 {
                break;
            }
        }
    }
    edge.stop().await;
}
