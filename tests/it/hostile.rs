//! Clients that mean harm: each costs itself something and nobody else.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::client::{Connection, PATIENCE, Wire, empty, next_chunk, raw};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{
    DATA, END_STREAM, FLOW, GOAWAY, H2, RST_STREAM, frame, get, headers, request, window_update,
};
use crate::support::origin::Origin;
use crate::support::until;

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_does_not_keep_its_worker() {
    let edge = Setup::new()
        .top("timeouts: {write: 1s}")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let path = "/bytes/50000000";
        let request = connection.request("GET", path).body(empty()).unwrap();
        let mut stalled = connection.send(request).await.expect("a head");
        until(Duration::from_secs(10), "the worker is free again", async || {
            let state = edge.status().await["apps"]["a"]["workers"][0]["in_flight"].take();
            (state == 0).then_some(())
        })
        .await;
        if wire == Wire::H2 {
            assert_eq!(connection.get("/json").await.status, 200, "its other streams go on");
        }
        let cut = loop {
            match next_chunk(stalled.body_mut()).await {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        assert!(cut, "{wire:?}: the answer is visibly incomplete");
    }
    edge.stop().await;
}

/// A client of one worker that has asked for more than the system takes for it, has given all windows room, and reads nothing;
/// and since when it has.
async fn unread(top: &str) -> (Edge, H2<TlsStream<TcpStream>>, Instant) {
    let edge =
        Setup::new().top(top).app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    let mut client = H2::open(&edge, "a.test", &[(FLOW, 0x7fff_ffff)]).await;
    let large = headers(1, true, &get("a.test", "/bytes/100000000", &[]));
    let begun = Instant::now();
    client.send([window_update(0, 0x7000_0000), large].concat()).await;
    (edge, client, begun)
}

#[tokio::test]
async fn what_tls_still_has_room_for_is_nothing_that_a_client_of_http2_has_taken() {
    const WRITE: Duration = Duration::from_secs(3);
    let (edge, client, begun) = unread(&format!("timeouts: {{write: {}s}}", WRITE.as_secs())).await;
    let worker = async || edge.status().await["apps"]["a"]["workers"][0].take();
    // All windows have room, so that it is the connection that ends, and the request with it.
    until(2 * WRITE, "the connection ends", async || {
        let worker = worker().await;
        (worker["requests"] == 1 && worker["in_flight"] == 0).then_some(())
    })
    .await;
    let held = begun.elapsed();
    println!(
        "figure: a client of HTTP/2 that reads nothing is held {:.1} s of {WRITE:?}",
        held.as_secs_f64()
    );
    assert!(held >= WRITE, "{held:?}");
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_client_of_many_answers_gets_them_all_but_for_one_that_it_does_not_take() {
    const ANSWERS: u32 = 30;
    const SIZE: usize = 60_000;
    let edge = Setup::new()
        .top("timeouts: {write: 2s}")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    let path = format!("/bytes/{SIZE}");
    // The first is longer than its window, which never grows.
    client.send(headers(1, true, &get("a.test", "/bytes/1000000", &[]))).await;
    client
        .send(
            (0..ANSWERS)
                .flat_map(|n| headers(3 + n * 2, true, &get("a.test", &path, &[])))
                .collect::<Vec<u8>>(),
        )
        .await;
    let (mut got, mut whole, mut given_up) = (0, 0, false);
    let mut owed = 0;
    while whole < ANSWERS || !given_up {
        let frame = client.next().await.expect("the connection goes on");
        match frame.kind {
            DATA => {
                (got, owed) = (got + frame.payload.len(), owed + frame.payload.len());
                whole += u32::from(frame.flags & END_STREAM != 0);
            }
            RST_STREAM => {
                assert_eq!(frame.stream, 1, "{frame:?} after {got} bytes and {whole} answers");
                given_up = true;
            }
            GOAWAY => panic!("{frame:?}"),
            _ => {}
        }
        // A line of 160 KB a second, however many answers are on it.
        if owed >= 16_384 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.send(window_update(0, u32::try_from(owed).unwrap())).await;
            owed = 0;
        }
    }
    assert!(got >= SIZE * ANSWERS as usize, "{got}");
    edge.stop().await;
}

#[tokio::test]
async fn answers_that_did_not_leave_are_told_in_the_log_as_cut() {
    let edge = Setup::new()
        .top("timeouts: {write: 2s}\nlimits: {in_flight_per_client: 0}")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut client = H2::open(&edge, "a.test", &[(FLOW, 0x7fff_ffff)]).await;
    let head = get("a.test", "/bytes/100000", &[]);
    let asked = (0..100).flat_map(|n| headers(1 + n * 2, true, &head));
    client.send(window_update(0, 0x7000_0000).into_iter().chain(asked).collect::<Vec<u8>>()).await;
    // It reads nothing until edge has given up.
    let lines = async || {
        edge.log_objects().into_iter().filter(|line| line["path"] == "/bytes/100000").collect::<Vec<_>>()
    };
    let lines =
        until(PATIENCE, "a line for each", async || Some(lines().await).filter(|lines| lines.len() == 100))
            .await;
    let sent = lines.iter().filter(|line| line["status"] == 200 && line["error"].is_null()).count();
    let mut arrived = 0;
    while let Some(frame) = client.next().await {
        arrived += usize::from(frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    assert!(arrived < 100, "more is sent than the system takes");
    // Those of one turn are told alike: they are a few.
    assert!((arrived.saturating_sub(4)..=arrived).contains(&sent), "{sent} told as sent, {arrived} arrived");
    let cut = "the client was gone before the end of the answer";
    assert!(lines.iter().any(|line| line["status"] == 200 && line["error"] == cut), "{lines:?}");
    edge.stop().await;
}

#[tokio::test]
async fn answers_that_do_not_leave_hold_no_place_of_their_client_and_are_kept_for_the_log_as_many_as_streams()
{
    const STREAMS: usize = 50;
    const BATCH: u32 = 40;
    const BATCHES: u32 = 3;
    let (edge, mut client, _) = unread(&format!(
        "timeouts: {{write: 60s}}\nlimits: {{streams: {STREAMS}, in_flight_per_client: 45}}"
    ))
    .await;
    let worker = async || edge.status().await["apps"]["a"]["workers"][0].take();
    until(PATIENCE, "it is asked for", async || (worker().await["requests"] == 1).then_some(())).await;
    let head = request("HEAD", "a.test", "/json", &[]);
    for batch in 0..BATCHES {
        let streams = || (0..BATCH).map(|n| 3 + (batch * BATCH + n) * 2);
        client.send(streams().flat_map(|stream| headers(stream, true, &head)).collect::<Vec<u8>>()).await;
        let asked = u64::from(1 + (batch + 1) * BATCH);
        until(PATIENCE, "all are answered, none is refused", async || {
            let worker = worker().await;
            (worker["requests"] == asked && worker["in_flight"] == 1).then_some(())
        })
        .await;
        client
            .send(
                streams().flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).collect::<Vec<u8>>(),
            )
            .await;
    }
    let told =
        || edge.log_objects().iter().filter(|line| line["method"] == "HEAD" && line["status"] == 200).count();
    let beyond = (BATCH * BATCHES) as usize - STREAMS;
    until(PATIENCE, "no more of them are kept", async || (told() >= beyond).then_some(())).await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/json").await.status, 200);
    drop(client);
    edge.stop().await;
}

#[tokio::test]
async fn what_follows_a_refused_tunnel_is_not_a_request() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut client = raw(&edge, "a.test").await;
    client
        .write("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\nGET /meant-for-the-tunnel HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await;
    let answers = client.read_to_close().await;
    assert!(answers.starts_with("HTTP/1.1 405 "), "{answers}");
    assert_eq!((answers.matches("HTTP/1.1 ").count(), origin.accepted()), (1, 0), "{answers}");
    edge.stop().await;
}

#[tokio::test]
async fn a_pipe_among_the_stored_certificates_holds_nothing_up() {
    let mut edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    drop(Connection::open(&edge, "a.test", Wire::H1).await);
    let record = edge.dir().join("storage/certs/internal/a.test/meta.json");
    until(Duration::from_secs(10), "the history is kept", async || record.exists().then_some(())).await;
    edge.signal(Signal::SIGTERM);
    edge.ended(Duration::from_secs(20)).await;
    std::fs::remove_file(&record).expect("it was there");
    nix::unistd::mkfifo(&record, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    edge.restart().await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.status, 200);
    edge.stop().await;
}
