//! Names are proven to a CA this project does not control, whatever stands beside them; and nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::AlertDescription;
use tokio::process::Command;

use crate::acme::served;
use crate::ca::free_port;
use crate::ca::pebble::{Pebble, Terms};
use crate::ca::stub::{Fault, Step, Stub};
use crate::support::client::{Connection, Raw, Trust, Wire, tls};
use crate::support::edge::{Edge, Setup};
use crate::support::load::{Client, Load};
use crate::support::origin::Origin;
use crate::support::{processes, until};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn ten_names_are_served_soon_after_a_cold_start() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let names: Vec<String> = (0..10).map(|one| format!("n{one}.acme.example")).collect();
    let app = format!("domains: [{}]\ntls: auto\ncommand: edge hello\nworkers: 1", names.join(", "));
    let edge = Setup::new().ports(http, https).top(&pebble.keys()).app("a", &app).start().await;
    let ready = edge.ready_after().expect("it said so");
    for name in &names {
        served(&edge, name, &issued, LIMIT).await;
    }
    let cold = edge.executed_at().elapsed();
    println!("figure: ready after {ready:?}; ten names served {cold:?} after a cold start");
    // Unoptimised code on a busy machine gets some slack.
    let slack = if cfg!(debug_assertions) { 3 } else { 1 };
    assert!(ready < Duration::from_secs(slack), "{ready:?}");
    assert!(cold < Duration::from_secs(20), "{cold:?}");
    assert_eq!((pebble.orders(), pebble.accounts()), (10, 1), "an order each, one account");
    edge.stop().await;
}

#[tokio::test]
async fn a_challenge_is_answered_before_every_redirect_and_never_by_an_app() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    let hits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&hits);
    let origin = Origin::start(move |mut peer| {
        let hits = Arc::clone(&counter);
        async move {
            while let Some(head) = peer.head().await {
                hits.fetch_add(usize::from(head.request_line().contains("acme-challenge")), Ordering::SeqCst);
                peer.answer("200 OK", "", "the app").await;
            }
        }
    })
    .await;
    let upstream = origin.upstream();
    let edge = Setup::new()
        .ports(http, https)
        .top(&pebble.keys())
        .app("a", &format!("domains: [a.acme.example]\ntls: auto\nhttp: redirect\nhsts: true\n{upstream}"))
        .app("b", &format!("domains: [b.acme.example]\ntls: auto\nhttp: serve\n{upstream}"))
        .app(
            "c",
            &format!("domains: [c.acme.example, www.acme.example]\ntls: auto\nredirect_to: www.acme.example\n{upstream}"),
        )
        .start()
        .await;
    for host in ["a.acme.example", "b.acme.example", "www.acme.example"] {
        served(&edge, host, &issued, LIMIT).await;
    }
    until(LIMIT, "c is served", async || {
        tls(edge.https, "c.acme.example", issued.offering(&["h2"])).await.ok()
    })
    .await;
    let asked: Vec<_> = edge
        .log_objects()
        .into_iter()
        .filter(|line| line["path"].as_str().is_some_and(|path| path.contains("/acme-challenge/")))
        .collect();
    assert!(asked.len() >= 4, "each name was looked at: {asked:?}");
    for line in &asked {
        assert_eq!((line["status"].as_u64(), line["tls"].as_str()), (Some(200), None), "{line}");
    }
    for host in ["a.acme.example", "b.acme.example"] {
        let page = Connection::plain(&edge, host).await.get("/.well-known/acme-challenge/nobodys").await;
        assert_eq!(page.status, 404, "{host}: {}", page.text());
    }
    assert_eq!(hits.load(Ordering::SeqCst), 0, "an app was asked");
    edge.stop().await;
}

