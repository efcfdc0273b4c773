//! The connections between edge and its workers: which of them a request gets, and when they are closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Connection, Trust, Wire, empty, websocket};
use crate::support::edge::{Setup, pid};
use crate::support::{full_length, processes, python, until};

#[tokio::test]
async fn forty_websockets_are_spread_evenly() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 4").start().await;
    edge.wait_until_up("a").await;
    let mut sockets = Vec::new();
    for _ in 0..40 {
        sockets.push(websocket(&edge, "a.test", "/ws").await);
    }
    let status = edge.status().await;
    let workers = status["apps"]["a"]["workers"].as_array().unwrap();
    let shares: Vec<u64> = workers.iter().map(|worker| worker["in_flight"].as_u64().unwrap()).collect();
    println!("figure: 40 WebSockets on four workers: {shares:?}");
    assert!(shares.iter().all(|share| (9..=11).contains(share)), "{shares:?}");
    drop(sockets);
    edge.stop().await;
}

/// How long servers keep an idle connection, in seconds: those that edge cannot tell otherwise, and those it tells 75; and how long
/// edge keeps one itself.
const KEPT: [(&str, &str, &[u64]); 8] = [
    ("uvicorn", "uvicorn main:app", &[5, 60, 75]),
    ("fastapi", "fastapi run main.py", &[4, 5]),
    ("gunicorn", "gunicorn -k uvicorn_worker.UvicornWorker main:app", &[2, 60, 75]),
    ("hypercorn", "hypercorn main:app", &[5, 60, 75]),
    ("daphne", "daphne main:app", &[59, 60]),
    ("granian", "granian --interface asgi main:app", &[29, 30]),
    ("waitress", "waitress-serve wsgi:app", &[60, 75, 119, 120]),
    ("node", "node server.js", &[4, 5, 6]),
];

/// How far from it, in milliseconds, requests come.
const OFFSETS: [i64; 9] = [-5, -3, -2, -1, 0, 1, 2, 3, 5];

#[tokio::test]
async fn a_connection_that_a_server_is_about_to_close_costs_no_request() {
    let length = Duration::from_secs(if full_length() { 3600 } else { 14 });
    // One thread has all kept connections: each waits exactly as long as its client does.
    let mut setup = python::setup().top("threads: 1\nlog: {access: false}");
    let mut asked = Vec::new();
    for (server, command, spans) in KEPT {
        for span in spans.iter().filter(|span| full_length() || **span <= 6) {
            let name = format!("{server}-{span}");
            let yaml = python::app(command, "workers: 1").replace("a.test", &format!("{name}.test"));
            setup = setup.app(&name, &yaml);
            asked.push((server, name, Duration::from_secs(*span)));
        }
    }
    let edge = setup.start().await;
    let trust = edge.trust().await;
    let mut asking = JoinSet::new();
    for (server, name, span) in asked {
        edge.wait_until_up(&name).await;
        asking.spawn(ask_each(edge.https, trust.clone(), server, format!("{name}.test"), span, length));
    }
    let mut by_server: BTreeMap<&str, (usize, Vec<String>)> = BTreeMap::new();
    for (server, good, failed) in asking.join_all().await {
        let all = by_server.entry(server).or_default();
        all.0 += good;
        all.1.extend(failed);
    }
    for (server, (good, failed)) in &by_server {
        println!(
            "figure: {server}: {good} requests as their connection was about to be closed, {} failed",
            failed.len()
        );
    }
    assert!(by_server.values().all(|(good, failed)| *good > 0 && failed.is_empty()), "{by_server:?}");
    edge.stop().await;
}

/// Every `span` as many POSTs at once as there are offsets, which edge may not repeat once they are sent, each off by its own.
async fn ask_each(
    address: SocketAddr,
    trust: Trust,
    server: &'static str,
    host: String,
    span: Duration,
    length: Duration,
) -> (&'static str, usize, Vec<String>) {
    let (mut good, mut failed) = (0, Vec::new());
    let begun = Instant::now();
    let mut round = span;
    while round < length {
        tokio::time::sleep_until((begun + round - Duration::from_secs(1)).into()).await;
        let mut connections = Vec::new();
        for _ in OFFSETS {
            connections.push(Connection::to(address, &host, Wire::H2, &trust).await.expect("a connection"));
        }
        let mut answers = JoinSet::new();
        for (offset, mut connection) in OFFSETS.into_iter().zip(connections) {
            let due = begun + Duration::from_millis((round.as_millis() as i64 + offset) as u64);
            answers.spawn(async move {
                tokio::time::sleep_until(due.into()).await;
                let request = connection.request("POST", "/upload").body(empty()).unwrap();
                connection.exchange(request).await
            });
        }
        for answer in answers.join_all().await {
            match answer {
                Ok(answer) if answer.status == 200 => good += 1,
                Ok(answer) => failed.push(format!("{host} at {round:?}: {}", answer.status)),
                Err(error) => failed.push(format!("{host} at {round:?}: {error}")),
            }
        }
        round += span;
    }
    (server, good, failed)
}

#[tokio::test]
async fn clients_that_go_away_cost_uvicorn_no_memory() {
    // What an interpreter keeps for later, a fifth of what it begins with, it has once it has been busy for a while: growth counts
    // from then on, and in a short run what is more than that.
    let step = if full_length() { 25_000 } else { 500 };
    let yaml = python::app("uvicorn main:app", "workers: 1\nhttp: serve");
    let edge = python::setup().top("log: {access: false}").app("a", &yaml).start().await;
    let state = edge.wait_until_up("a").await;
    let worker = pid(&state["workers"][0]).expect("a worker");
    let asked = async || edge.status().await["apps"]["a"]["workers"][0]["requests"].as_u64().unwrap();
    let enough = CancellationToken::new();
    let mut leaving = JoinSet::new();
    for _ in 0..12 {
        leaving.spawn(leave(edge.http, enough.clone()));
    }
    let mut memory = vec![processes::memory(worker)];
    for count in 1..=4 {
        until(Duration::from_secs(900), "requests", async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            (asked().await >= count * step).then_some(())
        })
        .await;
        memory.push(processes::memory(worker));
    }
    enough.cancel();
    leaving.join_all().await;
    println!(
        "figure: KiB of uvicorn before and after each {step} connections that were closed early: {memory:?}"
    );
    let most = if full_length() { memory[1] + memory[1] / 20 } else { memory[0] + memory[0] / 10 * 3 };
    assert!(memory[4] < most, "{memory:?}");
    // What is lost with each connection, two kilobytes or more, is lost in every step; an interpreter takes more now and then.
    let steady = |step: &[u64]| step[1] < step[0] + step[0] / 100;
    assert!(memory[1..].windows(2).any(steady), "it grows in every step: {memory:?}");
    assert_eq!(edge.workers("a").await, [worker]);
    edge.stop().await;
}

/// Asks and goes away before the answer, so that edge closes its connection to the worker.
async fn leave(address: SocketAddr, enough: CancellationToken) {
    while !enough.is_cancelled() {
        let mut stream = TcpStream::connect(address).await.expect("edge listens");
        let request = b"GET /slow/100 HTTP/1.1\r\nHost: a.test\r\n\r\n";
        stream.write_all(request).await.expect("edge reads");
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}
