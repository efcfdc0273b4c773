//! The servers people run, each with the command line of its own documentation, each through the same test.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use crate::support::client::{Connection, PATIENCE, Wire, empty, next_chunk, tcp_from, tls_over, websocket};
use crate::support::edge::{Edge, Setup};
use crate::support::service::{Group, without_rights};
use crate::support::{full_length, processes, until, within};

/// What a server's application can learn and do.
struct Server {
    command: &'static str,
    /// The server takes the client's address from what edge says.
    client: bool,
    websocket: bool,
}

const ASGI: Server = Server { command: "", client: true, websocket: true };

#[tokio::test]
async fn uvicorn() {
    serves(Server { command: "uvicorn main:app", ..ASGI }).await;
}

#[tokio::test]
async fn fastapi_run() {
    serves(Server { command: "fastapi run main.py", ..ASGI }).await;
}

#[tokio::test]
async fn gunicorn_with_the_uvicorn_worker() {
    serves(Server { command: "gunicorn -k uvicorn_worker.UvicornWorker main:app", ..ASGI }).await;
}

#[tokio::test]
async fn gunicorn_asgi() {
    serves(Server { command: "gunicorn -k asgi behind:gunicorn", ..ASGI }).await;
}

#[tokio::test]
async fn gunicorn_wsgi() {
    // It has no way to be told the client's address: applications read X-Forwarded-For.
    serves(Server { command: "gunicorn wsgi:app", client: false, websocket: false }).await;
}

#[tokio::test]
async fn hypercorn() {
    serves(Server { command: "hypercorn behind:hypercorn", ..ASGI }).await;
}

#[tokio::test]
async fn daphne() {
    serves(Server { command: "daphne main:app", ..ASGI }).await;
}

#[tokio::test]
async fn granian() {
    serves(Server { command: "granian --interface asgi behind:granian", ..ASGI }).await;
}

#[tokio::test]
async fn waitress() {
    serves(Server { command: "waitress-serve wsgi:app", websocket: false, ..ASGI }).await;
}

#[tokio::test]
async fn node() {
    // The application itself reads X-Forwarded-*, as node's frameworks do behind a proxy.
    serves(Server { command: "node server.js", websocket: false, ..ASGI }).await;
}

/// The same over HTTP/2, where the server speaks that without TLS.
#[tokio::test]
async fn hypercorn_over_http2() {
    serves_http2("hypercorn main:app").await;
}

#[tokio::test]
async fn granian_over_http2() {
    serves_http2("granian --interface asgi main:app").await;
}

#[tokio::test]
async fn node_over_http2() {
    serves_http2("env H2C=1 node server.js").await;
}

async fn serves_http2(command: &str) {
    let edge = without_rights(setup_with(command, 2, "\nprotocol: h2c"), None).start().await;
    edge.wait_until_up("app").await;
    all_workers_answer(&edge, 2).await;
    carries_ten_megabytes(&edge).await;
    streams_events(&edge).await;
    edge.stop().await;
}

/// A command that runs processes of its own behind one address keeps what that is for (memory shared by `--preload`): edge runs
/// it once, adds no workers and no limit.
#[tokio::test]
async fn gunicorn_that_runs_its_own_workers() {
    delegated("gunicorn --preload -w 3 wsgi:app").await;
}

#[tokio::test]
async fn uvicorn_that_runs_its_own_workers() {
    delegated("uvicorn --workers 3 main:app").await;
}

