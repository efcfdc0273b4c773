//! What the schedule and the gate decide, case by case.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use crate::cert::advice::NoAdvice;
use crate::cert::delay::{LONGEST_WAIT, table_delay};
use crate::cert::failure::{Class, Failure};
use crate::cert::gate::Gate;
use crate::cert::history::History;
use crate::cert::schedule::{Action, Certificate, Input};
use crate::cert::seconds::rfc3339;
use crate::cert::validity::Validity;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
pub(super) fn start() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(super) fn valid_for(from: SystemTime, life: Duration) -> Validity {
    Validity { not_before: from, not_after: from + life }
}

fn obtained(from: SystemTime, life: Duration) -> Input {
    Input::Obtained { validity: valid_for(from, life), serial: format!("{from:?}"), at: from }
}

/// Brings a certificate to the point where its order runs.
pub(super) fn admit(certificate: &mut Certificate, now: SystemTime, rng: &mut Rng) -> Vec<Action> {
    certificate.step(Input::Tick, now, rng);
    assert!(certificate.is_due(), "{certificate:?}");
    certificate.step(Input::Admitted, now, rng)
}

#[test]
fn a_missing_certificate_is_ordered_installed_and_stored() {
    let mut rng = Rng::with_seed(1);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    assert_eq!(
        admit(&mut certificate, start(), &mut rng),
        [Action::Order { regardless: false, ca: 0, check: true }]
    );
    assert_eq!(certificate.history().begun, Some(start()), "the attempt is on record before the CA is asked");
    let actions = certificate.step(obtained(start(), 90 * DAY), start(), &mut rng);
    assert_eq!(actions, [Action::Store]);
    assert_eq!(certificate.step(Input::Stored, start(), &mut rng), [Action::Install, Action::Remember]);
    let due = certificate.due_at().expect("planned").duration_since(start()).expect("later");
    assert!(due > 59 * DAY && due < 61 * DAY, "{due:?}");
}

#[test]
fn renewal_lies_at_two_thirds_of_a_life_and_at_half_of_a_short_one() {
    for (life, share) in [(90 * DAY, 2.0 / 3.0), (Duration::from_secs(160 * 3600), 0.5), (MINUTE, 0.5)] {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let at = valid_for(start(), life).renewal(start(), &mut rng);
            let found = at.duration_since(start()).expect("later").as_secs_f64() / life.as_secs_f64();
            assert!((found - share).abs() <= 0.0101, "{life:?}: {found}");
        }
    }
}

#[test]
fn a_backdated_certificate_is_not_renewed_at_once() {
    let mut rng = Rng::with_seed(3);
    // Issued "an hour ago" for 66 minutes: most of its life is over when it arrives.
    let validity = valid_for(start() - HOUR, HOUR + 6 * MINUTE);
    let at = validity.renewal(start(), &mut rng);
    assert!(at >= start() + 2 * MINUTE && at < validity.not_after, "{at:?}");
}

#[test]
fn the_delays_follow_the_table() {
    for (class, count, life, wanted) in [
        (Class::Transient, 1, None, Some(Duration::from_secs(5))),
        (Class::Transient, 4, None, Some(5 * MINUTE)),
        (Class::Transient, 99, None, Some(HOUR)),
        (Class::Validation, 1, None, Some(MINUTE)),
        (Class::Validation, 3, None, Some(100 * MINUTE)),
        (Class::Validation, 4, None, Some(6 * HOUR)),
        (Class::Validation, 32, None, Some(DAY)),
        (Class::Validation, 1, Some(MINUTE), Some(Duration::from_secs(3))),
        (Class::Validation, 4, Some(90 * DAY), Some(6 * HOUR)),
        (Class::Caa, 1, None, Some(HOUR)),
        (Class::Limited, 1, Some(MINUTE), Some(HOUR)),
        (Class::Account, 2, None, Some(DAY)),
        (Class::Permanent, 1, None, None),
        (Class::Action, 1, None, None),
        (Class::Store, 1, None, Some(Duration::from_secs(30))),
    ] {
        assert_eq!(table_delay(class, count, life), wanted, "{class:?} {count} {life:?}");
    }
}

#[test]
fn a_crash_in_the_middle_of_an_order_counts_as_a_failure() {
    let mut rng = Rng::with_seed(5);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    admit(&mut certificate, start(), &mut rng);
    let saved = serde_json::to_vec(certificate.history()).expect("plain data");
    let loaded: History = serde_json::from_slice(&saved).expect("round trip");
    let mut after = Certificate::found(None, loaded, &mut rng);
    after.step(Input::Tick, start(), &mut rng);
    assert!(!after.is_due(), "not at once again");
    after.step(Input::Tick, start() + MINUTE, &mut rng);
    assert!(after.is_due());
}

