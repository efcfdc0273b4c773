//! A real name server on loopback, at both of its addresses, which takes signed updates of its zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::ca::free_port;
use crate::cert::dns_ask::ask;
use crate::cert::dns_message::{About, name};

const HINT: &str = "these tests need the name server Knot: `apt-get install knot` (Debian 12 or later)";

const ZONE: &str =
    "$ORIGIN example.com.\n$TTL 60\n@ SOA ns1 root 1 60 60 3600 60\n@ NS ns1\nns1 A 127.0.0.1\n";

/// The server; it dies with this value.
pub(super) struct Knot {
    dir: tempfile::TempDir,
    port: u16,
    server: Child,
}

impl Knot {
    /// Of its keys `edge256`, `edge384` and `edge512`.
    pub(super) const SECRET: &[u8] = b"a secret of 24 bytes 012";
    /// Its addresses.
    pub(super) const HERE: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    /// One that has `example.com`.
    pub(super) async fn start() -> Self {
        Self::serving("example.com", ZONE).await
    }

    /// One that has `zone`, whose records are `text`.
    pub(super) async fn serving(zone: &str, text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (port, place) = (free_port(), dir.path().display().to_string());
        let secret = BASE64_STANDARD.encode(Self::SECRET);
        let keys: String = ["256", "384", "512"]
            .map(|bits| format!("  - id: edge{bits}\n    algorithm: hmac-sha{bits}\n    secret: {secret}\n"))
            .concat();
        let config = format!(
            "server:\n  listen: [127.0.0.1@{port}, ::1@{port}]\n  rundir: {place}\nlog:\n  - target: stderr\n    any: info\n\
             database:\n  storage: {place}\nkey:\n{keys}\
             acl:\n  - id: edge\n    key: [edge256, edge384, edge512]\n    action: update\n\
             zone:\n  - domain: {zone}\n    storage: {place}\n    file: records\n    acl: edge\n"
        );
        std::fs::write(dir.path().join("knot.conf"), config).expect("written");
        std::fs::write(dir.path().join("records"), text).expect("written");
        let log = std::fs::File::create(dir.path().join("log")).expect("a file");
        // Not in the path of everybody.
        let program = if Path::new("/usr/sbin/knotd").exists() { "/usr/sbin/knotd" } else { "knotd" };
        let server = Command::new(program)
            .arg("-c")
            .arg(dir.path().join("knot.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{HINT} ({error})"));
        let knot = Self { dir, port, server };
        knot.answering(zone).await;
        knot
    }

    async fn answering(&self, zone: &str) {
        let zone = name(zone).expect("a name");
        for _ in 0..50 {
            let asked = ask((Ipv4Addr::LOCALHOST, self.port).into(), About::Zone, &zone, false).await;
            if asked.is_ok_and(|answer| answer.zone.is_some()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("knotd does not answer: {log}");
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The texts of a name.
    pub(super) async fn texts(&self, of: &str) -> Vec<Vec<u8>> {
        let of = name(of).expect("a name");
        let asked = ask((Ipv4Addr::LOCALHOST, self.port).into(), About::Texts, &of, false).await;
        asked.expect("an answer").texts
    }
}

impl Drop for Knot {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
