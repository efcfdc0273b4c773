//! Another implementation of ACME than Pebble's, with validations of its own: Caddy's `acme_server`. It always asks ports 80 and
//! 443, so edge listens there, on a loopback address that no other test has.

use std::time::Duration;

use crate::ca::{free_port, https};
use crate::support::caddy::Caddy;
use crate::support::client::{Connection, Trust, Wire};
use crate::support::edge::{Edge, Setup};
use crate::support::{processes, until};

const NAME: &str = "second.acme.example";

#[tokio::test]
async fn a_second_ca_issues_and_renews_over_both_challenges_and_a_restart_asks_it_for_nothing() {
    assert!(processes::root(), "ports 80 and 443 are for root alone");
    let dir = tempfile::tempdir().unwrap();
    https::write_certificates(dir.path());
    let port = free_port();
    let address = format!("127.{}.{}.{}", fastrand::u8(64..127), fastrand::u8(1..255), fastrand::u8(1..255));
    let caddy = Caddy::start(
        &format!("auto_https disable_redirects\nhttp_port {}\nhttps_port {port}", free_port()),
        &format!("https://localhost:{port} {{\nbind 127.0.0.1\ntls srv.pem srv.key\nacme_server\n}}"),
        &format!("127.0.0.1 localhost\n{address} {NAME}\n"),
        &[&dir.path().join("srv.pem"), &dir.path().join("srv.key")],
    );
    let own = Trust::in_file(&dir.path().join("ca.pem")).unwrap();
    until(Duration::from_secs(30), "the CA answers", async || {
        let mut connection =
            Connection::to(([127, 0, 0, 1], port).into(), "localhost", Wire::H1, &own).await.ok()?;
        connection.try_get("/acme/local/directory").await.ok().filter(|answer| answer.status == 200)
    })
    .await;

    let mut edge = Setup::new()
        .at(&[address.as_str()], 80, 443)
        .top(&format!(
            "acme:\n  ca: https://localhost:{port}/acme/local/directory\n  ca_root: {}\n  self_check: false\n  \
             challenges: [http-01]",
            dir.path().join("ca.pem").display()
        ))
        .app("a", &format!("domains: [{NAME}]\ntls: auto\ncommand: edge hello\nworkers: 1"))
        .start()
        .await;
    let root = caddy.storage().join("pki/authorities/local/root.crt");
    let issued = until(Duration::from_secs(20), "its root is there", async || Trust::in_file(&root)).await;
    served(&edge, &issued).await;
    println!("figure: a second CA: served {:?} after a cold start", edge.executed_at().elapsed());
    let first = generations(&edge);
    assert_eq!(first.len(), 1, "{first:?}");
    assert!(edge.certificate(NAME).await["issuer"].as_str().unwrap().contains("Caddy"));

    edge.done(&["certs", "renew", NAME]).await;
    let second = generations(&edge);
    assert_eq!(second.len(), 2, "{second:?}");
    served(&edge, &issued).await;

    edge.kill().await;
    edge.edit("[http-01]", "[tls-alpn-01]");
    edge.restart().await;
    served(&edge, &issued).await;
    assert_eq!(generations(&edge), second, "a restart ordered");
    edge.done(&["certs", "renew", NAME]).await;
    let third = generations(&edge);
    assert!(third.len() == 2 && third[1] > second[1], "{third:?}");
    served(&edge, &issued).await;
    edge.stop().await;
}

async fn served(edge: &Edge, trust: &Trust) {
    until(Duration::from_secs(30), &format!("{NAME} is served"), async || {
        let mut connection = Connection::to(edge.https, NAME, Wire::H2, trust).await.ok()?;
        connection.try_get("/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
}

/// The stored generations of the name, oldest first.
fn generations(edge: &Edge) -> Vec<String> {
    let below =
        |path: std::path::PathBuf| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<String> = below(edge.dir().join("storage/certs"))
        .flat_map(|ca| below(ca.join(NAME)))
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".pem"))
        .collect();
    found.sort();
    found
}
