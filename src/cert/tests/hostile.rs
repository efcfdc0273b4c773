//! What a CA must not be able to do to edge, whatever it answers.

use std::time::Duration;

use fastrand::Rng;
use instant_acme::{AuthorizationState, OrderState, Problem};
use serde_json::json;

use super::ca::stub::garble::garbled;
use super::ca::stub::{Ari, Fault, Step};
use super::faults::on_its_own;
use super::lab::{HOUR, Lab, MINUTE, full_length, valid};
use super::setup::{now, pattern, provider};
use crate::cert::advice::Advice;
use crate::cert::bundle::CertBundle;
use crate::cert::directory::Directory;
use crate::cert::history::History;
use crate::cert::internal::InternalCa;
use crate::cert::pending::PendingOrder;

/// Reads one document in its own way; whether it could be read.
type Reader = fn(&[u8]) -> bool;

#[test]
fn whatever_a_ca_answers_is_read_without_harm() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = InternalCa::open(dir.path(), provider(), now()).expect("made");
    let pem = ca.issue(&pattern("a.example.com"), now()).expect("issued").to_pem();
    let url = "https://ca.test/x/1";
    let documents: [(&str, String, Reader); 7] = [
        (
            "directory",
            json!({"newNonce": url, "newAccount": url, "newOrder": url, "renewalInfo": url,
                "meta": {"profiles": {"a": "b"}, "externalAccountRequired": true}})
            .to_string(),
            |bytes| serde_json::from_slice::<Directory>(bytes).is_ok(),
        ),
        (
            "order",
            json!({"status": "pending", "expires": "2026-01-01T00:00:00Z", "identifiers": [{"type": "dns", "value": "a"}],
                "authorizations": [url], "finalize": url, "certificate": url,
                "error": {"type": "urn:ietf:params:acme:error:caa", "detail": "no", "status": 403}})
            .to_string(),
            |bytes| serde_json::from_slice::<OrderState>(bytes).is_ok(),
        ),
        (
            "authorization",
            json!({"status": "pending", "identifier": {"type": "dns", "value": "a"}, "wildcard": true,
                "challenges": [{"type": "http-01", "url": url, "token": "abc", "status": "pending"},
                    {"type": "new-99", "url": url, "status": "valid"}]})
            .to_string(),
            |bytes| serde_json::from_slice::<AuthorizationState>(bytes).is_ok(),
        ),
        (
            "problem",
            json!({"type": "urn:ietf:params:acme:error:compound", "detail": "x", "status": 400,
                "subproblems": [{"type": "x", "identifier": {"type": "dns", "value": "a"}}]})
            .to_string(),
            |bytes| serde_json::from_slice::<Problem>(bytes).is_ok(),
        ),
        (
            "renewal information",
            json!({"suggestedWindow": {"start": "2026-01-02T04:00:00Z", "end": "2026-01-03T03:00:00.5+01:00"},
                "explanationURL": url})
            .to_string(),
            |bytes| Advice::parse(bytes, Some(Duration::ZERO)).is_ok(),
        ),
        (
            "bundle",
            String::from_utf8(pem).expect("text"),
            |bytes| CertBundle::parse(&provider(), bytes).is_ok_and(|bundle| bundle.check_issued(&pattern("a.example.com"), now()).is_ok()),
        ),
        (
            "record",
            json!({"failures": {"caa": 3}, "next_attempt": 5, "spent": [1, 2], "url": url, "account": url, "key_pkcs8": "AAAA"})
                .to_string(),
            |bytes| {
                let order = serde_json::from_slice::<PendingOrder>(bytes).map(|order| order.key());
                serde_json::from_slice::<History>(bytes).is_ok() && order.is_ok()
            },
        ),
    ];
    let many = if full_length() { 100_000 } else { 1_500 };
    for (what, document, read) in documents {
        assert!(read(document.as_bytes()), "{what}: {document}");
        let understood = (0..many).filter(|seed| read(garbled(&document, *seed).as_bytes())).count();
        println!("figure: {what}: {understood} of {many} garbled ones were understood, none did harm");
        let mut rng = Rng::with_seed(7);
        for _ in 0..many / 10 {
            let noise: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
            assert!(!read(&noise) || what == "record", "{what}: noise was understood");
        }
    }
}

/// One answer after the other is another than it should be; then the CA is itself, and there is a certificate.
#[test]
fn an_answer_that_is_garbled_at_any_step_is_survived() {
    let steps = [
        Step::Directory,
        Step::NewAccount,
        Step::NewOrder,
        Step::Authorization,
        Step::Challenge,
        Step::Order,
        Step::Finalize,
        Step::Certificate,
        Step::RenewalInfo,
    ];
    let rounds = if full_length() { 60 } else { 1 };
    let first = fastrand::u64(..);
    std::thread::scope(|threads| {
        for steps in steps.chunks(3) {
            threads.spawn(move || {
                for (round, step) in
                    (0..rounds).flat_map(|round| steps.iter().map(move |step| (round, *step)))
                {
                    on_its_own(garbles(step, first.wrapping_add(round * 10)));
                }
            });
        }
    });
    println!("figure: {} orders with garbled answers, from seed {first}", rounds * 9);
}

async fn garbles(step: Step, seed: u64) {
    let lab = Lab::open().await;
    lab.stub.books().ari = Ari::Usual(6 * HOUR);
    for other in 0..3 {
        lab.stub.fail(step, Fault::Garbled(seed.wrapping_add(other)));
    }
    let running = lab.run(&["a.example.com"]);
    // Some of it reads as a refusal for a day.
    lab.pass_until(&running, 15 * MINUTE, |all| {
        valid(all) && (step != Step::RenewalInfo || lab.stub.asked(step) >= 3)
    })
    .await;
    assert_eq!(lab.stub.books().accounts.len(), 1, "{step:?} {seed}");
    running.stop().await;
    lab.close().await;
}
