//! E: the handshake. What is not understood gets an alert, and nobody learns a name that he did not ask for.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use rustls::HandshakeKind;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Row;
use crate::support::client::{Connection, PATIENCE, Trust, Wire, tls};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::within;

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "E01",
        "no name, an unknown, a malformed one",
        "an alert, no certificate",
        &[
            "tests/it/refusals.rs::a_name_nobody_configured_is_refused_in_the_handshake",
            "tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate",
        ],
    ),
    Row::new(
        "E02",
        "old versions, ciphers without forward secrecy",
        "an alert",
        &[
            "tests/it/tls.rs::tls_1_2_and_1_3_are_spoken",
            "tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate",
        ],
    ),
    Row::new(
        "E03",
        "a hello in records of a byte, a huge one, empty records",
        "understood, or an alert",
        &[
            "tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate",
            "tests/it/refusals.rs::a_silent_handshake_is_ended",
        ],
    ),
    Row::new(
        "E04",
        "compression, heartbeats, alerts before all",
        "an alert or the end",
        &["tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate"],
    ),
    Row::new(
        "E05",
        "protocols nobody speaks, or none",
        "an alert; HTTP/1.1",
        &[
            "tests/it/tls.rs::alpn_offers_http2_first_and_clients_without_it_get_http1",
            "tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate",
        ],
    ),
    Row::new(
        "E06",
        "a CA's protocol without a challenge, or beside another",
        "an alert",
        &["tests/it/catalogue/handshake.rs::what_is_no_handshake_gets_an_alert_and_no_certificate"],
    ),
    Row::new(
        "E07",
        "a ticket of one app shown to another",
        "a full handshake",
        &["tests/it/catalogue/handshake.rs::e07_a_ticket_is_good_for_its_app_alone"],
    ),
    Row::new(
        "E08",
        "early data",
        "never accepted",
        &["tests/it/catalogue/handshake.rs::e08_a_resumed_connection_has_no_early_data"],
    ),
    Row::new(
        "E09",
        "the keys of tickets",
        "in memory alone, changed as time goes",
        &["tests/it/catalogue/handshake.rs::e09_tickets_end_with_the_process"],
    )
    .deviating("the library's keys change every six hours; nothing writes them anywhere"),
    Row::new(
        "E10",
        "an expired certificate of the operator's own",
        "served, and told as expired",
        &["tests/it/catalogue/handshake.rs::e10_an_expired_certificate_is_served_and_told"],
    ),
];

/// What edge says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// An alert, of this description where it matters.
    Alert(Option<u8>),
    /// It goes on with the handshake.
    Hello,
    /// Nothing.
    End,
}

const TLS_1_0: u16 = 0x0301;
const TLS_1_2: u16 = 0x0303;
/// ECDHE with ECDSA and AES-GCM, which every client of TLS 1.2 has.
const MODERN: [u16; 1] = [0xc02b];

/// The handshake message of a client of at most TLS 1.2 (RFC 5246 §7.4.1.2).
fn hello(version: u16, ciphers: &[u16], compressions: &[u8], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.push(0);
    body.extend(counted(&ciphers.iter().flat_map(|cipher| cipher.to_be_bytes()).collect::<Vec<_>>()));
    body.push(u8::try_from(compressions.len()).unwrap());
    body.extend(compressions);
    let usual = [(10, counted(&[0, 23])), (11, vec![1, 0]), (13, counted(&[4, 3]))];
    let extensions = usual.iter().chain(extensions).flat_map(|(kind, data)| {
        let kind: u16 = *kind;
        [kind.to_be_bytes().to_vec(), counted(data)].concat()
    });
    body.extend(counted(&extensions.collect::<Vec<_>>()));
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1, length[1], length[2], length[3]], &body[..]].concat()
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// In records of at most so many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|piece| [&[22, 3, 1][..], &counted(piece)].concat()).collect()
}

fn name(name: &[u8]) -> (u16, Vec<u8>) {
    (0, counted(&[&[0][..], &counted(name)].concat()))
}

