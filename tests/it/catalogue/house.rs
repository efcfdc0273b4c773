//! I: the machine, state on disk, operators, logs.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::Row;
use crate::support::client::{Connection, Raw, Wire};
use crate::support::edge::Setup;
use crate::support::h2::{End, H2, get, headers};
use crate::support::origin::Origin;

pub(super) const ROWS: &[Row] = &[
    Row::new("I01", "SIGKILL while a certificate is written", "the old or the new one, never neither", &[
        "tests/it/acme/crashes.rs::killed_at_any_point_of_an_order_edge_goes_on_with_it",
        "src/cert/tests/store.rs::the_newest_of_two_kept_generations_is_loaded",
        "src/durable.rs::a_file_is_replaced_whole_and_private",
    ]),
    Row::new("I02", "torn, empty, swapped files in the store; pipes", "the generation before; others not affected", &[
        "src/cert/tests/store.rs::damage_to_the_newest_generation_falls_back_to_the_one_before_and_is_explained",
        "src/cert/tests/store.rs::a_key_that_fits_another_certificate_is_refused",
        "tests/it/hostile.rs::a_pipe_among_the_stored_certificates_holds_nothing_up",
    ]),
    Row::new("I03", "a full disk", "certificates from memory, lines counted, requests go on", &[
        "src/cert/tests/manager.rs::a_full_disk_does_not_stop_a_new_certificate_from_being_served",
        "src/cert/tests/schedule.rs::a_full_disk_keeps_the_certificate_and_stops_further_orders",
        "src/telemetry/sink.rs::a_stalled_reader_costs_lines_and_no_time_and_hears_how_many",
    ]),
    Row::new("I04", "a clock that is wrong, or jumps", "no storm; orders wait until it is right", &[
        "src/cert/tests/clocks.rs::a_clock_far_from_the_cas_orders_nothing_until_it_is_right",
        "src/cert/tests/schedule.rs::a_wait_written_under_a_wrong_clock_does_not_last",
        "src/cert/tests/manager.rs::with_an_impossible_clock_nothing_is_ordered",
    ]),
    Row::new("I05", "a wrong file at a reload", "the old one runs; line, column, exit status", &[
        "tests/it/reload.rs::a_wrong_file_changes_nothing_and_every_problem_is_told",
        "tests/it/reload.rs::workers_that_do_not_start_leave_the_old_ones_and_are_explained",
        "tests/it/config.rs::a_port_that_is_taken_is_named_and_ends_with_1",
    ]),
    Row::new("I06", "the path of challenges, with whatever behind it", "404 or 405 of edge's own, no file, no app", &[
        "tests/it/catalogue/house.rs::i06_what_is_no_pending_challenge_reaches_nothing",
        "src/proxy/route/tests.rs::i06_only_base64url_is_a_challenge_token",
    ]),
    Row::new("I07", "the admin socket, asked by another user or by a browser", "a private unix socket, no TCP", &[
        "tests/it/status.rs::the_admin_socket_is_private",
        "src/daemon/admin.rs::answers_to_what_it_knows_alone",
    ]),
    Row::new("I08", "what a worker inherits", "its three streams and its own environment", &[
        "tests/it/hygiene.rs::a_worker_has_a_session_and_nothing_of_edges_but_its_three_streams",
        "src/worker/environment.rs::secrets_and_words_for_edge_alone_are_not_inherited",
    ]),
    Row::new("I09", "a start as root", "workers are not", &["tests/it/workers.rs::a_worker_is_root_only_where_the_file_says_so"])
        .deviating("edge keeps its user, because it starts each app's workers as another; the unit bounds its capabilities"),
    Row::new("I10", "line ends, escapes, invalid and long text in the log", "escaped, cut", &[
        "tests/it/access_log.rs::what_clients_write_cannot_forge_lines",
        "src/telemetry/line.rs::nothing_breaks_out_of_its_field",
        "src/telemetry/line.rs::long_fields_are_cut_between_characters",
        "src/telemetry/access.rs::bytes_of_the_client_stay_inside_their_field",
    ]),
    Row::new("I11", "names made up by clients", "what edge tells of itself names what is configured alone", &[
        "tests/it/status.rs::the_json_status_has_every_field_of_the_contract",
        "tests/it/catalogue/house.rs::i11_a_made_up_name_is_counted_nowhere",
    ]),
    Row::new("I12", "a panic", "ends its connection alone; in a driver it ends the process in order", &[
        "src/scope.rs::a_driver_that_panics_is_heard_of_at_the_top_and_a_task_that_panics_is_not",
    ]),
    Row::new("I13", "a core dump, a look at the memory, a key asked to print itself", "forbidden; never printed", &[
        "tests/it/hygiene.rs::a_worker_of_edges_own_user_does_not_look_into_its_memory",
        "src/cert/tests/store.rs::a_key_is_never_printed",
        "tests/it/catalogue/fields.rs::c10_what_clients_prove_themselves_by_is_not_logged",
    ]),
    Row::new("I14", "memory is short", "bounded by the limits; idle connections make room", &[
        "tests/it/limits.rs::d06_idle_connections_make_room_for_new_ones",
        "tests/it/scaling.rs::where_memory_is_short_a_worker_goes_before_its_successor_and_requests_wait",
    ])
    .deviating("edge does not watch its own memory: what clients can make it hold is bounded, and measured"),
    Row::new("I15", "SIGTERM once and twice, a storm of SIGHUP, SIGSTOP for a while", "drain, cut what is open, one reload after the other, goes on", &[
        "tests/it/shutdown.rs::a_second_signal_cuts_open_requests_with_status_1",
        "tests/it/shutdown.rs::a_request_open_at_sigterm_is_answered_whole",
        "tests/it/catalogue/house.rs::i15_a_storm_of_reloads_and_a_pause_cost_no_worker_and_no_connection",
        "tests/it/catalogue/house.rs::i15_a_client_that_is_gone_without_a_word_does_not_delay_the_end",
    ]),
];

