//! Workers are kept running, whatever happens to them or to edge.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::io::AsyncBufReadExt;

use crate::support::client::{Connection, Wire};
use crate::support::edge::{Setup, pid, sockets_below};
use crate::support::load::{Client, Load};
use crate::support::{full_length, processes, until};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\n";

#[tokio::test]
async fn a_worker_that_dies_is_replaced() {
    let edge = Setup::new().app("a", &format!("{HELLO}workers: 2")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let killed = before[0];
    processes::signal(killed, Signal::SIGKILL);
    let workers = until(Duration::from_secs(10), "a replacement", async || {
        let workers = edge.workers("a").await;
        (workers.len() == 2 && !workers.contains(&killed)).then_some(workers)
    })
    .await;
    assert!(workers.contains(&before[1]), "the other worker was touched");
    let status = edge.status().await;
    let replaced =
        status["apps"]["a"]["workers"].as_array().unwrap().iter().find(|worker| worker["restarts"] == 1);
    let last_exit = replaced.expect("a slot with one restart")["last_exit"].as_str().unwrap_or_default();
    assert!(last_exit.to_ascii_uppercase().contains("KILL") || last_exit.contains('9'), "{last_exit:?}");
    edge.stop().await;
}

#[tokio::test]
async fn killing_workers_costs_no_get() {
    let edge = Setup::new().app("a", &format!("{HELLO}workers: 4")).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let clients = (0..8).map(|at| Client {
        address: edge.https,
        host: "a.test".into(),
        path: if at % 2 == 0 { "/" } else { "/slow/20" },
        wire: if at < 4 { Wire::H1 } else { Wire::H2 },
        trust: trust.clone(),
        per_connection: 50,
        pause: Duration::from_millis(5),
    });
    let load = Load::start(clients);
    let storm = Instant::now();
    let length = Duration::from_secs(if full_length() { 30 } else { 10 });
    let mut kills = 0;
    // As many as prove something, also where each look at the workers takes long.
    while storm.elapsed() < length || kills <= 10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(victim) = fastrand::choice(edge.workers("a").await) {
            processes::signal(victim, Signal::SIGKILL);
            kills += 1;
        }
    }
    let tally = load.stop().await;
    println!(
        "figure: {kills} kills, {} answers, slowest {:?}, {} failed",
        tally.good,
        tally.slowest,
        tally.failed.len()
    );
    assert!(tally.failed.is_empty(), "{} of {}: {:#?}", tally.failed.len(), tally.good, tally.failed);
    assert!(kills > 10 && tally.good > 500, "{kills} kills, {} answers prove little", tally.good);
    edge.wait_until_up("a").await;
    edge.stop().await;
}

