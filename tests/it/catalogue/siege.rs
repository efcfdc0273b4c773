//! Attackers and a good client at the same time: what the attackers make edge hold is bounded and given back, and the good
//! client's requests are answered, nearly as fast as before.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::client::{Raw, Trust, Wire, tcp_from, tcp_narrow, tls_over};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{
    CONTINUATION, DATA, FLOW, H2, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, block, frame, get, headers,
    remembered, request, window_update,
};
use crate::support::load::{Client, Load, Tally};
use crate::support::{full_length, processes, until};

/// What an attack may make edge hold, in KiB: this, or so much for each of its connections where they are many. A connection
/// holds a piece of an answer that is not taken, its TLS, and little else.
const MOST: u64 = 64 * 1024;
const MOST_EACH: u64 = 320;
/// What may be left of all of it, in KiB: pages that an allocator keeps for the next request.
const LEFT: u64 = 16 * 1024;
/// How soon.
const GIVEN_BACK: Duration = Duration::from_secs(60);
/// How much longer than usual the slowest of a hundred requests may take, where twice the usual is less: attackers, client, worker
/// and an unoptimised edge share a machine's cores, in the everyday suite with other tests, and each waits for its turn.
fn unfelt() -> Duration {
    Duration::from_millis(if full_length() { 20 } else { 100 })
}

/// One attacker's connection, from beginning to end.
type Attack = fn(Target) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

/// Where an attacker attacks, and from where.
#[derive(Clone)]
struct Target {
    https: std::net::SocketAddr,
    trust: Trust,
    number: usize,
    /// Where attackers wait for each other.
    together: Arc<Barrier>,
}

impl Target {
    /// Attackers have 25 connections an address.
    fn address(&self) -> [u8; 4] {
        let place = u16::try_from(self.number / 25).expect("few attackers") + 1;
        let [high, low] = place.to_be_bytes();
        [127, 1, high, low]
    }

    async fn http2(
        &self,
        settings: &[(u16, u32)],
    ) -> std::io::Result<H2<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>> {
        H2::from(self.https, "a.test", self.address(), &self.trust, settings).await
    }

    async fn http1(&self) -> std::io::Result<Raw<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>> {
        let tcp = tcp_narrow(self.address().into(), self.https).await?;
        Ok(Raw::new(tls_over(tcp, "a.test", self.trust.offering(&["http/1.1"])).await?))
    }
}

/// The attacks, with how many connections each in the everyday suite and at full length.
const ATTACKS: [(&str, usize, usize, Attack); 9] = [
    ("F01 resets", 100, 100, |target| Box::pin(resets(target))),
    ("F02 floods", 100, 100, |target| Box::pin(floods(target))),
    ("F03 bomb", 100, 100, |target| Box::pin(bomb(target))),
    ("F04 slow app", 100, 100, |target| Box::pin(slow_app(target))),
    ("F05 no bodies", 100, 100, |target| Box::pin(no_bodies(target))),
    ("D01 D07 handshakes", 200, 2_000, |target| Box::pin(handshakes(target))),
    ("D02 D03 drips", 200, 2_500, |target| Box::pin(drips(target))),
    ("D04 unread answers", 100, 500, |target| Box::pin(unread(target))),
    ("D04 unread streams", 100, 500, |target| Box::pin(unread_streams(target))),
];

async fn resets(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[]).await?;
    let reset = |stream: u32| {
        [
            headers(stream, true, &get("a.test", "/slow/45000", &[])),
            frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
    };
    let frames: Vec<u8> = (0..1_000).flat_map(|n| reset(1 + n * 2).concat()).collect();
    client.try_send(&frames, Duration::from_secs(5)).await;
    client.end().await;
    Ok(())
}

async fn floods(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[]).await?;
    let begun = headers(1, false, &request("POST", "a.test", "/upload", &[]));
    let unended = frame(HEADERS, 0, 1, &get("a.test", "/", &[]));
    let frames = match target.number % 5 {
        0 => [unended, frame(CONTINUATION, 0, 1, &block(&[(b"a", b"b")])).repeat(10_000)].concat(),
        1 => [begun, frame(DATA, 0, 1, b"").repeat(10_000)].concat(),
        2 => frame(SETTINGS, 0, 0, &[]).repeat(10_000),
        3 => frame(PING, 0, 0, b"12345678").repeat(10_000),
        _ => frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1]).repeat(10_000),
    };
    client.try_send(&frames, Duration::from_secs(5)).await;
    client.end().await;
    Ok(())
}