#[tokio::test]
async fn i06_what_is_no_pending_challenge_reaches_nothing() {
    const PLACE: &str = "/.well-known/acme-challenge/";
    let origin = Origin::mirror().await;
    // A CA that cannot be reached: the name waits for its first certificate.
    let edge = Setup::new()
        .top("acme: {ca: \"https://127.0.0.1:1/directory\"}")
        .app("a", &format!("domains: [a.example]\nhttp: serve\n{}", origin.upstream()))
        .start()
        .await;
    let long = "a".repeat(5_000);
    for (method, rest, status) in [
        ("GET", "unknown", 404),
        ("HEAD", "unknown", 404),
        ("GET", "", 404),
        ("GET", "../x", 404),
        ("GET", "..%2f..%2fetc/passwd", 404),
        ("GET", "%2e", 404),
        ("GET", "a/b", 404),
        ("GET", &long, 404),
        ("POST", "unknown", 405),
        ("DELETE", "../x", 405),
    ] {
        let mut client = Raw::new(tokio::net::TcpStream::connect(edge.http).await.unwrap());
        client
            .write(format!("{method} {PLACE}{rest} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n"))
            .await;
        let answer = client.read_to_close().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {rest}: {answer}");
    }
    assert_eq!(origin.accepted(), 0);
    edge.stop().await;
}

#[tokio::test]
async fn i11_a_made_up_name_is_counted_nowhere() {
    let origin = Origin::mirror().await;
    let yaml = format!("domains: [a.test]\nhttp: serve\n{}", origin.upstream());
    let edge = Setup::new().app("a", &yaml).start().await;
    let mut client = Raw::new(tokio::net::TcpStream::connect(edge.http).await.unwrap());
    client.write("INVENTED /invented HTTP/1.1\r\nHost: invented.test\r\n\r\n").await;
    assert!(client.read_to("\r\n").await.starts_with("HTTP/1.1 404 "));
    let status = edge.status().await.to_string();
    assert!(!status.to_lowercase().contains("invented"), "{status}");
    edge.stop().await;
}

#[tokio::test]
async fn i15_a_storm_of_reloads_and_a_pause_cost_no_worker_and_no_connection() {
    let edge = Setup::new().app("a", "domains: [a.test]\ncommand: edge hello\nworkers: 2").start().await;
    edge.wait_until_up("a").await;
    let workers = edge.workers("a").await;
    let mut connection = Connection::open(&edge, "a.test", Wire::H2).await;
    assert_eq!(connection.get("/").await.status, 200);
    for _ in 0..100 {
        edge.signal(Signal::SIGHUP);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(connection.get("/").await.status, 200);
    edge.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(2)).await;
    edge.signal(Signal::SIGCONT);
    assert_eq!(connection.get("/").await.status, 200);
    edge.reload().await;
    assert_eq!(edge.workers("a").await, workers);
    edge.stop().await;
}

#[tokio::test]
async fn i15_a_client_that_is_gone_without_a_word_does_not_delay_the_end() {
    let origin = Origin::mirror().await;
    let edge = Setup::new().app("a", &format!("domains: [a.test]\n{}", origin.upstream())).start().await;
    let mut idle = H2::open(&edge, "a.test", &[]).await;
    idle.send(headers(1, true, &get("a.test", "/", &[]))).await;
    assert_eq!(idle.end_of(1).await, End::Status(200));
    let unused = H2::open(&edge, "a.test", &[]).await;
    let begun = std::time::Instant::now();
    edge.stop().await;
    // Less than `drain_timeout` by far: neither of them says that it has heard of the end.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((idle, unused));
}
