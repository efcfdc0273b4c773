//! Whatever breaks between edge and a CA, the order goes on, and there is one certificate.

use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ca::stub::{Ari, Fault, STEPS, Step};
use super::lab::{DAY, HOUR, Lab, Running, local, valid};
use super::setup::{config, trusted};
use crate::cert::cas::Cas;
use crate::cert::failure::{Class, Failure};
use crate::cert::history::History;
use crate::cert::schedule::Certificate;
use crate::clock::Clock;
use crate::config::model::{Acme, Config, Eab};
use crate::config::trusted::Trusted;
use crate::telemetry::status::CertificateState;

/// Every way a request can go wrong, at every step of an order; and a handshake that breaks, before each.
#[test]
fn whatever_breaks_at_any_step_the_same_order_goes_on() {
    let faults = [Fault::Page(503), Fault::Page(200), Fault::Reset, Fault::Stall, Fault::Half, Fault::Lost];
    std::thread::scope(|threads| {
        for fault in faults {
            threads.spawn(move || on_its_own(every_step(&fault)));
        }
        threads.spawn(|| on_its_own(every_handshake()));
    });
}

/// Time that passes for one test passes for no other.
pub(super) fn on_its_own(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(local(test));
}

async fn every_step(fault: &Fault) {
    for (step, reuses) in STEPS.map(|step| (step, true)).into_iter().chain([(Step::NewOrder, false)]) {
        let lab = Lab::open().await;
        lab.stub.books().ari = Ari::Usual(6 * HOUR);
        lab.stub.books().reuses = reuses;
        lab.stub.fail(step, fault.clone());
        let running = lab.run_with(&with_contact(&lab), None);
        lab.until_asked(step, 1).await;
        lab.pass_until(&running, Duration::from_secs(7), valid).await;
        if step == Step::RenewalInfo {
            // What was not said is asked for again.
            lab.pass_until(&running, HOUR / 2, |_| lab.stub.asked(step) > 1).await;
        }
        // Ordering the same again finds an order whose URL was lost with the answer, unless the CA makes another each time.
        let most = if reuses { 1 } else { 2 };
        recovered(lab, running, most, &format!("{step:?} {fault:?} {reuses}")).await;
    }
}

async fn every_handshake() {
    let mut connections = 1;
    let mut broken = 0;
    while broken < connections {
        broken += 1;
        let lab = Lab::open().await;
        lab.stub.books().broken_handshake = Some(broken);
        let running = lab.run_with(&with_contact(&lab), None);
        lab.pass_until(&running, Duration::from_secs(7), valid).await;
        connections = lab.stub.books().connections.min(16);
        recovered(lab, running, 1, &format!("handshake {broken}")).await;
    }
    assert!(broken >= 9, "an order takes more than {broken} requests");
}

fn with_contact(lab: &Lab) -> Config {
    let mut config = lab.config(&["a.example.com"]);
    config.acme.email = Some("ops@example.com".to_owned());
    config
}

async fn recovered(lab: Lab, running: Running, most: usize, what: &str) {
    let orders = lab.stub.orders().len();
    assert!((1..=most).contains(&orders), "{what}: {orders} orders");
    assert_eq!(lab.stub.books().issued, 1, "{what}");
    assert_eq!(lab.stub.books().accounts.len(), 1, "{what}");
    running.stop().await;
    // Nothing is left behind: no task, which `stop` waits for, and no answer.
    assert_eq!(format!("{:?}", lab.challenges), "Challenges { http01: 0, tls_alpn01: 0 }", "{what}");
    lab.close().await;
}

