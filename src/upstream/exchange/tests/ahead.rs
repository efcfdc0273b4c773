//! Answers that are read ahead of their client, and streams that end with their worker.

use tokio::task::LocalSet;

use super::*;
use crate::scope::Scope;
use crate::upstream::budget::MESSAGE;
use crate::upstream::spool::{SpooledBody, spool};
use crate::worker::unread;

impl Rig {
    /// GETs what `worker` says, read ahead.
    async fn spooled(&self, tasks: &Scope) -> SpooledBody {
        let body = self.response(Method::GET).await.expect("a head").into_body();
        spool(body, &self.reach.budget, tasks).await
    }
}

pub(super) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn answer(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{}", "x".repeat(length))
}

#[tokio::test]
async fn a_worker_is_free_before_its_client_has_read_and_only_what_is_too_long_waits() {
    for (length, free) in [(100, true), (MESSAGE / 2, true), (3 * MESSAGE, false)] {
        let (rig, tasks) = (Rig::new(), Scope::new());
        let worker = async {
            let mut peer = rig.accept().await;
            peer.read_to("\r\n\r\n").await;
            // What edge does not read yet is not taken at once.
            peer.say(&answer(length)).await;
            peer
        };
        let client = async {
            let body = rig.spooled(&tasks).await;
            if free {
                until(|| rig.slot.in_flight() == 0).await;
                assert_eq!(rig.reach.idle.len(), 1);
            } else {
                tokio::time::sleep(SHORT).await;
                assert_eq!(rig.slot.in_flight(), 1);
            }
            assert_eq!(body.size_hint().exact(), Some(length as u64));
            assert_eq!(body.collect().await.expect("whole").to_bytes().len(), length);
            assert_eq!(rig.slot.in_flight(), 0);
        };
        LocalSet::new().run_until(Box::pin(rig.run(async { tokio::join!(client, worker) }))).await;
        assert!(rig.reach.budget.share().is_empty() && tasks.is_empty());
    }
}

#[tokio::test]
async fn what_waits_for_room_that_others_have_taken_goes_on_once_there_is_some() {
    let (rig, tasks) = (Rig::new(), Scope::new());
    let (go, gone) = tokio::sync::oneshot::channel();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
        gone.await.expect("the test goes on");
        peer.say("cd").await;
        peer
    };
    let client = async {
        let mut others = Vec::new();
        while rig.reach.budget.share().has_room() {
            let mut share = rig.reach.budget.share();
            share.grow(MESSAGE);
            others.push(share);
        }
        let body = rig.spooled(&tasks).await;
        // Its task finds that there is no room.
        tokio::time::sleep(SHORT / 4).await;
        drop(others);
        go.send(()).expect("the worker waits");
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "abcd");
    };
    LocalSet::new().run_until(Box::pin(rig.run(async { tokio::join!(client, worker) }))).await;
}

#[tokio::test]
async fn small_pieces_wait_as_one_of_their_own() {
    let (rig, tasks) = (Rig::new(), Scope::new());
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
        for _ in 0..50 {
            peer.say("3\r\nabc\r\n").await;
            until(|| unread::of_socket(&peer.0).expect("a socket") == 0).await;
        }
        peer.say("0\r\n\r\n").await;
        peer
    };
    let client = async {
        let mut body = rig.spooled(&tasks).await;
        until(|| rig.slot.in_flight() == 0).await;
        let mut pieces = Vec::new();
        while let Some(frame) = body.frame().await {
            pieces.push(frame.expect("whole").into_data().expect("data"));
        }
        assert_eq!(pieces, [Bytes::from_static(b"first"), Bytes::from("abc".repeat(50))]);
        assert!(body.is_end_stream() && rig.reach.budget.share().is_empty());
    };
    LocalSet::new().run_until(Box::pin(rig.run(async { tokio::join!(client, worker) }))).await;
    let whole = rig.reach.budget.clone();
    assert_eq!(Rc::strong_count(&whole), 2, "nobody has a share");
}

#[tokio::test]
async fn what_came_before_an_answer_broke_off_arrives_before_the_news() {
    let (rig, tasks) = (Rig::new(), Scope::new());
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
        tokio::time::sleep(SHORT / 4).await;
        peer.say("c").await;
    };
    let client = async {
        let mut body = rig.spooled(&tasks).await;
        until(|| rig.slot.in_flight() == 0).await;
        let mut read = Vec::new();
        loop {
            match body.frame().await.expect("not the end") {
                Ok(frame) => read.extend(frame.into_data().expect("data")),
                Err(error) => {
                    break assert!(matches!(error, ResponseBodyError::Truncated(None)), "{error:?}");
                }
            }
        }
        assert_eq!(read, b"abc");
    };
    LocalSet::new().run_until(Box::pin(rig.run(async { tokio::join!(client, worker) }))).await;
}

#[tokio::test]
async fn a_client_that_goes_ends_the_answer_at_its_worker() {
    let (rig, tasks) = (Rig::new(), Scope::new());
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 200 OK\r\n\r\nfor ever").await;
        peer.rest().await;
    };
    let client = async {
        let mut body = rig.spooled(&tasks).await;
        assert_eq!(body.frame().await.expect("open").expect("data").into_data().expect("data"), "for ever");
        drop(body);
        until(|| rig.slot.in_flight() == 0).await;
    };
    LocalSet::new().run_until(Box::pin(rig.run(async { tokio::join!(client, worker) }))).await;
}

#[tokio::test]
async fn a_stream_ends_visibly_with_its_worker_and_an_answer_of_known_length_is_finished() {
    for (head, cut) in [
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", false),
    ] {
        let rig = Rig::new();
        let worker = async {
            let mut peer = rig.accept().await;
            peer.answer(head).await;
            tokio::time::sleep(SHORT / 4).await;
            rig.slot.close();
            rig.slot.end_streams();
            tokio::time::sleep(SHORT / 4).await;
            // A stream's connection is closed by now.
            let _ = peer.0.write_all(b"cd").await;
        };
        let client = async {
            match rig.get().await {
                Ok(whole) => assert!(!cut && whole.to_bytes() == "abcd"),
                Err(error) => assert!(cut && matches!(error, ResponseBodyError::Replaced), "{error:?}"),
            }
            assert_eq!(rig.slot.in_flight(), 0);
        };
        rig.run(async { tokio::join!(client, worker) }).await;
    }
}
