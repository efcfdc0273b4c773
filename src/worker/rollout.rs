//! How many workers there are: which slot is filled when, and who goes.
//!
//! Must not do: read a clock, spawn. It never gives up: a slot that fails is tried again after a growing delay, for ever.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// What the supervisor must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a new incarnation of this slot.
    Launch(u32),
    /// Ask this slot's worker to go.
    Retire(u32),
}

/// What happens to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The slot's worker answered for the first time.
    Ready(u32),
    /// The slot's worker is gone, or could not be started.
    Died(u32),
    /// That many are wanted from now on.
    Want(u32),
    /// Time passed; the moment of [`Rollout::wake_at`] may have come.
    Tick,
}

/// When a slot is filled again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Delays between replacements, after the first, which follows at once.
    pub backoff: Backoff,
    /// Ready this long, a worker's earlier failures are forgotten.
    pub proven: Duration,
    /// Ready this long, a worker's death is no failure to start and is answered at once.
    pub served: Duration,
    /// Deaths before readiness, with nobody ready, that make the app a failed one.
    pub crash_loop: u32,
}

/// The slots of one app.
#[derive(Debug, Clone)]
pub struct Rollout {
    policy: Policy,
    wanted: u32,
    places: Vec<Place>,
    early_deaths: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Place {
    /// Failures in a row that the next delay is drawn for.
    failures: u32,
    filled: Filled,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Filled {
    /// Nobody; to be launched then.
    Vacant { launch_at: Instant },
    /// Launched, has not answered.
    Starting,
    /// Takes requests.
    Ready { since: Instant },
    /// Asked to go.
    Leaving,
}

impl Rollout {
    /// Nobody is there and nobody is wanted yet: feed [`Input::Want`].
    pub fn new(policy: Policy) -> Self {
        Self { policy, wanted: 0, places: Vec::new(), early_deaths: 0 }
    }

    /// Takes in what happened and says what to do about it.
    pub fn step(&mut self, now: Instant, input: Input, rng: &mut fastrand::Rng) -> Vec<Action> {
        match input {
            Input::Ready(slot) => {
                self.early_deaths = 0;
                if let Some(place) = self.places.get_mut(slot as usize)
                    && place.filled == Filled::Starting
                {
                    place.filled = Filled::Ready { since: now };
                }
            }
            Input::Died(slot) => self.died(slot, now, rng),
            Input::Want(wanted) => {
                self.wanted = wanted;
                let vacant = Place { failures: 0, filled: Filled::Vacant { launch_at: now } };
                self.places.resize(self.places.len().max(wanted as usize), vacant);
            }
            Input::Tick => {}
        }
        self.settle(now)
    }

    /// When the next [`Input::Tick`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        let wanted = self.places.iter().take(self.wanted as usize);
        let at = wanted.filter_map(|place| match place.filled {
            Filled::Vacant { launch_at } => Some(launch_at),
            Filled::Starting | Filled::Ready { .. } | Filled::Leaving => None,
        });
        at.min()
    }

    /// Whether workers die before they are ready, again and again, and none is ready.
    pub fn is_crash_loop(&self) -> bool {
        self.early_deaths >= self.policy.crash_loop && self.ready() == 0
    }

    /// Workers that take requests.
    pub fn ready(&self) -> u32 {
        let ready = |place: &&Place| match place.filled {
            Filled::Ready { .. } => true,
            Filled::Vacant { .. } | Filled::Starting | Filled::Leaving => false,
        };
        self.places.iter().filter(ready).count() as u32
    }

    /// Workers that ought to.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    fn died(&mut self, slot: u32, now: Instant, rng: &mut fastrand::Rng) {
        let policy = self.policy;
        let Some(place) = self.places.get_mut(slot as usize) else { return };
        let delay = match place.filled {
            Filled::Vacant { .. } => return,
            Filled::Leaving => {
                place.failures = 0;
                Duration::ZERO
            }
            Filled::Ready { since } if now.duration_since(since) >= policy.proven => {
                place.failures = 1;
                Duration::ZERO
            }
            // Somebody kills them, or one request in many does: the start works, so capacity comes first. What a short life
            // adds to the delay, a longer one halves.
            Filled::Ready { since } if now.duration_since(since) >= policy.served => {
                place.failures /= 2;
                Duration::ZERO
            }
            Filled::Starting | Filled::Ready { .. } => {
                if place.filled == Filled::Starting {
                    self.early_deaths = self.early_deaths.saturating_add(1);
                }
                place.failures = place.failures.saturating_add(1);
                match place.failures {
                    0 | 1 => Duration::ZERO,
                    // Jitter may not stretch the longest delay: an app that is repaired is back within it.
                    n => policy.backoff.delay(n - 2, rng).min(policy.backoff.cap),
                }
            }
        };
        place.filled = Filled::Vacant { launch_at: now + delay };
    }