fn protocols(names: &[&str]) -> (u16, Vec<u8>) {
    let list =
        names.iter().flat_map(|name| [&[u8::try_from(name.len()).unwrap()][..], name.as_bytes()].concat());
    (16, counted(&list.collect::<Vec<_>>()))
}

#[tokio::test]
async fn what_is_no_handshake_gets_an_alert_and_no_certificate() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let modern = |extensions: &[(u16, Vec<u8>)]| hello(TLS_1_2, &MODERN, &[0], extensions);
    let whole = |message: Vec<u8>| records(&message, 16_384);
    let any = Said::Alert(None);
    let alert = |code| Said::Alert(Some(code));
    let good = modern(&[name(b"a.test")]);
    // 40 handshake_failure, 70 protocol_version, 112 unrecognized_name, 120 no_application_protocol (RFC 8446 §6).
    for (id, sent, said) in [
        ("good", whole(good.clone()), Said::Hello),
        ("E01 none", whole(modern(&[])), alert(112)),
        ("E01 unknown", whole(modern(&[name(b"unknown.test")])), alert(112)),
        ("E01 address", whole(modern(&[name(b"127.0.0.1")])), any),
        ("E01 empty", whole(modern(&[name(b"")])), any),
        ("E01 long", whole(modern(&[name(&[b'a'; 256])])), any),
        ("E01 NUL", whole(modern(&[name(b"a.test\0")])), any),
        ("E02 1.0", whole(hello(TLS_1_0, &MODERN, &[0], &[name(b"a.test")])), alert(70)),
        ("E02 1.1", whole(hello(TLS_1_0 + 1, &MODERN, &[0], &[name(b"a.test")])), alert(70)),
        ("E02 RC4", whole(hello(TLS_1_2, &[0x0005], &[0], &[name(b"a.test")])), alert(40)),
        ("E02 RSA alone", whole(hello(TLS_1_2, &[0x009c], &[0], &[name(b"a.test")])), alert(40)),
        ("E02 CBC", whole(hello(TLS_1_2, &[0xc009], &[0], &[name(b"a.test")])), alert(40)),
        ("E02 SSL 2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80".to_vec(), any),
        ("E03 byte by byte", records(&good, 1), Said::Hello),
        ("E03 huge", whole(modern(&[(21, vec![0; 65_000])])), any),
        ("E03 cut short", records(&[&[1, 0, 0, 4][..], &[0; 4]].concat(), 4), any),
        ("E03 empty records", [22, 3, 1, 0, 0].repeat(16_000), any),
        ("E04 compression", whole(hello(TLS_1_2, &MODERN, &[1], &[name(b"a.test")])), any),
        ("E04 heartbeat", vec![24, 3, 3, 0, 3, 1, 0xff, 0xff], any),
        ("E04 data first", vec![23, 3, 3, 0, 1, 0], any),
        ("E04 alert first", vec![21, 3, 3, 0, 2, 2, 0], Said::End),
        ("E05 smtp", whole(modern(&[name(b"a.test"), protocols(&["smtp"])])), alert(120)),
        ("E05 HTTP/1.0", whole(modern(&[name(b"a.test"), protocols(&["http/1.0"])])), alert(120)),
        ("E05 among others", whole(modern(&[name(b"a.test"), protocols(&["smtp", "h2"])])), Said::Hello),
        ("E06 alone", whole(modern(&[name(b"a.test"), protocols(&["acme-tls/1"])])), alert(120)),
        ("E06 beside h2", whole(modern(&[name(b"a.test"), protocols(&["acme-tls/1", "h2"])])), alert(120)),
    ] {
        let mut client = TcpStream::connect(edge.https).await.unwrap();
        // Edge may have heard enough before all is said.
        let _ = client.write_all(&sent).await;
        let mut heard = Vec::new();
        let reading =
            async { while heard.len() < 7 && matches!(client.read_buf(&mut heard).await, Ok(1..)) {} };
        within(PATIENCE, id, reading).await;
        let found = match heard[..] {
            [21, _, _, 0, 2, _, code, ..] => Said::Alert(Some(code)),
            [22, ..] => Said::Hello,
            _ => Said::End,
        };
        let right = found == said || (said == any && matches!(found, Said::Alert(_) | Said::End));
        assert!(right, "{id}: not {said:?} but {found:?}: {heard:?}");
    }
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}

