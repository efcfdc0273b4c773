use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::model::{Backend, Queue, Sticky};
use crate::worker::slot::Roster;

fn app(name: &str, domains: &[&str], change: impl FnOnce(&mut App)) -> Arc<Site> {
    let mut app = App {
        name: name.parse().expect("valid"),
        domains: domains.iter().map(|domain| domain.parse().expect("valid")).collect(),
        default: false,
        backend: Backend::Upstream(Vec::new()),
        tls: Tls::Acme,
        http: PlainHttp::Redirect,
        redirect_to: None,
        hsts: None,
        max_body: 1,
        queue: Queue { size: 100, timeout: Duration::from_secs(10) },
        protocol: crate::config::model::Protocol::Http1,
        sticky: Sticky::None,
        client_auth: None,
    };
    change(&mut app);
    let pool = Pool::new(app.name.clone(), Roster::new());
    Site::new(Arc::new(app), pool, Arc::new(Tally::new(1)))
}

fn host(text: &str) -> HostName {
    HostName::parse(text).expect("valid")
}

/// A decision in short: what the tables below hold.
fn told(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Forward(site) => site.app.name.to_string(),
        Decision::Redirect(_, location) => location.clone(),
        Decision::Refuse(_, error) => error.status().as_u16().to_string(),
    }
}

fn over_http(routing: &Routing, authority: &str) -> String {
    let asked = Asked {
        authority: Authority::parse(authority).expect("valid"),
        path_and_query: "/p?q=1",
        secure: false,
        secured: None,
        https_port: None,
    };
    told(&routing.decide(&asked, |host| (host.as_str() == "pending.test").then(|| "ordered".into())))
}

fn over_https(routing: &Routing, authority: &str, sni: Option<&str>, names: &[&str]) -> String {
    let sni = sni.map(host);
    let names: Vec<HostPattern> = names.iter().map(|name| name.parse().expect("valid")).collect();
    let asked = Asked {
        authority: Authority::parse(authority).expect("valid"),
        path_and_query: "/p?q=1",
        secure: true,
        secured: Some(Secured { sni: sni.as_ref(), names: &names, client_auth: None }),
        https_port: Some(8443),
    };
    told(&routing.decide(&asked, |_| None))
}

#[test]
fn b07_every_spelling_of_a_host_reaches_the_same_app() {
    for count in [1, 99, 101, 10_001] {
        let others: Vec<Arc<Site>> =
            (1..count).map(|n| app(&format!("app{n}"), &[&format!("h{n}.test")], |_| ())).collect();
        let routing =
            Routing::new([app("a", &["a.test", "xn--bcher-kva.test"], |_| ())].into_iter().chain(others));
        for spelling in ["a.test", "A.TEST", "a.test.", "a.test:443", "A.test.:443"] {
            assert_eq!(over_https(&routing, spelling, Some("a.test"), &["a.test"]), "a", "{spelling}");
        }
        let label = "XN--BCHER-KVA.test";
        assert_eq!(over_https(&routing, label, None, &["xn--bcher-kva.test"]), "a");
    }
}

#[test]
fn an_exact_name_wins_over_a_wildcard_and_a_wildcard_over_the_default() {
    let serve = |app: &mut App| app.http = PlainHttp::Serve;
    let routing = Routing::new([
        app("wild", &["*.a.test"], serve),
        app("exact", &["x.a.test"], serve),
        app("rest", &["rest.test"], |app| (app.http, app.default) = (PlainHttp::Serve, true)),
    ]);
    for (asked, expected) in [
        ("x.a.test", "exact"),
        ("y.a.test", "wild"),
        ("Y.a.test.", "wild"),
        ("a.test", "rest"),
        ("z.y.a.test", "rest"),
        ("10.0.0.1", "rest"),
    ] {
        assert_eq!(over_http(&routing, asked), expected, "{asked}");
    }
}

#[test]
fn plain_http_is_redirected_served_or_told_why_not() {
    let routing = Routing::new([
        app("a", &["a.test", "2001:db8::1"], |_| ()),
        app("pending", &["pending.test"], |_| ()),
        app("plain", &["plain.test"], |app| app.http = PlainHttp::Serve),
        app("off", &["off.test", "www.off.test"], |app| {
            (app.tls, app.redirect_to) = (Tls::Off, Some(host("off.test")));
        }),
        app("www", &["b.test", "www.b.test"], |app| app.redirect_to = Some(host("b.test"))),
    ]);
    for (asked, expected) in [
        ("a.test", "https://a.test/p?q=1"),
        ("A.test.:80", "https://a.test/p?q=1"),
        ("a.test:8080", "https://a.test/p?q=1"),
        ("[2001:db8::1]", "https://[2001:db8::1]/p?q=1"),
        ("pending.test", "503"),
        ("plain.test", "plain"),
        ("off.test", "off"),
        ("www.off.test:8080", "http://off.test:8080/p?q=1"),
        ("www.b.test", "https://b.test/p?q=1"),
        ("b.test", "https://b.test/p?q=1"),
        // B06, B08: nobody's.
        ("other.test", "404"),
        ("169.254.169.254", "404"),
        ("localhost", "404"),
        // B02: no host is called so.
        ("u@a.test", "400"),
        ("a.test/x", "400"),
        ("a.test,b.test", "400"),
        ("a%2etest", "400"),
    ] {
        assert_eq!(over_http(&routing, asked), expected, "{asked}");
    }
}

