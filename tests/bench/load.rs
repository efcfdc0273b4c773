//! Requests at a fixed rate, whatever becomes of them: every client sends on its schedule, on its kept connection where that is
//! free and on another where it is not. Or, at the rate `max`, each client's next as soon as its last is answered. Every request
//! is written down: when it was due, how late this program was with it, when its answer was complete, and why there was none.
//! Latency counts from the moment a request was due, and none is due before every client has its connection.
//!
//! ```text
//! load ADDRESS HOST ROOT.pem SECONDS PATIENCE_SECONDS LANE…
//!     LANE: NAME,CLIENTS,REQUESTS_PER_SECOND,PATH[,EVERY,NAME,PATH]
//! ```
//! With the last three, each `EVERY`th request is one of that name and path. `ws:PATH` is a WebSocket: a request is a message on it
//! and its echo. Prints one line for each request: name, due (seconds since 1970), late, took (both in milliseconds), status or cause.

#![allow(clippy::expect_used, reason = "a tool that cannot run says why and ends")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the program; here tasks end with the process"
)]

use std::cell::{OnceCell, RefCell};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

/// Clients of one kind.
struct Lane {
    clients: u32,
    /// Requests a second of all its clients; `None`: as many as are answered.
    rate: Option<f64>,
    usual: Ask,
    /// Of so many requests in a row, the last is another.
    other: Option<(u32, Ask)>,
}

/// What is asked for, under which name it is written down.
struct Ask {
    name: String,
    path: String,
}

impl Lane {
    fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split(',').collect();
        let ask = |name: &str, path: &str| Ask { name: name.to_owned(), path: path.to_owned() };
        let (name, clients, rate, path, other) = match parts[..] {
            [name, clients, rate, path] => (name, clients, rate, path, None),
            [name, clients, rate, path, every, other, there] => {
                (name, clients, rate, path, Some((every.parse().expect("a number"), ask(other, there))))
            }
            _ => unreachable!("NAME,CLIENTS,REQUESTS_PER_SECOND,PATH[,EVERY,NAME,PATH]"),
        };
        Self {
            clients: clients.parse().expect("a number of clients"),
            rate: (rate != "max").then(|| rate.parse().expect("a rate")),
            usual: ask(name, path),
            other,
        }
    }

    /// What is asked by the request of this number.
    fn ask(&self, number: u32) -> &Ask {
        match &self.other {
            Some((every, other)) if number % every == every - 1 => other,
            Some(_) | None => &self.usual,
        }
    }
}

/// Whom all clients ask, and what they share.
struct Run {
    address: SocketAddr,
    host: String,
    tls: TlsConnector,
    patience: Duration,
    /// When everybody was there: on the clock that measures, and in seconds since 1970.
    began: OnceCell<(Instant, f64)>,
    records: RefCell<String>,
}