/// gunicorn reads `gunicorn.conf.py` unasked: edge leaves to that file how many requests are worked on at once, but not the
/// pid file, by which the one of a deploy would refuse to start beside the old one.
#[tokio::test]
async fn gunicorn_with_a_configuration_file_of_its_own() {
    let edge = Setup::new();
    let dir = edge.dir().join("app");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(format!("{}/tests/apps/wsgi.py", env!("CARGO_MANIFEST_DIR")), dir.join("wsgi.py")).unwrap();
    let conf = format!("worker_class = 'gthread'\nthreads = 4\npidfile = '{}/all.pid'\n", dir.display());
    std::fs::write(dir.join("gunicorn.conf.py"), conf).unwrap();
    let gunicorn = format!("{}/target/test-venv/bin/gunicorn", env!("CARGO_MANIFEST_DIR"));
    let yaml = format!(
        "domains: [app.test]\ncommand: {gunicorn} wsgi:app\nworkers: 1\nworking_dir: {}",
        dir.display()
    );
    let edge = edge.app("app", &yaml).start().await;
    edge.wait_until_up("app").await;
    let checked = edge.done(&["check"]).await;
    assert!(
        checked.contains("note: concurrency unknown: what `gunicorn.conf.py` says is not read"),
        "{checked}"
    );
    four_at_once(&edge).await;
    edge.done(&["restart", "app"]).await;
    edge.edit("workers: 1", "workers: 1\n    concurrency: 4");
    let checked = edge.done(&["check"]).await;
    assert!(!checked.contains("concurrency unknown"), "{checked}");
    edge.stop().await;
}

/// Four requests are with the only worker at the same time, and none waits for it.
async fn four_at_once(edge: &Edge) {
    let mut answers = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(edge, "app.test", Wire::H1).await;
        answers.push(tokio::spawn(async move { connection.get("/slow/2000").await.status }));
    }
    until(PATIENCE, "all are with the worker", async || {
        let app = edge.status().await["apps"]["app"].take();
        (app["workers"][0]["in_flight"] == 4 && app["queue"] == 0).then_some(())
    })
    .await;
    for answer in answers {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

async fn delegated(command: &str) {
    let edge = without_rights(setup(command, 1), None).start().await;
    edge.wait_until_up("app").await;
    let workers = edge.workers("app").await;
    assert_eq!(workers.len(), 1);
    // The first of them answers before the last is there.
    let children = until(PATIENCE, "three processes", async || {
        let children = processes::children_of(workers[0]);
        (children.len() >= 3).then_some(children)
    })
    .await;
    // Synchronous ones, too, work on as many requests as there are processes, and the rest waits with the server, not with edge.
    four_at_once(&edge).await;
    let mut connection = Connection::open(&edge, "app.test", Wire::H2).await;
    let answer = connection.post("/upload", Bytes::from(vec![1; 3 << 20])).await;
    assert_eq!((answer.status.as_u16(), answer.json()["bytes"].as_u64()), (200, Some(3 << 20)));
    edge.edit("workers: 1", "workers: {min: 1, max: 2}");
    let (status, errors) = edge.refused(&["reload"]).await;
    assert!(status == 78 && errors.contains("3 processes each are up to 6 processes"), "{errors}");
    // A deploy replaces the whole of it.
    edge.edit("workers: {min: 1, max: 2}", "workers: 1");
    edge.done(&["reload", "app"]).await;
    assert!(children.iter().all(|(pid, _)| !processes::is_alive(*pid)));
    assert_eq!(connection.get("/info").await.status, 200);
    edge.stop().await;
}

fn setup(command: &str, workers: usize) -> Setup {
    setup_with(command, workers, "")
}

fn setup_with(command: &str, workers: usize, more: &str) -> Setup {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let path = format!("{}/target/test-venv/bin:{}", root.display(), std::env::var("PATH").unwrap());
    let yaml = format!(
        "domains: [app.test]\ncommand: {command}\nworkers: {workers}\nworking_dir: {}/tests/apps\n\
         environment:\n  PATH: \"{path}\"\n  PYTHONDONTWRITEBYTECODE: \"1\"{more}",
        root.display()
    );
    Setup::new().environment("PATH", &path).app_as_written("app", &yaml)
}

async fn serves(server: Server) {
    let workers = if full_length() { 4 } else { 2 };
    let group = Group::new();
    let drain = if full_length() { 8 } else { 3 };
    let setup = setup(server.command, workers).top(&format!("drain_timeout: {drain}s"));
    let mut edge = without_rights(setup, group.as_ref()).start().await;
    edge.wait_until_up("app").await;
    is_without_rights_and_heard_by_nobody_else(&edge).await;
    tells_scheme_and_client(&edge, &server).await;
    all_workers_answer(&edge, workers).await;
    carries_ten_megabytes(&edge).await;
    streams_events(&edge).await;
    if server.websocket {
        echoes_messages(&edge).await;
    }
    if full_length() {
        stops(&mut edge, &server, None).await;
        edge.restart().await;
        edge.wait_until_up("app").await;
    }
    stops(&mut edge, &server, Some(Duration::from_secs(drain))).await;
    let groups = group.map(|group| group.leaves()).unwrap_or_default();
    assert!(groups.is_empty(), "{groups:?}");
}

/// Neither edge nor a worker has a capability, and only this machine reaches a worker.
async fn is_without_rights_and_heard_by_nobody_else(edge: &Edge) {
    let family = processes::descendants_of(edge.pid());
    let workers = edge.workers("app").await;
    assert!(workers.iter().all(|worker| family.contains(worker)), "{workers:?} {family:?}");
    for process in family.iter().chain([&edge.pid()]) {
        assert_eq!(processes::capabilities_of(*process), 0, "{process}");
    }
    let heard = processes::listening(&family);
    assert!(heard.iter().all(|address| address.ip().is_loopback()), "{heard:?}");
}

async fn tells_scheme_and_client(edge: &Edge, server: &Server) {
    let trust = edge.trust().await;
    for wire in Wire::BOTH {
        // An address of its own, so that a server that shows the address of edge is found out.
        let tcp = tcp_from([127, 0, 0, 7].into(), edge.https).await.unwrap();
        let stream = tls_over(tcp, "app.test", trust.offering(&[wire.alpn()])).await.unwrap();
        let authority = format!("app.test:{}", edge.https.port());
        let mut connection = Connection::over(stream, "https", &authority, wire).await.unwrap();
        let request =
            connection.request("GET", "/info").header("x-forwarded-for", "6.6.6.6").body(empty()).unwrap();
        let info = connection.exchange(request).await.unwrap().json();
        assert_eq!(info["forwarded_proto"], "https", "{info}");
        assert_eq!(info["forwarded_for"], "127.0.0.7", "{info}");
        assert_eq!(info["host"], authority, "{info}");
        assert_eq!(info["scheme"], "https", "{info}");
        if server.client {
            assert_eq!(info["client"], "127.0.0.7", "{info}");
        }
    }
}

async fn all_workers_answer(edge: &Edge, workers: usize) {
    let mut slots = std::collections::BTreeSet::new();
    until(PATIENCE, "all workers have answered", async || {
        let mut connections = Vec::new();
        for _ in 0..2 * workers {
            connections.push(Connection::open(edge, "app.test", Wire::H1).await);
        }
        // At the same time, so that the less busy ones are asked too.
        let answers = connections.iter_mut().map(|connection| connection.get("/slow/100"));
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.status, 200);
            slots.insert(answer.json()["worker"].as_str().expect("EDGE_WORKER").to_owned());
        }
        (slots.len() == workers).then_some(())
    })
    .await;
    assert!((0..workers).all(|slot| slots.contains(&slot.to_string())), "{slots:?}");
}

