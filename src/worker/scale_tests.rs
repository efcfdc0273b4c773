use proptest::prelude::*;

use super::*;

const LOOK: Duration = Duration::from_millis(250);
const RANGE: WorkerCount = WorkerCount { min: 2, max: 8 };

/// An app under a load: so many requests at once, of which each worker takes `each` and the rest waits.
struct Play {
    scale: Scale,
    now: Instant,
    workers: u32,
    each: u64,
    /// Whether what exceeds the workers waits in line, as for workers with a limit.
    limited: bool,
    room: u32,
    changes: Vec<(Instant, u32)>,
}

impl Play {
    fn new(range: WorkerCount, each: u64) -> Self {
        let now = Instant::now();
        let scale = Scale::new(range, now);
        Self { scale, now, workers: range.min, each, limited: true, room: u32::MAX, changes: Vec::new() }
    }

    fn look(&mut self, requests: u64, steady: bool) -> Option<Step> {
        self.now += LOOK;
        let able = self.each * u64::from(self.workers);
        let busy = if self.limited { requests.min(able) } else { requests };
        let load = Load { busy, waiting: requests - busy, each: self.each, open: self.workers };
        let step = self.scale.look(self.now, load, self.workers, steady, || self.room);
        if let Some(Step::Up(to, _) | Step::Down(to)) = step {
            self.workers = to;
            self.changes.push((self.now, to));
        }
        step
    }

