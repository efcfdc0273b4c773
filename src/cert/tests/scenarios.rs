//! Twenty-five ways in which certificates are lost elsewhere, each with the tests that show edge keep them. A test that is
//! gone, or is none, fails here.

use std::fs;
use std::path::Path;

/// What happens, and the tests of it: those of this folder by their file, those of the real process by theirs.
const SCENARIOS: [(&str, &[&str]); 25] = [
    ("1 ten names at a cold start", &["it/acme/proofs::ten_names_are_served_soon_after_a_cold_start"]),
    (
        "2 a restart while the CA is down",
        &["it/acme::two_names_are_served_soon_after_a_cold_start_and_at_once_after_a_restart_without_the_ca"],
    ),
    ("3 most nonces are refused", &["real_ca::refused_nonces_cost_no_attempt"]),
    (
        "4 authorizations are still valid",
        &["real_ca::over_an_authorization_that_is_still_valid_nothing_is_proven_again"],
    ),
    (
        "5 certificates of a minute, under load",
        &["it/acme::short_certificates_are_renewed_under_load_without_a_failure"],
    ),
    (
        "6 everything is redirected to https",
        &["it/acme/proofs::a_challenge_is_answered_before_every_redirect_and_never_by_an_app"],
    ),
    (
        "7 handshakes as the only proof",
        &[
            "it/acme/proofs::names_short_and_long_are_proven_by_handshakes_beside_ordinary_ones",
            "real_ca::names_of_five_and_of_two_hundred_characters_are_proven_by_handshakes",
        ],
    ),
    (
        "8 DNS fails and heals",
        &["real_ca::a_name_that_does_not_resolve_costs_few_attempts_and_is_obtained_soon_after_it_does"],
    ),
    (
        "9 one of three names cannot be reached",
        &["it/acme/proofs::a_name_that_cannot_be_reached_keeps_its_own_schedule"],
    ),
    ("10 the CA refuses a name", &["real_ca::a_refused_name_is_parked_and_asked_for_once_a_day"]),
    (
        "11 accounts have to be bound",
        &[
            "real_ca::a_binding_is_asked_for_by_its_key_and_used_after_a_reload",
            "it/acme/proofs::a_binding_that_a_reload_brings_is_used_and_its_key_is_never_logged",
        ],
    ),
    ("12 the CA has forgotten us", &["real_ca::a_ca_that_forgot_the_account_gets_the_same_key_again"]),
    (
        "13 a long chain and other roots",
        &["it/acme/proofs::a_long_chain_is_sent_whole_and_in_order_so_that_openssl_verifies_it"],
    ),
    (
        "14 addresses instead of names",
        &[
            "it/acme/proofs::addresses_of_both_kinds_are_proven_and_clients_without_sni_get_their_certificates",
            "proofs::long_names_and_addresses_are_proven_in_either_way",
        ],
    ),
    (
        "15 the CA asks to wait an hour",
        &[
            "limits::a_limit_is_waited_for_over_restarts_changes_and_commands",
            "limits::a_limit_on_the_account_holds_names_that_come_later",
        ],
    ),
    ("16 every request breaks in every way", &["faults::whatever_breaks_at_any_step_the_same_order_goes_on"]),
    (
        "17 the CA wants it renewed now",
        &["renewals::a_window_that_moves_into_the_past_renews_at_the_next_poll"],
    ),
    (
        "18 a certificate of a week",
        &[
            "renewals::a_hundred_certificates_of_a_week_are_ordered_inside_the_window_and_evenly_so",
            "renewals::a_certificate_of_a_week_is_renewed_inside_its_window_also_over_a_restart",
        ],
    ),
    (
        "19 the CA will not replace",
        &["renewals::a_ca_that_will_not_replace_gets_the_order_without_saying_so"],
    ),
    (
        "20 an order fails after its end",
        &["proofs::an_order_that_fails_on_caa_after_finalize_is_read_and_waits_an_hour"],
    ),
    ("21 killed at any point", &["it/acme/crashes::killed_at_any_point_of_an_order_edge_goes_on_with_it"]),
    (
        "22 the disk is full or read-only",
        &[
            "it/acme/disk::on_a_full_disk_nothing_is_ordered_and_what_comes_is_served_until_there_is_room",
            "it/acme/disk::on_a_disk_mounted_read_only_nothing_is_ordered_and_what_comes_is_served_until_it_is_writable",
            "it/acme/disk::in_a_storage_closed_by_its_modes_nothing_is_ordered_and_what_comes_is_served_until_it_is_open",
            "manager::a_full_disk_does_not_stop_a_new_certificate_from_being_served",
            "manager::no_order_is_made_while_its_record_cannot_be_written",
        ],
    ),
    (
        "23 the clock is set",
        &[
            "clocks::a_clock_that_is_set_starts_no_storm_and_its_repair_brings_the_plan_back",
            "clocks::a_clock_far_from_the_cas_orders_nothing_until_it_is_right",
        ],
    ),
    (
        "24 five hundred names at once",
        &[
            "many::five_hundred_names_due_at_once_are_renewed_the_oldest_first_and_within_limits",
            "it/acme/load::orders_of_five_hundred_names_are_not_felt_by_requests",
        ],
    ),
    (
        "25 two edges on one storage",
        &["it/acme/crashes::a_second_edge_serves_what_the_first_obtains_and_takes_over_once_it_is_killed"],
    ),
];

/// What else holds.
const ALSO: [&str; 6] = [
    "traces::laws_hold_on_every_trace",
    "traces::a_ca_that_recovers_in_time_renews_before_the_end",
    "traces::the_gate_keeps_its_limits_and_its_order",
    "hostile::whatever_a_ca_answers_is_read_without_harm",
    "hostile::an_answer_that_is_garbled_at_any_step_is_survived",
    "it/acme/proofs::six_clients_at_once_get_the_same_answer_to_a_challenge",
];

#[test]
fn every_scenario_has_its_tests() {
    for (place, (name, tests)) in SCENARIOS.iter().enumerate() {
        assert!(name.starts_with(&format!("{} ", place + 1)), "{name} stands at place {}", place + 1);
        assert!(!tests.is_empty(), "{name} has no test");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for named in SCENARIOS.iter().flat_map(|(_, tests)| tests.iter()).chain(&ALSO) {
        let (file, test) = named.split_once("::").expect("a file and a test");
        let dir = if file.starts_with("it/") { "tests" } else { "src/cert/tests" };
        let path = root.join(dir).join(format!("{file}.rs"));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let found = lines.windows(2).any(|pair| {
            pair[1].contains(&format!("fn {test}("))
                && ["#[test]", "#[tokio::test]", "#[tokio::test(start_paused = true)]"].contains(&pair[0])
        });
        assert!(found, "{} has no test {test}", path.display());
    }
}
