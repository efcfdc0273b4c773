//! Requests wait for an app, in order and within bounds; what is slow at a client's end holds up no worker; and each worker
//! gets the share it can answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinHandle;

use crate::support::client::{Answer, Body, Connection, PATIENCE, Wire, empty, full, raw, tcp_from, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::origin::Origin;
use crate::support::{processes, stalls, until, within};

/// One worker that is given one request at a time.
const ONE: &str = "domains: [a.test]\ncommand: edge hello\nworkers: 1\nconcurrency: 1\n";

async fn one(more: &str) -> Edge {
    let edge = Setup::new().app("a", &format!("{ONE}{more}")).start().await;
    edge.wait_until_up("a").await;
    edge
}

/// GET on a connection of its own.
async fn asking(edge: &Edge, path: &'static str) -> JoinHandle<Answer> {
    let mut connection = Connection::open(edge, "a.test", Wire::H2).await;
    tokio::spawn(async move { connection.get(path).await })
}

async fn until_queued(edge: &Edge, count: u64) {
    until(PATIENCE, &format!("{count} in the queue"), async || {
        (edge.status().await["apps"]["a"]["queue"] == count).then_some(())
    })
    .await;
}

async fn until_in_flight(edge: &Edge, app: &str, count: u64) {
    until(PATIENCE, &format!("{count} in flight"), async || {
        (edge.status().await["apps"][app]["workers"][0]["in_flight"] == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn beyond_the_queue_a_request_is_refused_at_once_and_those_in_it_are_answered() {
    let edge = one("queue: {size: 2}").await;
    let first = asking(&edge, "/slow/3000").await;
    until_in_flight(&edge, "a", 1).await;
    let waiting = [asking(&edge, "/slow/1").await, asking(&edge, "/slow/2").await];
    until_queued(&edge, 2).await;
    stalls::watch();
    let begun = Instant::now();
    let refused = Connection::open(&edge, "a.test", Wire::H1).await.get("/refused").await;
    let took = stalls::awake_since(begun);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    assert!(took < Duration::from_secs(1), "{took:?}");
    for answer in [first].into_iter().chain(waiting) {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let line = edge.wait_for_access("/slow/1").await;
    assert!(line["queue_ms"].as_f64() > Some(100.0), "{line}");
    assert!(line["upstream_ms"].as_f64() < Some(1000.0), "{line}");
    edge.stop().await;
}

#[tokio::test]
async fn a_request_waits_as_long_as_the_queue_allows() {
    let edge = one("queue: {timeout: 300ms}").await;
    let first = asking(&edge, "/slow/2000").await;
    until_in_flight(&edge, "a", 1).await;
    stalls::watch();
    let begun = Instant::now();
    let refused = asking(&edge, "/refused").await.await.unwrap();
    let (at_most, at_least) = (begun.elapsed(), stalls::awake_since(begun));
    assert_eq!(refused.status, 503);
    assert!(!refused.header("retry-after").is_empty());
    assert!(at_most >= Duration::from_millis(300) && at_least < Duration::from_millis(1500), "{at_most:?}");
    let line = edge.wait_for_access("/refused").await;
    assert!(line["status"] == 503 && line["queue_ms"].as_f64() >= Some(300.0), "{line}");
    assert_eq!(first.await.unwrap().status, 200);
    edge.stop().await;
}

#[tokio::test]
async fn who_leaves_the_queue_is_told_as_gone() {
    let edge = one("").await;
    let first = asking(&edge, "/slow/2000").await;
    until_in_flight(&edge, "a", 1).await;
    let gone = asking(&edge, "/gone").await;
    until_queued(&edge, 1).await;
    gone.abort();
    let line = edge.wait_for_access("/gone").await;
    assert!(line["status"] == 499 && line["queue_ms"].as_f64() > Some(0.0), "{line}");
    assert_eq!(first.await.unwrap().status, 200);
    until_queued(&edge, 0).await;
    edge.stop().await;
}

#[tokio::test]
async fn uploads_that_wait_for_a_worker_do_not_keep_it_from_the_one_it_takes() {
    const SIZE: usize = 2_000_000;
    let edge = one("").await;
    let stream = tls(edge.https, "a.test", edge.trust().await.offering(&["h2"])).await.unwrap();
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let uploads = (0..8).map(|_| {
        let upload = http::Request::post("https://a.test/upload").body(full(vec![0; SIZE])).unwrap();
        let mut sender = sender.clone();
        async move { Answer::read(sender.send_request(upload).await.unwrap()).await.unwrap() }
    });
    for answer in join_all(uploads).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    edge.stop().await;
}

#[tokio::test]
async fn uploads_that_a_worker_leaves_for_later_do_not_keep_it_from_another() {
    // More than sockets hold.
    const SIZE: usize = 12_000_000;
    let (release, gate) = tokio::sync::watch::channel(false);
    let origin = Origin::start(move |mut peer| {
        let mut gate = gate.clone();
        async move {
            while let Some(head) = peer.head().await {
                if head.request_line().contains("/later") {
                    let _ = gate.wait_for(|open| *open).await;
                }
                peer.body(head.header("content-length").unwrap().parse().unwrap()).await;
                peer.answer("200 OK", "", "").await;
            }
        }
    })
    .await;
    let app = format!("domains: [a.test]\nmax_body: 64MB\n{}", origin.upstream());
    let edge = Setup::new().app("a", &app).start().await;
    let stream = tls(edge.https, "a.test", edge.trust().await.offering(&["h2"])).await.unwrap();
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let upload = |path: &str, size| {
        let upload = http::Request::post(format!("https://a.test{path}")).body(full(vec![0; size])).unwrap();
        let mut sender = sender.clone();
        tokio::spawn(async move { Answer::read(sender.send_request(upload).await.unwrap()).await.unwrap() })
    };
    let later: Vec<_> = (0..6).map(|_| upload("/later", SIZE)).collect();
    until(PATIENCE, "all are at the server", async || (origin.accepted() == 6).then_some(())).await;
    for _ in 0..3 {
        let answer = within(PATIENCE, "an answer", upload("/now", SIZE / 10)).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    release.send(true).unwrap();
    for answer in later {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    edge.stop().await;
}

#[tokio::test]
async fn who_came_first_is_served_first() {
    let edge = one("").await;
    let first = asking(&edge, "/slow/4000").await;
    until_in_flight(&edge, "a", 1).await;
    let mut answers = Vec::new();
    for (place, path) in ["/json?1", "/json?2", "/json?3", "/json?4", "/json?5"].into_iter().enumerate() {
        answers.push(asking(&edge, path).await);
        until_queued(&edge, place as u64 + 1).await;
    }
    first.await.unwrap();
    let mut last = 0;
    for answer in answers {
        // The worker counts its requests.
        let place = answer.await.unwrap().json()["requests"].as_u64().unwrap();
        assert!(place > last, "{place} after {last}");
        last = place;
    }
    edge.stop().await;
}

#[tokio::test]
async fn while_every_worker_restarts_requests_are_held() {
    let setup = Setup::new();
    let hold = setup.dir().join("hold");
    let command = format!(
        "command: sh -c 'while test -e {}; do sleep 0.05; done; exec edge hello'\nserver: generic\ntransport: tcp",
        hold.display()
    );
    let edge = setup.app("a", &format!("domains: [a.test]\nworkers: 2\n{command}")).start().await;
    edge.wait_until_up("a").await;
    std::fs::write(&hold, "").unwrap();
    for worker in edge.workers("a").await {
        processes::signal(worker, nix::sys::signal::Signal::SIGKILL);
    }
    until(PATIENCE, "nobody is ready", async || edge.workers("a").await.is_empty().then_some(())).await;
    let mut posts = Vec::new();
    for _ in 0..5 {
        let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
        posts.push(tokio::spawn(async move { connection.post("/echo", "held").await }));
    }
    until_queued(&edge, 5).await;
    std::fs::remove_file(&hold).unwrap();
    for post in posts {
        let answer = post.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "held"));
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_upload_does_not_occupy_a_synchronous_worker() {
    let edge = one("queue: {timeout: 2s}").await;
    for framing in ["Content-Length: 6", "Transfer-Encoding: chunked"] {
        let chunked = framing.starts_with('T');
        let mut slow = raw(&edge, "a.test").await;
        slow.write(format!("POST /json HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n\r\n")).await;
        slow.write(if chunked { "3\r\nabc\r\n" } else { "abc" }).await;
        let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
        for _ in 0..5 {
            assert_eq!(connection.get("/").await.status, 200);
        }
        until_in_flight(&edge, "a", 0).await;
        slow.write(if chunked { "3\r\ndef\r\n0\r\n\r\n" } else { "def" }).await;
        let head = slow.read_to("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        // A whole body is passed on with its length: few synchronous servers read chunks.
        let seen = slow.read_to("}\n").await;
        assert!(seen.contains("\"content-length\":\"6\""), "{seen}");
    }
    // More than is taken in passes all the same.
    let big = vec![b'x'; 3 << 20];
    let answer = Connection::open(&edge, "a.test", Wire::H2).await.post("/echo", big.clone()).await;
    assert!(answer.body == big, "{} bytes", answer.body.len());
    edge.stop().await;
}

#[tokio::test]
async fn a_slow_reader_does_not_occupy_a_synchronous_worker() {
    const SIZE: usize = 1_000_000;
    let edge = Setup::new()
        .app("a", ONE)
        .app("b", "domains: [b.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    edge.wait_until_up("a").await;
    edge.wait_until_up("b").await;
    let mut readers = Vec::new();
    for host in ["b.test", "a.test"] {
        let trust = edge.trust().await;
        let stream = tls(edge.https, host, trust.offering(&["h2"])).await.unwrap();
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(16 * 1024)
            .handshake::<_, Body>(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let uri = format!("https://{host}/bytes/{SIZE}");
        let answer = sender.send_request(http::Request::get(uri).body(empty()).unwrap()).await.unwrap();
        readers.push((sender, answer));
    }
    until_in_flight(&edge, "b", 1).await;
    until(PATIENCE, "the answer was read", async || {
        let status = edge.status().await;
        let worker = &status["apps"]["a"]["workers"][0];
        (worker["requests"] == 1 && worker["in_flight"] == 0).then_some(())
    })
    .await;
    let status = edge.status().await;
    assert_eq!(status["apps"]["b"]["workers"][0]["in_flight"], 1, "without this the test proves little");
    assert_eq!(asking(&edge, "/").await.await.unwrap().status, 200);
    for (sender, answer) in readers {
        assert_eq!(Answer::read(answer).await.unwrap().body.len(), SIZE);
        drop(sender);
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_stream_of_a_synchronous_worker_arrives_as_it_is_made_and_ends_with_its_client() {
    let edge = one("").await;
    let mut client = raw(&edge, "a.test").await;
    client.write("GET /events HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.read_to("data:").await;
    client.read_to("data:").await;
    until_in_flight(&edge, "a", 1).await;
    drop(client);
    until_in_flight(&edge, "a", 0).await;
    edge.stop().await;
}

#[tokio::test]
async fn a_sticky_cookie_keeps_a_client_with_its_worker() {
    let app = "domains: [a.test]\ncommand: edge hello\nworkers: 4\nsticky: cookie\nhttp: serve";
    let edge = Setup::new().app("a", app).start().await;
    edge.wait_until_up("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..40 {
        let answer = connection.get("/json").await;
        let cookie = answer.header("set-cookie").to_owned();
        for attribute in ["edge_a=", "; HttpOnly", "; SameSite=Lax", "; Secure", "; Path=/"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let pair = cookie.split(';').next().unwrap().to_owned();
        seen.insert(answer.json()["worker"].to_string(), pair);
    }
    assert_eq!(seen.len(), 4, "without a cookie, all workers: {seen:?}");
    for (worker, pair) in &seen {
        for _ in 0..5 {
            let request = connection.request("GET", "/json").header("cookie", format!("x=1; {pair}"));
            let answer = connection.exchange(request.body(empty()).unwrap()).await.unwrap();
            assert_eq!(answer.json()["worker"].to_string(), *worker);
            assert_eq!(answer.header("set-cookie"), "", "it has it");
        }
    }
    let request = connection.request("GET", "/json").header("cookie", "edge_a=0123456789abcdef");
    let answer = connection.exchange(request.body(empty()).unwrap()).await.unwrap();
    assert!(answer.header("set-cookie").starts_with("edge_a="), "one that leads nowhere is replaced");
    let plain = Connection::plain(&edge, "a.test").await.get("/json").await;
    assert!(!plain.header("set-cookie").contains("Secure"));
    edge.stop().await;
}

#[tokio::test]
async fn a_client_stays_with_a_worker_by_its_address() {
    let app = "domains: [a.test]\ncommand: edge hello\nworkers: 4\nsticky: ip\nhttp: serve";
    let edge = Setup::new().app("a", app).start().await;
    edge.wait_until_up("a").await;
    let mut workers = std::collections::BTreeSet::new();
    for last in 1..20 {
        let mut own = std::collections::BTreeSet::new();
        for _ in 0..3 {
            let tcp = tcp_from(IpAddr::from([127, 0, 0, last]), edge.http).await.unwrap();
            let mut connection = Connection::over(tcp, "http", "a.test", Wire::H1).await.unwrap();
            own.insert(connection.get("/json").await.json()["worker"].to_string());
        }
        assert_eq!(own.len(), 1, "{own:?}");
        workers.extend(own);
    }
    assert!(workers.len() > 1, "{workers:?}");
    edge.stop().await;
}

#[tokio::test]
async fn a_worker_ten_times_slower_gets_less_than_a_twentieth() {
    let mut origins = Vec::new();
    // Long enough that a loaded machine, whose timers are late by tens of milliseconds, does not make them alike.
    for delay in [300, 30, 30, 30] {
        let origin = Origin::start(move |mut peer| async move {
            while peer.head().await.is_some() {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                peer.answer("200 OK", "", "ok").await;
            }
        });
        origins.push(origin.await);
    }
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\nupstream: {addresses:?}").replace("127", "http://127"))
        .start()
        .await;
    let trust = edge.trust().await;
    for clients in [1, 8] {
        let shares = async || {
            let status = edge.status().await;
            let workers = status["apps"]["a"]["workers"].as_array().unwrap().clone();
            workers.iter().map(|worker| worker["requests"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        // Where the machine stands still quick workers look slow, and the slow one is asked; nothing makes it look quicker than it
        // is. So the best of some rounds tells what edge does.
        let mut rounds = 0;
        loop {
            let before = shares().await;
            let load = Load::start((0..clients).map(|_| Client {
                address: edge.https,
                host: "a.test".into(),
                path: "/",
                wire: Wire::H2,
                trust: trust.clone(),
                per_connection: u32::MAX,
                pause: Duration::ZERO,
            }));
            tokio::time::sleep(Duration::from_secs(6)).await;
            let tally = load.stop().await;
            assert!(tally.failed.is_empty(), "{:?}", tally.failed);
            let taken: Vec<u64> =
                shares().await.iter().zip(before).map(|(now, before)| now - before).collect();
            let share = taken[0] as f64 / taken.iter().sum::<u64>() as f64;
            println!(
                "figure: {clients} clients, requests by worker {taken:?}, the slow one's share {share:.3}"
            );
            rounds += 1;
            if share < 0.05 {
                break;
            }
            assert!(rounds < 3, "{taken:?}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn short_requests_are_not_sent_behind_a_blocked_worker() {
    let mut origins = Vec::new();
    for _ in 0..4 {
        // One thing at a time, whatever comes: an event loop that a handler blocks.
        let event_loop = Arc::new(tokio::sync::Mutex::new(()));
        let origin = Origin::start(move |mut peer| {
            let event_loop = Arc::clone(&event_loop);
            async move {
                while let Some(head) = peer.head().await {
                    let turn = event_loop.lock().await;
                    let millis = if head.request_line().contains("/blocking") { 500 } else { 5 };
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    drop(turn);
                    peer.answer("200 OK", "", "ok").await;
                }
            }
        });
        origins.push(origin.await);
    }
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.address).collect();
    let upstream = format!("domains: [a.test]\nupstream: {addresses:?}").replace("127", "http://127");
    let edge = Setup::new().app("a", &upstream).start().await;
    let trust = edge.trust().await;
    let client = |path, pause| Client {
        address: edge.https,
        host: "a.test".into(),
        path,
        wire: Wire::H2,
        trust: trust.clone(),
        per_connection: u32::MAX,
        pause: Duration::from_millis(pause),
    };
    let short = Load::start((0..8).map(|_| client("/short", 20)));
    let blocking = Load::start([client("/blocking", 100)]);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let (short, blocking) = tokio::join!(short.stop(), blocking.stop());
    assert!(
        short.failed.is_empty() && blocking.failed.is_empty(),
        "{:?} {:?}",
        short.failed,
        blocking.failed
    );
    println!(
        "figure: {} short requests beside blocking ones: p50 {:?}, p99 {:?}",
        short.good,
        short.at(0.5),
        short.at(0.99)
    );
    assert!(short.at(0.99) < Duration::from_millis(200), "p99 {:?}", short.at(0.99));
    edge.stop().await;
}