#[tokio::test]
async fn names_short_and_long_are_proven_by_handshakes_beside_ordinary_ones() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(free_port()).tls(https).start().await;
    let issued = Trust::issued_by(&pebble).await;
    // As long as Pebble's mock DNS can carry; one of 200 is proven where another name server stands in for it.
    let labels = [("a", 63), ("b", 63), ("c", 14)].map(|(letter, many)| letter.repeat(many));
    let long = format!("{}.example", labels.join("."));
    assert_eq!(("a.dev".len(), long.len()), (5, 150));
    let keys = format!("{}\n  challenges: [tls-alpn-01]\n  self_check: false", pebble.keys());
    let edge = Setup::new()
        .ports(http, https)
        .top(&keys)
        .app("own", "domains: [own.test]\ncommand: edge hello\nworkers: 1")
        .app("a", &format!("domains: [a.dev, {long}]\ntls: auto\ncommand: edge hello\nworkers: 1"))
        .start()
        .await;
    edge.wait_until_up("own").await;
    let load = Load::start((0..2).map(|_| Client {
        address: edge.https,
        host: "own.test".into(),
        path: "/",
        wire: Wire::H2,
        trust: futures_util::FutureExt::now_or_never(edge.trust()).expect("it is there"),
        per_connection: 1,
        pause: Duration::from_millis(20),
    }));
    served(&edge, "a.dev", &issued, LIMIT).await;
    served(&edge, &long, &issued, LIMIT).await;
    let tally = load.stop().await;
    assert!(tally.failed.is_empty() && tally.good > 5, "{tally:?}");
    for name in ["a.dev", "own.test"] {
        let refused =
            tls(edge.https, name, issued.offering(&["acme-tls/1"])).await.expect_err("no challenge");
        let alert = refused.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()).cloned();
        let wanted = rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(alert, Some(wanted), "{name}: {refused}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_name_that_cannot_be_reached_keeps_its_own_schedule() {
    let (http, https) = (free_port(), free_port());
    let pebble = Terms::at(http).start().await;
    let issued = Trust::issued_by(&pebble).await;
    // Nobody listens at that address.
    let away = serde_json::json!({"host": "bad.acme.example", "addresses": ["127.0.0.9"]});
    pebble.resolve("/add-a", away).await;
    let names = "[a.acme.example, bad.acme.example, b.acme.example]";
    let edge = Setup::new()
        .ports(http, https)
        .top(&format!("{}\n  self_check: false", pebble.keys()))
        .app("a", &format!("domains: {names}\ntls: auto\ncommand: edge hello\nworkers: 1"))
        .start()
        .await;
    let begun = Instant::now();
    served(&edge, "a.acme.example", &issued, LIMIT).await;
    served(&edge, "b.acme.example", &issued, LIMIT).await;
    println!("figure: names beside one that fails are served after {:?}", begun.elapsed());
    let bad = until(LIMIT, "the bad one shows", async || {
        let bad = edge.certificate("bad.acme.example").await;
        bad["last_error"].is_string().then_some(bad)
    })
    .await;
    assert_eq!(bad["state"], "retrying", "{bad}");
    assert!(bad["last_error"].as_str().unwrap().contains("bad.acme.example"), "{bad}");
    assert!(bad["next_attempt"].is_string(), "{bad}");
    assert_eq!(pebble.orders(), 3, "the good ones at their first attempt");
    assert_eq!(edge.certificate("a.acme.example").await["next_attempt"], serde_json::Value::Null);
    edge.stop().await;
}