#[tokio::test]
async fn an_order_the_ca_has_forgotten_is_made_anew() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().reuses = false;
        lab.stub.fail(Step::Finalize, Fault::Page(503));
        let running = lab.run(&["a.example.com"]);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        running.stop().await;
        lab.stub.fail(Step::Order, Fault::problem(404, "malformed", "no such order"));
        let running = lab.run(&["a.example.com"]);
        lab.pass_until(&running, Duration::from_secs(7), valid).await;
        assert_eq!(lab.stub.orders().len(), 2);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_nonce_that_is_refused_at_the_download_repeats_that_alone() {
    local(async {
        let lab = Lab::open().await;
        // The library tries thrice by itself.
        for _ in 0..99 {
            lab.stub.fail(Step::Certificate, Fault::problem(400, "badNonce", "another one"));
        }
        let running = lab.run(&["a.example.com"]);
        running
            .until("valid", |all| {
                assert_eq!(all[0].last_error, None, "counted as a failure");
                valid(all)
            })
            .await;
        assert_eq!(lab.stub.asked(Step::Certificate), 100);
        let looks = lab.stub.asked(Step::Order);
        assert!(looks < 33, "{looks} looks at the order");
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_slow_ca_is_waited_for() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().processing = 3;
        let running = lab.run(&["a.example.com"]);
        running.until_valid().await;
        assert_eq!(lab.stub.orders().len(), 1);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_ca_that_wants_an_order_to_be_looked_at_in_a_million_years_does_not_end_the_attempt_unheard() {
    local(async {
        let lab = Lab::open().await;
        (lab.stub.books().processing, lab.stub.books().poll_after) = (3, "18446744073709551615");
        let running = lab.run(&["a.example.com"]);
        lab.pass_until(&running, Duration::from_secs(7), valid).await;
        assert_eq!(lab.stub.orders().len(), 1);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_ca_that_wants_a_binding_without_saying_so_gets_it() {
    local(async {
        let lab = Lab::open().await;
        let secret = b"a secret of both".to_vec();
        (lab.stub.books().binding, lab.stub.books().tells_binding) = (Some(("me", secret.clone())), false);
        let mut config = lab.config(&["a.example.com"]);
        config.acme.eab = Some(Eab { kid: "me".to_owned(), hmac_key: secret });
        let running = lab.run_with(&config, None);
        running.until("obtained", |all| valid(all) || all[0].last_error.is_some()).await;
        assert_eq!(running.error(0), "");
        assert_eq!(lab.stub.books().accounts.len(), 1);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[test]
fn a_root_that_was_mended_is_another_setting_so_that_its_failures_are_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut acme = config(dir.path(), Vec::new()).acme;
    let none = Cas::of(&acme).settings.clone();
    let pem = include_str!("../../../tests/config/files/ca.pem");
    let with = |acme: &mut Acme, pem: &str| {
        acme.ca_root = Some(Trusted::parse(pem.as_bytes()).expect("certificates"));
        Cas::of(acme).settings.clone()
    };
    let (one, two) = (with(&mut acme, pem), with(&mut acme, &format!("{pem}{pem}")));
    assert!(one.starts_with(&none) && one != none && two != one, "{none}\n{one}\n{two}");
    let failure = Failure::new(Class::Action, "cannot be used");
    let mut history = History { settings: Some(none), ..History::default() };
    history.failures.insert(failure.class, 3);
    history.next_attempt = Some(SystemTime::UNIX_EPOCH + DAY);
    let mut name = Certificate::found(None, history, &mut fastrand::Rng::with_seed(7));
    name.settle(&one, 0);
    assert_eq!((name.history().failures.len(), name.history().next_attempt), (0, None));
}

/// The other CA is asked where the first fails.
fn with_both(lab: &Lab, other: &Lab) -> Config {
    let mut config = lab.config(&["a.example.com"]);
    config.acme.fallbacks = vec![other.stub.directory()];
    // One file with both roots.
    let roots = [lab.stub.root(), other.stub.root()].map(|file| std::fs::read_to_string(file).expect("read"));
    let both = lab.storage.path().join("roots.pem");
    std::fs::write(&both, roots.concat()).expect("written");
    config.acme.ca_root = trusted(&both);
    // The other one validates where this manager answers.
    (other.stub.books().http, other.stub.books().tls) = (lab.http, lab.tls);
    config
}

/// What only waiting, or somebody else, can mend.
fn refusals() -> [Fault; 5] {
    [
        Fault::limited("604800"),
        Fault::problem(403, "externalAccountRequired", "bind it"),
        Fault::problem(400, "rejectedIdentifier", "not here"),
        Fault::problem(403, "unauthorized", "blocked"),
        Fault::problem(403, "caa", "CAA forbids it"),
    ]
}

/// A CA that stands in for a few minutes must not decide over the day after.
#[tokio::test]
async fn what_the_other_ca_refuses_does_not_keep_the_first_from_being_asked() {
    local(async {
        for refusal in refusals() {
            let (lab, other) = (Lab::open().await, Lab::open().await);
            for _ in 0..3 {
                lab.stub.fail(Step::Directory, Fault::Page(503));
            }
            other.stub.fail(Step::NewOrder, refusal.clone());
            let running = lab.run_with(&with_both(&lab, &other), None);
            let begun = lab.stub.now();
            lab.pass_until(&running, 10 * Duration::from_secs(1), valid).await;
            let took = lab.stub.now().duration_since(begun).expect("later");
            assert!(took < HOUR / 2, "{refusal:?}: {took:?}");
            assert_eq!((lab.stub.orders().len(), other.stub.asked(Step::NewOrder)), (1, 1), "{refusal:?}");
            running.stop().await;
            lab.close().await;
            other.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn another_ca_is_asked_when_the_first_is_away_and_the_first_again_afterwards() {
    local(async {
        let (lab, other) = (Lab::open().await, Lab::open().await);
        let config = with_both(&lab, &other);
        for _ in 0..3 {
            lab.stub.fail(Step::Directory, Fault::Page(503));
        }
        let running = lab.run_with(&config, None);
        lab.pass_until(&running, 10 * Duration::from_secs(1), valid).await;
        assert_eq!((lab.stub.orders().len(), other.stub.orders().len()), (0, 1));
        running.stop().await;
        let running = lab.run_with(&config, None);
        assert_eq!(running.status(0).state, CertificateState::Valid, "found where the other CA's are kept");
        let due = running.status(0).renew_at.expect("planned");
        let due = SystemTime::from(OffsetDateTime::parse(&due, &Rfc3339).expect("a date"));
        let left = due.duration_since(lab.clock.now()).expect("later") + HOUR;
        other.stub.pass(left);
        lab.pass(left).await;
        running.until("the first has issued", |_| lab.stub.books().issued == 1).await;
        assert_eq!((lab.stub.orders().len(), other.stub.orders().len()), (1, 1));
        assert_eq!(lab.stub.orders()[0].replaces, None, "another CA's certificate is not its to replace");
        running.stop().await;
        lab.close().await;
        other.close().await;
    })
    .await;
}

/// What only waiting, or somebody else, can mend at the first CA is nothing that clients should see.
#[tokio::test]
async fn where_the_first_ca_refuses_a_name_that_has_no_certificate_the_other_is_asked_at_once() {
    local(async {
        for refusal in refusals() {
            let (lab, other) = (Lab::open().await, Lab::open().await);
            lab.stub.fail(Step::NewOrder, refusal.clone());
            let running = lab.run_with(&with_both(&lab, &other), None);
            // Without any time to pass on the clock.
            running.until("obtained", valid).await;
            let asked = (lab.stub.asked(Step::NewOrder), other.stub.asked(Step::NewOrder));
            assert_eq!((asked, running.error(0)), ((1, 1), String::new()), "{refusal:?}");
            running.stop().await;
            lab.close().await;
            other.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_limit_on_the_account_at_the_first_ca_leads_every_name_without_a_certificate_to_the_other() {
    local(async {
        let (lab, other) = (Lab::open().await, Lab::open().await);
        let mut config = with_both(&lab, &other);
        let names = [
            "a.example.com",
            "b.example.com",
            "c.example.com",
            "d.example.com",
            "e.example.com",
            "f.example.com",
        ];
        config.apps = lab.config(&names).apps;
        let limit = Fault::Problem {
            status: 429,
            kind: "rateLimited",
            detail: "too many new orders (300) from this account in the last 3h0m0s",
            retry_after: Some("3600".to_owned()),
        };
        // As many as may be on their way before the first is answered.
        for _ in 0..4 {
            lab.stub.fail(Step::NewOrder, limit.clone());
        }
        let running = lab.run_with(&config, None);
        running.until("obtained", |all| all.iter().all(|one| one.state == CertificateState::Valid)).await;
        assert_eq!((lab.stub.orders().len(), other.stub.orders().len()), (0, names.len()));
        running.stop().await;
        lab.close().await;
        other.close().await;
    })
    .await;
}
