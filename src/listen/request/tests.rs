use proptest::prelude::*;

use super::*;
use crate::config::check_limits::presets;

const HEAD_SIZE: usize = 16_000;
const HEADER_FIELDS: usize = 100;

/// What reading `text` comes to: the framing and length of a head, a status, or nothing yet.
fn outcome(text: &[u8]) -> Result<Option<(RequestFraming, usize)>, u16> {
    match read(&Bytes::copy_from_slice(text), &presets().1) {
        Ok(head) => Ok(head.map(|(head, length)| (head.framing, length))),
        Err(Fault::Refused(refused)) => Err(refused.1.status().as_u16()),
        Err(Fault::Foreign) => Err(0),
    }
}

fn framing(fields: &str) -> Result<RequestFraming, u16> {
    let text = format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    outcome(text.as_bytes()).map(|head| {
        let (framing, length) = head.expect("complete");
        assert_eq!(length, text.len());
        framing
    })
}

#[test]
fn there_is_one_way_to_frame_a_body_or_none() {
    use RequestFraming::{Chunked, Length, None};
    for (id, fields, expected) in [
        ("none", "", Ok(None)),
        ("A15", "content-length: 5\r\n", Ok(Length(5))),
        ("zero", "content-length: 0\r\n", Ok(None)),
        ("A08", "content-length: 0005\r\n", Ok(Length(5))),
        ("A07 equal", "content-length: 5\r\ncontent-length: 5\r\n", Ok(Length(5))),
        ("A07 unequal", "content-length: 5\r\ncontent-length: 6\r\n", Err(400)),
        ("A07 list", "content-length: 5, 5\r\n", Err(400)),
        ("A07 plus", "content-length: +5\r\n", Err(400)),
        ("A07 minus", "content-length: -1\r\n", Err(400)),
        ("A07 hex", "content-length: 0x5\r\n", Err(400)),
        ("A07 spaced", "content-length: 5 5\r\n", Err(400)),
        ("A07 empty", "content-length:\r\n", Err(400)),
        ("A07 large", "content-length: 9223372036854775808\r\n", Err(400)),
        ("A03 plain", "transfer-encoding: chunked\r\n", Ok(Chunked)),
        ("A03 case", "Transfer-Encoding: Chunked\r\n", Ok(Chunked)),
        ("A03 x", "transfer-encoding: xchunked\r\n", Err(501)),
        ("A03 quoted", "transfer-encoding: \"chunked\"\r\n", Err(501)),
        ("A03 parameter", "transfer-encoding: chunked;q=1\r\n", Err(501)),
        ("A03 vertical tab", "transfer-encoding: \x0bchunked\r\n", Err(400)),
        ("A04 identity", "transfer-encoding: identity, chunked\r\n", Err(501)),
        ("A04 gzip", "transfer-encoding: gzip, chunked\r\n", Err(501)),
        ("A04 comma", "transfer-encoding: ,chunked\r\n", Err(501)),
        ("A04 twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", Err(501)),
        ("A05 space", "transfer-encoding : chunked\r\n", Err(400)),
        ("A05 folded", "transfer-encoding:\r\n chunked\r\n", Err(400)),
        ("A01 CL.TE", "content-length: 5\r\ntransfer-encoding: chunked\r\n", Err(400)),
        ("A01 TE.CL", "transfer-encoding: chunked\r\ncontent-length: 5\r\n", Err(400)),
        ("A01 zero", "transfer-encoding: chunked\r\ncontent-length: 0\r\n", Err(400)),
        ("A14 bare CR", "x: a\rb\r\n", Err(400)),
        ("A14 NUL", "x: a\0b\r\n", Err(400)),
        ("A14 no colon", "x\r\n", Err(400)),
        ("A14 empty name", ": x\r\n", Err(400)),
        ("A14 name with space", "x y: z\r\n", Err(400)),
        ("A14 name not ASCII", "\u{e9}: z\r\n", Err(400)),
        ("A14 leading space", " x: z\r\n", Err(400)),
    ] {
        assert_eq!(framing(fields), expected, "{id}");
    }
}

#[test]
fn a_request_line_is_a_method_a_target_and_a_version_that_is_spoken() {
    for (id, line, expected) in [
        ("plain", "GET / HTTP/1.1", None),
        ("old", "GET / HTTP/1.0", None),
        ("A18 two spaces", "GET  / HTTP/1.1", Some(400)),
        ("A18 tab", "GET\t/ HTTP/1.1", Some(400)),
        ("A18 1.2", "GET / HTTP/1.2", Some(505)),
        ("A18 9.9", "GET / HTTP/9.9", Some(505)),
        ("A18 lower case", "GET / http/1.1", Some(505)),
        ("A18 0.9", "GET /", Some(400)),
        ("B09 fragment", "GET /a#b HTTP/1.1", Some(400)),
        ("F08 space", "GET /a b HTTP/1.1", Some(505)),
        ("A19 preface", "PRI * HTTP/2.0", Some(400)),
        ("A19 handshake", "\u{16}\u{3}\u{1}\u{2}\0\u{1}", Some(0)),
        ("no method", " / HTTP/1.1", Some(400)),
        ("method with a separator", "GE(T / HTTP/1.1", Some(400)),
    ] {
        assert_eq!(outcome(format!("{line}\r\n\r\n").as_bytes()).err(), expected, "{id}");
    }
}

