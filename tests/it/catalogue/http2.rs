//! F: HTTP/2. Its fields can hold what HTTP/1.1 cannot, and its frames can cost their sender next to nothing.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Answer, Frames, Row, run_http2};
use crate::support::client::PATIENCE;
use crate::support::edge::{Edge, Setup};
use crate::support::h2::{
    CONTINUATION, DATA, END_STREAM, End, Field, GOAWAY, H2, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
    block, frame, get, headers, request, window_update,
};
use crate::support::origin::Origin;
use crate::support::recorder::Recorder;
use crate::support::{processes, until};

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "F01",
        "streams reset as fast as they are opened, by either side",
        "GOAWAY, workers are not kept",
        &[
            "tests/it/catalogue/http2.rs::f01_streams_reset_at_once_end_their_connection_and_hold_no_worker",
            "tests/it/catalogue/http2.rs::f01_requests_that_are_taken_back_a_few_at_a_time_end_their_connection_as_well",
            "tests/it/catalogue/http2.rs::f01_a_browser_that_cancels_all_it_has_asked_for_keeps_its_connection",
            "tests/it/catalogue/siege.rs::what_attackers_hold_is_bounded_and_given_back",
        ],
    ),
    Row::new(
        "F02",
        "floods of CONTINUATION, empty DATA, SETTINGS, PING, PRIORITY",
        "closed or absorbed, memory flat",
        &["tests/it/catalogue/http2.rs::f02_floods_of_frames_cost_no_memory"],
    ),
    Row::new(
        "F03",
        "references to a large field, and a window of nothing",
        "memory bounded, streams reset, memory given back",
        &[
            "tests/it/catalogue/siege.rs::what_attackers_hold_is_bounded_and_given_back",
            "tests/it/amplification.rs::f03_the_heads_of_all_clients_that_wait_are_bounded_and_small_ones_still_come_in",
            "tests/it/amplification.rs::f03_a_request_that_waits_holds_what_it_must_and_no_more",
        ],
    )
    .deviating(
        "one request that waits holds more than a hundred times its bytes, which may be 13: what any in flight has is some \
         five kilobytes, and an entry for each field; each is held to that, and all of them together to a bound",
    ),
    Row::new(
        "F04",
        "many streams that wait for a slow app, on many connections",
        "64 in flight for each client, the rest 503 after a second",
        &[
            "tests/it/limits.rs::f04_requests_beyond_a_clients_share_wait_for_a_second_and_are_503",
            "tests/it/catalogue/siege.rs::what_attackers_hold_is_bounded_and_given_back",
        ],
    ),
    Row::new(
        "F05",
        "an idle connection; a stream without its body",
        "GOAWAY at its time-out; 408",
        &[
            "tests/it/catalogue/http2.rs::f05_a_connection_without_requests_is_told_to_go",
            "tests/it/catalogue/http2.rs::f05_a_stream_whose_body_does_not_come_is_408",
        ],
    ),
    Row::new(
        "F06",
        "a length that is not the data's, two lengths, Transfer-Encoding, Connection",
        "reset",
        &[],
    ),
    Row::new(
        "F07",
        "line ends, NUL, capitals, spaces in fields; pseudo-fields misplaced",
        "reset or GOAWAY",
        &[],
    ),
    Row::new(
        "F08",
        "a `:path` that is none, a `:method` with a space",
        "reset or 400",
        &["src/listen/request/tests.rs::a_request_line_is_a_method_a_target_and_a_version_that_is_spoken"],
    ),
    Row::new(
        "F09",
        "`*` with GET; another scheme than the connection's",
        "400",
        &["src/proxy/target.rs::only_paths_are_served"],
    ),
    Row::new("F10", "CONNECT", "405", &[]),
    Row::new(
        "F11",
        "a head that is too large; crumbs of a cookie",
        "431",
        &["tests/it/limits.rs::c07_f11_a_head_has_so_many_fields_each_crumb_counted"],
    ),
    Row::new(
        "F12",
        "a hundred thousand streams on one connection",
        "GOAWAY after 10,000 requests or an hour",
        &[
            "tests/it/limits.rs::f12_a_connection_ends_gracefully_after_its_requests_and_its_age",
            "src/listen/watch.rs::f12_a_connection_is_over_after_its_requests_or_its_age",
        ],
    ),
    Row::new(
        "F13",
        "bytes that matter in HTTP/1 alone",
        "checked again where HTTP/1 is written",
        &["src/upstream/wire/tests.rs::what_would_read_differently_in_http1_is_not_written"],
    ),
];

