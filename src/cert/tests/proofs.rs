//! How names and accounts are proven to a CA, and what follows where that fails.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::ca::stub::{Fault, ISSUER, Step};
use super::dns::config;
use super::lab::{Lab, Logged, MINUTE, local, valid};
use super::setup::LOCAL;
use super::zone::Zone;
use crate::cert::reach::{self, Outcome};
use crate::cert::self_check::SelfCheck;
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

/// What a program or a server in this process leads to.
async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it never held");
}

#[tokio::test]
async fn a_record_that_cannot_be_removed_is_tried_in_its_own_time_whatever_else_is_ordered() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let stuck = "cleanup _acme-challenge.a.example.com";
        let first = format!("[ \"$1 $2\" != \"{stuck}\" ] || exit 1");
        let config = config(&lab, &zone, &["*.a.example.com", "*.b.example.com"], &first);
        let (logged, _logging) = Logged::begin();
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        running.until("not removed", |_| logged.lines("could not be removed") == 1).await;
        let tries = || zone.calls().iter().filter(|call| *call == stuck).count();
        for _ in 0..3 {
            running.manager.renew("*.b.example.com").await.expect("renewed");
            until(|| zone.texts("_acme-challenge.b.example.com").is_empty()).await;
        }
        assert_eq!(tries(), 1, "{:?}", zone.calls());
        zone.hook(":");
        lab.pass(MINUTE).await;
        until(|| zone.texts("_acme-challenge.a.example.com").is_empty()).await;
        assert_eq!(tries(), 2, "{:?}", zone.calls());
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_record_that_is_not_needed_is_looked_for_after_the_ca_was_told() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let mut config = config(&lab, &zone, &["a.example.com"], ":");
        config.acme.challenges = vec![ChallengeKind::Http01, ChallengeKind::DnsPersist01];
        // Nobody answers, and what is asked can be counted.
        let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        silent.set_nonblocking(true).expect("set");
        let mut unanswered = config.clone();
        unanswered.acme.dns.resolvers = vec![silent.local_addr().expect("bound")];
        lab.stub.fail(Step::Challenge, Fault::Stall);
        let running = lab.run_with(&unanswered, None);
        lab.until_asked(Step::Challenge, 1).await;
        let asked = silent.recv(&mut [0; 512]).expect_err("DNS was asked before the CA was told");
        assert_eq!(asked.kind(), std::io::ErrorKind::WouldBlock);
        running.kill().await;
        let running = lab.run_with(&config, None);
        lab.pass_until(&running, Duration::from_secs(10), valid).await;
        let order = lab.stub.orders()[0].clone();
        assert_eq!(order.told, "http-01");
        let record = format!("{ISSUER}; accounturi={}", order.account);
        let wanted = format!("_validation-persist.a.example.com. TXT \"{record}\"");
        assert_eq!(running.status(0).dns_record, Some(wanted));
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_name_that_is_proven_by_dns_alone_is_looked_for_there() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let mut config = config(&lab, &zone, &["a.example.com", "*.a.example.com"], ":");
        config.acme.challenges = vec![ChallengeKind::Dns01];
        let self_check = SelfCheck::new(std::sync::Arc::clone(&lab.challenges));
        for reach in reach::look(&config, &self_check, None).await {
            let Outcome::Dns(Ok(how)) = &reach.outcome else { panic!("{reach:?}") };
            assert!(how.contains("_acme-challenge.a.example.com") && !reach.fails(), "{how}");
        }
        lab.close().await;
    })
    .await;
}
