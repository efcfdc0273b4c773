//! Clients that mean harm: each costs itself something and nobody else.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Wire, empty, next_chunk, raw};
use crate::support::edge::Setup;
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
