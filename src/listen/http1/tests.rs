//! The whole way over real sockets: raw bytes from a client, a worker that is a script of bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::*;
use crate::cert::challenge::Challenges;
use crate::cert::resolver::Certificates;
use crate::clock::SystemClock;
use crate::config::model::{Address, App, Backend, PlainHttp, Queue, Sticky, Timeouts};
use crate::config::model::{Protocol, Tls};
use crate::deadline::Deadlines;
use crate::listen::tcp::Tcp;
use crate::name::WorkerId;
use crate::proxy::plane::AccessSink;
use crate::proxy::route::{Routing, Site};
use crate::scope::Scope;
use crate::telemetry::access::AccessRecord;
use crate::telemetry::tally::Tally;
use crate::upstream::exchange::Reach;
use crate::upstream::idle::IdleConnections;
use crate::upstream::pool::Pool;
use crate::worker::slot::{Roster, Slot};

#[derive(Default)]
pub(crate) struct Lines {
    records: RefCell<Vec<AccessRecord>>,
    written: Notify,
}

impl AccessSink for Lines {
    fn record(&self, record: &AccessRecord) {
        self.records.borrow_mut().push(record.clone());
        self.written.notify_one();
    }
}

impl Lines {
    pub(crate) async fn next(&self) -> AccessRecord {
        loop {
            if let Some(record) = self.records.borrow_mut().pop() {
                return record;
            }
            self.written.notified().await;
        }
    }
}

pub(crate) struct World {
    pub(crate) plane: Rc<Plane>,
    pub(crate) lines: Rc<Lines>,
    workers: Vec<TcpListener>,
    roster: Arc<Roster>,
    tasks: Scope,
}

/// A plane with one app, `a.test`, on `count` workers that listen and say nothing by themselves.
pub(crate) async fn world(count: u32) -> World {
    let second = Duration::from_secs(5);
    let timeouts = Timeouts {
        handshake: second,
        headers: second,
        body: second,
        write: second,
        keepalive: second,
        keepalive_h2: second,
        connection_age: second,
        pool_idle: None,
        connect: second,
        first_byte: second,
        upstream_idle: second,
        tunnel: second,
    };
    let name: crate::name::AppName = "a".parse().expect("valid");
    let app = App {
        name: name.clone(),
        domains: vec!["a.test".parse().expect("valid")],
        default: false,
        backend: Backend::Upstream(Vec::new()),
        tls: Tls::Off,
        http: PlainHttp::Serve,
        redirect_to: None,
        hsts: None,
        max_body: 10,
        queue: Queue { size: 100, timeout: Duration::from_secs(10) },
        protocol: crate::config::model::Protocol::Http1,
        client_auth: None,
        sticky: Sticky::None,
    };
    let roster = Roster::new();
    let mut workers = Vec::new();
    let mut slots = Vec::new();
    for slot in 0..count {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = Address::Tcp(listener.local_addr().expect("bound"));
        let id = WorkerId { app: name.clone(), slot, incarnation: 1 };
        slots.push(Slot::new(id, 100 + slot, address, Protocol::Http1, Duration::from_secs(60), None));
        workers.push(listener);
    }
    roster.publish(slots);
    let site = Site::new(Arc::new(app), Pool::new(name, Arc::clone(&roster)), Arc::new(Tally::new(1)));
    let lines = Rc::new(Lines::default());
    let tasks = Scope::new();
    let plane = Rc::new(Plane {
        thread: 0,
        strangers: Arc::new(Tally::new(1)),
        routing: Arc::new(ArcSwap::from_pointee(Routing::new([site]))),
        certificates: Certificates::new(),
        challenges: Challenges::new(),
        reach: Reach {
            idle: IdleConnections::new(),
            shared: crate::upstream::multiplex::SharedConnections::new(tasks.child()),
            deadlines: Deadlines::new(),
            timeouts,
            limits: crate::config::check_limits::presets().1,
            budget: crate::upstream::budget::Budget::new(),
        },
        access: Rc::clone(&lines) as Rc<dyn AccessSink>,
        tunnels: tasks.child(),
        clients: Arc::default(),
        heads: Rc::new(crate::proxy::heads::Heads::new(1)),
        proxy_protocol: Default::default(),
        clock: Arc::new(SystemClock),
    });
    World { plane, lines, workers, roster, tasks }
}

impl World {
    /// A client's connection, served.
    async fn client(&self) -> TcpStream {
        self.client_of(Rc::clone(&self.plane), Stage::default()).await
    }

