//! The handshake: versions, key exchange, ALPN, certificates by name and from files.

use std::fs;

use rcgen::{CertificateParams, KeyPair};
use rustls::{NamedGroup, ProtocolVersion};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::client::{Connection, PATIENCE, Trust, Wire, tls};
use crate::support::edge::Setup;
use crate::support::origin::Origin;
use crate::support::{until, within};

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let trust = edge.trust().await;
    for (version, negotiated) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = trust.restricted_to(&[version], &["http/1.1"]);
        let stream = tls(edge.https, "a.test", config).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(negotiated));
        let authority = format!("a.test:{}", edge.https.port());
        let mut connection = Connection::over(stream, "https", &authority, Wire::H1).await.unwrap();
        assert_eq!(connection.get("/").await.status, 200);
    }
    edge.stop().await;
}

#[tokio::test]
async fn the_key_exchange_withstands_quantum_computers_where_the_client_can() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let trust = edge.trust().await;
    let stream = tls(edge.https, "a.test", trust.offering(&["h2"])).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().expect("a group");
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    edge.stop().await;
}

#[tokio::test]
async fn alpn_offers_http2_first_and_clients_without_it_get_http1() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let trust = edge.trust().await;
    for (offered, agreed) in [
        (vec!["h2", "http/1.1"], Some("h2")),
        (vec!["http/1.1", "h2"], Some("h2")),
        (vec!["http/1.1"], Some("http/1.1")),
        (vec![], None),
    ] {
        let stream = tls(edge.https, "a.test", trust.offering(&offered)).await.unwrap();
        let alpn = stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
        assert_eq!(alpn.as_deref(), agreed, "{offered:?}");
        let wire = if agreed == Some("h2") { Wire::H2 } else { Wire::H1 };
        let authority = format!("a.test:{}", edge.https.port());
        let mut connection = Connection::over(stream, "https", &authority, wire).await.unwrap();
        assert_eq!(connection.get("/").await.status, 200, "{offered:?}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn an_exact_name_is_preferred_to_a_wildcard() {
    let (exact, wildcard) = (Origin::mirror().await, Origin::mirror().await);
    let edge = Setup::new()
        .app("wildcard", &format!("domains: [\"*.a.test\"]\n{}", wildcard.upstream()))
        .app("exact", &format!("domains: [www.a.test]\n{}", exact.upstream()))
        .start()
        .await;
    assert_eq!(Connection::open(&edge, "www.a.test", Wire::H1).await.get("/").await.status, 200);
    assert_eq!((exact.accepted(), wildcard.accepted()), (1, 0));
    assert_eq!(Connection::open(&edge, "other.a.test", Wire::H1).await.get("/").await.status, 200);
    assert_eq!((exact.accepted(), wildcard.accepted()), (1, 1));
    edge.stop().await;
}

#[tokio::test]
async fn certificates_from_files_are_served() {
    let origin = Origin::mirror().await;
    let setup = Setup::new();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["files.example".into()]).unwrap().self_signed(&key).unwrap();
    let (chain, secret) = (setup.dir().join("chain.pem"), setup.dir().join("key.pem"));
    fs::write(&chain, certificate.pem()).unwrap();
    fs::write(&secret, key.serialize_pem()).unwrap();
    let yaml = format!(
        "domains: [files.example]\ntls:\n  cert: {}\n  key: {}\n{}",
        chain.display(),
        secret.display(),
        origin.upstream()
    );
    let mut edge = setup.app("a", &yaml).start().await;
    let trust = Trust::in_file(&chain).unwrap();
    let mut connection = Connection::to(edge.https, "files.example", Wire::H2, &trust).await.unwrap();
    assert_eq!(connection.get("/").await.status, 200);

    // A reload tells of files that cannot be used, each time, and of those that are served since.
    let new_key = KeyPair::generate().unwrap();
    let renewed =
        CertificateParams::new(vec!["files.example".into()]).unwrap().self_signed(&new_key).unwrap();
    fs::write(&chain, renewed.pem()).unwrap();
    let refused = async || {
        let (status, said) = edge.refused(&["reload"]).await;
        assert_eq!(status, 78, "{said}");
        assert!(said.contains("chain.pem") && said.contains("does not belong"), "{said}");
        Connection::to(edge.https, "files.example", Wire::H2, &trust).await.unwrap();
    };
    refused().await;
    refused().await;
    // Whatever else the configuration says: it is one rule with a start.
    edge.edit("domains: [files.example]", "domains: [files.example]\n    max_body: 4B");
    refused().await;
    fs::write(&chain, certificate.pem()).unwrap();
    assert!(edge.reload().await.contains("the new configuration is in force"));
    fs::write(&chain, renewed.pem()).unwrap();
    edge.edit("max_body: 4B", "max_body: 5B");
    refused().await;
    assert_eq!(connection.post("/upload", "12345").await.status, 413);
    edge.edit("max_body: 5B", "max_body: 4B");
    fs::write(&secret, new_key.serialize_pem()).unwrap();
    assert!(edge.reload().await.contains("the new certificate files are served"));
    let trust = Trust::in_file(&chain).unwrap();
    Connection::to(edge.https, "files.example", Wire::H2, &trust).await.unwrap();
    assert!(edge.reload().await.contains("nothing has changed"));

    // Whoever looks between a renewal's two files waits for the second: a reload, a check, a start.
    let waits = |line: &serde_json::Value| line.to_string().contains("are being replaced");
    let told = || edge.log_objects().iter().filter(|line| waits(line)).count();
    let before = told();
    fs::write(&chain, certificate.pem()).unwrap();
    let second = async {
        until(PATIENCE, "the reload waits", async || (told() > before).then_some(())).await;
        fs::write(&secret, key.serialize_pem()).unwrap();
    };
    let (said, ()) = tokio::join!(edge.reload(), second);
    assert!(said.contains("the new certificate files are served"), "{said}");

    fs::write(&secret, new_key.serialize_pem()).unwrap();
    let mut check = tokio::process::Command::new(env!("CARGO_BIN_EXE_edge"))
        .args(["check", "--config"])
        .arg(edge.dir().join("edge.yaml"))
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(check.stderr.take().unwrap()).lines();
    let line = within(PATIENCE, "the check says something", said.next_line()).await.unwrap().unwrap();
    assert!(line.contains("are being replaced"), "{line}");
    fs::write(&secret, key.serialize_pem()).unwrap();
    assert!(within(PATIENCE, "the check has ended", check.wait()).await.unwrap().success());

    edge.kill().await;
    fs::write(&secret, new_key.serialize_pem()).unwrap();
    edge.execute_again();
    edge.wait_for_log("that it waits", waits).await;
    fs::write(&secret, key.serialize_pem()).unwrap();
    edge.wait_until_listening().await;
    let trust = Trust::in_file(&chain).unwrap();
    Connection::to(edge.https, "files.example", Wire::H2, &trust).await.unwrap();
    edge.stop().await;
}

#[tokio::test]
async fn the_internal_ca_outlives_a_restart_and_its_keys_are_private() {
    use std::os::unix::fs::PermissionsExt;

    let origin = Origin::mirror().await;
    let mut edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let trust = edge.trust().await;
    edge.kill().await;
    edge.restart().await;
    let mut connection = Connection::to(edge.https, "a.test", Wire::H2, &trust).await.unwrap();
    assert_eq!(connection.get("/").await.status, 200);
    let mut below = vec![edge.dir().join("storage")];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                below.push(entry.path());
            } else if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("PRIVATE KEY")) {
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
            }
        }
    }
    edge.stop().await;
}
