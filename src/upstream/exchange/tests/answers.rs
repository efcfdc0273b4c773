//! What a worker may say, and how it ends.

use super::ahead::until;
use super::*;
use crate::worker::unread;

#[tokio::test]
async fn a_clean_end_keeps_the_connection_for_the_next_request() {
    for text in [
        OK,
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        "HTTP/1.1 103 X\r\nlink: y\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let rig = Rig::new();
        let worker = async {
            let mut peer = rig.accept().await;
            for _ in 0..3 {
                peer.answer(text).await;
            }
            peer
        };
        let client = async {
            for _ in 0..3 {
                assert_eq!(rig.get().await.expect("whole").to_bytes(), "ok");
                assert_eq!((rig.reach.idle.len(), rig.slot.in_flight()), (1, 0));
            }
        };
        rig.run(async { tokio::join!(client, worker) }).await;
    }
}

#[tokio::test]
async fn answers_after_which_nothing_is_sure_end_the_connection() {
    for (text, body) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "ok",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "ok"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", "ok"),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok"),
        ("HTTP/1.1 200 OK\r\n\r\nok until close", "ok until close"),
        ("HTTP/1.1 204 No Content\r\n\r\nstray", ""),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\nstray", ""),
    ] {
        let rig = Rig::new();
        assert_eq!(rig.get_answered(text).await.expect(text).to_bytes(), body, "{text:?}");
        assert!(rig.reach.idle.is_empty(), "{text:?}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_break_off() {
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
    ] {
        let broken = Rig::new().get_answered(text).await.expect_err(text);
        assert!(matches!(broken, ResponseBodyError::Truncated(None)), "{broken:?}");
    }
    let broken =
        Rig::new().get_answered("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n").await;
    assert!(matches!(broken, Err(ResponseBodyError::BadFraming(_))));
}

#[tokio::test]
async fn a_head_waits_for_the_body_it_announces_but_not_for_long() {
    let length = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    // A head without a length may stand for minutes before there is something to say.
    for (head, body, held) in [(length, "ok", true), (chunked, "2\r\nok\r\n0\r\n\r\n", false)] {
        let rig = Rig::new();
        let read = async |peer: &mut Peer, text| {
            peer.say(text).await;
            until(|| unread::of_socket(&peer.0).expect("a socket") == 0).await;
        };
        let prompt = async {
            let mut peer = rig.accept().await;
            peer.read_to("\r\n\r\n").await;
            read(&mut peer, head).await;
            peer.say(body).await;
            peer
        };
        let (response, mut peer) = rig.run(async { tokio::join!(rig.response(Method::GET), prompt) }).await;
        let response = response.expect("a head");
        assert_eq!(response.body().is_whole(), held, "{head}");
        assert_eq!(rig.run(response.into_body().collect()).await.expect("whole").to_bytes(), "ok");

        let tardy = async {
            peer.read_to("\r\n\r\n").await;
            read(&mut peer, head).await;
        };
        let both = async { tokio::join!(rig.response(Method::GET), tardy) };
        let (response, ()) = if held {
            rig.run(both).await
        } else {
            // Without the clock of deadlines, which would end any hold.
            tokio::time::timeout(LONG, both).await.expect("at once")
        };
        peer.say(body).await;
        let collected = rig.run(response.expect("a head").into_body().collect()).await;
        assert_eq!(collected.expect("whole").to_bytes(), "ok");
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_something_in_between_is_waited_for_anew() {
    let mut rig = Rig::new();
    rig.reach.timeouts.first_byte = Duration::from_secs(5);
    let worker = async {
        let mut peer = rig.accept().await;
        peer.read_to("\r\n\r\n").await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            peer.say("HTTP/1.1 102 Processing\r\n\r\n").await;
        }
        peer.say(OK).await;
    };
    let (answer, ()) = rig.run(async { tokio::join!(rig.response(Method::GET), worker) }).await;
    assert!(answer.is_ok(), "{:?}", answer.err());
}

#[tokio::test]
async fn a_worker_that_ends_between_head_and_body_has_not_answered() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
    let rig = Rig::new();
    let worker = async { rig.accept().await.answer(head).await };
    let (answer, ()) = rig.run(async { tokio::join!(rig.response(Method::GET), worker) }).await;
    assert!(matches!(answer, Err(SendError::Bodiless { cause: None })));
    assert_eq!(rig.slot.in_flight(), 0);
}

