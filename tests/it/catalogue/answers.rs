//! H: what workers do. They may lie, stall and break off; a client never takes a part of an answer for all of it, nor one
//! request's answer for another's.

use std::collections::HashMap;
use std::sync::Arc;

use super::Row;
use crate::support::client::{Answer, Connection, Wire, empty, raw};
use crate::support::edge::Setup;
use crate::support::origin::Origin;

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "H01",
        "what is no answer of HTTP/1",
        "502, the connection is dropped",
        &[
            "tests/it/refusals.rs::an_answer_that_is_not_http_is_502_with_the_cause_logged",
            "src/upstream/wire/tests.rs::what_is_no_valid_answer_is_refused",
        ],
    ),
    Row::new(
        "H02",
        "Content-Length beside Transfer-Encoding",
        "read by its chunks, the connection is not used again",
        &["src/upstream/exchange/tests/answers.rs::answers_after_which_nothing_is_sure_end_the_connection"],
    ),
    Row::new(
        "H03",
        "a close without a byte",
        "one more try where nothing can happen twice, else 502",
        &[
            "src/listen/http1/tests.rs::h03_a_worker_that_dies_before_it_answers_is_replaced_by_a_sibling_for_a_get_and_not_for_a_post",
            "src/proxy/attempt.rs::h03_a_request_is_repeated_only_where_it_cannot_be_executed_twice",
            "tests/it/refusals.rs::a_server_that_closes_without_an_answer_is_502_with_the_cause_logged",
        ],
    ),
    Row::new(
        "H04",
        "an answer that breaks off",
        "visibly incomplete",
        &[
            "tests/it/proxying.rs::an_answer_cut_short_is_visible_as_cut_short",
            "tests/it/http1.rs::h04_an_answer_that_ends_with_its_connection_is_reset_where_it_broke_off",
            "src/listen/http1/tests.rs::h04_a_truncated_answer_is_seen_as_truncated",
        ],
    ),
    Row::new("H05", "an answer that ends with its connection", "framed anew", &[]).deviating(
        "not logged: servers of HTTP/1.0 do it with every answer, and nothing can be told from it",
    ),
    Row::new(
        "H06",
        "more than announced, an answer nobody asked for",
        "left out, the connection is dropped",
        &["src/upstream/exchange/tests/answers.rs::answers_after_which_nothing_is_sure_end_the_connection"],
    ),
    Row::new(
        "H07",
        "interim answers without end",
        "ten are read, then 502",
        &[
            "tests/it/limits.rs::h07_h10_what_a_worker_may_answer_is_configured",
            "src/upstream/exchange/tests/answers.rs::interim_answers_are_skipped_but_not_without_end",
        ],
    ),
    Row::new(
        "H08",
        "an answer before the request's body is read",
        "relayed whole, the body read on for a while",
        &[
            "tests/it/early_answers.rs::curl_gets_the_error_of_a_server_that_reads_no_upload",
            "tests/it/early_answers.rs::an_upload_without_end_is_read_on_for_two_seconds_while_its_worker_is_free",
            "tests/it/http1.rs::h08_what_is_left_of_a_small_body_after_an_early_answer_does_not_end_the_connection",
        ],
    ),
    Row::new(
        "H09",
        "silence, before an answer and in it",
        "504; a visible end",
        &[
            "tests/it/refusals.rs::a_silent_server_is_504_with_the_cause_logged",
            "tests/it/limits.rs::h09_a_dripped_head_is_504_however_steady",
            "src/upstream/exchange/tests/connections.rs::silence_ends_in_a_timeout",
        ],
    ),
    Row::new(
        "H10",
        "too many fields, too large a head",
        "502",
        &["src/upstream/wire/tests.rs::heads_beyond_the_limits_are_refused_and_those_within_pass"],
    ),
    Row::new(
        "H11",
        "a body where there is none: 204, 304, HEAD",
        "left out, the connection is dropped",
        &["tests/it/proxying.rs::answers_without_a_body_leave_the_connection_usable"],
    ),
    Row::new(
        "H12",
        "fields of one hop",
        "removed, the rest passes",
        &[
            "tests/it/proxying/fields.rs::fields_for_one_connection_stay_on_it",
            "src/upstream/wire/tests.rs::fields_of_the_connection_stay_behind_and_the_rest_passes_in_order",
        ],
    ),
    Row::new(
        "H13",
        "listens late or not at all, forks, ignores SIGTERM",
        "health first, nothing outlives it",
        &[
            "tests/it/workers.rs::a_command_that_is_never_ready_is_explained",
            "tests/it/hygiene.rs::a_daemon_that_hides_ends_with_the_worker_that_started_it",
            "tests/it/shutdown.rs::workers_that_ignore_their_stop_signal_are_killed_with_everything_they_started",
            "tests/it/endurance.rs::whatever_a_worker_starts_ends_with_it_however_edge_ends",
        ],
    ),
    Row::new(
        "H14",
        "reads keys, the admin socket, another app's sockets",
        "it cannot",
        &[
            "tests/it/hygiene.rs::a_worker_of_another_user_reaches_no_key_no_admin_socket_and_no_other_apps_workers",
            "tests/it/hygiene.rs::a_worker_has_a_session_and_nothing_of_edges_but_its_three_streams",
        ],
    ),
];