async fn carries_ten_megabytes(edge: &Edge) {
    const SIZE: usize = 10 << 20;
    let data: Bytes = (0..SIZE).map(|at| (at % 256) as u8).collect();
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    for wire in Wire::BOTH {
        let mut connection = Connection::open(edge, "app.test", wire).await;
        let answer = connection.post("/upload", data.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = answer.json();
        assert_eq!(seen["bytes"], SIZE, "{wire:?}");
        assert_eq!(seen["sum"], sum, "{wire:?}");
        let answer = connection.get(&format!("/download/{SIZE}")).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body == data, "{wire:?}: {} bytes, or other ones", answer.body.len());
    }
}

async fn streams_events(edge: &Edge) {
    let mut connection = Connection::open(edge, "app.test", Wire::H2).await;
    let request = connection.request("GET", "/events").body(empty()).unwrap();
    let response = connection.send(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let mut body = response.into_body();
    let first = next_chunk(&mut body).await.unwrap().expect("an event");
    assert!(first.starts_with(b"data: 0\n\n"), "{first:?}");
    let begun = Instant::now();
    let mut rest = first.to_vec();
    while let Some(chunk) = next_chunk(&mut body).await.unwrap() {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(String::from_utf8_lossy(&rest), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    // The two others follow after 300 ms each: had the first been held back, there would be nothing to wait for.
    assert!(begun.elapsed() > Duration::from_millis(250), "the events came all at once");
}

async fn echoes_messages(edge: &Edge) {
    let mut socket = websocket(edge, "app.test", "/ws").await;
    for text in ["one", "two", &"x".repeat(100_000)] {
        socket.send(Message::text(text)).await.unwrap();
        let back = within(PATIENCE, "the echo", socket.next()).await.expect("open").unwrap();
        assert_eq!(back.into_text().unwrap().as_str(), text);
    }
    socket.close(None).await.unwrap();
    within(PATIENCE, "the close", async { while let Some(Ok(_)) = socket.next().await {} }).await;
}

/// How long edge may take beyond what it waits for …
const SPARE: Duration = Duration::from_millis(1500);
/// … and how much later that may be seen here: interpreters take some CPU to end, on processors that other tests use too.
const LATE: Duration = Duration::from_millis(1500);

/// SIGTERM in the middle of requests, each of which is answered whole; and, for the whole `drain` time, of a stream that never ends.
async fn stops(edge: &mut Edge, server: &Server, drain: Option<Duration>) {
    let stream = if drain.is_some() { Some(endless(edge).await) } else { None };
    let millis = if full_length() { 5000 } else { 2000 };
    let mut answers = Vec::new();
    for wire in if full_length() { &Wire::BOTH[..] } else { &[Wire::H2] } {
        let mut connection = Connection::open(edge, "app.test", *wire).await;
        answers.push(tokio::spawn(async move { connection.try_get(&format!("/slow/{millis}")).await }));
    }
    let open = answers.len() as u64 + u64::from(stream.is_some());
    until(PATIENCE, "all requests are in flight", async || {
        let status = edge.status().await;
        let workers = status["apps"]["app"]["workers"].as_array()?.clone();
        let in_flight = workers.iter().filter_map(|worker| worker["in_flight"].as_u64());
        (in_flight.sum::<u64>() == open).then_some(())
    })
    .await;
    let begun = Instant::now();
    edge.signal(Signal::SIGTERM);
    let status = edge.ended(PATIENCE).await;
    let took = begun.elapsed();
    // What has no end of its own was not drained.
    assert_eq!(status.code(), Some(i32::from(drain.is_some())), "{status}");
    edge.assert_nothing_left().await;
    let longest = drain.unwrap_or(Duration::from_millis(millis));
    println!(
        "figure: {}: ended {took:?} after SIGTERM with {} requests of {millis} ms just begun{}",
        server.command,
        answers.len(),
        drain.map(|drain| format!(" and an endless stream, drain_timeout {drain:?}")).unwrap_or_default()
    );
    for answer in answers {
        let answer = answer.await.unwrap().expect("the whole answer");
        assert_eq!((answer.status.as_u16(), answer.json()["slept_ms"].as_u64()), (200, Some(millis)));
    }
    if let Some(stream) = stream {
        let events = stream.await.unwrap();
        assert!(events as u64 > longest.as_secs() * 5, "{events} events until the end");
    }
    assert!(took < longest + SPARE + LATE, "{took:?}");
}

/// A stream that is read to its end, however it ends: how many events it had.
async fn endless(edge: &Edge) -> tokio::task::JoinHandle<usize> {
    let mut connection = Connection::open(edge, "app.test", Wire::H2).await;
    let request = connection.request("GET", "/endless").body(empty()).unwrap();
    let response = connection.send(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut events = response.into_body();
    next_chunk(&mut events).await.unwrap().expect("an event");
    tokio::spawn(async move {
        let _open = connection;
        let mut count = 1;
        while let Ok(Some(_)) = next_chunk(&mut events).await {
            count += 1;
        }
        count
    })
}