#[tokio::test]
async fn a_command_that_is_never_ready_is_explained() {
    let edge = Setup::new()
        .app("a", "domains: [a.test]\ncommand: sleep 1000\nworkers: 1\nstart_timeout: 1s")
        .start()
        .await;
    edge.wait_for_log("why the worker is not ready", |line| {
        let text = line.to_string();
        line["app"] == "a" && (text.contains("not ready") || text.contains("start_timeout"))
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn a_command_that_fails_at_once_is_explained_and_tried_again_ever_more_slowly() {
    let yaml = "domains: [a.test]\ncommand: sh -c 'echo no database >&2; exit 3'\nworkers: 1\n\
                restart:\n  backoff: 100ms\n  max_backoff: 1s";
    let edge = Setup::new().app("a", yaml).start().await;
    let worker = until(Duration::from_secs(15), "three restarts", async || {
        let status = edge.status().await;
        let worker = status["apps"]["a"]["workers"][0].clone();
        (worker["restarts"].as_u64() >= Some(3)).then_some(worker)
    })
    .await;
    assert!(worker["last_exit"].as_str().unwrap_or_default().contains('3'), "{worker}");
    edge.wait_for_log("the command's own words", |line| line.to_string().contains("no database")).await;
    let restarts = worker["restarts"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = edge.status().await["apps"]["a"]["workers"][0]["restarts"].as_u64().unwrap();
    assert!(now > restarts, "it has given up");
    assert!(now - restarts < 12, "{} restarts in three seconds", now - restarts);
    edge.stop().await;
}

#[tokio::test]
async fn output_of_workers_is_logged_with_app_slot_and_pid() {
    let yaml = "domains: [a.test]\ncommand: sh -c 'echo to stdout; echo to stderr >&2; exec edge hello'\nworkers: 1\n\
                server: generic\ntransport: tcp";
    let edge = Setup::new().app("a", yaml).start().await;
    edge.wait_until_up("a").await;
    let worker = edge.workers("a").await[0];
    for words in ["to stdout", "to stderr"] {
        let line =
            edge.wait_for_log(words, |line| line.to_string().contains(words) && line["pid"].is_u64()).await;
        assert_eq!(line["app"], "a", "{line}");
        assert_eq!(line["worker"], 0, "{line}");
        assert_eq!(line["pid"], worker, "{line}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn every_worker_gets_its_own_environment() {
    let yaml = "domains: [a.test]\nworkers: 2\nenvironment:\n  GREETING: hello\n\
                command: sh -c 'echo \"env $EDGE_APP $EDGE_WORKER $GREETING $WEB_CONCURRENCY $PYTHONUNBUFFERED\"; exec edge hello'\n\
                server: generic\ntransport: tcp";
    let edge = Setup::new().app("a", yaml).start().await;
    for slot in 0..2 {
        let words = format!("env a {slot} hello 1 1");
        let line = edge.wait_for_log(&words, |line| line.to_string().contains(&words)).await;
        assert_eq!(line["worker"], slot, "{line}");
    }
    edge.wait_until_up("a").await;
    edge.stop().await;
}

#[tokio::test]
async fn the_load_is_spread_over_all_workers() {
    let edge = Setup::new().top("threads: 1").app("a", &format!("{HELLO}workers: 4")).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let load = Load::start((0..8).map(|_| Client {
        address: edge.https,
        host: "a.test".into(),
        path: "/slow/50",
        wire: Wire::H2,
        trust: trust.clone(),
        per_connection: u32::MAX,
        pause: Duration::ZERO,
    }));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    let status = edge.status().await;
    let shares =
        status["apps"]["a"]["workers"].as_array().unwrap().iter().map(|worker| worker["requests"].as_u64());
    let shares: Vec<u64> = shares.map(Option::unwrap).collect();
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(*least * 2 > *most, "{shares:?}");
    edge.stop().await;
}

#[tokio::test]
async fn no_worker_outlives_an_edge_that_was_killed_and_leftovers_are_swept() {
    let mut edge = Setup::new().app("a", &format!("{HELLO}workers: 3")).start().await;
    edge.wait_until_up("a").await;
    let workers = edge.workers("a").await;
    assert_eq!(workers.len(), 3);
    edge.kill().await;
    until(Duration::from_secs(5), "the workers are gone", async || {
        workers.iter().all(|worker| !processes::is_alive(*worker)).then_some(())
    })
    .await;
    let stale = sockets_below(&edge.dir().join("run"));
    assert!(!stale.is_empty(), "a killed edge leaves its sockets: without them this test proves nothing");
    edge.restart().await;
    edge.wait_until_up("a").await;
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    let now = sockets_below(&edge.dir().join("run"));
    assert_eq!(now.len(), 4, "one for each worker and the admin socket: {now:?}");
    edge.stop().await;
}

#[tokio::test]
async fn edge_leaves_no_zombies_while_it_runs() {
    let yaml =
        "domains: [a.test]\nworkers: 2\nrestart:\n  backoff: 50ms\n  max_backoff: 50ms\ncommand: \"false\"";
    let edge = Setup::new().app("a", yaml).start().await;
    until(Duration::from_secs(15), "several deaths", async || {
        let status = edge.status().await;
        (status["apps"]["a"]["workers"][0]["restarts"].as_u64() >= Some(5)).then_some(())
    })
    .await;
    // A child that died this instant may not have been waited for yet; one that stays dead is a zombie.
    until(Duration::from_secs(5), "no zombie", async || {
        processes::children_of(edge.pid()).iter().all(|(_, state)| *state != 'Z').then_some(())
    })
    .await;
    edge.stop().await;
}

/// Traces a process until its own standard input ends.
const DEBUGGER: &str = r"
import ctypes, sys
PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
if libc.ptrace(PTRACE_SEIZE, int(sys.argv[1]), None, None) != 0:
    sys.exit('cannot trace: error %d' % ctypes.get_errno())
print('traces', flush=True)
sys.stdin.read()
";

#[tokio::test]
async fn a_worker_that_a_debugger_holds_on_to_after_its_end_is_replaced_and_holds_up_nobody() {
    // Whom an ordinary user may trace is the system's to say.
    if !processes::root() {
        return;
    }
    let edge = Setup::new().app("a", &format!("{HELLO}workers: 1")).start().await;
    edge.wait_until_up("a").await;
    let held = edge.workers("a").await[0];
    let mut debugger = tokio::process::Command::new("python3")
        .args(["-c", DEBUGGER, &held.to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut says = String::new();
    let stdout = debugger.stdout.as_mut().unwrap();
    tokio::io::BufReader::new(stdout).read_line(&mut says).await.unwrap();
    assert_eq!(says, "traces\n");
    processes::signal(held, Signal::SIGKILL);
    until(Duration::from_secs(10), "another worker", async || {
        (edge.status().await["apps"]["a"]["state"] == "up" && edge.workers("a").await != [held]).then_some(())
    })
    .await;
    assert!(processes::children_of(edge.pid()).contains(&(held, 'Z')), "the debugger has let go");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H1).await.get("/").await.status, 200);
    drop(debugger.stdin.take());
    assert!(debugger.wait().await.unwrap().success());
    until(Duration::from_secs(5), "no zombie", async || {
        processes::children_of(edge.pid()).iter().all(|(_, state)| *state != 'Z').then_some(())
    })
    .await;
    edge.stop().await;
}

#[tokio::test]
async fn workers_whose_sockets_somebody_has_removed_are_replaced() {
    let edge = Setup::new().app("a", &format!("{HELLO}workers: 2\ntransport: unix")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    for socket in sockets_below(&edge.dir().join("run/a")) {
        std::fs::remove_file(socket).unwrap();
    }
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 502, "there was a socket left");
    until(Duration::from_secs(30), "nobody left who cannot be reached", async || {
        // Each is looked at once a request has missed it.
        let answered = connection.get("/").await.status == 200;
        let now = edge.workers("a").await;
        (answered && now.len() == 2 && before.iter().all(|gone| !now.contains(gone))).then_some(())
    })
    .await;
    let told = |line: &serde_json::Value| {
        line["reason"].as_str().is_some_and(|why| why.starts_with("nobody listens at unix:"))
    };
    assert_eq!(edge.log_objects().iter().filter(|line| told(line)).count(), 2);
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_is_root_only_where_the_file_says_so() {
    // The question only arises for root; everybody else's workers run as themselves.
    let edge = Setup::new().app_as_written("a", &format!("{HELLO}workers: 1")).start().await;
    let state = edge.wait_until_up("a").await;
    let worker = pid(&state["workers"][0]).expect("a worker");
    let own = nix::unistd::geteuid().as_raw();
    assert_eq!(processes::uid_of(worker) == own, own != 0);
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_that_answers_nonsense_or_half_is_reported_and_the_next_request_is_served() {
    let edge = Setup::new()
        .app("a", &format!("{HELLO}workers: 2\nenvironment:\n  EDGE_HELLO_FAULTS: \"1\""))
        .start()
        .await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/garbage").await.status, 502);
    assert!(connection.try_get("/truncate").await.is_err(), "half an answer was taken for a whole one");
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let post = connection.post("/exit/7", "").await;
    assert_eq!(post.status, 502, "{}", post.text());
    assert_eq!(connection.get("/").await.status, 200);
    edge.wait_until_up("a").await;
    edge.stop().await;
}
