//! The internal CA as a client sees it, and which certificate a ClientHello gets.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::setup::{LOCAL, handshake, host, now, pattern, provider};
use crate::cert::internal::InternalCa;
use crate::cert::resolver::{Certificates, Entry, EntryState, Served};

fn served(ca: &InternalCa, name: &str) -> Arc<Served> {
    let bundle = ca.issue(&pattern(name), now()).expect("issued");
    let tickets = rustls::crypto::aws_lc_rs::Ticketer::new().expect("tickets");
    Served::new(&bundle, &provider(), &tickets, None).expect("usable")
}

#[test]
fn a_client_that_trusts_the_root_accepts_names_wildcards_and_addresses() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = InternalCa::open(dir.path(), provider(), now()).expect("made");
    for (name, asked) in
        [("localhost", "localhost"), ("*.app.test", "a.app.test"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1")]
    {
        let served = served(&ca, name);
        let protocol = handshake(&served.config, ca.root(), asked).expect(name);
        assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
        assert_eq!(served.names, [pattern(name)]);
    }
    let served = served(&ca, "localhost");
    assert!(handshake(&served.config, ca.root(), "other.test").is_err());
}

#[test]
fn the_root_is_kept_and_only_its_certificate_is_public() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let first = InternalCa::open(dir.path(), provider(), now()).expect("made");
    let second = InternalCa::open(dir.path(), provider(), now()).expect("loaded");
    assert_eq!(first.root(), second.root());
    let bundle = second.issue(&pattern("localhost"), now()).expect("issued");
    assert!(first.issued(&bundle));
    assert!(handshake(&served(&second, "localhost").config, first.root(), "localhost").is_ok());
    let mode =
        |file: &str| std::fs::metadata(dir.path().join(file)).expect("exists").permissions().mode() & 0o777;
    assert_eq!((mode("ca.pem"), mode("root.pem")), (0o600, 0o644));
    let public = std::fs::read_to_string(first.root_file()).expect("readable");
    assert!(public.contains("CERTIFICATE") && !public.contains("PRIVATE"));
    let (_, root) = X509Certificate::from_der(first.root()).expect("readable");
    let days_left = root.validity().time_to_expiration().expect("valid").whole_days();
    assert!(days_left >= 3649, "{days_left}");
}

#[test]
fn a_root_near_its_end_is_replaced_and_a_leaf_never_outlives_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let old = InternalCa::open(dir.path(), provider(), now()).expect("made");
    let late = now() + Duration::from_secs(3600 * 24 * 3600);
    let leaf = old.issue(&pattern("localhost"), late).expect("issued");
    assert!(leaf.validity().life() < Duration::from_secs(51 * 24 * 3600));
    let new = InternalCa::open(dir.path(), provider(), late).expect("made");
    assert!(!new.issued(&leaf));
}

#[test]
fn the_file_of_an_earlier_root_does_not_stay_beside_a_new_one() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = InternalCa::open(dir.path(), provider(), now()).expect("made");
    let public = std::fs::read(ca.root_file()).expect("readable");
    // What a crash between the two files leaves.
    std::fs::write(ca.root_file(), "an earlier root").expect("written");
    let ca = InternalCa::open(dir.path(), provider(), now()).expect("opened");
    assert_eq!(std::fs::read(ca.root_file()).expect("readable"), public);
}

#[test]
fn a_damaged_root_is_an_error_that_names_its_place() {
    let dir = tempfile::tempdir().expect("temporary directory");
    drop(InternalCa::open(dir.path(), provider(), now()).expect("made"));
    let file = dir.path().join("ca.pem");
    std::fs::write(&file, "x").expect("written");
    let error = InternalCa::open(dir.path(), provider(), now()).err().expect("refused");
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("changed");
    let error = InternalCa::open(dir.path(), provider(), now()).err().expect("refused");
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[test]
fn a_hello_gets_the_exact_name_then_the_wildcard_then_the_address_then_the_default() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let ca = InternalCa::open(dir.path(), provider(), now()).expect("made");
    let serve = |name: &str, default| Entry {
        name: pattern(name),
        default,
        state: EntryState::Served(served(&ca, name)),
    };
    let mut entries = vec![
        serve("*.a.test", false),
        serve("x.a.test", false),
        serve("127.0.0.1", false),
        Entry { name: pattern("late.a.test"), default: false, state: EntryState::Pending("soon".into()) },
        Entry { name: pattern("*.late.test"), default: false, state: EntryState::Pending("soon too".into()) },
        Entry { name: pattern("plain.a.test"), default: false, state: EntryState::Plain },
    ];
    let certificates = Certificates::new();
    let first = |sni: Option<&str>, local: IpAddr| {
        certificates.find(sni.map(host).as_ref(), local).map(|served| served.names[0].to_string())
    };
    assert_eq!(first(Some("x.a.test"), LOCAL), None, "nothing is published yet");
    certificates.publish(&entries);
    let elsewhere: IpAddr = "10.0.0.1".parse().expect("address");
    let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("address");
    for (sni, local, wanted) in [
        (Some("x.a.test"), LOCAL, Some("x.a.test")),
        (Some("y.a.test"), LOCAL, Some("*.a.test")),
        (Some("a.test"), LOCAL, None),
        (Some("y.x.a.test"), LOCAL, None),
        (Some("late.a.test"), LOCAL, None),
        (Some("plain.a.test"), LOCAL, None),
        (None, LOCAL, Some("127.0.0.1")),
        (None, mapped, Some("127.0.0.1")),
        (None, elsewhere, None),
    ] {
        assert_eq!(first(sni, local).as_deref(), wanted, "{sni:?} {local}");
    }
    assert_eq!(certificates.pending(&host("late.a.test")).as_deref(), Some("soon"));
    assert_eq!(certificates.pending(&host("any.late.test")).as_deref(), Some("soon too"));
    for name in ["x.a.test", "plain.a.test", "y.a.test", "unknown.test"] {
        assert_eq!(certificates.pending(&host(name)), None, "{name}");
    }
    entries.push(serve("default.test", true));
    certificates.publish(&entries);
    assert_eq!(first(Some("unknown.test"), LOCAL).as_deref(), Some("default.test"));
    assert_eq!(first(None, elsewhere).as_deref(), Some("default.test"));
    assert_eq!(
        first(Some("late.a.test"), LOCAL),
        None,
        "a configured name never shows another app's certificate"
    );
}