#[test]
fn b05_b06_a_host_is_served_only_where_its_certificate_was_shown() {
    let routing = Routing::new([
        app("a", &["a.test", "www.a.test"], |_| ()),
        app("b", &["b.test"], |_| ()),
        app("own", &["own.test"], |app| app.tls = Tls::Internal),
        app("off", &["off.test"], |app| app.tls = Tls::Off),
        app("moved", &["old.test", "new.test"], |app| app.redirect_to = Some(host("new.test"))),
    ]);
    let both = &["a.test", "b.test", "own.test", "off.test"][..];
    for (id, asked, sni, names, expected) in [
        ("own name", "a.test", Some("a.test"), &["a.test"][..], "a"),
        ("B05 other name of the certificate", "b.test", Some("a.test"), both, "b"),
        ("B05 not in the certificate", "b.test", Some("a.test"), &["a.test"], "421"),
        ("B05 other TLS policy", "own.test", Some("a.test"), both, "421"),
        ("B05 no TLS at all", "off.test", Some("off.test"), both, "421"),
        ("no SNI", "a.test", None, &["a.test"], "a"),
        ("no SNI, other name", "a.test", None, &["10.0.0.1"], "421"),
        ("B06 unknown", "other.test", Some("a.test"), &["a.test"], "421"),
        ("B06 unknown but covered", "x.test", Some("a.test"), &["*.test"], "421"),
        ("canonical host", "old.test", Some("old.test"), &["old.test"], "https://new.test:8443/p?q=1"),
    ] {
        assert_eq!(over_https(&routing, asked, sni, names), expected, "{id}");
    }
}

#[test]
fn the_default_app_takes_unknown_hosts_on_its_own_certificate_only() {
    let routing =
        Routing::new([app("a", &["a.test"], |_| ()), app("rest", &["rest.test"], |app| app.default = true)]);
    assert_eq!(over_https(&routing, "x.test", Some("x.test"), &["rest.test"]), "rest");
    assert_eq!(over_https(&routing, "x.test", Some("a.test"), &["a.test"]), "421");
    assert_eq!(over_https(&routing, "a.test", Some("x.test"), &["rest.test"]), "421");
    assert_eq!(over_http(&routing, "x.test"), "https://x.test/p?q=1");
}

#[test]
fn i06_only_base64url_is_a_challenge_token() {
    assert_eq!(challenge("/.well-known/acme-challenge/aB-_9"), Some("aB-_9"));
    assert_eq!(challenge("/.well-known/acme"), None);
    for token in ["", "..", "../x", "a%2e", "a/b", "a.b", "a=", "a b"] {
        assert!(!is_token(token), "{token}");
    }
    assert!(is_token("aB-_9"));
}

#[test]
fn hsts_is_one_field_value() {
    let site = app("a", &["a.test"], |app| app.hsts = Some(Duration::from_secs(60)));
    assert_eq!(site.hsts.as_ref().expect("configured"), "max-age=60");
}

#[test]
fn a_mapping_of_ports_shows_in_what_the_client_asked_for() {
    for (authority, secure, port, expected) in [
        ("a.test", false, 80, false),
        ("a.test", false, 8080, true),
        ("a.test:80", false, 8080, true),
        ("a.test:8080", false, 8080, false),
        ("a.test:8000", false, 8080, false),
        ("a.test", true, 443, false),
        ("a.test", true, 8443, true),
        ("a.test:8443", true, 8443, false),
    ] {
        let found = is_mapped(&Authority::parse(authority).expect("valid"), secure, port);
        assert_eq!(found, expected, "{authority} {secure} {port}");
    }
}

proptest! {
    #[test]
    fn c06_a_redirect_never_leads_to_a_host_nobody_configured(text in "\\PC{1,30}") {
        let routing = Routing::new([app("a", &["a.test"], |_| ())]);
        if let Ok(authority) = Authority::parse(&text) {
            let asked = Asked { authority, path_and_query: "/", secure: false, secured: None, https_port: None };
            match routing.decide(&asked, |_| None) {
                Decision::Redirect(_, location) => prop_assert_eq!(location, "https://a.test/"),
                Decision::Refuse(None, _) => {}
                Decision::Forward(_) | Decision::Refuse(Some(_), _) => prop_assert!(false, "{}", text),
            }
        }
    }
}

#[test]
fn who_came_by_https_to_a_trusted_proxy_is_not_sent_there_again() {
    let canonical = |app: &mut App| app.redirect_to = Some(host("a.test"));
    let routing = Routing::new([app("a", &["a.test", "www.a.test"], canonical)]);
    let names: Vec<HostPattern> = vec!["*.a.test".parse().expect("valid"), "a.test".parse().expect("valid")];
    let sni = host("a.test");
    for (encrypted, secure, authority, expected) in [
        (false, true, "a.test", "a"),
        (false, true, "www.a.test:8080", "https://a.test/"),
        (false, false, "a.test", "https://a.test/"),
        (true, true, "a.test", "a"),
        (true, false, "a.test", "https://a.test/"),
        (true, false, "other.test", "421"),
    ] {
        let asked = Asked {
            authority: Authority::parse(authority).expect("valid"),
            path_and_query: "/",
            secure,
            secured: encrypted.then_some(Secured { sni: Some(&sni), names: &names, client_auth: None }),
            https_port: None,
        };
        assert_eq!(told(&routing.decide(&asked, |_| None)), expected, "{encrypted} {secure} {authority}");
    }
}
