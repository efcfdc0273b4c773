//! D: clients that are slow, idle, or too many. Every wait has an end, and who is in time does not notice who is not.

use std::time::Duration;

use super::{Row, with};
use crate::support::client::{PATIENCE, Raw, raw, tls};
use crate::support::edge::Setup;
use crate::support::h2::{DATA, End, FLOW, H2, HEADERS, RST_STREAM, frame, get, headers, window_update};
use crate::support::origin::Origin;
use crate::support::until;

pub(super) const ROWS: &[Row] = &[
    Row::new("D01", "a connection without a byte, a byte of TLS, half a preface", "closed", &[
        "tests/it/catalogue/patience.rs::d01_whoever_begins_and_stops_is_closed",
        "tests/it/refusals.rs::a_silent_handshake_is_ended",
        "src/listen/watch.rs::a_new_connection_must_send_a_head_in_time",
    ]),
    Row::new("D02", "a head a line at a time", "408, close", &[
        "tests/it/catalogue/patience.rs::d02_a_head_that_is_dripped_is_408_however_steady",
        "tests/it/http1.rs::d02_a_head_that_does_not_end_is_408_with_a_line_in_the_log",
    ]),
    Row::new("D03", "a body a byte at a time, or none", "408", &[
        "tests/it/limits.rs::d03_a_dripped_body_is_408_however_steady",
        "src/upstream/request_body.rs::d03_a_client_is_waited_for_as_long_as_it_is_not_too_slow_on_average",
        "tests/it/catalogue/http2.rs::f05_a_stream_whose_body_does_not_come_is_408",
    ]),
    Row::new("D04", "an answer not taken, a window of nothing, windows of a byte", "cut, the worker free at once", &[
        "tests/it/hostile.rs::a_client_that_takes_nothing_of_an_answer_does_not_keep_its_worker",
        "tests/it/proxying.rs::an_answer_the_client_does_not_take_is_ended_and_its_worker_free",
        "tests/it/catalogue/patience.rs::d04_windows_of_a_byte_do_not_keep_a_worker",
    ]),
    Row::new("D05", "more connections than one client may have", "refused, others not affected", &[
        "tests/it/limits.rs::d05_a_client_has_so_many_connections_and_others_are_not_affected",
        "src/proxy/clients.rs::d05_a_client_is_an_ipv4_address_or_an_ipv6_network",
    ]),
    Row::new("D06", "idle connections of many clients", "served; the oldest idle make room", &[
        "tests/it/limits.rs::d06_idle_connections_make_room_for_new_ones",
        "src/deadline.rs::d06_the_oldest_idle_make_room_and_nobody_else",
    ]),
    Row::new("D07", "handshakes that are garbage or left", "so many at once, each of them timed", &[
        "tests/it/limits.rs::d07_handshakes_that_stall_hold_up_nobody_for_long",
        "src/listen/handshakes.rs::d07_a_stalled_handshake_makes_room_after_a_second_and_not_before",
    ]),
    Row::new("D08", "no descriptor left", "a rest, a line a second, itself again", &[
        "tests/it/limits.rs::d08_without_descriptors_edge_rests_and_is_itself_again_once_there_are_some",
    ]),
    Row::new("D09", "a body longer than it may be", "413 before it is read, or at the byte", &[
        "tests/it/refusals.rs::a_request_body_over_the_limit_is_refused_with_413",
        "src/proxy/target.rs::d09_a_body_announced_as_too_long_is_refused_before_it_is_read",
    ]),
    Row::new("D10", "a silent WebSocket, a client that vanished", "closed after its time-out", &[
        "tests/it/upgrades.rs::an_idle_tunnel_is_ended",
        "src/proxy/relay/tests.rs::d10_silence_ends_a_tunnel_and_traffic_keeps_it",
        "src/listen/socket.rs::d10_a_client_that_vanished_is_noticed",
    ]),
    Row::new("D11", "every worker is down", "a bounded queue, 503 with Retry-After", &[
        "tests/it/queueing.rs::beyond_the_queue_a_request_is_refused_at_once_and_those_in_it_are_answered",
        "tests/it/refusals.rs::an_app_without_a_ready_worker_is_503_with_retry_after",
        "src/proxy/attempt.rs::h03_a_request_is_repeated_only_where_it_cannot_be_executed_twice",
    ])
    .deviating("tries are bounded for each request, three at most and one after a death, not by a share of all requests"),
];

