//! What CAs do to their clients, and what edge does then: each test is one way certificates are lost elsewhere.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::LocalSet;

use super::ca::stub::{Ari, Fault, Step};
use super::lab::{Lab, Running};
use super::setup::LOCAL;
use crate::cert::self_check::SelfCheck;
use crate::config::model::{ChallengeKind, Eab};
use crate::telemetry::status::CertificateState;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

fn valid(all: &[crate::telemetry::status::CertificateStatus]) -> bool {
    all.iter().all(|one| one.state == CertificateState::Valid)
}

/// Waits until the first certificate is another than that.
async fn renewed(lab: &Lab, running: &Running, step: Duration) {
    let issued = lab.stub.books().issued;
    lab.pass_until(running, step, |all| lab.stub.books().issued > issued && valid(all)).await;
}

#[tokio::test]
async fn a_limit_is_waited_for_over_restarts_changes_and_commands() {
    local(async {
        for date in [false, true] {
            let lab = Lab::open().await;
            let until = lab.stub.now() + HOUR;
            let asked = if date { httpdate::fmt_http_date(until) } else { "3600".to_owned() };
            lab.stub.fail(Step::NewOrder, Fault::limited(&asked));
            let mut running = lab.run(&["a.example.com"]);
            running.until("limited", |all| all[0].last_error.is_some()).await;
            assert!(running.error(0).contains("deleted"), "{}", running.error(0));
            for passed in [5, 20, 30] {
                lab.pass(passed * MINUTE).await;
                running.stop().await;
                running = lab.run(&["a.example.com"]);
                let refused = running.manager.renew("a.example.com").await;
                assert!(refused.expect_err("refused").contains("wait"), "forced past the CA's wait");
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert_eq!(lab.stub.asked(Step::NewOrder), 1, "after {passed} min");
            }
            lab.pass_until(&running, MINUTE, valid).await;
            let order = lab.stub.orders().pop().expect("one");
            assert!(order.at >= until - Duration::from_secs(1), "too soon");
            assert_eq!(lab.stub.asked(Step::NewOrder), 2);
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_limit_on_the_account_holds_names_that_come_later() {
    local(async {
        let lab = Lab::open().await;
        let busy = Fault::Problem {
            status: 429,
            kind: "rateLimited",
            detail: "too many new orders recently",
            retry_after: Some("600".to_owned()),
        };
        lab.stub.fail(Step::NewOrder, busy);
        let running = lab.run(&["a.example.com"]);
        running.until("limited", |all| all[0].last_error.is_some()).await;
        running.stop().await;
        let running = lab.run(&["a.example.com", "b.example.com"]);
        running.until("held", |all| all[1].last_error.is_some()).await;
        assert_eq!(lab.stub.asked(Step::NewOrder), 1);
        lab.pass_until(&running, MINUTE, valid).await;
        assert_eq!(lab.stub.asked(Step::NewOrder), 3);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

/// Every way a request can go wrong, at every step of an order.
#[tokio::test]
async fn whatever_breaks_at_any_step_the_same_order_goes_on() {
    local(async {
        let steps = [
            Step::Directory,
            Step::Nonce,
            Step::NewAccount,
            Step::NewOrder,
            Step::Authorization,
            Step::Challenge,
            Step::Order,
            Step::Finalize,
            Step::Certificate,
        ];
        let faults =
            [Fault::Page(503), Fault::Page(200), Fault::Reset, Fault::Stall, Fault::Half, Fault::Lost];
        for step in steps {
            for fault in &faults {
                let lab = Lab::open().await;
                lab.stub.fail(step, fault.clone());
                let running = lab.run(&["a.example.com"]);
                lab.until_asked(step, 1).await;
                lab.pass_until(&running, Duration::from_secs(7), valid).await;
                let orders = lab.stub.orders().len();
                // An answer that is lost with the order's URL costs a second one; nothing else does.
                let most = if step == Step::NewOrder { 2 } else { 1 };
                assert!((1..=most).contains(&orders), "{step:?} {fault:?}: {orders} orders");
                assert_eq!(lab.stub.books().issued, 1, "{step:?} {fault:?}");
                assert_eq!(lab.stub.books().accounts.len(), 1, "{step:?} {fault:?}");
                running.stop().await;
                lab.close().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_breaks_is_a_failure_like_any_other() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().broken_handshakes = 2;
        let running = lab.run(&["a.example.com"]);
        lab.pass_until(&running, Duration::from_secs(7), valid).await;
        assert_eq!(lab.stub.orders().len(), 1);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn killed_at_any_request_edge_goes_on_with_the_same_order_and_key() {
    local(async {
        for step in [Step::Authorization, Step::Challenge, Step::Order, Step::Finalize, Step::Certificate] {
            for fault in [Fault::Stall, Fault::Lost] {
                let lab = Lab::open().await;
                lab.stub.fail(step, fault.clone());
                let running = lab.run(&["a.example.com"]);
                lab.until_asked(step, 1).await;
                running.kill().await;
                let running = lab.run(&["a.example.com"]);
                lab.pass_until(&running, Duration::from_secs(7), valid).await;
                assert_eq!(lab.stub.orders().len(), 1, "{step:?} {fault:?}");
                assert_eq!(lab.stub.books().issued, 1, "{step:?} {fault:?}");
                running.stop().await;
                lab.close().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_order_the_ca_has_forgotten_is_made_anew() {
    local(async {
        let lab = Lab::open().await;
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
async fn a_window_that_moves_into_the_past_renews_at_the_next_poll() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().ari = Ari::Usual(6 * HOUR);
        let running = lab.run(&["a.example.com"]);
        running.until_valid().await;
        lab.until_asked(Step::RenewalInfo, 1).await;
        lab.pass(7 * HOUR).await;
        lab.until_asked(Step::RenewalInfo, 2).await;
        let now = lab.stub.now();
        lab.stub.books().ari = Ari::Window(now - DAY, now - HOUR);
        lab.pass(6 * HOUR).await;
        lab.until_asked(Step::NewOrder, 2).await;
        assert!(lab.stub.orders()[1].replaces.is_some(), "it says what it replaces");
        lab.stub.books().ari = Ari::Usual(6 * HOUR);
        running.until("renewed", |all| lab.stub.books().issued == 2 && valid(all)).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_a_week_is_renewed_inside_its_window_also_over_a_restart() {
    local(async {
        let lab = Lab::open().await;
        {
            let mut books = lab.stub.books();
            books.ari = Ari::Usual(6 * HOUR);
            books.life = 160 * HOUR;
        }
        let running = lab.run(&["a.example.com"]);
        running.until_valid().await;
        lab.until_asked(Step::RenewalInfo, 1).await;
        let issued = lab.stub.orders()[0].at;
        lab.pass(40 * HOUR).await;
        let planned = running.status(0).renew_at;
        running.stop().await;
        let running = lab.run(&["a.example.com"]);
        assert_eq!(running.status(0).renew_at, planned, "the chosen second is kept");
        let planned = time::OffsetDateTime::parse(
            &planned.expect("planned"),
            &time::format_description::well_known::Rfc3339,
        );
        let left = std::time::SystemTime::from(planned.expect("a date")).duration_since(lab.stub.now());
        lab.pass(left.expect("later").saturating_sub(10 * Duration::from_secs(1))).await;
        renewed(&lab, &running, Duration::from_secs(5)).await;
        let at = lab.stub.orders()[1].at.duration_since(issued).expect("later");
        let window = 160.0 * 0.49..160.0 * 0.51;
        assert!(window.contains(&(at.as_secs_f64() / 3600.0)), "{at:?}");
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_ca_that_will_not_replace_gets_the_order_without_saying_so() {
    local(async {
        for refusal in [
            Some(Fault::problem(409, "alreadyReplaced", "replaced before")),
            Some(Fault::problem(404, "malformed", "no such certificate")),
            Some(Fault::problem(403, "unauthorized", "the replaced certificate is another account's")),
            None,
        ] {
            let lab = Lab::open().await;
            lab.stub.books().ari = Ari::Usual(6 * HOUR);
            let running = lab.run(&["a.example.com"]);
            running.until_valid().await;
            match &refusal {
                Some(fault) => lab.stub.fail(Step::NewOrder, fault.clone()),
                None => lab.stub.books().echoes = false,
            }
            renewed(&lab, &running, 4 * DAY).await;
            let orders = lab.stub.orders();
            assert_eq!(orders.last().expect("some").replaces, None, "{refusal:?}");
            assert_eq!(lab.stub.asked(Step::NewOrder), 3, "{refusal:?}: one, refused, one");
            assert_eq!(running.status(0).last_error, None, "no failure was counted");
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

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
async fn a_refused_name_is_parked_and_asked_for_once_a_day() {
    local(async {
        let lab = Lab::open().await;
        for _ in 0..2 {
            lab.stub.fail(Step::NewOrder, Fault::problem(400, "rejectedIdentifier", "on the list"));
        }
        let running = lab.run(&["a.example.com"]);
        running.until("parked", |all| all[0].state == CertificateState::Parked).await;
        lab.pass(18 * HOUR).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(lab.stub.asked(Step::NewOrder), 1);
        lab.pass_until(&running, HOUR, |_| lab.stub.asked(Step::NewOrder) == 2).await;
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

#[tokio::test]
async fn a_profile_is_ordered_kept_and_given_up_where_there_is_none() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().profiles = vec!["classic", "shortlived"];
        let mut config = lab.config(&["a.example.com"]);
        config.acme.profile = Some("shortlived".to_owned());
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        renewed(&lab, &running, 4 * DAY).await;
        let profiles: Vec<_> = lab.stub.orders().into_iter().map(|order| order.profile).collect();
        assert_eq!(profiles, [Some("shortlived".to_owned()), Some("shortlived".to_owned())]);
        lab.stub.books().profiles = vec!["classic"];
        renewed(&lab, &running, 4 * DAY).await;
        assert_eq!(lab.stub.orders()[2].profile, None);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn another_ca_is_asked_when_the_first_is_away_and_the_first_again_afterwards() {
    local(async {
        let (lab, other) = (Lab::open().await, Lab::open().await);
        let mut config = lab.config(&["a.example.com"]);
        config.acme.fallbacks = vec![other.stub.directory()];
        // One file with both roots.
        let roots =
            [lab.stub.root(), other.stub.root()].map(|file| std::fs::read_to_string(file).expect("read"));
        let both = lab.storage.path().join("roots.pem");
        std::fs::write(&both, roots.concat()).expect("written");
        config.acme.ca_root = Some(both);
        // The other one validates where this manager answers.
        (other.stub.books().http, other.stub.books().tls) = (lab.http, lab.tls);
        for _ in 0..3 {
            lab.stub.fail(Step::Directory, Fault::Page(503));
        }
        let running = lab.run_with(&config, None);
        lab.pass_until(&running, 10 * Duration::from_secs(1), valid).await;
        assert_eq!((lab.stub.orders().len(), other.stub.orders().len()), (0, 1));
        running.stop().await;
        let running = lab.run_with(&config, None);
        assert_eq!(running.status(0).state, CertificateState::Valid, "found where the other CA's are kept");
        for _ in 0..40 {
            lab.pass(2 * DAY).await;
            other.stub.pass(2 * DAY);
            // What that leads to must not be overtaken by the next step.
            tokio::time::sleep(Duration::from_millis(300)).await;
            if lab.stub.books().issued == 1 {
                break;
            }
        }
        assert_eq!((lab.stub.orders().len(), other.stub.orders().len()), (1, 1));
        assert_eq!(lab.stub.orders()[0].replaces, None, "another CA's certificate is not its to replace");
        running.stop().await;
        lab.close().await;
        other.close().await;
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

#[tokio::test]
async fn a_clock_far_from_the_cas_orders_nothing_until_it_is_right() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.pass(40 * DAY);
        let running = lab.run(&["a.example.com"]);
        running.until("seen", |all| all[0].last_error.is_some()).await;
        assert!(
            running.error(0).contains("behind") && running.error(0).contains("NTP"),
            "{}",
            running.error(0)
        );
        assert_eq!(lab.stub.asked(Step::NewOrder), 0);
        lab.clock.forward(40 * DAY);
        lab.pass_until(&running, 7 * Duration::from_secs(1), valid).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn an_operator_gets_a_new_certificate_at_once() {
    local(async {
        let lab = Lab::open().await;
        let running = lab.run(&["a.example.com"]);
        running.until_valid().await;
        // The first may still be on its way to the disk.
        running.manager.renew("a.example.com").await.expect("stored");
        let issued = lab.stub.books().issued;
        running.manager.renew("a.example.com").await.expect("renewed");
        assert_eq!(lab.stub.books().issued, issued + 1);
        let unknown = running.manager.renew("b.example.com").await;
        assert!(unknown.expect_err("unknown").contains("b.example.com"));
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn another_setting_towards_the_ca_forgets_what_it_repaired() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.fail(Step::NewOrder, Fault::problem(400, "rejectedIdentifier", "not with that profile"));
        let running = lab.run(&["a.example.com"]);
        running.until("parked", |all| all[0].state == CertificateState::Parked).await;
        running.stop().await;
        let running = lab.run(&["a.example.com"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(lab.stub.asked(Step::NewOrder), 1, "a restart alone changes nothing");
        running.stop().await;
        let mut config = lab.config(&["a.example.com"]);
        config.acme.email = Some("other@example.com".to_owned());
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}