/// A client's memory of sessions in which every server has one name.
#[derive(Debug)]
struct Confused(ClientSessionMemoryCache);

fn one() -> ServerName<'static> {
    ServerName::try_from("one.test").unwrap()
}

impl ClientSessionStore for Confused {
    fn set_kx_hint(&self, _: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(one(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&one())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(one(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&one())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&one());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(one(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&one())
    }
}

/// A client that resumes what it can, offers early data, and confuses servers.
fn forgetful(trust: &Trust) -> rustls::ClientConfig {
    let mut config = trust.offering(&["http/1.1"]);
    config.resumption = Resumption::store(Arc::new(Confused(ClientSessionMemoryCache::new(8))));
    config.enable_early_data = true;
    config
}

/// One request on a new connection; how its handshake went, and whether early data was accepted.
async fn kind(
    edge: &crate::support::edge::Edge,
    host: &str,
    config: &rustls::ClientConfig,
) -> (HandshakeKind, bool) {
    let mut stream = tls(edge.https, host, config.clone()).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    let session = stream.get_ref().1;
    (session.handshake_kind().unwrap(), session.is_early_data_accepted())
}

async fn two_apps() -> (Origin, crate::support::edge::Edge) {
    let origin = Origin::mirror().await;
    let edge = Setup::new()
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .app("b", &format!("domains: [b.test]\n{}", origin.upstream()))
        .start()
        .await;
    (origin, edge)
}

#[tokio::test]
async fn e07_a_ticket_is_good_for_its_app_alone() {
    let (_origin, edge) = two_apps().await;
    let config = forgetful(&edge.trust().await);
    assert!(kind(&edge, "a.test", &config).await.0 != HandshakeKind::Resumed);
    assert_eq!(kind(&edge, "a.test", &config).await.0, HandshakeKind::Resumed);
    assert!(kind(&edge, "b.test", &config).await.0 != HandshakeKind::Resumed, "with a ticket of the other");
    edge.stop().await;
}

#[tokio::test]
async fn e08_a_resumed_connection_has_no_early_data() {
    let (_origin, edge) = two_apps().await;
    let config = forgetful(&edge.trust().await);
    kind(&edge, "a.test", &config).await;
    assert_eq!(kind(&edge, "a.test", &config).await, (HandshakeKind::Resumed, false));
    edge.stop().await;
}

#[tokio::test]
async fn e09_tickets_end_with_the_process() {
    let (_origin, mut edge) = two_apps().await;
    let config = forgetful(&edge.trust().await);
    kind(&edge, "a.test", &config).await;
    edge.kill().await;
    edge.restart().await;
    assert!(kind(&edge, "a.test", &config).await.0 != HandshakeKind::Resumed);
    edge.stop().await;
}

#[tokio::test]
async fn e10_an_expired_certificate_is_served_and_told() {
    let origin = Origin::mirror().await;
    let setup = Setup::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["old.example".into()]).unwrap();
    let day = Duration::from_secs(24 * 3600);
    params.not_before = (SystemTime::now() - day * 30).into();
    params.not_after = (SystemTime::now() - day).into();
    let (chain, secret) = (setup.dir().join("chain.pem"), setup.dir().join("key.pem"));
    fs::write(&chain, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    let files = format!("tls:\n  cert: {}\n  key: {}", chain.display(), secret.display());
    let edge = setup
        .app("old", &format!("domains: [old.example]\n{files}\n{}", origin.upstream()))
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    let error = tls(edge.https, "old.example", Trust::in_file(&chain).unwrap().offering(&["h2"])).await;
    let error = error.expect_err("the client looks at the date").to_string();
    assert!(error.contains("xpired"), "it was shown: {error}");
    assert_eq!(edge.certificate("old.example").await["state"], "expired");
    assert_eq!(Connection::open(&edge, "a.test", Wire::H2).await.get("/").await.status, 200);
    edge.stop().await;
}
