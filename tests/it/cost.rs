//! What a request costs, in system calls: counted, because time on a shared machine says little.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, setpriority_process};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::edge::{Edge, Setup};
use crate::support::{processes, within};

const CONNECTIONS: usize = 64;

/// Every request is one read from the client, one write to the worker, one read from it and one write to the client. The rest is
/// shared: readiness of many connections is learned at once, access lines are written many at a time.
#[tokio::test]
async fn a_proxied_request_makes_four_system_calls() {
    let edge = Setup::new()
        .top("threads: 1\nlimits: {connections_per_client: 0, in_flight_per_client: 0}")
        .app("app", "domains: [a.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("app").await;
    gives_way(&edge);
    let mut best: Option<Shares> = None;
    // A busy machine may let edge wait, which costs more looks for readiness; it cannot make edge do less than it has to.
    for _ in 0..10 {
        let shares = shares(&edge, CONNECTIONS, 100).await;
        println!("figure: {:.2} system calls a proxied request: {shares:.3?}", total(&shares));
        let working = total(&shares) - shares.get("epoll_wait").copied().unwrap_or(0.0);
        assert!(
            (4.0..=4.1).contains(&working),
            "{working:.2} system calls a request besides epoll_wait: {shares:.3?}"
        );
        if best.as_ref().is_none_or(|best| total(&shares) < total(best)) {
            best = Some(shares);
        }
        if best.as_ref().is_some_and(|best| total(best) <= 4.1) {
            break;
        }
    }
    let best = best.expect("at least one round");
    assert!(total(&best) <= 4.1, "{:.2} system calls a request: {best:.3?}", total(&best));

    // One client alone: edge sleeps until the request is here, and until the answer is; that the worker has read what it was
    // sent is nothing to wake up for.
    let mut waits = f64::INFINITY;
    for _ in 0..10 {
        let shares = shares(&edge, 1, 500).await;
        println!("figure: {:.2} system calls a request of one client: {shares:.3?}", total(&shares));
        waits = waits.min(shares.get("epoll_wait").copied().unwrap_or(0.0));
        if waits <= 2.1 {
            break;
        }
    }
    assert!((1.0..=2.1).contains(&waits), "{waits:.2} waits a request");
    edge.stop().await;
}

/// Has its clients and its worker go before edge where the machine is busy: it is edge that is to have more to do than it can.
fn gives_way(edge: &Edge) {
    for thread in threads(edge) {
        let thread = Pid::from_raw(thread.cast_signed()).expect("not zero");
        setpriority_process(Some(thread), 10).expect("whoever started it may");
    }
}

/// Those that work for requests: who serves, and who writes the lines of the log. Others look after workers, certificates and
/// memory by the clock.
fn threads(edge: &Edge) -> Vec<u32> {
    let serves = |path: &Path| {
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        name == "lines\n" || name.starts_with("edge-data-")
    };
    let serving = tasks(edge).filter(|task| serves(&task.path()));
    let threads: Vec<u32> = serving
        .map(|task| task.file_name().to_str().and_then(|id| id.parse().ok()).expect("a number"))
        .collect();
    assert_eq!(threads.len(), 2, "their names have changed");
    threads
}

fn tasks(edge: &Edge) -> impl Iterator<Item = std::fs::DirEntry> {
    std::fs::read_dir(format!("/proc/{}/task", edge.pid())).expect("its threads").flatten()
}

/// How often the threads that do not work for requests have slept.
fn sleeps_of_others(edge: &Edge) -> u64 {
    let serving = threads(edge);
    let serves = |task: &std::fs::DirEntry| {
        serving.iter().any(|thread| task.file_name().to_str() == Some(&thread.to_string()))
    };
    let slept = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
    };
    tasks(edge).filter(|task| !serves(task)).filter_map(slept).sum()
}

type Shares = BTreeMap<String, f64>;

fn total(shares: &Shares) -> f64 {
    shares.values().sum()
}

/// What each system call adds to a request. What connections and handshakes cost is the same in both rounds and falls out.
async fn shares(edge: &Edge, connections: usize, each: usize) -> Shares {
    let few = traced(edge, connections, 20).await;
    let many = traced(edge, connections, each + 20).await;
    let requests = (connections * each) as f64;
    let share =
        |call: &String, calls: u64| (calls as f64 - few.get(call).copied().unwrap_or(0) as f64) / requests;
    let shares = many.iter().map(|(call, calls)| (call.clone(), share(call, *calls)));
    shares.filter(|(_, share)| *share > 0.002).collect()
}

/// System calls of edge for requests, by name, while every connection asks `each` times.
async fn traced(edge: &Edge, connections: usize, each: usize) -> BTreeMap<String, u64> {
    let file = edge.dir().join(format!("calls-{connections}-{each}"));
    let threads = threads(edge);
    let mut strace = Command::new("strace")
        .args(["-c", "-U", "calls,name", "-o"])
        .arg(&file)
        .args(threads.iter().flat_map(|thread| ["-p".to_owned(), thread.to_string()]))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("strace is installed (tests/run does it)");
    let mut said = BufReader::new(strace.stderr.take().expect("a pipe")).lines();
    for _ in threads {
        let attached =
            within(Duration::from_secs(10), "strace watches", said.next_line()).await.expect("a line");
        assert!(attached.as_ref().is_some_and(|line| line.contains("attached")), "strace: {attached:?}");
    }
    let config = Arc::new(edge.trust().await.offering(&["http/1.1"]));
    let (address, slept) = (edge.https, sleeps_of_others(edge));
    tokio::task::spawn_blocking(move || ask_all_at_once(&config, address, connections, each))
        .await
        .expect("the answers are well");
    let slept = sleeps_of_others(edge).saturating_sub(slept);
    let requests = (connections * each) as u64;
    println!("figure: the other threads woke {slept} times in {requests} requests");
    assert!(slept < requests.max(1000) / 2, "{slept}: others wake for requests, too");
    processes::signal(strace.id().expect("it runs"), Signal::SIGINT);
    within(Duration::from_secs(10), "strace ends", strace.wait()).await.expect("its status");
    let counts = std::fs::read_to_string(&file).expect("strace has written");
    let counted = counts.lines().filter_map(|line| {
        let (calls, name) = line.trim().split_once(' ')?;
        Some((name.trim().to_owned(), calls.parse().ok()?))
    });
    counted.filter(|(name, _)| name != "total").collect()
}

/// All connections ask before any reads its answer: edge has more to do than it can, as under load.
fn ask_all_at_once(config: &Arc<ClientConfig>, address: SocketAddr, connections: usize, times: usize) {
    let mut streams: Vec<_> = (0..connections)
        .map(|_| {
            let name = ServerName::try_from("a.test").expect("a name");
            let session = ClientConnection::new(Arc::clone(config), name).expect("a session");
            StreamOwned::new(session, TcpStream::connect(address).expect("a connection"))
        })
        .collect();
    let mut answer = [0; 4096];
    for _ in 0..times {
        for stream in &mut streams {
            stream.write_all(b"GET /status/200 HTTP/1.1\r\nhost: a.test\r\n\r\n").expect("it is sent");
        }
        for stream in &mut streams {
            // One record: head and body.
            let length = stream.read(&mut answer).expect("an answer");
            assert!(
                answer[..length].starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&answer[..length])
            );
        }
    }
}
