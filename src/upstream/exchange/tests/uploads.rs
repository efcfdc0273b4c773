//! Request bodies.

use super::ahead::until;
use super::*;
use crate::upstream::budget::MESSAGE;

#[tokio::test]
async fn an_upload_is_framed_anew_and_the_connection_kept() {
    for (request, sent) in [
        (
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0005\r\n\r\nhello",
            "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 5\r\n\r\nhello",
        ),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nsum: 1\r\nhost: z\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nsum: 1\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nhost: a.test\r\ncontent-length: 0\r\n\r\n",
        ),
    ] {
        let rig = Rig::new();
        let worker = async {
            let mut peer = rig.accept().await;
            assert_eq!(peer.read_to(sent).await, sent);
            peer.say(OK).await;
            while rig.reach.idle.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        rig.upload(request, worker).await;
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_upload_is_relayed_and_the_connection_not_used_again() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await;
        peer.rest().await;
        assert!(rig.reach.idle.is_empty());
    };
    let mut client =
        rig.upload("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 500000\r\n\r\nbegin", worker).await;
    let mut heard = vec![0; 12];
    client.read_exact(&mut heard).await.expect("an answer");
    assert_eq!(heard, b"HTTP/1.1 413");
}

#[tokio::test]
async fn a_worker_that_reads_no_more_may_still_answer() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.read_to("\r\n\r\n").await;
        rustix::net::shutdown(peer.0.as_fd(), rustix::net::Shutdown::Read).expect("shut");
        peer.say("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
        while rig.slot.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    let request =
        format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 800000\r\n\r\n{}", "x".repeat(800_000));
    let mut client = rig.upload(&request, worker).await;
    let mut heard = vec![0; 12];
    client.read_exact(&mut heard).await.expect("an answer");
    assert_eq!(heard, b"HTTP/1.1 403");
}

