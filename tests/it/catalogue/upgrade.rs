//! G: WebSockets. Nothing is a tunnel before both sides have said so.

use super::Then::{Answered, Passed, Refused};
use super::{Case, Row, case, run, with};

pub(super) const ROWS: &[Row] = &[
    Row::new(
        "G1u",
        "a handshake that the worker declines, with bytes behind it",
        "the next request, never a tunnel",
        &[
            "tests/it/http1.rs::g1u_what_follows_a_declined_handshake_is_the_next_request",
            "tests/it/upgrades.rs::a_server_may_decline_to_switch",
        ],
    ),
    Row::new(
        "G2u",
        "a 101 unasked, for something else, or without its proof",
        "502, the worker's connection ends",
        &[
            "src/upstream/wire/tests.rs::what_is_no_valid_answer_is_refused",
            "tests/it/catalogue/answers.rs::what_workers_answer_wrongly_is_told_as_that",
        ],
    ),
    Row::new(
        "G3u",
        "a handshake with a body, of HTTP/1.0, with a wrong key or version",
        "400, 426",
        &["src/proxy/upgrade.rs::only_a_whole_handshake_is_passed_on"],
    ),
    Row::new(
        "G4u",
        "open tunnels at drain and at a deploy",
        "a Close frame, each tunnel told",
        &[
            "tests/it/shutdown.rs::websockets_are_told_at_once_and_hold_up_nothing",
            "tests/it/endurance.rs::deploy_after_deploy_costs_no_request_and_tells_every_websocket",
        ],
    ),
];

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";

pub(super) fn cases() -> Vec<Case> {
    let handshake = |fields: &str| with("GET /ws", &format!("{UPGRADE}{fields}\r\n"));
    let whole = format!("{UPGRADE}{KEY}{VERSION}");
    vec![
        case(
            "G1u declined",
            handshake(&format!("{KEY}{VERSION}")),
            Passed(1, &["upgrade: websocket\n"], &[]),
        ),
        case("G3u POST", with("POST /ws", &format!("{whole}Content-Length: 4\r\n\r\nbody")), Refused(400)),
        case("G3u body", with("GET /ws", &format!("{whole}Content-Length: 4\r\n\r\nbody")), Refused(400)),
        case("G3u HTTP/1.0", format!("GET /ws HTTP/1.0\r\nHost: a.test\r\n{whole}\r\n"), Refused(400)),
        case("G3u no key", handshake(VERSION), Refused(400)),
        case("G3u short key", handshake(&format!("Sec-WebSocket-Key: abc\r\n{VERSION}")), Refused(400)),
        case("G3u two keys", handshake(&format!("{KEY}{KEY}{VERSION}")), Refused(400)),
        case("G3u other version", handshake(&format!("{KEY}Sec-WebSocket-Version: 8\r\n")), Answered(426)),
        case("G3u no version", handshake(KEY), Answered(426)),
        case(
            "G3u Connection does not say so",
            with("GET /ws", &format!("Upgrade: websocket\r\n{KEY}{VERSION}\r\n")),
            Passed(1, &[], &["upgrade"]),
        ),
    ]
}

#[tokio::test]
async fn a_handshake_is_whole_or_none() {
    run(cases()).await;
}
