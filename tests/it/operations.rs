//! What operators ask a running edge to do.

use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Connection, PATIENCE, Wire, websocket};
use crate::support::edge::{BINARY, Setup};
use crate::support::{until, within};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 1";

#[tokio::test]
async fn maintenance_tells_visitors_and_leaves_workers_alone() {
    let edge = Setup::new().app("a", HELLO).app("b", &HELLO.replace("a.test", "b.test")).start().await;
    edge.wait_until_up("a").await;
    edge.wait_until_up("b").await;
    let before = edge.workers("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    edge.done(&["maintenance", "on", "a", "-m", "Back at <nine>."]).await;
    let answer = connection.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    assert!(answer.text().contains("Back at <nine>."), "{}", answer.text());
    let status = edge.status().await;
    assert_eq!(status["apps"]["a"]["state"], "maintenance");
    assert_eq!(status["apps"]["b"]["state"], "up");
    assert!(edge.done(&["status"]).await.contains("maintenance"));
    socket.send(Message::text("x")).await.unwrap();
    assert!(within(PATIENCE, "the echo", socket.next()).await.expect("open").is_ok());
    assert_eq!(Connection::open(&edge, "b.test", Wire::H1).await.get("/").await.status, 200);
    // A reload is not the end of it.
    edge.edit("[a.test]", "[a.test, c.test]");
    edge.reload().await;
    assert_eq!(Connection::open(&edge, "c.test", Wire::H1).await.get("/").await.status, 503);
    edge.done(&["maintenance", "off", "a"]).await;
    assert_eq!(connection.get("/").await.status, 200);
    assert_eq!(edge.workers("a").await, before);
    drop(socket);
    edge.stop().await;
}

#[tokio::test]
async fn logs_show_what_workers_printed_and_go_on_with_what_they_print() {
    let command = "domains: [a.test]\nworkers: 1\n\
        command: [sh, -c, 'echo before; echo wrong >&2; exec edge hello']\n";
    let begun = OffsetDateTime::now_utc();
    let edge =
        Setup::new().app("a", command).app("b", HELLO.replace("a.test", "b.test").as_str()).start().await;
    edge.wait_until_up("a").await;
    // The rest of a line behind its time, which lies between the start and now.
    let timed = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap();
        let time = OffsetDateTime::parse(time, &Rfc3339).unwrap();
        assert!(
            time >= begun - Duration::from_millis(1)
                && time <= OffsetDateTime::now_utc()
                && line[..24].ends_with('Z'),
            "{line}"
        );
        rest.to_owned()
    };
    let printed = edge.done(&["logs", "a"]).await;
    let rests: Vec<String> = printed.lines().map(timed).collect();
    assert!(
        rests.contains(&"a 0 | before".to_owned()) && rests.contains(&"a 0 | wrong".to_owned()),
        "{printed}"
    );
    assert!(edge.done(&["logs"]).await.contains("a 0 | before"));
    let mut following = tokio::process::Command::new(BINARY)
        .args(["logs", "-f", "a", "--config"])
        .arg(edge.dir().join("edge.yaml"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = async || timed(&within(PATIENCE, "a line", lines.next_line()).await.unwrap().unwrap());
    while next().await != "a 0 | before" {}
    // The successor prints again, to who is still there.
    crate::support::processes::signal(edge.workers("a").await[0], Signal::SIGKILL);
    while next().await != "a 0 | before" {}
    following.kill().await.unwrap();
    edge.stop().await;
}

#[tokio::test]
async fn an_app_that_is_not_there_is_told_with_those_that_are() {
    let up = "domains: [up.test]\nupstream: http://127.0.0.1:1";
    let edge = Setup::new().app("a", HELLO).app("up", up).start().await;
    edge.wait_until_up("a").await;
    for call in [
        &["restart", "b"][..],
        &["scale", "b", "2"],
        &["logs", "b"],
        &["maintenance", "on", "b"],
        &["reload", "b"],
    ] {
        let (status, errors) = edge.failing(call).await;
        assert_eq!(status, 1, "{call:?}: {errors}");
        assert!(errors.contains("no app named \"b\"") && errors.contains(" a, up\n"), "{call:?}: {errors}");
    }
    for call in [
        &["restart", "up"][..],
        &["scale", "up", "2"],
        &["logs", "up"],
        &["logs", "-f", "up"],
        &["reload", "up"],
        &["explain", "up"],
    ] {
        let (status, errors) = edge.failing(call).await;
        assert!(status == 1 && errors.contains("app \"up\" has no workers"), "{call:?}: {errors}");
    }
    let (status, errors) = edge.failing(&["run"]).await;
    assert!(status == 1 && errors.contains("`edge reload` has it apply a changed file"), "{errors}");
    let (status, errors) = edge.failing(&["scale", "a", "0"]).await;
    assert!(status == 64 && errors.contains("a whole number from 1 to 1000"), "{status}: {errors}");
    assert_eq!(edge.done(&["maintenance", "off", "a"]).await, "a: was not under maintenance\n");
    edge.done(&["maintenance", "on", "a"]).await;
    assert_eq!(edge.done(&["maintenance", "off", "a"]).await, "a: in service again\n");
    let renewal = edge.command(&["certs", "renew", "nosuch.example"]).await;
    assert!(renewal.status.code() == Some(1) && renewal.stdout.is_empty(), "{renewal:?}");
    assert!(String::from_utf8_lossy(&renewal.stderr).contains("nosuch.example"), "{renewal:?}");
    edge.stop().await;
}

#[tokio::test]
async fn however_many_follow_the_logs_an_operator_gets_through() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let admin = edge.dir().join("run/admin.sock");
    let mut followers = Vec::new();
    for _ in 0..50 {
        let mut follower = tokio::net::UnixStream::connect(&admin).await.unwrap();
        follower.write_all(b"POST /logs?follow HTTP/1.0\r\n\r\n").await.unwrap();
        let mut status = [0; 12];
        within(PATIENCE, "an answer", follower.read_exact(&mut status)).await.unwrap();
        assert_eq!(&status, b"HTTP/1.0 200");
        followers.push(follower);
    }
    edge.done(&["restart", "a"]).await;
    drop(followers);
    edge.stop().await;
}

#[tokio::test]
async fn a_running_edge_stops_while_an_operator_follows_its_logs() {
    let app = HELLO.replace("edge hello", "[sh, -c, 'echo begun; exec edge hello']");
    let edge = Setup::new().app("a", &app).start().await;
    edge.wait_until_up("a").await;
    let mut following = tokio::process::Command::new(BINARY)
        .args(["logs", "-f", "--config"])
        .arg(edge.dir().join("edge.yaml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    within(PATIENCE, "it follows", lines.next_line()).await.unwrap().expect("a line");
    edge.stop().await;
    let mut last = String::new();
    while let Some(line) = within(PATIENCE, "a line", lines.next_line()).await.unwrap() {
        last = line;
    }
    assert!(last.ends_with(" a 0 | hello: finished"), "{last}");
    let output = within(PATIENCE, "the end", following.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b"edge has stopped\n"[..]));
}

#[tokio::test]
async fn restart_replaces_every_worker_and_scale_changes_their_number() {
    let edge = Setup::new().app("a", &HELLO.replace("workers: 1", "workers: 2")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    edge.done(&["restart", "a"]).await;
    let after = edge.workers("a").await;
    assert!(after.len() == 2 && before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    // Nothing of it is a failure.
    for worker in edge.status().await["apps"]["a"]["workers"].as_array().unwrap() {
        assert_eq!((&worker["restarts"], &worker["replacements"]), (&0.into(), &1.into()), "{worker}");
        assert_eq!(worker["last_exit_reason"], "asked");
        assert!(worker["last_exit_at"].is_string() && worker["last_failure"].is_null(), "{worker}");
    }
    let shown = String::from_utf8(edge.command(&["status"]).await.stdout).unwrap();
    assert!(!shown.contains("last exit"), "{shown}");
    crate::support::processes::signal(after[1], Signal::SIGKILL);
    until(PATIENCE, "the death is told", async || {
        let shown = String::from_utf8(edge.command(&["status"]).await.stdout).unwrap();
        (shown.contains(" ago)") && shown.contains("SIGKILL while it served")).then_some(())
    })
    .await;
    edge.wait_until_up("a").await;
    let after = edge.workers("a").await;
    edge.done(&["scale", "a", "3"]).await;
    let three = edge.workers("a").await;
    assert!(three.len() == 3 && after.iter().all(|pid| three.contains(pid)), "{after:?} {three:?}");
    // A file that says nothing new is no reason to change it.
    edge.reload().await;
    assert_eq!(edge.workers("a").await, three);
    edge.done(&["scale", "a", "1"]).await;
    assert_eq!(edge.workers("a").await.len(), 1);
    edge.edit("workers: 2", "workers: 4");
    edge.reload().await;
    assert_eq!(edge.workers("a").await.len(), 4);
    edge.stop().await;
}

/// `before_start` of an app that hangs holds up nobody but who waits for that app.
#[tokio::test]
async fn while_one_apps_change_hangs_others_are_operated_and_who_waits_may_go_away() {
    let edge = Setup::new().app("a", HELLO).app("b", &HELLO.replace("a.test", "b.test")).start().await;
    edge.wait_until_up("a").await;
    edge.wait_until_up("b").await;
    let before = (edge.workers("a").await, edge.workers("b").await);
    edge.edit("domains: [a.test]", "domains: [a.test]\n    before_start: sleep 1000");
    let ask = || {
        tokio::process::Command::new(BINARY)
            .args(["reload", "--config"])
            .arg(edge.dir().join("edge.yaml"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    };
    let ended_by = async |command: tokio::process::Child, signal| {
        crate::support::processes::signal(command.id().unwrap(), signal);
        let output = within(PATIENCE, "the end", command.wait_with_output()).await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let mut hanging = ask();
    let mut lines = BufReader::new(hanging.stdout.take().unwrap()).lines();
    assert_eq!(
        within(PATIENCE, "a line", lines.next_line()).await.unwrap().unwrap(),
        "a: running its `before_start`"
    );

    edge.done(&["restart", "b"]).await;
    edge.done(&["scale", "b", "2"]).await;
    let after = edge.workers("b").await;
    assert!(after.len() == 2 && !after.contains(&before.1[0]), "{before:?} {after:?}");

    let mut waiting = ask();
    let mut lines = BufReader::new(waiting.stdout.take().unwrap()).lines();
    let said = within(PATIENCE, "a line", lines.next_line()).await.unwrap().unwrap();
    assert!(said.starts_with("waiting for a reload, under way for "), "{said}");
    assert!(said.ends_with(" (a: running its `before_start`)"), "{said}");
    let given_up = "edge: interrupted before its turn came: it is given up and has changed nothing\n";
    assert_eq!(ended_by(waiting, Signal::SIGINT).await, (130, given_up.to_owned()));
    edge.wait_for_log("that it was given up", |line| line.to_string().contains("given up before its turn"))
        .await;
    let (status, told) = ended_by(hanging, Signal::SIGTERM).await;
    let look = format!("look with `edge --config {} status`", edge.dir().join("edge.yaml").display());
    assert!(
        status == 143 && told.contains("the running edge goes on with it") && told.contains(&look),
        "{told}"
    );
    let mut third = ask();
    let mut lines = BufReader::new(third.stdout.take().unwrap()).lines();
    let said = within(PATIENCE, "a line", lines.next_line()).await.unwrap().unwrap();
    assert!(said.starts_with("waiting for a reload, under way for "), "{said}");
    assert_eq!(edge.workers("a").await, before.0);
    // It hangs still; edge stops all the same, at once, and leaves nothing.
    edge.stop().await;
}

#[tokio::test]
async fn what_comes_before_a_worker_has_its_time_and_may_tidy_up() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let script = edge.dir().join("migrate.sh");
    std::fs::write(&script, "trap 'echo undone; exit 1' TERM\necho begun\nwhile :; do sleep 0.05; done\n")
        .unwrap();
    edge.edit(
        "domains: [a.test]",
        &format!(
            "domains: [a.test]\n    before_start: sh {}\n    before_start_timeout: 1s",
            script.display()
        ),
    );
    // Of a script without `exec` the shell ends by the signal, and what it has started is asked after it.
    let behind = edge.dir().join("behind.sh");
    std::fs::write(&behind, format!("sh {}\ntrue\n", script.display())).unwrap();
    for last in [false, true] {
        let (status, errors) = edge.failing(&["reload"]).await;
        assert_eq!(status, 1);
        for words in ["`before_start_timeout` of 1 s is over", "begun", "undone", "its old workers serve on"]
        {
            assert!(errors.contains(words), "{words} is not in {errors}");
        }
        if !last {
            edge.edit("migrate.sh", "behind.sh");
        }
    }
    assert_eq!(edge.workers("a").await, before);
    edge.stop().await;
}

/// Two files may name one `runtime_dir`; what is asked with the other one is not meant for this edge.
#[tokio::test]
async fn an_edge_is_changed_with_the_file_it_runs_with_alone() {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let (own, other) = (edge.dir().join("edge.yaml"), edge.dir().join("other.yaml"));
    let text = std::fs::read_to_string(&own).unwrap();
    std::fs::write(&other, format!("{text}    wrokers: 3\n")).unwrap();
    let asked = async |file: &std::path::Path, words: &[&str]| {
        let mut command = tokio::process::Command::new(BINARY);
        let output = command.args(words).arg("--config").arg(file).output().await.unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        (output.status.code(), said)
    };
    for words in [
        &["reload"][..],
        &["reload", "a"],
        &["restart", "a"],
        &["scale", "a", "2"],
        &["maintenance", "on", "a"],
        &["certs", "renew", "a.test"],
    ] {
        let (status, said) = asked(&other, words).await;
        let names = format!("uses {}, not {}: nothing was changed", own.display(), other.display());
        assert!(status == Some(1) && said.contains(&names), "{words:?}: {status:?} {said}");
    }
    assert_eq!(edge.workers("a").await, before);
    assert_eq!(edge.status().await["apps"]["a"]["state"], "up");
    for words in [&["status"][..], &["certs"], &["logs"]] {
        assert_eq!(asked(&other, words).await.0, Some(0), "{words:?}");
    }
    // By another name it is the same file.
    let link = edge.dir().join("link.yaml");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let (status, said) = asked(&link, &["reload"]).await;
    assert!(status == Some(0) && said.contains("nothing has changed"), "{said}");

    // A mistyped key leads elsewhere: that it is one is told, and nobody is sent to restart edge with such a file.
    edge.edit("runtime_dir:", "runtime_dirr:");
    let (status, said) = asked(&own, &["reload"]).await;
    assert_eq!(status, Some(78), "{said}");
    let (mistake, whose) = said.split_once("edge: no edge answers at ").expect("both are told");
    assert!(mistake.contains("runtime_dirr") && whose.contains(&edge.pid().to_string()), "{said}");
    assert!(!said.contains("restart"), "{said}");
    edge.edit("runtime_dirr:", "runtime_dir:");
    edge.stop().await;
}
