//! A real CA on loopback: Pebble with its mock DNS, and the port it validates at.

use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::cert::challenge::Challenges;
use crate::scope::Scope;

const HINT: &str = "these tests need Pebble: `apt-get install pebble` (Debian 12 or later) puts `pebble` and \
                    `pebble-challtestsrv` on the PATH";

/// The CA; it dies with this value.
pub(super) struct Pebble {
    dir: tempfile::TempDir,
    port: u16,
    dns_port: u16,
    environment: Vec<(&'static str, String)>,
    ca: Child,
    dns: Child,
}

/// Outside the range the system hands out by itself, and none twice: a test asks for several before it uses any.
fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if StdListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = std::fs::File::create(log).expect("a log file");
    let errors = log.try_clone().expect("a log file");
    command
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .unwrap_or_else(|error| panic!("{HINT} ({error})"))
}

impl Pebble {
    /// Starts a CA that validates at `http_port` of loopback and issues for `validity` seconds.
    pub(super) async fn start(http_port: u16, validity: u64, environment: &[(&'static str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        write_server_certificate(dir.path());
        let (port, dns_port) = (free_port(), free_port());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{}", free_port()),
            "certificate": dir.path().join("srv.pem"), "privateKey": dir.path().join("srv.key"),
            "httpPort": http_port, "tlsPort": free_port(),
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity,
        }});
        std::fs::write(dir.path().join("pebble.json"), config.to_string()).expect("written");
        let mut dns = Command::new("pebble-challtestsrv");
        dns.args([
            "-management",
            &format!("127.0.0.1:{}", free_port()),
            "-dns01",
            &format!("127.0.0.1:{dns_port}"),
        ])
        .args([
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
            "-defaultIPv4",
            "127.0.0.1",
            "-defaultIPv6",
            "",
        ]);
        let dns = spawn(&mut dns, &dir.path().join("dns.log"));
        let environment: Vec<_> =
            environment.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        let ca = Self::spawn_ca(dir.path(), dns_port, &environment);
        let pebble = Self { dir, port, dns_port, environment, ca, dns };
        pebble.answering().await;
        pebble
    }

    fn spawn_ca(dir: &Path, dns_port: u16, environment: &[(&'static str, String)]) -> Child {
        let mut ca = Command::new("pebble");
        ca.arg("-config").arg(dir.join("pebble.json")).args(["-dnsserver", &format!("127.0.0.1:{dns_port}")]);
        ca.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0").env("PEBBLE_AUTHZREUSE", "0");
        ca.envs(environment.iter().map(|(key, value)| (key, value)));
        spawn(&mut ca, &dir.join("ca.log"))
    }

    async fn answering(&self) {
        for _ in 0..1500 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = std::fs::read_to_string(self.dir.path().join("ca.log")).unwrap_or_default();
        panic!("pebble did not start: {log}");
    }

    /// Stops it; nobody answers at its port.
    pub(super) fn stop(&mut self) {
        drop(self.ca.kill());
        drop(self.ca.wait());
    }

    /// Starts it again with everything forgotten.
    pub(super) async fn restart(&mut self) {
        self.stop();
        self.ca = Self::spawn_ca(self.dir.path(), self.dns_port, &self.environment);
        self.answering().await;
    }

    pub(super) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    pub(super) fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        drop(self.dns.kill());
        drop(self.dns.wait());
    }
}

/// Pebble's own HTTPS certificate, which Debian's package does not bring.
fn write_server_certificate(dir: &Path) {
    let ca_key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "rig CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("valid");
    let leaf = params.signed_by(&key, &issuer).expect("signed");
    for (file, text) in [("ca.pem", root.pem()), ("srv.pem", leaf.pem()), ("srv.key", key.serialize_pem())] {
        std::fs::write(dir.join(file), text).expect("written");
    }
}

/// Answers HTTP-01 from `challenges` on a free port of loopback and returns the port.
pub(super) async fn answer_http01(challenges: Arc<Challenges>, scope: &Scope) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let scope_of_task = scope.clone();
    scope.spawn(async move {
        loop {
            tokio::select! {
                () = scope_of_task.aborted() => return,
                Ok((stream, _)) = listener.accept() => answer(stream, &challenges).await,
            }
        }
    });
    port
}

async fn answer(mut stream: TcpStream, challenges: &Challenges) {
    let mut head = [0; 4096];
    let read = stream.read(&mut head).await.unwrap_or(0);
    let text = String::from_utf8_lossy(&head[..read]);
    let token = text.split(' ').nth(1).and_then(|path| path.strip_prefix("/.well-known/acme-challenge/"));
    let reply = match token.and_then(|token| challenges.http01(token)) {
        Some(answer) => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{answer}",
            answer.len()
        ),
        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    };
    drop(stream.write_all(reply.as_bytes()).await);
}