#[test]
fn a_stop_before_the_ca_issued_costs_nothing() {
    let mut rng = Rng::with_seed(5);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    admit(&mut certificate, start(), &mut rng);
    assert_eq!(certificate.step(Input::Cancelled, start(), &mut rng), [Action::Remember]);
    assert_eq!(*certificate.history(), History::default());
}

#[test]
fn a_full_disk_keeps_the_certificate_and_stops_further_orders() {
    let mut rng = Rng::with_seed(7);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    admit(&mut certificate, start(), &mut rng);
    certificate.step(obtained(start(), 90 * DAY), start(), &mut rng);
    let full = Input::StoreFailed { message: "no space".to_owned() };
    let mut now = start();
    for _ in 0..20 {
        assert_eq!(certificate.step(full.clone(), now, &mut rng), [Action::Install]);
        assert_eq!(certificate.history().last_error.as_deref(), Some("no space"));
        let wake = certificate.wake_at(now).expect("tries again");
        assert!(wake > now && wake <= now + 10 * MINUTE);
        now = wake;
        assert_eq!(certificate.step(Input::Tick, now, &mut rng), [Action::Store]);
    }
    assert_eq!(certificate.step(Input::Stored, now, &mut rng), [Action::Install, Action::Remember]);
    assert_eq!(certificate.history().last_error, None);
    assert!(certificate.history().failures.is_empty());
}

#[test]
fn close_to_its_end_a_certificate_is_renewed_even_without_a_disk() {
    let mut rng = Rng::with_seed(9);
    let installed = valid_for(start(), 90 * DAY);
    let mut certificate = Certificate::found(Some((installed, "1")), History::default(), &mut rng);
    let late = start() + 85 * DAY;
    assert_eq!(
        admit(&mut certificate, late, &mut rng),
        [Action::Order { regardless: true, ca: 0, check: true }]
    );
}

#[test]
fn one_accounts_limit_holds_the_other_names() {
    let mut rng = Rng::with_seed(11);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    certificate.step(Input::Tick, start(), &mut rng);
    let held = Input::Held { until: start() + HOUR, class: Class::Limited, message: "busy".to_owned() };
    assert_eq!(certificate.step(held, start(), &mut rng), [Action::Remember]);
    certificate.step(Input::Tick, start() + HOUR - MINUTE, &mut rng);
    assert!(!certificate.is_due());
    certificate.step(Input::Tick, start() + HOUR, &mut rng);
    assert!(certificate.is_due());
}

#[test]
fn a_wait_written_under_a_wrong_clock_does_not_last() {
    let mut rng = Rng::with_seed(13);
    let history = History { next_attempt: Some(start() + 4000 * DAY), ..History::default() };
    let mut certificate = Certificate::found(None, history, &mut rng);
    certificate.step(Input::Tick, start(), &mut rng);
    assert!(certificate.due_at().expect("planned") <= start() + DAY);
}

#[test]
fn the_gate_lets_four_at_once_and_the_most_urgent_first() {
    let mut gate = Gate::default();
    let left = |days: u32| Some(valid_for(start() - (90 - days) * DAY, 90 * DAY));
    let waiting = [(0, left(30)), (1, left(25)), (2, None), (3, left(2)), (4, left(1)), (5, None)];
    assert_eq!(gate.admit(&waiting, start()), [4, 2, 5], "renewals a second apart, missing ones at once");
    assert_eq!(gate.admit(&waiting[3..4], start() + Duration::from_secs(1)), [3]);
    assert!(gate.admit(&waiting, start()).is_empty());
    gate.release(true, start());
    let renewals = [(0, left(30)), (1, left(25))];
    assert!(gate.admit(&renewals, start()).is_empty(), "a second after the last");
    assert_eq!(gate.admit(&renewals, start() + Duration::from_secs(1)), [1]);
}

#[test]
fn the_gate_starts_ten_orders_in_ten_seconds() {
    let mut gate = Gate::default();
    let mut admitted = 0;
    for _ in 0..20 {
        let found = gate.admit(&[(0, None)], start()).len();
        admitted += found;
        (0..found).for_each(|_| gate.release(true, start()));
    }
    assert_eq!(admitted, 10);
    let opens = gate.opens_at(start()).expect("a time");
    assert_eq!(gate.admit(&[(0, None)], opens).len(), 1);
    assert_eq!(gate.admit(&[(0, None)], start() - HOUR).len(), 1, "a clock set back does not shut it");
}

