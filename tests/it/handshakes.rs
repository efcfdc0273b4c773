//! What strangers send instead of an honest handshake, byte by byte, and sessions that are brought to where they do not belong.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::client::{Connection, PATIENCE, Wire, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::origin::Origin;
use crate::support::within;

const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;
const UNRECOGNIZED_NAME: u8 = 112;

/// A ClientHello (RFC 8446 §4.1.2).
struct Hello<'a> {
    name: Option<&'a [u8]>,
    version: [u8; 2],
    versions: &'a [[u8; 2]],
    suites: &'a [[u8; 2]],
    compressions: &'a [u8],
    more: Vec<u8>,
}

impl<'a> Hello<'a> {
    fn naming(name: &'a [u8]) -> Self {
        let suites = &[[0x13, 1], [0x13, 2], [0xc0, 0x2b], [0xc0, 0x2c]];
        Self {
            name: Some(name),
            version: [3, 3],
            versions: &[[3, 4], [3, 3]],
            suites,
            compressions: &[0],
            more: Vec::new(),
        }
    }

    /// The handshake message.
    fn message(&self) -> Vec<u8> {
        let mut extensions = self.more.clone();
        if let Some(name) = self.name {
            extensions.extend(extension(0, &long(&[&[0][..], &long(name)].concat())));
        }
        extensions.extend(extension(10, &long(&[0, 0x1d, 0, 0x17])));
        extensions.extend(extension(13, &long(&[4, 3, 8, 4])));
        if !self.versions.is_empty() {
            extensions.extend(extension(43, &short(self.versions.as_flattened())));
            extensions.extend(extension(51, &long(&[&[0, 0x1d][..], &long(&[9; 32])].concat())));
        }
        let body = [
            &self.version[..],
            &[7; 32],
            &short(&[]),
            &long(self.suites.as_flattened()),
            &short(self.compressions),
            &long(&extensions),
        ];
        message(&body.concat())
    }

    fn record(&self) -> Vec<u8> {
        record(22, &self.message())
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], body].concat()
}

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    [&[kind, 3, 1][..], &long(content)].concat()
}

fn short(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap()], content].concat()
}

fn long(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &long(content)].concat()
}

/// The first record of what edge answers, or less where it closes; what it is sent may be more than it reads.
async fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let sending = async {
        let _refused = to.write_all(bytes).await;
        // Held open: whoever is to be refused does not leave by itself.
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut answer = Vec::new();
        let length = |answer: &[u8]| {
            answer.get(3..5).map(|length| 5 + usize::from(u16::from_be_bytes([length[0], length[1]])))
        };
        while length(&answer).is_none_or(|length| answer.len() < length) {
            match from.read_buf(&mut answer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => break,
            }
        }
        answer
    };
    within(PATIENCE, "an answer or an end", async {
        tokio::select! {
            answer = reading => answer,
            () = sending => unreachable!("it never returns"),
        }
    })
    .await
}

/// The alert that is all of an answer.
async fn alert(address: SocketAddr, bytes: &[u8]) -> Option<u8> {
    match answer(address, bytes).await[..] {
        [21, 3, _, 0, 2, 2, alert] => Some(alert),
        _ => None,
    }
}

/// Whether edge goes on with the handshake.
async fn goes_on(address: SocketAddr, bytes: &[u8]) -> bool {
    answer(address, bytes).await.first() == Some(&22)
}

async fn edge(origin: &Origin) -> Edge {
    Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await
}

async fn assert_serves(edge: &Edge) {
    assert_eq!(Connection::open(edge, "a.test", Wire::H2).await.get("/").await.status, 200);
}

#[tokio::test]
async fn e01_a_name_that_nobody_has_gets_an_alert_and_no_certificate() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    assert_serves(&edge).await;
    assert!(goes_on(edge.https, &Hello::naming(b"a.test").record()).await, "the test's own hello is right");
    let nameless = Hello { name: None, ..Hello::naming(b"") };
    assert_eq!(alert(edge.https, &nameless.record()).await, Some(UNRECOGNIZED_NAME));
    let long = [b'a'; 256];
    for name in [&b"unknown.test"[..], b"a.test.evil.test", b"127.0.0.1", b"b.a.test"] {
        assert_eq!(
            alert(edge.https, &Hello::naming(name).record()).await,
            Some(UNRECOGNIZED_NAME),
            "{}",
            String::from_utf8_lossy(name)
        );
    }
    for name in [
        &long[..],
        b"",
        b"a..test",
        b"a test",
        b"a.test\0",
        b"\xff\xfe",
        b".a.test",
        b"*.test",
        b"a.test/",
        b"::1",
    ] {
        let said = alert(edge.https, &Hello::naming(name).record()).await;
        let right = [UNRECOGNIZED_NAME, ILLEGAL_PARAMETER, DECODE_ERROR];
        assert!(said.is_some_and(|said| right.contains(&said)), "{said:?} {}", String::from_utf8_lossy(name));
    }
    assert_serves(&edge).await;
    let certificates = edge.status().await["certificates"].as_array().unwrap().len();
    assert_eq!(certificates, 1, "nothing was issued");
    edge.stop().await;
}