    async fn client_of(&self, plane: Rc<Plane>, stage: Stage) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address: SocketAddr = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (stream, peer) = accepted.expect("accepted");
        let conn = Rc::new(ConnInfo::new(peer, address, None, self.plane.clients.represent(peer.ip())));
        drop(self.tasks.spawn(async move {
            serve_http1(Tcp::new(stream), conn, plane, stage).await;
        }));
        client.expect("connected")
    }

    /// The next connection to worker `slot`, with the head of the request on it.
    async fn asked(&self, slot: usize) -> (TcpStream, String) {
        let (mut stream, _) = self.workers[slot].accept().await.expect("accepted");
        let head = read_until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(end) {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(&mut text)).await;
        if read.expect("in time").expect("open") == 0 {
            break;
        }
    }
    String::from_utf8(text).expect("text")
}

/// Runs `test` where tasks can be spawned and deadlines pass.
async fn play(count: u32, test: impl AsyncFnOnce(&World)) {
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let world = world(count).await;
            let deadlines = world.plane.reach.deadlines.clone();
            tokio::select! {
                () = test(&world) => {}
                () = deadlines.run() => {}
            }
        })
        .await;
}

#[tokio::test]
async fn a_request_reaches_a_worker_and_its_answer_the_client() {
    play(1, async |world| {
        let mut client = world.client().await;
        client
            .write_all(b"POST /p?q HTTP/1.1\r\nHost: A.test\r\nX-Real-IP: 6\r\nContent-Length: 3\r\n\r\nabc")
            .await
            .expect("open");
        let (mut worker, head) = world.asked(0).await;
        assert!(head.starts_with("POST /p?q HTTP/1.1\r\nhost: A.test\r\n"), "{head}");
        assert_eq!(head.matches("content-length: 3\r\n").count(), 1, "{head}");
        assert_eq!(head.matches("x-real-ip: 127.0.0.1\r\n").count(), 1, "{head}");
        worker.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok").await.expect("open");
        let answer = read_until(&mut client, "ok").await;
        assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
        let line = world.lines.next().await;
        assert_eq!((line.status.as_u16(), line.bytes_in, line.bytes_out, line.retries), (201, 3, 2, 0));
        assert_eq!(line.worker, Some((0, 100)));
        assert_eq!(line.error, None);
    })
    .await;
}

#[tokio::test]
async fn edge_answers_what_no_worker_should_see() {
    play(1, async |world| {
        for (request, status) in [
            ("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", "404"),
            ("GET / HTTP/1.1\r\n\r\n", "400"),
            ("TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n", "405"),
            ("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", "405"),
            ("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n", "204"),
            ("GET x HTTP/1.1\r\nHost: a.test\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 11\r\n\r\n", "413"),
            ("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501"),
            ("HEAD / HTTP/1.1\r\nHost: b.test\r\n\r\n", "404"),
            // Two empty lines look like the end of a head.
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: b.test\r\n\r\n", "404"),
        ] {
            let mut client = world.client().await;
            client.write_all(request.as_bytes()).await.expect("open");
            let answer = read_until(&mut client, "\r\n\r\n").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
            drop(client);
            let line = world.lines.next().await;
            assert_eq!(line.status.as_str(), status);
            assert_eq!(line.worker, None);
        }
    })
    .await;
}

