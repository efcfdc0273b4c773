//! One line for each request, with what an operator looks for.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::client::{Connection, PATIENCE, Wire, empty, next_chunk};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::until;

#[tokio::test]
async fn a_line_holds_every_field_of_the_contract() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1").start().await;
    edge.wait_until_up("a").await;
    let worker = edge.workers("a").await[0];
    for (wire, path, proto) in [(Wire::H1, "/echo", "HTTP/1.1"), (Wire::H2, "/echo", "HTTP/2")] {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        let target = format!("{path}?{wire:?}");
        assert_eq!(connection.post(&target, "12345").await.text(), "12345");
        let line = edge
            .wait_for_log("the access line", |line| {
                line["proto"].as_str().is_some_and(|found| found.starts_with(proto)) && line["status"] == 200
            })
            .await;
        assert_eq!(line["app"], "a");
        assert_eq!(line["worker"], 0);
        assert_eq!(line["pid"], worker);
        assert_eq!(line["client"], "127.0.0.1");
        assert!(line["host"].as_str().is_some_and(|host| host.starts_with("a.test")), "{line}");
        assert_eq!(line["method"], "POST");
        assert!(line["path"].as_str().is_some_and(|found| found.starts_with(path)), "{line}");
        assert_eq!(line["bytes_in"], 5);
        assert_eq!(line["bytes_out"], 5);
        for field in ["duration_ms", "queue_ms", "upstream_ms"] {
            assert!(
                line[field].as_f64().is_some_and(|value| (0.0..10_000.0).contains(&value)),
                "{field}: {line}"
            );
        }
        assert_eq!(line["retries"], 0);
        assert_eq!(line["tls"], "TLSv1.3");
        for field in ["ts", "request_id"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_request_leaves_exactly_one_line() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for at in 0..20 {
        let wire = Wire::BOTH[at % 2];
        Connection::open(&edge, "a.test", wire).await.get(&format!("/number/{at}")).await;
    }
    for at in 0..20 {
        edge.wait_for_access(&format!("/number/{at}")).await;
    }
    let lines = edge.log_objects().into_iter().filter(|line| line["path"].is_string()).count();
    assert_eq!(lines, 20);
    edge.stop().await;
}

#[tokio::test]
async fn what_clients_write_cannot_forge_lines() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let path = "/%22,%22status%22:200%0a{%22forged%22:1}";
    Connection::open(&edge, "a.test", Wire::H1).await.get(path).await;
    edge.wait_for_access(path).await;
    assert!(edge.log_objects().iter().all(|line| line["forged"].is_null()));
    edge.stop().await;
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .top("log:\n  access: false")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    Connection::open(&edge, "a.test", Wire::H1).await.get("/unseen").await;
    edge.signal(Signal::SIGTERM);
    let mut edge = edge;
    edge.ended(PATIENCE).await;
    assert!(!edge.log().contains("/unseen"), "{}", edge.log());
}

#[tokio::test]
async fn it_can_be_a_file_that_is_reopened_on_sigusr1() {
    let origin = Origin::mirror().await;
    let setup = Setup::new();
    let (file, old) = (setup.dir().join("access.log"), setup.dir().join("access.log.1"));
    let edge = setup
        .top(&format!("log:\n  access: {}", file.display()))
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let contains = async |path: &std::path::Path, words: &str| {
        until(PATIENCE, words, async || fs::read_to_string(path).ok()?.contains(words).then_some(())).await;
    };
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    connection.get("/before").await;
    contains(&file, "/before").await;
    fs::rename(&file, &old).unwrap();
    edge.signal(Signal::SIGUSR1);
    until(PATIENCE, "the file is opened anew", async || file.exists().then_some(())).await;
    connection.get("/after").await;
    contains(&file, "/after").await;
    assert!(!fs::read_to_string(&old).unwrap().contains("/after"));
    edge.stop().await;
}

#[tokio::test]
async fn the_file_is_reopened_while_the_last_requests_finish_too() {
    let setup = Setup::new();
    let (file, old) = (setup.dir().join("access.log"), setup.dir().join("access.log.1"));
    let mut edge = setup
        .top(&format!("log:\n  access: {}", file.display()))
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let request = connection.request("GET", "/events").body(empty()).unwrap();
    let mut events = connection.send(request).await.unwrap().into_body();
    next_chunk(&mut events).await.unwrap().expect("an event");
    edge.signal(Signal::SIGTERM);
    let stopping = |line: &serde_json::Value| line.to_string().contains("stopping: no new connections");
    edge.wait_for_log("that it stops", stopping).await;
    fs::rename(&file, &old).unwrap();
    edge.signal(Signal::SIGUSR1);
    until(PATIENCE, "the file is opened anew", async || file.exists().then_some(())).await;
    edge.signal(Signal::SIGHUP);
    let not_read =
        |line: &serde_json::Value| line.to_string().contains("the configuration is not read again");
    edge.wait_for_log("that there is no reload", not_read).await;
    edge.signal(Signal::SIGTERM);
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(1), "a request was cut");
    assert!(fs::read_to_string(&file).unwrap().contains("/events"));
    edge.assert_nothing_left().await;
}

#[tokio::test]
async fn a_file_that_may_not_grow_any_more_costs_its_lines_alone() {
    let origin = Origin::mirror().await;
    let setup = Setup::new().inside(&["prlimit", "--fsize=8192"]);
    let file = setup.dir().join("access.log");
    let edge = setup
        .top(&format!("log:\n  access: {}", file.display()))
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
    let path = format!("/{}", "x".repeat(1000));
    until(PATIENCE, "the file is full", async || {
        assert_eq!(connection.get(&path).await.status, 200);
        edge.log().contains("cannot write the access log").then_some(())
    })
    .await;
    assert_eq!(fs::metadata(&file).unwrap().len(), 8192);
    assert_eq!(connection.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_workers_own_499_is_an_answer_and_no_client_that_was_gone() {
    let origin = Origin::start(async |mut peer| {
        while peer.head().await.is_some() {
            peer.answer("499 Whatever", "", "mine").await;
        }
    })
    .await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    for wire in Wire::BOTH {
        let path = format!("/{wire:?}");
        let answer = Connection::open(&edge, "a.test", wire).await.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (499, "mine"));
        let line = edge.wait_for_access(&path).await;
        assert_eq!((&line["status"], &line["error"]), (&499.into(), &serde_json::Value::Null), "{line}");
    }
    edge.stop().await;
}
