use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const MAX_HEAD: usize = 64_000;
const MAX_FIELDS: usize = 200;

const GET: Asked = Asked { head: false, upgrade: false };
const HEAD: Asked = Asked { head: true, upgrade: false };
const SOCKET: Asked = Asked { head: false, upgrade: true };

fn limits() -> ResponseLimits {
    ResponseLimits { head_size: MAX_HEAD, fields: MAX_FIELDS, interim: 10 }
}

fn parse(text: &str, asked: Asked) -> Result<ResponseHead, &'static str> {
    match parse_response_head(&Bytes::copy_from_slice(text.as_bytes()), asked, &limits()) {
        Ok(Some((head, length))) => {
            assert_eq!(length, text.len(), "{text:?}");
            Ok(head)
        }
        Ok(None) => panic!("incomplete: {text:?}"),
        Err(Malformed(what)) => Err(what),
    }
}

fn request(
    method: &str,
    target: &str,
    fields: &[(&str, &str)],
    framing: RequestFraming,
) -> Result<String, Malformed> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
        headers.append(name, value.parse().expect("value"));
    }
    let method = Method::from_bytes(method.as_bytes()).expect("method");
    let mut out = Vec::new();
    let host = headers.get(HOST).expect("each has one").clone();
    let head =
        RequestHead { method: &method, target, host: &host, headers: &headers, add: &|_| {}, upgrade: false };
    write_request_head(&mut out, &head, framing)?;
    Ok(String::from_utf8(out).expect("text"))
}

#[test]
fn the_end_of_a_body_is_found_as_the_rfc_says() {
    use ResponseFraming::{Chunked, Length, None as Nothing, UntilClose};
    for (text, asked, framing, reusable, length) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", GET, Length(5), true, Some("5")),
        ("HTTP/1.1 200 OK\r\ncontent-length: 007\r\n\r\n", GET, Length(7), true, Some("7")),
        ("HTTP/1.1 200\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", GET, Length(5), true, Some("5")),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", GET, Chunked, true, None),
        // Both: the coding wins, and the connection is not used again.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            GET,
            Chunked,
            false,
            None,
        ),
        ("HTTP/1.1 200 OK\r\n\r\n", GET, UntilClose, false, None),
        ("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n\r\n", GET, UntilClose, false, None),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n\r\n",
            GET,
            Length(0),
            false,
            Some("0"),
        ),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", GET, Length(5), false, Some("5")),
        (
            "HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n",
            GET,
            Length(5),
            true,
            Some("5"),
        ),
        ("HTTP/1.0 200 OK\r\n\r\n", GET, UntilClose, false, None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", HEAD, Nothing, true, Some("5")),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", HEAD, Nothing, true, None),
        ("HTTP/1.1 204 No Content\r\n\r\n", GET, Nothing, true, None),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", GET, Nothing, false, None),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", GET, Nothing, true, Some("5")),
        ("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", GET, Nothing, true, None),
        ("HTTP/1.1 426 Upgrade Required\r\ncontent-length: 0\r\n\r\n", SOCKET, Length(0), false, Some("0")),
    ] {
        let head = parse(text, asked).expect(text);
        assert_eq!((head.framing, head.reusable), (framing, reusable), "{text:?}");
        let known = head.response.headers().get(CONTENT_LENGTH).map(|value| value.to_str().expect("text"));
        assert_eq!(known, length, "{text:?}");
        assert!(
            !head.response.headers().contains_key(TRANSFER_ENCODING)
                && !head.response.headers().contains_key(CONNECTION),
            "{text:?}"
        );
    }
}

#[test]
fn what_is_no_valid_answer_is_refused() {
    for (text, asked) in [
        ("garbage\r\n\r\n", GET),
        ("HTTP/2.0 200 OK\r\n\r\n", GET),
        ("HTTP/1.2 200 OK\r\n\r\n", GET),
        ("HTTP/1.1 099 X\r\n\r\n", GET),
        ("HTTP/1.1 600 X\r\n\r\n", GET),
        ("HTTP/1.1 20 X\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5 5\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9223372036854775808\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ncontent-length: x\r\ntransfer-encoding: chunked\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked;q=1\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", GET),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\na: b\0c\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", GET),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", GET),
        ("HTTP/1.1 101 X\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\n", GET),
        ("HTTP/1.1 101 X\r\nupgrade: h2c\r\nsec-websocket-accept: x\r\n\r\n", SOCKET),
        ("HTTP/1.1 101 X\r\nupgrade: websocket\r\n\r\n", SOCKET),
        ("HTTP/1.1 101 X\r\nsec-websocket-accept: x\r\n\r\n", SOCKET),
    ] {
        assert!(parse(text, asked).is_err(), "{text:?}");
    }
}

#[test]
fn heads_beyond_the_limits_are_refused_and_those_within_pass() {
    let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(count));
    assert_eq!(parse(&fields(MAX_FIELDS), GET).expect("200 fields").response.headers().len(), MAX_FIELDS);
    assert_eq!(parse(&fields(MAX_FIELDS + 1), GET).expect_err("201"), "its head has too many fields");
    let field = |size: usize| format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(size));
    assert!(parse(&field(60_000), GET).is_ok());
    assert_eq!(parse(&field(MAX_HEAD), GET).expect_err("64 KiB"), "its head is too long");
    let endless = Bytes::from(format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD)));
    assert!(parse_response_head(&endless, GET, &limits()).is_err());
}

