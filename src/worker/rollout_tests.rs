use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::model::WorkerCount;
use crate::worker::scale::{Load, Scale, Step};

const POLICY: Policy = Policy {
    backoff: Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(30), jitter: 0.2 },
    proven: Duration::from_secs(60),
    served: Duration::from_secs(1),
    crash_loop: 5,
    overlap: Duration::from_secs(1),
};

/// A rollout with its clock and dice.
struct Play {
    rollout: Rollout,
    now: Instant,
    rng: fastrand::Rng,
}

impl Play {
    /// Started and ready.
    fn serving(wanted: u32) -> Self {
        let mut play = Self::started(wanted);
        for slot in 0..wanted {
            assert_eq!(play.step(Input::Ready(seat(slot, 1))), []);
        }
        play
    }

    fn started(wanted: u32) -> Self {
        let now = Instant::now();
        let rng = fastrand::Rng::with_seed(7);
        let mut play = Self { rollout: Rollout::new(POLICY, now), now, rng };
        assert_eq!(play.step(Input::Want(wanted)), [Action::Prepare(1)]);
        let launches: Vec<_> = (0..wanted).map(|slot| Action::Launch(seat(slot, 1), 1)).collect();
        assert_eq!(play.step(Input::Prepared(1)), launches);
        play
    }

    fn step(&mut self, input: Input) -> Vec<Action> {
        self.rollout.step(self.now, input, &mut self.rng)
    }

    /// Up to the next moment something is due.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.rollout.wake_at().expect("something is planned");
        self.step(Input::Tick)
    }

    /// A roll-out of generation 2 to where its first worker was launched.
    fn rolling(wanted: u32) -> Self {
        let mut play = Self::serving(wanted);
        assert_eq!(play.step(Input::Roll(2, wanted)), [Action::Prepare(2)]);
        assert_eq!(play.step(Input::Prepared(2)), [Action::Launch(seat(0, 2), 2)]);
        play
    }
}

fn seat(slot: u32, incarnation: u64) -> Seat {
    Seat { slot, incarnation }
}

#[test]
fn a_cold_start_launches_all_at_once() {
    let play = Play::started(4);
    assert_eq!(play.rollout.wake_at(), None);
}

#[test]
fn the_first_death_is_answered_at_once_and_later_ones_after_growing_delays() {
    let mut play = Play::started(1);
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Launch(seat(0, 2), 1)]);
    let mut delays = Vec::new();
    for incarnation in 2..14 {
        assert_eq!(play.step(Input::Died(seat(0, incarnation))), []);
        let before = play.now;
        assert_eq!(play.wait(), [Action::Launch(seat(0, incarnation + 1), 1)]);
        delays.push(play.now - before);
    }
    assert!(delays[0] >= Duration::from_millis(160) && delays[0] <= Duration::from_millis(240));
    assert!(delays.windows(2).all(|two| two[0] < two[1] || two[1] >= Duration::from_secs(24)));
    assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(30)));
}

#[test]
fn five_early_deaths_with_nobody_ready_are_a_crash_loop_until_one_is_ready() {
    let mut play = Play::started(1);
    for incarnation in 1..=5 {
        assert!(!play.rollout.is_crash_loop(), "{incarnation}");
        if play.step(Input::Died(seat(0, incarnation))).is_empty() {
            play.wait();
        }
    }
    assert!(play.rollout.is_crash_loop());
    play.step(Input::Ready(seat(0, 6)));
    assert!(!play.rollout.is_crash_loop());
}

#[test]
fn workers_that_are_killed_while_they_serve_are_replaced_at_once_each_time() {
    let mut play = Play::started(1);
    for incarnation in 1..50 {
        play.step(Input::Ready(seat(0, incarnation)));
        play.now += Duration::from_secs(2);
        assert_eq!(
            play.step(Input::Died(seat(0, incarnation))),
            [Action::Launch(seat(0, incarnation + 1), 1)]
        );
    }
}

