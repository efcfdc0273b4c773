//! How names and accounts are proven to a CA, and what follows where that fails.

use std::time::Duration;

use super::ca::stub::{Fault, Step};
use super::lab::{Lab, MINUTE, local, valid};
use super::setup::LOCAL;
use crate::config::model::ChallengeKind;

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
        let planned = lab.until_next(&running, 0);
        assert!((48 * MINUTE..=72 * MINUTE).contains(&planned), "an hour, more or less: {planned:?}");
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
async fn long_names_and_addresses_are_proven_in_either_way() {
    for kind in [ChallengeKind::TlsAlpn01, ChallengeKind::Http01] {
        local(async {
            let lab = Lab::open().await;
            let long = format!("{}.example.com", ["a".repeat(63), "b".repeat(63), "c".repeat(60)].join("."));
            assert_eq!(long.len(), 200);
            let mut config = lab.config(&["a.dev", &long, "203.0.113.7", "2001:db8::7"]);
            config.acme.challenges = vec![kind];
            let running = lab.run_with(&config, None);
            running.until_valid().await;
            // Who names no host gets the certificate of the address.
            for address in ["203.0.113.7", "2001:db8::7"] {
                assert!(lab.stub.orders().iter().any(|order| order.ip && order.name == address));
                let local = address.parse().expect("an address");
                assert!(running.certificates.find(None, local).is_some(), "{address}");
            }
            assert!(running.certificates.find(None, LOCAL).is_none());
            running.stop().await;
            lab.close().await;
        })
        .await;
    }
}