    /// The same load for so long.
    fn hold(&mut self, requests: u64, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.look(requests, true);
        }
    }

    fn numbers(&self) -> Vec<u32> {
        self.changes.iter().map(|(_, to)| *to).collect()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn each_load_leads_to_a_number_of_workers() {
    for (each, limited, requests, expected) in [
        (1, true, 0, vec![]),
        (1, true, 1, vec![]),
        (1, true, 2, vec![3]),
        (1, true, 3, vec![4]),
        (1, true, 6, vec![4, 8]),
        (1, true, 500, vec![4, 8]),
        (4, true, 6, vec![]),
        (4, true, 12, vec![4]),
        (8, false, 12, vec![]),
        (8, false, 14, vec![3]),
        (8, false, 1000, vec![4, 8]),
    ] {
        let mut play = Play { limited, ..Play::new(RANGE, each) };
        play.hold(requests, SECOND * 600);
        assert_eq!(play.numbers(), expected, "{requests} of {each} each, limited: {limited}");
    }
}

#[test]
fn requests_that_wait_are_answered_at_once_and_calm_one_at_a_time() {
    let mut play = Play::new(RANGE, 1);
    let begun = play.now;
    play.hold(20, SECOND * 3);
    assert_eq!(play.numbers(), [4, 8]);
    assert!(play.changes[0].0 - begun < SECOND && play.changes[1].0 - begun < SECOND * 2);
    let begun = play.now;
    play.hold(0, SECOND * 300);
    assert_eq!(play.numbers()[2..], [7, 6, 5, 4, 3, 2]);
    let times: Vec<_> = play.changes[2..].iter().map(|(at, _)| *at).collect();
    assert!(times[0] - begun >= QUIET);
    assert!(times.windows(2).all(|two| two[1] - two[0] >= QUIET && two[1] - two[0] < QUIET + SECOND));
}

#[test]
fn a_wait_that_passes_and_one_for_a_certain_worker_are_no_reason() {
    let mut play = Play::new(RANGE, 4);
    for _ in 0..100 {
        play.look(9, true);
        for _ in 0..20 {
            play.look(1, true);
        }
    }
    assert!(play.changes.is_empty());
    let load = Load { busy: 1, waiting: 5, each: 1, open: 4 };
    for _ in 0..100 {
        play.now += LOOK;
        assert_eq!(play.scale.look(play.now, load, 4, true, || 9), None, "a client that stays with one");
    }
}

#[test]
fn nothing_changes_while_workers_start_or_are_replaced() {
    let mut play = Play::new(RANGE, 1);
    for _ in 0..1000 {
        assert_eq!(play.look(50, false), None);
    }
    play.look(50, true);
    assert_eq!(play.numbers(), [4]);
    for _ in 0..1000 {
        assert_eq!(play.look(0, false), None);
    }
    play.hold(0, QUIET - SECOND);
    assert_eq!(play.numbers(), [4], "the calm counts from when all serve");
}

#[test]
fn where_memory_has_no_room_it_is_said_once_and_done_as_far_as_it_goes() {
    let mut play = Play { room: 0, ..Play::new(RANGE, 1) };
    let steps: Vec<_> = (0..40).filter_map(|_| play.look(50, true)).collect();
    assert_eq!(steps, [Step::NoRoom(Why::Waiting(48))]);
    play.room = 1;
    assert_eq!(play.look(50, true), Some(Step::Up(3, Why::Waiting(48))));
}

#[test]
fn the_reason_is_said_in_words() {
    for (why, words) in [
        (Why::Waiting(1), "a request waits for a worker"),
        (Why::Waiting(7), "7 requests wait for a worker"),
        (Why::Busy(93), "workers are busy to 93 %"),
    ] {
        assert_eq!(why.to_string(), words);
    }
}

#[test]
fn a_load_that_comes_and_goes_is_followed_a_few_times_only() {
    for period in [1, 5, 20, 45, 70, 100, 150] {
        let mut play = Play::new(RANGE, 1);
        for _ in 0..3600 * 4 / period {
            play.hold(7, SECOND * period / 2);
            play.hold(0, SECOND * period / 2);
        }
        let changes = play.changes.len();
        assert!(changes <= 24, "{changes} changes in four hours, a period of {period} s");
        assert!(play.workers == 8 || period == 1, "a period of {period} s");
    }
}

fn ranges() -> impl Strategy<Value = WorkerCount> {
    (1u32..6, 0u32..12).prop_map(|(min, more)| WorkerCount { min, max: min + more })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_comes_the_number_stays_in_its_range_and_there_is_a_calm_before_each_one_less(
        range in ranges(),
        each in 1u64..20,
        loads in prop::collection::vec((0u64..200, 1u32..400, any::<bool>(), 0u32..4), 1..30),
    ) {
        let mut play = Play::new(range, each);
        let mut before = (play.now, play.workers);
        for (requests, looks, steady, room) in loads {
            play.room = room;
            for _ in 0..looks {
                let step = play.look(requests, steady);
                prop_assert!(steady || step.is_none());
                if let Some(&(at, to)) = play.changes.last().filter(|last| **last != before) {
                    prop_assert!((range.min..=range.max).contains(&to));
                    prop_assert!(to > before.1 || to + 1 == before.1, "one at a time");
                    prop_assert!(to > before.1 || at - before.0 >= QUIET, "not soon after another change");
                    prop_assert!(to <= before.1 * 2 && to <= before.1.saturating_add(room).max(before.1));
                    before = (at, to);
                }
            }
        }
    }

    #[test]
    fn a_steady_load_settles_in_one_direction(
        range in ranges(),
        each in 1u64..20,
        requests in 0u64..200,
        limited: bool,
        first in 0u32..18,
    ) {
        let mut play = Play { limited, ..Play::new(range, each) };
        play.workers = range.nearest(first);
        let begun = play.workers;
        play.hold(requests, SECOND * 2000);
        let settled = play.numbers();
        prop_assert!(settled.len() as u32 <= range.max - range.min);
        let up = settled.first().is_some_and(|to| *to > begun);
        let numbers: Vec<_> = std::iter::once(begun).chain(settled.iter().copied()).collect();
        prop_assert!(numbers.windows(2).all(|two| (two[1] > two[0]) == up), "{numbers:?}");
        play.hold(requests, SECOND * 2000);
        prop_assert_eq!(play.numbers().len(), settled.len(), "it stays");
        let able = each * u64::from(play.workers);
        prop_assert!(play.workers == range.max || requests < able || (requests == able && limited), "{} of {able}", requests);
    }

    #[test]
    fn requests_that_wait_get_more_workers_within_a_second(range in ranges(), each in 1u64..20, more in 1u64..50) {
        prop_assume!(range.min < range.max);
        let mut play = Play::new(range, each);
        play.hold(0, SECOND * 100);
        play.hold(each * u64::from(range.min) + more, SECOND);
        prop_assert!(play.workers > range.min);
    }
}
