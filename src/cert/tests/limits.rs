//! A CA says how long to wait, or that it will never issue: nothing but time, or another configuration, changes that.

use std::time::Duration;

use super::ca::stub::{Fault, Step};
use super::lab::{HOUR, Lab, MINUTE, local, valid};
use super::setup::app;
use crate::config::model::Tls;
use crate::telemetry::status::CertificateState;

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
            let asked = lab.stub.requests();
            for passed in [5, 20, 30] {
                lab.pass(passed * MINUTE).await;
                running.stop().await;
                running = lab.run(&["a.example.com"]);
                // A reload, of another app and with another setting towards the CA.
                let mut other = lab.config(&["a.example.com"]);
                other.apps = vec![app("other", &["a.example.com"], Tls::Acme)];
                other.acme.email = Some(format!("{passed}@example.com"));
                running.reload(other).await;
                let refused = running.manager.renew("a.example.com").await;
                assert!(refused.expect_err("refused").contains("wait"), "forced past the CA's wait");
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert_eq!(lab.stub.requests(), asked, "after {passed} min");
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
