//! A request reaches the app's server, and its answer the client: whole, in time, and saying what they should.

mod fields;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use hyper::body::Frame;
use tokio::sync::{Notify, mpsc};

use crate::support::client::{
    Answer, ClientError, Connection, PATIENCE, Wire, by_frames, empty, full, next_chunk, raw,
};
use crate::support::edge::Setup;
use crate::support::h2::{self, End, H2};
use crate::support::origin::Origin;
use crate::support::{until, within};

#[tokio::test]
async fn http1_and_http2_reach_the_app_with_the_host_the_client_wrote() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let answer = connection.get("/path?query=1").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.version == Version::HTTP_2, wire == Wire::H2);
        let seen = answer.text();
        assert!(seen.starts_with("GET /path?query=1 HTTP/1.1\r\n"), "{seen}");
        let host = format!("\r\nhost: {}\r\n", connection.authority());
        assert!(seen.to_ascii_lowercase().contains(&host), "{wire:?}: {seen}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn apps_are_told_apart_by_host() {
    let (one, two) = (Origin::mirror().await, Origin::start(named("two")).await);
    let edge = Setup::new()
        .app("one", &format!("domains: [one.test]\n{}", one.upstream()))
        .app("two", &format!("domains: [two.test, \"*.two.test\"]\n{}", two.upstream()))
        .start()
        .await;
    for (host, body) in [("two.test", "two"), ("any.two.test", "two"), ("TWO.test", "two")] {
        assert_eq!(Connection::open(&edge, host, Wire::H2).await.get("/").await.text(), body, "{host}");
    }
    let answer = Connection::open(&edge, "one.test", Wire::H1).await.get("/").await;
    assert!(answer.text().starts_with("GET / HTTP/1.1"));
    edge.stop().await;
}

