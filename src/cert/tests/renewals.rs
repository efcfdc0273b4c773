//! When certificates are renewed, and what a renewal says.

use std::time::Duration;

use fastrand::Rng;

use super::ca::stub::{Ari, Fault, Step};
use super::lab::{DAY, HOUR, Lab, Logged, MINUTE, local, valid};
use super::schedule::{start, valid_for};
use crate::cert::advice::{Advice, Window};
use crate::cert::history::History;
use crate::cert::schedule::{Action, Certificate, Input};
use crate::telemetry::status::RenewBecause;

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
        let (logged, _logging) = Logged::begin();
        lab.pass(6 * HOUR).await;
        lab.until_asked(Step::RenewalInfo, 3).await;
        let polled = lab.stub.now();
        lab.until_asked(Step::NewOrder, 2).await;
        let order = lab.stub.orders().pop().expect("ordered");
        let later = order.at.duration_since(polled).unwrap_or_default();
        assert!(later <= MINUTE, "{later:?} after the poll");
        assert!(order.replaces.is_some(), "it says what it replaces");
        assert_eq!(logged.lines("https://ca.test/why"), 1, "the CA's explanation is logged");
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
        // The CA was asked before edge has its answer, and has it written down.
        running.until("advised", |all| all[0].renew_because == Some(RenewBecause::CaWindow)).await;
        let issued = lab.stub.orders()[0].at;
        lab.pass(40 * HOUR).await;
        let planned = running.status(0).renew_at;
        running.stop().await;
        let running = lab.run(&["a.example.com"]);
        assert_eq!(running.status(0).renew_at, planned, "the chosen second is kept");
        assert_eq!(running.status(0).renew_because, Some(RenewBecause::CaWindow));
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
                None => {
                    let mut books = lab.stub.books();
                    (books.echoes, books.reuses) = (false, false);
                }
            }
            let (logged, _logging) = Logged::begin();
            lab.renewed(&running, 4 * DAY).await;
            assert_eq!(logged.lines("ordering without saying it"), 1, "{refusal:?}: said once");
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
        assert_eq!(running.status(0).profile.as_deref(), Some("shortlived"));
        lab.renewed(&running, 4 * DAY).await;
        let profiles: Vec<_> = lab.stub.orders().into_iter().map(|order| order.profile).collect();
        assert_eq!(profiles, [Some("shortlived".to_owned()), Some("shortlived".to_owned())]);
        lab.stub.books().profiles = vec!["classic"];
        lab.renewed(&running, 4 * DAY).await;
        assert_eq!(lab.stub.orders()[2].profile, None);
        running.until("of the CA's default", |all| all[0].profile.is_none()).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

/// Kolmogorov and Smirnov: how likely it is that samples of the uniform distribution look at least as odd.
fn uniformity(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let many = samples.len() as f64;
    let off =
        |(at, sample): (usize, &f64)| (sample - at as f64 / many).max((at as f64 + 1.0) / many - sample);
    let most = samples.iter().enumerate().map(off).fold(0.0, f64::max);
    let scaled = (many.sqrt() + 0.12 + 0.11 / many.sqrt()) * most;
    let term = |k: i32| (-1.0f64).powi(k - 1) * (-2.0 * f64::from(k * k) * scaled * scaled).exp();
    2.0 * (1..100).map(term).sum::<f64>()
}

#[test]
fn a_hundred_certificates_of_a_week_are_ordered_inside_the_window_and_evenly_so() {
    let life = 160 * HOUR;
    let width = life / 50;
    let window = Window { start: start() + life / 2 - width / 2, end: start() + life / 2 + width / 2 };
    let mut moments = Vec::new();
    for seed in 0..100 {
        let mut rng = Rng::with_seed(seed);
        let validity = valid_for(start(), life);
        let mut certificate = Certificate::found(Some((validity, "1")), History::default(), &mut rng);
        let mut now = start();
        let mut polls = 0;
        while !certificate.is_due() {
            now = now.max(certificate.wake_at(now).expect("it waits for a time"));
            if certificate.step(Input::Tick, now, &mut rng).contains(&Action::Ask) {
                polls += 1;
                // As Let's Encrypt does: six hours, more or less.
                let again_in = Some((6 * HOUR).mul_f64(0.8 + rng.f64() * 0.4));
                let advice = Advice { window, again_in, explanation: None };
                certificate.step(Input::Advised(Ok(advice)), now, &mut rng);
                if polls % 5 == 0 {
                    let saved = serde_json::to_vec(certificate.history()).expect("plain data");
                    let history = serde_json::from_slice(&saved).expect("round trip");
                    certificate = Certificate::found(Some((validity, "1")), history, &mut rng);
                }
            }
        }
        assert!(window.holds(now), "seed {seed}: {now:?} is not in {window:?}");
        moments.push(now.duration_since(window.start).expect("later").as_secs_f64() / width.as_secs_f64());
    }
    let p = uniformity(moments);
    println!("figure: 100 of 100 renewals inside a window of 3.2 h, evenly: p = {p:.2}");
    assert!(p > 0.01, "{p}");
}

#[tokio::test]
async fn what_the_ca_says_of_a_certificate_that_was_replaced_meanwhile_does_not_concern_the_next() {
    local(async {
        let lab = Lab::open().await;
        (lab.stub.books().ari, lab.stub.books().life) = (Ari::Usual(6 * HOUR), 160 * HOUR);
        lab.stub.fail(Step::RenewalInfo, Fault::Slow(Duration::from_millis(1500)));
        let running = lab.run(&["a.example.com"]);
        running.until_valid().await;
        lab.until_asked(Step::RenewalInfo, 1).await;
        lab.stub.books().life = 90 * DAY;
        running.manager.renew("a.example.com").await.expect("renewed");
        running.until("advised", |all| all[0].renew_because == Some(RenewBecause::CaWindow)).await;
        while lab.stub.is_busy() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The driver takes what it is told in order: after this it knows.
        running.manager.look_at_files().await;
        let planned = running.status(0).renew_at.expect("planned");
        let planned = time::OffsetDateTime::parse(&planned, &time::format_description::well_known::Rfc3339);
        let left = std::time::SystemTime::from(planned.expect("a date")).duration_since(lab.stub.now());
        assert!(left.expect("later") > 50 * DAY, "{:?}", running.status(0));
        running.stop().await;
        lab.close().await;
    })
    .await;
}