#[tokio::test]
async fn e02_old_versions_and_ciphers_are_refused() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    assert_serves(&edge).await;
    let old = |version| Hello { version, versions: &[], ..Hello::naming(b"a.test") };
    assert!(goes_on(edge.https, &old([3, 3]).record()).await, "TLS 1.2");
    for version in [[3, 2], [3, 1], [3, 0]] {
        assert_eq!(alert(edge.https, &old(version).record()).await, Some(PROTOCOL_VERSION), "{version:?}");
    }
    // RSA key exchange, CBC, RC4, 3DES, NULL, export, anonymous.
    for suite in [[0, 0x9c], [0xc0, 0x09], [0, 0x05], [0, 0x0a], [0, 0x02], [0, 0x03], [0, 0x18]] {
        let hello = Hello { suites: &[suite], ..old([3, 3]) };
        assert_eq!(alert(edge.https, &hello.record()).await, Some(HANDSHAKE_FAILURE), "{suite:?}");
    }
    let sslv2 = [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80][..], &[1; 34]].concat();
    assert!(!goes_on(edge.https, &sslv2).await);
    assert_serves(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn e03_a_hello_may_come_in_pieces_but_not_without_end() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    assert_serves(&edge).await;
    let pieces: Vec<u8> =
        Hello::naming(b"a.test").message().iter().flat_map(|byte| record(22, &[*byte])).collect();
    assert!(goes_on(edge.https, &pieces).await, "records of one byte");
    let huge = message(&vec![3; 0x1_0000]);
    let huge: Vec<u8> = huge.chunks(16_000).flat_map(|piece| record(22, piece)).collect();
    assert!(!goes_on(edge.https, &huge).await, "64 KiB");
    let empty: Vec<u8> = (0..16_000).flat_map(|_| record(22, &[])).collect();
    assert!(!goes_on(edge.https, &empty).await, "empty records");
    let announced = [&[22, 3, 1, 0xff, 0xff][..], &[1; 100]].concat();
    assert!(!goes_on(edge.https, &announced).await, "a record that is too long");
    assert_serves(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn e04_compression_and_heartbeats_are_not_spoken_and_key_updates_harm_nobody() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    assert_serves(&edge).await;
    let compressed = Hello { compressions: &[1], ..Hello::naming(b"a.test") };
    assert_eq!(alert(edge.https, &compressed.record()).await, Some(ILLEGAL_PARAMETER));
    let beating = Hello { more: extension(15, &[1]), ..Hello::naming(b"a.test") };
    let said = answer(edge.https, &beating.record()).await;
    assert_eq!(said.first(), Some(&22));
    assert_eq!(memchr::memmem::find(&said, &[0, 15, 0, 1]), None, "a heartbeat is not agreed on");
    // The request of the heartbeat that bled.
    let heartbeat = record(24, &[1, 0x40, 0]);
    assert_ne!(answer(edge.https, &heartbeat).await.first(), Some(&24));

    let trust = edge.trust().await;
    let mut flooding = tls(edge.https, "a.test", trust.offering(&["http/1.1"])).await.unwrap();
    for _ in 0..1000 {
        flooding.get_mut().1.refresh_traffic_keys().unwrap();
    }
    // Whether or not it is still there after that: others are served.
    drop(flooding.flush().await);
    assert_serves(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn e05_e06_protocols_that_are_not_spoken_get_the_alert_that_says_so() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    let trust = edge.trust().await;
    for offered in [
        &["smtp"][..],
        &["http/1.0"],
        &["ftp", "imap"],
        // Nobody validates the name at the moment, and whoever does offers nothing else.
        &["acme-tls/1"],
        &["acme-tls/1", "h2"],
        &["h2", "acme-tls/1"],
    ] {
        let refused = tls(edge.https, "a.test", trust.offering(offered)).await.expect_err("refused");
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{offered:?}: {refused}");
    }
    assert_serves(&edge).await;
    edge.stop().await;
}

/// What `openssl s_client` prints of a connection for `name` that asks for a page.
async fn openssl(address: SocketAddr, name: &str, arguments: &[&str], said: &str) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-servername", name])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl is installed");
    let mut input = child.stdin.take().unwrap();
    let _gone = input.write_all(said.as_bytes()).await;
    let output = within(PATIENCE, "openssl ends", child.wait_with_output()).await.unwrap();
    drop(input);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn get(host: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
}

/// The same with a session that is kept in `file`.
async fn with_session(edge: &Edge, name: &str, version: &str, file: &Path, keep: bool) -> String {
    let direction = if keep { "-sess_out" } else { "-sess_in" };
    openssl(edge.https, name, &["-ign_eof", version, direction, file.to_str().unwrap()], &get(name)).await
}

#[tokio::test]
async fn e07_a_session_of_one_app_is_worth_nothing_at_another() {
    let origin = Origin::mirror().await;
    let setup = Setup::new();
    let key = KeyPair::generate().unwrap();
    let clients = CertificateParams::new(vec![]).unwrap().self_signed(&key).unwrap();
    let file = setup.dir().join("clients.pem");
    fs::write(&file, clients.pem()).unwrap();
    let auth = format!("client_auth: {{ca: {}, mode: request}}", file.display());
    let edge = setup
        .app("a", &format!("domains: [a.test, second.test]\n{}", origin.upstream()))
        .app("b", &format!("domains: [b.test]\n{}", origin.upstream()))
        .app("c", &format!("domains: [c.test]\n{auth}\n{}", origin.upstream()))
        .start()
        .await;
    assert_serves(&edge).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let session = edge.dir().join(format!("session{version}"));
        let first = with_session(&edge, "a.test", version, &session, true).await;
        assert!(first.contains("New, ") && first.contains("HTTP/1.1 200"), "{version}: {first}");
        // E08, E09: no early data; half a day.
        assert!(first.contains("lifetime hint: 43200"), "{version}: {first}");
        assert!(version == "-tls1_2" || first.contains("Max Early Data: 0"), "{first}");
        let again = with_session(&edge, "a.test", version, &session, false).await;
        assert!(again.contains("Reused, ") && again.contains("HTTP/1.1 200"), "{version}: {again}");
        for other in ["b.test", "second.test", "c.test"] {
            let there = with_session(&edge, other, version, &session, false).await;
            assert!(there.contains("New, ") && there.contains("HTTP/1.1 200"), "{version} {other}: {there}");
            assert!(!there.contains("Reused, "), "{version} {other}");
        }
        // Where clients are asked for certificates, there are no sessions.
        let asked = with_session(&edge, "c.test", version, &edge.dir().join("none"), true).await;
        assert!(asked.contains("New, ") && !asked.contains("lifetime hint"), "{version}: {asked}");
    }
    // What nobody was asked for before is not taken for an answer after.
    let session = edge.dir().join("session-tls1_3");
    with_session(&edge, "b.test", "-tls1_3", &session, true).await;
    edge.edit("domains: [b.test]", &format!("domains: [b.test]\n    {}", auth.replace("request", "require")));
    edge.reload().await;
    let after = with_session(&edge, "b.test", "-tls1_3", &session, false).await;
    assert!(!after.contains("Reused, ") && !after.contains("HTTP/1.1 200"), "{after}");
    edge.stop().await;
}