#[test]
fn fields_of_the_connection_stay_behind_and_the_rest_passes_in_order() {
    let head = parse(
        "HTTP/1.1 200 OK\r\nServer: w\r\nConnection: keep-alive, X-Hop, Content-Length\r\nKeep-Alive: timeout=5\r\n\
         X-Hop: 1\r\nUpgrade: h2c\r\nTE: x\r\nProxy-Connection: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\
         Trailer: t\r\nX-Bytes: \u{e9}\r\nContent-Length: 3\r\n\r\n",
        GET,
    )
    .expect("valid");
    let mut names: Vec<_> = head.response.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "server", "set-cookie", "trailer", "x-bytes"]);
    let cookies: Vec<_> = head.response.headers().get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a", "b"]);
    assert_eq!(head.response.headers()["x-bytes"].as_bytes(), "\u{e9}".as_bytes());
}

#[test]
fn a_switch_to_websocket_keeps_what_the_client_must_see() {
    let text =
        "HTTP/1.1 101 X\r\nconnection: Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-accept: x\r\n\r\n";
    let head = parse(text, SOCKET).expect("valid");
    assert!(!head.is_interim());
    assert_eq!(
        (&head.response.headers()["upgrade"], head.response.headers().len()),
        (&HeaderValue::from_static("WebSocket"), 2)
    );
}

#[test]
fn an_upgrade_is_named_where_it_is_required_and_nowhere_else() {
    for (status, named) in [(426, true), (200, false), (400, false)] {
        let text = format!("HTTP/1.1 {status} X\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
        for asked in [GET, SOCKET] {
            let head = parse(&text, asked).expect("valid");
            assert_eq!(head.response.headers().contains_key("upgrade"), named, "{status} {asked:?}");
        }
    }
}

#[test]
fn a_request_has_exactly_one_framing() {
    let fields = [("accept", "*/*"), ("content-length", "9"), ("host", "a.test"), ("transfer-encoding", "x")];
    for (method, framing, last) in [
        ("GET", RequestFraming::None, ""),
        ("POST", RequestFraming::None, "content-length: 0\r\n"),
        ("POST", RequestFraming::Length(12), "content-length: 12\r\n"),
        ("GET", RequestFraming::Chunked, "transfer-encoding: chunked\r\n"),
    ] {
        let text = request(method, "/a?b", &fields, framing).expect("valid");
        assert_eq!(text, format!("{method} /a?b HTTP/1.1\r\nhost: a.test\r\naccept: */*\r\n{last}\r\n"));
    }
}

#[test]
fn a_websocket_handshake_asks_for_it() {
    let head = RequestHead {
        method: &Method::GET,
        target: "/",
        host: &HeaderValue::from_static("a"),
        headers: &HeaderMap::new(),
        add: &|out| out.extend_from_slice(b"x-own: 1\r\n"),
        upgrade: true,
    };
    let mut out = Vec::new();
    write_request_head(&mut out, &head, RequestFraming::None).expect("valid");
    let text = String::from_utf8(out).expect("text");
    assert_eq!(
        text,
        "GET / HTTP/1.1\r\nhost: a\r\nx-own: 1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    );
}

#[test]
fn what_would_read_differently_in_http1_is_not_written() {
    let host = [("host", "a")];
    for target in ["", "x", "*", "http://a/", "/a b", "/a\r\nx: y", "/\0", "/#f", "/\u{e9}", "/\u{7f}"] {
        assert!(request("GET", target, &host, RequestFraming::None).is_err(), "{target:?}");
    }
    assert!(request("OPTIONS", "*", &host, RequestFraming::None).is_ok());
    let twice = request("GET", "/", &[("host", "a"), ("host", "b")], RequestFraming::None).expect("valid");
    assert_eq!(twice.matches("host:").count(), 1, "only the one that was decided on is written");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), head: bool, upgrade: bool) {
        let _ = parse_response_head(&Bytes::from(bytes), Asked { head, upgrade }, &limits());
    }

    #[test]
    fn no_fields_panic(text in "HTTP/1\\.[01] [0-9]{3} ?[a-z]?\r\n([a-zA-Z-]{1,18}: ?[ -~]{0,20}\r\n){0,6}\r\n.{0,9}") {
        let _ = parse_response_head(&Bytes::from(text), SOCKET, &limits());
    }
}

#[test]
fn a_head_is_complete_at_its_last_byte_and_not_before() {
    let text = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nserver: w\r\nx-some-header: and value\r\n\r\n";
    for cut in 0..text.len() {
        assert!(
            matches!(parse_response_head(&Bytes::from_static(&text[..cut]), GET, &limits()), Ok(None)),
            "{cut}"
        );
    }
    assert!(matches!(parse_response_head(&Bytes::from_static(text), GET, &limits()), Ok(Some(_))));
}
