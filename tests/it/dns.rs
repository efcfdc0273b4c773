//! Names proven by records in DNS, by the real process; and whether its names lead to it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::ca::free_port;
use crate::ca::pebble::{Pebble, Terms};
use crate::support::client::{Connection, Trust, Wire, tls};
use crate::support::edge::Setup;
use crate::support::until;

/// Keys that lead to `pebble`, with a program that publishes at its name server after it has done `first`.
fn keys(pebble: &Pebble, first: &str) -> String {
    let (hook, dns) = (pebble.hook(first), pebble.dns());
    format!(
        "{}\n  dns:\n    exec: {}\n    timeout: 20s\n    resolvers: {dns}\n    name_servers: {dns}",
        pebble.keys(),
        hook.display()
    )
}

#[tokio::test]
async fn a_wildcard_is_obtained_by_a_program_and_served_and_a_killed_edge_leaves_no_record() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let called = || std::fs::read_to_string(&calls).unwrap_or_default();
    // The first call lasts until the test says so: edge is killed meanwhile.
    let gate = dir.path().join("gate");
    let first = format!(
        "echo \"$1 $2 $(id -u) ${{SECRET-none}}\" >>{0}\nwhile [ $1 = present ] && ! [ -e {1} ]; do sleep 0.1; done",
        calls.display(),
        gate.display()
    );
    let mut edge = Setup::new()
        .ports(http, https)
        .environment("SECRET", "hunter2")
        .top(&keys(&pebble, &first))
        .app("a", "domains: [\"*.wild.example\", plain.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    until(Duration::from_secs(30), "the program runs", async || called().contains("present").then_some(()))
        .await;
    edge.kill().await;
    std::fs::write(&gate, "").unwrap();
    edge.execute_again();
    until(Duration::from_secs(60), "the wildcard is served", async || {
        let mut connection = Connection::to(edge.https, "any.wild.example", Wire::H2, &issued).await.ok()?;
        connection.try_get("/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
    // What the first edge began was ended by the second, and what the second published is gone as well.
    let notes = edge.dir().join("storage/dns");
    until(Duration::from_secs(30), "nothing is left", async || {
        let left = std::fs::read_dir(&notes).map_or(0, Iterator::count);
        (left == 0).then_some(())
    })
    .await;
    let told = called();
    assert!(told.contains("cleanup _acme-challenge.wild.example"), "{told}");
    assert!(!told.contains("hunter2"), "{told}");
    let certificate = edge.certificate("*.wild.example").await;
    assert_eq!(certificate["state"], "valid", "{certificate}");
    edge.stop().await;
    edge_is_not_misled_by_orphans(&pebble).await;
}

/// The process reaps the orphans of its workers: it must not take the status of its own program.
async fn edge_is_not_misled_by_orphans(pebble: &Pebble) {
    let edge = Setup::new()
        .ports(free_port(), free_port())
        .top(&keys(pebble, "(sleep 0.2 &)\necho 'no such zone' >&2; exit 3"))
        .app("a", "domains: [\"*.broken.example\"]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let certificate = until(Duration::from_secs(30), "the failure is shown", async || {
        let certificate = edge.certificate("*.broken.example").await;
        certificate["last_error"].is_string().then_some(certificate)
    })
    .await;
    let error = certificate["last_error"].as_str().unwrap();
    assert!(error.contains("failed with exit status 3: no such zone"), "{error}");
    assert_eq!(certificate["state"], "retrying", "{certificate}");
    edge.stop().await;
}

#[tokio::test]
async fn the_running_edge_answers_for_a_look_as_long_as_somebody_looks() {
    let edge = Setup::new()
        .top("acme:\n  ca: https://127.0.0.1:1/dir\n  self_check: false")
        .app("a", "domains: [a.test, b.acme.example]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let trust = edge.trust().await;
    let shaken = async || {
        let offered = trust.offering(&["acme-tls/1"]);
        let refused = tls(edge.https, "b.acme.example", offered).await.expect_err("no certificate of a CA");
        refused.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()).cloned()
    };
    let nobody = Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol));
    assert_eq!(shaken().await, nobody);
    let path = "/.well-known/acme-challenge/edge-self-check-1";
    let asked = async || Connection::plain(&edge, "a.test").await.get(path).await;
    assert_ne!(asked().await.text(), "the-answer");
    let mut admin = UnixStream::connect(edge.dir().join("run/admin.sock")).await.unwrap();
    let body = "edge-self-check-1 the-answer";
    let request = format!("POST /answer HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    admin.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !String::from_utf8_lossy(&head).contains("> answering") {
        assert_ne!(admin.read_buf(&mut head).await.unwrap(), 0, "{}", String::from_utf8_lossy(&head));
    }
    let answer = asked().await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "the-answer"));
    let shown = shaken().await;
    assert!(matches!(shown, Some(rustls::Error::InvalidCertificate(_))), "{shown:?}");
    drop(admin);
    until(Duration::from_secs(20), "it is withdrawn", async || (asked().await.status != 200).then_some(()))
        .await;
    assert_eq!(shaken().await, nobody);
    edge.stop().await;
}

#[tokio::test]
async fn names_are_looked_at_on_demand_and_one_that_would_fail_fails_the_command() {
    let edge = Setup::new()
        .top("acme:\n  ca: https://127.0.0.1:1/dir\n  self_check: false")
        .app("a", "domains: [nobody.acme.example, a.test]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let output = edge.command(&["check", "--dns"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().any(|line| line == "ok") && text.contains("the running edge answers"), "{text}");
    let line = text.lines().find(|line| line.starts_with("nobody.acme.example")).unwrap();
    assert!(line.contains("FAILS") && line.contains("DNS"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("a.test") && line.contains("no public CA")), "{text}");
    edge.stop().await;
}