/// A large field told once and meant ninety times in each of a hundred heads, each answer longer than the window of nothing.
async fn bomb(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[(FLOW, 0)]).await?;
    let head = get("a.test", "/bytes/1000000", &[]);
    let first = [&head[..], &remembered(b"x", &[b'a'; 100]), &[0xbe; 89]].concat();
    let other = [&head[..], &[0xbe; 90]].concat();
    let mut frames = headers(1, true, &first);
    for stream in 1..100 {
        frames.extend(headers(1 + stream * 2, true, &other));
    }
    // All at the same moment; one that was sent away does not wait for those that are not.
    let _ = tokio::time::timeout(Duration::from_secs(5), target.together.wait()).await;
    client.send(frames).await;
    client.end().await;
    Ok(())
}

async fn slow_app(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[]).await?;
    let head = get("a.test", "/slow/45000", &[]);
    client.send((0..100).flat_map(|n| headers(1 + n * 2, true, &head)).collect::<Vec<u8>>()).await;
    client.end().await;
    Ok(())
}

async fn no_bodies(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[]).await?;
    let head = request("POST", "a.test", "/upload", &[]);
    client.send((0..100).flat_map(|n| headers(1 + n * 2, false, &head)).collect::<Vec<u8>>()).await;
    client.end().await;
    Ok(())
}

async fn handshakes(target: Target) -> std::io::Result<()> {
    let tcp = tcp_from(target.address().into(), target.https).await?;
    match target.number % 3 {
        0 => Raw::new(tcp).read_to_close().await,
        1 => {
            let mut client = Raw::new(tcp);
            client.try_write([0x16, 3, 1, 2, 0, 1]).await;
            client.read_to_close().await
        }
        _ => {
            let mut client = Raw::new(tcp);
            client.try_write([b'x'; 64]).await;
            client.read_to_close().await
        }
    };
    Ok(())
}

