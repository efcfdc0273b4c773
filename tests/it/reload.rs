//! A changed configuration comes into force where it changed, and nowhere else; or not at all.

use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Connection, PATIENCE, Wire, raw, websocket};
use crate::support::edge::{BINARY, Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::origin::Origin;
use crate::support::{until, within};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 2";

async fn hello() -> Edge {
    let edge = Setup::new().app("a", HELLO).start().await;
    edge.wait_until_up("a").await;
    edge
}

#[tokio::test]
async fn a_reload_without_a_change_touches_nothing() {
    let edge = hello().await;
    let before = (edge.workers("a").await, edge.certificate("a.test").await);
    let mut idle = Connection::open(&edge, "a.test", Wire::H1).await;
    let mut busy = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    assert_eq!(idle.get("/").await.status, 200);
    let slow = tokio::spawn(async move { busy.get("/slow/1500").await });
    assert!(edge.reload().await.contains("nothing has changed"));
    // A storm of signals is one reload or two, and changes as little.
    (0..20).for_each(|_| edge.signal(Signal::SIGHUP));
    edge.wait_for_log("the signal's reload", |line| line.to_string().contains("nothing has changed")).await;
    assert_eq!(slow.await.unwrap().status, 200);
    assert_eq!(idle.get("/").await.status, 200, "the idle connection was closed");
    socket.send(Message::text("still there?")).await.unwrap();
    let echo = within(PATIENCE, "the echo", socket.next()).await.expect("open").unwrap();
    assert_eq!(echo.into_text().unwrap().as_str(), "still there?");
    assert_eq!((edge.workers("a").await, edge.certificate("a.test").await), before);
    drop(socket);
    edge.stop().await;
}

#[tokio::test]
async fn a_wrong_file_changes_nothing_and_every_problem_is_told() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    edge.edit("domains: [a.test]", "domains: [b.test]\n    wrokers: 3\n    max_body: lots");
    let (status, errors) = edge.refused(&["reload"]).await;
    assert_eq!(status, 78, "{errors}");
    for wanted in ["wrokers", "workers", "max_body"] {
        assert!(errors.contains(wanted), "{wanted} not in {errors}");
    }
    edge.signal(Signal::SIGHUP);
    edge.wait_for_log("the problems", |line| {
        let text = line.to_string();
        text.contains("wrokers") && text.contains("max_body")
    })
    .await;
    edge.wait_for_log("what stays", |line| line.to_string().contains("stays; nothing was changed")).await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    assert_eq!(edge.workers("a").await, before);
    edge.stop().await;
}

#[tokio::test]
async fn a_key_that_needs_a_restart_is_refused_by_name() {
    let edge = hello().await;
    edge.edit("domains: [a.test]", "domains: [a.test, b.test]");
    edge.edit("apps:", "log: {level: debug, access: false}\napps:");
    let (status, errors) = edge.refused(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(
        errors.contains("log.level") && errors.contains("log.access") && errors.contains("restart"),
        "{errors}"
    );
    assert!(edge.certificate("b.test").await.is_null(), "half of the change came into force");
    edge.edit("log: {level: debug, access: false}\n", "");
    let (status, errors) = edge.refused(&["reload", "nobody"]).await;
    assert!(status == 1 && errors.contains("no app named \"nobody\"; it has a\n"), "{errors}");
    assert!(edge.certificate("b.test").await.is_null(), "half of the change came into force");
    edge.stop().await;
}

#[tokio::test]
async fn other_limits_hold_for_connections_that_come_after_the_reload() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let path = format!("/?{}", "x".repeat(200));
    let mut old = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(old.get(&path).await.status, 200);
    edge.edit("apps:", "limits: {uri_size: 100}\ntimeouts: {keepalive: 1s}\napps:");
    edge.reload().await;
    // A connection keeps the rules it began with.
    assert_eq!(old.get(&path).await.status, 200);
    for wire in Wire::BOTH {
        assert_eq!(Connection::open(&edge, "a.test", wire).await.get(&path).await.status, 414, "{wire:?}");
    }
    let mut idle = raw(&edge, "a.test").await;
    idle.write("GET /json HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    idle.read_to_close().await;
    assert_eq!(edge.workers("a").await, before, "workers have nothing to do with it");
    edge.stop().await;
}

#[tokio::test]
async fn a_domain_is_added_and_removed_while_connections_live_on() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 200);
    edge.edit("[a.test]", "[a.test, b.test]");
    edge.reload().await;
    assert_eq!(Connection::open(&edge, "b.test", Wire::H1).await.get("/").await.status, 200);
    assert_eq!(connection.get("/").await.status, 200);
    edge.edit("[a.test, b.test]", "[a.test]");
    edge.reload().await;
    let trust = edge.trust().await;
    assert!(Connection::to(edge.https, "b.test", Wire::H1, &trust).await.is_err(), "still served");
    assert_eq!(connection.get("/").await.status, 200);
    assert_eq!(edge.workers("a").await, before, "workers were touched");
    edge.stop().await;
}

