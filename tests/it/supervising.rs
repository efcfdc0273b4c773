//! Workers that are replaced, stuck or broken: nobody outside notices.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::client::{Connection, Wire};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::{full_length, processes, until};

const HELLO: &str = "domains: [a.test]\ncommand: edge hello\n";

async fn load(edge: &Edge, count: usize) -> Load {
    let trust = edge.trust().await;
    Load::start((0..count).map(|at| Client {
        address: edge.https,
        host: "a.test".into(),
        path: if at % 4 == 0 { "/slow/20" } else { "/" },
        wire: if at % 2 == 0 { Wire::H1 } else { Wire::H2 },
        trust: trust.clone(),
        per_connection: 100,
        pause: Duration::from_millis(2),
    }))
}

/// Workers are replaced all the time, and then for comparison, under the same load, never.
async fn recycling(workers: u32) {
    const OFTEN: &str = "max_requests: 200";
    let yaml = format!("{HELLO}workers: {workers}\n{OFTEN}");
    let edge = Setup::new().app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let recycled_under = load(&edge, 8).await;
    let begun = Instant::now();
    let end = begun + Duration::from_secs(if full_length() { 600 } else { 8 });
    let mut most_missing = 0;
    while Instant::now() < end {
        let status = edge.status().await;
        let all = status["apps"]["a"]["workers"].as_array().unwrap();
        let ready = all.iter().filter(|worker| worker["state"] == "ready").count();
        most_missing = most_missing.max((workers as usize).saturating_sub(ready));
        assert!(all.len() <= workers as usize + 1, "{all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let tally = recycled_under.stop().await;
    let took = begun.elapsed();
    let status = edge.status().await;
    let recycled: u64 = status["apps"]["a"]["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| worker["replacements"].as_u64().unwrap())
        .sum();
    edge.edit(OFTEN, "max_requests: 0");
    edge.reload().await;
    let steady = load(&edge, 8).await;
    let end = Instant::now() + Duration::from_secs(if full_length() { 60 } else { 4 });
    while Instant::now() < end {
        // What the comparison costs is a part of both.
        edge.status().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let steady = steady.stop().await;
    println!(
        "figure: {workers} workers, {recycled} recycled, {} answers, {:.0}/s, {} failed, p99 {:?}, slowest {:?}; without recycling p99 {:?}, slowest {:?}",
        tally.good,
        tally.good as f64 / took.as_secs_f64(),
        tally.failed.len(),
        tally.at(0.99),
        tally.slowest,
        steady.at(0.99),
        steady.slowest
    );
    assert!(tally.failed.is_empty(), "{} of {}: {:#?}", tally.failed.len(), tally.good, tally.failed);
    assert_eq!(most_missing, 0, "its successor is ready first");
    assert!(recycled > 4, "{recycled} recycled prove little");
    // Each start takes a processor from requests for a moment, here two for everything.
    let started = Duration::from_millis(25);
    assert!(tally.at(0.99) <= steady.at(0.99) * 2 + started, "{:?} {:?}", tally.at(0.99), steady.at(0.99));
    edge.stop().await;
}

#[tokio::test]
async fn recycling_four_workers_costs_no_request() {
    recycling(4).await;
}

#[tokio::test]
async fn recycling_the_only_worker_costs_no_request() {
    recycling(1).await;
}

/// A server that keeps 100 kB of each request.
const LEAKING: &str = r#"
import asyncio, os
hoard = []
async def serve(reader, writer):
    try:
        while True:
            await reader.readuntil(b'\r\n\r\n')
            hoard.append(b'x' * 100000)
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
async fn an_app_that_leaks_is_held_near_its_limit_and_loses_no_request() {
    const LIMIT: u64 = 60_000_000;
    let setup = Setup::new();
    let script = setup.dir().join("leak.py");
    std::fs::write(&script, LEAKING).unwrap();
    let yaml = format!(
        "domains: [a.test]\nworkers: 2\nmax_memory: 60MB\ntransport: unix\ncommand: python3 {}",
        script.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let load = Load::start((0..2).map(|_| Client {
        address: edge.https,
        host: "a.test".into(),
        path: "/",
        wire: Wire::H2,
        trust: trust.clone(),
        per_connection: 100,
        pause: Duration::from_millis(10),
    }));
    let wanted = if full_length() { 20 } else { 2 };
    let (mut replaced, mut largest) = (0, 0);
    until(Duration::from_secs(600), "workers are replaced", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let status = edge.status().await;
        let workers = status["apps"]["a"]["workers"].as_array().unwrap();
        replaced = workers.iter().filter_map(|worker| worker["replacements"].as_u64()).sum::<u64>();
        let memory = edge.workers("a").await.into_iter().filter_map(processes::memory_if_alive).max();
        largest = largest.max(memory.unwrap_or(0));
        (replaced >= wanted).then_some(())
    })
    .await;
    let tally = load.stop().await;
    println!(
        "figure: {replaced} workers that leak replaced above {} MB, the largest had {} MB; {} answers, {} failed, slowest {:?}",
        LIMIT / 1_000_000,
        largest / 1000,
        tally.good,
        tally.failed.len(),
        tally.slowest
    );
    assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
    edge.wait_for_log("why", |line| line.to_string().contains("of memory, more than 60.0 MB")).await;
    // Each is looked at every five seconds, and has to be above twice; all requests may be one worker's meanwhile.
    let a_second = tally.good * 100 / tally.span().as_secs().max(1);
    assert!(largest < LIMIT / 1000 + a_second * 15, "{largest} KiB, by {a_second} each second");
    edge.stop().await;
}

#[tokio::test]
async fn an_app_that_crashes_at_start_is_failed_and_comes_back_by_itself_once_it_is_repaired() {
    let setup = Setup::new();
    let repaired = setup.dir().join("repaired");
    let yaml = format!(
        "domains: [a.test]\nworkers: 2\nserver: generic\nrestart: {{backoff: 50ms, max_backoff: 500ms}}\n\
         command: sh -c 'test -e {} || {{ echo no database >&2; exit 3; }}; exec edge hello'",
        repaired.display()
    );
    let edge = setup.app("a", &yaml).start().await;
    let status = until(Duration::from_secs(15), "the app is failed", async || {
        let status = edge.status().await;
        (status["apps"]["a"]["state"] == "failed").then_some(status)
    })
    .await;
    let last_exit = status["apps"]["a"]["workers"][0]["last_exit"].clone();
    assert_eq!(last_exit, "exit status 3 before it was ready");
    std::fs::write(&repaired, "").unwrap();
    edge.wait_until_up("a").await;
    edge.stop().await;
}

const FAULTY: &str =
    "domains: [a.test]\ncommand: edge hello\nhang_timeout: 4s\nenvironment: {EDGE_HELLO_FAULTS: \"1\"}\n";

#[tokio::test]
async fn a_program_that_is_not_there_is_told_at_length_once() {
    let yaml = "domains: [a.test]\ncommand: no-such-server\nworkers: 2\nrestart: {backoff: 50ms, max_backoff: 500ms}\n\
                environment: {PATH: /usr/bin:/bin}";
    let edge = Setup::new().app("a", yaml).start().await;
    let lines = until(Duration::from_secs(15), "some attempts", async || {
        let lines = edge.log_objects();
        let told: Vec<_> = lines.into_iter().filter(|line| line["msg"] == "cannot start a worker").collect();
        (told.len() > 5).then_some(told)
    })
    .await;
    let whole = "cannot run `no-such-server`: `no-such-server` is not in PATH (/usr/bin:/bin): install it, write its whole \
                 path, or set PATH under `environment`";
    assert_eq!(lines[0]["error"], whole);
    for line in &lines[1..] {
        assert_eq!(line["error"], "cannot run `no-such-server`, as said before");
    }
    assert_eq!(edge.status().await["apps"]["a"]["workers"][0]["last_exit"], whole);
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_whose_event_loop_is_blocked_is_avoided_then_aborted_and_replaced() {
    for transport in ["unix", "tcp"] {
        let yaml = format!("{FAULTY}workers: 3\ntransport: {transport}");
        let edge = Setup::new().app("a", &yaml).start().await;
        edge.wait_until_up("a").await;
        let before = edge.workers("a").await;
        let mut victim = Connection::open(&edge, "a.test", Wire::H1).await;
        let blocked =
            tokio::spawn(async move { victim.try_get("/block/60000").await.map(|answer| answer.status) });
        let begun = Instant::now();
        let suspect = until(Duration::from_secs(10), "a suspect", async || {
            let status = edge.status().await;
            let workers = status["apps"]["a"]["workers"].as_array().unwrap().clone();
            workers
                .iter()
                .find(|worker| worker["state"] == "suspect")
                .and_then(|worker| worker["pid"].as_u64())
        })
        .await;
        let avoided = begun.elapsed();
        // From here on nobody is sent to it.
        let load = load(&edge, 6).await;
        let workers = until(Duration::from_secs(15), "a replacement", async || {
            let workers = edge.workers("a").await;
            (workers.len() == 3 && workers.iter().all(|pid| u64::from(*pid) != suspect)).then_some(workers)
        })
        .await;
        let replaced = begun.elapsed();
        edge.wait_until_up("a").await;
        let tally = load.stop().await;
        println!(
            "figure: {transport}: avoided after {avoided:?}, replaced after {replaced:?}, {} answers",
            tally.good
        );
        assert!(tally.failed.is_empty(), "{:#?}", tally.failed);
        assert!(avoided < Duration::from_secs(5) && replaced < Duration::from_secs(10));
        assert_eq!(workers.iter().filter(|pid| before.contains(pid)).count(), 2, "the others were touched");
        assert!(blocked.await.unwrap().is_ok_and(|status| status == 502), "who blocked it is told");
        edge.wait_for_log("why", |line| {
            line.to_string().contains("because it hung")
                || line.to_string().contains("read nothing for too long")
        })
        .await;
        edge.stop().await;
    }
}

/// The request that blocks its worker is told so; those that came after it and were not read go to another.
#[tokio::test]
async fn a_request_that_hangs_one_worker_is_not_given_a_second_and_those_behind_it_are() {
    for transport in ["unix", "tcp"] {
        let yaml = format!("{FAULTY}workers: 3\nsticky: ip\ntransport: {transport}");
        let edge = Setup::new().app("a", &yaml).start().await;
        edge.wait_until_up("a").await;
        let mut connections = Vec::new();
        for _ in 0..4 {
            // Its connection to the worker has served before, like most.
            let mut connection = Connection::open(&edge, "a.test", Wire::H1).await;
            assert_eq!(connection.get("/").await.status, 200);
            connections.push(connection);
        }
        let mut victim = connections.pop().unwrap();
        let blocked = tokio::spawn(async move { victim.get("/block/60000").await });
        let in_flight = async |count: u64| {
            until(Duration::from_secs(5), "requests in flight", async || {
                let status = edge.status().await;
                let workers = status["apps"]["a"]["workers"].as_array()?;
                workers.iter().any(|worker| worker["in_flight"] == count).then_some(())
            })
            .await;
        };
        in_flight(1).await;
        let behind: Vec<_> = connections
            .into_iter()
            .map(|mut connection| tokio::spawn(async move { connection.get("/json").await.status }))
            .collect();
        in_flight(4).await;
        for answer in behind {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert_eq!(blocked.await.unwrap().status, 502);
        let line = edge.wait_for_access("/block/60000").await;
        assert_eq!(line["retries"], 0, "{line}");
        assert!(line["error"].as_str().is_some_and(|error| error.contains("hung")), "{line}");
        until(Duration::from_secs(5), "three that were asked again", async || {
            let lines = edge.log_objects();
            let again = lines.iter().filter(|line| line["path"] == "/json" && line["retries"] == 1);
            (again.count() == 3).then_some(())
        })
        .await;
        // Nobody else was asked to block.
        let app = edge.wait_until_up("a").await;
        let restarts =
            app["workers"].as_array().unwrap().iter().filter_map(|worker| worker["restarts"].as_u64());
        assert_eq!(restarts.sum::<u64>(), 1, "{app:#}");
        assert_eq!(edge.workers("a").await.len(), 3);
        edge.stop().await;
    }
}

/// Long before a worker counts as one that hangs, and where nobody looks whether it does.
#[tokio::test]
async fn what_a_worker_leaves_unread_is_answered_by_one_that_has_nothing_to_do() {
    let yaml = format!("{HELLO}workers: 2\nhang_timeout: 0s");
    let edge = Setup::new().app("a", &yaml).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let mut client = Connection::open(&edge, "a.test", Wire::H1).await;
    // Both have a connection that is kept, so that nothing of what follows is about connecting.
    for _ in 0..8 {
        assert_eq!(client.get("/").await.status, 200);
    }
    processes::signal(before[0], Signal::SIGSTOP);
    let again = until(Duration::from_secs(20), "a request that was asked again", async || {
        let answer = client.get("/json").await;
        assert_eq!(answer.status, 200);
        edge.log_objects().into_iter().find(|line| line["path"] == "/json" && line["retries"] == 1)
    })
    .await;
    assert_eq!(again["pid"], before[1], "{again}");
    println!("figure: answered by another after {} ms", again["duration_ms"]);
    processes::signal(before[0], Signal::SIGCONT);
    until(Duration::from_secs(20), "an answer of the other", async || {
        assert_eq!(client.get("/chunked").await.status, 200);
        let lines = edge.log_objects();
        lines.iter().any(|line| line["path"] == "/chunked" && line["pid"] == before[0]).then_some(())
    })
    .await;
    assert_eq!(edge.workers("a").await, before);
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_blocked_for_a_while_comes_back() {
    let edge = Setup::new().app("a", &format!("{FAULTY}workers: 1")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let mut slow = Connection::open(&edge, "a.test", Wire::H1).await;
    let blocked = tokio::spawn(async move { slow.get("/block/4000").await.status });
    edge.wait_for_log("that it reads nothing", |line| line.to_string().contains("reads nothing")).await;
    edge.wait_for_log("that it reads again", |line| line.to_string().contains("reads again")).await;
    assert_eq!(blocked.await.unwrap(), 200);
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    assert_eq!(edge.workers("a").await, before);
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_handler_is_not_touched() {
    let edge = Setup::new().app("a", &format!("{FAULTY}workers: 1")).start().await;
    edge.wait_until_up("a").await;
    let before = edge.workers("a").await;
    let answer = Connection::open(&edge, "a.test", Wire::H1).await.get("/slow/9000").await;
    assert_eq!(answer.status, 200);
    assert_eq!(edge.workers("a").await, before);
    assert_eq!(edge.status().await["apps"]["a"]["workers"][0]["restarts"], 0);
    edge.stop().await;
}

#[tokio::test]
async fn limits_and_priority_reach_the_worker() {
    let yaml = format!("{HELLO}workers: 3\nnice: 5\nulimits: {{nofile: 333, core: {{soft: 0, hard: 1000}}}}");
    // As a service: whom the kernel lets change the priority of one session at a time.
    let setup = Setup::new().app("a", &yaml).inside(&processes::without("-sys_admin"));
    let edge = setup.start().await;
    edge.wait_until_up("a").await;
    let worker = edge.workers("a").await[0];
    let limits = std::fs::read_to_string(format!("/proc/{worker}/limits")).unwrap();
    let words = |name: &str| -> Vec<String> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(words("Max open files"), ["333", "333"]);
    assert_eq!(words("Max core file size"), ["0", "1000"]);
    let stat = std::fs::read_to_string(format!("/proc/{worker}/stat")).unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    assert_eq!(after.split_whitespace().nth(16), Some("5"), "{stat}");
    for worker in edge.workers("a").await {
        // There is no such file where the kernel does not group processes by session.
        let path = format!("/proc/{worker}/autogroup");
        until(Duration::from_secs(20), "its session has the priority, too", async || {
            let Ok(group) = std::fs::read_to_string(&path) else { return Some(()) };
            group.ends_with(" nice 5\n").then_some(())
        })
        .await;
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_priority_or_limit_that_edge_may_not_give_is_named() {
    // More open files than any kernel allows.
    let apps = [("a", "nice: -5"), ("b", "ulimits: {nofile: 4000000000}")];
    let app = |setup: Setup, (name, more): (&str, &str)| {
        setup.app(name, &format!("domains: [{name}.test]\ncommand: edge hello\nworkers: 1\n{more}"))
    };
    let setup = apps.into_iter().fold(Setup::new(), app).inside(&processes::without("-sys_nice"));
    let edge = setup.start().await;
    for (name, what) in [("a", "`nice: -5`"), ("b", "its `ulimits`")] {
        let said = format!("cannot give a worker {what}: ");
        let told = |line: &serde_json::Value| {
            line["app"] == name && line["error"].as_str().is_some_and(|error| error.starts_with(&said))
        };
        edge.wait_for_log("why no worker starts", told).await;
    }
    edge.stop().await;
}
