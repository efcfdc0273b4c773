//! Names proven by records in DNS: published, seen, removed, whatever goes wrong in between.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::ca::pebble::Terms;
use super::ca::stub::{Fault, ISSUER, Step};
use super::knot::Knot;
use super::lab::{Lab, Logged, Running, local, valid};
use super::setup::{LOCAL, app, host, trusted};
use super::zone::Zone;
use crate::cert::dns_ask::ask;
use crate::cert::dns_message::{About, name};
use crate::cert::dns_zone::Resolvers;
use crate::config::model::{ChallengeKind, Config, Publish, Tls, Update, UpdateAlgorithm, UpdateKey};
use crate::name::HostName;
use crate::telemetry::status::CertificateState;

const SECOND: Duration = Duration::from_secs(1);
const CHALLENGE: &str = "_acme-challenge.a.example.com";

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A configuration whose records are published by `zone`'s program and looked for at `zone`.
pub(super) fn config(lab: &Lab, zone: &Zone, domains: &[&str], first: &str) -> Config {
    let mut config = lab.config(domains);
    config.acme.dns.publish = Some(Publish::Exec { program: zone.hook(first), arguments: Vec::new() });
    config.acme.dns.resolvers = vec![at(zone.port())];
    config.acme.dns.name_servers = vec![at(zone.port())];
    lab.stub.books().dns = zone.port();
    *lab.at_work.borrow_mut() = Zone::at_work();
    config
}