/// A client's connections that wait for its next request.
#[derive(Default)]
struct Idle {
    http: RefCell<Vec<SendRequest<Empty<Bytes>>>>,
    /// A client has one WebSocket, on which messages wait for each other.
    socket: Mutex<Option<WebSocketStream<TlsStream<TcpStream>>>>,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("ADDRESS HOST ROOT.pem SECONDS PATIENCE_SECONDS LANE…");
    let (address, host, root) = (next(), next(), next());
    let (seconds, patience): (f64, f64) =
        (next().parse().expect("seconds"), next().parse().expect("seconds"));
    let lanes: Vec<Lane> = arguments.map(|lane| Lane::parse(&lane)).collect();
    let run = Rc::new(Run {
        address: address.parse().expect("an address"),
        host,
        tls: TlsConnector::from(Arc::new(trusting(&root))),
        patience: Duration::from_secs_f64(patience),
        began: OnceCell::new(),
        records: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut clients = Vec::new();
        for lane in lanes.into_iter().map(Rc::new) {
            clients
                .extend((0..lane.clients).map(|client| (Rc::clone(&lane), client, Rc::new(Idle::default()))));
        }
        let opening = clients.iter().map(|(lane, _, idle)| {
            tokio::task::spawn_local(open(Rc::clone(&run), Rc::clone(lane), Rc::clone(idle)))
        });
        for client in opening.collect::<Vec<_>>() {
            client.await.expect("a client does not panic");
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        run.began.set((Instant::now(), now.as_secs_f64())).expect("it begins once");
        let asking = clients.into_iter().map(|(lane, client, idle)| {
            tokio::task::spawn_local(ask(Rc::clone(&run), lane, client, idle, seconds))
        });
        for client in asking.collect::<Vec<_>>() {
            client.await.expect("a client does not panic");
        }
    });
    std::io::stdout().write_all(run.records.borrow().as_bytes()).expect("standard output is open");
}

fn trusting(file: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).expect("the root's file") {
        roots.add(certificate.expect("a certificate")).expect("a root");
    }
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has these versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

impl Run {
    fn began(&self) -> (Instant, f64) {
        *self.began.get().expect("requests are due after the beginning")
    }
}

/// A client's first connection, so that the time many take to open at once is not that of the first requests. Where there is
/// none, the client's first request tries again, and tells why it failed.
async fn open(run: Rc<Run>, lane: Rc<Lane>, idle: Rc<Idle>) {
    let opened = async {
        match lane.usual.path.strip_prefix("ws:") {
            Some(path) => *idle.socket.lock().await = Some(socket(&run, path).await?),
            None => {
                let connection = connect(&run).await?;
                idle.http.borrow_mut().push(connection);
            }
        }
        Ok::<(), String>(())
    };
    let _missed = tokio::time::timeout(run.patience, opened).await;
}

async fn ask(run: Rc<Run>, lane: Rc<Lane>, client: u32, idle: Rc<Idle>, seconds: f64) {
    match lane.rate {
        Some(rate) => ask_in_time(run, lane, client, idle, rate, seconds).await,
        None => ask_at_once(run, lane, client, idle, seconds).await,
    }
}

/// One client: a request each `clients / rate` seconds, the clients of a lane evenly apart.
async fn ask_in_time(run: Rc<Run>, lane: Rc<Lane>, client: u32, idle: Rc<Idle>, rate: f64, seconds: f64) {
    let mut open = Vec::new();
    let alarm = Alarm::new();
    for turn in 0u32.. {
        let number = turn * lane.clients + client;
        let due = f64::from(number) / rate;
        if due >= seconds {
            break;
        }
        alarm.at(run.began().0 + Duration::from_secs_f64(due)).await;
        open.push(tokio::task::spawn_local(one(
            Rc::clone(&run),
            Rc::clone(&lane),
            Rc::clone(&idle),
            number,
            due,
        )));
    }
    for request in open {
        request.await.expect("a request does not panic");
    }
}

/// A client's clock. tokio's timers go by whole milliseconds, rounded up: requests would be late by one, and all that fall into the
/// same one would be sent at once.
struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    #[allow(unsafe_code, reason = "its safe form is deprecated, for descriptors that others can close")]
    fn new() -> Self {
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .expect("a timer");
        // SAFETY: the descriptor is owned by what is registered, which never replaces it.
        let watched = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) };
        Self(watched.expect("a runtime with descriptors"))
    }

    /// Returns at `due`, which may have been already.
    async fn at(&self, due: Instant) {
        let left = due.saturating_duration_since(Instant::now());
        // A timer set to nothing would never ring.
        if left.is_zero() {
            return;
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: left.try_into().expect("less than centuries"),
        };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).expect("a time");
        let mut times = [0; 8];
        while Instant::now() < due {
            let mut ready = self.0.readable().await.expect("a timer can be waited for");
            let _rang = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut times)?));
        }
    }
}

/// One client: a request after the other.
async fn ask_at_once(run: Rc<Run>, lane: Rc<Lane>, client: u32, idle: Rc<Idle>, seconds: f64) {
    // Clients do not all ask for the other thing at the same time.
    let first = lane.other.as_ref().map_or(0, |(every, _)| client * every / lane.clients);
    for number in first.. {
        let due = run.began().0.elapsed().as_secs_f64();
        if due >= seconds {
            break;
        }
        one(Rc::clone(&run), Rc::clone(&lane), Rc::clone(&idle), number, due).await;
    }
}

