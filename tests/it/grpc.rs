//! Calls of gRPC between its own client and its own server, through edge.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::support::client::PATIENCE;
use crate::support::edge::{Edge, Setup};
use crate::support::{processes, python, until, within};

/// The server, on one worker.
fn calls(more: &str) -> String {
    python::app("python calls.py", &format!("workers: 1\nserver: generic\nprotocol: h2c\n{more}"))
}

async fn running(setup: Setup, more: &str) -> Edge {
    let edge = setup.app("a", &calls(more)).start().await;
    edge.wait_until_up("a").await;
    edge
}

/// What the client makes of `what`, a function of its program, which says why where it fails.
async fn client(edge: &Edge, what: &str) {
    edge.trust().await;
    let root = python::root();
    let output = tokio::process::Command::new(root.join("target/test-venv/bin/python"))
        .arg(root.join("tests/apps/calls_client.py"))
        .args([&edge.https.port().to_string(), "a.test"])
        .arg(edge.dir().join("storage/internal/root.pem"))
        .arg(what)
        .env("APP_DIARY", diary(edge))
        .kill_on_drop(true)
        .output();
    let output = within(PATIENCE * 3, "the client ends", output).await.expect("python runs");
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out.trim(), "ok", "{what}: {errors}");
}

fn diary(edge: &Edge) -> PathBuf {
    edge.dir().join("diary")
}

async fn written(edge: &Edge, what: &str) {
    until(PATIENCE, what, async || {
        std::fs::read_to_string(diary(edge)).ok().filter(|text| text.contains(what))
    })
    .await;
}

/// As of `setup`, with a diary that `written` reads.
async fn with_diary() -> Edge {
    let setup = python::setup();
    let path = setup.dir().join("diary").display().to_string();
    running(setup, &format!("environment: {{APP_DIARY: {path}}}\n")).await
}

#[tokio::test]
async fn every_kind_of_call_is_answered_over_unix_sockets_and_tcp() {
    for transport in ["unix", "tcp"] {
        let edge = running(python::setup(), &format!("transport: {transport}\n")).await;
        client(&edge, "calls").await;
        client(&edge, "chat").await;
        client(&edge, "large").await;
        let line = edge.wait_for_access("/test.Calls/Echo").await;
        assert_eq!(
            (&line["method"], &line["status"], &line["proto"], &line["worker"]),
            (&"POST".into(), &200.into(), &"HTTP/2".into(), &0.into())
        );
        edge.stop().await;
    }
}

#[tokio::test]
async fn a_call_that_is_late_or_cancelled_is_cancelled_at_the_worker() {
    for what in ["late", "cancelled", "late_stream", "cancelled_stream", "cancelled_chat"] {
        let edge = with_diary().await;
        client(&edge, what).await;
        written(&edge, "cancelled").await;
        until(PATIENCE, "nothing is in flight", async || {
            let status = edge.status().await;
            (status["apps"]["a"]["workers"][0]["in_flight"] == 0).then_some(())
        })
        .await;
        edge.stop().await;
    }
}

#[tokio::test]
async fn calls_that_are_silent_for_long_outlive_those_beside_them_that_nobody_waits_out() {
    // What it is asked about those, more often than it likes, would end all that is on the connection.
    let edge = with_diary().await;
    client(&edge, "silent").await;
    edge.stop().await;
}

#[tokio::test]
async fn edges_own_answers_are_statuses_of_grpc() {
    let edge = running(python::setup(), "max_body: 50KB\n").await;
    client(&edge, "too_large").await;
    edge.done(&["maintenance", "on", "a", "-m", "The application rests."]).await;
    client(&edge, "unavailable").await;
    edge.done(&["maintenance", "off", "a"]).await;
    client(&edge, "chat").await;
    edge.stop().await;
}

#[tokio::test]
async fn calls_open_when_a_worker_is_replaced_are_finished_and_new_ones_go_to_its_successor() {
    let edge = with_diary().await;
    let before = edge.workers("a").await;
    let (asking, replacing) = tokio::join!(client(&edge, "late"), async {
        written(&edge, "waiting").await;
        edge.done(&["restart", "a"]).await
    });
    let ((), _) = (asking, replacing);
    assert_ne!(edge.workers("a").await, before);
    client(&edge, "chat").await;
    assert!(!processes::is_alive(before[0]));
    edge.stop().await;
}

#[tokio::test]
async fn a_call_whose_worker_is_killed_is_unavailable_and_the_next_is_answered() {
    let edge = with_diary().await;
    let worker = edge.workers("a").await[0];
    let ((), ()) = tokio::join!(client(&edge, "killed"), async {
        written(&edge, "waiting").await;
        processes::signal(worker, Signal::SIGKILL);
    });
    edge.wait_until_up("a").await;
    client(&edge, "chat").await;
    edge.stop().await;
}
