//! Issuance by a CA edge does not control.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::ca::pebble::{Pebble, Terms};
use super::knot::Knot;
use super::lab::{HOUR, Logged, MINUTE, Running, answer_http01, answer_tls, local, pass, start, valid};
use super::setup::{LOCAL, SetClock, app, config, host, lasting, pattern, provider, trusted};
use crate::cert::ca_id::CaId;
use crate::cert::challenge::Challenges;
use crate::cert::self_check::SelfCheck;
use crate::cert::store::{CertStore, DirStore};
use crate::clock::Clock;
use crate::config::model::{ChallengeKind, Config, Eab, KeyType, Tls};
use crate::scope::Scope;
use crate::telemetry::status::CertificateState;

struct Rig {
    pebble: Pebble,
    challenges: Arc<Challenges>,
    clock: Arc<SetClock>,
    storage: tempfile::TempDir,
    port: u16,
    http: Scope,
}

impl Rig {
    async fn start(terms: impl FnOnce(Terms) -> Terms) -> Self {
        let challenges = Challenges::new();
        let http = Scope::new();
        let port = answer_http01(Arc::clone(&challenges), &http).await;
        let tls = answer_tls(Arc::clone(&challenges), &http).await;
        let pebble = terms(Terms::at(port).tls(tls)).start().await;
        let storage = tempfile::tempdir().expect("temporary directory");
        Self { pebble, challenges, clock: SetClock::new(), storage, port, http }
    }

    fn config(&self, domains: &[&str]) -> Config {
        let mut config = config(&self.storage.path().join("store"), vec![app("api", domains, Tls::Acme)]);
        config.acme.directory = self.pebble.directory();
        config.acme.ca_root = trusted(&self.pebble.root());
        config.acme.email = Some("ops@example.com".to_owned());
        config
    }

    fn run(&self, domains: &[&str]) -> Running {
        self.run_with(&self.config(domains))
    }

