//! C: what fields say. A worker learns of the client from edge alone, and nothing of one hop crosses it.

use super::Then::{Passed, Refused};
use super::{Answer, Case, Frames, Row, case, run, run_http2, with};
use crate::support::client::raw;
use crate::support::h2::{Field, get, headers};
use crate::support::recorder::Recorder;

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "C01",
        "forwarded fields of the client's own",
        "removed and written anew",
        &[
            "tests/it/proxying/fields.rs::forwarded_fields_are_edges_own",
            "src/proxy/headers/tests.rs::c01_a_worker_learns_of_the_client_from_edge_alone",
        ],
    ),
    Row::new(
        "C02",
        "names with `_` or `.`",
        "dropped",
        &["src/proxy/headers/tests.rs::c02_names_that_a_worker_could_take_for_another_are_dropped"],
    )
    .deviating("not logged: whoever sends them would choose how many lines the log has"),
    Row::new(
        "C03",
        "Connection names Host, Cookie, X-Real-IP",
        "it removes nothing that edge writes",
        &["src/proxy/headers/tests.rs::c03_connection_removes_what_it_names_but_nothing_edge_writes"],
    ),
    Row::new(
        "C04",
        "fields of one hop, both ways",
        "removed",
        &[
            "tests/it/proxying/fields.rs::fields_for_one_connection_stay_on_it",
            "src/upstream/wire/tests.rs::fields_of_the_connection_stay_behind_and_the_rest_passes_in_order",
        ],
    ),
    Row::new(
        "C05",
        "Upgrade to h2c, TLS, something else, a list",
        "ignored and removed",
        &["src/proxy/upgrade.rs::only_a_whole_handshake_is_passed_on"],
    ),
    Row::new(
        "C06",
        "line ends in what redirects and fields are made of",
        "a redirect leads to a configured host alone",
        &[
            "src/proxy/route/tests.rs::c06_a_redirect_never_leads_to_a_host_nobody_configured",
            "src/upstream/wire/tests.rs::what_would_read_differently_in_http1_is_not_written",
        ],
    ),
    Row::new(
        "C07",
        "too many fields, one too large, too many crumbs of a cookie",
        "431",
        &[
            "tests/it/limits.rs::c07_f11_a_head_has_so_many_fields_each_crumb_counted",
            "src/proxy/target.rs::b15_c07_heads_are_bounded",
        ],
    ),
    Row::new(
        "C08",
        "framing set by an app's rules for fields",
        "refused when the file is read",
        &[
            "src/upstream/wire/tests.rs::a_request_has_exactly_one_framing",
            "src/listen/response.rs::there_is_one_framing_and_it_is_edges",
        ],
    )
    .deviating("an app has no rules for fields; whatever sets them, the writers leave framing fields out"),
    Row::new(
        "C09",
        "Max-Forwards, two hundred ranges, a huge Accept",
        "passed on within the limits of a head",
        &[],
    ),
    Row::new(
        "C10",
        "Authorization and Cookie",
        "never in the log",
        &["tests/it/catalogue/fields.rs::c10_what_clients_prove_themselves_by_is_not_logged"],
    )
    .deviating("the query stands in the log: without it requests of many apps cannot be told apart"),
];

/// What clients may not say of themselves.
const CLAIMS: [&str; 22] = [
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-Client-Cert",
    "Forwarded",
    "X-Real-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Client-Cert-Subject",
    "X-Request-Id",
    "True-Client-IP",
    "CF-Connecting-IP",
    "Fastly-Client-IP",
    "Via",
    "X_Forwarded_For",
    "X.Forwarded.For",
    "X_Real_IP",
    "Client-IP",
];

