//! B: what a request is for. There is one host, whatever part of the request named it, and one path, byte for byte.

use super::Then::{Answered, Passed, Refused};
use super::{Answer, Case, Frames, Row, case, run, run_http2, with};
use crate::support::h2::{block, get, headers, request};

const NO_RULES: &str = "there are no rules by path: every path of a host goes to one app, so none can be got around, and \
                        the app gets the bytes the client wrote";

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "B01",
        "no Host, an empty one, two, a list",
        "400",
        &["src/proxy/target.rs::a_request_has_exactly_one_authority"],
    ),
    Row::new(
        "B02",
        "a Host that is not a name and a port",
        "400",
        &["src/proxy/target.rs::b02_an_authority_is_a_host_and_a_port"],
    ),
    Row::new("B03", "an absolute target beside another Host", "400", &[]),
    Row::new("B04", "`:authority` beside another `host`", "400", &[]).deviating(
        "400 on the stream instead of a reset: the client learns why, and no worker hears of it either way",
    ),
    Row::new(
        "B05",
        "a Host the handshake was not for",
        "421 unless the certificate and its policy cover it",
        &[
            "tests/it/refusals.rs::a_host_outside_the_connections_certificate_is_misdirected",
            "src/proxy/route/tests.rs::b05_b06_a_host_is_served_only_where_its_certificate_was_shown",
        ],
    ),
    Row::new(
        "B06",
        "a Host nobody configured",
        "421 over TLS, 404 over plain HTTP",
        &[
            "tests/it/refusals.rs::a_plain_request_for_a_name_nobody_configured_is_404",
            "src/proxy/route/tests.rs::b05_b06_a_host_is_served_only_where_its_certificate_was_shown",
        ],
    ),
    Row::new(
        "B07",
        "other spellings of a host, among 1, 99, 101 and 10,001",
        "the same app",
        &["src/proxy/route/tests.rs::b07_every_spelling_of_a_host_reaches_the_same_app"],
    ),
    Row::new(
        "B08",
        "addresses, `localhost`, a cloud's metadata",
        "421 unless configured",
        &["tests/it/refusals.rs::a_client_without_sni_gets_the_certificate_of_the_address_it_reached"],
    ),
    Row::new(
        "B09",
        "a target that is no path; `OPTIONS *`",
        "400; answered by edge",
        &["src/proxy/target.rs::only_paths_are_served"],
    ),
    Row::new(
        "B10",
        "CONNECT, TRACE",
        "405, never a tunnel",
        &["tests/it/hostile.rs::what_follows_a_refused_tunnel_is_not_a_request"],
    ),
    Row::new("B11", "a method nobody knows, one in lower case, a long one", "passed on up to 32 bytes", &[]),
    Row::new("B12", "dots in a path", "verbatim", &[]).deviating(NO_RULES),
    Row::new("B13", "empty, encoded and backward slashes, parameters", "verbatim", &[]).deviating(NO_RULES),
    Row::new("B14", "NUL, wrong encoding, raw bytes", "400", &[]),
    Row::new(
        "B15",
        "a target that is too long",
        "414",
        &["src/listen/request/tests.rs::b15_c07_a_head_has_its_bounds"],
    ),
];