#[tokio::test]
async fn trailers_follow_the_body() {
    let text = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n";
    let rig = Rig::new();
    let collected = rig.get_answered(text).await.expect("whole");
    assert_eq!(collected.trailers().expect("trailers")["grpc-status"], "0");
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.read_to("\r\n\r\n").await;
        for byte in
            "HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\nok".split_inclusive("")
        {
            peer.say(byte).await;
            tokio::task::yield_now().await;
        }
        peer
    };
    let (collected, _peer) = rig.run(async { tokio::join!(rig.get(), worker) }).await;
    assert_eq!(collected.expect("whole").to_bytes(), "ok");
    assert_eq!(rig.reach.idle.len(), 1);
}

#[tokio::test]
async fn head_has_a_length_and_no_body() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await;
        peer
    };
    let (response, _peer) = rig.run(async { tokio::join!(rig.response(Method::HEAD), worker) }).await;
    let response = response.expect("a head");
    assert_eq!(response.headers()["content-length"], "5");
    assert!(response.body().is_end_stream());
    assert_eq!(rig.reach.idle.len(), 1, "over before anybody polled the body");
}

#[tokio::test]
async fn an_answer_is_whole_when_the_worker_is_done_with_it() {
    for (text, whole) in [
        (OK, true),
        ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", false),
    ] {
        let rig = Rig::new();
        let worker = async {
            let mut peer = rig.accept().await;
            peer.answer(text).await;
            peer
        };
        let (response, _peer) = rig.run(async { tokio::join!(rig.response(Method::GET), worker) }).await;
        let response = response.expect("a head");
        assert_eq!((response.body().is_whole(), rig.slot.in_flight() == 0), (whole, whole), "{text}");
    }
}

#[tokio::test]
async fn interim_answers_are_skipped_but_not_without_end() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let text = interim.repeat(10) + OK;
    assert_eq!(Rig::new().get_answered(&text).await.expect("whole").to_bytes(), "ok");
    let text = interim.repeat(11) + OK;
    let rig = Rig::new();
    let worker = async { rig.accept().await.answer(&text).await };
    let (answer, ()) = rig.run(async { tokio::join!(rig.response(Method::GET), worker) }).await;
    assert!(matches!(answer, Err(SendError::BadResponse(_))));
}

#[tokio::test]
async fn a_worker_that_ends_after_an_interim_answer_has_not_answered() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer(OK).await;
        peer.answer("HTTP/1.1 103 Early Hints\r\n\r\n").await;
    };
    let both = async { (rig.response(Method::GET).await, rig.response(Method::GET).await) };
    let ((first, second), ()) = rig.run(async { tokio::join!(both, worker) }).await;
    assert!(first.is_ok());
    let second = second.map(drop);
    // It had begun: it is not asked once more on another connection, as if it had merely closed this one.
    assert!(matches!(second, Err(SendError::Closed { reused: false, sent: true, .. })), "{second:?}");
}

#[tokio::test]
async fn what_is_not_http_is_told_from_a_worker_that_went_away() {
    for (text, bad) in
        [("", false), ("garbage", true), ("HTTP/1.1 200 OK\r\na: b", true), ("HTTP/1.1 101 X\r\n\r\n", true)]
    {
        let rig = Rig::new();
        let worker = async { rig.accept().await.answer(text).await };
        let (answer, ()) = rig.run(async { tokio::join!(rig.response(Method::GET), worker) }).await;
        match answer {
            Err(SendError::BadResponse(_)) => assert!(bad, "{text:?}"),
            Err(SendError::Closed { reused: false, sent: true, .. }) => assert!(!bad, "{text:?}"),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("{text:?}"),
        }
        assert_eq!(rig.slot.in_flight(), 0);
    }
}
