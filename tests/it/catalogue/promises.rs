//! What edge promises of its safety, and the tests that keep each promise.

use super::exists;

/// A promise, and its tests.
type Promise = (&'static str, &'static str, &'static [&'static str]);

const PROMISES: &[Promise] = &[
    (
        "P1",
        "no client's bytes cause a panic outside of their connection, unsafe memory use, or an exit",
        &[
            "src/listen/request/tests.rs::any_bytes_are_a_head_or_a_refusal_or_incomplete",
            "src/upstream/wire/tests.rs::no_bytes_panic",
            "src/scope.rs::a_driver_that_panics_is_heard_of_at_the_top_and_a_task_that_panics_is_not",
            "tests/it/catalogue/oracle.rs::p2_what_edge_forwards_is_what_a_worker_reads",
            "tests/it/refusals.rs::malformed_requests_are_refused_and_nothing_falls_over",
        ],
    ),
    (
        "P2",
        "one request in is one request out, with the same boundary",
        &[
            "tests/it/catalogue/oracle.rs::p2_what_edge_forwards_is_what_a_worker_reads",
            "src/listen/request/tests.rs::a_head_is_the_same_however_it_comes",
            "tests/it/catalogue/framing.rs::what_could_be_framed_in_two_ways_reaches_no_worker_and_the_rest_with_its_own_boundary",
            "tests/it/catalogue/http2.rs::what_http1_cannot_say_reaches_no_worker",
        ],
    ),
    (
        "P3",
        "routing uses one host, the same in SNI, `:authority`, Host and log",
        &[
            "src/proxy/target.rs::a_request_has_exactly_one_authority",
            "src/proxy/route/tests.rs::b07_every_spelling_of_a_host_reaches_the_same_app",
            "src/proxy/route/tests.rs::b05_b06_a_host_is_served_only_where_its_certificate_was_shown",
            "tests/it/catalogue/targets.rs::a_request_is_for_one_host_and_one_path",
        ],
    ),
    (
        "P4",
        "workers learn who a client is from edge alone",
        &[
            "src/proxy/headers/tests.rs::c01_a_worker_learns_of_the_client_from_edge_alone",
            "src/proxy/headers/tests.rs::whatever_clients_send_a_worker_gets_each_field_of_edge_once",
            "tests/it/catalogue/fields.rs::what_a_worker_is_told_is_true",
        ],
    ),
    (
        "P5",
        "memory for each client is bounded, and given back",
        &[
            "tests/it/catalogue/siege.rs::what_attackers_hold_is_bounded_and_given_back",
            "tests/it/catalogue/http2.rs::f02_floods_of_frames_cost_no_memory",
        ],
    ),
    (
        "P6",
        "every wait has an end",
        &[
            "tests/it/catalogue/patience.rs::d01_whoever_begins_and_stops_is_closed",
            "tests/it/catalogue/patience.rs::d02_a_head_that_is_dripped_is_408_however_steady",
            "tests/it/limits.rs::d03_a_dripped_body_is_408_however_steady",
            "tests/it/catalogue/patience.rs::d04_windows_of_a_byte_do_not_keep_a_worker",
            "tests/it/limits.rs::h09_a_dripped_head_is_504_however_steady",
            "tests/it/upgrades.rs::an_idle_tunnel_is_ended",
            "tests/it/catalogue/house.rs::i15_a_client_that_is_gone_without_a_word_does_not_delay_the_end",
        ],
    ),
    (
        "P7",
        "a truncated answer is seen as truncated",
        &[
            "tests/it/catalogue/answers.rs::what_workers_answer_wrongly_is_told_as_that",
            "tests/it/proxying.rs::an_answer_cut_short_is_visible_as_cut_short",
            "tests/it/http1.rs::h04_an_answer_that_ends_with_its_connection_is_reset_where_it_broke_off",
        ],
    ),
    (
        "P8",
        "a worker reads no key, reaches no admin socket, keeps no listener, gains no right",
        &[
            "tests/it/hygiene.rs::a_worker_of_another_user_reaches_no_key_no_admin_socket_and_no_other_apps_workers",
            "tests/it/hygiene.rs::a_worker_has_a_session_and_nothing_of_edges_but_its_three_streams",
        ],
    ),
    (
        "P9",
        "what is stored can be loaded after any loss of power",
        &[
            "src/cert/tests/store.rs::damage_to_the_newest_generation_falls_back_to_the_one_before_and_is_explained",
            "src/cert/tests/store.rs::history_survives_and_damage_to_it_costs_only_the_history",
            "src/durable.rs::a_file_is_replaced_whole_and_private",
            "tests/it/acme/crashes.rs::killed_at_any_point_of_an_order_edge_goes_on_with_it",
        ],
    ),
    (
        "P10",
        "a reload applies all of a file or nothing",
        &[
            "tests/it/reload.rs::a_wrong_file_changes_nothing_and_every_problem_is_told",
            "tests/it/reload.rs::a_new_app_that_does_not_start_changes_nothing_and_is_explained",
            "tests/it/reload.rs::workers_that_do_not_start_leave_the_old_ones_and_are_explained",
        ],
    ),
    (
        "P11",
        "certificates serve without a CA, name servers or a disk",
        &[
            "tests/it/acme.rs::two_names_are_served_soon_after_a_cold_start_and_at_once_after_a_restart_without_the_ca",
            "src/cert/tests/manager.rs::a_full_disk_does_not_stop_a_new_certificate_from_being_served",
        ],
    ),
    (
        "P12",
        "a line in the log is one event, escaped, without secrets",
        &[
            "tests/it/access_log.rs::a_request_leaves_exactly_one_line",
            "tests/it/access_log.rs::what_clients_write_cannot_forge_lines",
            "src/telemetry/line.rs::nothing_breaks_out_of_its_field",
            "tests/it/catalogue/fields.rs::c10_what_clients_prove_themselves_by_is_not_logged",
            "src/cert/tests/store.rs::a_key_is_never_printed",
        ],
    ),
];

#[test]
fn every_promise_is_kept_by_tests_that_exist() {
    let ids: Vec<String> = PROMISES.iter().map(|(id, ..)| (*id).to_owned()).collect();
    assert_eq!(ids, (1..=12).map(|number| format!("P{number}")).collect::<Vec<_>>());
    let mut wrong = Vec::new();
    for (id, promise, tests) in PROMISES {
        let gone: Vec<_> = tests.iter().filter(|test| !exists(test)).collect();
        if tests.is_empty() || !gone.is_empty() {
            wrong.push(format!("{id} ({promise}): there is no {gone:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    let tests: usize = PROMISES.iter().map(|(_, _, tests)| tests.len()).sum();
    println!("figure: {} promises, kept by {tests} tests", PROMISES.len());
}
