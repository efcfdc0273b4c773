//! Clocks that are wrong, are set, or jump.

use std::time::{Duration, SystemTime};

use super::ca::stub::Step;
use super::fakes::{Rig, Running, rig};
use super::lab::{DAY, HOUR, Lab, MINUTE, local, valid};
use super::setup::{LOCAL, app, config, handshake, host, pattern, provider};
use crate::cert::ca_id::CaId;
use crate::cert::failure::Class;
use crate::cert::history::History;
use crate::cert::seconds::rfc3339;
use crate::cert::seconds::whole;
use crate::cert::store::{CertStore, DirStore};
use crate::clock::Clock;
use crate::config::model::Tls;
use crate::telemetry::status::CertificateState;

const SECOND: Duration = Duration::from_secs(1);

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

/// Names whose certificates are as old as that.
fn installed(rig: &Rig, many: usize, age: Duration) -> Vec<String> {
    let names: Vec<String> = (0..many).map(|one| format!("n{one:03}.example.com")).collect();
    rig.store(names.iter().map(String::as_str), |_| age);
    names
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_starts_no_storm_and_its_repair_brings_the_plan_back() {
    local(async {
        let rig = rig();
        let names = installed(&rig, 60, 30 * DAY);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let running = rig.run(&names);
        let planned = |running: &Running| -> Vec<_> {
            running.manager.status().into_iter().map(|one| one.renew_at).collect()
        };
        let before = planned(&running);

        // Three hours back: nothing is due, and nothing is planned anew.
        rig.clock.back(3 * HOUR);
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!((rig.ca.orders.get(), planned(&running)), (0, before.clone()));
        rig.clock.forward(3 * HOUR);

        // Stuck at 1970.
        let since_1970 = rig.clock.now().duration_since(SystemTime::UNIX_EPOCH).expect("later");
        rig.clock.back(since_1970);
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!(rig.ca.orders.get(), 0, "ordered in 1970");
        rig.clock.forward(since_1970);
        tokio::time::sleep(2 * MINUTE).await;
        assert_eq!((rig.ca.orders.get(), planned(&running)), (0, before.clone()));

        // Forty days ahead, where all of them are due.
        rig.clock.forward(40 * DAY);
        tokio::time::sleep(20 * SECOND).await;
        let started: Vec<_> = rig.ca.started.borrow().iter().map(|(at, _)| *at).collect();
        assert!(started.len() > 5, "{}", started.len());
        let apart = started.windows(2).map(|pair| pair[1].duration_since(pair[0]).expect("later")).min();
        println!(
            "figure: {} orders in 20 s after a clock was set 40 days ahead, {apart:?} apart at least",
            started.len()
        );
        assert!(apart >= Some(SECOND), "{apart:?}: more than one a second");
        rig.clock.back(40 * DAY);
        tokio::time::sleep(2 * SECOND).await;
        let orders = rig.ca.orders.get();
        tokio::time::sleep(10 * MINUTE).await;
        assert_eq!(rig.ca.orders.get(), orders, "the rest keeps its plan");
        let kept = planned(&running).iter().zip(&before).filter(|(now, then)| now == then).count();
        assert_eq!(kept, names.len() - orders as usize);
        running.stop().await;
    })
    .await;
}

/// A board without a clock of its own starts in 1970, or when its system was built, and is set once it reaches the network.
#[tokio::test(start_paused = true)]
async fn what_was_written_under_a_true_clock_outlives_a_start_under_a_false_one() {
    local(async {
        let rig = rig();
        let now = whole(rig.clock.now());
        let mut history = History {
            next_attempt: Some(now + 34 * HOUR),
            limited_until: Some(now + 34 * HOUR),
            ..History::default()
        };
        history.failures.insert(Class::Limited, 1);
        let store = DirStore::open(&rig.storage(), provider()).expect("opened");
        let ca = CaId::of(&config(&rig.storage(), Vec::new()).acme.directory);
        store.remember(&ca, &pattern("a.example.com"), &history).expect("saved");
        for off in [now.duration_since(SystemTime::UNIX_EPOCH).expect("later"), 1000 * DAY] {
            rig.clock.back(off);
            let running = rig.run(&["a.example.com"]);
            tokio::time::sleep(2 * MINUTE).await;
            rig.clock.forward(off);
            tokio::time::sleep(2 * MINUTE).await;
            let next = running.manager.status()[0].next_attempt.clone();
            assert_eq!(next.as_deref(), Some(&*rfc3339(now + 34 * HOUR)), "off by {off:?}");
            let forced = running.manager.renew("a.example.com").await;
            assert!(forced.expect_err("limited").contains("wait"), "off by {off:?}");
            assert_eq!(rig.ca.orders.get(), 0);
            running.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_clock_some_hours_from_the_cas_costs_no_certificate() {
    local(async {
        for (ahead, life) in [(8 * HOUR, 90 * DAY), (23 * HOUR, 6 * DAY)] {
            let lab = Lab::open().await;
            lab.stub.books().life = life;
            lab.stub.pass(ahead);
            let running = lab.run(&["a.example.com"]);
            running.until("obtained", |all| valid(all) || all[0].last_error.is_some()).await;
            assert_eq!(running.error(0), "", "behind by {ahead:?}");
            assert_eq!(lab.stub.orders().len(), 1);
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn edges_own_ca_is_made_by_a_clock_that_can_be_right() {
    local(async {
        let rig = rig();
        let since_1970 = rig.clock.now().duration_since(SystemTime::UNIX_EPOCH).expect("later");
        rig.clock.back(since_1970);
        let apps = vec![app("api", &["a.test"], Tls::Internal)];
        let running = rig.try_run(&config(&rig.storage(), apps)).expect("started");
        tokio::time::sleep(2 * MINUTE).await;
        rig.clock.forward(since_1970);
        running.until("valid", |r| r.state(0) == CertificateState::Valid).await;
        let root = std::fs::read(rig.storage().join("internal/root.pem")).expect("made");
        let root = rustls::pki_types::pem::PemObject::from_pem_slice(&root).expect("PEM");
        let served = running.certificates.find(Some(&host("a.test")), LOCAL).expect("served");
        handshake(&served.config, &root, "a.test").expect("trusted now");
        running.stop().await;
    })
    .await;
}