#[tokio::test]
async fn both_directions_move_at_once() {
    let rig = Rig::new();
    let size = 400_000;
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer(&format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")).await;
        let (mut from, mut to) = peer.0.split();
        let copied = tokio::io::copy(&mut (&mut from).take(size), &mut to).await.expect("echoed");
        assert_eq!(copied, size);
        while rig.reach.idle.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let body = "x".repeat(400_000);
    rig.upload(&format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n{body}"), worker).await;
}

#[tokio::test]
async fn a_bad_upload_is_the_clients_fault_and_never_looks_complete() {
    for (request, begins, error) in [
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n", false, "TooLarge"),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhell\r\n7\r\n",
            true,
            "TooSlow",
        ),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhell\r\n7\r\nfoo bar\r\n",
            true,
            "TooLarge",
        ),
        (
            "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhell\r\nzap\r\n",
            true,
            "Broken",
        ),
        ("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhell", true, "TooSlow"),
    ] {
        let mut rig = Rig { max_body: 10, ..Rig::new() };
        rig.reach.timeouts.body = if error == "TooSlow" { SHORT } else { LONG };
        let worker = async {
            if begins {
                let sent = rig.accept().await.rest().await;
                assert!(!sent.ends_with("0\r\n\r\n") && sent.len() < 100, "{sent}");
            }
            while rig.failed.borrow().is_none() {
                tokio::task::yield_now().await;
            }
        };
        rig.upload(request, worker).await;
        let found = match rig.failed.take() {
            Some(SendError::RequestBody(RequestBodyError::TooLarge { limit: 10 })) => "TooLarge",
            Some(SendError::RequestBody(RequestBodyError::TooSlow)) => "TooSlow",
            Some(SendError::RequestBody(RequestBodyError::Broken(_))) => "Broken",
            other => panic!("{request:?}: {other:?}"),
        };
        assert_eq!(found, error, "{request:?}");
        assert_eq!(rig.slot.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_slow_upload_does_not_count_as_a_slow_worker() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut rig = Rig::new();
    (rig.reach.timeouts.body, rig.reach.timeouts.first_byte) = (PATIENCE, PATIENCE);
    let (mut client, server) = rig.front();
    let steps = async {
        client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").await.expect("room");
        let mut peer = rig.accept().await;
        for byte in b"hellohello" {
            // Twice as long as the worker has, and each of them well in time.
            tokio::time::sleep(PATIENCE / 5).await;
            client.write_all(&[*byte]).await.expect("room");
        }
        peer.read_to("hellohello").await;
        peer.say(OK).await;
        let mut heard = vec![0; 12];
        client.read_exact(&mut heard).await.expect("an answer");
        assert_eq!(heard, b"HTTP/1.1 200");
    };
    rig.run(async {
        tokio::select! { () = steps => {}, () = server => panic!("front ended") }
    })
    .await;
}

#[tokio::test]
async fn an_upload_of_which_nothing_was_sent_goes_to_a_fresh_connection() {
    let rig = Rig::new();
    let (mut client, server) = rig.front();
    let steps = async {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("room");
        let mut peer = rig.accept().await;
        peer.answer(OK).await;
        while rig.reach.idle.is_empty() {
            tokio::task::yield_now().await;
        }
        // The runtime does not look at its sockets between these two.
        drop(peer);
        client
            .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
            .await
            .expect("room");
        let mut peer = rig.accept().await;
        assert!(peer.read_to("hello").await.starts_with("POST / "));
        peer.say(OK).await;
        while rig.reach.idle.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    rig.run(async {
        tokio::select! { biased; () = steps => {}, () = server => panic!("front ended") }
    })
    .await;
    assert!(rig.failed.borrow().is_none());
}

#[tokio::test]
async fn an_upload_that_no_worker_has_seen_is_there_for_another() {
    let rig = Rig::new();
    let worker = async {
        let mut peer = rig.accept().await;
        peer.answer(OK).await;
        peer
    };
    let (first, peer) = rig.run(async { tokio::join!(rig.get(), worker) }).await;
    assert_eq!(first.expect("whole").to_bytes(), "ok");
    // The runtime does not look at its sockets before the request is written.
    drop(peer);
    let Address::Unix(path) = &rig.slot.address else { panic!("a unix socket") };
    std::fs::remove_file(path).expect("nobody listens any more");
    let incoming = http_body_util::Full::new(Bytes::from_static(b"hello"));
    let incoming = incoming.map_err(|never| match never {});
    let deadline = rig.reach.deadlines.deadline();
    let body = RequestBody::new(ClientBody::streamed(Box::pin(incoming)), deadline, rig.reach.bounds(10));
    let mut body = Some(body);
    let failed = rig.send(Method::POST, false, &mut body).await.err();
    assert!(matches!(failed, Some(SendError::Connect(_))), "{failed:?}");
    let whole = rig.run(body.expect("put back").collect()).await.expect("whole");
    assert_eq!(whole.to_bytes(), "hello");
}

#[tokio::test]
async fn what_was_taken_in_makes_room_for_others_once_the_worker_has_it() {
    let rig = Rig::new();
    let incoming = http_body_util::Full::new(Bytes::from("x".repeat(1000))).map_err(|never| match never {});
    let (incoming, deadline) = (ClientBody::streamed(Box::pin(incoming)), rig.reach.deadlines.deadline());
    let mut body = RequestBody::new(incoming, deadline, rig.reach.bounds(rig.max_body));
    body.take_in(&rig.reach.budget).await.expect("all is here");
    let mut others = Vec::new();
    while rig.reach.budget.share().has_room() {
        let mut share = rig.reach.budget.share();
        share.grow(MESSAGE);
        others.push(share);
    }
    others[0].shrink(1);
    assert!(!rig.reach.budget.share().has_room());
    let worker = async {
        let mut peer = rig.accept().await;
        assert!(peer.read_to("\r\n\r\n").await.contains("content-length: 1000\r\n"));
        assert_eq!(peer.read_to(&"x".repeat(1000)).await.len(), 1000);
        until(|| rig.reach.budget.share().has_room()).await;
        peer.say(OK).await;
    };
    let mut body = Some(body);
    let (answer, ()) =
        rig.run(async { tokio::join!(rig.send(Method::POST, false, &mut body), worker) }).await;
    assert!(answer.is_ok(), "{:?}", answer.err());
}
