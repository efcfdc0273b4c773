//! Pebble with its mock DNS, in which every name leads to this machine.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{free_port, https};

const HOOK: &str = r#"#!/bin/sh
set -eu
FIRST
case $1 in
present) call=set-txt ;;
cleanup) call=clear-txt ;;
esac
exec curl --silent --show-error --fail --noproxy '*' -d "{\"host\": \"$2.\", \"value\": \"$3\"}" http://127.0.0.1:PORT/$call
"#;

/// How a CA is to be.
pub(crate) struct Terms {
    http: u16,
    tls: u16,
    validity: Duration,
    environment: Vec<(&'static str, String)>,
    keys: Value,
    resolver: Option<u16>,
}

impl Terms {
    /// Validates HTTP-01 at this port of loopback, issues for a day, reuses no authorization.
    pub(crate) fn at(http: u16) -> Self {
        let environment =
            [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "5"), ("PEBBLE_AUTHZREUSE", "0")];
        Self {
            http,
            tls: free_port(),
            validity: Duration::from_secs(86_400),
            environment: environment.map(|(name, value)| (name, value.to_owned())).to_vec(),
            keys: json!({}),
            resolver: None,
        }
    }

    /// Validates TLS-ALPN-01 at this port of loopback.
    pub(crate) fn tls(self, port: u16) -> Self {
        Self { tls: port, ..self }
    }

    /// Issues for that long.
    pub(crate) fn validity(self, validity: Duration) -> Self {
        Self { validity, ..self }
    }

    /// Looks names up at this port of loopback instead of its mock DNS.
    pub(crate) fn resolver(self, port: u16) -> Self {
        Self { resolver: Some(port), ..self }
    }

    /// Sets a variable of Pebble's environment.
    pub(crate) fn environment(mut self, name: &'static str, value: &str) -> Self {
        self.environment.retain(|(known, _)| *known != name);
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Sets a key of Pebble's configuration.
    pub(crate) fn key(mut self, name: &str, value: Value) -> Self {
        self.keys[name] = value;
        self
    }

    /// Starts it.
    pub(crate) async fn start(self) -> Pebble {
        Pebble::start(self).await
    }
}

/// A running CA; it ends with this value.
pub(crate) struct Pebble {
    dir: TempDir,
    acme: u16,
    management: u16,
    dns: u16,
    dns_management: u16,
    environment: Vec<(&'static str, String)>,
    ca: Child,
    resolver: Child,
}

impl Pebble {
    async fn start(terms: Terms) -> Self {
        let dir = tempfile::Builder::new().prefix("pebble-").tempdir().expect("a temporary directory");
        https::write_certificates(dir.path());
        let [acme, management, dns, dns_management] = [(); 4].map(|()| free_port());
        let mut config = json!({
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": "srv.pem", "privateKey": "srv.key",
            "httpPort": terms.http, "tlsPort": terms.tls,
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": terms.validity.as_secs(),
        });
        for (name, value) in terms.keys.as_object().expect("keys") {
            config[name] = value.clone();
        }
        fs::write(dir.path().join("pebble.json"), json!({"pebble": config}).to_string()).expect("written");
        let (at, management_at) = (format!("127.0.0.1:{dns}"), format!("127.0.0.1:{dns_management}"));
        let mut command = Command::new("pebble-challtestsrv");
        command.args(["-management", &management_at, "-dns01", &at, "-http01", "", "-https01", ""]);
        command.args(["-tlsalpn01", "", "-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""]);
        let resolver = spawn(&mut command, dir.path(), "dns.log");
        let dns = terms.resolver.unwrap_or(dns);
        let ca = spawn_ca(dir.path(), dns, &terms.environment);
        let environment = terms.environment;
        let pebble = Self { dir, acme, management, dns, dns_management, environment, ca, resolver };
        pebble.answering().await;
        pebble
    }

    async fn answering(&self) {
        for _ in 0..1500 {
            if https::get(&self.root(), self.acme, "/dir").await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("Pebble did not start: {}", self.log());
    }

    /// Stops it; nobody answers at its port, and its names still resolve.
    pub(crate) fn stop(&mut self) {
        end(&mut self.ca);
    }

    /// Starts it again with everything forgotten, its log too.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        self.ca = spawn_ca(self.dir.path(), self.dns, &self.environment);
        self.answering().await;
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.acme)
    }

    /// The keys of edge's configuration that lead to it.
    pub(crate) fn keys(&self) -> String {
        let (directory, root) = (self.directory(), self.root());
        format!("email: ops@example.com\nacme:\n  ca: {directory}\n  ca_root: {}", root.display())
    }

    /// Where the root of its own HTTPS certificate is.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The root of the certificates it issues; that of its `chain`th alternative.
    pub(crate) async fn issuing_root(&self, chain: usize) -> String {
        https::get(&self.root(), self.management, &format!("/roots/{chain}")).await.expect("a root")
    }

    /// Where its name server is.
    pub(crate) fn dns(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.dns).into()
    }

    /// A program that publishes at its name server, after it has done `first`.
    pub(crate) fn hook(&self, first: &str) -> PathBuf {
        let path = self.dir.path().join("hook");
        let text = HOOK.replace("PORT", &self.dns_management.to_string()).replace("FIRST", first);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        path
    }

    /// What it has said since it started.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("ca.log")).unwrap_or_default()
    }

    /// How often it has said this.
    pub(crate) fn said(&self, words: &str) -> usize {
        self.log().matches(words).count()
    }

    /// How many orders it has taken.
    pub(crate) fn orders(&self) -> usize {
        self.said("Added order \"")
    }

    /// How many accounts it has registered.
    pub(crate) fn accounts(&self) -> usize {
        self.said("accounts in memory")
    }

    /// How many certificates it has issued.
    pub(crate) fn issued(&self) -> usize {
        self.said("Issued certificate serial")
    }

    /// Tells its DNS something, as `/set-servfail`.
    pub(crate) async fn resolve(&self, path: &str, what: Value) {
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.dns_management)).await.expect("it listens");
        let body = what.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: dns\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("── Pebble ──\n{}", self.log());
        }
        end(&mut self.ca);
        end(&mut self.resolver);
    }
}

fn spawn_ca(dir: &Path, dns: u16, environment: &[(&'static str, String)]) -> Child {
    let mut command = Command::new("pebble");
    command.args(["-config", "pebble.json", "-dnsserver", &format!("127.0.0.1:{dns}")]);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    spawn(&mut command, dir, "ca.log")
}

fn spawn(command: &mut Command, dir: &Path, log: &str) -> Child {
    let log = File::create(dir.join(log)).expect("a log file");
    let errors = log.try_clone().expect("a descriptor");
    command.current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap_or_else(|error| {
        panic!("{} cannot be run: {error} (tests/run installs it)", command.get_program().display())
    })
}

fn end(child: &mut Child) {
    // It may have been ended before.
    let _ = child.kill();
    let _ = child.wait();
}
