//! What only shows with time and numbers: deploys one after another, and processes that nobody ends.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Connection, Trust, Wire, empty, next_chunk, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::{full_length, processes, python, until};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 4\n";

fn clients(edge: &Edge, trust: &Trust) -> Load {
    let client = |path, wire, pause| Client {
        address: edge.https,
        host: "a.test".into(),
        path,
        wire,
        trust: trust.clone(),
        per_connection: 100,
        pause: Duration::from_millis(pause),
    };
    let short = (0..8).map(|at| client("/", if at % 2 == 0 { Wire::H1 } else { Wire::H2 }, 10));
    let long = if full_length() { "/slow/5000" } else { "/slow/1000" };
    Load::start(short.chain((0..4).map(|_| client(long, Wire::H2, 0))))
}

/// How the WebSockets that one client opened one after another ended, by close code; and what else went wrong.
async fn talk(edge: std::net::SocketAddr, trust: Trust, enough: CancellationToken) -> (u32, Vec<String>) {
    let (mut replaced, mut wrong) = (0, Vec::new());
    while !enough.is_cancelled() {
        let stream = tls(edge, "a.test", trust.offering(&["http/1.1"])).await.expect("a TLS connection");
        let opened =
            tokio_tungstenite::client_async(format!("wss://a.test:{}/ws", edge.port()), stream).await;
        let Ok((mut socket, _)) = opened else {
            wrong.push("refused".to_owned());
            continue;
        };
        loop {
            if enough.is_cancelled() {
                drop(socket.close(None).await);
                break;
            }
            drop(socket.send(Message::text("x")).await);
            match tokio::time::timeout(Duration::from_secs(20), socket.next()).await {
                Ok(Some(Ok(Message::Close(Some(frame))))) if u16::from(frame.code) == 1012 => {
                    replaced += 1;
                    break;
                }
                Ok(Some(Ok(Message::Text(_)))) => tokio::time::sleep(Duration::from_millis(200)).await,
                other => {
                    wrong.push(format!("{other:?}"));
                    break;
                }
            }
        }
    }
    (replaced, wrong)
}

/// How many event streams one client was sent one after another; each goes on until its worker is replaced.
async fn listen(edge: std::net::SocketAddr, trust: Trust, enough: CancellationToken) -> (u32, Vec<String>) {
    let (mut ended, mut wrong) = (0, Vec::new());
    while !enough.is_cancelled() {
        let mut connection = Connection::to(edge, "a.test", Wire::H2, &trust).await.expect("a connection");
        let request = connection.request("GET", "/events").body(empty()).unwrap();
        match connection.send(request).await {
            Ok(response) if response.status() == 200 => {
                let mut events = response.into_body();
                let reading = async { while let Ok(Some(_)) = next_chunk(&mut events).await {} };
                tokio::select! {
                    () = enough.cancelled() => {}
                    () = reading => ended += 1,
                }
            }
            Ok(response) => wrong.push(response.status().to_string()),
            Err(error) => wrong.push(error.to_string()),
        }
    }
    (ended, wrong)
}

#[tokio::test]
async fn deploy_after_deploy_costs_no_request_and_tells_every_websocket() {
    let (deploys, streams) = if full_length() { (20, 50) } else { (2, 6) };
    let drain = if full_length() { 6 } else { 2 };
    let yaml = format!("{HELLO}drain_timeout: {drain}s");
    let edge = Setup::new().app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let enough = CancellationToken::new();
    let (mut sockets, mut events) = (JoinSet::new(), JoinSet::new());
    for _ in 0..streams {
        sockets.spawn(talk(edge.https, trust.clone(), enough.clone()));
        events.spawn(listen(edge.https, trust.clone(), enough.clone()));
    }
    let load = clients(&edge, &trust);
    let (mut took, mut least, mut most, mut beside) = (Vec::new(), usize::MAX, 0, 0);
    for _ in 0..deploys {
        let begun = Instant::now();
        let deploy = edge.done(&["reload", "a"]);
        let watch = async {
            loop {
                let status = edge.status().await;
                let workers = status["apps"]["a"]["workers"].as_array().unwrap();
                let count = |states: &[&str]| {
                    let is_one = |state: &&serde_json::Value| {
                        states.contains(&state["state"].as_str().unwrap_or_default())
                    };
                    workers.iter().filter(is_one).count()
                };
                least = least.min(count(&["ready"]));
                most = most.max(count(&["ready", "starting"]));
                beside = beside.max(count(&["draining", "stopping"]));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            _ = deploy => {}
            () = watch => {}
        }
        took.push(begun.elapsed());
    }
    let tally = load.stop().await;
    enough.cancel();
    let mut closed = 0;
    for (count, wrong) in sockets.join_all().await {
        assert!(wrong.is_empty(), "WebSockets: {wrong:?}");
        closed += count;
    }
    let mut ended = 0;
    for (count, wrong) in events.join_all().await {
        assert!(wrong.is_empty(), "events: {wrong:?}");
        ended += count;
    }
    took.sort();
    println!(
        "figure: {deploys} deploys, {} answers, {} failed, p99 {:?}; {closed} WebSockets closed with 1012, {ended} event streams ended; \
         ready never below {least}, ready and starting at most {most}, with them up to {beside} that finish; a deploy took {:?}, at the longest {:?}",
        tally.good,
        tally.failed.len(),
        tally.at(0.99),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    assert!(least >= 4 && most <= 5, "{least} {most}");
    assert!(closed as usize >= deploys * streams / 4, "{closed}");
    edge.stop().await;
}

/// Processes that leave their parent, their session, or do not hear.
const UNRULY: &str = "\
setsid sleep 1000 &\n\
(setsid sh -c 'trap \"\" TERM HUP; while true; do sleep 1; done' &) \n\
sh -c 'trap \"\" TERM; (sleep 1000 &); while true; do sleep 1; done' &\n\
exec edge hello\n";

#[tokio::test]
async fn whatever_a_worker_starts_ends_with_it_however_edge_ends() {
    let setup = Setup::new();
    let script = setup.dir().join("unruly.sh");
    std::fs::write(&script, UNRULY).unwrap();
    std::fs::write(setup.dir().join("package.json"), r#"{"scripts": {"start": "edge hello"}}"#).unwrap();
    let here = setup.dir().display().to_string();
    let more =
        format!("workers: 1\nserver: generic\ntransport: tcp\nstop_grace_period: 1s\nworking_dir: {here}");
    let mut commands = vec![
        ("a", format!("sh {}", script.display())),
        ("b", "npm start".to_owned()),
        ("c", "sh -c 'edge hello & wait'".to_owned()),
    ];
    if full_length() {
        commands.push(("d", format!("{} run --no-project --offline edge hello", python::uv().display())));
    }
    let add = |setup: Setup, (app, command): &(&str, String)| {
        setup.app(app, &format!("domains: [{app}.test]\ncommand: {command}\n{more}"))
    };
    let mut edge = commands.iter().fold(setup, add).start().await;
    for crash in [true, true, false] {
        for (app, _) in &commands {
            edge.wait_until_up(app).await;
        }
        let all = processes::belonging_to(edge.dir()).len();
        assert!(all > 8, "{all} processes prove little");
        if crash {
            edge.kill().await;
            let killed = Instant::now();
            until(Duration::from_secs(5), "everything has ended", async || {
                processes::belonging_to(edge.dir()).is_empty().then_some(())
            })
            .await;
            println!("figure: {all} processes, all gone {:?} after edge was killed", killed.elapsed());
            edge.restart().await;
        }
    }
    edge.stop().await;
}