#[tokio::test]
async fn an_app_is_added_and_removed_beside_another() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let mut socket = websocket(&edge, "a.test", "/ws").await;
    let user = if crate::support::processes::root() { "user: root, " } else { "" };
    let added = format!("apps:\n  b: {{domains: [b.test], {user}command: edge hello, workers: 1}}\n");
    edge.edit("apps:\n", &added);
    edge.reload().await;
    let mut to_b = Connection::open(&edge, "b.test", Wire::H1).await;
    assert_eq!(to_b.get("/").await.status, 200, "not ready when the reload had ended");
    let workers_of_b = edge.workers("b").await;
    let slow = tokio::spawn(async move { to_b.get("/slow/3000").await });
    until(PATIENCE, "a request in flight", async || {
        let status = edge.status().await;
        (status["apps"]["b"]["workers"][0]["in_flight"] == 1).then_some(())
    })
    .await;
    edge.edit(&added, "apps:\n");
    edge.reload().await;
    assert_eq!(slow.await.unwrap().status, 200, "a request in flight was lost");
    assert!(edge.status().await["apps"].get("b").is_none());
    assert!(!crate::support::processes::is_alive(workers_of_b[0]), "a worker of the removed app lives");
    assert_eq!(edge.workers("a").await, before);
    socket.send(Message::text("x")).await.unwrap();
    assert!(within(PATIENCE, "the echo", socket.next()).await.expect("open").is_ok());
    drop(socket);
    edge.stop().await;
}

#[tokio::test]
async fn a_new_app_that_does_not_start_changes_nothing_and_is_explained() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let user = if crate::support::processes::root() { "user: root, " } else { "" };
    let command = "command: [sh, -c, 'echo no database >&2; sleep 1; exit 3']";
    edge.edit(
        "apps:\n",
        &format!("apps:\n  b: {{domains: [b.test], {user}{command}, workers: 1, start_timeout: 3s}}\n"),
    );
    edge.edit("[a.test]", "[a.test, c.test]");
    let (status, errors) = edge.refused(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(errors.contains("app \"b\"") && errors.contains("no database"), "{errors}");
    assert!(edge.status().await["apps"].get("b").is_none());
    assert!(edge.certificate("c.test").await.is_null(), "half of the change came into force");
    assert_eq!(edge.workers("a").await, before);
    edge.stop().await;
}