#[test]
fn a_damaged_record_of_a_far_future_is_bounded_and_printable() {
    let mut rng = Rng::with_seed(1);
    for far in [u64::MAX, i64::MAX as u64, 9_999_999_999_999] {
        let record = format!("{{\"next_attempt\":{far},\"begun\":{far},\"renew_at\":{far}}}");
        let history: History = serde_json::from_str(&record).expect("readable");
        let mut certificate = Certificate::found(None, history, &mut rng);
        let due = certificate.due_at().expect("waits");
        assert!(!rfc3339(due).is_empty());
        certificate.step(Input::Tick, start(), &mut rng);
        assert!(certificate.due_at().expect("waits") <= start() + LONGEST_WAIT);
    }
}

#[test]
fn a_ca_whose_wait_is_over_as_it_names_it_is_not_asked_in_a_circle() {
    let mut rng = Rng::with_seed(41);
    let mut certificate = Certificate::found(None, History::default(), &mut rng);
    let (mut now, mut asked) = (start(), 0);
    while now < start() + HOUR {
        admit(&mut certificate, now, &mut rng);
        asked += 1;
        let busy =
            Failure { retry_after: Some(Duration::ZERO), ..Failure::new(Class::Limited, "busy".to_owned()) };
        certificate.step(Input::Failed(busy), now, &mut rng);
        let next = certificate.wake_at(now).expect("planned");
        assert!(
            next >= now + Duration::from_secs(5),
            "attempt {asked}: again after {:?}",
            next.duration_since(now)
        );
        now = next;
    }
    println!("figure: asked {asked} times in an hour by a wait of no time");
    assert!(asked <= 16, "{asked}");
}

#[test]
fn a_clock_that_was_ahead_does_not_keep_the_ca_from_being_asked_about_renewals() {
    let mut rng = Rng::with_seed(43);
    let validity = valid_for(start(), 90 * DAY);
    let mut certificate = Certificate::found(Some((validity, "1")), History::default(), &mut rng);
    let ahead = start() + 30 * DAY;
    assert_eq!(certificate.step(Input::Tick, ahead, &mut rng), [Action::Ask]);
    certificate.step(Input::Advised(Err(NoAdvice::Useless("no".to_owned()))), ahead, &mut rng);
    certificate.step(Input::ClockJump { by: 30 * DAY, forward: false }, start(), &mut rng);
    assert_eq!(certificate.step(Input::Tick, start() + HOUR, &mut rng), [Action::Ask], "not a month later");
}

#[test]
fn a_name_with_a_good_certificate_waits_for_the_first_ca_and_in_need_goes_to_each_other_once_a_day() {
    let mut rng = Rng::with_seed(45);
    let validity = valid_for(start(), 90 * DAY);
    let mut certificate = Certificate::found(Some((validity, "1")), History::default(), &mut rng);
    certificate.settle("settings", 2);
    let refuse = |certificate: &mut Certificate, now, rng: &mut Rng| {
        let actions = admit(certificate, now, rng);
        certificate.step(Input::Failed(Failure::new(Class::Permanent, "no".to_owned())), now, rng);
        let &[Action::Order { ca, .. }] = actions.as_slice() else { panic!("{actions:?}") };
        ca
    };
    let (need, end) = (start() + 81 * DAY, start() + 85 * DAY);
    let (mut asked, mut now) = (Vec::new(), start() + 60 * DAY);
    while now < end {
        now = now.max(certificate.due_at().expect("planned"));
        asked.push((now, refuse(&mut certificate, now, &mut rng)));
    }
    let (before, after): (Vec<_>, Vec<_>) = asked.into_iter().partition(|(at, _)| *at < need);
    assert!(before.len() > 15 && before.iter().all(|(_, ca)| *ca == 0), "{before:?}");
    assert_eq!(after[..2], [(need, 1), (need, 2)], "both at once");
    for ca in 0..3 {
        let of: Vec<SystemTime> = after.iter().filter(|(_, one)| *one == ca).map(|(at, _)| *at).collect();
        assert!(of.len() >= 3 && of.windows(2).all(|two| two[0] + DAY <= two[1]), "{ca}: {of:?}");
    }
}
