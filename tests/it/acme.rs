//! Certificates from a CA: obtained, stored, renewed, and what happens while the CA is of no use.

mod crashes;
mod disk;
mod load;
mod proofs;
mod reaching;

use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::ca::free_port;
use crate::ca::pebble::Terms;
use crate::support::client::{Connection, Trust, Wire, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::{full_length, stalls, until};

const TWO_APPS: [(&str, &str); 2] = [("one", "one.acme.example"), ("two", "two.acme.example")];

fn python() -> (String, String) {
    let root = env!("CARGO_MANIFEST_DIR");
    (format!("{root}/target/test-venv/bin"), format!("{root}/tests/apps"))
}

/// Waits until a verified request to `host` is answered with 200.
async fn served(edge: &Edge, host: &str, trust: &Trust, limit: Duration) {
    until(limit, &format!("{host} is served"), async || {
        let mut connection = Connection::to(edge.https, host, Wire::H2, trust).await.ok()?;
        connection.try_get("/").await.ok().filter(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn two_names_are_served_soon_after_a_cold_start_and_at_once_after_a_restart_without_the_ca() {
    let (http, https) = (free_port(), free_port());
    let mut pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let (venv, apps) = python();
    let mut setup = Setup::new().ports(http, https).top(&pebble.keys());
    for (name, host) in TWO_APPS {
        setup = setup.app(
            name,
            &format!(
                "domains: [{host}]\ntls: auto\ncommand: uvicorn main:app\nworkers: 2\nworking_dir: {apps}\n\
                 environment:\n  PATH: {venv}:/usr/bin:/bin\n  PYTHONDONTWRITEBYTECODE: \"1\""
            ),
        );
    }
    let mut edge = setup.start().await;
    for (_, host) in TWO_APPS {
        served(&edge, host, &issued, Duration::from_secs(20)).await;
    }
    let cold = edge.executed_at().elapsed();
    println!("figure: two names served {cold:?} after a cold start");
    assert!(cold < Duration::from_secs(20), "{cold:?}");

    pebble.stop();
    edge.kill().await;
    stalls::watch();
    edge.execute_again();
    // The handshake, with the stored certificate: a worker in Python takes longer than that to be ready.
    until(Duration::from_secs(5), "a handshake", async || {
        tls(edge.https, TWO_APPS[0].1, issued.offering(&["h2"])).await.ok()
    })
    .await;
    let warm = stalls::awake_since(edge.executed_at());
    println!("figure: served from storage {warm:?} after exec, the CA stopped");
    // Unoptimised code on a busy machine gets some slack.
    let limit = if cfg!(debug_assertions) { 1000 } else { 300 };
    assert!(warm < Duration::from_millis(limit), "{warm:?}");
    for (_, host) in TWO_APPS {
        served(&edge, host, &issued, Duration::from_secs(20)).await;
    }
    // What fails then is shown with the next attempt, and takes nothing away.
    edge.failing(&["certs", "renew", TWO_APPS[0].1]).await;
    let certificate = edge.certificate(TWO_APPS[0].1).await;
    assert!(
        certificate["last_error"].as_str().is_some_and(|error| error.contains("refused")),
        "{certificate}"
    );
    assert_eq!(certificate["state"], "retrying", "{certificate}");
    let at = |key: &str| {
        let text = certificate[key].as_str().unwrap_or_else(|| panic!("{key}: {certificate}"));
        OffsetDateTime::parse(text, &Rfc3339).unwrap()
    };
    let wait = (at("next_attempt") - at("last_failure")).whole_seconds();
    assert!((4..=19).contains(&wait), "the first steps, of five and of fifteen seconds: {certificate}");
    served(&edge, TWO_APPS[0].1, &issued, Duration::from_secs(20)).await;
    edge.stop().await;
}

#[tokio::test]
async fn short_certificates_are_renewed_under_load_without_a_failure() {
    // Two names, each renewed at half of a life: at full length more than thirty times each.
    let (life, length, least) = if full_length() { (60, 1200, 60) } else { (20, 60, 6) };
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).validity(Duration::from_secs(life)).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let mut setup = Setup::new().ports(http, https).top(&pebble.keys());
    for (name, host) in TWO_APPS {
        setup = setup.app(name, &format!("domains: [{host}]\ntls: auto\ncommand: edge hello\nworkers: 2"));
    }
    let edge = setup.start().await;
    for (_, host) in TWO_APPS {
        served(&edge, host, &issued, Duration::from_secs(20)).await;
    }
    let before = edge.status().await;
    let first = pebble.issued();
    // Six clients open a connection for each request, fifty a second between them: every certificate is verified all the time.
    let load = Load::start((0..8).map(|at| Client {
        address: edge.https,
        host: TWO_APPS[at % 2].1.into(),
        path: "/",
        wire: Wire::BOTH[at / 2 % 2],
        trust: issued.clone(),
        per_connection: if at < 6 { 1 } else { 1000 },
        pause: Duration::from_millis(100),
    }));
    tokio::time::sleep(Duration::from_secs(length)).await;
    let tally = load.stop().await;
    let renewals = pebble.issued() - first;
    println!(
        "figure: {renewals} renewals of {life} s certificates in {length} s: {} answers, {} handshakes, {} failed",
        tally.good,
        tally.handshakes,
        tally.failed.len()
    );
    assert!(renewals >= least, "{renewals} renewals");
    let fifty = 50 * length;
    assert!(!full_length() || tally.handshakes >= fifty, "{} handshakes, and not {fifty}", tally.handshakes);
    assert!(tally.failed.is_empty(), "{} of {}: {:#?}", tally.failed.len(), tally.good, tally.failed);
    let after = edge.status().await;
    for (name, host) in TWO_APPS {
        let not_after = |status: &serde_json::Value| {
            let certificates = status["certificates"].as_array().unwrap().clone();
            let found = certificates.into_iter().find(|certificate| certificate["name"] == host).unwrap();
            found["not_after"].as_str().unwrap().to_owned()
        };
        assert!(not_after(&before) < not_after(&after), "{host} was not renewed");
        let pids = |status: &serde_json::Value| {
            let workers = status["apps"][name]["workers"].as_array().unwrap().clone();
            workers.into_iter().map(|worker| worker["pid"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(pids(&before), pids(&after), "a renewal touched workers");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_ca_that_cannot_be_reached_is_shown_in_status_and_on_the_page_and_delays_nothing() {
    let gone = free_port();
    let edge = Setup::new()
        .top(&format!("acme:\n  ca: https://127.0.0.1:{gone}/dir\n  self_check: false"))
        .app("a", "domains: [a.acme.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .app("b", "domains: [b.test]\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    assert!(edge.executed_at().elapsed() < Duration::from_secs(5), "the start waited for the CA");
    assert_eq!(Connection::open(&edge, "b.test", Wire::H2).await.get("/").await.status, 200);
    let certificate = until(Duration::from_secs(15), "the failure is shown", async || {
        let certificate = edge.certificate("a.acme.example").await;
        certificate["last_error"].is_string().then_some(certificate)
    })
    .await;
    assert!(certificate["last_error"].as_str().unwrap().contains("refused"), "{certificate}");
    assert_eq!(certificate["state"], "retrying", "{certificate}");
    assert!(certificate["next_attempt"].is_string(), "{certificate}");
    let page = Connection::plain(&edge, "a.acme.example").await.get("/").await;
    assert_eq!(page.status, 503);
    assert!(page.text().contains("refused"), "{}", page.text());
    assert!(!page.header("retry-after").is_empty());
    edge.stop().await;
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_said_to_be_so_and_no_ca_is_asked() {
    let ca = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let edge = Setup::new()
        .top(&format!("acme:\n  ca: https://{}/dir", ca.local_addr().unwrap()))
        .app("a", "domains: [nobody.acme.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let certificate = until(Duration::from_secs(15), "the fault is shown", async || {
        let certificate = edge.certificate("nobody.acme.example").await;
        certificate["last_error"].is_string().then_some(certificate)
    })
    .await;
    let error = certificate["last_error"].as_str().unwrap();
    assert!(error.contains("DNS") && error.contains("Nothing was sent to the CA"), "{error}");
    let asked = tokio::time::timeout(Duration::from_millis(200), ca.accept()).await;
    assert!(asked.is_err(), "the CA was asked");
    edge.stop().await;
}

#[tokio::test]
async fn a_validation_that_fails_is_shown_with_the_cas_own_words_and_tried_again() {
    let (http, https) = (free_port(), free_port());
    // The CA asks a port where nobody answers.
    let pebble = Terms::at(free_port()).start().await;
    let edge = Setup::new()
        .ports(http, https)
        .top(&pebble.keys())
        .app("a", "domains: [a.acme.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    let begun = Instant::now();
    let certificate = until(Duration::from_secs(40), "the failure is shown", async || {
        let certificate = edge.certificate("a.acme.example").await;
        certificate["last_error"].is_string().then_some(certificate)
    })
    .await;
    println!("figure: the failed validation shows after {:?}", begun.elapsed());
    let error = certificate["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains("connection") || error.contains("refused"), "{error}");
    assert!(certificate["next_attempt"].is_string(), "{certificate}");
    let page = Connection::plain(&edge, "a.acme.example").await.get("/").await;
    assert_eq!(page.status, 503);
    assert!(page.text().contains("a.acme.example"), "{}", page.text());
    edge.stop().await;
}

#[tokio::test]
async fn what_is_stored_is_private_and_not_ordered_again() {
    use std::os::unix::fs::PermissionsExt;

    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let mut edge = Setup::new()
        .ports(http, https)
        .top(&pebble.keys())
        .app("a", "domains: [a.acme.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    served(&edge, "a.acme.example", &issued, Duration::from_secs(20)).await;
    let first = edge.certificate("a.acme.example").await;
    edge.kill().await;
    edge.restart().await;
    let second = edge.certificate("a.acme.example").await;
    assert_eq!(first["not_after"], second["not_after"], "a certificate was ordered although one was stored");
    let new =
        |line: &serde_json::Value| line.to_string().contains("the storage has no certificate for any name");
    assert_eq!(edge.log_objects().iter().filter(|line| new(line)).count(), 1, "at the first start alone");
    let mut below = vec![edge.dir().join("storage")];
    let mut files = 0;
    while let Some(dir) = below.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                below.push(entry.path());
            } else {
                files += 1;
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
            }
        }
    }
    assert!(files >= 2, "an account and a certificate");
    edge.stop().await;
}
