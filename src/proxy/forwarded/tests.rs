use proptest::prelude::*;

use super::*;
use crate::config::networks::network;

/// The peer of every test, and the networks that are believed.
const PEER: &str = "10.0.0.1";

fn trusted() -> Networks {
    ["10.0.0.0/8", "2001:db8::/32"].iter().map(|text| network(text).expect("valid")).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &str)| {
        (http::HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
    };
    fields.iter().map(field).fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.append(name, value);
        headers
    })
}

fn client(fields: &[(&'static str, &str)]) -> String {
    believed(ip(PEER), &headers(fields), &trusted()).expect("a trusted peer").client.to_string()
}

#[test]
fn c01_a_list_is_believed_from_the_right_up_to_the_first_address_that_is_not_a_proxy() {
    for (list, expected) in [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.66, 203.0.113.7", "203.0.113.7"),
        ("198.51.100.66,203.0.113.7 , 10.0.0.2", "203.0.113.7"),
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),
        ("203.0.113.7:4711", "203.0.113.7"),
        ("[2001:db9::1]:4711", "2001:db9::1"),
        ("[2001:db9::1]", "2001:db9::1"),
        ("2001:db9::1, 2001:db8::5", "2001:db9::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, ::ffff:10.0.0.2", "203.0.113.7"),
        ("203.0.113.7, , 10.0.0.2,", "203.0.113.7"),
        // What names no address ends the chain at whoever was to vouch for it.
        ("203.0.113.7, unknown", PEER),
        ("203.0.113.7, unknown, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.7, _hidden, 10.0.0.2", "10.0.0.2"),
        ("203.0.113.7, 10.0.0.256", PEER),
        ("203.0.113.7, 010.0.0.2", PEER),
        ("203.0.113.7, 10.0.0.2:port", PEER),
        ("203.0.113.7, 10.0.0.2:99999", PEER),
        ("203.0.113.7, [10.0.0.2]", PEER),
        ("203.0.113.7, fe80::1%eth0", PEER),
        ("", PEER),
        (",", PEER),
    ] {
        assert_eq!(client(&[("x-forwarded-for", list)]), expected, "{list}");
    }
    let lines = [("x-forwarded-for", "198.51.100.66, 203.0.113.7"), ("x-forwarded-for", "10.0.0.2")];
    assert_eq!(client(&lines), "203.0.113.7", "lines are one list");
    let stranger = believed(ip("192.0.2.1"), &headers(&lines), &trusted());
    assert_eq!(stranger, None, "nobody believes a stranger");
}

#[test]
fn c01_forwarded_is_believed_in_every_form_it_may_have() {
    for (list, expected) in [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=\"203.0.113.7:4711\";proto=http;by=10.0.0.1", "203.0.113.7"),
        ("for=\"[2001:db9::1]\"", "2001:db9::1"),
        ("for=\"[2001:db9::1]:4711\"", "2001:db9::1"),
        ("for=\"[2001:db9::1]:_port\"", "2001:db9::1"),
        ("proto=https;host=\"a.test:8443\"; for=203.0.113.7", "203.0.113.7"),
        ("for=198.51.100.66, for=203.0.113.7, for=10.0.0.2", "203.0.113.7"),
        ("for=\"203.0.113\\.7\"", "203.0.113.7"),
        ("secret=\"a,b;c=\\\"d\\\"\";for=203.0.113.7", "203.0.113.7"),
        // Written so by some, against the grammar and without harm.
        ("for=203.0.113.7:4711", "203.0.113.7"),
        ("for=2001:db9::1", "2001:db9::1"),
        // A client's open quote swallows nothing that a proxy has added.
        ("for=\"evil, for=203.0.113.7", "203.0.113.7"),
        ("for=\"evil\\\", for=203.0.113.7", "203.0.113.7"),
        ("x=\"\\, for=\"203.0.113.7\"", "203.0.113.7"),
        ("for=198.51.100.66;x=\"a, for=10.0.0.2", "10.0.0.2"),
        // The end of a chain.
        ("for=203.0.113.7, for=unknown", PEER),
        ("for=203.0.113.7, for=_hidden, for=10.0.0.2", "10.0.0.2"),
        ("for=\"_hidden:80\"", PEER),
        ("for=203.0.113.7;for=203.0.113.8", PEER),
        ("for=203.0.113.7, proto=https", PEER),
        ("for=", PEER),
        ("for=\"203.0.113.7", PEER),
        ("for=\"203.0.113.7\"x", PEER),
        ("203.0.113.7", PEER),
        ("=203.0.113.7", PEER),
    ] {
        assert_eq!(client(&[("forwarded", list)]), expected, "{list}");
    }
    let lines = [("forwarded", "for=203.0.113.7;x=\"open"), ("forwarded", "for=10.0.0.2")];
    assert_eq!(client(&lines), "10.0.0.2", "a quote ends with its line, and makes no sense of it");
}

#[test]
fn c01_where_both_fields_are_sent_they_are_believed_as_far_as_they_agree() {
    for (list, told, expected) in [
        ("203.0.113.7", "for=203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 10.0.0.2", "for=203.0.113.7", "203.0.113.7"),
        ("203.0.113.7", "for=203.0.113.8", PEER),
        ("203.0.113.7, 10.0.0.2", "for=203.0.113.8, for=10.0.0.2", "10.0.0.2"),
        ("203.0.113.7, 10.0.0.2", "for=10.0.0.2", "10.0.0.2"),
        ("203.0.113.7", "for=unknown", PEER),
    ] {
        assert_eq!(client(&[("x-forwarded-for", list), ("forwarded", told)]), expected, "{list} {told}");
    }
}