pub(super) fn cases() -> Vec<Case> {
    let claims: String = CLAIMS.iter().map(|name| format!("{name}: forged\r\n")).collect();
    let ranges = vec!["0-0"; 200].join(",");
    vec![
        case(
            "C01",
            with("GET /", &format!("{claims}\r\n")),
            Passed(
                1,
                &["x-forwarded-for: 127.0.0.1\n", "x-forwarded-proto: https\n", "x-real-ip: 127.0.0.1\n"],
                &["forged"],
            ),
        ),
        case(
            "C02",
            with("GET /", "X_A: dropped\r\nX.B: dropped\r\nContent_Length: dropped\r\nX-C: kept\r\n\r\n"),
            Passed(1, &["x-c: kept\n"], &["dropped"]),
        ),
        case(
            "C03",
            with(
                "POST /",
                "Connection: X-Real-IP, X-Forwarded-For, X-Forwarded-Proto, Host, Content-Length, X-Mine, Cookie\r\n\
                 X-Mine: mine\r\nContent-Length: 4\r\n\r\nbody",
            ),
            Passed(
                1,
                &[
                    "host: a.test\n",
                    "content-length: 4\n",
                    "x-real-ip: 127.0.0.1\n",
                    "x-forwarded-proto: https\n",
                    "\nbody\n",
                ],
                &["x-mine"],
            ),
        ),
        case(
            "C04",
            with(
                "GET /",
                "Keep-Alive: hop\r\nProxy-Connection: hop\r\nProxy-Authorization: hop\r\nTE: hop\r\nTrailer: hop\r\n\
                 Upgrade: hop\r\nHTTP2-Settings: hop\r\nProxy: hop\r\nProxy-Authenticate: hop\r\n\r\n",
            ),
            Passed(1, &[], &["hop"]),
        ),
        case(
            "C05 h2c",
            with(
                "GET /",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
            ),
            Passed(1, &[], &["h2c", "upgrade", "settings", "connection"]),
        ),
        case(
            "C05 TLS",
            with("GET /", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n\r\n"),
            Passed(1, &[], &["upgrade"]),
        ),
        case(
            "C05 list",
            with("GET /", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n"),
            Passed(1, &[], &["upgrade"]),
        ),
        case("C07 many", with("GET /", &format!("{}\r\n", "a: b\r\n".repeat(100))), Refused(431)),
        case(
            "C07 as many as may be",
            with("GET /", &format!("{}\r\n", "a: b\r\n".repeat(99))),
            Passed(1, &["a: b\n"], &[]),
        ),
        case("C07 large", with("GET /", &format!("X: {}\r\n\r\n", "a".repeat(33_000))), Refused(431)),
        case(
            "C09",
            with(
                "GET /",
                &format!(
                    "Max-Forwards: 0\r\nRange: bytes={ranges}\r\nAccept: {}\r\n\r\n",
                    "a/b,".repeat(2_000)
                ),
            ),
            Passed(1, &["max-forwards: 0\n", "range: bytes=0-0,0-0", "accept: a/b,"], &[]),
        ),
    ]
}

pub(super) fn http2() -> Vec<Frames> {
    let with = |fields: &[Field<'_>]| headers(1, true, &get("a.test", "/", fields));
    let claims: Vec<_> = CLAIMS.iter().map(|name| name.to_ascii_lowercase()).collect();
    let claims: Vec<Field<'_>> = claims.iter().map(|name| (name.as_bytes(), &b"forged"[..])).collect();
    let crumbs = vec![(&b"cookie"[..], &b"a=b"[..]); 101];
    [
        ("C01 h2", with(&claims), Answer::Passed(&["x-forwarded-for: 127.0.0.1\n"], &["forged"])),
        ("C07 crumbs", with(&crumbs), Answer::Status(431)),
        ("C07 as many crumbs as may be", with(&crumbs[..100]), Answer::Passed(&["cookie: a=b; a=b"], &[])),
    ]
    .into_iter()
    .map(|(id, sent, then)| Frames { id, sent, then })
    .collect()
}

#[tokio::test]
async fn what_a_worker_is_told_is_true() {
    run(cases()).await;
}

#[tokio::test]
async fn over_http2_too() {
    run_http2(http2()).await;
}

#[tokio::test]
async fn c10_what_clients_prove_themselves_by_is_not_logged() {
    let recorder = Recorder::start().await;
    let edge = super::recorded(&recorder).await;
    let mut client = raw(&edge, "a.test").await;
    let secrets = "Authorization: Bearer planted-secret\r\nCookie: session=planted-secret\r\n";
    for request in [
        with("GET /logged", &format!("{secrets}\r\n")),
        // Refused, and nevertheless not quoted.
        with("GET /refused", &format!("{secrets}Content-Length: planted-secret\r\n\r\n")),
    ] {
        client.write(request).await;
        client.read_to("\r\n\r\n").await;
    }
    edge.wait_for_access("/logged").await;
    edge.wait_for_access("/refused").await;
    assert!(!edge.log().contains("planted-secret"), "{}", edge.log());
    edge.stop().await;
}