pub(super) fn cases() -> Vec<Case> {
    let to = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut cases = vec![
        case("B01 none", "GET / HTTP/1.1\r\n\r\n", Refused(400)),
        case("B01 two", with("GET /", "Host: b.test\r\n\r\n"), Refused(400)),
        case("B01 two equal", with("GET /", "Host: a.test\r\n\r\n"), Refused(400)),
        case("B03 other scheme", "GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", Refused(400)),
        case(
            "B03 equal",
            "GET https://A.test/p HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
            Passed(1, &["GET /p HTTP/1.1\n", "host: a.test:443\n"], &[]),
        ),
        case("B03 differing", "GET https://a.test/ HTTP/1.1\r\nHost: b.test\r\n\r\n", Refused(400)),
        case("B03 without Host", "GET https://a.test/ HTTP/1.1\r\n\r\n", Refused(400)),
        case("B09 authority form", with("GET x", "\r\n"), Refused(400)),
        case("B09 star", with("GET *", "\r\n"), Refused(400)),
        case("B09 fragment", with("GET /a#b", "\r\n"), Refused(400)),
        case("B09 server", with("OPTIONS *", "\r\n"), Answered(204)),
        case("B10 TRACE", with("TRACE /", "\r\n"), Refused(405)),
        case("B10 CONNECT", "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", Refused(405)),
        case("B10 CONNECT a path", with("CONNECT /", "\r\n"), Refused(405)),
        case("B11 unknown", with("BREW /", "\r\n"), Passed(1, &["BREW / HTTP/1.1\n"], &[])),
        case("B11 lower case", with("get /", "\r\n"), Passed(1, &["get / HTTP/1.1\n"], &[])),
        case("B11 long", with(&format!("{} /", "A".repeat(33)), "\r\n"), Refused(400)),
        case("B15 path", with(&format!("GET /{}", "a".repeat(16_384)), "\r\n"), Refused(414)),
        case("B15 query", with(&format!("GET /?{}", "&".repeat(8_192)), "\r\n"), Refused(414)),
    ];
    for (id, host) in [
        ("B01 empty", ""),
        ("B01 list", "a.test, b.test"),
        ("B02 userinfo", "u@a.test"),
        ("B02 path", "a.test/evil"),
        ("B02 space", "a.test b"),
        ("B02 encoded", "a%2etest"),
        ("B02 port too large", "a.test:99999"),
        ("B02 port a word", "a.test:x"),
        ("B02 port signed", "a.test:+80"),
        ("B02 open bracket", "[::1"),
        ("B02 backslash", "a.test\\b"),
    ] {
        cases.push(case(id, to(host), Refused(400)));
    }
    for (id, host) in [
        ("B06 unknown", "unknown.test"),
        ("B06 below", "sub.a.test"),
        ("B08 address", "127.0.0.1"),
        ("B08 localhost", "localhost"),
        ("B08 metadata", "169.254.169.254"),
        ("B08 address of version 6", "[::1]"),
    ] {
        cases.push(case(id, to(host), Answered(421)));
    }
    for (id, host) in [("B07 upper case", "A.TEST"), ("B07 dot", "a.test."), ("B07 port", "a.test:443")] {
        cases.push(case(id, to(host), Passed(1, &["GET / HTTP/1.1\n"], &[])));
    }
    for (id, path, seen) in [
        ("B12 dots", "/a/../b", &["GET /a/../b HTTP/1.1\n"][..]),
        ("B12 encoded dots", "/%2e%2e/b", &["GET /%2e%2e/b HTTP/1.1\n"][..]),
        ("B12 one dot", "/a/./b", &["GET /a/./b HTTP/1.1\n"][..]),
        ("B13 empty", "//x", &["GET //x HTTP/1.1\n"][..]),
        ("B13 parameters", "/a;b", &["GET /a;b HTTP/1.1\n"][..]),
        ("B13 encoded slash", "/a%2fb%5C", &["GET /a%2fb%5C HTTP/1.1\n"][..]),
        ("B13 backslash", "/a\\b", &["GET /a\\b HTTP/1.1\n"][..]),
    ] {
        cases.push(case(id, with(&format!("GET {path}"), "\r\n"), Passed(1, seen, &[])));
    }
    for (id, path) in [
        ("B14 NUL", "/%00"),
        ("B14 not hexadecimal", "/%zz"),
        ("B14 cut", "/a%2"),
        ("B14 raw path", "/\u{e9}"),
        ("B14 raw query", "/?\u{e9}"),
        ("B14 control", "/\x01"),
    ] {
        cases.push(case(id, with(&format!("GET {path}"), "\r\n"), Refused(400)));
    }
    cases
}

pub(super) fn http2() -> Vec<Frames> {
    let path = |path: &str| headers(1, true, &get("a.test", path, &[]));
    let host =
        |authority: &str, host: &str| headers(1, true, &get(authority, "/", &[(b"host", host.as_bytes())]));
    let neither = block(&[(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")]);
    [
        ("B04 differing", host("a.test", "b.test"), Answer::Status(400)),
        ("B04 equal", host("a.test", "a.test"), Answer::Passed(&["host: a.test\n"], &[])),
        ("B04 neither", headers(1, true, &neither), Answer::Status(400)),
        ("B02 userinfo", headers(1, true, &get("u@a.test", "/", &[])), Answer::Status(400)),
        ("B06 unknown", headers(1, true, &get("unknown.test", "/", &[])), Answer::Status(421)),
        ("B10 TRACE", headers(1, true, &request("TRACE", "a.test", "/", &[])), Answer::Status(405)),
        ("B12 dots", path("/a/../%2e/b"), Answer::Passed(&["GET /a/../%2e/b HTTP/1.1\n"], &[])),
        ("B14 NUL", path("/%00"), Answer::Status(400)),
        ("B14 raw", path("/\u{e9}"), Answer::Status(400)),
        ("B15 path", path(&format!("/{}", "a".repeat(8_192))), Answer::Status(414)),
    ]
    .into_iter()
    .map(|(id, sent, then)| Frames { id, sent, then })
    .collect()
}

#[tokio::test]
async fn a_request_is_for_one_host_and_one_path() {
    run(cases()).await;
}

#[tokio::test]
async fn over_http2_too() {
    run_http2(http2()).await;
}