    fn run_with(&self, config: &Config) -> Running {
        start(config, &self.clock, &self.challenges, None)
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
        let running = rig.run(&["a.example.com", "b.example.com"]);
        let reason = running.certificates.pending(&host("a.example.com")).expect("pending");
        assert!(reason.contains("a.example.com"), "{reason}");
        running.until_valid().await;
        let first = running.manager.status();
        assert!(first[0].issuer.contains("Pebble"), "{first:?}");
        assert!(running.certificates.find(Some(&host("b.example.com")), LOCAL).is_some());
        assert_eq!(running.certificates.pending(&host("a.example.com")), None);
        running.stop().await;

        rig.pebble.stop();
        // A machine that stands still can only add to what a start takes: the best of some tells.
        let (mut running, mut took) = (None, Duration::MAX);
        for _ in 0..3 {
            if let Some(slow) = running.take() {
                Running::stop(slow).await;
            }
            let begun = Instant::now();
            running = Some(rig.run(&["a.example.com", "b.example.com"]));
            took = took.min(begun.elapsed());
            if took < Duration::from_millis(300) {
                break;
            }
        }
        assert!(took < Duration::from_millis(300), "{took:?}");
        let running = running.expect("the last start");
        assert!(running.certificates.find(Some(&host("a.example.com")), LOCAL).is_some());
        assert_eq!(lasting(running.manager.status()), lasting(first), "the chosen moment of renewal is kept");
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn refused_nonces_cost_no_attempt() {
    for share in ["15", "90"] {
        local(async {
            let rig = Rig::start(|terms| terms.environment("PEBBLE_WFE_NONCEREJECT", share)).await;
            let begun = Instant::now();
            let running = rig.run(&["a.example.com"]);
            running
                .until("issued", |all| {
                    assert_eq!(all[0].last_error, None, "counted as a failure");
                    valid(all)
                })
                .await;
            let took = begun.elapsed();
            println!("figure: with {share} % of the nonces refused a certificate takes {took:?}");
            assert!(took <= MINUTE, "{took:?}");
            assert_eq!(rig.pebble.orders(), 1);
            running.stop().await;
            rig.stop().await;
        })
        .await;
    }
}

#[tokio::test]
async fn over_an_authorization_that_is_still_valid_nothing_is_proven_again() {
    local(async {
        let rig = Rig::start(|terms| terms.environment("PEBBLE_AUTHZREUSE", "100")).await;
        let running = rig.run(&["a.example.com"]);
        running.until_valid().await;
        let asked = rig.pebble.said("Attempting to validate");
        let told = rig.pebble.said("POST /chalZ/");
        assert!(asked > 0 && told > 0, "the first is proven: {}", rig.pebble.log());
        running.manager.renew("a.example.com").await.expect("renewed");
        assert_eq!(rig.pebble.said("Attempting to validate"), asked, "nothing was validated");
        assert_eq!(rig.pebble.said("POST /chalZ/"), told, "the CA was told of no answer");
        assert_eq!((rig.pebble.orders(), rig.pebble.issued()), (2, 2));
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn names_of_five_and_of_two_hundred_characters_are_proven_by_handshakes() {
    local(async {
        // Answers of Pebble's mock DNS repeat a name in full, and do not fit beyond 170 characters.
        let everything = "$ORIGIN .\n$TTL 60\n@ SOA ns root 1 60 60 3600 60\n@ NS ns\n* A 127.0.0.1\n";
        let knot = Knot::serving(".", everything).await;
        let rig = Rig::start(|terms| terms.resolver(knot.port())).await;
        let long = format!("{}.example.com", ["a".repeat(63), "b".repeat(63), "c".repeat(60)].join("."));
        assert_eq!(("a.dev".len(), long.len()), (5, 200));
        let mut config = rig.config(&["a.dev", &long]);
        config.acme.challenges = vec![ChallengeKind::TlsAlpn01];
        let running = rig.run_with(&config);
        running.until_valid().await;
        assert_eq!(rig.pebble.said("set VALID by completed challenge"), 2, "{}", rig.pebble.log());
        for name in ["a.dev", &long] {
            assert!(running.certificates.find(Some(&host(name)), LOCAL).is_some(), "{name}");
        }
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
        let running = rig.run(&["a.example.com"]);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        let error = running.error(0);
        assert!(error.contains("404") && error.contains("a.example.com"), "{error}");
        assert_eq!(running.status(0).state, CertificateState::Retrying);
        assert!(running.status(0).next_attempt.is_some());
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
        let running = rig.run(&["a.example.com"]);
        running.until_valid().await;
        running.stop().await;
        let ca = CaId::of(&rig.pebble.directory());
        let record = rig.storage.path().join(format!("store/accounts/{}/account.json", ca.as_str()));
        let key = || {
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&record).expect("read")).expect("JSON");
            record["key_pkcs8"].clone()
        };
        let before = key();
        rig.pebble.restart().await;
        let running = rig.run(&["a.example.com", "b.example.com"]);
        running
            .until("issued", |all| {
                assert!(all.iter().all(|one| one.last_error.is_none()), "{all:?}");
                valid(all)
            })
            .await;
        assert_eq!(key(), before, "the same key");
        assert_eq!(rig.pebble.accounts(), 1, "registered once");
        assert_eq!((rig.pebble.orders(), rig.pebble.issued()), (1, 1));
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
            let running = rig.run_with(&config);
            running.until_valid().await;
            let store = DirStore::open(&rig.storage.path().join("store"), provider()).expect("opened");
            let bundle =
                store.load(&CaId::of(&rig.pebble.directory()), &pattern(name)).bundle.expect("stored");
            let public = bundle.certified().key.public_key().expect("known");
            assert_eq!(public.len(), length, "{key_type:?}");
            running.stop().await;
        }
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_refused_name_is_parked_and_asked_for_once_a_day() {
    local(async {
        let list = json!(["blocked.example.com"]);
        // Nonces that are refused would be counted as well.
        let rig =
            Rig::start(|terms| terms.key("domainBlocklist", list).environment("PEBBLE_WFE_NONCEREJECT", "0"))
                .await;
        let running = rig.run(&["a.blocked.example.com", "b.example.com"]);
        running.until("parked", |all| all[0].state == CertificateState::Parked && valid(&all[1..])).await;
        assert!(running.error(0).contains("a.blocked.example.com"), "{}", running.error(0));
        let asked = |rig: &Rig| rig.pebble.said("POST /order-plz");
        let (orders, begun) = (asked(&rig), rig.clock.now());
        assert_eq!(orders, 2, "one for each name");
        for _ in 0..47 {
            pass(HOUR / 2).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(rig.clock.now() >= begun + 23 * HOUR);
        assert_eq!(asked(&rig), orders, "asked again within the day");
        assert_eq!(running.status(0).state, CertificateState::Parked);
        let at =
            |moment: Option<String>| OffsetDateTime::parse(&moment.expect("told"), &Rfc3339).expect("a date");
        let status = running.status(0);
        let wait = at(status.next_attempt) - at(status.last_failure);
        assert!((24..=29).contains(&wait.whole_hours()), "once a day: {wait}");
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

static RESOLVES: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_name_that_does_not_resolve_costs_few_attempts_and_is_obtained_soon_after_it_does() {
    local(async {
        let rig = Rig::start(|terms| terms).await;
        rig.pebble.resolve("/set-servfail", json!({"host": "a.example.com"})).await;
        let look = SelfCheck::with(
            Arc::clone(&rig.challenges),
            |_| {
                Box::pin(async {
                    match RESOLVES.load(Ordering::SeqCst) {
                        true => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
                        false => Err(io::Error::other("Temporary failure in name resolution")),
                    }
                })
            },
            rig.port,
        );
        let running = start(&rig.config(&["a.example.com"]), &rig.clock, &rig.challenges, Some(look));
        running.until("seen", |all| all[0].last_error.is_some()).await;
        assert!(running.error(0).contains("DNS"), "{}", running.error(0));
        assert_eq!(rig.pebble.said("POST /"), 0, "nothing was sent to the CA");
        for _ in 0..90 {
            pass(Duration::from_secs(1)).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = rig.pebble.orders();
        assert!(before <= 2, "{before} attempts");
        rig.pebble.resolve("/clear-servfail", json!({"host": "a.example.com"})).await;
        RESOLVES.store(true, Ordering::SeqCst);
        let healed = rig.clock.now();
        // Once the CA is asked, time goes no faster than it.
        let asked = rig.pebble.said("POST /order-plz");
        while rig.pebble.said("POST /order-plz") == asked {
            pass(Duration::from_millis(500)).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let took = rig.clock.now().duration_since(healed).expect("later");
            assert!(took <= Duration::from_secs(180), "{:?}", running.manager.status());
        }
        running.until_valid().await;
        let took = rig.clock.now().duration_since(healed).expect("later");
        println!("figure: {before} attempts before DNS healed, issued {took:?} after");
        assert!(took <= Duration::from_secs(70), "{took:?}");
        running.stop().await;
        rig.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_binding_is_asked_for_by_its_key_and_used_after_a_reload() {
    local(async {
        let secret = b"sesame-sesame-sesame-sesame-1234";
        let told = json!({"kid-1": BASE64_URL_SAFE_NO_PAD.encode(secret)});
        let rig = Rig::start(|terms| {
            terms.key("externalAccountBindingRequired", json!(true)).key("externalAccountMACKeys", told)
        })
        .await;
        let (logged, _logging) = Logged::begin();
        let with = |key: &[u8]| {
            let mut config = rig.config(&["a.example.com"]);
            config.acme.eab = Some(Eab { kid: "kid-1".to_owned(), hmac_key: key.to_vec() });
            assert!(!format!("{config:?}").contains("sesame"));
            config
        };
        let running = rig.run(&["a.example.com"]);
        running.until("parked", |all| all[0].state == CertificateState::Parked).await;
        let missing = running.error(0);
        assert!(missing.contains("acme.eab"), "{missing}");
        running.reload(with(b"wrong-wrong-wrong-wrong-wrong-12")).await;
        let refused = |error: &String| *error != missing;
        running.until("refused", |all| all[0].last_error.as_ref().is_some_and(refused)).await;
        assert!(running.error(0).contains("acme.eab"), "{}", running.error(0));
        assert_eq!(running.status(0).state, CertificateState::Parked);
        running.reload(with(secret)).await;
        running.until_valid().await;
        assert_eq!((rig.pebble.accounts(), rig.pebble.orders()), (1, 1));
        let text = logged.text();
        assert!(text.contains("kid-1") || text.contains("registered"), "something is logged");
        for form in ["sesame", &BASE64_URL_SAFE_NO_PAD.encode(secret), "wrong-wrong"] {
            assert!(!text.contains(form), "a secret is logged");
        }
        running.stop().await;
        rig.stop().await;
    })
    .await;
}