#[tokio::test]
async fn what_comes_before_a_new_apps_first_worker_has_a_time_of_its_own() {
    let edge = hello().await;
    let user = if crate::support::processes::root() { "user: root, " } else { "" };
    let hook = edge.dir().join("hook.sh");
    std::fs::write(&hook, "exit 3").unwrap();
    // Longer than the reload would wait for a worker that is not ready.
    let app = format!(
        "apps:\n  b: {{domains: [b.test], {user}command: edge hello, workers: 1, start_timeout: 2s, before_start: sh {}}}\n",
        hook.display()
    );
    edge.edit("apps:\n", &app);
    let (status, errors) = edge.failing(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(errors.contains("no worker of it can start") && errors.contains("exit status 3"), "{errors}");
    std::fs::write(&hook, "exec sleep 5").unwrap();
    edge.reload().await;
    assert_eq!(Connection::open(&edge, "b.test", Wire::H1).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn what_comes_before_one_new_app_may_tidy_up_when_another_fails() {
    let edge = hello().await;
    let user = if crate::support::processes::root() { "user: root, " } else { "" };
    let (fails, goes_on) = (edge.dir().join("fails.sh"), edge.dir().join("goes-on.sh"));
    let (begun, undone) = (edge.dir().join("begun"), edge.dir().join("undone"));
    std::fs::write(&fails, format!("while [ ! -e {} ]; do sleep 0.05; done\nexit 3\n", begun.display()))
        .unwrap();
    let undo = format!("trap 'touch {}; exit 1' TERM\ntouch {}\n", undone.display(), begun.display());
    std::fs::write(&goes_on, format!("{undo}while :; do sleep 0.05; done\n")).unwrap();
    let app = |name: &str, script: &std::path::Path| {
        format!(
            "  {name}: {{domains: [{name}.test], {user}command: edge hello, before_start: sh {}}}\n",
            script.display()
        )
    };
    edge.edit("apps:\n", &format!("apps:\n{}{}", app("b", &fails), app("c", &goes_on)));
    let (status, errors) = edge.failing(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(errors.contains("app \"b\": no worker of it can start"), "{errors}");
    assert!(undone.exists(), "it was killed");
    edge.stop().await;
}

#[tokio::test]
async fn what_comes_before_a_new_app_may_tidy_up_when_edge_stops_in_the_middle() {
    let mut edge = hello().await;
    let user = if crate::support::processes::root() { "user: root, " } else { "" };
    let script = edge.dir().join("migrate.sh");
    let (begun, undone) = (edge.dir().join("begun"), edge.dir().join("undone"));
    let undo = format!("trap 'touch {}; exit 1' TERM\ntouch {}\n", undone.display(), begun.display());
    std::fs::write(&script, format!("{undo}while :; do sleep 0.05; done\n")).unwrap();
    let app = format!(
        "  b: {{domains: [b.test], {user}command: edge hello, before_start: sh {}}}\n",
        script.display()
    );
    edge.edit("apps:\n", &format!("apps:\n{app}"));
    edge.signal(Signal::SIGHUP);
    until(PATIENCE, "the migration has begun", async || begun.exists().then_some(())).await;
    edge.signal(Signal::SIGTERM);
    assert_eq!(edge.ended(PATIENCE).await.code(), Some(0));
    assert!(undone.exists(), "it was killed");
    edge.assert_nothing_left().await;
}

/// Says whether two of its kind run at once; the first one never ends by itself.
const MIGRATION: &str = "cd \"$(dirname \"$0\")\"
mkdir running || { touch twice; exit 1; }
trap 'rmdir running; exit 1' TERM
mkdir begun && while :; do sleep 0.05; done
rmdir running
";

#[tokio::test]
async fn what_comes_before_the_first_worker_never_runs_twice_at_once() {
    let setup = Setup::new();
    let script = setup.dir().join("migrate.sh");
    std::fs::write(&script, MIGRATION).unwrap();
    let yaml = format!("{HELLO}\nbefore_start: sh {}", script.display());
    let mut edge = setup.app("a", &yaml).start().await;
    let begun = edge.dir().join("begun");
    let begins = async || begun.exists().then_some(());
    until(PATIENCE, "the first one", begins).await;
    edge.edit("workers: 2", "workers: 2\n    environment: {MENDED: \"1\"}");
    edge.reload().await;
    let app = edge.wait_until_up("a").await;
    assert!(app["failed_deploy"].is_null(), "{app}");
    // One of the same generation, too.
    std::fs::remove_dir(&begun).unwrap();
    let restart = edge.command(&["restart", "a"]);
    let again = async {
        until(PATIENCE, "the second one", begins).await;
        edge.signal(Signal::SIGTERM);
    };
    assert_eq!(tokio::join!(restart, again).0.status.code(), Some(1));
    assert_eq!(edge.ended(Duration::from_secs(25)).await.code(), Some(0));
    edge.assert_nothing_left().await;
    assert!(!edge.dir().join("twice").exists());
    assert!(!edge.dir().join("running").exists(), "it was not let tidy up");
}

#[tokio::test]
async fn listeners_are_opened_and_closed_while_connections_live_on() {
    let edge = hello().await;
    let mut connection = Connection::plain(&edge, "a.test").await;
    assert_eq!(connection.get("/").await.status, 308);
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (other, taken) = (free(), TcpListener::bind("127.0.0.1:0").unwrap());
    let http = "http: [\"127.0.0.1:0\"]";
    let with = |address: SocketAddr| format!("http: [\"127.0.0.1:0\", \"{address}\"]");
    let taken_address = taken.local_addr().unwrap();
    edge.edit(http, &with(taken_address));
    let (status, errors) = edge.refused(&["reload"]).await;
    assert!(status == 1 && errors.contains(&taken_address.to_string()), "{errors}");

    edge.edit(&with(taken_address), &with(other));
    edge.reload().await;
    let stream = TcpStream::connect(other).await.expect("the new address is open");
    let mut there = Connection::over(stream, "http", "a.test", Wire::H1).await.unwrap();
    assert_eq!(there.get("/").await.status, 308);

    // Every address of the machine, in the place of one of them.
    edge.edit(&other.to_string(), &format!(":{}", other.port()));
    edge.reload().await;
    let stream = TcpStream::connect(other).await.expect("the wider address is open");
    let mut wide = Connection::over(stream, "http", "a.test", Wire::H1).await.unwrap();
    assert_eq!(wide.get("/").await.status, 308);

    edge.edit(&format!("http: [\"127.0.0.1:0\", \":{}\"]", other.port()), http);
    edge.reload().await;
    assert!(TcpStream::connect(other).await.is_err(), "the old address is still open");
    for connection in [&mut connection, &mut there, &mut wide] {
        assert_eq!(connection.get("/").await.status, 308, "a connection was dropped");
    }
    assert_eq!(edge.status().await["listeners"].as_array().map(Vec::len), Some(2));
    edge.stop().await;
}

#[tokio::test]
async fn settings_of_an_app_change_without_its_workers() {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", HELLO)
        .app("b", &format!("domains: [b.test]\n{}", origin.upstream()))
        .start()
        .await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.post("/upload", "12345678").await.status, 200);
    edge.edit("domains: [a.test]", "domains: [a.test]\n    max_body: 4B\n    hsts: true");
    edge.reload().await;
    let answer = connection.post("/upload", "12345678").await;
    assert_eq!(answer.status, 413);
    assert!(answer.header("strict-transport-security").starts_with("max-age="));
    assert_eq!(edge.workers("a").await, before);

    let second = Origin::mirror().await;
    edge.edit(&origin.address.to_string(), &second.address.to_string());
    edge.reload().await;
    assert_eq!(Connection::open(&edge, "b.test", Wire::H1).await.get("/").await.status, 200);
    assert_eq!(second.accepted(), 1);
    edge.stop().await;
}

fn clients(edge: &Edge, trust: &crate::support::client::Trust) -> Vec<Client> {
    let client = |at: usize| Client {
        address: edge.https,
        host: "a.test".into(),
        path: if at.is_multiple_of(2) { "/" } else { "/slow/20" },
        wire: if at < 4 { Wire::H1 } else { Wire::H2 },
        trust: trust.clone(),
        per_connection: 50,
        pause: Duration::from_millis(5),
    };
    (0..8).map(client).collect()
}

#[tokio::test]
async fn changed_workers_are_replaced_under_load_without_a_failed_request() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let trust = edge.trust().await;
    let load = Load::start(clients(&edge, &trust));
    edge.edit("domains: [a.test]", "domains: [a.test]\n    environment: {A: \"1\"}");
    edge.reload().await;
    let after = edge.workers("a").await;
    assert_eq!(after.len(), 2);
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    assert!(before.iter().all(|pid| !crate::support::processes::is_alive(*pid)), "an old worker lives");
    let environment = std::fs::read(format!("/proc/{}/environ", after[0])).unwrap();
    assert!(environment.split(|byte| *byte == 0).any(|one| one == b"A=1"));
    // An unchanged file, and fresh workers all the same.
    edge.done(&["reload", "a"]).await;
    let deployed = edge.workers("a").await;
    assert!(deployed.len() == 2 && after.iter().all(|pid| !deployed.contains(pid)), "{after:?} {deployed:?}");
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{} of {}: {:#?}", tally.failed.len(), tally.good, tally.failed);
    edge.stop().await;
}

#[tokio::test]
async fn workers_that_do_not_start_leave_the_old_ones_and_are_explained() {
    let edge = Setup::new().app("a", &format!("{HELLO}\nstart_timeout: 3s")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    edge.edit("command: edge hello", "command: [sh, -c, 'echo no database >&2; exit 3']");
    edge.edit("[a.test]", "[a.test, b.test]");
    let (status, errors) = edge.refused(&["reload"]).await;
    assert_eq!(status, 1);
    assert!(errors.contains("no database"), "{errors}");
    assert_eq!(edge.workers("a").await, before);
    assert!(edge.certificate("b.test").await.is_null(), "half of the change came into force");
    edge.edit("command: [sh, -c, 'echo no database >&2; exit 3']", "command: edge hello");
    edge.reload().await;
    assert_eq!(edge.workers("a").await, before, "nothing about its workers has changed");
    assert_eq!(Connection::open(&edge, "b.test", Wire::H1).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn what_is_known_to_fail_of_one_app_is_known_before_another_is_touched() {
    let edge = Setup::new().app("a", HELLO).app("b", &HELLO.replace("a.test", "b.test")).start().await;
    edge.wait_until_up("a").await;
    edge.wait_until_up("b").await;
    let (a, b) = (edge.workers("a").await, edge.workers("b").await);
    let ran = edge.dir().join("ran");
    let hook = format!("domains: [a.test]\n    before_start: touch {}", ran.display());
    edge.edit("domains: [a.test]", &hook);
    edge.edit("domains: [b.test]", "domains: [b.test]\n    before_start: sh -c 'echo locked >&2; exit 4'");
    let failed = async |words: &[&str]| {
        // As on a terminal: what goes wrong between what goes on.
        let output = tokio::process::Command::new("sh")
            .args(["-c", "exec \"$0\" reload --config \"$1\" 2>&1", BINARY])
            .arg(edge.dir().join("edge.yaml"))
            .output()
            .await
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stdout).unwrap();
        let mut rest = said.as_str();
        for words in words {
            let Some((_, after)) = rest.split_once(words) else { panic!("{words} is not next in {said}") };
            rest = after;
        }
        assert!(!said.contains("replacing its workers"), "{said}");
        assert_eq!((edge.workers("a").await, edge.workers("b").await), (a.clone(), b.clone()));
    };
    failed(&[
        "app \"b\": `sh …` of `before_start` failed",
        "locked",
        "a: its new `before_start` was run",
        "b: its new `before_start` failed",
        "the configuration in force stays; nothing else was changed",
    ])
    .await;
    assert!(ran.exists());
    edge.edit(&hook, "domains: [a.test]\n    before_start: sh -c 'exit 5'");
    failed(&["app \"a\": ", "a: its new `before_start` failed", "b: its new `before_start` was not run"])
        .await;
    edge.edit("domains: [a.test]\n    before_start: sh -c 'exit 5'", &hook);
    edge.edit("    before_start: sh -c 'echo locked >&2; exit 4'\n", "    environment: {PATH: /nowhere}\n");
    edge.edit("domains: [b.test]\n", "domains: [b.test]\n    before_start: /bin/true\n    nice: 1\n");
    let text = std::fs::read_to_string(edge.dir().join("edge.yaml")).unwrap();
    let (first, second) = text.rsplit_once("command: edge hello").unwrap();
    std::fs::write(edge.dir().join("edge.yaml"), format!("{first}command: uvicorn main:app{second}"))
        .unwrap();
    failed(&["app \"b\": `uvicorn` is not in PATH (/nowhere)", "its old workers serve on"]).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_reload_goes_on_when_who_asked_for_it_goes_away() {
    let edge = hello().await;
    let before = edge.workers("a").await;
    let go = edge.dir().join("go");
    let waiting = format!("while [ ! -e {} ]; do sleep 0.1; done; exec edge hello", go.display());
    edge.edit("command: edge hello", &format!("command: [sh, -c, '{waiting}']"));
    let mut asking = tokio::process::Command::new(BINARY)
        .args(["reload", "--config"])
        .arg(edge.dir().join("edge.yaml"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(asking.stdout.take().unwrap()).lines();
    let first = within(PATIENCE, "progress", lines.next_line()).await.unwrap().unwrap();
    assert_eq!(first, "a: replacing its workers");
    asking.kill().await.unwrap();
    until(PATIENCE, "who serves and who comes", async || {
        let shown = edge.done(&["status"]).await;
        let deploying =
            shown.lines().any(|line| line.contains("deploying") && line.ends_with("  2 ready, 1 starting"));
        deploying.then_some(())
    })
    .await;
    std::fs::write(go, "").unwrap();
    until(PATIENCE, "new workers alone", async || {
        let workers = edge.workers("a").await;
        (workers.len() == 2 && before.iter().all(|pid| !workers.contains(pid))).then_some(())
    })
    .await;
    // The next one waits for its turn, and finds nothing left to do.
    assert!(edge.reload().await.contains("nothing has changed"));
    edge.stop().await;
}

#[tokio::test]
async fn edge_stops_in_the_middle_of_a_reload() {
    let edge = hello().await;
    edge.edit("command: edge hello", "command: [sleep, '1000']");
    edge.signal(Signal::SIGHUP);
    edge.wait_for_log("the reload", |line| line.to_string().contains("a: replacing its workers")).await;
    edge.stop().await;
}
