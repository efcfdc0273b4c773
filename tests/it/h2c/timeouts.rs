//! Workers of HTTP/2 that are late, silent or idle.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Builder;
use http::Response;
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc};

use super::origin::{Asked, Http2Origin, answer};
use crate::support::client::{Connection, PATIENCE, Wire, by_frames, empty, next_chunk};
use crate::support::edge::Edge;
use crate::support::within;

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