async fn drips(target: Target) -> std::io::Result<()> {
    let mut client = target.http1().await?;
    let head = if target.number.is_multiple_of(2) {
        "GET / HTTP/1.1\r\nHost: a.test\r\nX: "
    } else {
        "POST /upload HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n"
    };
    client.try_write(head).await;
    while client.try_write("x").await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

async fn unread(target: Target) -> std::io::Result<()> {
    let mut client = target.http1().await?;
    client.try_write("GET /bytes/10000000 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    // Nothing is read. That edge has ended it shows in a write.
    while client.try_write("x").await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// A hundred answers for which all windows have room, and nobody reads.
async fn unread_streams(target: Target) -> std::io::Result<()> {
    let mut client = target.http2(&[(FLOW, 0x7fff_ffff)]).await?;
    let head = get("a.test", "/bytes/60000", &[]);
    let asked = (0..100).flat_map(|n| headers(1 + n * 2, true, &head));
    client.send(window_update(0, 0x7000_0000).into_iter().chain(asked).collect::<Vec<u8>>()).await;
    // It holds what it has got, and comes again.
    tokio::time::sleep(Duration::from_secs(6)).await;
    Ok(())
}

#[tokio::test]
async fn what_attackers_hold_is_bounded_and_given_back() {
    let full = full_length();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
    let patience = if full { "" } else { "timeouts: {handshake: 3s, headers: 3s, body: 3s, write: 3s}" };
    let edge = Setup::new()
        .top(patience)
        .top("log: {access: false}")
        .app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 2")
        .start()
        .await;
    edge.wait_until_up("a").await;
    let trust = edge.trust().await;
    let length = Duration::from_secs(if full { 60 } else { 4 });
    // Warm: what the first requests need stays.
    good(&edge, &trust, Duration::from_secs(1)).await;
    let rest = processes::memory(edge.pid());
    let base = good(&edge, &trust, length.min(Duration::from_secs(10))).await;
    assert!(base.failed.is_empty(), "{:?}", base.failed);
    let usual = base.at(0.99);
    println!("figure: siege base p50 {:?} p99 {usual:?}, {} requests, {rest} KiB", base.at(0.5), base.good);
    let mut broken = Vec::new();
    // Some of them, where somebody has no quarter of an hour for all at full length.
    let only = std::env::var("EDGE_TEST_SIEGE").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|part| name.starts_with(part));
    for (name, everyday, most, attack) in ATTACKS.into_iter().filter(|(name, ..)| wanted(name)) {
        let count = if full { most } else { everyday };
        let attackers = Attackers::start(&edge, &trust, count, attack);
        let (cpu, begun) = (processes::cpu(edge.pid()), Instant::now());
        let (tally, peak) = tokio::join!(good(&edge, &trust, length), peak(edge.pid(), length));
        let cpu = (processes::cpu(edge.pid()) - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
        let connections = attackers.stop();
        let grown = peak.saturating_sub(rest);
        println!(
            "figure: siege {name}: {count} attackers, {connections} connections, + {grown} KiB, {cpu:.2} cores, good p50 {:?} \
             p99 {:?} slowest {:?}, {} requests, {} failed",
            tally.at(0.5),
            tally.at(0.99),
            tally.slowest,
            tally.good,
            tally.failed.len(),
        );
        let felt = tally.at(0.99);
        for (wrong, why) in [
            (!tally.failed.is_empty(), format!("{:?}", tally.failed)),
            (
                grown > MOST.max(if name.starts_with('F') { 0 } else { count as u64 * MOST_EACH }),
                format!("{grown} KiB"),
            ),
            (felt > (usual * 2).max(usual + unfelt()), format!("{felt:?} where {usual:?} is usual")),
        ] {
            broken.extend(wrong.then(|| format!("{name}: {why}")));
        }
        let over = Instant::now();
        until(GIVEN_BACK, "memory is given back", async || {
            (processes::memory(edge.pid()) <= rest + LEFT).then_some(())
        })
        .await;
        println!("figure: siege {name}: given back {:?} after it", over.elapsed());
    }
    until(Duration::from_secs(40), "nothing is in flight", async || {
        let workers = edge.status().await["apps"]["a"]["workers"].take();
        workers.as_array()?.iter().all(|worker| worker["in_flight"] == 0).then_some(())
    })
    .await;
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    edge.stop().await;
}

/// The good client: a few connections of either version, each request a small page.
async fn good(edge: &Edge, trust: &Trust, length: Duration) -> Tally {
    let client = |wire| Client {
        address: edge.https,
        host: "a.test".to_owned(),
        path: "/json",
        wire,
        trust: trust.clone(),
        per_connection: 50,
        pause: Duration::from_millis(10),
    };
    let load = Load::start([Wire::H1, Wire::H2, Wire::H1, Wire::H2].map(client));
    tokio::time::sleep(length).await;
    load.stop().await
}

/// The most a process holds in a while, in KiB.
async fn peak(pid: u32, length: Duration) -> u64 {
    let (begun, mut peak) = (Instant::now(), 0);
    while begun.elapsed() < length {
        peak = peak.max(processes::memory(pid));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    peak
}

/// Attackers in a thread of their own that gives way to all others: real ones have their own machines.
struct Attackers {
    enough: CancellationToken,
    thread: std::thread::JoinHandle<usize>,
}

impl Attackers {
    fn start(edge: &Edge, trust: &Trust, count: usize, attack: Attack) -> Self {
        let enough = CancellationToken::new();
        let together = Arc::new(Barrier::new(count));
        let target = Target { https: edge.https, trust: trust.clone(), number: 0, together };
        let stop = enough.clone();
        let thread = std::thread::spawn(move || {
            // Of this thread alone, as Linux has it.
            setpriority_process(None, 19).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let mut attackers = JoinSet::new();
                for number in 0..count {
                    attackers.spawn_local(again(Target { number, ..target.clone() }, attack, stop.clone()));
                }
                let mut connections = 0;
                while let Some(ended) = attackers.join_next().await {
                    connections += ended.expect("an attacker does not panic");
                }
                connections
            })
        });
        Self { enough, thread }
    }

    /// How many connections they opened.
    fn stop(self) -> usize {
        self.enough.cancel();
        self.thread.join().expect("attackers do not panic")
    }
}

/// Attacks until told, one attacker a moment after the other; one that was sent away is back after a moment.
async fn again(target: Target, attack: Attack, stop: CancellationToken) -> usize {
    let mut connections = 0;
    let attacking = async {
        tokio::time::sleep(Duration::from_secs(2) * u32::try_from(target.number % 100).unwrap() / 100).await;
        loop {
            connections += 1;
            let _ = attack(target.clone()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = attacking => {}
    }
    connections
}