/// Waits until no record and no note of one is left.
async fn until_clean(lab: &Lab, zone: &Zone, name: &str) {
    let notes = lab.storage.path().join("store/dns");
    for _ in 0..4000 {
        let noted = std::fs::read_dir(&notes).map_or(0, Iterator::count);
        if zone.texts(name).is_empty() && noted == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("left behind: {:?}, calls {:?}", zone.texts(name), zone.calls());
}

#[tokio::test]
async fn a_wildcard_and_its_apex_are_proven_by_records_of_one_name_and_nothing_is_left() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let config = config(&lab, &zone, &["*.a.example.com", "a.example.com"], ":");
        assert_eq!(config.acme.challenges.first(), Some(&ChallengeKind::Http01), "dns-01 is not listed");
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        let served = |name: &str| running.certificates.find(Some(&host(name)), LOCAL).is_some();
        assert!(served("x.a.example.com") && served("a.example.com") && !served("x.y.a.example.com"));
        let told: Vec<_> = lab.stub.orders().into_iter().map(|order| (order.name, order.told)).collect();
        assert!(told.contains(&("*.a.example.com".to_owned(), "dns-01".to_owned())), "{told:?}");
        assert!(told.contains(&("a.example.com".to_owned(), "http-01".to_owned())), "{told:?}");
        until_clean(&lab, &zone, CHALLENGE).await;
        running.stop().await;
        // The stored one is found again.
        let running = lab.run_with(&config, None);
        assert!(valid(&running.manager.status()), "{:?}", running.manager.status());
        assert_eq!(lab.stub.books().issued, 2);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn two_orders_at_once_keep_each_others_record() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let mut config = config(&lab, &zone, &["*.a.example.com", "a.example.com"], ":");
        config.acme.challenges = vec![ChallengeKind::Dns01];
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        until_clean(&lab, &zone, CHALLENGE).await;
        let presented = zone.calls().iter().filter(|call| call.starts_with("present")).count();
        assert_eq!(presented, 2, "{:?}", zone.calls());
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_program_that_fails_or_hangs_is_a_failure_with_its_words_and_the_ca_hears_nothing() {
    local(async {
        for (first, told) in [
            ("echo 'no such zone' >&2; exit 3", "exit status 3: no such zone"),
            (
                "echo waiting >&2; sleep 1000",
                "did not end within 2 s (`acme.dns.timeout`) and was killed: waiting",
            ),
        ] {
            let (lab, zone) = (Lab::open().await, Zone::start());
            let mut config = config(&lab, &zone, &["*.a.example.com"], first);
            config.acme.dns.timeout = 2 * SECOND;
            let running = lab.run_with(&config, None);
            running.until("failed", |all| all[0].last_error.is_some()).await;
            let error = running.error(0);
            assert!(error.contains(told) && error.contains("Nothing was sent to the CA"), "{error}");
            assert_eq!(running.status(0).state, CertificateState::Retrying);
            assert!(running.status(0).next_attempt.is_some());
            assert_eq!(lab.stub.asked(Step::Challenge), 0);
            // It is repaired: the same order goes on after its wait, and not before.
            zone.hook(":");
            lab.pass_until(&running, 10 * SECOND, valid).await;
            assert_eq!(lab.stub.orders().len(), 1);
            until_clean(&lab, &zone, CHALLENGE).await;
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_record_that_never_shows_is_a_failure_that_names_the_server_and_is_removed() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let mut config = config(&lab, &zone, &["*.a.example.com"], ":");
        config.acme.dns.propagation = 2 * SECOND;
        zone.hide(true);
        let running = lab.run_with(&config, None);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        let error = running.error(0);
        let server = format!("the name server {} does not have it", at(zone.port()));
        assert!(
            error.contains(&server) && error.contains(CHALLENGE) && error.contains("after 2 s"),
            "{error}"
        );
        assert!(zone.asked() > 1, "it was looked for once");
        assert_eq!(lab.stub.asked(Step::Challenge), 0);
        until_clean(&lab, &zone, CHALLENGE).await;
        zone.hide(false);
        lab.pass_until(&running, 10 * SECOND, valid).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_validation_that_fails_is_told_by_the_record_and_its_record_is_removed() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        // The CA asks somebody else.
        let elsewhere = Zone::start();
        let config = config(&lab, &zone, &["*.a.example.com"], ":");
        lab.stub.books().dns = elsewhere.port();
        let running = lab.run_with(&config, None);
        running.until("failed", |all| all[0].last_error.is_some()).await;
        let error = running.error(0);
        assert!(error.contains("does not see the TXT record _acme-challenge.a.example.com"), "{error}");
        assert!(error.contains("No TXT record found"), "{error}");
        until_clean(&lab, &zone, CHALLENGE).await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn what_a_killed_edge_has_published_is_removed_at_the_next_start() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let config = config(&lab, &zone, &["*.a.example.com"], ":");
        zone.hide(true);
        let running = lab.run_with(&config, None);
        for _ in 0..4000 {
            if zone.texts(CHALLENGE).len() == 1 && zone.asked() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        running.kill().await;
        assert_eq!(zone.texts(CHALLENGE).len(), 1, "it was killed between publishing and removing");
        // Also where nobody wants the name any more.
        let mut other = lab.config(&["b.example.com"]);
        other.acme.dns = config.acme.dns.clone();
        let running = lab.run_with(&other, None);
        until_clean(&lab, &zone, CHALLENGE).await;
        assert_eq!(zone.calls().last().map(String::as_str), Some("cleanup _acme-challenge.a.example.com"));
        running.until_valid().await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn killed_at_any_step_the_next_edge_goes_on_and_leaves_nothing() {
    local(async {
        for step in [Step::Authorization, Step::Challenge, Step::Order, Step::Finalize] {
            let (lab, zone) = (Lab::open().await, Zone::start());
            let config = config(&lab, &zone, &["*.a.example.com"], ":");
            lab.stub.fail(step, Fault::Stall);
            let running = lab.run_with(&config, None);
            lab.until_asked(step, 1).await;
            running.kill().await;
            let running = lab.run_with(&config, None);
            lab.pass_until(&running, 10 * SECOND, valid).await;
            assert_eq!(lab.stub.orders().len(), 1, "{step:?}");
            until_clean(&lab, &zone, CHALLENGE).await;
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_record_that_cannot_be_removed_is_tried_again_and_costs_no_certificate() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let config = config(&lab, &zone, &["*.a.example.com"], "[ $1 = present ] || exit 1");
        let (logged, _logging) = Logged::begin();
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        running.until("not removed", |_| logged.lines("could not be removed") == 1).await;
        assert_eq!(zone.texts(CHALLENGE).len(), 1);
        zone.hook(":");
        lab.pass(61 * SECOND).await;
        until_clean(&lab, &zone, CHALLENGE).await;
        assert!(valid(&running.manager.status()));
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_challenge_that_is_delegated_is_answered_where_it_leads() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        zone.alias(CHALLENGE, "a.proofs.example.org");
        let config = config(&lab, &zone, &["*.a.example.com"], ":");
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        assert!(zone.calls().contains(&"present a.proofs.example.org".to_owned()), "{:?}", zone.calls());
        until_clean(&lab, &zone, "a.proofs.example.org").await;
        running.stop().await;
        lab.close().await;
    })
    .await;
}

#[tokio::test]
async fn cnames_that_go_round_are_said_to_be_so() {
    local(async {
        let zone = Zone::start();
        zone.alias("one.example.com", "two.example.com");
        zone.alias("two.example.com", "one.example.com");
        let resolvers = Resolvers::new(&[at(zone.port())]);
        let error = resolvers.follow(&name("one.example.com").expect("a name")).await.expect_err("a circle");
        assert!(error.contains("one.example.com go round"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn the_zone_and_its_servers_are_found_by_asking() {
    local(async {
        let zone = Zone::start();
        // The first does not answer, which only takes time.
        let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let silent = nobody.local_addr().expect("bound");
        let resolvers = Resolvers::new(&[silent, at(zone.port())]).at_port(5353);
        let found = resolvers.zone(&name(CHALLENGE).expect("a name")).await.expect("found");
        assert_eq!(found, name("example.com").expect("a name"));
        let resolvers = Resolvers::new(&[at(zone.port())]).at_port(5353);
        let servers = resolvers.servers(&found).await.expect("found");
        assert_eq!(servers.len(), 1);
        assert_eq!(servers[0].name, "ns1.example.com");
        assert_eq!(servers[0].addresses, [at(5353)]);
        let many = resolvers.servers(&name("many.example").expect("a name")).await.expect("found");
        assert_eq!(many.len(), 16, "of 40");
    })
    .await;
}

async fn failed(lab: &Lab, running: &Running, with: &str) -> String {
    lab.pass_until(running, 10 * SECOND, |all| {
        all[0].last_error.as_deref().is_some_and(|error| error.contains(with))
    })
    .await;
    running.error(0)
}

#[tokio::test]
async fn a_record_that_stays_is_printed_and_used_once_it_is_there() {
    local(async {
        for (domain, policy) in [("a.example.com", ""), ("*.a.example.com", "; policy=wildcard")] {
            let (lab, zone) = (Lab::open().await, Zone::start());
            let mut config = config(&lab, &zone, &[domain], ":");
            config.acme.dns.publish = None;
            config.acme.challenges = vec![ChallengeKind::DnsPersist01];
            let running = lab.run_with(&config, None);
            let error = failed(&lab, &running, "Create it").await;
            let account = lab.stub.orders()[0].account.clone();
            let record = format!("{ISSUER}; accounturi={account}{policy}");
            assert!(
                error.contains(&format!("_validation-persist.a.example.com. TXT \"{record}\"")),
                "{error}"
            );
            assert_eq!(lab.stub.asked(Step::Challenge), 0);
            zone.put("_validation-persist.a.example.com", "other-ca.example; accounturi=https://x/1");
            failed(&lab, &running, "but 1 other texts").await;
            zone.put("_validation-persist.a.example.com", &record);
            lab.pass_until(&running, 10 * SECOND, valid).await;
            assert_eq!(lab.stub.orders()[0].told, "dns-persist-01");
            assert_eq!(lab.stub.orders().len(), 1);
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn while_the_record_is_not_there_another_kind_of_challenge_does() {
    local(async {
        let (lab, zone) = (Lab::open().await, Zone::start());
        let mut config = config(&lab, &zone, &["a.example.com"], ":");
        config.acme.challenges = vec![ChallengeKind::DnsPersist01, ChallengeKind::Http01];
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        assert_eq!(lab.stub.orders()[0].told, "http-01");
        // It is still said which record would do, also after a restart, until it is there.
        let record = format!("{ISSUER}; accounturi={}", lab.stub.orders()[0].account);
        let wanted = Some(format!("_validation-persist.a.example.com. TXT \"{record}\""));
        assert_eq!(running.status(0).dns_record, wanted);
        running.stop().await;
        let running = lab.run_with(&config, None);
        assert_eq!(running.status(0).dns_record, wanted);
        zone.put("_validation-persist.a.example.com", &record);
        running.manager.renew("a.example.com").await.expect("renewed");
        assert_eq!(lab.stub.orders()[1].told, "dns-persist-01");
        assert_eq!(running.status(0).dns_record, None);
        running.stop().await;
        lab.close().await;
    })
    .await;
}

fn key(name: &str, algorithm: UpdateAlgorithm, secret: &[u8]) -> UpdateKey {
    UpdateKey { name: host(name), algorithm, secret: secret.to_vec() }
}

/// A configuration whose records are published by updates of `knot` and looked for there, all of it at one of its addresses.
fn updating(lab: &Lab, knot: &Knot, here: IpAddr, key: Option<UpdateKey>) -> Config {
    let mut config = lab.config(&["*.a.example.com"]);
    let server = HostName::from_ip(here);
    config.acme.dns.publish = Some(Publish::Update(Update { server, port: knot.port(), zone: None, key }));
    config.acme.dns.resolvers = vec![(here, knot.port()).into()];
    config.acme.dns.name_servers = vec![(here, knot.port()).into()];
    lab.stub.books().dns = knot.port();
    config
}

#[tokio::test]
async fn a_real_name_server_takes_signed_updates_and_is_left_as_it_was() {
    local(async {
        let knot = Knot::start().await;
        let [four, six] = Knot::HERE;
        for (here, name, algorithm) in [
            (four, "edge256", UpdateAlgorithm::HmacSha256),
            (six, "edge384", UpdateAlgorithm::HmacSha384),
            (four, "edge512", UpdateAlgorithm::HmacSha512),
        ] {
            let lab = Lab::open().await;
            let key = key(name, algorithm, Knot::SECRET);
            let running = lab.run_with(&updating(&lab, &knot, here, Some(key)), None);
            running.until_valid().await;
            assert_eq!(lab.stub.orders()[0].told, "dns-01");
            for _ in 0..4000 {
                if knot.texts(CHALLENGE).await.is_empty() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(knot.texts(CHALLENGE).await, Vec::<Vec<u8>>::new(), "{name}");
            running.stop().await;
            lab.close().await;
        }
        // The zone is found with its servers, as edge does where none are configured.
        let resolvers = Resolvers::new(&[at(knot.port())]).at_port(knot.port());
        let zone = resolvers.zone(&name(CHALLENGE).expect("a name")).await.expect("found");
        let servers = resolvers.servers(&zone).await.expect("found");
        assert_eq!(
            (servers[0].name.as_str(), servers[0].addresses.as_slice()),
            ("ns1.example.com", &[at(knot.port())][..])
        );
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_does_not_fit_into_a_datagram_is_fetched_over_tcp() {
    local(async {
        let texts: String =
            (0..60).map(|one| format!("many TXT \"a text among sixty, number {one}\"\n")).collect();
        let records =
            format!("$ORIGIN example.com.\n$TTL 60\n@ SOA ns1 root 1 60 60 3600 60\n@ NS ns1\n{texts}");
        let knot = Knot::serving("example.com", &records).await;
        let many = name("many.example.com").expect("a name");
        for here in Knot::HERE {
            let answer = ask((here, knot.port()).into(), About::Texts, &many, false).await.expect("answered");
            assert_eq!((answer.texts.len(), answer.truncated), (60, false), "{here}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_update_that_is_refused_says_what_is_wrong_with_the_key() {
    local(async {
        let knot = Knot::start().await;
        let sha256 = UpdateAlgorithm::HmacSha256;
        for (key, told) in [
            (Some(key("edge256", sha256, b"another secret of 24 byte")), "BADSIG"),
            (Some(key("stranger", sha256, Knot::SECRET)), "BADKEY"),
            (None, "NOTAUTH"),
        ] {
            let lab = Lab::open().await;
            let running = lab.run_with(&updating(&lab, &knot, LOCAL, key), None);
            running.until("failed", |all| all[0].last_error.is_some()).await;
            let error = running.error(0);
            assert!(error.contains("refused the update") && error.contains(told), "{told}: {error}");
            assert_eq!(lab.stub.asked(Step::Challenge), 0);
            running.stop().await;
            lab.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_real_ca_issues_a_wildcard_over_a_program_that_publishes() {
    local(async {
        let pebble = Terms::at(1).start().await;
        let lab = Lab::open().await;
        let mut config = lab.config(&[]);
        config.apps = vec![app("a", &["*.a.example.com", "b.example.com"], Tls::Acme)];
        config.acme.directory = pebble.directory();
        config.acme.ca_root = trusted(&pebble.root());
        config.acme.challenges = vec![ChallengeKind::Dns01];
        config.acme.dns.publish = Some(Publish::Exec { program: pebble.hook(":"), arguments: Vec::new() });
        config.acme.dns.resolvers = vec![pebble.dns()];
        config.acme.dns.name_servers = vec![pebble.dns()];
        let running = lab.run_with(&config, None);
        running.until_valid().await;
        assert!(running.status(0).issuer.contains("Pebble"), "{:?}", running.status(0));
        assert!(running.certificates.find(Some(&host("x.a.example.com")), LOCAL).is_some());
        running.stop().await;
        lab.close().await;
    })
    .await;
}