#[tokio::test]
async fn e04_nobody_renegotiates() {
    let origin = Origin::mirror().await;
    let edge = edge(&origin).await;
    assert_serves(&edge).await;
    let said = openssl(edge.https, "a.test", &["-tls1_2"], "R\n").await;
    assert!(said.contains("RENEGOTIATING") && said.to_lowercase().contains("no renegotiation"), "{said}");
    assert_serves(&edge).await;
    edge.stop().await;
}

#[tokio::test]
async fn e10_an_expired_certificate_of_its_own_is_served_and_told_of() {
    let origin = Origin::mirror().await;
    let setup = Setup::new();
    let key = KeyPair::generate().unwrap();
    for (name, from, to) in [("old", 2000, 2001), ("early", 2100, 2101)] {
        let mut params = CertificateParams::new(vec![format!("{name}.test")]).unwrap();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        fs::write(setup.dir().join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
    }
    fs::write(setup.dir().join("key.pem"), key.serialize_pem()).unwrap();
    let app = |name: &str| {
        let dir = setup.dir().display();
        format!(
            "domains: [{name}.test]\ntls: {{cert: {dir}/{name}.pem, key: {dir}/key.pem}}\n{}",
            origin.upstream()
        )
    };
    let (old, early) = (app("old"), app("early"));
    let good = format!("domains: [a.test]\n{}", origin.upstream());
    let edge = setup.app("old", &old).app("early", &early).app("a", &good).start().await;
    for (name, error) in [("old.test", "certificate has expired"), ("early.test", "not yet valid")] {
        let said = openssl(edge.https, name, &["-ign_eof"], &get(name)).await;
        assert!(said.contains(error) && said.contains("HTTP/1.1 200"), "{name}: {said}");
    }
    for (name, state, why) in [
        ("old", "expired", "old.pem has been expired since 2001-01-01"),
        ("early", "pending", "early.pem is not valid before 2100-01-01T00:00:00Z: it is served all the same"),
    ] {
        let certificate = edge.certificate(&format!("{name}.test")).await;
        assert_eq!(certificate["state"], state);
        assert!(certificate["last_error"].as_str().unwrap().contains(why), "{certificate}");
        let told = |line: &serde_json::Value| {
            let error = line["error"].as_str().unwrap_or_default();
            line["level"] == "warn" && line["app"] == name && error.contains(why)
        };
        edge.wait_for_log("that clients refuse it", told).await;
    }
    let shown = edge.done(&["status"]).await;
    let row = |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    assert!(row("early.test").contains("pending") && row("early.test").contains("  valid in "), "{shown}");
    assert_serves(&edge).await;
    edge.stop().await;
}