#[test]
fn what_was_interrupted_for_another_generation_begins_anew_only_where_that_one_does_not_take_over() {
    let now = Instant::now();
    let rng = fastrand::Rng::with_seed(7);
    let mut play = Play { rollout: Rollout::new(POLICY, now), now, rng };
    assert_eq!(play.step(Input::Want(1)), [Action::Prepare(1)]);
    assert_eq!(play.step(Input::Interrupted(1)), [], "the other one comes first");
    assert_eq!(play.step(Input::Roll(2, 1)), [Action::Prepare(2)]);
    play.now += Duration::from_secs(600);
    assert_eq!(play.step(Input::Tick), [], "never both");
    assert_eq!(play.step(Input::Unprepared(2)), [Action::Abandoned(2, None), Action::Prepare(1)]);
    assert!(!play.rollout.is_prepared() && !play.rollout.is_crash_loop());

    assert_eq!(play.step(Input::Interrupted(1)), []);
    assert_eq!(play.step(Input::Roll(3, 1)), [Action::Prepare(3)]);
    assert_eq!(play.step(Input::Prepared(3)), [Action::Launch(seat(0, 1), 3)]);
    assert_eq!(play.step(Input::Ready(seat(0, 1))), [Action::Completed(3)]);
    assert!(play.rollout.is_prepared());
    assert_eq!(play.rollout.wake_at(), None);

    // Without another one, its own turn comes again.
    let mut play = Play { rollout: Rollout::new(POLICY, now), now, rng: fastrand::Rng::with_seed(7) };
    assert_eq!(play.step(Input::Want(1)), [Action::Prepare(1)]);
    assert_eq!(play.step(Input::Interrupted(1)), []);
    assert_eq!(play.wait(), [Action::Prepare(1)]);
}

#[test]
fn fewer_wanted_retires_the_last_slots_and_wanting_them_again_waits_for_their_end() {
    let mut play = Play::serving(3);
    assert_eq!(play.step(Input::Want(1)), [Action::Retire(seat(1, 1)), Action::Retire(seat(2, 1))]);
    assert_eq!(play.step(Input::Want(2)), []);
    assert!(!play.rollout.is_settled());
    assert_eq!(play.step(Input::Died(seat(1, 1))), [Action::Launch(seat(1, 2), 1)]);
    assert_eq!(play.step(Input::Died(seat(2, 1))), []);
    assert_eq!(play.step(Input::Ready(seat(1, 2))), []);
    assert!(play.rollout.is_settled());
}

#[test]
fn a_new_generation_takes_over_one_by_one_each_ready_before_the_old_one_goes() {
    let mut play = Play::rolling(2);
    assert_eq!(play.step(Input::Ready(seat(0, 2))), [Action::Retire(seat(0, 1))]);
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Launch(seat(1, 2), 2)]);
    assert_eq!(play.step(Input::Ready(seat(1, 2))), [Action::Retire(seat(1, 1))]);
    assert_eq!(play.step(Input::Died(seat(1, 1))), [Action::Completed(2)]);
    assert_eq!(play.rollout.generation_number(), 2);
    assert_eq!(play.step(Input::Died(seat(1, 2))), [Action::Launch(seat(1, 3), 2)]);
}

#[test]
fn a_worker_that_drains_long_does_not_hold_the_others_up() {
    let mut play = Play::rolling(2);
    assert_eq!(play.step(Input::Ready(seat(0, 2))), [Action::Retire(seat(0, 1))]);
    assert_eq!(play.wait(), [Action::Launch(seat(1, 2), 2)]);
    assert_eq!(play.step(Input::Ready(seat(1, 2))), [Action::Retire(seat(1, 1))]);
    assert_eq!(play.step(Input::Died(seat(1, 1))), []);
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Completed(2)]);
}

#[test]
fn a_new_generation_that_does_not_start_leaves_the_old_one_alone() {
    let mut play = Play::rolling(2);
    assert_eq!(play.step(Input::Died(seat(0, 2))), [Action::Abandoned(2, Some(seat(0, 2)))]);
    assert!(!play.rollout.is_rolling() && play.rollout.is_settled());
    assert_eq!(play.rollout.wake_at(), None);

    let mut play = Play::rolling(2);
    assert_eq!(play.step(Input::Late(seat(0, 2))), [Action::Abandoned(2, Some(seat(0, 2)))]);
    assert_eq!(play.rollout.ready(), 2);
    assert_eq!(play.step(Input::Died(seat(0, 2))), []);

    let mut play = Play::serving(2);
    assert_eq!(play.step(Input::Roll(2, 2)), [Action::Prepare(2)]);
    assert_eq!(play.step(Input::Unprepared(2)), [Action::Abandoned(2, None)]);
    assert!(play.rollout.is_settled());
}