#[test]
fn a_target_with_a_query_and_no_path_is_for_the_root() {
    for (target, expected) in [
        ("/a?b", Some("/a?b")),
        ("http://a.test", Some("/")),
        ("http://a.test?b=c", Some("/?b=c")),
        ("http://a.test:81?", Some("/?")),
        ("http://a.test/?b", Some("/?b")),
        ("a.test:80", None),
    ] {
        let text = format!("GET {target} HTTP/1.1\r\n\r\n");
        let head = read(&Bytes::from(text), &presets().1).expect("well formed").expect("complete").0;
        let uri = head.parts.uri;
        assert_eq!(uri.path_and_query().map(|path| path.as_str()), expected, "{target}");
        assert_eq!(uri.host().is_some(), !target.starts_with('/'), "{target}");
    }
}

#[test]
fn a13_a19_bare_line_feeds_and_a_few_empty_lines_are_taken_for_what_they_mean() {
    let text = b"GET / HTTP/1.1\nhost: a\n\n";
    assert_eq!(outcome(text), Ok(Some((RequestFraming::None, text.len()))));
    for (lines, expected) in [(1, None), (3, None), (4, Some(400))] {
        let text = format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n".repeat(lines));
        assert_eq!(outcome(text.as_bytes()).err(), expected, "{lines}");
    }
}

#[test]
fn a06_transfer_encoding_came_with_http_1_1() {
    assert_eq!(outcome(b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"), Err(400));
}

#[test]
fn b15_c07_a_head_has_its_bounds() {
    let long = |length| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length));
    assert_eq!(outcome(&long(HEAD_SIZE).as_bytes()[..HEAD_SIZE]), Err(414));
    assert_eq!(outcome(&long(HEAD_SIZE - 100).as_bytes()[..HEAD_SIZE - 200]), Ok(None));
    let field = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(HEAD_SIZE));
    assert_eq!(outcome(field.as_bytes()), Err(431));
    assert_eq!(outcome(&field.as_bytes()[..HEAD_SIZE]), Err(431), "refused before its end");
    let fields = |count| format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(outcome(fields(HEADER_FIELDS).as_bytes()).err(), None);
    assert_eq!(outcome(fields(HEADER_FIELDS + 1).as_bytes()).err(), Some(431));
}

#[test]
fn what_is_refused_is_still_told_apart_in_the_log() {
    let Err(Fault::Refused(refused)) =
        read(&Bytes::from_static(b"PUT /a HTTP/1.1\r\nx\r\n\r\n"), &presets().1)
    else {
        panic!("a field without colon");
    };
    assert_eq!((refused.0.method.as_str(), refused.0.uri.path()), ("PUT", "/a"));
    let Err(Fault::Refused(refused)) = read(&Bytes::from_static(b"\x01\x02\r\n\r\n"), &presets().1) else {
        panic!("no request");
    };
    assert_eq!((refused.0.method.as_str(), refused.0.uri.path()), ("-", "*"));
}

#[test]
fn a_client_says_what_it_means_to_do() {
    let head = |version: &str, fields: &str| {
        let text = format!("GET / HTTP/{version}\r\n{fields}\r\n");
        read(&Bytes::from(text), &presets().1).expect("well formed").expect("complete").0
    };
    for (version, fields, persistent) in [
        ("1.1", "", true),
        ("1.1", "connection: close\r\n", false),
        ("1.1", "connection: TE, Close\r\n", false),
        ("1.0", "", false),
        ("1.0", "connection: Keep-Alive\r\n", true),
        ("1.0", "connection: keep-alive, close\r\n", false),
    ] {
        assert_eq!(head(version, fields).persistent, persistent, "{version} {fields}");
    }
    assert!(head("1.1", "expect: 100-Continue\r\n").expects_continue);
    assert!(!head("1.0", "expect: 100-continue\r\n").expects_continue);
    assert!(head("1.1", "te: deflate, trailers\r\n").takes_trailers);
    assert!(!head("1.1", "te: deflate\r\n").takes_trailers);
}

proptest! {
    /// P1: no bytes do more than being refused, and a head never reaches beyond what there is.
    #[test]
    fn any_bytes_are_a_head_or_a_refusal_or_incomplete(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some((_, length))) = outcome(&text) {
            prop_assert!(length <= text.len());
        }
    }

    /// P2: wherever a head is cut, it is read as the same head once the rest is here.
    #[test]
    fn a_head_is_the_same_however_it_comes(cut in 0_usize..80, fields in "(x-[a-z]{1,5}: [!-~]{0,10}\r\n){0,4}") {
        let text = format!("POST /p?q HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n{fields}\r\n");
        let cut = cut.min(text.len() - 1);
        prop_assert_eq!(outcome(&text.as_bytes()[..cut]), Ok(None));
        let followed = format!("{text}GET /next");
        prop_assert_eq!(outcome(followed.as_bytes()), Ok(Some((RequestFraming::Length(7), text.len()))));
    }
}