    fn settle(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        for (slot, place) in (0u32..).zip(&mut self.places) {
            match place.filled {
                Filled::Vacant { launch_at } if slot < self.wanted && launch_at <= now => {
                    place.filled = Filled::Starting;
                    actions.push(Action::Launch(slot));
                }
                Filled::Starting | Filled::Ready { .. } if slot >= self.wanted => {
                    place.filled = Filled::Leaving;
                    actions.push(Action::Retire(slot));
                }
                Filled::Vacant { .. } | Filled::Starting | Filled::Ready { .. } | Filled::Leaving => {}
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy = Policy {
        backoff: Backoff { base: Duration::from_millis(200), cap: Duration::from_secs(30), jitter: 0.2 },
        proven: Duration::from_secs(60),
        served: Duration::from_secs(1),
        crash_loop: 5,
    };

    fn rng() -> fastrand::Rng {
        fastrand::Rng::with_seed(7)
    }

    fn started(wanted: u32, now: Instant) -> Rollout {
        let mut rollout = Rollout::new(POLICY);
        let launches = rollout.step(now, Input::Want(wanted), &mut rng());
        assert_eq!(launches, (0..wanted).map(Action::Launch).collect::<Vec<_>>());
        rollout
    }

    #[test]
    fn a_cold_start_launches_all_at_once() {
        let rollout = started(4, Instant::now());
        assert_eq!(rollout.wake_at(), None);
    }

    #[test]
    fn the_first_death_is_answered_at_once_and_later_ones_after_growing_delays() {
        let (mut now, mut rng) = (Instant::now(), rng());
        let mut rollout = started(1, now);
        assert_eq!(rollout.step(now, Input::Died(0), &mut rng), [Action::Launch(0)]);
        let mut delays = Vec::new();
        for _ in 0..12 {
            assert_eq!(rollout.step(now, Input::Died(0), &mut rng), []);
            let at = rollout.wake_at().expect("a launch is planned");
            delays.push(at - now);
            now = at;
            assert_eq!(rollout.step(now, Input::Tick, &mut rng), [Action::Launch(0)]);
        }
        assert!(delays[0] >= Duration::from_millis(160) && delays[0] <= Duration::from_millis(240));
        assert!(delays.windows(2).all(|two| two[0] < two[1] || two[1] >= Duration::from_secs(24)));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(30)));
    }

    #[test]
    fn ten_minutes_of_crash_loop_cost_few_spawns() {
        let (mut now, mut rng) = (Instant::now(), rng());
        let end = now + Duration::from_secs(600);
        let mut rollout = started(1, now);
        let mut spawns = 1;
        while now < end {
            now += Duration::from_millis(300);
            if rollout.step(now, Input::Died(0), &mut rng).is_empty() {
                now = rollout.wake_at().expect("it never gives up");
                assert_eq!(rollout.step(now, Input::Tick, &mut rng), [Action::Launch(0)]);
            }
            spawns += 1;
        }
        assert!(spawns < 40, "{spawns}");
    }

    #[test]
    fn five_early_deaths_with_nobody_ready_are_a_crash_loop_until_one_is_ready() {
        let (mut now, mut rng) = (Instant::now(), rng());
        let mut rollout = started(2, now);
        for death in 0..5 {
            assert!(!rollout.is_crash_loop(), "{death}");
            rollout.step(now, Input::Died(death % 2), &mut rng);
            while rollout.wake_at().is_some() {
                now = rollout.wake_at().expect("checked");
                rollout.step(now, Input::Tick, &mut rng);
            }
        }
        assert!(rollout.is_crash_loop());
        rollout.step(now, Input::Ready(0), &mut rng);
        assert!(!rollout.is_crash_loop());
    }

    #[test]
    fn workers_that_are_killed_while_they_serve_are_replaced_at_once_each_time() {
        let (mut now, mut rng) = (Instant::now(), rng());
        let mut rollout = started(1, now);
        for _ in 0..50 {
            rollout.step(now, Input::Ready(0), &mut rng);
            now += Duration::from_secs(2);
            assert_eq!(rollout.step(now, Input::Died(0), &mut rng), [Action::Launch(0)]);
        }
    }

    #[test]
    fn fewer_wanted_retires_the_last_slots_and_wanting_them_again_waits_for_their_end() {
        let (now, mut rng) = (Instant::now(), rng());
        let mut rollout = started(3, now);
        assert_eq!(rollout.step(now, Input::Want(1), &mut rng), [Action::Retire(1), Action::Retire(2)]);
        assert_eq!(rollout.step(now, Input::Want(2), &mut rng), []);
        assert_eq!(rollout.step(now, Input::Died(1), &mut rng), [Action::Launch(1)]);
        assert_eq!(rollout.step(now, Input::Died(2), &mut rng), []);
        assert_eq!(rollout.wake_at(), None);
    }

    proptest! {
        #[test]
        fn each_slot_has_one_worker_at_most_and_is_filled_again(
            moves in prop::collection::vec((0u8..4, 0u32..4, 0u64..5000), 0..80)
        ) {
            let (mut now, mut rng) = (Instant::now(), rng());
            let mut rollout = Rollout::new(POLICY);
            let mut alive = [false; 4];
            for (kind, slot, millis) in moves {
                now += Duration::from_millis(millis);
                let input = match kind {
                    0 if alive[slot as usize] => Input::Ready(slot),
                    1 if alive[slot as usize] => {
                        alive[slot as usize] = false;
                        Input::Died(slot)
                    }
                    2 => Input::Want(slot),
                    _ => Input::Tick,
                };
                for action in rollout.step(now, input, &mut rng) {
                    match action {
                        Action::Launch(slot) => {
                            prop_assert!(!alive[slot as usize], "one at most");
                            prop_assert!(slot < rollout.wanted());
                            alive[slot as usize] = true;
                        }
                        Action::Retire(slot) => prop_assert!(alive[slot as usize]),
                    }
                }
                let missing = (0..rollout.wanted()).any(|slot| !alive[slot as usize]);
                prop_assert_eq!(missing, rollout.wake_at().is_some());
                if let Some(at) = rollout.wake_at() {
                    prop_assert!(at > now && at <= now + Duration::from_secs(30));
                }
            }
        }
    }
}