#[test]
fn scheme_and_host_are_what_the_last_proxy_says_unless_two_fields_disagree() {
    for (fields, secure, host) in [
        (&[("x-forwarded-proto", "https"), ("x-forwarded-host", "a.test")][..], Some(true), Some("a.test")),
        (&[("x-forwarded-proto", "HTTP"), ("x-forwarded-host", "A.test:81")], Some(false), Some("A.test:81")),
        (&[("x-forwarded-proto", "wss")], Some(true), None),
        (
            &[("x-forwarded-proto", "https, http"), ("x-forwarded-host", "e.test, a.test")],
            Some(false),
            Some("a.test"),
        ),
        (&[("x-forwarded-proto", "gopher"), ("x-forwarded-host", "a\"b.test")], None, None),
        (&[("x-forwarded-host", "a.test/x")], None, None),
        (&[("x-forwarded-host", "u@a.test")], None, None),
        (&[("x-forwarded-host", "[::1]:8443")], None, Some("[::1]:8443")),
        (&[("forwarded", "for=203.0.113.7;proto=https;host=a.test")], Some(true), Some("a.test")),
        (
            &[("forwarded", "for=203.0.113.7;proto=https;host=\"a.test:81\", for=10.0.0.2;proto=http")],
            Some(true),
            Some("a.test:81"),
        ),
        // Said of somebody else.
        (&[("forwarded", "for=203.0.113.8;proto=https, for=203.0.113.7;proto=http")], Some(false), None),
        (&[("forwarded", "for=203.0.113.7;proto=https"), ("x-forwarded-proto", "http")], None, None),
        (&[("forwarded", "for=203.0.113.7;proto=https"), ("x-forwarded-proto", "https")], Some(true), None),
        (&[("forwarded", "for=203.0.113.7;proto=https"), ("x-forwarded-for", "203.0.113.8")], None, None),
        (&[], None, None),
    ] {
        let found = believed(ip(PEER), &headers(fields), &trusted()).expect("a trusted peer");
        let found_host = found.host.as_ref().map(|host| host.to_str().expect("text"));
        assert_eq!((found.secure, found_host), (secure, host), "{fields:?}");
    }
}

/// An address as a proxy writes it into either field.
fn written(address: IpAddr, quoted: bool) -> String {
    match address {
        IpAddr::V4(v4) if quoted => format!("\"{v4}:80\""),
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    }
}

fn proxies() -> impl Strategy<Value = Vec<IpAddr>> {
    let proxy = any::<[u8; 3]>().prop_map(|[a, b, c]| IpAddr::from([10, a, b, c]));
    proptest::collection::vec(proxy, 0..4)
}

fn stranger() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical()).prop_filter("not a proxy", |ip| !trusted().contain(*ip))
}

/// What a client may send: anything, and what looks like the real thing.
const ANYTHING: &str =
    "[\\x20-\\x7e\\t]{0,40}|(for=|\"|\\\\|,|;|10\\.0\\.0\\.[1-9]|unknown|\\[::1\\]| ){0,12}";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn nothing_a_client_sends_changes_what_proxies_say_of_it(
        sent in ANYTHING, ip in stranger(), via in proxies(), quoted: bool, own_line: bool,
    ) {
        let added: Vec<IpAddr> = std::iter::once(ip).chain(via).collect();
        let list: Vec<_> = added.iter().map(IpAddr::to_string).collect();
        let told: Vec<_> = added.iter().map(|ip| format!("for={}", written(*ip, quoted))).collect();
        for (name, added) in [("x-forwarded-for", list.join(", ")), ("forwarded", told.join(", "))] {
            let fields = if own_line { vec![sent.clone(), added] } else { vec![format!("{sent}, {added}")] };
            let fields: Vec<_> = fields.iter().map(|line| (name, line.as_str())).collect();
            prop_assert_eq!(client(&fields), ip.to_string(), "{:?}", fields);
        }
    }

    #[test]
    fn no_other_field_leads_past_the_believed_addresses(sent in ANYTHING, ip in stranger(), via in proxies()) {
        // The proxies write the one field; the other is the client's own.
        let list: Vec<_> = std::iter::once(ip).chain(via.clone()).map(|ip| ip.to_string()).collect();
        let told: Vec<_> = std::iter::once(ip).chain(via.clone()).map(|ip| format!("for={}", written(ip, true))).collect();
        let way: Vec<_> = [ip].into_iter().chain(via).chain([self::ip(PEER)]).collect();
        for fields in [
            [("x-forwarded-for", list.join(", ")), ("forwarded", sent.clone())],
            [("forwarded", told.join(", ")), ("x-forwarded-for", sent.clone())],
        ] {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let found = client(&fields);
            prop_assert!(way.iter().any(|ip| ip.to_string() == found), "{} {:?}", found, fields);
        }
    }

    #[test]
    fn no_bytes_panic(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4)) {
        let mut headers = HeaderMap::new();
        for (at, line) in lines.iter().enumerate() {
            let names = [FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO];
            if let Ok(value) = HeaderValue::from_bytes(line) {
                headers.append(names[at % 4], value);
            }
        }
        prop_assert!(believed(ip(PEER), &headers, &trusted()).is_some());
    }
}
