//! A: where a request of HTTP/1 ends. Whatever may be read in two ways reaches no worker.

use super::Then::{Answered, Dropped, Passed, Refused};
use super::{Case, Row, case, run, with};

pub(super) const ROWS: &[Row] = &[
    Row::new("A01", "Content-Length beside Transfer-Encoding, either order", "400, close", &[
        "tests/it/proxying.rs::a_request_that_can_be_framed_in_two_ways_reaches_no_worker",
        "src/listen/request/tests.rs::there_is_one_way_to_frame_a_body_or_none",
    ])
    .deviating(
        "RFC 9112 §6.3 also allows to read it by its chunks alone; whoever sends both means harm or is broken, and \
         a refusal tells either",
    ),
    Row::new("A02", "what leaves edge", "exactly one framing, written by edge", &[
        "src/upstream/wire/tests.rs::a_request_has_exactly_one_framing",
        "src/proxy/headers/tests.rs::a02_c04_c05_fields_of_one_hop_end_here",
    ]),
    Row::new("A03", "a Transfer-Encoding that is nearly `chunked`", "400 or 501, close", &[]),
    Row::new("A04", "a list of codings, or two lines", "501, close", &[
        "src/proxy/target.rs::a04_a17_only_understood_framing_and_expectations_pass",
    ]),
    Row::new("A05", "space before the colon, a folded line, an underscore", "400; the alias is dropped", &[]),
    Row::new("A06", "Transfer-Encoding on HTTP/1.0", "400, close", &[
        "src/listen/request/tests.rs::a06_transfer_encoding_came_with_http_1_1",
    ]),
    Row::new("A07", "Content-Length unequal, a list, signed, hexadecimal, spaced, empty, too large", "400, close", &[]),
    Row::new("A08", "Content-Length with leading zeros", "passed on as a plain number", &[]),
    Row::new("A09", "a chunk size that is no hexadecimal number", "400, close, no fault of the worker", &[
        "tests/it/http1.rs::a09_a10_a11_a_body_that_is_not_well_framed_is_400_and_no_fault_of_the_worker",
    ]),
    Row::new("A10", "chunk extensions: some, too many, with a line feed", "dropped; 400", &[
        "tests/it/http1.rs::a09_a10_a11_a_body_that_is_not_well_framed_is_400_and_no_fault_of_the_worker",
    ]),
    Row::new("A11", "bare line feeds in the chunked coding, data longer than its size", "400, close", &[
        "tests/it/http1.rs::a09_a10_a11_a_body_that_is_not_well_framed_is_400_and_no_fault_of_the_worker",
    ]),
    Row::new("A12", "trailers that frame, route or authorise; too many, too large", "dropped; 400", &[
        "src/upstream/request_body.rs::a12_trailers_are_bounded_in_fields_and_bytes",
        "src/upstream/framing.rs::a12_trailers_cannot_change_how_a_message_is_read",
    ]),
    Row::new("A13", "lines that end with a bare line feed, pipelined", "rewritten, the same boundaries at the worker", &[
        "src/listen/request/tests.rs::a13_a19_bare_line_feeds_and_a_few_empty_lines_are_taken_for_what_they_mean",
    ]),
    Row::new("A14", "control characters in a value, folded lines, names that are none", "400, close", &[]),
    Row::new("A15", "GET, HEAD and DELETE with a body", "passed on with its framing", &[]),
    Row::new("A16", "a second request after an ambiguous first", "never answered", &[
        "tests/it/hostile.rs::what_follows_a_refused_tunnel_is_not_a_request",
    ]),
    Row::new("A17", "Expect: 100-continue and nothing, another expectation", "100 once the body is wanted; 417", &[
        "tests/it/http1.rs::a17_100_is_said_once_the_body_is_wanted_and_not_otherwise",
    ]),
    Row::new("A18", "a request line that is not three words, another version", "400, 505", &[
        "src/listen/request/tests.rs::a_request_line_is_a_method_a_target_and_a_version_that_is_spoken",
    ]),
    Row::new("A19", "empty lines first, TLS on the plain port, HTTP/2 unasked", "400 or close", &[
        "tests/it/http1.rs::a19_what_is_not_http_1_is_told_so_or_left",
    ]),
    Row::new("A20", "a hundred requests at once", "answered in order, one at a time upstream", &[
        "tests/it/http1.rs::a20_pipelined_requests_are_answered_in_order_and_asked_one_at_a_time",
    ]),
];