#[test]
fn a_roll_out_that_fails_half_way_is_taken_back() {
    let mut play = Play::rolling(2);
    play.step(Input::Ready(seat(0, 2)));
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Launch(seat(1, 2), 2)]);
    assert_eq!(
        play.step(Input::Died(seat(1, 2))),
        [Action::Abandoned(2, Some(seat(1, 2))), Action::Launch(seat(0, 3), 1)]
    );
    assert_eq!(play.step(Input::Ready(seat(0, 3))), [Action::Retire(seat(0, 2))]);
    assert_eq!(play.step(Input::Died(seat(0, 2))), []);
    assert!(play.rollout.is_settled());
    assert_eq!(play.rollout.generation_number(), 1);
}

#[test]
fn a_repaired_generation_replaces_one_that_never_starts() {
    let mut play = Play::started(2);
    for incarnation in 1..=3 {
        play.step(Input::Died(seat(0, incarnation)));
        play.step(Input::Died(seat(1, incarnation)));
        if incarnation > 1 {
            play.now += Duration::from_secs(40);
            play.step(Input::Tick);
        }
    }
    play.step(Input::Died(seat(0, 4)));
    play.step(Input::Died(seat(1, 4)));
    assert_eq!(play.step(Input::Roll(2, 2)), [Action::Prepare(2)]);
    assert_eq!(play.step(Input::Prepared(2)), [Action::Launch(seat(0, 5), 2)]);
    // The other slot does not sit out the delay that the old generation's deaths earned it.
    assert_eq!(play.step(Input::Ready(seat(0, 5))), [Action::Launch(seat(1, 5), 2)]);
    assert!(play.rollout.ready() == 1 && play.rollout.is_rolling());
}

#[test]
fn a_worker_is_recycled_once_its_successor_is_ready_and_one_at_a_time() {
    let mut play = Play::serving(2);
    assert_eq!(play.step(Input::Recycle(seat(0, 1))), [Action::Launch(seat(0, 2), 1)]);
    assert_eq!(play.step(Input::Recycle(seat(1, 1))), []);
    assert_eq!(play.step(Input::Ready(seat(0, 2))), [Action::Retire(seat(0, 1))]);
    play.now += Duration::from_secs(20);
    assert_eq!(play.step(Input::Tick), [], "it drains still");
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Launch(seat(1, 2), 1)]);
    assert_eq!(play.step(Input::Recycle(seat(0, 1))), [], "it is gone");
}

#[test]
fn where_memory_has_no_room_a_worker_goes_before_its_successor_starts() {
    let mut play = Play::serving(2);
    play.rollout.set_room(false);
    assert_eq!(play.step(Input::Recycle(seat(0, 1))), [Action::MakeRoom(seat(0, 1))]);
    assert_eq!(play.step(Input::Recycle(seat(1, 1))), []);
    assert_eq!(play.step(Input::Died(seat(0, 1))), [Action::Launch(seat(0, 2), 1)]);
    assert_eq!(play.step(Input::Ready(seat(0, 2))), [Action::MakeRoom(seat(1, 1))]);
}

#[test]
fn what_comes_before_the_first_worker_is_tried_again_at_a_cold_start() {
    let now = Instant::now();
    let mut play = Play { rollout: Rollout::new(POLICY, now), now, rng: fastrand::Rng::with_seed(7) };
    assert_eq!(play.step(Input::Want(1)), [Action::Prepare(1)]);
    assert_eq!(play.step(Input::Unprepared(1)), [Action::Prepare(1)]);
    for _ in 0..5 {
        assert_eq!(play.step(Input::Unprepared(1)), []);
        assert_eq!(play.wait(), [Action::Prepare(1)]);
    }
    assert!(play.rollout.is_crash_loop());
    assert_eq!(play.step(Input::Prepared(1)), [Action::Launch(seat(0, 1), 1)]);
}

/// Workers as the world has them: what may happen to each, and whether edge asked it to go.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Life {
    Starting,
    Ready,
    Leaving { was_ready: bool },
}

#[derive(Debug, Default)]
struct World {
    lives: BTreeMap<Seat, Life>,
    spawns: BTreeMap<u32, u32>,
    preparing: BTreeSet<u64>,
    /// Worker deaths nobody asked for.
    accidents: u32,
    generations: u64,
    retired: u32,
}

