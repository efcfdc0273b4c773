use http::header::CONTENT_TYPE;
use http::{Method, Request, Version};
use proptest::prelude::*;

use super::*;
use crate::config::check_limits::presets;
use crate::proxy::target::look_over;
use crate::upstream::wire::{RequestFraming, RequestHead, write_request_head};

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("valid");
        headers.append(name, HeaderValue::from_str(value).expect("valid"));
    }
    headers
}

/// Makes `headers` what a worker reads of them.
fn forward(headers: &mut HeaderMap, client: &str, host: &str, version: Version) {
    let about = Forwarding {
        client: client.parse().expect("valid"),
        client_text: &HeaderValue::from_str(client).expect("valid"),
        secure: true,
        host: &HeaderValue::from_str(host).expect("valid"),
        request_id: 0x1f,
        client_subject: None,
        trailers: false,
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.version, parts.headers) = (version, std::mem::take(headers));
    let present = look_over(&parts, &presets().1).expect("within bounds");
    *headers = parts.headers;
    request(headers, &present);
    let head = RequestHead {
        method: &Method::GET,
        target: "/",
        host: about.host,
        headers,
        add: &|out| forwarding(out, &about),
        upgrade: false,
    };
    let mut text = Vec::new();
    write_request_head(&mut text, &head, RequestFraming::None).expect("can be said");
    let mut lines = [httparse::EMPTY_HEADER; 64];
    let mut read = httparse::Request::new(&mut lines);
    assert!(read.parse(&text).expect("valid").is_complete());
    *headers = HeaderMap::new();
    for line in read.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).expect("valid");
        headers.append(name, HeaderValue::from_bytes(line.value).expect("valid"));
    }
}

/// What edge itself tells a worker.
const TOLD: [(&str, &str); 7] = [
    ("host", "a.test:8443"),
    ("x-forwarded-for", "192.0.2.1"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "a.test:8443"),
    ("x-real-ip", "192.0.2.1"),
    ("forwarded", "for=192.0.2.1;host=\"a.test:8443\";proto=https"),
    ("x-request-id", "000000000000001f"),
];

fn forwarded_from(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = map(fields);
    forward(&mut headers, "192.0.2.1", "a.test:8443", Version::HTTP_11);
    headers
}

/// What is left of `fields` besides what edge tells.
fn left(fields: &[(&str, &str)]) -> Vec<String> {
    let headers = forwarded_from(fields);
    let own = |name: &HeaderName| TOLD.iter().any(|(told, _)| name == told);
    headers.keys().filter(|name| !own(name)).map(ToString::to_string).collect()
}

#[test]
fn c01_a_worker_learns_of_the_client_from_edge_alone() {
    let headers = forwarded_from(&[
        ("host", "A.test:8443"),
        ("x-forwarded-for", "6.6.6.6"),
        ("X-Forwarded-For", "7.7.7.7"),
        ("x-forwarded-proto", "ftp"),
        ("x-forwarded-host", "evil"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("x-request-id", "mine"),
    ]);
    assert_eq!(headers.len(), TOLD.len(), "{headers:?}");
    for (name, value) in TOLD {
        assert_eq!(headers[name], value, "{name}");
    }
    for name in [
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-server",
        "x-forwarded-ssl",
        "x-forwarded",
        "true-client-ip",
        "cf-connecting-ip",
        "via",
        "x-client-ip",
        "x-client-cert-subject",
    ] {
        assert!(left(&[(name, "6.6.6.6")]).is_empty(), "{name}");
    }
}

#[test]
fn c02_names_that_a_worker_could_take_for_another_are_dropped() {
    for name in ["x_forwarded_for", "x.forwarded.for", "transfer_encoding", "a_b", "a.b"] {
        assert!(left(&[(name, "1")]).is_empty(), "{name}");
    }
}

#[test]
fn c03_connection_removes_what_it_names_but_nothing_edge_writes() {
    let fields = [
        ("connection", "close, X-Real-IP, X-Forwarded-Proto, Cookie, Host, , x-custom"),
        ("connection", "X-Other, \u{e9}"),
        ("cookie", "a=b"),
        ("x-custom", "1"),
        ("x-other", "1"),
        ("accept", "*/*"),
    ];
    assert_eq!(left(&fields), ["accept"]);
    let headers = forwarded_from(&fields);
    for (name, value) in TOLD {
        assert_eq!(headers[name], value, "{name}");
    }
}

#[test]
fn a02_c04_c05_fields_of_one_hop_end_here() {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "proxy-authenticate",
        "proxy",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "content-length",
        "transfer-encoding",
        "expect",
    ] {
        assert!(left(&[(name, "5")]).is_empty(), "{name}");
    }
}

#[test]
fn everything_else_passes_in_its_order() {
    let fields =
        [("accept", "*/*"), ("authorization", "Basic eA=="), ("sec-websocket-key", "k"), ("x-app", "1")];
    assert_eq!(left(&fields), ["accept", "authorization", "sec-websocket-key", "x-app"]);
    let headers = forwarded_from(&[("accept", "a"), ("accept", "b")]);
    assert_eq!(headers.get_all("accept").iter().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn cookie_crumbs_of_http2_become_one_cookie() {
    let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
    let mut headers = map(&crumbs);
    forward(&mut headers, "192.0.2.1", "a.test", Version::HTTP_2);
    assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    let mut headers = map(&crumbs[..1]);
    forward(&mut headers, "192.0.2.1", "a.test", Version::HTTP_2);
    assert_eq!(headers[COOKIE], "a=1");
    let mut headers = map(&crumbs);
    forward(&mut headers, "192.0.2.1", "a.test", Version::HTTP_11);
    assert_eq!(headers.get_all(COOKIE).iter().count(), 3, "other versions have no crumbs");
}

#[test]
fn an_ipv6_client_is_quoted_in_forwarded_and_bare_elsewhere() {
    let mut headers = HeaderMap::new();
    forward(&mut headers, "2001:db8::1", "a.test", Version::HTTP_11);
    assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=a.test;proto=https");
    assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
    assert_eq!(headers["x-real-ip"], "2001:db8::1");
}

proptest! {
    #[test]
    fn a_request_id_is_its_number_in_hexadecimal(id: u64) {
        let text = format!("{id:016x}");
        prop_assert_eq!(&request_id(id)[..], text.as_bytes());
    }

    #[test]
    fn whatever_clients_send_a_worker_gets_each_field_of_edge_once(
        fields in prop::collection::vec(("[a-zA-Z_.-]{1,12}|[Xx]-[Ff]orwarded-([Ff]or|proto|HOST)|[cC]onnection|[hH]ost", "[ -~]{0,24}"), 0..12),
    ) {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let headers = forwarded_from(&fields);
        for (name, value) in TOLD {
            prop_assert_eq!(headers.get_all(name).iter().collect::<Vec<_>>(), [value]);
        }
        prop_assert!(headers.keys().all(|name| !name.as_str().contains(['_', '.']) && *name != CONNECTION));
    }
}

#[test]
fn an_event_stream_says_so() {
    for (kind, is) in [
        ("text/event-stream", true),
        ("Text/Event-Stream; charset=utf-8", true),
        ("text/event-streams", false),
        ("text/plain", false),
    ] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        assert_eq!(is_event_stream(&headers), is, "{kind}");
    }
    assert!(!is_event_stream(&HeaderMap::new()));
}
