//! A CA of its own for each test: Debian's Pebble, with its mock DNS that sends every name to this machine.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::client::{Connection, Trust, Wire};
use super::until;

/// A running CA.
pub(crate) struct Pebble {
    dir: TempDir,
    acme: u16,
    management: u16,
    ca: Child,
    dns: Child,
}

impl Pebble {
    /// Starts a CA that validates HTTP-01 at `http` on this machine and issues for `validity`.
    pub(crate) async fn start(http: u16, validity: Duration) -> Self {
        let dir = tempfile::Builder::new().prefix("pebble-").tempdir().expect("a temporary directory");
        make_certificates(dir.path());
        let (acme, management, dns, dns_management) = (free_port(), free_port(), free_port(), free_port());
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{acme}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": "srv.pem", "privateKey": "srv.key",
            "httpPort": http, "tlsPort": free_port(),
            "ocspResponderURL": "", "externalAccountBindingRequired": false,
            "certificateValidityPeriod": validity.as_secs(),
        }});
        fs::write(dir.path().join("pebble.json"), config.to_string()).expect("a file");
        let dns = spawn(
            dir.path(),
            "pebble-challtestsrv",
            &[
                "-management",
                &format!("127.0.0.1:{dns_management}"),
                "-dns01",
                &format!("127.0.0.1:{dns}"),
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
            ],
            dns,
        );
        let ca = start_ca(dir.path(), dns.1);
        let pebble = Self { dir, acme, management, ca, dns: dns.0 };
        let trust = Trust::in_file(&pebble.root()).expect("a root");
        until(Duration::from_secs(30), "Pebble answers", async || {
            let mut connection = pebble.connect(pebble.acme, &trust).await?;
            connection.try_get("/dir").await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        pebble
    }

    /// Its keys of the configuration.
    pub(crate) fn keys(&self) -> String {
        let root = self.root();
        format!(
            "email: ops@example.com\nacme:\n  ca: https://localhost:{}/dir\n  ca_root: {}",
            self.acme,
            root.display()
        )
    }

    /// Where its own HTTPS certificate's root is.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// What clients must trust to accept the certificates it issues.
    pub(crate) async fn issued(&self) -> Trust {
        let own = Trust::in_file(&self.root()).expect("a root");
        let mut connection = self.connect(self.management, &own).await.expect("its management listens");
        let answer = connection.get("/roots/0").await;
        Trust::in_pem(&answer.body).expect("a root")
    }

    /// Ends the CA; its names still resolve.
    pub(crate) fn stop(&mut self) {
        end(&mut self.ca);
    }

    async fn connect(&self, port: u16, trust: &Trust) -> Option<Connection> {
        let address = ([127, 0, 0, 1], port).into();
        Connection::to(address, "localhost", Wire::H1, trust).await.ok()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["pebble.log", "pebble-challtestsrv.log"] {
                eprintln!(
                    "── {log} ──\n{}",
                    fs::read_to_string(self.dir.path().join(log)).unwrap_or_default()
                );
            }
        }
        end(&mut self.ca);
        end(&mut self.dns);
    }
}

/// A TCP port nobody listens on, outside the range the system hands out by itself, so that it stays free for its user. No port
/// is given twice: tests run side by side, and one may ask for several before it uses any.
pub(crate) fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn start_ca(dir: &Path, dns: u16) -> Child {
    let resolver = format!("127.0.0.1:{dns}");
    spawn(dir, "pebble", &["-config", "pebble.json", "-dnsserver", &resolver], 0).0
}

fn spawn(dir: &Path, program: &str, arguments: &[&str], port: u16) -> (Child, u16) {
    let log = File::create(dir.join(format!("{program}.log"))).expect("a file");
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("PEBBLE_VA_NOSLEEP", "1")
        .env("PEBBLE_WFE_NONCEREJECT", "5")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error} (tests/run installs it)"));
    (child, port)
}

fn end(child: &mut Child) {
    // It may have been ended before.
    let _ = child.kill();
    let _ = child.wait();
}

/// A root, and a certificate below it for Pebble's own HTTPS.
fn make_certificates(dir: &Path) {
    let mut root = CertificateParams::new(Vec::new()).expect("parameters");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "test root");
    let root_key = KeyPair::generate().expect("a key");
    let root_certificate = root.self_signed(&root_key).expect("a certificate");
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).expect("parameters");
    leaf.distinguished_name.push(DnType::CommonName, "localhost");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
    fs::write(dir.join("ca.pem"), root_certificate.pem()).expect("a file");
    fs::write(dir.join("srv.pem"), leaf.pem()).expect("a file");
    fs::write(dir.join("srv.key"), key.serialize_pem()).expect("a file");
}
