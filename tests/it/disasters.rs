//! What the servers people run are put through at its worst: killed, deployed broken, blocked, stopped. Nobody outside notices.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Connection, PATIENCE, Trust, Wire, empty};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::stalls::Stalls;
use crate::support::{full_length, processes, python, until};

/// Clients that ask for `paths` in turn, half of them by HTTP/2.
fn clients(edge: &Edge, trust: &Trust, count: usize, paths: &[&'static str], pause: u64) -> Load {
    Load::start((0..count).map(|at| Client {
        address: edge.https,
        host: "a.test".into(),
        path: paths[at % paths.len()],
        wire: if at % 2 == 0 { Wire::H1 } else { Wire::H2 },
        trust: trust.clone(),
        per_connection: 100,
        pause: Duration::from_millis(pause),
    }))
}

/// Writes down each POST before it answers.
const RECORDING: &str = r#"
import asyncio, os
record = os.open(os.environ['RECORD'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b'\r\n\r\n')
            method, path, _ = head.split(b' ', 2)
            if method == b'POST':
                os.write(record, path + b'\n')
            await asyncio.sleep(0.005)
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_unix_server(serve, os.environ['EDGE_SOCKET'])
    await server.serve_forever()
asyncio.run(main())
"#;

#[tokio::test]
async fn a_storm_of_kills_costs_no_get_and_executes_no_post_twice() {
    const POSTERS: usize = 4;
    let setup = Setup::new();
    let (script, record) = (setup.dir().join("worker.py"), setup.dir().join("record"));
    std::fs::write(&script, RECORDING).unwrap();
    let yaml = format!(
        "domains: [a.test]\nworkers: 4\ntransport: unix\ncommand: python3 {}\nenvironment: {{RECORD: {}}}",
        script.display(),
        record.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let enough = CancellationToken::new();
    let posters: Vec<_> = (0..POSTERS)
        .map(|number| tokio::spawn(post(edge.https, trust.clone(), number, enough.clone())))
        .collect();
    let load = clients(&edge, &trust, 16, &["/"], 4);
    let (begun, mut kills) = (Instant::now(), 0);
    let length = Duration::from_secs(if full_length() { 60 } else { 8 });
    // As many as prove something, also where each look at the workers takes long.
    while begun.elapsed() < length || kills <= 10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(victim) = fastrand::choice(edge.workers("a").await) {
            processes::signal(victim, Signal::SIGKILL);
            kills += 1;
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let tally = load.stop().await;
    enough.cancel();
    let (mut posted, mut refused) = (0, 0);
    for poster in posters {
        let (good, failed) = poster.await.unwrap();
        (posted, refused) = (posted + good, refused + failed);
    }
    let mut executed = BTreeMap::new();
    for line in std::fs::read_to_string(&record).unwrap().lines() {
        *executed.entry(line.to_owned()).or_insert(0) += 1;
    }
    let twice: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
    println!(
        "figure: {kills} kills, {:.0} GET/s, {} failed, p99 {:?}, slowest {:?}; {posted} POSTs answered, {refused} not, {} executed twice",
        tally.good as f64 / took,
        tally.failed.len(),
        tally.at(0.99),
        tally.slowest,
        twice.len()
    );
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    assert!(twice.is_empty(), "{twice:?}");
    assert!(kills > 10 && posted > 100, "{kills} kills, {posted} POSTs prove little");
    assert!(refused <= kills * POSTERS, "{refused} POSTs failed by {kills} kills");
    edge.stop().await;
}

/// POSTs, each to a path of its own: answered ones, and others.
async fn post(
    address: std::net::SocketAddr,
    trust: Trust,
    number: usize,
    enough: CancellationToken,
) -> (usize, usize) {
    let (mut good, mut failed) = (0, 0);
    let mut connection = Connection::to(address, "a.test", Wire::H2, &trust).await.expect("a connection");
    while !enough.is_cancelled() {
        let request = connection.request("POST", &format!("/{number}-{}", good + failed)).body(empty());
        match connection.exchange(request.unwrap()).await {
            Ok(answer) if answer.status == 200 => good += 1,
            Ok(_) => failed += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (good, failed)
}

#[tokio::test]
async fn killed_uvicorns_are_back_in_a_second_and_cost_no_get() {
    let edge = python::setup().app("a", &python::app("uvicorn main:app", "workers: 4")).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let (count, pause) = if full_length() { (12, 14) } else { (8, 30) };
    let load = clients(&edge, &trust, count, &["/", "/slow/20"], pause);
    let begun = Instant::now();
    let mut back = Vec::new();
    for _ in 0..if full_length() { 60 } else { 3 } {
        let before = edge.workers("a").await;
        let victim = fastrand::choice(before.iter().copied()).expect("all are ready");
        let (killed, at) = (Instant::now(), OffsetDateTime::now_utc());
        processes::signal(victim, Signal::SIGKILL);
        let successor = until(Duration::from_secs(20), "a successor", async || {
            let now = edge.workers("a").await;
            let new = now.iter().copied().find(|pid| !before.contains(pid))?;
            (now.len() == 4).then_some(new)
        })
        .await;
        back.push(Return::read(&edge.log_objects(), (killed, at), successor));
        tokio::time::sleep(
            Duration::from_secs(if full_length() { 5 } else { 1 }).saturating_sub(killed.elapsed()),
        )
        .await;
    }
    let took = begun.elapsed().as_secs_f64();
    let tally = load.stop().await;
    println!(
        "figure: {} kills, {:.0} requests/s, {} failed, p99 {:?}, slowest {:?}; median and longest: started again after {}, \
         imported and listened {} later, was given requests {} after that; in all {}",
        back.len(),
        tally.good as f64 / took,
        tally.failed.len(),
        tally.at(0.99),
        tally.slowest,
        Return::spread(&back, |one| one.started),
        Return::spread(&back, |one| one.listened),
        Return::spread(&back, |one| one.admitted),
        Return::spread(&back, |one| one.started + one.listened + one.admitted),
    );
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    // What edge itself takes, beside clients and interpreters that want the same two processors.
    back.sort_by_key(|one| one.started + one.admitted);
    let own = back[back.len() / 2];
    assert!(own.started + own.admitted < Duration::from_secs(1), "{own:?}");
    edge.stop().await;
}

/// How long a killed worker's place was empty, in three parts.
#[derive(Clone, Copy, Debug)]
struct Return {
    /// From the kill to the start of its successor.
    started: Duration,
    /// From there to its word that it listens, which comes after all imports.
    listened: Duration,
    /// From there to its first request.
    admitted: Duration,
}

impl Return {
    /// The kill is told by both clocks: lines have one, and when the machine stood still is known by the other.
    fn read(log: &[serde_json::Value], killed: (Instant, OffsetDateTime), successor: u32) -> Self {
        let when = |message: &str| {
            let said = |line: &&serde_json::Value| {
                line["pid"] == successor && line["msg"].as_str().is_some_and(|text| text.contains(message))
            };
            let line = log.iter().find(said).unwrap_or_else(|| panic!("{successor}: {message}"));
            OffsetDateTime::parse(line["ts"].as_str().unwrap(), &Rfc3339).unwrap()
        };
        let stalls = Stalls::so_far();
        // Log lines are of the millisecond.
        let moment = |at: OffsetDateTime| killed.0 + Duration::try_from(at - killed.1).unwrap_or_default();
        let span = |from, to| stalls.awake(moment(from), moment(to));
        let (started, listens) = (when("worker started"), when("Uvicorn running on"));
        Self {
            started: span(killed.1, started),
            listened: span(started, listens),
            admitted: span(listens, when("worker ready")),
        }
    }

    fn spread(all: &[Self], part: impl Fn(&Self) -> Duration) -> String {
        let mut all: Vec<u128> = all.iter().map(|one| part(one).as_millis()).collect();
        all.sort_unstable();
        format!("{}/{} ms", all[all.len() / 2], all[all.len() - 1])
    }
}

const LIFESPAN: &str = r#"
import contextlib, fastapi
@contextlib.asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no database")
    yield
app = fastapi.FastAPI(lifespan=lifespan)
"#;

const ELSEWHERE: &str = r#"
import http.server
http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler).serve_forever()
"#;

#[tokio::test]
async fn a_broken_deploy_leaves_the_old_workers_and_says_why() {
    let setup = python::setup();
    let dir = setup.dir().display().to_string();
    for (name, text) in
        [("imports", "import no_such_module\n"), ("fails", LIFESPAN), ("elsewhere", ELSEWHERE)]
    {
        std::fs::write(format!("{dir}/{name}.py"), text).unwrap();
    }
    let more = "workers: 2\nstart_timeout: 8s";
    let edge = setup.app("a", &python::app("uvicorn main:app", more)).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let trust = edge.trust().await;
    let load = clients(&edge, &trust, 4, &["/"], 20);
    let good = "command: uvicorn main:app";
    for (broken, word) in [
        (
            format!("uvicorn --app-dir {dir} imports:app"),
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (format!("uvicorn --app-dir {dir} fails:app"), "RuntimeError: no database"),
        (format!("python3 {dir}/elsewhere.py"), "127.0.0.1:"),
        ("sleep 1000".to_owned(), "not ready in 8"),
    ] {
        let command = format!("command: {broken}");
        edge.edit(good, &command);
        let begun = Instant::now();
        let (status, errors) = edge.refused(&["reload"]).await;
        println!("figure: {broken:?} refused after {:?}", begun.elapsed());
        assert_eq!(status, 1, "{errors}");
        assert!(begun.elapsed() < Duration::from_secs(8 + 5), "{:?}", begun.elapsed());
        assert!(errors.contains(word), "{broken}: {word:?} not in {errors}");
        assert_eq!(edge.workers("a").await, before, "{broken}");
        edge.edit(&command, good);
    }
    let tally = load.stop().await;
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    edge.stop().await;
}

/// Clients that ask while a worker hangs.
const CLIENTS: usize = 6;

/// How a worker is made to hang, and what that may cost.
struct Hang {
    server: &'static str,
    /// Its `hang_timeout`, in seconds, where the test does not take its full length.
    patience: u64,
    /// No request takes longer, in seconds.
    slowest: u64,
    /// Requests that the worker may have read, and that are not given to another for that.
    lost: usize,
    how: How,
}

enum How {
    /// By a request whose answer nobody expects.
    Ask(&'static str),
    Stop,
}

/// Sees one of several workers hang and be replaced while clients go on asking.
async fn hangs(hang: Hang) -> Edge {
    let (workers, patience) = if full_length() { (4, 30) } else { (3, hang.patience) };
    let setup = python::setup();
    let diary = setup.dir().join("diary");
    let more = format!("environment: {{APP_DIARY: {}}}", diary.display());
    let yaml = python::app(hang.server, &format!("workers: {workers}\nhang_timeout: {patience}s\n{more}"));
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let trust = edge.trust().await;
    let load = || clients(&edge, &trust, CLIENTS, &["/"], if full_length() { 8 } else { 20 });
    let (begun, load) = match hang.how {
        How::Ask(path) => {
            let mut victim = Connection::open(&edge, "a.test", Wire::H1).await;
            tokio::spawn(async move { drop(victim.try_get(path).await) });
            // What its event loop reads in the same turn would be lost with it: nobody asks before it is blocked.
            until(PATIENCE, "it is blocked", async || {
                std::fs::read_to_string(&diary).is_ok_and(|diary| diary.contains("blocked")).then_some(())
            })
            .await;
            (Instant::now(), load())
        }
        How::Stop => {
            let load = load();
            processes::signal(before[0], Signal::SIGSTOP);
            (Instant::now(), load)
        }
    };
    until(Duration::from_secs(25), "a suspect", async || {
        edge.log().contains("it gets no new requests").then_some(())
    })
    .await;
    let avoided = begun.elapsed();
    until(Duration::from_secs(patience + 20), "a replacement", async || {
        let now = edge.workers("a").await;
        let same = now.iter().filter(|pid| before.contains(pid)).count();
        (now.len() == workers && same == workers - 1).then_some(())
    })
    .await;
    let replaced = begun.elapsed();
    let tally = load.stop().await;
    println!(
        "figure: {}, hang_timeout {patience} s: avoided after {avoided:?}, replaced after {replaced:?}; {} answers, {:.0}/s, {} failed, \
         p99 {:?}, slowest {:?}",
        hang.server,
        tally.good,
        tally.good as f64 / begun.elapsed().as_secs_f64(),
        tally.failed.len(),
        tally.at(0.99),
        tally.slowest
    );
    let read = |failure: &&String| failure.starts_with("502 ") || *failure == "no answer in time";
    let read = tally.failed.iter().filter(read).count();
    assert!(read <= hang.lost && read == tally.failed.len(), "{:#?}", tally.failed);
    assert!(tally.slowest < Duration::from_secs(hang.slowest), "{:?}", tally.slowest);
    assert!(avoided < AVOIDED + LATE, "{avoided:?}");
    assert!(replaced < Duration::from_secs(patience) + REPLACED + LATE, "{replaced:?}");
    edge
}

/// A hung worker gets no new requests after this …
const AVOIDED: Duration = Duration::from_secs(3);
/// … and its successor serves this long after `hang_timeout`.
const REPLACED: Duration = Duration::from_secs(5);
/// How much later that may be seen here: an interpreter has to start, on processors that other tests use too.
const LATE: Duration = Duration::from_secs(3);

async fn says_where(edge: &Edge, function: &str) {
    let trace = format!("in {function}");
    edge.wait_for_log("where it hung", |line| line.to_string().contains(&trace)).await;
}

#[tokio::test]
async fn requests_that_a_blocked_uvicorn_has_not_read_go_to_others_and_its_stack_is_logged() {
    // Others are asked long before the worker is ended.
    let how = How::Ask("/block/120000");
    let edge = hangs(Hang { server: "uvicorn main:app", patience: 8, slowest: 6, lost: 0, how }).await;
    says_where(&edge, "block").await;
    edge.stop().await;
}

#[tokio::test]
async fn so_do_those_of_a_uvicorn_whose_interpreter_never_comes_back_from_c() {
    let how = How::Ask("/gil");
    let edge = hangs(Hang { server: "uvicorn main:app", patience: 4, slowest: 6, lost: 0, how }).await;
    says_where(&edge, "gil").await;
    edge.stop().await;
}

#[tokio::test]
async fn a_stopped_uvicorn_is_replaced() {
    // What was being answered waits for the end of its worker.
    let hang = Hang { server: "uvicorn main:app", patience: 8, slowest: 21, lost: CLIENTS, how: How::Stop };
    hangs(hang).await.stop().await;
}

#[tokio::test]
async fn a_blocked_granian_is_found_by_asking_it() {
    // It reads what it cannot answer, one request of each client at most: that waits for its end, and is not given to another,
    // which it might block as well.
    let (server, how) = ("granian --interface asgi main:app", How::Ask("/block/120000"));
    let edge = hangs(Hang { server, patience: 4, slowest: 21, lost: CLIENTS, how }).await;
    says_where(&edge, "block").await;
    edge.stop().await;
}

/// A synchronous worker that works on a request looks like one that hangs: it is not asked meanwhile, and gunicorn watches it.
#[tokio::test]
async fn a_blocked_synchronous_gunicorn_holds_up_one_request_and_is_replaced_by_gunicorn() {
    let (workers, seconds) = if full_length() { (4, 30) } else { (3, 4) };
    let command = format!("gunicorn --timeout {seconds} wsgi:app");
    let yaml = python::app(&command, &format!("workers: {workers}\nhang_timeout: {seconds}s"));
    let edge = python::setup().app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let masters = edge.workers("a").await;
    let children = || -> Vec<u32> {
        masters.iter().flat_map(|master| processes::children_of(*master)).map(|(pid, _)| pid).collect()
    };
    let before = children();
    assert_eq!(before.len(), workers);
    let trust = edge.trust().await;
    // More than there are workers: some wait, but not for the one that is blocked.
    let load = clients(&edge, &trust, CLIENTS, &["/"], if full_length() { 8 } else { 20 });
    let victim = Connection::open(&edge, "a.test", Wire::H1).await;
    let begun = Instant::now();
    let blocked =
        tokio::spawn(async move { victim.waiting(Duration::from_secs(60)).try_get("/block/120000").await });
    until(Duration::from_secs(seconds + 20), "a successor", async || {
        let now = children();
        let same = now.iter().filter(|pid| before.contains(pid)).count();
        (now.len() == workers && same == workers - 1).then_some(())
    })
    .await;
    let replaced = begun.elapsed();
    let answer = blocked.await.unwrap().expect("an answer");
    let tally = load.stop().await;
    println!(
        "figure: {command}: replaced after {replaced:?}, the request that blocked it was answered {}; {} answers, {:.0}/s, \
         {} failed, p99 {:?}, slowest {:?}",
        answer.status,
        tally.good,
        tally.good as f64 / begun.elapsed().as_secs_f64(),
        tally.failed.len(),
        tally.at(0.99),
        tally.slowest
    );
    assert!(answer.status.is_server_error(), "{}", answer.status);
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    assert!(tally.slowest < AVOIDED, "{:?}", tally.slowest);
    assert!(replaced < Duration::from_secs(seconds) + REPLACED + LATE, "{replaced:?}");
    says_where(&edge, "block").await;
    assert_eq!(edge.workers("a").await, masters);
    edge.stop().await;
}

#[tokio::test]
async fn an_asynchronous_handler_that_takes_long_is_not_touched() {
    let (patience, millis) = if full_length() { (30, 120_000) } else { (3, 9_000) };
    let more = format!("workers: 2\nhang_timeout: {patience}s");
    let yaml = python::app("uvicorn main:app", &more);
    let edge = python::setup().top("timeouts: {first_byte: 150s}").app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut connection = connection.waiting(Duration::from_millis(millis) + PATIENCE);
    let answer = connection.get(&format!("/slow/{millis}")).await;
    assert_eq!((answer.status.as_u16(), answer.json()["slept_ms"].as_u64()), (200, Some(millis)));
    assert_eq!(edge.workers("a").await, before);
    assert!(!edge.log().contains("reads nothing"));
    edge.stop().await;
}

#[tokio::test]
async fn an_app_that_crashes_at_every_start_costs_next_to_nothing_and_is_back_soon_after_its_repair() {
    let setup = Setup::new();
    let repaired = setup.dir().join("repaired");
    let yaml = format!(
        "domains: [a.test]\nworkers: 2\nserver: generic\n\
         command: sh -c 'test -e {} || exit 3; exec edge hello'",
        repaired.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    let length = Duration::from_secs(if full_length() { 600 } else { 12 });
    tokio::time::sleep(length).await;
    let cpu = processes::cpu(edge.pid()).as_secs_f64() / length.as_secs_f64();
    let status = edge.status().await;
    let workers = status["apps"]["a"]["workers"].as_array().unwrap();
    let spawns: Vec<u64> = workers.iter().map(|worker| worker["restarts"].as_u64().unwrap() + 1).collect();
    assert_eq!(status["apps"]["a"]["state"], "failed");
    std::fs::write(&repaired, "").unwrap();
    let begun = Instant::now();
    edge.wait_until_up("a").await;
    println!(
        "figure: in {length:?}, spawns by slot {spawns:?}, {:.2} % of a CPU; served again {:?} after the repair",
        cpu * 100.0,
        begun.elapsed()
    );
    assert!(spawns.iter().all(|spawns| *spawns < 40), "{spawns:?}");
    assert!(cpu < 0.01 || !full_length(), "{cpu}");
    assert!(begun.elapsed() < Duration::from_secs(32), "{:?}", begun.elapsed());
    edge.stop().await;
}