#[tokio::test]
async fn a_request_body_is_passed_on_as_it_comes() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let report = report.clone();
        async move {
            while peer.head().await.is_some() {
                while let Some(chunk) = peer.chunk().await {
                    if chunk.is_empty() {
                        peer.trailers().await;
                        peer.answer("200 OK", "", "done").await;
                        break;
                    }
                    report.send(chunk).expect("the test listens");
                }
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let (frames, body) = by_frames();
        let request = connection.request("POST", "/").body(body).unwrap();
        let steps = async {
            for part in ["first", "second"] {
                frames.send(Frame::data(Bytes::from(part))).unwrap();
                // The next part is only sent once the server has this one.
                let chunk = within(PATIENCE, part, seen.recv()).await.expect("a chunk");
                assert_eq!(String::from_utf8_lossy(&chunk), part, "{wire:?}");
            }
            drop(frames);
        };
        let (answer, ()) = tokio::join!(connection.exchange(request), steps);
        assert_eq!(answer.unwrap().text(), "done");
    }
    edge.stop().await;
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let go_on = Arc::new(Notify::new());
    let wait = Arc::clone(&go_on);
    let origin = Origin::start(move |mut peer| {
        let wait = Arc::clone(&wait);
        async move {
            while peer.head().await.is_some() {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
                wait.notified().await;
                peer.write("6\r\nsecond\r\n0\r\n\r\n").await;
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request("GET", "/").body(empty()).unwrap();
        let mut body = connection.send(request).await.unwrap().into_body();
        assert_eq!(next_chunk(&mut body).await.unwrap().unwrap(), "first");
        go_on.notify_one();
        assert_eq!(next_chunk(&mut body).await.unwrap().unwrap(), "second");
        assert!(next_chunk(&mut body).await.unwrap().is_none());
    }
    edge.stop().await;
}

#[tokio::test]
async fn server_sent_events_arrive_one_by_one() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request("GET", "/events").body(empty()).unwrap();
        let response = connection.send(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut body = response.into_body();
        next_chunk(&mut body).await.unwrap().expect("an event");
        let first = Instant::now();
        next_chunk(&mut body).await.unwrap().expect("another event");
        // The worker sends one a second: had they been held back, both would come at once.
        assert!(first.elapsed() > Duration::from_millis(300), "{wire:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn ten_megabytes_pass_unchanged_both_ways() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    let data: Bytes = (0..10 << 20).map(|at: u32| (at % 251) as u8).collect();
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let answer = connection.post("/echo", data.clone()).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body == data, "{wire:?}: {} bytes came back", answer.body.len());
        assert_eq!(connection.get("/bytes/10485760").await.body.len(), 10 << 20);
    }
    edge.stop().await;
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_usable() {
    let origin = Origin::start(async |mut peer| {
        while let Some(head) = peer.head().await {
            match head.request_line().split(' ').nth(1).expect("a target") {
                "/204" => peer.write("HTTP/1.1 204 No Content\r\nX-Kind: 204\r\n\r\n").await,
                "/304" => {
                    peer.write("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n").await
                }
                "/head" if head.request_line().starts_with("HEAD ") => {
                    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n").await;
                }
                _ => peer.answer("200 OK", "", "body").await,
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for (method, path, status) in [("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/head", 200)] {
            let request = connection.request(method, path).body(empty()).unwrap();
            let answer = connection.exchange(request).await.unwrap();
            assert_eq!(answer.status, status, "{wire:?} {path}");
            assert!(answer.body.is_empty(), "{wire:?} {path}");
            if path == "/head" {
                assert_eq!(answer.header("content-length"), "12345");
            }
            assert_eq!(connection.get("/").await.text(), "body", "{wire:?} after {path}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_before_its_body() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    let mut client = raw(&edge, "a.test").await;
    client
        .write("POST /echo HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await;
    let interim = client.read_to("\r\n\r\n").await;
    assert!(interim.starts_with("HTTP/1.1 100 "), "{interim}");
    client.write("body").await;
    let head = client.read_to("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(client.read_to("body").await.ends_with("body"));

    let mut client = H2::open(&edge, "a.test", &[]).await;
    let authority = format!("a.test:{}", edge.https.port());
    let request = |path| h2::request("POST", &authority, path, &[(b"expect", b"100-continue")]);
    client.send(h2::headers(1, false, &request("/echo"))).await;
    assert_eq!(client.end_of(1).await, End::Status(100));
    client.send(h2::frame(h2::DATA, h2::END_STREAM, 1, b"body")).await;
    assert_eq!(client.end_of(1).await, End::Status(200));
    client.send(h2::headers(3, false, &request("/.well-known/acme-challenge/none"))).await;
    assert_eq!(client.end_of(3).await, End::Status(405), "an answer takes its place");
    edge.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_request_with_it() {
    let (report, mut seen) = mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let report = report.clone();
        async move {
            while peer.head().await.is_some() {
                report.send("asked").expect("the test listens");
                peer.closed().await;
                report.send("closed").expect("the test listens");
            }
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let path = format!("/gone-{wire:?}");
        let request = connection.request("GET", &path).body(empty()).unwrap();
        {
            let asking = connection.send(request);
            tokio::pin!(asking);
            tokio::select! {
                answer = &mut asking => panic!("nobody answers: {answer:?}"),
                event = seen.recv() => assert_eq!(event, Some("asked")),
            }
        }
        drop(connection);
        assert_eq!(
            within(Duration::from_secs(5), "the worker's side closes", seen.recv()).await,
            Some("closed")
        );
        assert_eq!(edge.wait_for_access(&path).await["status"], 499, "{wire:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn worker_connections_are_used_again() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .top("threads: 1")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let before = origin.accepted();
    for _ in 0..20 {
        assert_eq!(connection.get("/").await.status, 200);
    }
    assert!(
        origin.accepted() - before <= 1,
        "{} connections for 20 requests in a row",
        origin.accepted() - before
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_kept_connection_the_server_has_closed_costs_no_request() {
    // The server closes after each answer without having said so: the next request meets a closed connection.
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.answer("200 OK", "", "once").await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    for _ in 0..50 {
        let answer = connection.get("/").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_get_goes_to_a_sibling_when_a_server_dies_before_the_first_byte_of_its_body() {
    let silent = Origin::start(async |mut peer| drop(peer.head().await)).await;
    let begins = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await;
        }
    })
    .await;
    let lives = Origin::mirror().await;
    for dies in [silent, begins] {
        let upstream = format!("upstream: [\"http://{}\", \"http://{}\"]", dies.address, lives.address);
        // Whoever brings no cookie goes to either; without that, it would be to the one that answered quickly.
        let yaml = format!("domains: [a.test]\nsticky: cookie\n{upstream}");
        let edge = Setup::new().app("a", &yaml).start().await;
        let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
        for _ in 0..20 {
            let answer = connection.get("/").await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert!(dies.accepted() > 0, "the dying server was never asked");
        edge.stop().await;
    }
}

#[tokio::test]
async fn an_answer_cut_short_is_visible_as_cut_short() {
    let origin = Origin::start(async |mut peer| {
        if let Some(head) = peer.head().await {
            let framing = if head.request_line().contains("chunked") {
                "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
            } else {
                "Content-Length: 100\r\n\r\nhello"
            };
            peer.write(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        for path in ["/length", "/chunked"] {
            let mut connection = Connection::open(&edge, "a.test", wire).await;
            let request = connection.request("GET", path).body(empty()).unwrap();
            let response = connection.send(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let answer = Answer::read(response).await;
            assert!(answer.is_err(), "{wire:?} {path}: taken for complete: {answer:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_request_that_can_be_framed_in_two_ways_reaches_no_worker() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for (framing, status) in [
        ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /next HTTP/1.1\r\n\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        ("Content-Length: 4\r\nContent-Length: 5\r\n\r\nbody", 400),
        ("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        ("Content-Length: +4\r\n\r\nbody", 400),
    ] {
        let mut client = raw(&edge, "a.test").await;
        client.write(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{framing}")).await;
        let answer = client.read_to_close().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{framing:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{framing:?}: {answer}");
        assert_eq!(origin.accepted(), 0, "{framing:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn requests_on_one_http2_connection_do_not_wait_for_each_other() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 2").start().await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let begun = Instant::now();
    let slow = connection.request("GET", "/slow/3000").body(empty()).unwrap();
    let slow = {
        let mut other = Connection::open(&edge, "a.test", Wire::H2).await;
        tokio::spawn(async move { other.exchange(slow).await.unwrap() })
    };
    until(PATIENCE, "the slow request is in flight", async || {
        let status = edge.status().await;
        let workers = status["apps"]["a"]["workers"].as_array()?.clone();
        workers.iter().any(|worker| worker["in_flight"].as_u64() > Some(0)).then_some(())
    })
    .await;
    assert_eq!(connection.get("/").await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(3), "the quick request waited for the slow one");
    assert_eq!(slow.await.unwrap().status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_unix_socket_can_be_an_upstream() {
    let setup = Setup::new();
    let path = setup.dir().join("origin.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let serving = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        assert!(stream.read(&mut head).await.unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nunix")
            .await
            .unwrap();
    });
    let edge = setup.app("a", &format!("domains: [a.test]\nupstream: unix:{}", path.display())).start().await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.text(), "unix");
    serving.await.unwrap();
    edge.stop().await;
}

#[tokio::test]
async fn an_upload_larger_than_any_buffer_can_be_answered_early() {
    let origin = Origin::start(async |mut peer| {
        if peer.head().await.is_some() {
            peer.answer("403 Forbidden", "Connection: close\r\n", "no").await;
            peer.closed().await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let request = connection.request("POST", "/").body(full(vec![0; 8 << 20])).unwrap();
    let answer = within(PATIENCE, "an early answer", connection.send(request)).await.unwrap();
    assert_eq!(answer.status(), 403);
    edge.stop().await;
}

fn named(
    name: &'static str,
) -> impl Fn(crate::support::origin::Peer) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send {
    move |mut peer| {
        Box::pin(async move {
            while peer.head().await.is_some() {
                peer.answer("200 OK", "", name).await;
            }
        })
    }
}

#[tokio::test]
async fn an_answer_the_client_does_not_take_is_ended_and_its_worker_free() {
    for wire in Wire::BOTH {
        let edge = Setup::new()
            .top("timeouts: {write: 1s}")
            .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
            .start()
            .await;
        edge.wait_until_up("a").await;
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request("GET", "/bytes/200000000").body(empty()).unwrap();
        let mut left = connection.send(request).await.unwrap().into_body();
        if wire == Wire::H2 {
            // Another answer on the same connection is none the worse for it.
            let request = connection.request("GET", "/slow/3000").body(empty()).unwrap();
            assert_eq!(connection.exchange(request).await.unwrap().status, 200);
        }
        until(PATIENCE, "the worker is free", async || {
            (edge.status().await["apps"]["a"]["workers"][0]["in_flight"] == 0).then_some(())
        })
        .await;
        let line = edge.wait_for_access("/bytes/200000000").await;
        assert!(line["error"].is_string(), "{line}");
        if wire == Wire::H2 {
            assert_eq!(line["error"], "the client did not take the answer in time");
            assert_eq!(connection.get("/").await.status, 200);
        }
        let rest = async {
            while next_chunk(&mut left).await?.is_some() {}
            Ok::<_, ClientError>(())
        };
        assert!(
            within(PATIENCE, "the end", rest).await.is_err(),
            "an answer that was cut must not look whole"
        );
        edge.stop().await;
    }
}