/// What a worker writes after a request, and what its client must see.
pub(super) struct Said {
    pub(super) id: &'static str,
    method: &'static str,
    written: Vec<u8>,
    /// It closes then.
    closes: bool,
    seen: Seen,
}

#[derive(Clone, Copy)]
enum Seen {
    /// This status and this body, whole.
    Whole(u16, &'static str),
    /// 502 of edge's own.
    Bad,
    /// An answer that shows it is not all.
    Cut,
}

const OK: &str = "HTTP/1.1 200 OK\r\n";

pub(super) fn cases() -> Vec<Said> {
    let said = |id, text: String, seen| Said { id, method: "GET", written: text.into(), closes: false, seen };
    let closing = |id, text: String, seen| Said { closes: true, ..said(id, text, seen) };
    let headed = |id, text: String, seen| Said { method: "HEAD", ..said(id, text, seen) };
    let bad = |id, head: &str| said(id, format!("{head}\r\n\r\n"), Seen::Bad);
    let whole = Seen::Whole(200, "ok");
    let length = |count: usize| format!("{OK}Content-Length: {count}\r\n\r\n");
    let interim = |count: usize| "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(count);
    let fields = |count: usize| format!("{OK}Content-Length: 2\r\n{}\r\nok", "a: b\r\n".repeat(count));
    vec![
        bad("H01 garbage", "\0\u{ff}no HTTP"),
        bad("H01 another protocol", "SSH-2.0-x"),
        bad("H01 status 99", "HTTP/1.1 099 X"),
        bad("H01 status 600", "HTTP/1.1 600 X"),
        bad("H01 version", "HTTP/2.0 200 OK"),
        bad("H01 length signed", "HTTP/1.1 200 OK\r\nContent-Length: +2"),
        bad("H01 length a list", "HTTP/1.1 200 OK\r\nContent-Length: 2, 2"),
        bad("H01 lengths unequal", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3"),
        bad("H01 NUL", "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0"),
        bad("H01 folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0"),
        bad("H01 no colon", "HTTP/1.1 200 OK\r\nX"),
        bad("H01 coding of HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked"),
        bad("H01 other coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked"),
        closing("H01 ends in its head", format!("{OK}X: y\r\n"), Seen::Bad),
        said(
            "H02",
            format!("{OK}Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            whole,
        ),
        closing("H04 length", format!("{}o", length(2)), Seen::Cut),
        closing("H04 chunks", format!("{OK}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"), Seen::Cut),
        said("H04 chunk size", format!("{OK}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n+1\r\n"), Seen::Cut),
        closing("H05", format!("{OK}\r\nok"), whole),
        closing("H05 HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok".to_owned(), whole),
        said(
            "H06 more than announced",
            format!("{}okHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen", length(2)),
            whole,
        ),
        said(
            "H06 after chunks",
            format!("{OK}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nstray"),
            whole,
        ),
        said("H07 some", format!("{}{}ok", interim(10), length(2)), whole),
        said("H07 many", format!("{}{}ok", interim(11), length(2)), Seen::Bad),
        said("H07 a flood", interim(10_000), Seen::Bad),
        said("H10 many fields, not too many", fields(90), whole),
        said("H10 many fields", fields(200), Seen::Bad),
        said("H10 large", format!("{OK}X: {}\r\n\r\n", "a".repeat(64_000)), Seen::Bad),
        said("H11 204", "HTTP/1.1 204 No Content\r\n\r\nstray".to_owned(), Seen::Whole(204, "")),
        said(
            "H11 204 with a length",
            "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nstray".to_owned(),
            Seen::Whole(204, ""),
        ),
        said(
            "H11 304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nstray".to_owned(),
            Seen::Whole(304, ""),
        ),
        headed("H11 HEAD", format!("{}stray", length(5)), Seen::Whole(200, "")),
        bad(
            "G2u unasked",
            "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x",
        ),
    ]
}

/// Answers `/next` well, and the request for a case's number as that case says.
async fn worker() -> Origin {
    let cases: HashMap<usize, (Vec<u8>, bool)> =
        cases().into_iter().map(|said| (said.written, said.closes)).enumerate().collect();
    let cases = Arc::new(cases);
    Origin::start(move |mut peer| {
        let cases = Arc::clone(&cases);
        async move {
            while let Some(head) = peer.head().await {
                let path = head
                    .request_line()
                    .split(' ')
                    .nth(1)
                    .unwrap_or_default()
                    .trim_start_matches('/')
                    .to_owned();
                let Some((written, closes)) = path.parse().ok().and_then(|number: usize| cases.get(&number))
                else {
                    peer.answer("200 OK", "", "next").await;
                    continue;
                };
                peer.write(written).await;
                if *closes {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_workers_answer_wrongly_is_told_as_that() {
    let origin = worker().await;
    // One thread, so that what a case leaves behind would be the next request's.
    let edge = Setup::new()
        .top("threads: 1")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    for wire in Wire::BOTH {
        for (number, Said { id, method, seen, .. }) in cases().into_iter().enumerate() {
            let mut connection = Connection::open(&edge, "a.test", wire).await;
            let request = connection.request(method, &format!("/{number}")).body(empty()).unwrap();
            let head =
                connection.send(request).await.unwrap_or_else(|error| panic!("{wire:?} {id}: {error}"));
            let status = head.status().as_u16();
            match (seen, Answer::read(head).await) {
                (Seen::Whole(expected, body), Ok(answer)) => {
                    assert_eq!((status, &answer.text()[..]), (expected, body), "{wire:?} {id}");
                }
                (Seen::Bad, Ok(_)) => assert_eq!(status, 502, "{wire:?} {id}"),
                (Seen::Cut, Err(_)) => assert_eq!(status, 200, "{wire:?} {id}"),
                (Seen::Whole(..) | Seen::Bad, Err(error)) => panic!("{wire:?} {id}: {error}"),
                (Seen::Cut, Ok(answer)) => panic!("{wire:?} {id}: taken for whole: {}", answer.text()),
            }
            let mut next = Connection::open(&edge, "a.test", wire).await;
            assert_eq!(next.get("/next").await.text(), "next", "{wire:?} {id}: another request's answer");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn g2u_a_switch_that_is_not_for_websocket_is_502_and_no_tunnel() {
    for answer in [
        "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: x\r\n\r\n",
        "HTTP/1.1 101 X\r\nSec-WebSocket-Accept: x\r\n\r\n",
    ] {
        let origin = Origin::start(move |mut peer| async move {
            if peer.head().await.is_some() {
                peer.write(answer).await;
                peer.write("tunnelled").await;
                peer.closed().await;
            }
        })
        .await;
        let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
        let mut client = raw(&edge, "a.test").await;
        client
            .write(
                "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            )
            .await;
        let heard = client.read_to_close().await;
        assert!(heard.starts_with("HTTP/1.1 502 ") && !heard.contains("tunnelled"), "{answer}: {heard}");
        edge.stop().await;
    }
}

#[tokio::test]
async fn h06_an_answer_to_no_request_is_nobodys() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |mut peer| {
        let tell = tell.clone();
        async move {
            while peer.head().await.is_some() {
                peer.answer("200 OK", "", "asked for").await;
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen").await;
                tell.send(()).expect("the test listens");
            }
        }
    })
    .await;
    let edge = Setup::new()
        .top("threads: 1")
        .app("a", &format!("domains: [a.test]\n{}", origin.upstream()))
        .start()
        .await;
    for wire in Wire::BOTH {
        let mut connection = Connection::open(&edge, "a.test", wire).await;
        for _ in 0..3 {
            assert_eq!(connection.get("/").await.text(), "asked for", "{wire:?}");
            told.recv().await.expect("the worker said more than it was asked");
        }
    }
    edge.stop().await;
}
