//! How names and accounts are proven to a CA, and what follows where that fails.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ca::stub::{Fault, Step};
use super::lab::{Lab, MINUTE, local, valid};
use super::setup::LOCAL;
use crate::cert::self_check::SelfCheck;
use crate::config::model::{ChallengeKind, Eab};
use crate::telemetry::status::CertificateState;

#[tokio::test]
async fn an_order_that_fails_on_caa_after_finalize_is_read_and_waits_an_hour() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.fail(
            Step::Finalize,
            Fault::Spoil { kind: "caa", detail: "CAA record for a.example.com prevents issuance" },
        );
        let running = lab.run(&["a.example.com"]);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        assert!(running.error(0).contains("CAA"), "{}", running.error(0));
        lab.pass(45 * MINUTE).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(lab.stub.orders().len(), 1);
        lab.pass_until(&running, 5 * MINUTE, valid).await;
        assert_eq!(lab.stub.orders().len(), 2);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_bad_name_sinks_no_other() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().unreachable = vec!["bad.example.com"];
        let running = lab.run(&["a.example.com", "bad.example.com", "b.example.com"]);
        running
            .until("the good ones", |all| {
                all[0].state == CertificateState::Valid
                    && all[2].state == CertificateState::Valid
                    && all[1].state == CertificateState::Retrying
            })
            .await;
        assert!(running.error(1).contains("bad.example.com"), "{}", running.error(1));
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn after_a_failure_over_http_the_name_is_proven_by_a_handshake() {
    local(async {
        let lab = Lab::open().await;
        // Nobody answers there.
        lab.stub.books().http = 1;
        let running = lab.run(&["a.example.com"]);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        lab.pass_until(&running, 10 * Duration::from_secs(1), valid).await;
        assert_eq!(lab.stub.orders().len(), 2, "the first failure is followed by the other kind");
        assert!(lab.challenges.tls_alpn01("a.example.com").is_none(), "withdrawn");
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn long_names_and_addresses_are_proven_by_handshakes() {
    local(async {
        let lab = Lab::open().await;
        let long = format!("{}.example.com", ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join("."));
        let mut config = lab.config(&["a.example.com", &long, "203.0.113.7"]);
        config.acme.challenges = vec![ChallengeKind::TlsAlpn01];
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        assert!(lab.stub.orders().iter().any(|order| order.ip && order.name == "203.0.113.7"));
        // Who names no host gets the certificate of the address, once it is stored.
        let address = "203.0.113.7".parse().expect("an address");
        running.until("served by address", |_| running.certificates.find(None, address).is_some()).await;
        assert!(running.certificates.find(None, LOCAL).is_none());
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_binding_is_asked_for_by_its_key_and_then_used() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().binding = Some(("kid-1", b"sesame".to_vec()));
        let running = lab.run(&["a.example.com"]);
        running.until("parked", |all| all[0].state == CertificateState::Parked).await;
        assert!(running.error(0).contains("acme.eab"), "{}", running.error(0));
        running.stop().await;

        let mut config = lab.config(&["a.example.com"]);
        config.acme.eab = Some(Eab { kid: "kid-1".to_owned(), hmac_key: b"wrong".to_vec() });
        let running = lab.run_with(&config, None);
        running
            .until("refused", |all| {
                all[0].last_error.as_ref().is_some_and(|e| e.contains("binding is not right"))
            })
            .await;
        running.stop().await;

        config.acme.eab = Some(Eab { kid: "kid-2".to_owned(), hmac_key: b"sesame".to_vec() });
        lab.stub.books().binding = Some(("kid-2", b"sesame".to_vec()));
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        assert_eq!(lab.stub.books().accounts.len(), 1);
        assert!(!format!("{config:?}").contains("sesame"));
        running.stop().await;
        lab.close().await;
    })
    .await;
}

static RESOLVES: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_name_that_does_not_resolve_costs_few_attempts_and_is_obtained_soon_after_it_does() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().unreachable = vec!["a.example.com"];
        let resolve = |_host| -> crate::cert::self_check::Addresses {
            Box::pin(std::future::ready(if RESOLVES.load(Ordering::SeqCst) {
                Ok(vec![LOCAL])
            } else {
                Err(io::Error::other("Temporary failure in name resolution"))
            }))
        };
        let looking = SelfCheck::with(Arc::clone(&lab.challenges), resolve, lab.http);
        let running = lab.run_with(&lab.config(&["a.example.com"]), Some(looking));
        running.until("seen", |all| all[0].last_error.is_some()).await;
        assert!(running.error(0).contains("DNS"), "{}", running.error(0));
        assert_eq!(lab.stub.requests(), 0, "nothing was sent to the CA");
        let begun = lab.stub.now();
        for _ in 0..9 {
            lab.pass(Duration::from_secs(10)).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        assert!(lab.stub.orders().len() <= 2, "{} attempts", lab.stub.orders().len());
        RESOLVES.store(true, Ordering::SeqCst);
        lab.stub.books().unreachable.clear();
        let healed = lab.stub.now();
        assert!(healed >= begun + 90 * Duration::from_secs(1));
        lab.pass_until(&running, 5 * Duration::from_secs(1), valid).await;
        let took = lab.stub.now().duration_since(healed).expect("later");
        assert!(took <= Duration::from_secs(75), "{took:?}");
        running.stop().await;
        lab.close().await;
    })
    .await;
}
