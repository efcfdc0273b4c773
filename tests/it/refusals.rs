//! What edge answers itself: redirects, refusals and pages for trouble behind it, each with its cause in the log.

use std::time::Duration;

use http::header::LOCATION;

use crate::ca::free_port;
use crate::support::client::{Connection, Wire, by_frames, empty, full, raw, tls};
use crate::support::edge::Setup;
use crate::support::origin::Origin;

#[tokio::test]
async fn plain_http_is_redirected_to_https_with_308() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut connection = Connection::plain(&edge, "a.test").await;
    // A client that names the port it came in by is sent to edge's own; one that names none came through a mapping of ports.
    let direct = (
        format!("a.test:{}", edge.http.port()),
        format!("https://a.test:{}/path?query=1", edge.https.port()),
    );
    for (authority, expected) in [direct, ("a.test".to_owned(), "https://a.test/path?query=1".to_owned())] {
        let request = connection.request_for(&authority, "GET", "/path?query=1").body(empty()).unwrap();
        let answer = connection.exchange(request).await.unwrap();
        assert_eq!(answer.status, 308);
        assert_eq!(answer.headers[LOCATION], expected, "{authority}");
    }
    let post = connection.post("/form", "x=1").await;
    assert_eq!(post.status, 308);
    assert_eq!(origin.accepted(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn plain_http_serves_the_app_where_the_file_says_so() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream()))
        .start()
        .await;
    assert_eq!(Connection::plain(&edge, "a.test").await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn other_domains_are_redirected_to_the_canonical_one() {
    let origin = Origin::mirror().await;
    let yaml = format!("domains: [a.test, www.a.test]\nredirect_to: a.test\n{}", origin.upstream());
    let edge = Setup::new().app("a", &yaml).start().await;
    let mut www = Connection::open(&edge, "www.a.test", Wire::H2).await;
    let port = edge.https.port();
    let direct = (format!("www.a.test:{port}"), format!("https://a.test:{port}/x?y=1"));
    for (authority, expected) in [direct, ("www.a.test".to_owned(), "https://a.test/x?y=1".to_owned())] {
        let request = www.request_for(&authority, "GET", "/x?y=1").body(empty()).unwrap();
        let answer = www.exchange(request).await.unwrap();
        assert_eq!(answer.status, 308);
        assert_eq!(answer.headers[LOCATION], expected, "{authority}");
    }
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_host_outside_the_connections_certificate_is_misdirected() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .app("b", &format!("domains: [b.test]\n{}", origin.upstream()))
        .start()
        .await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request_for("b.test", "GET", "/").body(empty()).unwrap();
        assert_eq!(connection.exchange(request).await.unwrap().status, 421, "{wire:?}");
        assert_eq!(connection.get("/").await.status, 200, "{wire:?}: the connection stays usable");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_request_body_over_the_limit_is_refused_with_413() {
    let origin = Origin::start(async |mut peer| {
        while peer.head().await.is_some() {
            while peer.chunk().await.is_some_and(|chunk| !chunk.is_empty()) {}
            peer.trailers().await;
            peer.answer("200 OK", "", "").await;
        }
    })
    .await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nmax_body: 10KB\n{}", origin.upstream()))
        .start()
        .await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let request = connection.request("POST", "/declared").body(full(vec![0; 100_000])).unwrap();
        assert_eq!(connection.send(request).await.unwrap().status(), 413, "{wire:?}");

        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let (frames, body) = by_frames();
        for _ in 0..10 {
            frames.send(hyper::body::Frame::data(vec![0; 2048].into())).unwrap();
        }
        drop(frames);
        let request = connection.request("POST", "/undeclared").body(body).unwrap();
        assert_eq!(connection.send(request).await.unwrap().status(), 413, "{wire:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_server_that_closes_without_an_answer_is_502_with_the_cause_logged() {
    let origin = Origin::start(async |mut peer| drop(peer.head().await)).await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let answer = Connection::open(&edge, "a.test", Wire::H1).await.post("/closes", "x").await;
    assert_eq!(answer.status, 502);
    assert!(answer.text().contains("502"), "{}", answer.text());
    let line = edge.wait_for_access("/closes").await;
    let cause = line["error"].as_str().unwrap_or_default();
    assert!(cause.contains("closed"), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_502_with_the_cause_logged() {
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nupstream: http://127.0.0.1:{}", free_port()))
        .start()
        .await;
    let answer = Connection::open(&edge, "a.test", Wire::H2).await.get("/unreachable").await;
    assert_eq!(answer.status, 502);
    let line = edge.wait_for_access("/unreachable").await;
    assert!(line["error"].as_str().unwrap_or_default().contains("refused"), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_502_with_the_cause_logged() {
    for garbage in
        ["SSH-2.0-OpenSSH_9.2\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n"]
    {
        let origin = Origin::start(move |mut peer| async move {
            if peer.head().await.is_some() {
                peer.write(garbage).await;
                peer.closed().await;
            }
        })
        .await;
        let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
        let answer = Connection::open(&edge, "a.test", Wire::H2).await.get("/garbage").await;
        assert_eq!(answer.status, 502, "{garbage:?}");
        let line = edge.wait_for_access("/garbage").await;
        assert!(line["error"].as_str().unwrap_or_default().contains("HTTP"), "{line}");
        edge.stop().await;
    }
}

#[tokio::test]
async fn a_silent_server_is_504_with_the_cause_logged() {
    let origin = Origin::start(async |mut peer| {
        peer.head().await;
        peer.closed().await;
    })
    .await;
    let edge = Setup::new()
        .top("timeouts:\n  first_byte: 1s")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let answer = Connection::open(&edge, "a.test", Wire::H2).await.get("/silent").await;
    assert_eq!(answer.status, 504);
    let line = edge.wait_for_access("/silent").await;
    assert!(line["error"].as_str().unwrap_or_default().contains("in time"), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn an_app_without_a_ready_worker_is_503_with_retry_after() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: sleep 1000\nworkers: 1").start().await;
    let answer = Connection::open(&edge, "a.test", Wire::H2).await.get("/nobody").await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{:?}", answer.headers);
    let line = edge.wait_for_access("/nobody").await;
    assert!(line["error"].as_str().unwrap_or_default().contains("worker"), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_request_head_is_ended_and_a_busy_server_stays_reachable() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .top("timeouts:\n  headers: 1s")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let mut slow = raw(&edge, "a.test").await;
    slow.write("GET / HTTP/1.1\r\nHost: a.te").await;
    let answer = slow.read_to_close().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_silent_handshake_is_ended() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .top("timeouts:\n  handshake: 1s")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let silent = tokio::net::TcpStream::connect(edge.https).await.unwrap();
    let mut silent = crate::support::client::Raw::new(silent);
    let begun = std::time::Instant::now();
    silent.read_to_close().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    edge.stop().await;
}

#[tokio::test]
async fn a_name_nobody_configured_is_refused_in_the_handshake() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let trust = edge.trust().await;
    // An address as the name: the client sends no SNI.
    for name in ["unknown.test", "sub.a.test", "127.0.0.1"] {
        let error = tls(edge.https, name, trust.offering(&["h2"])).await.expect_err(name);
        let alert = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()).cloned();
        assert_eq!(
            alert,
            Some(rustls::Error::AlertReceived(rustls::AlertDescription::UnrecognisedName)),
            "{name}: {error}"
        );
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_client_without_sni_gets_the_certificate_of_the_address_it_reached() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("address", &format!("domains: [127.0.0.1]\ntls: internal\n{}", origin.upstream()))
        .start()
        .await;
    assert_eq!(Connection::open(&edge, "127.0.0.1", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn the_default_app_takes_names_nobody_configured() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\ndefault: true\nhttp: serve\n{}", origin.upstream()))
        .start()
        .await;
    // The certificate does not cover the name, which a client that verifies will tell its user.
    let trust = edge.trust().await;
    let error = tls(edge.https, "unknown.test", trust.offering(&["h2"]))
        .await
        .expect_err("another name's certificate");
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(Connection::plain(&edge, "unknown.test").await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_plain_request_for_a_name_nobody_configured_is_404() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    assert_eq!(Connection::plain(&edge, "unknown.test").await.get("/").await.status, 404);
    edge.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_refused_and_nothing_falls_over() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", 400),
        ("GET /spoken HTTP/9.9\r\nHost: a.test\r\n\r\n", 505),
        ("\0\0\0\0\r\n\r\n", 400),
        ("GET /\x01 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
    ] {
        let mut client = raw(&edge, "a.test").await;
        client.write(request).await;
        let answer = client.read_to("\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
    }
    let line = edge.wait_for_access("/spoken").await;
    assert_eq!((&line["status"], &line["method"]), (&505.into(), &"GET".into()), "{line}");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.status, 200);
    assert_eq!(origin.accepted(), 1);
    edge.stop().await;
}
