//! How many workers an app has: by its load, by what an operator says, by what fits into memory.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::client::{Connection, PATIENCE, Wire};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::until;

const RANGE: &str = "domains: [a.test]\ncommand: edge hello\nworkers: {min: 1, max: 4}\n";

async fn busy(edge: &Edge, clients: usize) -> Load {
    let trust = edge.trust().await;
    Load::start((0..clients).map(|_| Client {
        address: edge.https,
        host: "a.test".into(),
        path: "/slow/200",
        wire: Wire::H2,
        trust: trust.clone(),
        per_connection: u32::MAX,
        pause: Duration::ZERO,
    }))
}

async fn scale(edge: &Edge) -> Value {
    edge.status().await["apps"]["a"]["scale"].take()
}

async fn until_target(edge: &Edge, target: u64) {
    until(PATIENCE, &format!("{target} workers"), async || {
        let app = edge.status().await["apps"]["a"].take();
        assert_ne!(app["state"], "degraded", "an app that grows lacks nothing: {app:#}");
        let ready = app["workers"].as_array()?.iter().filter(|worker| worker["state"] == "ready").count();
        (app["scale"]["target"] == target && ready as u64 == target).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_that_wait_bring_more_workers_and_calm_takes_them_away_without_a_failure() {
    let edge = Setup::new().app("a", &format!("{RANGE}concurrency: 1")).start().await;
    edge.wait_until_up("a").await;
    let first = edge.workers("a").await;
    assert_eq!(first.len(), 1, "it begins with the least");
    let load = busy(&edge, 8).await;
    until_target(&edge, 4).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let all = edge.workers("a").await;
    assert!(all.contains(&first[0]), "who served was touched");
    let line = edge.wait_for_log("why", |line| line["msg"] == "scaling up" && line["app"] == "a").await;
    assert!(line["reason"].as_str().unwrap_or_default().contains("wait for a worker"), "{line}");
    assert!(edge.done(&["status"]).await.contains("4 wanted of 1 to 4 by the load"));

    // The last one goes first, after half a minute.
    until(Duration::from_secs(60), "one less", async || (scale(&edge).await["target"] == 3).then_some(()))
        .await;
    edge.wait_for_log("that it is said", |line| line["msg"] == "scaling down").await;
    until(PATIENCE, "three are left", async || (edge.workers("a").await.len() == 3).then_some(())).await;
    assert!(edge.workers("a").await.iter().all(|pid| all.contains(pid)));
    edge.stop().await;
}

#[tokio::test]
async fn workers_without_a_limit_grow_by_what_they_have_not_answered() {
    let edge = Setup::new().app("a", RANGE).start().await;
    edge.wait_until_up("a").await;
    let load = busy(&edge, 20).await;
    until_target(&edge, 4).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    edge.wait_for_log("why", |line| {
        line["msg"] == "scaling up" && line["reason"].as_str().is_some_and(|text| text.contains("busy"))
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn an_operators_number_holds_until_auto_and_a_changed_range_touches_nobody_who_may_stay() {
    let edge = Setup::new().app("a", &format!("{RANGE}concurrency: 1")).start().await;
    edge.wait_until_up("a").await;
    // Outside of the range is an operator's right.
    assert!(edge.done(&["scale", "a", "6"]).await.contains("the file says 1 to 4"));
    let six = edge.workers("a").await;
    assert_eq!(six.len(), 6);
    let held = scale(&edge).await;
    assert_eq!(
        (&held["min"], &held["max"], &held["target"], &held["held"]),
        (&1.into(), &4.into(), &6.into(), &true.into())
    );
    assert!(edge.done(&["status"]).await.contains("held at 6 by `edge scale`"));
    edge.done(&["scale", "a", "1"]).await;
    let load = busy(&edge, 8).await;
    // A deploy of the same is no change of the file: the number stays, whatever the load.
    edge.done(&["reload", "a"]).await;
    assert_eq!((edge.workers("a").await.len(), scale(&edge).await["held"].clone()), (1, true.into()));
    assert!(edge.done(&["scale", "a", "auto"]).await.contains("1 to 4 by the load"));
    until_target(&edge, 4).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);

    let four = edge.workers("a").await;
    edge.edit("max: 4", "max: 9");
    edge.reload().await;
    assert_eq!(edge.workers("a").await, four);
    edge.edit("min: 1, max: 9", "min: 2, max: 3");
    edge.reload().await;
    let three = edge.workers("a").await;
    assert!(three.len() == 3 && three.iter().all(|pid| four.contains(pid)), "{four:?} {three:?}");
    edge.edit("{min: 2, max: 3}", "5");
    edge.reload().await;
    let five = edge.workers("a").await;
    assert!(five.len() == 5 && three.iter().all(|pid| five.contains(pid)), "{three:?} {five:?}");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_number_that_is_not_reached_is_tried_again_until_it_is_taken_back() {
    let setup = Setup::new();
    let full = setup.dir().join("full");
    let command =
        format!("[ $EDGE_WORKER = 0 ] || [ ! -e {} ] || {{ echo no room; exit 3; }}", full.display());
    let yaml = format!("domains: [a.test]\ncommand: [sh, -c, '{command}; exec edge hello']\nworkers: 1");
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let first = edge.workers("a").await;
    let not_scaled = async |number: &str, words: &str| {
        let (status, said) = edge.failing(&["scale", "a", number]).await;
        assert!(status == 1 && said.contains("\n  no room\n") && said.ends_with(words), "{said}");
        let state = edge.status().await["apps"]["a"].take();
        assert_eq!((&state["state"], &state["scale"]["held"]), (&"degraded".into(), &true.into()), "{state}");
    };
    std::fs::write(&full, "").unwrap();
    not_scaled(
        "2",
        "a: 1 of 2 workers ready; edge goes on trying until `edge scale a auto` takes that back\n",
    )
    .await;
    assert!(edge.done(&["status"]).await.contains("1 of 2 ready, held at 2 by `edge scale`"));
    assert!(edge.reload().await.contains("nothing has changed"));
    assert!(edge.done(&["scale", "a", "auto"]).await.ends_with("a: 1 worker serves\n"));
    assert_eq!(
        (edge.workers("a").await, edge.wait_until_up("a").await["scale"]["held"].clone()),
        (first.clone(), false.into())
    );

    not_scaled("2", "takes that back\n").await;
    std::fs::remove_file(&full).unwrap();
    until_ready(&edge, 2).await;
    std::fs::write(&full, "").unwrap();
    not_scaled("3", "a: 2 of 3 workers ready; edge goes on trying until `edge scale a 2` takes that back\n")
        .await;
    assert!(edge.done(&["scale", "a", "2"]).await.contains("a: 2 workers serve, until `edge scale a auto`"));
    let said = edge.done(&["scale", "a", "1"]).await;
    assert!(said.starts_with("a: scaling to 1 worker\na: 1 worker serves, until "), "{said}");
    assert_eq!(edge.workers("a").await, first);
    edge.stop().await;
}

async fn until_ready(edge: &Edge, workers: usize) {
    until(PATIENCE, "they are ready", async || (edge.workers("a").await.len() == workers).then_some(()))
        .await;
}

#[tokio::test]
async fn a_range_survives_a_change_of_how_its_workers_are_run() {
    let edge = Setup::new().app("a", &format!("{RANGE}concurrency: 1")).start().await;
    edge.wait_until_up("a").await;
    edge.done(&["scale", "a", "3"]).await;
    edge.edit("concurrency: 1", "concurrency: 2");
    edge.reload().await;
    // No fewer than there were, because the load may need them; and no number of an operator's any more.
    let now = scale(&edge).await;
    assert_eq!((edge.workers("a").await.len(), &now["target"], &now["held"]), (3, &3.into(), &false.into()));
    // What fails keeps the number with the rest.
    edge.done(&["scale", "a", "2"]).await;
    edge.edit("command: edge hello", "command: [sh, -c, 'exit 3']");
    edge.failing(&["reload"]).await;
    let now = scale(&edge).await;
    assert_eq!((&now["target"], &now["held"]), (&2.into(), &true.into()));
    edge.stop().await;
}

/// The machine of a container: what the kernel says of memory comes from a file of the test's own. Where this process may not
/// mount anything, nothing can be shown here; the decision itself is tested by its tables.
fn can_mount() -> bool {
    Command::new("unshare")
        .args(["-m", "mount", "--bind", "/proc/meminfo", "/proc/meminfo"])
        .status()
        .is_ok_and(|status| status.success())
}

#[tokio::test]
async fn where_memory_is_short_a_worker_goes_before_its_successor_and_requests_wait() {
    if !can_mount() {
        return;
    }
    let setup = Setup::new();
    let memory = setup.dir().join("meminfo");
    let has = |kilobytes: u64| {
        // In place: it is this file that is mounted.
        std::fs::write(&memory, format!("MemTotal: 8000000 kB\nMemAvailable: {kilobytes} kB\n")).unwrap();
    };
    has(8_000_000);
    let edge = setup
        .app("a", &format!("{RANGE}concurrency: 1"))
        .inside(&[
            "unshare",
            "-m",
            "sh",
            "-c",
            &format!("mount --bind {} /proc/meminfo; exec \"$0\" \"$@\"", memory.display()),
        ])
        .start()
        .await;
    edge.wait_until_up("a").await;
    let first = edge.workers("a").await;
    until(PATIENCE, "its memory is known", async || {
        (edge.status().await["apps"]["a"]["workers"][0]["memory_bytes"].as_u64() > Some(1 << 20))
            .then_some(())
    })
    .await;
    has(1000);
    let load = busy(&edge, 4).await;
    edge.wait_for_log("that there is no room for more", |line| {
        line["msg"] == "memory has no room for one more worker"
    })
    .await;
    let said = edge.done(&["restart", "a"]).await;
    assert!(said.contains("memory has no room for a successor"), "{said}");
    edge.wait_for_log("that it is done", |line| {
        line["msg"].as_str().is_some_and(|text| text.contains("it goes first"))
    })
    .await;
    let second = edge.workers("a").await;
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
    has(8_000_000);
    until_target(&edge, 4).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "requests were refused, not held: {:?}", tally.failed);
    edge.stop().await;
}
