//! Files of the operator: what is told of them, and when they are read again.

use std::fs;
use std::sync::Arc;

use rcgen::{CertificateParams, CustomExtension, Issuer, KeyPair};

use super::fakes::rig;
use super::lab::{Logged, local};
use super::manager::{DAY, write_pair, write_pair_of};
use super::setup::{LOCAL, app, config, host, now, provider};
use crate::cert::internal::InternalCa;
use crate::cert::store_error::StoreError;
use crate::clock::Clock;
use crate::config::model::{App, ClientAuth, ClientAuthMode, Tls};
use crate::telemetry::status::CertificateState;

#[tokio::test(start_paused = true)]
async fn what_clients_may_dislike_about_a_file_is_told_at_the_start_and_when_it_changes() {
    local(async {
        let rig = rig();
        let dir = rig.dir.path();
        let tls = write_pair(dir, &rig.ca.ca, "a.example.com");
        let (logged, _logging) = Logged::begin();
        let apps = vec![app("api", &["a.example.com"], tls)];
        let running = rig.try_run(&config(&rig.storage(), apps)).expect("started");
        let told = |words: &str| logged.lines(words);
        for words in ["does not name", "may refuse", "whole chain", "must-staple"] {
            assert_eq!(told(words), 0, "{}", logged.text());
        }
        let key = KeyPair::generate().expect("a key");
        let (of_ca, ca) = (KeyPair::generate().expect("a key"), CertificateParams::default());
        let ca = Issuer::new(ca, of_ca);
        let mut params = CertificateParams::new(vec!["b.example.com".to_owned()]).expect("a name");
        // A sequence of the one feature that asks for a status.
        let feature =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]);
        params.custom_extensions = vec![feature];
        let leaf = params.signed_by(&key, &ca).expect("signed").pem();
        let stranger = fs::read_to_string(rig.ca.ca.root_file()).expect("read");
        let fill = |pem: String| {
            fs::write(dir.join("cert.pem"), pem).expect("written");
            fs::write(dir.join("key.pem"), key.serialize_pem()).expect("written");
        };
        fill(leaf.clone());
        assert!(running.manager.look_at_files().await.changed);
        fill(format!("{leaf}{stranger}"));
        assert!(running.manager.look_at_files().await.changed);
        for (words, times) in
            [("does not name", 2), ("may refuse", 1), ("whole chain", 1), ("must-staple", 2)]
        {
            assert_eq!(told(words), times, "{words}: {}", logged.text());
        }
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn files_that_could_not_be_read_are_read_as_soon_as_they_can_be() {
    local(async {
        let rig = rig();
        let dir = rig.dir.path();
        let tls = write_pair(dir, &rig.ca.ca, "a.example.com");
        let running =
            rig.try_run(&config(&rig.storage(), vec![app("api", &["a.example.com"], tls)])).expect("started");
        let first = running.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        let (logged, _logging) = Logged::begin();
        // As after a renewal whose files edge may not read, until somebody sets that right: the files stay the same.
        write_pair(dir, &rig.ca.ca, "a.example.com");
        let pem = dir.join("key.pem");
        let good = fs::read(&pem).expect("read");
        let when = fs::metadata(&pem).expect("there").modified().expect("known");
        let fill = |content: &[u8]| {
            fs::write(&pem, content).expect("written");
            let file = fs::File::options().write(true).open(&pem).expect("opened");
            file.set_modified(when).expect("set");
        };
        fill(&vec![b'x'; good.len()]);
        for _ in 0..3 {
            assert_eq!(running.manager.look_at_files().await.unusable.len(), 1);
        }
        assert_eq!(logged.lines("keeping the old ones"), 1, "{}", logged.text());
        fill(&good);
        let looked = running.manager.look_at_files().await;
        assert!(looked.changed && looked.unusable.is_empty(), "{looked:?}");
        let second = running.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        assert!(!Arc::ptr_eq(&first, &second), "the new one is served");
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_ca_of_clients_that_could_not_be_read_is_read_as_soon_as_it_can_be() {
    local(async {
        let rig = rig();
        let dir = rig.dir.path();
        let (ca, other) = (dir.join("clients.pem"), dir.join("other"));
        let other = InternalCa::open(&other, provider(), now()).expect("made");
        fs::copy(rig.ca.ca.root_file(), &ca).expect("copied");
        let mut named =
            App::clone(&app("api", &["a.example.com"], write_pair(dir, &rig.ca.ca, "a.example.com")));
        named.client_auth = Some(ClientAuth { ca: ca.clone(), mode: ClientAuthMode::Require });
        let running = rig.try_run(&config(&rig.storage(), vec![Arc::new(named)])).expect("started");
        let good = fs::read(other.root_file()).expect("read");
        let when = fs::metadata(&ca).expect("there").modified().expect("known");
        let fill = |content: &[u8]| {
            fs::write(&ca, content).expect("written");
            fs::File::options().write(true).open(&ca).expect("opened").set_modified(when).expect("set");
        };
        let (logged, _logging) = Logged::begin();
        fill(&vec![b'x'; good.len() + 1]);
        for _ in 0..3 {
            assert_eq!(running.manager.look_at_files().await.unusable.len(), 1);
        }
        assert_eq!(logged.lines("keeping the old one"), 1, "{}", logged.text());
        fill(&[good.as_slice(), b"\n"].concat());
        let looked = running.manager.look_at_files().await;
        assert!(looked.changed && looked.unusable.is_empty(), "{looked:?}");
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn all_files_that_cannot_be_used_are_told_at_once_by_a_start_and_by_a_reload() {
    local(async {
        let rig = rig();
        let dir = rig.dir.path();
        let good = app("api", &["a.example.com"], write_pair(dir, &rig.ca.ca, "a.example.com"));
        let none = |file: &str| Tls::Files { cert: dir.join(file), key: dir.join(file) };
        let mut clients = App::clone(&app("clients", &["d.example.com"], Tls::Internal));
        clients.client_auth = Some(ClientAuth { ca: dir.join("no-ca.pem"), mode: ClientAuthMode::Require });
        let wrong = vec![
            app("one", &["b.example.com", "b.example.org"], none("one.pem")),
            app("two", &["c.example.com"], none("two.pem")),
            Arc::new(clients),
        ];
        let wrong = config(&rig.storage(), [vec![Arc::clone(&good)], wrong].concat());
        let check = |error: &StoreError| {
            let text = error.to_string();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 3, "each once: {text}");
            for wanted in ["apps.one.tls: ", "apps.two.tls: ", "apps.clients.client_auth.ca: "] {
                assert!(lines.iter().any(|line| line.starts_with(wanted)), "{wanted}: {text}");
            }
            assert!(error.is_of_a_configured_file());
        };
        check(&rig.try_run(&wrong).err().expect("refused"));
        let running = rig.try_run(&config(&rig.storage(), vec![good])).expect("started");
        check(&running.manager.prepare(Arc::new(wrong)).await.expect("runs").err().expect("refused"));
        assert!(running.certificates.find(Some(&host("a.example.com")), LOCAL).is_some());
        running.stop().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_file_whose_certificate_is_not_valid_yet_does_not_take_the_place_of_one_that_is() {
    local(async {
        let rig = rig();
        let dir = rig.dir.path();
        let write = |issued| write_pair_of(issued, dir, &rig.ca.ca, "a.example.com");
        let apps = vec![app("shop", &["a.example.com"], write(now()))];
        let running = rig.try_run(&config(&rig.storage(), apps)).expect("started");
        let served = || running.certificates.find(Some(&host("a.example.com")), LOCAL).expect("served");
        let first = served();
        let (logged, _logging) = Logged::begin();

        write(now() + 10 * DAY);
        for _ in 0..3 {
            let looked = running.manager.look_at_files().await;
            assert!(!looked.changed && looked.unusable.is_empty(), "{looked:?}");
            assert!(
                looked.early.len() == 1 && looked.early[0].contains("is not valid before "),
                "{looked:?}"
            );
        }
        assert!(Arc::ptr_eq(&first, &served()), "clients would refuse the other");
        assert_eq!(logged.lines("is not valid before "), 1, "{}", logged.text());
        assert_eq!(running.state(0), CertificateState::Valid);
        assert!(running.error(0).contains("the one before it is served until then"), "{}", running.error(0));
        tokio::time::sleep(10 * DAY).await;
        running.until("its time has come", |_| !Arc::ptr_eq(&first, &served())).await;
        assert_eq!((running.state(0), running.error(0)), (CertificateState::Valid, String::new()));

        // Of a configuration that names other files, the same; there the old one ends before.
        let other = dir.join("other");
        fs::create_dir(&other).expect("made");
        let tls = write_pair_of(rig.clock.now() + 100 * DAY, &other, &rig.ca.ca, "a.example.com");
        let second = served();
        let moved = config(&rig.storage(), vec![app("shop", &["a.example.com"], tls)]);
        let prepared = running.manager.prepare(Arc::new(moved)).await.expect("runs").expect("prepared");
        running.manager.adopt(prepared).await;
        let found = running.manager.status().remove(0);
        assert_eq!(found.state, CertificateState::Valid, "{found:?}");
        tokio::time::sleep(91 * DAY).await;
        running.until("the old one has ended", |r| r.state(0) == CertificateState::Pending).await;
        assert!(!Arc::ptr_eq(&second, &served()));
        running.stop().await;
    })
    .await;
}
