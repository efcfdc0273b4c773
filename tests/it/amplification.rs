//! What a request holds while it waits, against what its client sent for it.

use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::client::{Connection, PATIENCE, Wire};
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{End, H2, get, headers, remembered};
use crate::support::origin::Origin;
use crate::support::{processes, until};

/// The most that a request may hold while it waits, in bytes: for so many fields, in the queue and at a worker.
///
/// Edge holds no input to a ratio of its own here, but each request to what it costs, and all of them to a bound: a client has 64
/// requests at workers and 256 that wait, and the heads of all clients together have what is reckoned for one on each connection.
/// A GET of HTTP/2 is 13 bytes, and no more than 1.3 KB would be a hundred times that. What any request in flight has is more:
/// half of it is the one future that does all for it, and without which a request that need not wait would allocate several times;
/// the rest is its entry of the log, its stream and the room for its events in the library of HTTP/2, its task, its place in line or its
/// connection to a worker. Beyond that a field costs what its entry in a map does, about a hundred bytes, where its client has sent
/// one. Measured the same way, at a worker, nginx 1.22 held 10,100 bytes for a request without fields and 14,200 with 97 of them,
/// HAProxy 2.6 7,600 and 8,500.
const MOST: [(u8, u64, u64); 3] = [(0, 5_300, 6_300), (64, 14_000, 15_000), (97, 18_500, 19_500)];

const CONNECTIONS: usize = 16;
const STREAMS: u32 = 100;

type Client = H2<TlsStream<TcpStream>>;

/// A head that is told with a byte for each field: once to be remembered, and from then on.
struct Head {
    first: Vec<u8>,
    again: Vec<u8>,
}

/// A GET of `/` with so many fields, each of another name and without a value.
fn head(fields: u8) -> Head {
    // The four fields of a GET: two of the static table, `/` of it, and the authority remembered.
    let common = [0x82, 0x87, 0x84];
    let mut first = common.to_vec();
    first.extend(remembered(b":authority", b"a.test"));
    for name in 0..fields {
        first.extend(remembered(&[b'a' + name / 26, b'a' + name % 26], b""));
    }
    let mut again = common.to_vec();
    let index = |place: u8| if place < 127 { vec![0x80 | place] } else { vec![0xff, place - 127] };
    again.extend(index(62 + fields));
    for field in 0..fields {
        again.extend(index(62 + field));
    }
    Head { first, again }
}

/// Memory that so many waiting requests with this head hold, and the bytes that were sent for them.
async fn held(edge: &Edge, head: &Head, waiting: impl AsyncFn(&Edge) -> u64) -> (u64, u64) {
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = H2::open(edge, "a.test", &[]).await;
        client.send(headers(1, true, &head.first)).await;
        clients.push(client);
        until(PATIENCE, "the first waits", async || (waiting(edge).await > number as u64).then_some(()))
            .await;
    }
    let before = processes::memory(edge.pid());
    let more: Vec<u8> = (1..STREAMS).flat_map(|n| headers(1 + n * 2, true, &head.again)).collect();
    for client in &mut clients {
        client.send(&more).await;
    }
    let all = CONNECTIONS as u64 * u64::from(STREAMS);
    until(PATIENCE * 3, "all of them wait", async || (waiting(edge).await >= all).then_some(())).await;
    let grown = processes::memory(edge.pid()).saturating_sub(before);
    drop(clients);
    until(PATIENCE, "nobody waits", async || (waiting(edge).await == 0).then_some(())).await;
    (grown * 1024, more.len() as u64 * CONNECTIONS as u64)
}

async fn queued(edge: &Edge) -> u64 {
    edge.status().await["apps"]["a"]["queue"].as_u64().expect("a number")
}

async fn in_flight(edge: &Edge) -> u64 {
    edge.status().await["apps"]["a"]["workers"][0]["in_flight"].as_u64().expect("a number")
}