pub(super) fn cases() -> Vec<Case> {
    let post = |fields: &str| with("POST /", &format!("{fields}\r\n\r\n"));
    let chunked = |rest: &str| with("POST /", &format!("Transfer-Encoding: chunked\r\n\r\n{rest}"));
    let both = "Content-Length: 4\r\nTransfer-Encoding: chunked";
    let turned = "Transfer-Encoding: chunked\r\nContent-Length: 4";
    let mut cases = vec![
        case("A01 CL.TE", post(both) + "0\r\n\r\n", Refused(400)),
        case("A01 TE.CL", post(turned) + "0\r\n\r\n", Refused(400)),
        case(
            "A01 CL.TE kept alive",
            post(&format!("{both}\r\nConnection: keep-alive")) + "0\r\n\r\n",
            Refused(400),
        ),
        case(
            "A01 TE.CL kept alive",
            post(&format!("{turned}\r\nConnection: keep-alive")) + "0\r\n\r\n",
            Refused(400),
        ),
        case("A01 TE.0", post("Transfer-Encoding: chunked\r\nContent-Length: 0") + "0\r\n\r\n", Refused(400)),
        case(
            "A02 length",
            post("Content-Length: 4") + "body",
            Passed(1, &["content-length: 4\n", "\nbody\n"], &["transfer-encoding"]),
        ),
        case(
            "A02 chunks",
            chunked("2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"),
            Passed(1, &["transfer-encoding: chunked\n", "\nbody\n"], &["content-length"]),
        ),
        case("A05 underscore", post("Transfer_Encoding: chunked"), Passed(1, &[], &["chunked"])),
        case(
            "A07 equal lines",
            post("Content-Length: 4\r\nContent-Length: 4") + "body",
            Passed(1, &["content-length: 4\n"], &[]),
        ),
        case("A08", post("Content-Length: 0004") + "body", Passed(1, &["content-length: 4\n"], &["0004"])),
        case(
            "A10 dropped",
            chunked("4;name=\"a;b\"\r\nbody\r\n0;last\r\n\r\n"),
            Passed(1, &["\nbody\n"], &["name", "last"]),
        ),
        case(
            "A12 dropped",
            chunked(
                "4\r\nbody\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\nHost: b.test\r\nX-Forwarded-For: 6.6.6.6\r\n\
                 Authorization: Basic eA==\r\nX_Real_IP: 6.6.6.6\r\nCookie: a=b\r\nSum: 1\r\n\r\n",
            ),
            Passed(
                1,
                &["\nbody\n", "sum: 1"],
                &["content-length", "gzip", "b.test", "6.6.6.6", "authorization", "cookie"],
            ),
        ),
        case("A12 many", chunked(&format!("4\r\nbody\r\n0\r\n{}\r\n", "a: b\r\n".repeat(33))), Refused(400)),
        case(
            "A12 large",
            chunked(&format!("4\r\nbody\r\n0\r\na: {}\r\n\r\n", "b".repeat(17_000))),
            Refused(400),
        ),
        case("A12 not ended", chunked("4\r\nbody\r\n0\r\na b\r\n\r\n"), Refused(400)),
        case(
            "A13 pipelined",
            "GET /one HTTP/1.1\nHost: a.test\n\nGET /two HTTP/1.1\nHost: a.test\nX: y\n\n",
            Passed(2, &["GET /one HTTP/1.1\n", "GET /two HTTP/1.1\n", "x: y\n"], &[]),
        ),
        case(
            "A15 GET",
            with("GET /", "Content-Length: 4\r\n\r\nbody"),
            Passed(1, &["content-length: 4\n", "\nbody\n"], &[]),
        ),
        case(
            "A15 DELETE",
            with("DELETE /", "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"),
            Passed(1, &["\nbody\n"], &[]),
        ),
        case(
            "A17 obfuscated",
            with("POST /", "Expect: 100-continue, x\r\nContent-Length: 4\r\n\r\nbody"),
            Refused(417),
        ),
        case("A17 no body", with("GET /", "Expect: 100-continue\r\n\r\n"), Passed(1, &[], &["expect"])),
        case("A19 a handshake", *b"\x16\x03\x01\x02\0\x01\0", Dropped),
        case(
            "A19 one empty line",
            "\r\nGET /one HTTP/1.1\r\nHost: a.test\r\n\r\n",
            Passed(1, &["GET /one"], &[]),
        ),
        case(
            "A19 two empty lines between requests",
            with("POST /", "Content-Length: 1\r\n\r\nx\r\n\r\n"),
            Passed(1, &["POST /"], &[]),
        ),
    ];
    for (id, value, status) in [
        ("A03 x", "xchunked", 501),
        ("A03 quoted", "\"chunked\"", 501),
        ("A03 parameter", "chunked;q=1", 501),
        ("A03 vertical tab", "\x0bchunked", 400),
        ("A03 no-break space", "\u{a0}chunked", 501),
        ("A04 identity", "identity, chunked", 501),
        ("A04 gzip", "gzip, chunked", 501),
        ("A04 comma", ",chunked", 501),
        ("A04 empty", "", 501),
        ("A04 two lines", "chunked\r\nTransfer-Encoding: identity", 501),
        ("A05 space", "chunked\r\nTransfer-Encoding : chunked", 400),
        ("A05 folded", "\r\n chunked", 400),
    ] {
        cases.push(case(id, post(&format!("Transfer-Encoding: {value}")) + "0\r\n\r\n", Refused(status)));
    }
    cases.push(case(
        "A06",
        "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ));
    for (id, value) in [
        ("A07 unequal", "4\r\nContent-Length: 5"),
        ("A07 list", "4, 4"),
        ("A07 plus", "+4"),
        ("A07 minus", "-1"),
        ("A07 hexadecimal", "0x4"),
        ("A07 spaced", "4 4"),
        ("A07 empty", ""),
        ("A07 beyond 63 bits", "9223372036854775808"),
        ("A07 beyond 64 bits", "18446744073709551620"),
        ("A07 underscore", "4_0"),
    ] {
        cases.push(case(id, post(&format!("Content-Length: {value}")) + "body", Refused(400)));
    }
    for (id, line) in [
        ("A14 carriage return", "X: a\rb"),
        ("A14 NUL", "X: a\0b"),
        ("A14 control", "X: a\x01b"),
        ("A14 delete", "X: a\x7fb"),
        ("A14 folded", "X: a\r\n b"),
        ("A14 no colon", "X"),
        ("A14 no name", ": x"),
        ("A14 name with a space", "X Y: z"),
        ("A14 name not ASCII", "X\u{e9}: z"),
        ("A14 leading space", " X: z"),
    ] {
        cases.push(case(id, with("GET /", &format!("{line}\r\n\r\n")), Refused(400)));
    }
    for (id, line, status) in [
        ("A18 two spaces", "GET  / HTTP/1.1", 400),
        ("A18 tab", "GET\t/ HTTP/1.1", 400),
        ("A18 1.2", "GET / HTTP/1.2", 505),
        ("A18 9.9", "GET / HTTP/9.9", 505),
        ("A18 0.9", "GET /", 400),
        ("A18 lower case", "GET / http/1.1", 505),
        ("A18 no method", " / HTTP/1.1", 400),
    ] {
        cases.push(case(id, format!("{line}\r\nHost: a.test\r\n\r\n"), Refused(status)));
    }
    cases.push(case(
        "A15 HEAD",
        with("HEAD /", "Content-Length: 4\r\n\r\nbody"),
        Passed(1, &["content-length: 4\n"], &[]),
    ));
    cases.push(case("A20 options", with("OPTIONS *", "\r\n"), Answered(204)));
    cases
}

#[tokio::test]
async fn what_could_be_framed_in_two_ways_reaches_no_worker_and_the_rest_with_its_own_boundary() {
    run(cases()).await;
}