/// `openssl s_client` as an independent client; returns what it printed.
async fn openssl(address: &str, name: &str, root: &std::path::Path) -> String {
    let output = Command::new("openssl")
        .args(["s_client", "-connect", address, "-servername", name, "-verify_hostname", name])
        .args(["-verify_return_error", "-showcerts", "-CAfile"])
        .arg(root)
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .expect("openssl can be run");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Names of subject and issuer of each certificate that `openssl s_client -showcerts` printed.
fn links(printed: &str) -> Vec<(String, String)> {
    let field = |line: &str, name: &str| line.trim().strip_prefix(name).map(str::to_owned);
    let mut links = Vec::new();
    let mut subject = None;
    for line in printed.lines() {
        let numbered = line.trim().split_once(' ').map_or("", |(_, rest)| rest);
        if let Some(found) = field(numbered, "s:") {
            subject = Some(found);
        } else if let (Some(issuer), true) = (field(line, "i:"), subject.is_some()) {
            links.extend(subject.take().map(|subject| (subject, issuer)));
        }
    }
    links
}

#[tokio::test]
async fn a_long_chain_is_sent_whole_and_in_order_so_that_openssl_verifies_it() {
    let (http, https) = (free_port(), free_port());
    let terms =
        Terms::at(http).environment("PEBBLE_CHAIN_LENGTH", "4").environment("PEBBLE_ALTERNATE_ROOTS", "2");
    let pebble = terms.start().await;
    let edge = one_name(&pebble, http, https).await;
    let roots = [0, 1].map(|chain| edge.dir().join(format!("root-{chain}.pem")));
    for (chain, file) in roots.iter().enumerate() {
        std::fs::write(file, pebble.issuing_root(chain).await).unwrap();
    }
    let address = edge.https.to_string();
    let printed = openssl(&address, "a.acme.example", &roots[0]).await;
    assert!(printed.contains("Verify return code: 0 (ok)"), "{printed}");
    let links = links(&printed);
    println!("figure: a chain of {} certificates is verified by openssl", links.len());
    assert_eq!(links.len(), 5, "leaf and four intermediates: {links:?}");
    for pair in links.windows(2) {
        assert_eq!(pair[0].1, pair[1].0, "each is issued by the next: {links:?}");
    }
    let printed = openssl(&address, "a.acme.example", &roots[1]).await;
    assert!(!printed.contains("Verify return code: 0 (ok)"), "another root verifies nothing: {printed}");
    edge.stop().await;
}

async fn one_name(pebble: &Pebble, http: u16, https: u16) -> Edge {
    let issued = Trust::issued_by(pebble).await;
    let edge = Setup::new()
        .ports(http, https)
        .top(&pebble.keys())
        .app("a", "domains: [a.acme.example]\ntls: auto\ncommand: edge hello\nworkers: 1")
        .start()
        .await;
    served(&edge, "a.acme.example", &issued, LIMIT).await;
    edge
}

#[test]
fn addresses_of_both_kinds_are_proven_and_clients_without_sni_get_their_certificates() {
    assert!(processes::root(), "a network of its own is for root alone");
    // Nobody here has a public address, and a thread can have a network where it has.
    let own = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network of its own");
        for words in [
            "link set lo up",
            "address add 203.0.113.7/32 dev lo",
            "address add 2001:db8::7/128 dev lo nodad",
        ] {
            let status =
                std::process::Command::new("ip").args(words.split(' ')).status().expect("ip can be run");
            assert!(status.success(), "ip {words}: {status}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(addresses_are_proven());
    });
    own.join().expect("no assertion failed");
}

async fn addresses_are_proven() {
    let pebble = Terms::at(80).tls(443).start().await;
    let issued = Trust::issued_by(&pebble).await;
    for (address, here, local) in
        [("203.0.113.7", "203.0.113.7", "127.0.0.1"), ("2001:db8::7", "[2001:db8::7]", "[::1]")]
    {
        for kind in ["http-01", "tls-alpn-01"] {
            let edge = Setup::new()
                .at(&[here, local], 80, 443)
                .top(&format!("{}\n  challenges: [{kind}]\n  self_check: true", pebble.keys()))
                .app(
                    "a",
                    &format!(
                        "domains: ['{address}']\ndefault: true\ntls: auto\ncommand: edge hello\nworkers: 1"
                    ),
                )
                .start()
                .await;
            // A name that is an address is never sent as SNI (RFC 6066 §3); it is verified all the same. Whoever comes by
            // another address of the machine gets the default.
            for at in [here, local] {
                let at = format!("{at}:443").parse().expect("an address");
                until(LIMIT, &format!("{address} is served over {kind}"), async || {
                    tls(at, address, issued.offering(&["h2"])).await.ok()
                })
                .await;
            }
            edge.stop().await;
        }
    }
    assert_eq!((pebble.orders(), pebble.issued()), (4, 4));
}

#[tokio::test]
async fn a_binding_that_a_reload_brings_is_used_and_its_key_is_never_logged() {
    let (http, https) = (free_port(), free_port());
    let known = BASE64_URL_SAFE_NO_PAD.encode(b"sesame-sesame-sesame-sesame-1234");
    let wrong = BASE64_URL_SAFE_NO_PAD.encode(b"wrong-wrong-wrong-wrong-wrong-12");
    let pebble = Terms::at(http)
        .key("externalAccountBindingRequired", serde_json::json!(true))
        .key("externalAccountMACKeys", serde_json::json!({"kid-1": known}))
        .start()
        .await;
    let issued = Trust::issued_by(&pebble).await;
    let edge = Setup::new()
        .ports(http, https)
        .top(&format!("{}\nlog: {{level: debug}}", pebble.keys()))
        .app("a", "domains: [a.acme.example]\ntls: auto\nupstream: http://127.0.0.1:1")
        .start()
        .await;
    let parked = async |what: &str, holds: &dyn Fn(&str) -> bool| {
        let certificate = until(LIMIT, what, async || {
            let certificate = edge.certificate("a.acme.example").await;
            let error = certificate["last_error"].as_str().unwrap_or_default();
            holds(error).then_some(certificate.clone())
        })
        .await;
        assert_eq!(certificate["state"], "parked", "{certificate}");
        certificate["last_error"].as_str().expect("an error").to_owned()
    };
    let missing = parked("the binding is missing", &|error| error.contains("acme.eab")).await;
    let file = edge.dir().join("hmac");
    std::fs::write(&file, &wrong).unwrap();
    edge.edit("\nacme:\n", &format!("\nacme:\n  eab: {{kid: kid-1, hmac_key_file: {}}}\n", file.display()));
    edge.reload().await;
    parked("the key is wrong", &|error| error.contains("acme.eab") && error != missing).await;
    assert_eq!((pebble.accounts(), pebble.orders()), (0, 0));
    // The file of the configuration stays as it is.
    std::fs::write(&file, &known).unwrap();
    edge.reload().await;
    until(LIMIT, "it is served", async || {
        tls(edge.https, "a.acme.example", issued.offering(&["h2"])).await.ok()
    })
    .await;
    assert_eq!((pebble.accounts(), pebble.orders()), (1, 1));
    let log = edge.log();
    assert!(log.contains("registered at the CA"), "{log}");
    let shown = log + &edge.status().await.to_string();
    for secret in ["sesame", "wrong-wrong", &known, &wrong] {
        assert!(!shown.contains(secret), "a secret is shown");
    }
    edge.stop().await;
}

#[tokio::test]
async fn six_clients_at_once_get_the_same_answer_to_a_challenge() {
    let (http, https) = (free_port(), free_port());
    let ca = Stub::start(http, https);
    // Told that the answer is there, the CA says nothing: it stays published.
    ca.fail(Step::Challenge, Fault::Stall);
    let top =
        format!("acme:\n  ca: {}\n  ca_root: {}\n  self_check: false", ca.directory(), ca.root().display());
    let edge = Setup::new()
        .ports(http, https)
        .top(&top)
        .app("a", "domains: [a.acme.example]\ntls: auto\nupstream: http://127.0.0.1:1")
        .start()
        .await;
    until(LIMIT, "the CA is told", async || (ca.silent() == 1).then_some(())).await;
    let token = "token_of-order-0-0123456789";
    let thumbprint = ca.orders()[0].thumbprint.clone();
    let hosts = [
        "a.acme.example",
        "A.ACME.Example",
        "a.acme.example:80",
        "a.acme.example.",
        "b.acme.example",
        "a.acme.example",
    ];
    let fetches = hosts.map(|host| {
        let address = edge.http;
        async move {
            let stream = tokio::net::TcpStream::connect(address).await.expect("edge accepts");
            let mut raw = Raw::new(stream);
            let path = format!("/.well-known/acme-challenge/{token}");
            raw.write(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            raw.read_to_close().await
        }
    });
    for (host, answer) in hosts.iter().zip(futures_util::future::join_all(fetches).await) {
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{token}.{thumbprint}")), "{host}: {answer}");
    }
    edge.stop().await;
}