#[tokio::test]
async fn f03_a_request_that_waits_holds_what_it_must_and_no_more() {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
    let mut wrong = Vec::new();
    for (fields, most_queued, most_asked) in MOST {
        let head = head(fields);
        let edge = unlimited(BUSY).await;
        let holder = busy(&edge).await;
        let in_queue = held(&edge, &head, queued).await;
        holder.abort();
        edge.stop().await;

        let origin = Origin::start(async |mut peer| {
            peer.head().await;
            peer.closed().await;
        })
        .await;
        let edge = unlimited(&origin.upstream()).await;
        let at_worker = held(&edge, &head, in_flight).await;
        edge.stop().await;
        for (place, most, (grown, sent)) in
            [("in the queue", most_queued, in_queue), ("at the worker", most_asked, at_worker)]
        {
            let each = grown / (u64::from(STREAMS - 1) * CONNECTIONS as u64);
            println!(
                "figure: a request with {fields} fields {place} holds {each} bytes: {} to 1",
                grown / sent
            );
            wrong.extend((each > most).then_some((fields, place, each, most)));
        }
    }
    setrlimit(Resource::Nofile, before).unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// The least of a thread's bounds, whatever is configured.
const BOUND: u64 = 16 << 20;

#[tokio::test]
async fn f03_the_heads_of_all_clients_that_wait_are_bounded_and_small_ones_still_come_in() {
    let edge = Setup::new()
        .top("threads: 1\nlog: {access: false}\nlimits: {in_flight_per_client: 0, connections: 64}")
        .app("a", &format!("domains: [a.test]\n{BUSY}"))
        .start()
        .await;
    let holder = busy(&edge).await;
    let (head, begun) = (head(97), Instant::now());
    let before = processes::memory(edge.pid());
    let mut clients: Vec<Client> = Vec::new();
    for number in 0..CONNECTIONS {
        // Each from an address of its own.
        let trust = edge.trust().await;
        let address = [127, 0, 2, u8::try_from(number).unwrap()];
        let mut client = H2::from(edge.https, "a.test", address, &trust, &[]).await.expect("a connection");
        client.send(headers(1, true, &head.first)).await;
        client
            .send((1..STREAMS - 1).flat_map(|n| headers(1 + n * 2, true, &head.again)).collect::<Vec<u8>>())
            .await;
        client.send(headers(STREAMS * 2 - 1, true, &get("a.test", "/%00", &[]))).await;
        assert_eq!(client.end_of(STREAMS * 2 - 1).await, End::Status(400), "what came before it is decided");
        clients.push(client);
    }
    let grown = processes::memory(edge.pid()).saturating_sub(before) * 1024;
    let waiting = queued(&edge).await;
    println!(
        "figure: of {} heads that come to be large {waiting} wait and hold {grown} bytes",
        CONNECTIONS * 100
    );
    assert!((100..BOUND / 20_000).contains(&waiting), "{waiting}");
    assert!(grown < BOUND * 3 / 2, "{grown}");
    let told = || edge.log_objects().into_iter().filter(|line| line["level"] == "warn").collect::<Vec<_>>();
    let told = until(PATIENCE, "it is told", async || Some(told()).filter(|told| !told.is_empty())).await;
    let names_limits = |line: &serde_json::Value| {
        let message = line["msg"].as_str().unwrap_or_default();
        ["limits.connections", "limits.head_size", "limits.header_fields"]
            .iter()
            .all(|limit| message.contains(limit))
    };
    assert!(told[0]["refused"] == 1 && told.iter().all(names_limits), "with its limits: {told:?}");
    assert!(told.len() as u64 <= 2 + begun.elapsed().as_secs(), "once a second: {told:?}");
    let mut browser = Connection::open(&edge, "a.test", Wire::H2).await;
    let waits =
        tokio::spawn(async move { browser.try_get("/json").await.map(|answer| answer.status.as_u16()).ok() });
    until(PATIENCE, "it waits with them", async || (queued(&edge).await == waiting + 1).then_some(())).await;
    drop(clients);
    holder.abort();
    assert_eq!(waits.await.unwrap(), Some(200));
    edge.stop().await;
}

/// A worker that answers one request at a time, and lets any number wait.
const BUSY: &str = "command: edge hello\nworkers: 1\nconcurrency: 1\nqueue: {size: 10000, timeout: 60s}";

/// Has the worker answer a request that takes longer than the test.
async fn busy(edge: &Edge) -> tokio::task::JoinHandle<bool> {
    edge.wait_until_up("a").await;
    let mut holder = Connection::open(edge, "a.test", Wire::H1).await;
    let holder = tokio::spawn(async move { holder.try_get("/slow/60000").await.is_ok() });
    until(PATIENCE, "the worker is busy", async || (in_flight(edge).await == 1).then_some(())).await;
    holder
}

async fn unlimited(app: &str) -> Edge {
    // One thread: what it has read at once, and not given back yet, counts once.
    let top = "threads: 1\nlog: {access: false}\nlimits: {in_flight_per_client: 0}";
    Setup::new().top(top).app("a", &format!("domains: [a.test]\n{app}")).start().await
}
