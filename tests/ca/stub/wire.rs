//! One request a connection, over TLS: read, answered or spoilt, closed.

use std::net::TcpListener as StdListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot::Receiver;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::https;
use super::books::{Books, Reply};
use super::garble::garbled;
use super::validate::validate;
use super::{Fault, Step};

/// What it serves its own https with; the root is written to `ca.pem`.
pub(super) fn own_certificate(dir: &Path) -> Arc<ServerConfig> {
    https::write_certificates(dir);
    let chain = CertificateDer::from_pem_file(dir.join("srv.pem")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(dir.join("srv.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .expect("a certificate");
    Arc::new(config)
}

#[allow(clippy::disallowed_methods, reason = "the CA owns its thread and everything on it")]
pub(super) fn serve(
    listener: StdListener,
    own: Arc<ServerConfig>,
    books: Arc<Mutex<Books>>,
    stopped: Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let acceptor = TlsAcceptor::from(own);
        let accepting = async {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                drop(tokio::spawn(connection(stream, acceptor.clone(), Arc::clone(&books))));
            }
        };
        tokio::select! {
            () = accepting => {}
            _ = stopped => {}
        }
    });
}

/// A connection that is being answered.
struct Open(Arc<Mutex<Books>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().expect("not poisoned").open -= 1;
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, books: Arc<Mutex<Books>>) {
    let broken = {
        let mut books = books.lock().expect("not poisoned");
        books.connections += 1;
        books.open += 1;
        books.broken_handshake == Some(books.connections)
    };
    let _open = Open(Arc::clone(&books));
    if broken {
        return;
    }
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let Some((path, body)) = request(&mut stream).await else { return };
    let Some(step) = step(&path) else { return };
    let fault = books.lock().expect("not poisoned").fault(step);
    let spoil = match fault {
        None | Some(Fault::Half | Fault::Lost | Fault::Mute | Fault::Garbled(_) | Fault::Slow(_)) => None,
        Some(Fault::Spoil { kind, detail }) => Some((kind, detail)),
        Some(Fault::Problem { status, kind, detail, retry_after }) => {
            let mut reply = Reply::problem(status, kind, detail);
            reply.headers.extend(retry_after.map(|after| ("retry-after", after)));
            return send(&mut stream, &books, reply, false).await;
        }
        Some(Fault::Page(status)) => {
            let body = "<html><h1>Service unavailable</h1></html>".to_owned();
            let reply = Reply { status, headers: Vec::new(), body, kind: "text/html" };
            return send(&mut stream, &books, reply, false).await;
        }
        Some(Fault::Reset) => {
            // Closed with something unread, which resets.
            let _ = stream.get_ref().0.set_zero_linger();
            return;
        }
        Some(Fault::Stall) => {
            books.lock().expect("not poisoned").silent += 1;
            return std::future::pending().await;
        }
    };
    let slow = match fault {
        Some(Fault::Slow(by)) => by,
        _ => books.lock().expect("not poisoned").slow,
    };
    if !slow.is_zero() {
        tokio::time::sleep(slow).await;
    }
    let (protected, payload) = jws(&body);
    let (mut reply, validation) =
        books.lock().expect("not poisoned").answer(step, &path, &protected, &payload, spoil);
    match fault {
        Some(Fault::Lost) => return,
        Some(Fault::Mute) => {
            books.lock().expect("not poisoned").silent += 1;
            return std::future::pending().await;
        }
        Some(Fault::Garbled(seed)) => reply.body = garbled(&reply.body, seed),
        _ => {}
    }
    send(&mut stream, &books, reply, matches!(fault, Some(Fault::Half))).await;
    drop(stream);
    if let Some(about) = validation {
        let unknown = books.lock().expect("not poisoned").unreachable.iter().any(|name| *name == about.name);
        let outcome = match unknown {
            true => Err(("dns", format!("DNS problem: SERVFAIL looking up A for {}", about.name))),
            false => validate(&about).await,
        };
        books.lock().expect("not poisoned").validated(about.order, outcome);
    }
}

fn step(path: &str) -> Option<Step> {
    Some(match path.split('/').nth(1)? {
        "dir" => Step::Directory,
        "nonce" => Step::Nonce,
        "new-account" => Step::NewAccount,
        "account" => Step::Account,
        "new-order" => Step::NewOrder,
        "order" => Step::Order,
        "authz" => Step::Authorization,
        "chall" => Step::Challenge,
        "finalize" => Step::Finalize,
        "cert" => Step::Certificate,
        "renewal-info" => Step::RenewalInfo,
        _ => return None,
    })
}

async fn request(stream: &mut TlsStream<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let head = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&read[..head]).to_lowercase();
    let path = String::from_utf8_lossy(&read[..head]).split(' ').nth(1)?.to_owned();
    let length =
        text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let length: usize = length.unwrap_or(0);
    while read.len() < head + length {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    Some((path, read.split_off(head)))
}

fn jws(body: &[u8]) -> (Value, Value) {
    let outer: Value = serde_json::from_slice(body).unwrap_or_default();
    let part = |name: &str| {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(outer[name].as_str().unwrap_or_default());
        serde_json::from_slice(&decoded.unwrap_or_default()).unwrap_or_default()
    };
    (part("protected"), part("payload"))
}

async fn send(stream: &mut TlsStream<TcpStream>, books: &Arc<Mutex<Books>>, reply: Reply, half: bool) {
    let (nonce, date) = {
        let mut books = books.lock().expect("not poisoned");
        (books.nonce(), httpdate::fmt_http_date(books.now()))
    };
    let mut text = format!(
        "HTTP/1.1 {} Because\r\nDate: {date}\r\nReplay-Nonce: {nonce}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n",
        reply.status,
        reply.kind,
        reply.body.len()
    );
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let body = if half { &reply.body[..reply.body.len() / 2] } else { &reply.body };
    text.push_str(body);
    // The client may have gone.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}