#[tokio::test]
async fn d01_whoever_begins_and_stops_is_closed() {
    let origin = Origin::mirror().await;
    let yaml = format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream());
    let edge = Setup::new().top("timeouts: {handshake: 1s, headers: 1s}").app("a", &yaml).start().await;
    let trust = edge.trust().await;
    let mut plain = Raw::new(tokio::net::TcpStream::connect(edge.http).await.unwrap());
    let mut encrypted = Raw::new(tokio::net::TcpStream::connect(edge.https).await.unwrap());
    encrypted.write([0x16]).await;
    let mut dripped = Raw::new(tokio::net::TcpStream::connect(edge.https).await.unwrap());
    let mut silent = raw(&edge, "a.test").await;
    let offering = trust.offering(&["h2"]);
    let mut preface = Raw::new(tls(edge.https, "a.test", offering.clone()).await.unwrap());
    preface.write("PRI * HTTP/2.0\r\n\r\nS").await;
    let mut silent2 = Raw::new(tls(edge.https, "a.test", offering).await.unwrap());
    let mut unended = H2::open(&edge, "a.test", &[]).await;
    unended.send(frame(HEADERS, 0, 1, &get("a.test", "/", &[]))).await;
    let drip = async {
        // A record of TLS that grows for as long as it may.
        for byte in [0x16, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1)) {
            dripped.write([byte]).await;
            if tokio::time::timeout(Duration::from_millis(200), dripped.read_to_close()).await.is_ok() {
                return;
            }
        }
    };
    let heard = tokio::join!(
        plain.read_to_close(),
        encrypted.read_to_close(),
        silent.read_to_close(),
        preface.read_to_close(),
        silent2.read_to_close(),
        unended.end(),
        drip,
    );
    assert_eq!((heard.0, heard.1, heard.2), (String::new(), String::new(), String::new()));
    assert_eq!(origin.accepted(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn d02_a_head_that_is_dripped_is_408_however_steady() {
    let origin = Origin::mirror().await;
    let yaml = format!("domains: [a.test]\n{}", origin.upstream());
    let edge = Setup::new().top("timeouts: {headers: 1s}").app("a", &yaml).start().await;
    let mut client = raw(&edge, "a.test").await;
    client.write(with("GET /", "")).await;
    let answer = until(PATIENCE, "an end", async || {
        client.write("X: y\r\n").await;
        tokio::time::timeout(Duration::from_millis(100), client.read_to("\r\n")).await.ok()
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(origin.accepted(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn d04_windows_of_a_byte_do_not_keep_a_worker() {
    let edge = Setup::new()
        .top("timeouts: {write: 1s}")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut client = H2::open(&edge, "a.test", &[(FLOW, 1)]).await;
    client.send(headers(1, true, &get("a.test", "/bytes/50000000", &[]))).await;
    assert_eq!(client.end_of(1).await, End::Status(200));
    let mut taken = 0;
    let reset = loop {
        let Some(frame) = client.next().await else { break false };
        match frame.kind {
            DATA => {
                taken += frame.payload.len();
                tokio::time::sleep(Duration::from_millis(20)).await;
                client.send(window_update(1, 1)).await;
            }
            RST_STREAM => break true,
            _ => {}
        }
    };
    assert!(reset && taken < 1_000, "the stream alone, after {taken} bytes");
    until(PATIENCE, "the worker is free", async || {
        (edge.status().await["apps"]["a"]["workers"][0]["in_flight"] == 0).then_some(())
    })
    .await;
    edge.stop().await;
}
