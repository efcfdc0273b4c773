//! Requests at a fixed rate, whatever becomes of them: every client sends on its schedule, on its kept connection where that is
//! free and on another where it is not. Every request is written down: when it was due, how late this program was with it, when
//! its answer was complete, and why there was none. Latency counts from the moment a request was due.
//!
//! ```text
//! load ADDRESS HOST ROOT.pem SECONDS PATIENCE_SECONDS LANE…      LANE: NAME,CLIENTS,REQUESTS_PER_SECOND,PATH
//! ```
//! Prints one line for each request: lane, due (seconds since 1970), late, took (both in milliseconds), status or cause.

#![allow(clippy::expect_used, reason = "a tool that cannot run says why and ends")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the program; here tasks end with the process"
)]

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio_rustls::TlsConnector;

/// Requests of one kind.
struct Lane {
    name: String,
    clients: u32,
    rate: f64,
    path: String,
}

impl Lane {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(',');
        let mut next = || parts.next().expect("NAME,CLIENTS,REQUESTS_PER_SECOND,PATH");
        Self {
            name: next().to_owned(),
            clients: next().parse().expect("a number of clients"),
            rate: next().parse().expect("a rate"),
            path: next().to_owned(),
        }
    }
}

/// Whom all clients ask, and what they share.
struct Run {
    address: SocketAddr,
    host: String,
    tls: TlsConnector,
    patience: Duration,
    began: (Instant, f64),
    records: RefCell<String>,
}

/// A client's connections that wait for its next request.
type Idle = Rc<RefCell<Vec<SendRequest<Empty<Bytes>>>>>;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("ADDRESS HOST ROOT.pem SECONDS PATIENCE_SECONDS LANE…");
    let (address, host, root) = (next(), next(), next());
    let (seconds, patience): (f64, f64) =
        (next().parse().expect("seconds"), next().parse().expect("seconds"));
    let lanes: Vec<Lane> = arguments.map(|lane| Lane::parse(&lane)).collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let run = Rc::new(Run {
        address: address.parse().expect("an address"),
        host,
        tls: TlsConnector::from(Arc::new(trusting(&root))),
        patience: Duration::from_secs_f64(patience),
        // The first requests are due once every client is there.
        began: (Instant::now() + Duration::from_millis(100), now + 0.1),
        records: RefCell::default(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let mut clients = Vec::new();
        for lane in lanes {
            let lane = Rc::new(lane);
            for client in 0..lane.clients {
                clients.push(tokio::task::spawn_local(ask(
                    Rc::clone(&run),
                    Rc::clone(&lane),
                    client,
                    seconds,
                )));
            }
        }
        for client in clients {
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

/// One client: a request each `clients / rate` seconds, the clients of a lane evenly apart.
async fn ask(run: Rc<Run>, lane: Rc<Lane>, client: u32, seconds: f64) {
    let idle = Idle::default();
    let mut open = Vec::new();
    for number in 0u32.. {
        let due = (f64::from(number) * f64::from(lane.clients) + f64::from(client)) / lane.rate;
        if due >= seconds {
            break;
        }
        tokio::time::sleep_until((run.began.0 + Duration::from_secs_f64(due)).into()).await;
        open.push(tokio::task::spawn_local(one(Rc::clone(&run), Rc::clone(&lane), Rc::clone(&idle), due)));
    }
    for request in open {
        request.await.expect("a request does not panic");
    }
}

async fn one(run: Rc<Run>, lane: Rc<Lane>, idle: Idle, due: f64) {
    let since = run.began.0 + Duration::from_secs_f64(due);
    let late = since.elapsed();
    let outcome = match tokio::time::timeout(run.patience, exchange(&run, &lane.path, &idle)).await {
        Ok(Ok(status)) => status.as_str().to_owned(),
        Ok(Err(cause)) => cause,
        Err(_) => format!("no answer in {} s", run.patience.as_secs()),
    };
    let took = since.elapsed();
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let _never_fails = writeln!(
        run.records.borrow_mut(),
        "{}\t{:.4}\t{:.2}\t{:.2}\t{outcome}",
        lane.name,
        run.began.1 + due,
        ms(late),
        ms(took)
    );
}

/// The status of a complete answer.
async fn exchange(run: &Run, path: &str, idle: &Idle) -> Result<StatusCode, String> {
    let mut sender = loop {
        let kept = idle.borrow_mut().pop();
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
    idle.borrow_mut().push(sender);
    Ok(status)
}

async fn connect(run: &Run) -> Result<SendRequest<Empty<Bytes>>, String> {
    let tcp = TcpStream::connect(run.address).await.map_err(|error| format!("connecting: {error}"))?;
    tcp.set_nodelay(true).map_err(|error| format!("connecting: {error}"))?;
    let name = ServerName::try_from(run.host.clone()).expect("a server name");
    let stream = run.tls.connect(name, tcp).await.map_err(|error| format!("handshake: {error}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("handshake: {error}"))?;
    // How it ends shows in the requests on it.
    tokio::task::spawn_local(async { drop(connection.await) });
    Ok(sender)
}