impl World {
    /// Slots with a worker that serves.
    fn ready(&self) -> usize {
        let ready = self.lives.iter().filter(|(_, life)| **life == Life::Ready);
        ready.map(|(seat, _)| seat.slot).collect::<BTreeSet<_>>().len()
    }

    fn perform(&mut self, actions: Vec<Action>, room: bool, wanted: u32) -> Result<(), TestCaseError> {
        for action in actions {
            match action {
                Action::Prepare(generation) => {
                    prop_assert!(self.preparing.insert(generation), "prepared once at a time");
                }
                Action::Launch(seat, _) => {
                    let same = self.lives.keys().filter(|other| other.slot == seat.slot).count();
                    prop_assert!(self.lives.insert(seat, Life::Starting).is_none());
                    prop_assert!(same < 3, "one, its successor, and one that goes");
                    *self.spawns.entry(seat.slot).or_default() += 1;
                }
                Action::Retire(seat) | Action::MakeRoom(seat) => {
                    let life = self.lives.get_mut(&seat);
                    prop_assert!(matches!(life, Some(Life::Starting | Life::Ready)), "it lives");
                    let was_ready = life == Some(&mut Life::Ready);
                    self.lives.insert(seat, Life::Leaving { was_ready });
                    let successor = self
                        .lives
                        .iter()
                        .any(|(other, life)| other.slot == seat.slot && *life == Life::Ready);
                    let surplus = seat.slot >= wanted;
                    prop_assert!(!was_ready || successor || surplus || !room, "its successor is ready first");
                    self.retired += 1;
                }
                Action::Completed(_) | Action::Abandoned(..) => {}
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// An app whose workers are recycled, rolled, scaled, slow, dying and late, as chance has it.
    #[test]
    fn no_trace_takes_two_slots_down_or_spawns_a_storm(
        workers in 1u32..5,
        room in any::<bool>(),
        moves in prop::collection::vec((0u8..15, 0u32..5, 0u64..4000), 1..60),
    ) {
        let now = Instant::now();
        let mut play = Play { rollout: Rollout::new(POLICY, now), now, rng: fastrand::Rng::with_seed(3) };
        let mut world = World::default();
        play.rollout.set_room(room);
        let actions = play.step(Input::Want(workers));
        world.perform(actions, room, play.rollout.wanted())?;
        let most = 6;
        for (kind, slot, millis) in moves {
            play.now += Duration::from_millis(millis);
            let life = |wanted: fn(&Life) -> bool| {
                world.lives.iter().find(|(seat, life)| seat.slot == slot % most && wanted(life)).map(|(seat, _)| *seat)
            };
            let number = play.rollout.wanted();
            // As the load's share in it is: one less only while all serve.
            let steady = !play.rollout.is_rolling() && play.rollout.ready() >= number;
            let input = match kind {
                0..=3 => life(|life| *life == Life::Starting).map(Input::Ready),
                4 => life(|life| *life == Life::Starting).map(Input::Died),
                5 => life(|life| *life == Life::Ready).map(Input::Died),
                6 | 7 => life(|life| matches!(life, Life::Leaving { .. })).map(Input::Died),
                8 => life(|life| *life == Life::Ready).map(Input::Recycle),
                9 if !play.rollout.is_rolling() => Some(Input::Roll(world.generations + 2, number)),
                11 if number < most => Some(Input::Want(number + 1 + slot % (most - number))),
                12 if number > 1 && steady => Some(Input::Want(number - 1)),
                10 => world.preparing.pop_first().map(Input::Unprepared),
                13 if !play.rollout.is_rolling() => world.preparing.pop_first().map(Input::Interrupted),
                _ => world.preparing.pop_first().map(Input::Prepared),
            };
            match input {
                Some(Input::Ready(seat)) => drop(world.lives.insert(seat, Life::Ready)),
                Some(Input::Died(seat)) => {
                    let life = world.lives.remove(&seat);
                    world.accidents += u32::from(!matches!(life, Some(Life::Leaving { .. })));
                }
                Some(Input::Roll(..)) => world.generations += 1,
                Some(_) | None => {}
            }
            let ready = world.ready();
            let actions = play.step(input.unwrap_or(Input::Tick));
            let retired_ready = actions.iter().filter(|action| match action {
                Action::Retire(seat) | Action::MakeRoom(seat) => {
                    seat.slot < play.rollout.wanted() && world.lives.get(seat) == Some(&Life::Ready)
                }
                _ => false,
            }).count();
            world.perform(actions, room, play.rollout.wanted())?;
            prop_assert!(retired_ready <= 1, "one at a time");
            // Where there is room, who is asked to go has been replaced already.
            let number = play.rollout.wanted() as usize;
            let floor = if room { number.min(ready) } else { (number - 1).min(ready) };
            prop_assert!(world.ready() >= floor, "{} ready, {floor} expected", world.ready());
            prop_assert_eq!(world.ready() as u32, play.rollout.ready());
            if let Some(at) = play.rollout.wake_at() {
                prop_assert!(at > play.now && at <= play.now + Duration::from_secs(31));
            }
        }
        // Left alone, everything comes to rest with everybody there.
        for _ in 0..200 {
            let next = world.lives.iter().find(|(_, life)| **life != Life::Ready).map(|(seat, life)| (*seat, *life));
            let input = match (world.preparing.pop_first(), next) {
                (Some(generation), _) => Input::Prepared(generation),
                (None, Some((seat, Life::Starting))) => {
                    world.lives.insert(seat, Life::Ready);
                    Input::Ready(seat)
                }
                (None, Some((seat, _))) => {
                    world.lives.remove(&seat);
                    Input::Died(seat)
                }
                (None, None) => {
                    let Some(at) = play.rollout.wake_at() else { break };
                    play.now = at;
                    Input::Tick
                }
            };
            let actions = play.step(input);
            world.perform(actions, room, play.rollout.wanted())?;
        }
        prop_assert_eq!(world.ready(), play.rollout.wanted() as usize);
        prop_assert!(play.rollout.is_settled() && !play.rollout.is_rolling());
    }

    /// Whatever each start comes to, and although requests wait all the time for an app with a range of workers, a slot that
    /// always fails is not started more than this.
    #[test]
    fn ten_minutes_of_failing_starts_cost_few_spawns(
        workers in 1u32..4,
        more in 0u32..4,
        ends in prop::collection::vec((0u8..3, 10u64..3000), 40..80),
    ) {
        let mut play = Play::started(workers);
        let mut scale = Scale::new(WorkerCount { min: workers, max: workers + more }, play.now);
        let end = play.now + Duration::from_secs(600);
        let mut spawns = vec![1u32; (workers + more) as usize];
        let mut due: BTreeMap<Instant, Vec<Input>> = BTreeMap::new();
        let mut fate = ends.into_iter().cycle();
        let mut plan = |due: &mut BTreeMap<Instant, Vec<Input>>, now: Instant, seat| {
            let (end, millis) = fate.next().expect("it cycles");
            let after = now + Duration::from_millis(millis);
            match end {
                0 => {}
                1 => due.entry(after).or_default().push(Input::Late(seat)),
                // Ready for a moment, which is no success.
                _ => due.entry(after - Duration::from_millis(millis.min(900))).or_default().push(Input::Ready(seat)),
            }
            due.entry(after).or_default().push(Input::Died(seat));
        };
        for slot in 0..workers {
            plan(&mut due, play.now, seat(slot, 1));
        }
        while play.now < end {
            let next = due.keys().next().copied();
            let look = play.now + Duration::from_millis(500);
            let Some(at) = [next, play.rollout.wake_at(), Some(look)].into_iter().flatten().min() else { break };
            play.now = at;
            let mut actions = Vec::new();
            for input in due.remove(&at).unwrap_or_default() {
                actions.extend(play.step(input));
            }
            actions.extend(play.step(Input::Tick));
            let (number, ready) = (play.rollout.wanted(), play.rollout.ready());
            let steady = ready >= number && !play.rollout.is_crash_loop();
            let load = Load { busy: ready.into(), waiting: 50, each: 1, open: ready };
            match scale.look(play.now, load, number, steady, || u32::MAX) {
                Some(Step::Up(to, _) | Step::Down(to)) => {
                    prop_assert!(steady && (workers..=workers + more).contains(&to));
                    actions.extend(play.step(Input::Want(to)));
                }
                Some(Step::NoRoom(_)) | None => {}
            }
            for action in actions {
                if let Action::Launch(seat, _) = action {
                    spawns[seat.slot as usize] += 1;
                    plan(&mut due, play.now, seat);
                }
            }
        }
        prop_assert!(spawns.iter().all(|count| *count < 40), "{spawns:?}");
    }
}