#[tokio::test]
async fn h03_a_worker_that_dies_before_it_answers_is_replaced_by_a_sibling_for_a_get_and_not_for_a_post() {
    for (method, status, retries) in [("GET", 200, 1), ("POST", 502, 0)] {
        play(2, async |world| {
            let mut client = world.client().await;
            let head = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n");
            client.write_all(head.as_bytes()).await.expect("open");
            let first = tokio::select! {
                (worker, _) = world.asked(0) => { drop(worker); 0 }
                (worker, _) = world.asked(1) => { drop(worker); 1 }
            };
            if status == 200 {
                let (mut worker, _) = world.asked(1 - first).await;
                worker.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("open");
            }
            let answer = read_until(&mut client, "\r\n\r\n").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            drop(client);
            let line = world.lines.next().await;
            assert_eq!((line.status.as_u16(), line.retries), (status, retries));
            assert_eq!(line.error.is_some(), status == 502);
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_for_which_no_other_worker_is_found_is_no_retry() {
    play(1, async |world| {
        let mut client = world.client().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("open");
        let (worker, _) = world.asked(0).await;
        world.roster.publish(Vec::new());
        drop(worker);
        while world.roster.waiting.load(std::sync::atomic::Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(client);
        let line = world.lines.next().await;
        assert_eq!((line.status.as_u16(), line.retries), (499, 0));
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_request_at_the_worker() {
    play(1, async |world| {
        for (request, body) in [
            ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", ""),
            ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nab", "ab"),
            (
                "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: y\r\n\r\n",
                "2\r\nab\r\n0\r\nx: y\r\n\r\n",
            ),
        ] {
            let mut client = world.client().await;
            client.write_all(request.as_bytes()).await.expect("open");
            let (mut worker, head) = world.asked(0).await;
            let begun = head.split_once("\r\n\r\n").expect("a head").1;
            let rest = read_until(&mut worker, &body[begun.len()..]).await;
            assert_eq!([begun, &rest].concat(), body);
            drop(client);
            assert_eq!(read_until(&mut worker, "never").await, "");
            assert_eq!(world.lines.next().await.status.as_u16(), 499, "{request}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_came_of_an_upload_that_fails_is_told() {
    play(1, async |world| {
        let mut client = world.client().await;
        let request = b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        client.write_all(request).await.expect("open");
        let (mut worker, head) = world.asked(0).await;
        if !head.contains("hello") {
            read_until(&mut worker, "hello").await;
        }
        client.write_all(b"6\r\nworld!\r\n").await.expect("open");
        assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 413 "));
        drop(client);
        let line = world.lines.next().await;
        assert_eq!((line.status.as_u16(), line.bytes_in), (413, 11));
    })
    .await;
}

#[tokio::test]
async fn an_empty_line_after_a_body_does_not_delay_the_end() {
    play(1, async |world| {
        let (stage, scope) = (Stage::default(), Scope::new());
        let mut plane = Plane::clone(&world.plane);
        plane.reach.timeouts.keepalive = Duration::from_secs(60);
        let mut client = world.client_of(Rc::new(plane), stage.clone()).await;
        let request = b"POST / HTTP/1.1\r\nHost: b.test\r\nContent-Length: 1\r\n\r\na\r\n";
        client.write_all(request).await.expect("open");
        let answer = read_until(&mut client, "Request ").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && !answer.contains("connection: close"), "{answer}");
        scope.drain();
        tokio::select! {
            _end = read_until(&mut client, "never") => {}
            () = stage.follow(&scope, &world.plane.reach.deadlines) => {}
        }
    })
    .await;
}

#[tokio::test]
async fn h04_a_truncated_answer_is_seen_as_truncated() {
    play(1, async |world| {
        let mut client = world.client().await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("open");
        let (mut worker, _) = world.asked(0).await;
        worker
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
            .await
            .expect("open");
        assert!(read_until(&mut client, "ab").await.contains("ab"));
        drop(worker);
        let rest = read_until(&mut client, "never").await;
        assert!(!rest.contains("0\r\n\r\n"), "{rest}");
        let line = world.lines.next().await;
        assert_eq!(line.status.as_u16(), 200);
        assert!(line.error.expect("told").contains("ended early"));
    })
    .await;
}

#[tokio::test]
async fn a_websocket_is_carried_both_ways_and_logged_at_its_end() {
    play(1, async |world| {
        let mut client = world.client().await;
        client
            .write_all(
                b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nearly",
            )
            .await
            .expect("open");
        let (mut worker, head) = world.asked(0).await;
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        worker
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
            )
            .await
            .expect("open");
        let answer = read_until(&mut client, "hello").await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert_eq!(answer.matches("upgrade: websocket\r\n").count(), 1, "{answer}");
        assert_eq!(read_until(&mut worker, "early").await, "early");
        drop(client);
        assert_eq!(read_until(&mut worker, "never").await, "");
        drop(worker);
        let line = world.lines.next().await;
        assert_eq!((line.status.as_u16(), line.bytes_in), (101, 5));
        assert_eq!(world.plane.tunnels.len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_request_that_was_read_keeps_nothing_of_the_threads_buffer() {
    let world = world(0).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let ((stream, peer), mut client) = (accepted.expect("accepted"), client.expect("connected"));
    let conn = Rc::new(ConnInfo::new(peer, address, None, world.plane.clients.represent(peer.ip())));
    let mut talk = Talk::new(Tcp::new(stream), conn, Rc::clone(&world.plane), Stage::default());
    let request = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
    // The second is kept, of course, until it is read itself.
    client.write_all(request.repeat(2).as_bytes()).await.expect("written");
    for left in [request.len(), 0] {
        let next = poll_fn(|cx| talk.poll_next(cx)).await;
        assert!(matches!(next, Ok(Next::Request(_))));
        let input = &talk.wire.borrow().input;
        assert_eq!(input.len(), left);
        assert!(left > 0 || input.as_ptr() == Bytes::new().as_ptr(), "an empty slice keeps its buffer");
    }
}
