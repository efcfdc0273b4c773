//! The driver with a CA and a disk that do as they are told.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime};

use super::fakes::{Running, rig};
use super::lab::{Logged, local};
use super::setup::{LOCAL, app, config, handshake, host, lasting, now, pattern};
use crate::cert::failure::{Class, Reach};
use crate::cert::internal::InternalCa;
use crate::clock::Clock;
use crate::config::model::Tls;
use crate::telemetry::status::CertificateState;

pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test(start_paused = true)]
async fn many_missing_names_are_ordered_four_at_a_time() {
    local(async {
        let rig = rig();
        let names: Vec<String> = (0..9).map(|n| format!("n{n}.example.com")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let running = rig.run(&names);
        running
            .until("all", |r| r.manager.status().iter().all(|one| one.state == CertificateState::Valid))
            .await;
        assert_eq!(rig.ca.orders.get(), 9);
        assert!(rig.ca.most_at_once.get() <= 4);
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_stop_a_new_certificate_from_being_served() {
    local(async {
        let rig = rig();
        let running = rig.run(&["a.example.com"]);
        running.until("first", |r| r.state(0) == CertificateState::Valid).await;
        let first = running.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        // The order's own record fits on the disk; what comes back does not.
        rig.advance(Duration::from_secs(85 * 24 * 3600)).await;
        running.disk.full.store(true, Ordering::SeqCst);
        running.until("saved not", |r| r.error(0).contains("/store")).await;
        let second = running.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        assert!(!Arc::ptr_eq(&first, &second), "renewed in memory");
        assert_eq!(rig.ca.orders.get(), 2);
        running.disk.full.store(false, Ordering::SeqCst);
        rig.advance(Duration::from_secs(600)).await;
        running.until("saved", |r| r.state(0) == CertificateState::Valid).await;
        running.stop().await;
        let running = rig.run(&["a.example.com"]);
        assert_eq!(running.state(0), CertificateState::Valid);
        assert_eq!(rig.ca.orders.get(), 2);
        running.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_is_served_once_it_is_stored() {
    local(async {
        let rig = rig();
        let running = rig.run(&["a.example.com"]);
        let (open, gate) = mpsc::channel();
        *running.disk.slow.lock().expect("not poisoned") = Some(gate);
        running.until("obtained", |r| r.disk.saving.load(Ordering::SeqCst)).await;
        // The driver publishes after everything it hears of; let it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let served = |running: &Running| running.certificates.find(Some(&host("a.example.com")), LOCAL);
        assert!(served(&running).is_none(), "a crash now would lose it");
        drop(open);
        running.until("served", |r| served(r).is_some()).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_order_is_made_while_its_record_cannot_be_written() {
    local(async {
        let rig = rig();
        let names: [&str; 1] = ["a.example.com"];
        let storage = rig.storage();
        // A file where the name's directory belongs makes every write fail, also for root.
        fs::create_dir_all(&storage).expect("created");
        fs::write(storage.join("certs"), "").expect("written");
        let running = rig.run(&names);
        running.until("refused", |r| !r.error(0).is_empty()).await;
        assert_eq!(rig.ca.orders.get(), 0);
        fs::remove_file(storage.join("certs")).expect("removed");
        rig.advance(Duration::from_secs(3600)).await;
        running.until("issued", |r| r.state(0) == CertificateState::Valid).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failures_and_their_waits_survive_a_restart() {
    local(async {
        let rig = rig();
        rig.fail_with(Class::Limited, Reach::Name, Some(Duration::from_secs(3600)));
        let running = rig.run(&["a.example.com"]);
        running.until("failed", |r| r.state(0) == CertificateState::Retrying).await;
        let page = running.certificates.pending(&host("a.example.com")).expect("pending");
        assert!(page.starts_with("the CA said no. Next try at 2"), "{page}");
        let status = running.manager.status();
        running.stop().await;

        let running = rig.run(&["a.example.com"]);
        assert_eq!(lasting(running.manager.status()), lasting(status));
        rig.advance(Duration::from_secs(3599)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        running.stop().await;
        assert_eq!(rig.ca.orders.get(), 1, "no restart makes it sooner");
        rig.advance(Duration::from_secs(361)).await;
        let running = rig.run(&["a.example.com"]);
        running.until("issued", |r| r.state(0) == CertificateState::Valid).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_the_account_holds_every_name() {
    local(async {
        let rig = rig();
        let names: Vec<String> = (0..6).map(|n| format!("n{n}.example.com")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for _ in 0..4 {
            rig.fail_with(Class::Limited, Reach::Account, Some(Duration::from_secs(3600)));
        }
        let running = rig.run(&names);
        running.until("held", |r| (0..6).all(|n| r.error(n) == "the CA said no")).await;
        assert!(rig.ca.orders.get() <= 4, "{}", rig.ca.orders.get());
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_an_error_in_the_log_once_the_certificate_ends_soon() {
    local(async {
        for (days, level, words) in
            [(70, "WARN", "no certificate was obtained"), (85, "ERROR", "a certificate ends soon")]
        {
            let rig = rig();
            rig.store(["a.example.com"].into_iter(), |_| Duration::from_secs(days * 24 * 3600));
            rig.fail_with(Class::Transient, Reach::Name, None);
            let (logged, _logging) = Logged::begin();
            let running = rig.run(&["a.example.com"]);
            running.until("failed", |r| !r.error(0).is_empty()).await;
            let text = logged.text();
            let line = text.lines().find(|line| line.contains(words)).expect("it is logged");
            assert!(line.contains(level) && line.contains("the CA said no"), "{line}");
            running.stop().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_name_says_so() {
    local(async {
        let rig = rig();
        rig.fail_with(Class::Permanent, Reach::Name, None);
        let running = rig.run(&["a.example.com", "b.example.com"]);
        running.until("parked", |r| (0..2).any(|n| r.state(n) == CertificateState::Parked)).await;
        running.until("the other is served", |r| (0..2).any(|n| r.state(n) == CertificateState::Valid)).await;
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn with_an_impossible_clock_nothing_is_ordered() {
    local(async {
        let rig = rig();
        let since_1970 = rig.clock.now().duration_since(SystemTime::UNIX_EPOCH).expect("later");
        rig.clock.back(since_1970);
        let (logged, _logging) = Logged::begin();
        let running = rig.run(&["a.example.com"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(rig.ca.orders.get(), 0);
        let page = running.certificates.pending(&host("a.example.com")).expect("pending");
        assert!(page.contains("clock"), "{page}");
        tokio::time::sleep(Duration::from_secs(130 * 60)).await;
        assert_eq!(logged.lines("the clock of this machine is wrong"), 3, "once an hour");
        rig.clock.forward(since_1970);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(rig.ca.orders.get(), 1, "soon after the clock was set");
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_internal_ca_serves_before_start_returns_and_the_same_after_a_restart() {
    local(async {
        let rig = rig();
        let apps = || vec![app("api", &["localhost", "*.app.test", "127.0.0.1"], Tls::Internal)];
        let config = config(&rig.storage(), apps());
        let running = rig.try_run(&config).expect("started");
        let root = fs::read(running.manager.internal_root().expect("a root")).expect("readable");
        let root = rustls::pki_types::pem::PemObject::from_pem_slice(&root).expect("PEM");
        let served = running.certificates.find(Some(&host("a.app.test")), LOCAL).expect("served at once");
        handshake(&served.config, &root, "a.app.test").expect("trusted");
        let served = running.certificates.find(None, LOCAL).expect("that of the local address");
        handshake(&served.config, &root, "127.0.0.1").expect("trusted");
        let status = running.manager.status();
        assert!(status.iter().all(|one| one.issuer == "edge internal CA"), "{status:?}");
        running.stop().await;
        let running = rig.try_run(&config).expect("started");
        let again = running.manager.status();
        assert_eq!(lasting(again), lasting(status));
        assert_eq!(rig.ca.orders.get(), 0);
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_keeps_the_internal_ca_from_issuing_is_told_once_for_each_name_and_then_now_and_again() {
    local(async {
        let rig = rig();
        let closed = rig.storage().join("internal");
        fs::create_dir(rig.storage()).expect("made");
        fs::write(&closed, "in the way").expect("written");
        let (logged, _logging) = Logged::begin();
        let apps = vec![app("api", &["a.test", "b.test", "c.test"], Tls::Internal)];
        let running = rig.try_run(&config(&rig.storage(), apps)).expect("started");
        let told = || {
            let text = logged.text();
            let said = |line: &&str| line.contains("WARN") && line.contains("no certificate was obtained");
            let lines = text.lines().filter(said);
            let (short, whole): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("as said before"));
            (whole.len(), short.len())
        };
        tokio::time::sleep(Duration::from_secs(590)).await;
        assert_eq!(told(), (1, 2), "{}", logged.text());
        assert!(running.error(2).contains(&closed.display().to_string()), "{}", running.error(2));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(told(), (2, 2), "{}", logged.text());
        fs::remove_file(&closed).expect("removed");
        tokio::time::sleep(Duration::from_secs(16)).await;
        running
            .until("all", |r| r.manager.status().iter().all(|one| one.state == CertificateState::Valid))
            .await;
        running.stop().await;
    })
    .await;
}

pub(super) fn write_pair(dir: &Path, ca: &InternalCa, name: &str) -> Tls {
    write_pair_of(now(), dir, ca, name)
}

pub(super) fn write_pair_of(issued: SystemTime, dir: &Path, ca: &InternalCa, name: &str) -> Tls {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let pem = ca.issue(&pattern(name), issued).expect("issued").to_pem();
    fs::write(&cert, &pem).expect("written");
    fs::write(&key, &pem).expect("written");
    Tls::Files { cert, key }
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_served_and_broken_ones_are_not() {
    local(async {
        let rig = rig();
        let tls = write_pair(rig.dir.path(), &rig.ca.ca, "a.example.com");
        let config = config(&rig.storage(), vec![app("shop", &["a.example.com"], tls)]);
        let running = rig.try_run(&config).expect("started");
        let find = |r: &Running| r.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        let first = find(&running);
        fs::write(rig.dir.path().join("key.pem"), "broken").expect("written");
        running.until("complained", |r| !r.error(0).is_empty()).await;
        assert!(Arc::ptr_eq(&first, &find(&running)), "the old one stays");
        write_pair(rig.dir.path(), &rig.ca.ca, "a.example.com");
        running.until("replaced", |r| !Arc::ptr_eq(&first, &find(r))).await;
        assert_eq!(running.state(0), CertificateState::Valid);
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn files_whose_certificate_is_out_of_its_time_are_told_of_once_and_served() {
    local(async {
        let rig = rig();
        let (logged, _logging) = Logged::begin();
        let write = |issued| write_pair_of(issued, rig.dir.path(), &rig.ca.ca, "a.example.com");
        let told = || logged.text().lines().filter(|line| line.contains("clients refuse")).count();
        let begun = now();
        let tls = write(begun - 91 * DAY);
        let config = config(&rig.storage(), vec![app("shop", &["a.example.com", "b.example.com"], tls)]);
        let running = rig.try_run(&config).expect("started");
        let text = logged.text();
        let ended = time::OffsetDateTime::from(begun - DAY).date();
        let file = rig.dir.path().join("cert.pem").display().to_string();
        let said = format!(
            "the certificate {file} has been expired since {ended}: clients refuse it; put a renewed"
        );
        assert!(text.contains("WARN") && text.contains("shop") && text.contains(&said), "{text}");
        assert_eq!(running.state(0), CertificateState::Expired);
        assert!(running.error(0).contains(&said), "{}", running.error(0));
        // Looked at again and again, and told once, though it is two names'.
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(told(), 1, "{}", logged.text());
        write(now() + 10 * DAY);
        running.until("another", |r| r.state(0) == CertificateState::Pending).await;
        assert!(logged.text().contains(&format!("{file} is not valid before ")), "{}", logged.text());
        assert_eq!(told(), 2, "{}", logged.text());
        let found = running.certificates.find(Some(&host("a.example.com")), LOCAL);
        assert!(found.is_some(), "served all the same");
        tokio::time::sleep(10 * DAY).await;
        assert_eq!((running.state(0), running.error(0)), (CertificateState::Valid, String::new()));
        tokio::time::sleep(91 * DAY).await;
        assert_eq!((running.state(0), told()), (CertificateState::Expired, 3), "{}", logged.text());
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_used_at_start_is_an_error_naming_app_and_file() {
    local(async {
        let rig = rig();
        let file = rig.dir.path().join("none.pem");
        let tls = Tls::Files { cert: file.clone(), key: file.clone() };
        let config = config(&rig.storage(), vec![app("shop", &["a.example.com"], tls)]);
        let error = rig.try_run(&config).err().expect("refused").to_string();
        assert!(error.contains("apps.shop.tls") && error.contains(&file.display().to_string()), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_second_edge_serves_what_the_first_obtains_and_takes_over_when_it_is_gone() {
    local(async {
        let rig = rig();
        rig.fail_with(Class::Transient, Reach::Name, None);
        let first = rig.run(&["a.example.com"]);
        let second = rig.run(&["a.example.com"]);
        first.until("failed", |r| !r.error(0).is_empty()).await;
        rig.advance(Duration::from_secs(10)).await;
        first.until("issued", |r| r.state(0) == CertificateState::Valid).await;
        second.until("taken over from disk", |r| r.state(0) == CertificateState::Valid).await;
        assert_eq!(rig.ca.orders.get(), 2, "the first edge's two attempts only");
        first.stop().await;
        rig.advance(Duration::from_secs(61 * 24 * 3600)).await;
        second.until("renewed", |_| rig.ca.orders.get() == 3).await;
        second.until("stored", |r| r.state(0) == CertificateState::Valid).await;
        second.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn another_configuration_orders_what_is_new_forgets_what_is_gone_and_keeps_the_rest() {
    local(async {
        let rig = rig();
        let running = rig.run(&["a.example.org", "b.example.org"]);
        running
            .until("both are valid", |running| {
                (0..2).all(|index| running.state(index) == CertificateState::Valid)
            })
            .await;
        let served = |name: &str| running.certificates.find(Some(&host(name)), LOCAL);
        let before = served("b.example.org").expect("served");
        let apps = vec![
            app("new", &["c.example.org"], Tls::Acme),
            app("api", &["b.example.org"], Tls::Acme),
            app("own", &["d.example.org"], Tls::Internal),
        ];
        let next = Arc::new(config(&rig.storage(), apps));
        let prepared = running.manager.prepare(next).await.expect("runs").expect("prepared");
        assert!(served("a.example.org").is_some(), "nothing changes before it is adopted");
        running.manager.adopt(prepared).await;
        assert!(served("a.example.org").is_none());
        assert!(served("d.example.org").is_some(), "edge's own CA issues at once");
        assert!(Arc::ptr_eq(&served("b.example.org").expect("served"), &before), "replaced for nothing");
        running.until("the new one is valid", |running| running.state(0) == CertificateState::Valid).await;
        assert_eq!(rig.ca.orders.get(), 3);
        let names: Vec<_> = running.manager.status().into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["c.example.org", "b.example.org", "d.example.org"]);
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_dies_frees_its_place_and_is_made_again() {
    local(async {
        let rig = rig();
        rig.ca.deaths.set(5);
        let names: Vec<String> = (0..6).map(|n| format!("n{n}.example.com")).collect();
        let running = rig.run(&names.iter().map(String::as_str).collect::<Vec<_>>());
        running
            .until("all", |r| r.manager.status().iter().all(|one| one.state == CertificateState::Valid))
            .await;
        assert_eq!(rig.ca.orders.get(), 11);
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_name_that_is_gone_or_held_is_told() {
    local(async {
        let rig = rig();
        rig.ca.takes.set(Duration::from_secs(30));
        let running = rig.run(&["a.example.com", "b.example.com"]);
        let without = config(&rig.storage(), vec![app("api", &["b.example.com"], Tls::Acme)]);
        let reloaded = async {
            let prepared = running.manager.prepare(Arc::new(without)).await.expect("runs").expect("prepared");
            running.manager.adopt(prepared).await;
        };
        let renewed = running.manager.renew("a.example.com");
        let (renewed, ()) =
            tokio::time::timeout(Duration::from_secs(3600), futures_util::future::join(renewed, reloaded))
                .await
                .expect("told of the name that is gone");
        assert!(renewed.expect_err("gone").contains("no longer"), "says so");

        running.until("valid", |r| r.state(0) == CertificateState::Valid).await;
        running.stop().await;
        let names: Vec<String> = (0..6).map(|n| format!("n{n}.example.com")).collect();
        let running = rig.run(&names.iter().map(String::as_str).collect::<Vec<_>>());
        rig.fail_with(Class::Limited, Reach::Account, Some(Duration::from_secs(7200)));
        // Four are on their way, so this one waits until the account is told to.
        let held = running.manager.renew("n5.example.com");
        let held = tokio::time::timeout(Duration::from_secs(3600), held).await.expect("told that it is held");
        assert!(held.expect_err("held").contains("said no"), "says why");
        running.stop().await;
    })
    .await;
}
