//! Issuance by a CA edge does not control.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ca::pebble::{Pebble, Terms};
use super::lab::{answer_http01, local};
use super::setup::{LOCAL, app, config, host, pattern, provider};
use crate::cert::challenge::Challenges;
use crate::cert::manager::{self, Manager};
use crate::cert::resolver::Certificates;
use crate::cert::store::{CaId, CertStore, DirStore};
use crate::clock::SystemClock;
use crate::config::model::{Config, KeyType, Tls};
use crate::scope::Scope;
use crate::telemetry::status::{CertificateState, CertificateStatus};

struct Running {
    scope: Scope,
    manager: Manager,
    certificates: Arc<Certificates>,
}

fn run(config: &Arc<Config>, challenges: &Arc<Challenges>) -> Running {
    let scope = Scope::new();
    let certificates = Certificates::new();
    let manager = manager::start(
        config,
        Arc::new(SystemClock),
        Arc::clone(&certificates),
        Arc::clone(challenges),
        &scope,
    )
    .expect("started");
    Running { scope, manager, certificates }
}

impl Running {
    async fn until(
        &self,
        what: &str,
        mut holds: impl FnMut(&[CertificateStatus]) -> bool,
    ) -> Vec<CertificateStatus> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let status = self.manager.status();
            if holds(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "not in time: {what}: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_valid(&self) -> Vec<CertificateStatus> {
        self.until("valid", |all| all.iter().all(|one| one.state == CertificateState::Valid)).await
    }

    async fn stop(self) {
        assert!(self.scope.close(Duration::from_secs(20)).await, "it drains by itself");
    }
}

struct Rig {
    pebble: Pebble,
    challenges: Arc<Challenges>,
    storage: tempfile::TempDir,
    http: Scope,
}

impl Rig {
    async fn start(terms: impl FnOnce(Terms) -> Terms) -> Self {
        let challenges = Challenges::new();
        let http = Scope::new();
        let port = answer_http01(Arc::clone(&challenges), &http).await;
        let pebble = terms(Terms::at(port)).start().await;
        Self { pebble, challenges, storage: tempfile::tempdir().expect("temporary directory"), http }
    }

    fn config(&self, domains: &[&str]) -> Config {
        let mut config = config(&self.storage.path().join("store"), vec![app("api", domains, Tls::Acme)]);
        config.acme.directory = self.pebble.directory();
        config.acme.ca_root = Some(self.pebble.root());
        config.acme.email = Some("ops@example.com".to_owned());
        config
    }

    async fn stop(self) {
        self.http.abort();
        self.http.close(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn names_are_issued_at_a_cold_start_and_served_at_once_after_a_restart_without_the_ca() {
    local(async {
        let mut rig = Rig::start(|terms| terms).await;
        let config = Arc::new(rig.config(&["a.example.com", "b.example.com"]));
        let running = run(&config, &rig.challenges);
        let reason = running.certificates.pending(&host("a.example.com")).expect("pending");
        assert!(reason.contains("a.example.com"), "{reason}");
        let first = running.until_valid().await;
        assert!(first[0].issuer.contains("Pebble"), "{first:?}");
        assert!(running.certificates.find(Some(&host("b.example.com")), LOCAL).is_some());
        assert_eq!(running.certificates.pending(&host("a.example.com")), None);
        running.stop().await;

        rig.pebble.stop();
        let begun = Instant::now();
        let running = run(&config, &rig.challenges);
        assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
        assert!(running.certificates.find(Some(&host("a.example.com")), LOCAL).is_some());
        assert_eq!(running.manager.status(), first, "the chosen moment of renewal is kept");
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_of_seconds_is_renewed_before_it_ends() {
    local(async {
        let rig = Rig::start(|terms| {
            terms.validity(Duration::from_secs(10)).environment("PEBBLE_AUTHZREUSE", "100")
        })
        .await;
        let running = run(&Arc::new(rig.config(&["a.example.com"])), &rig.challenges);
        let first = running.until_valid().await;
        let mut expired = false;
        running
            .until("renewed twice", |all| {
                expired |= all[0].state == CertificateState::Expired;
                all[0].not_after > first[0].not_after
            })
            .await;
        assert!(!expired);
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn refused_nonces_cost_no_attempt() {
    local(async {
        let rig = Rig::start(|terms| terms.environment("PEBBLE_WFE_NONCEREJECT", "70")).await;
        let running = run(&Arc::new(rig.config(&["a.example.com"])), &rig.challenges);
        running
            .until("issued", |all| {
                assert_eq!(all[0].last_error, None);
                all[0].state == CertificateState::Valid
            })
            .await;
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_says_what_the_ca_saw_and_is_tried_again() {
    local(async {
        let mut rig = Rig::start(|terms| terms).await;
        // The CA asks a port that answers 404: what the manager publishes goes nowhere.
        rig.challenges = Challenges::new();
        let running = run(&Arc::new(rig.config(&["a.example.com"])), &rig.challenges);
        let status = running.until("failed", |all| all[0].last_error.is_some()).await;
        let error = status[0].last_error.as_deref().expect("an error");
        assert!(error.contains("404") && error.contains("a.example.com"), "{error}");
        assert_eq!(status[0].state, CertificateState::Retrying);
        assert!(status[0].next_attempt.is_some());
        let page = running.certificates.pending(&host("a.example.com")).expect("pending");
        assert!(page.contains("404") && page.contains("Next try"), "{page}");
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_ca_that_forgot_the_account_gets_the_same_key_again() {
    local(async {
        let mut rig = Rig::start(|terms| terms).await;
        let running = run(&Arc::new(rig.config(&["a.example.com"])), &rig.challenges);
        running.until_valid().await;
        running.stop().await;
        rig.pebble.restart().await;
        let running = run(&Arc::new(rig.config(&["a.example.com", "b.example.com"])), &rig.challenges);
        running
            .until("issued", |all| {
                assert!(all.iter().all(|one| one.last_error.is_none()), "{all:?}");
                all.iter().all(|one| one.state == CertificateState::Valid)
            })
            .await;
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn every_key_type_is_accepted() {
    local(async {
        let rig = Rig::start(|terms| terms).await;
        // Lengths of a public key of each kind in DER.
        for (key_type, name, length) in
            [(KeyType::P384, "p384.example.com", 120), (KeyType::Rsa2048, "rsa.example.com", 294)]
        {
            let mut config = rig.config(&[name]);
            config.acme.key_type = key_type;
            let running = run(&Arc::new(config), &rig.challenges);
            running.until_valid().await;
            let store = DirStore::open(&rig.storage.path().join("store"), provider()).expect("opened");
            // It is served before it is stored: a full disk must not keep it from being served.
            let ca = CaId::of(&rig.pebble.directory());
            let stored = || store.load(&ca, &pattern(name)).bundle;
            running.until("stored", |_| stored().is_some()).await;
            let bundle = stored().expect("just seen");
            let public = bundle.certified().key.public_key().expect("known");
            assert_eq!(public.len(), length, "{key_type:?}");
            running.stop().await;
        }
        rig.stop().await;
    })
    .await;
}
