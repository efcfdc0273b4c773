//! What a request costs, in allocations: edge serves in this process, whose allocator counts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the rules are for the program")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use edge::config::load;
use edge::config::surroundings::Surroundings;
use edge::daemon::{command, run};

static COUNT: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread is not edge's.
    static OUTSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: usize) {
    if !OUTSIDE.get() {
        COUNT.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

#[allow(unsafe_code, reason = "an allocator is unsafe by nature; this one hands everything to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps this method's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as above; the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Eleven, and a few more for all requests together. They are: the request's future; the entry of its access line; the fields of the
/// request and of the answer, each a map of two parts; the request's bytes and the answer's, and what lets the answer's body share
/// them; and three of the TLS library's, for a record in and a record out.
const AT_MOST: f64 = 11.2;
/// Of all of them together, half of it the future.
const BYTES_AT_MOST: f64 = 5_000.0;

/// So many that the last batch of access lines of those before them, at most 64 KiB, is nothing to each; and all of one connection.
const MEASURED: u32 = 8_000;

#[test]
fn a_proxied_request_allocates_little() {
    OUTSIDE.set(true);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("up.sock");
    answer_on(&socket);
    let certified = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let file = dir.path().join("edge.yaml");
    let at = dir.path().display();
    let text = format!(
        "storage: {at}/storage\nruntime_dir: {at}/run\nlisten: {{http: [], https: [\"127.0.0.1:0\"]}}\nthreads: 1\n\
         log: {{access: {at}/access.log}}\napps:\n  app:\n    domains: [a.test]\n    upstream: \"unix:{}\"\n    \
         tls: {{cert: {}, key: {}}}\n",
        socket.display(),
        cert.display(),
        key.display(),
    );
    std::fs::write(&file, text).unwrap();
    let around = Surroundings::of_this_process();
    let config = load::load(&file, &around).unwrap();
    std::thread::spawn(move || run::run(config));
    let address = listening(&file, &around);

    let mut roots = RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let session = ClientConnection::new(client, ServerName::try_from("a.test").unwrap()).unwrap();
    let mut stream = StreamOwned::new(session, TcpStream::connect(address).unwrap());

    ask(&mut stream, 500);
    let before = (COUNT.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
    ask(&mut stream, MEASURED);
    let each =
        |now: &AtomicU64, before: u64| (now.load(Ordering::Relaxed) - before) as f64 / f64::from(MEASURED);
    let (count, bytes) = (each(&COUNT, before.0), each(&BYTES, before.1));
    println!("figure: {count:.2} allocations and {bytes:.0} bytes a proxied request");
    assert!(count <= AT_MOST, "{count} allocations a request");
    assert!(bytes <= BYTES_AT_MOST, "{bytes} bytes a request");
    assert!(count >= 5.0, "{count} allocations a request: this does not count what it should");
}

/// A worker that answers everything the same way.
fn answer_on(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        OUTSIDE.set(true);
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                OUTSIDE.set(true);
                let mut request = [0; 4096];
                while stream.read(&mut request).unwrap_or(0) > 0 {
                    let body = "x".repeat(100);
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nserver: s\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n{body}"
                    );
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Where edge listens, once it does.
fn listening(file: &Path, around: &Surroundings) -> SocketAddr {
    let place = load::whereabouts(file, around).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(status) = command::status(&place, true, false) {
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            return status["listeners"][0]["address"].as_str().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < end, "edge does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn ask(stream: &mut (impl Read + Write), times: u32) {
    let mut answer = [0; 4096];
    for _ in 0..times {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\nuser-agent: test\r\naccept: */*\r\n\r\n")
            .unwrap();
        let mut got = 0;
        while !answer[..got].ends_with(&[b'x'; 100]) {
            let more = stream.read(&mut answer[got..]).unwrap();
            assert!(more > 0, "{}", String::from_utf8_lossy(&answer[..got]));
            got += more;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
}