async fn one(run: Rc<Run>, lane: Rc<Lane>, idle: Rc<Idle>, number: u32, due: f64) {
    let since = run.began().0 + Duration::from_secs_f64(due);
    let late = since.elapsed();
    let Ask { name, path } = lane.ask(number);
    let exchange = async {
        match path.strip_prefix("ws:") {
            Some(path) => echo(&run, path, &idle).await,
            None => exchange(&run, path, &idle).await,
        }
    };
    let outcome = match tokio::time::timeout(run.patience, exchange).await {
        Ok(Ok(status)) => status.as_str().to_owned(),
        Ok(Err(cause)) => cause,
        Err(_) => format!("no answer in {} s", run.patience.as_secs()),
    };
    let took = since.elapsed();
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let _never_fails = writeln!(
        run.records.borrow_mut(),
        "{name}\t{:.4}\t{:.2}\t{:.2}\t{outcome}",
        run.began().1 + due,
        ms(late),
        ms(took)
    );
}

/// The status of a complete answer.
async fn exchange(run: &Run, path: &str, idle: &Idle) -> Result<StatusCode, String> {
    let mut sender = loop {
        let kept = idle.http.borrow_mut().pop();
        match kept {
            Some(kept) if kept.is_closed() => {}
            Some(kept) => break kept,
            None => break connect(run).await?,
        }
    };
    let told = |error: hyper::Error| edge::report::Report(&error).to_string();
    sender.ready().await.map_err(told)?;
    let request = Request::get(path).header("host", &run.host).body(Empty::new()).expect("a request");
    let response = sender.send_request(request).await.map_err(told)?;
    let status = response.status();
    response.into_body().collect().await.map_err(|error| format!("cut: {}", told(error)))?;
    idle.http.borrow_mut().push(sender);
    Ok(status)
}

/// A message on a WebSocket, and the same back.
async fn echo(run: &Run, path: &str, idle: &Idle) -> Result<StatusCode, String> {
    const TEXT: &str = "a message of thirty-two letters.";
    let mut kept = idle.socket.lock().await;
    // Taken out: where this fails, the next begins with another.
    let mut socket = match kept.take() {
        Some(socket) => socket,
        None => socket(run, path).await?,
    };
    socket.send(Message::text(TEXT)).await.map_err(websocket_failed)?;
    match socket.next().await {
        Some(Ok(Message::Text(text))) if text.as_str() == TEXT => {
            *kept = Some(socket);
            Ok(StatusCode::OK)
        }
        Some(Ok(other)) => Err(format!("not the echo: {other:?}")),
        Some(Err(error)) => Err(websocket_failed(error)),
        None => Err("WebSocket: closed".to_owned()),
    }
}

async fn socket(run: &Run, path: &str) -> Result<WebSocketStream<TlsStream<TcpStream>>, String> {
    let url = format!("wss://{}{path}", run.host);
    let opened = tokio_tungstenite::client_async(url, secure(run).await?).await;
    Ok(opened.map_err(websocket_failed)?.0)
}

fn websocket_failed(error: tokio_tungstenite::tungstenite::Error) -> String {
    format!("WebSocket: {error}")
}

async fn secure(run: &Run) -> Result<TlsStream<TcpStream>, String> {
    let tcp = TcpStream::connect(run.address).await.map_err(|error| format!("connecting: {error}"))?;
    tcp.set_nodelay(true).map_err(|error| format!("connecting: {error}"))?;
    let name = ServerName::try_from(run.host.clone()).expect("a server name");
    run.tls.connect(name, tcp).await.map_err(|error| format!("handshake: {error}"))
}

async fn connect(run: &Run) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = secure(run).await?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error}"))?;
    // How it ends shows in the requests on it.
    tokio::task::spawn_local(async { drop(connection.await) });
    Ok(sender)
}
