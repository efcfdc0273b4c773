//! When certificates are renewed, and what a renewal says.

use std::time::Duration;

use super::ca::stub::{Ari, Fault, Step};
use super::lab::{DAY, HOUR, Lab, local, valid};

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
        lab.renewed(&running, Duration::from_secs(5)).await;
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
            lab.renewed(&running, 4 * DAY).await;
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
async fn a_profile_is_ordered_kept_and_given_up_where_there_is_none() {
    local(async {
        let lab = Lab::open().await;
        lab.stub.books().profiles = vec!["classic", "shortlived"];
        let mut config = lab.config(&["a.example.com"]);
        config.acme.profile = Some("shortlived".to_owned());
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        lab.renewed(&running, 4 * DAY).await;
        let profiles: Vec<_> = lab.stub.orders().into_iter().map(|order| order.profile).collect();
        assert_eq!(profiles, [Some("shortlived".to_owned()), Some("shortlived".to_owned())]);
        lab.stub.books().profiles = vec!["classic"];
        lab.renewed(&running, 4 * DAY).await;
        assert_eq!(lab.stub.orders()[2].profile, None);
        running.stop().await;
        lab.close().await;
    })
    .await;
}