pub(super) fn cases() -> Vec<Frames> {
    let asked = |fields: &[Field<'_>]| headers(1, true, &get("a.test", "/", fields));
    let posted = |fields: &[Field<'_>], data: &[u8]| {
        let mut frames = headers(1, false, &request("POST", "a.test", "/", fields));
        frames.extend(frame(DATA, END_STREAM, 1, data));
        frames
    };
    let path = |path: &str| headers(1, true, &get("a.test", path, &[]));
    let raw = |fields: &[Field<'_>]| headers(1, true, &block(fields));
    let (method, scheme, authority, root): (Field<'_>, Field<'_>, Field<'_>, Field<'_>) =
        ((b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.test"), (b":path", b"/"));
    [
        ("F06 longer", posted(&[(b"content-length", b"2")], b"body"), Answer::Reset),
        ("F06 shorter", posted(&[(b"content-length", b"9")], b"body"), Answer::Reset),
        (
            "F06 two lengths",
            posted(&[(b"content-length", b"4"), (b"content-length", b"5")], b"body"),
            Answer::Reset,
        ),
        ("F06 signed", posted(&[(b"content-length", b"+4")], b"body"), Answer::Reset),
        (
            "F06 as announced",
            posted(&[(b"content-length", b"4")], b"body"),
            Answer::Passed(&["content-length: 4\n", "\nbody\n"], &[]),
        ),
        ("F06 coding", asked(&[(b"transfer-encoding", b"chunked")]), Answer::Reset),
        ("F06 connection", asked(&[(b"connection", b"close")]), Answer::Reset),
        ("F06 keep-alive", asked(&[(b"keep-alive", b"1")]), Answer::Reset),
        ("F06 upgrade", asked(&[(b"upgrade", b"websocket")]), Answer::Reset),
        ("F06 te", asked(&[(b"te", b"gzip")]), Answer::Reset),
        ("F07 line end in a value", asked(&[(b"x", b"a\r\nb: c")]), Answer::GoAway),
        ("F07 line feed in a value", asked(&[(b"x", b"a\nb: c")]), Answer::GoAway),
        ("F07 NUL in a value", asked(&[(b"x", b"a\0b")]), Answer::GoAway),
        ("F07 capital", asked(&[(b"X", b"a")]), Answer::GoAway),
        ("F07 space in a name", asked(&[(b"x y", b"a")]), Answer::GoAway),
        ("F07 line end in a name", asked(&[(b"x\r\ny", b"a")]), Answer::GoAway),
        ("F07 colon in a name", asked(&[(b"x:y", b"a")]), Answer::GoAway),
        ("F07 no name", asked(&[(b"", b"a")]), Answer::GoAway),
        ("F07 pseudo after a field", raw(&[method, scheme, authority, (b"x", b"a"), root]), Answer::Reset),
        ("F07 pseudo twice", raw(&[method, scheme, authority, root, root]), Answer::Reset),
        ("F07 pseudo unknown", raw(&[method, scheme, authority, root, (b":x", b"a")]), Answer::GoAway),
        (
            "F07 pseudo of a response",
            raw(&[method, scheme, authority, root, (b":status", b"200")]),
            Answer::Reset,
        ),
        ("F07 no method", raw(&[scheme, authority, root]), Answer::Reset),
        ("F07 no scheme", raw(&[method, authority, root]), Answer::Reset),
        ("F07 no path", raw(&[method, scheme, authority]), Answer::Reset),
        ("F08 empty", path(""), Answer::Reset),
        ("F08 no slash", path("x"), Answer::Reset),
        ("F08 absolute", path("https://a.test/"), Answer::Reset),
        ("F08 space", path("/a b"), Answer::Reset),
        ("F08 carriage return", path("/a\rb"), Answer::Reset),
        ("F08 a request line", path("/ HTTP/1.1\r\nx: y"), Answer::Reset),
        ("F08 method with a space", headers(1, true, &request("GET /x", "a.test", "/", &[])), Answer::GoAway),
        (
            "F08 method with a line end",
            headers(1, true, &request("GET\r\n", "a.test", "/", &[])),
            Answer::GoAway,
        ),
        ("F08 fragment", path("/a#b"), Answer::Passed(&["GET /a HTTP/1.1\n"], &["#"])),
        ("F09 star", path("*"), Answer::Status(400)),
        ("F09 ftp", raw(&[method, (b":scheme", b"ftp"), authority, root]), Answer::Status(400)),
        ("F09 plain", raw(&[method, (b":scheme", b"http"), authority, root]), Answer::Status(400)),
        (
            "F10 CONNECT",
            raw(&[(b":method", b"CONNECT"), (b":authority", b"a.test:443")]),
            Answer::Status(405),
        ),
        ("F11 large", asked(&[(b"x", &vec![b'a'; 20_000])]), Answer::Status(431)),
        ("F11 crumbs", asked(&vec![(&b"cookie"[..], &b"a=b"[..]); 300]), Answer::Status(431)),
        (
            "F13 host with a line end",
            raw(&[method, scheme, (b":authority", b"a.test\r\nx: y"), root]),
            Answer::Reset,
        ),
        (
            "F13 method that is a separator",
            headers(1, true, &request("GE(T", "a.test", "/", &[])),
            Answer::GoAway,
        ),
    ]
    .into_iter()
    .map(|(id, sent, then)| Frames { id, sent, then })
    .collect()
}

#[tokio::test]
async fn what_http1_cannot_say_reaches_no_worker() {
    run_http2(cases()).await;
}

/// A worker that never answers.
async fn holding() -> Origin {
    Origin::start(async |mut peer| {
        peer.head().await;
        peer.closed().await;
    })
    .await
}

async fn before(origin: &Origin, top: &str) -> Edge {
    Setup::new().top(top).app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await
}

/// Nothing of what was given up is at a worker any more.
async fn no_worker_is_kept(edge: &Edge) {
    until(PATIENCE, "the worker is free", async || {
        (edge.status().await["apps"]["a"]["workers"][0]["in_flight"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn f01_streams_reset_at_once_end_their_connection_and_hold_no_worker() {
    let origin = holding().await;
    let edge = before(&origin, "").await;
    let open = |stream: u32| headers(stream, false, &request("POST", "a.test", "/", &[]));
    type Provoke = fn(u32) -> Vec<u8>;
    // The error codes of RFC 9113 §7: what no client does by mistake is PROTOCOL_ERROR at once, the rest
    // ENHANCE_YOUR_CALM after a while.
    let ways: [(&str, Provoke, u32); 5] = [
        ("by the client", |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]), 11),
        ("by a window that grows by nothing", |stream| window_update(stream, 0), 1),
        ("by a window that grows too large", |stream| window_update(stream, 0x7fff_ffff), 11),
        ("by data after its end", |stream| frame(DATA, END_STREAM, stream, b"").repeat(2), 1),
        (
            "by a malformed field",
            |stream| headers(stream + 2, false, &request("POST", "a.test", "x", &[])),
            11,
        ),
    ];
    for (way, provoke, code) in ways {
        let mut client = H2::open(&edge, "a.test", &[]).await;
        let frames: Vec<u8> =
            (0..3_000).flat_map(|n| [open(1 + n * 4), provoke(1 + n * 4)].concat()).collect();
        client.try_send(&frames, PATIENCE).await;
        assert_eq!(client.end().await, code, "{way}");
        no_worker_is_kept(&edge).await;
    }
    let told: Vec<_> = edge.log_objects().into_iter().filter(|line| line["level"] == "warn").collect();
    let ours = |line: &serde_json::Value| line["client"] == "127.0.0.1" && line["connections"].is_u64();
    assert!(!told.is_empty() && told.iter().all(ours), "{told:?}");
    edge.stop().await;
}

#[tokio::test]
async fn f01_a_browser_that_cancels_all_it_has_asked_for_keeps_its_connection() {
    let origin = holding().await;
    let edge = before(&origin, "").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    let page = |begin: u32| (0..90).map(move |n| begin + n * 2);
    let asked = |stream: u32| headers(stream, true, &get("a.test", "/image", &[]));
    let cancelled = |stream: u32| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    // At once, and after they were heard of.
    client.send(page(1).flat_map(asked).chain(page(1).flat_map(cancelled)).collect::<Vec<u8>>()).await;
    client.send(page(181).flat_map(asked).collect::<Vec<u8>>()).await;
    echoed(&mut client).await;
    client.send(page(181).flat_map(cancelled).collect::<Vec<u8>>()).await;
    client.send(headers(361, true, &get("a.test", "/%00", &[]))).await;
    assert_eq!(client.end_of(361).await, End::Status(400), "the connection goes on");
    no_worker_is_kept(&edge).await;
    assert!(edge.log_objects().iter().all(|line| line["level"] != "warn"), "{}", edge.log());
    edge.stop().await;
}

#[tokio::test]
async fn f01_requests_that_are_taken_back_a_few_at_a_time_end_their_connection_as_well() {
    let origin = holding().await;
    let edge = before(&origin, "").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    let pair = |stream: u32| {
        let asked = headers(stream, true, &get("a.test", "/", &[]));
        [asked, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let mut pairs = 0;
    while pairs < 2000 && client.try_send(&few(pairs, pair), PATIENCE).await && echoed(&mut client).await {
        pairs += FEW;
    }
    assert!((980..=1020).contains(&pairs), "{pairs}");
    no_worker_is_kept(&edge).await;
    edge.stop().await;
}

const FEW: u32 = 20;

fn few(after: u32, pair: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (after..after + FEW).flat_map(|n| pair(1 + n * 2)).collect()
}

/// Whether edge has read all that was sent so far, and goes on.
async fn echoed<S: AsyncRead + AsyncWrite + Unpin>(client: &mut H2<S>) -> bool {
    client.send(frame(PING, 0, 0, b"12345678")).await;
    while let Some(frame) = client.next().await {
        match frame.kind {
            PING if frame.flags & 1 == 1 => return true,
            GOAWAY => {
                assert_eq!(frame.payload[7], 11, "ENHANCE_YOUR_CALM");
                return false;
            }
            _ => {}
        }
    }
    false
}

#[tokio::test]
async fn f02_floods_of_frames_cost_no_memory() {
    let recorder = Recorder::start().await;
    let yaml = format!("domains: [a.test]\n{}", recorder.origin.upstream());
    let edge = Setup::new().top("timeouts: {write: 1s, headers: 2s}").app("a", &yaml).start().await;
    let begun = headers(1, false, &request("POST", "a.test", "/", &[]));
    let unended = frame(HEADERS, 0, 1, &get("a.test", "/", &[]));
    let many = |frame: Vec<u8>| frame.repeat(200_000);
    let before = processes::memory(edge.pid());
    for (kind, frames) in [
        (
            "CONTINUATION",
            [unended.clone(), many(frame(CONTINUATION, 0, 1, &block(&[(b"a", b"b")])))].concat(),
        ),
        ("empty CONTINUATION", [unended, many(frame(CONTINUATION, 0, 1, b""))].concat()),
        ("empty DATA", [begun.clone(), many(frame(DATA, 0, 1, b""))].concat()),
        ("DATA of padding", [begun, many(frame(DATA, 8, 1, b"\x03abc"))].concat()),
        ("SETTINGS", many(frame(SETTINGS, 0, 0, &[]))),
        ("PING", many(frame(PING, 0, 0, b"12345678"))),
        ("PRIORITY", many(frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 1]))),
        ("unknown frames", many(frame(0x7f, 0, 0, b"x"))),
    ] {
        let mut client = H2::open(&edge, "a.test", &[]).await;
        // Where its answers are not taken edge may stop to read; it need not close.
        client.try_send(&frames, Duration::from_secs(3)).await;
        let grown = processes::memory(edge.pid()).saturating_sub(before);
        assert!(grown < 16 * 1024, "{kind}: {grown} KiB");
        let mut other = H2::open(&edge, "a.test", &[]).await;
        other.send(headers(1, true, &get("a.test", "/next", &[]))).await;
        assert_eq!(other.end_of(1).await, End::Status(200), "{kind}: others are served");
    }
    edge.stop().await;
}

#[tokio::test]
async fn f05_a_connection_without_requests_is_told_to_go() {
    let recorder = Recorder::start().await;
    let yaml = format!("domains: [a.test]\n{}", recorder.origin.upstream());
    let edge = Setup::new().top("timeouts: {keepalive_h2: 1s, headers: 1s}").app("a", &yaml).start().await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    client.send(headers(1, true, &get("a.test", "/", &[]))).await;
    assert_eq!(client.end_of(1).await, End::Status(200));
    let mut told = None;
    while let Some(frame) = client.next().await {
        // Pings do not keep it.
        client.send(self::frame(PING, 0, 0, b"12345678")).await;
        told = told.or((frame.kind == GOAWAY).then_some(frame.payload[7]));
    }
    assert_eq!(told, Some(0), "GOAWAY without an error");
    edge.stop().await;
}

#[tokio::test]
async fn f05_a_stream_whose_body_does_not_come_is_408() {
    let origin = holding().await;
    let edge = before(&origin, "timeouts: {body: 1s}").await;
    let mut client = H2::open(&edge, "a.test", &[]).await;
    client.send(headers(1, false, &request("POST", "a.test", "/", &[]))).await;
    assert_eq!(client.end_of(1).await, End::Status(408));
    no_worker_is_kept(&edge).await;
    client.send(headers(3, true, &get("a.test", "/%00", &[]))).await;
    assert_eq!(client.end_of(3).await, End::Status(400), "the connection goes on");
    edge.stop().await;
}
