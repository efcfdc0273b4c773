//! Which of several slots takes the next request: the one with the least in flight, weighted by what its answers took lately,
//! by how long it has owed one, and by how new it is.

use std::time::Duration;

use crate::fading::left;

/// Up to this many slots are all looked at; of more, the better of two: of those chance picks, which is nearly as even and does not
/// send every thread to the same one, or of one of them and the warm one.
pub const COMPARED: usize = 8;

/// Latencies in this relation are alike: what lies between is noise, or the trace of one slow page, and requests in flight decide.
/// So nobody is sent to a busy worker while another, quick but for its last answers, has nothing to do.
const ALIKE: f32 = 4.0;
/// A latency below this, in seconds, is as good as any.
const SHORT: f32 = 0.001;
/// An answer counts for at most so many times what answers took before: one slow page among many is not a slow worker, nor are
/// two, and of a slow worker the next answers tell.
const LEAP: f32 = 2.0;
/// The weight of an answer that took less than those before.
const SETTLE: f32 = 0.25;
/// What is not heard of for so long, in seconds, has faded to a third, so that a slow worker is asked again.
const FADE: f32 = 5.0;
/// A worker that owes an answer for so many times what its answers took is at something long, and perhaps at nothing else.
const LATE: f32 = 2.0;
/// Of one that is silent for longer than this, in seconds, it may be the application's way, and no more can be told.
const SILENCE: f32 = 1.0;
/// What silence that is not late yet weighs: of those alike, who was heard of last is the least likely to have begun something long.
const HINT: f32 = 0.1;
/// Who had a thread's last request so lately is still warm: what it needs lies in the processors' caches, and perhaps it has not
/// gone to sleep. Measured with four idle uvicorns on two processors, at 2,000 requests a second: a quarter less CPU for each.
const WARM: Duration = Duration::from_millis(10);
/// How long a new worker gets less than its share …
const SLOW_START: Duration = Duration::from_secs(10);
/// … beginning at the share of one this many times slower.
const COLD: f32 = 5.0 * ALIKE;

/// A slot that has room.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Candidate {
    /// Requests in flight, WebSockets included.
    pub in_flight: u64,
    /// Recent latency in seconds; 0 is unknown.
    pub latency: f32,
    /// For how many seconds it has owed an answer; 0 where it owes none.
    pub silent: f32,
    /// Time since it was opened.
    pub age: Duration,
}

/// Who takes a request that several suit equally well.
#[derive(Debug, Clone, Copy)]
pub enum Tie {
    /// The first from this place on.
    From(usize),
    /// Any of them, by a number that callers vary. Not the first from there on: the neighbour of one that is passed over would
    /// have two shares.
    Any(usize),
}

/// The place of the slot that takes the next request, of up to [`COMPARED`].
pub fn choose(candidates: &[Candidate], tie: Tie) -> Option<usize> {
    let candidates = &candidates[..candidates.len().min(COMPARED)];
    let quickest = quickest(candidates.iter().map(|one| one.latency));
    let mut weights = [0.0; COMPARED];
    let mut lightest = f32::INFINITY;
    for (weight, one) in weights.iter_mut().zip(candidates) {
        *weight = usual(one.latency, quickest) * slow_start(one.age);
        lightest = lightest.min(*weight);
    }
    let alike = lightest * ALIKE;
    let (mut loads, mut least) = ([f32::INFINITY; COMPARED], f32::INFINITY);
    for (place, one) in candidates.iter().enumerate() {
        let late =
            if is_late(one.silent, usual(one.latency, quickest)) { one.silent.min(SILENCE) } else { 0.0 };
        let load =
            (weights[place].max(alike) + late) * (one.in_flight + 1) as f32 + one.silent.min(SILENCE) * HINT;
        loads[place] = load;
        least = least.min(load);
    }
    let is_best = |place: &usize| loads[*place] <= least;
    let places = 0..candidates.len();
    match tie {
        Tie::From(start) => (start..candidates.len()).chain(0..start).find(is_best),
        Tie::Any(turn) => {
            let nth = turn.checked_rem(places.clone().filter(is_best).count())?;
            places.filter(is_best).nth(nth)
        }
    }
}

/// Whether the slot that had the last request so long ago comes first among equals: where answers are that short, what being warm
/// saves counts, and what the worker may have left to do after its last answer, which its latency would show, does not.
pub fn is_warm(latency: f32, since: Duration) -> bool {
    latency > 0.0 && latency <= SHORT && since < WARM
}

/// What an answer of a slot takes, in seconds: of one that has not answered yet, as long as the `quickest` of the others'.
pub fn usual(latency: f32, quickest: Option<f32>) -> f32 {
    let known = if latency > 0.0 { latency } else { quickest.unwrap_or(SHORT) };
    known.max(SHORT)
}

/// What a silence of so many seconds says to who stays long with the worker that takes it: nothing, unless it is too long to be
/// over in a moment.
pub fn for_long(silent: f32) -> f32 {
    if silent < SILENCE { 0.0 } else { silent }
}

/// Whether who has owed an answer for so long takes longer than [`usual`]; both in seconds.
pub fn is_late(silent: f32, usual: f32) -> bool {
    silent > usual * LATE
}

/// The least of these latencies that is known.
pub fn quickest(latencies: impl Iterator<Item = f32>) -> Option<f32> {
    latencies.filter(|latency| *latency > 0.0).min_by(f32::total_cmp)
}

/// How many times slower a new worker counts.
fn slow_start(age: Duration) -> f32 {
    if age >= SLOW_START {
        return 1.0;
    }
    1.0 + (COLD - 1.0) * (1.0 - age.as_secs_f32() / SLOW_START.as_secs_f32())
}

/// An estimate of what a slot's answers take: rises at once, within bounds, falls slowly, fades in silence.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Latency {
    seconds: f32,
    /// When it was heard of, in milliseconds after the slot was opened, modulo 49 days.
    at: u32,
    /// When the estimate rose.
    risen: u32,
}

impl Latency {
    /// The estimate at `age` of the slot, in seconds; 0 where nothing is known.
    pub fn at(self, age: Duration) -> f32 {
        let silent = self.silent(age);
        // Most are heard of all the time.
        if silent < FADE / 64.0 { self.seconds } else { self.seconds * left(silent / FADE) }
    }

    /// The estimate as it was when the slot was last heard of: what a silent one is held against, for that fades.
    pub fn when_heard(self) -> f32 {
        self.seconds
    }

    /// The same estimate, heard of at `age`.
    #[must_use]
    pub fn heard(self, age: Duration) -> Self {
        Self { seconds: self.at(age), at: millis(age), ..self }
    }

    /// Seconds since it was heard of: of a slot that owes answers, how long it has been silent.
    pub fn silent(self, age: Duration) -> f32 {
        let silent = millis(age).wrapping_sub(self.at);
        // Another thread's answer may be a little ahead of this one's clock.
        if silent > u32::MAX / 2 { 0.0 } else { silent as f32 / 1000.0 }
    }

    /// The estimate after an answer that took `took`. The first one is held against `usual`, what answers of the others take, where
    /// that is known: a worker must not be passed over for what its first answer happened to be.
    #[must_use]
    pub fn after(self, took: Duration, age: Duration, usual: impl FnOnce() -> Option<f32>) -> Self {
        let (asked, took) = (millis(age.saturating_sub(took)), took.as_secs_f32());
        let Self { seconds: before, at, risen } = self.heard(age);
        if before == 0.0 {
            let most = usual().map_or(f32::INFINITY, |usual| usual.max(SHORT) * LEAP);
            return Self { seconds: took.min(most), at, risen: at };
        }
        if took <= before {
            return Self { seconds: before + (took - before) * SETTLE, at, risen };
        }
        // Many requests that waited for one slow thing are one news: only who was asked after the rise tells more.
        if asked.wrapping_sub(risen) > u32::MAX / 2 {
            return Self { seconds: before, at, risen };
        }
        Self { seconds: took.min(before.max(SHORT) * LEAP), at, risen: at }
    }

    /// In two words, so that threads share it without a lock.
    pub fn pack(self) -> (u64, u32) {
        (u64::from(self.seconds.to_bits()) << 32 | u64::from(self.at), self.risen)
    }

    /// From [`Self::pack`]; zeros are an estimate of nothing.
    pub fn unpack(word: u64, risen: u32) -> Self {
        Self { seconds: f32::from_bits((word >> 32) as u32), at: word as u32, risen }
    }
}

fn millis(age: Duration) -> u32 {
    (age.as_secs() as u32).wrapping_mul(1000).wrapping_add(age.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(3600);

    fn old(in_flight: u64, latency: f32) -> Candidate {
        Candidate { in_flight, latency, silent: 0.0, age: OLD }
    }

    fn heard(latency: Latency, took: Duration, age: Duration) -> Latency {
        latency.after(took, age, || None)
    }

    #[test]
    fn of_equals_the_least_busy_takes_the_next_request_and_ties_go_in_turn() {
        for turn in 0..7 {
            let noisy = [old(3, 0.010), old(1, 0.013), old(2, 0.009)];
            assert_eq!(choose(&noisy, Tie::Any(turn)), Some(1));
            assert_eq!(choose(&noisy, Tie::From(turn % 3)), Some(1));
        }
        let taken: Vec<_> =
            (0..4).map(|turn| choose(&[old(1, 0.0), old(1, 0.0), old(1, 0.0)], Tie::Any(turn))).collect();
        assert_eq!(taken, [Some(0), Some(1), Some(2), Some(0)]);
        let slow = [old(0, 0.0), old(9, 0.0), old(0, 0.0), old(0, 0.0)];
        let from: Vec<_> = (0..4).map(|place| choose(&slow, Tie::From(place))).collect();
        assert_eq!(from, [Some(0), Some(2), Some(2), Some(3)]);
        let any: Vec<_> = (0..6).map(|turn| choose(&slow, Tie::Any(turn))).collect();
        assert_eq!(any, [Some(0), Some(2), Some(3), Some(0), Some(2), Some(3)], "equal shares");
        assert_eq!((choose(&[], Tie::Any(3)), choose(&[], Tie::From(0))), (None, None));
    }

    #[test]
    fn a_new_worker_begins_with_little_and_has_its_share_after_ten_seconds() {
        let new = |seconds| Candidate { age: Duration::from_secs(seconds), ..Candidate::default() };
        assert_eq!(choose(&[old(3, 0.010), new(0)], Tie::Any(1)), Some(0));
        assert_eq!(choose(&[old(6, 0.010), new(0)], Tie::Any(0)), Some(1));
        assert_eq!(choose(&[old(1, 0.010), new(10)], Tie::Any(0)), Some(1));
        assert_eq!(choose(&[new(0), new(0)], Tie::Any(1)), Some(1), "where all are new, none is");
        assert_eq!(choose(&[new(1), new(0)], Tie::Any(1)), Some(1), "nor where some are a little newer");
    }

    #[test]
    fn one_slow_page_is_not_a_slow_worker() {
        let mut latency = Latency::default();
        let ms = Duration::from_millis;
        for step in 0..100 {
            latency = heard(latency, ms(5), ms(step * 10));
        }
        latency = heard(latency, ms(5000), ms(1000));
        assert!(latency.at(ms(1000)) < 0.025, "{latency:?}");
        for step in 0..20 {
            latency = heard(latency, ms(5), ms(1000 + step * 10));
        }
        assert!(latency.at(ms(1200)) < 0.010, "{latency:?}");
        // All that waited behind one slow thing tell of one.
        for step in 0..5 {
            latency = heard(latency, ms(5000 - step), ms(6200 + step));
        }
        assert!(latency.at(ms(6210)) < 0.025, "{latency:?}");
        let (word, risen) = latency.pack();
        assert_eq!(Latency::unpack(word, risen), latency);
        assert_eq!(Latency::unpack(0, 0).at(OLD), 0.0);
    }

    #[test]
    fn a_worker_that_became_slow_is_unlike_the_others_after_three_answers_known_after_seven_and_asked_again_later()
     {
        let ms = Duration::from_millis;
        let usual = heard(Latency::default(), ms(5), ms(1000));
        let mut latency = usual;
        // Each may double the estimate: 5 ms are 40 after three, more than four times as much even faded, and 500 after seven.
        let after: Vec<f32> = (1..=7)
            .map(|nth| {
                latency = heard(latency, ms(500), ms(1000 + nth * 510));
                latency.at(ms(1000 + nth * 510))
            })
            .collect();
        let alike = usual.at(ms(1000)) * ALIKE;
        assert_eq!(after.iter().position(|slow| *slow > alike), Some(2), "{after:?}");
        assert_eq!(after.iter().position(|slow| *slow > 0.25), Some(6), "{after:?}");
        assert!(latency.at(ms(34_570)) < 0.005, "it fades: {latency:?}");
    }

    #[test]
    fn who_has_not_answered_yet_is_late_by_the_answers_of_the_quickest() {
        assert_eq!(usual(0.2, Some(0.1)), 0.2);
        assert_eq!(usual(0.0, Some(0.1)), 0.1);
        assert_eq!(usual(0.0, None), SHORT);
        assert_eq!(usual(SHORT / 2.0, Some(SHORT / 4.0)), SHORT, "below that all are as good");
    }

    #[test]
    fn a_first_answer_is_held_against_what_those_of_the_others_take() {
        let ms = Duration::from_millis;
        let first = |usual: Option<f32>| Latency::default().after(ms(1800), ms(2000), || usual).at(ms(2000));
        assert!(first(Some(0.015)) < 0.031);
        assert!(first(Some(0.000_01)) <= SHORT * LEAP);
        assert!(first(None) > 1.7, "nothing is known to hold it against");
        assert_eq!(quickest([0.0, 0.3, 0.2].into_iter()), Some(0.2));
        assert_eq!(quickest([0.0].into_iter()), None);
    }

    #[test]
    fn nobody_is_sent_to_a_busy_worker_for_the_slow_pages_of_an_idle_one() {
        let ms = Duration::from_millis;
        let usual = heard(Latency::default(), ms(5), ms(1000));
        let slow = heard(heard(usual, ms(500), ms(1600)), ms(500), ms(2110));
        for turn in 0..4 {
            let candidates = [old(1, usual.at(ms(2110))), old(0, slow.at(ms(2110)))];
            assert_eq!(choose(&candidates, Tie::Any(turn)), Some(1), "{slow:?}");
        }
    }

    #[test]
    fn a_worker_that_owes_answers_and_is_silent_is_passed_over() {
        for turn in 0..3 {
            let owing = |silent| Candidate { silent, ..old(1, 0.005) };
            assert_eq!(
                choose(&[owing(0.009), old(2, 0.005)], Tie::Any(turn)),
                Some(0),
                "no longer than usual"
            );
            assert_eq!(
                choose(&[owing(0.009), owing(0.004)], Tie::Any(turn)),
                Some(1),
                "it was heard of last"
            );
            assert_eq!(choose(&[owing(0.1), owing(0.004)], Tie::Any(turn)), Some(1));
            assert_eq!(choose(&[owing(0.1), old(5, 0.005)], Tie::Any(turn)), Some(1));
            assert_eq!(choose(&[owing(60.0), old(200, 0.005)], Tie::Any(turn)), Some(0), "bounded");
        }
        let latency = heard(Latency::default(), Duration::from_millis(5), OLD);
        assert_eq!(latency.silent(OLD + Duration::from_millis(95)), 0.095);
    }

    /// Clients that each have one request open at a time, on workers that take `service` for any number at once. Returns
    /// the shares of the requests.
    fn simulate(service: &[Duration], clients: usize, pause: Duration, length: Duration) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut latency = vec![Latency::default(); service.len()];
        let (mut in_flight, mut taken) = (vec![0u64; service.len()], vec![0u64; service.len()]);
        // When each client acts next, and what it is in.
        let mut clients: Vec<(Duration, Option<(usize, Duration)>)> =
            (0..clients).map(|n| (Duration::from_millis(n as u64), None)).collect();
        loop {
            let client = clients.iter_mut().min_by_key(|client| client.0).expect("clients");
            let now = client.0;
            if now > length {
                break;
            }
            let age = OLD + now;
            match client.1.take() {
                Some((slot, since)) => {
                    in_flight[slot] -= 1;
                    latency[slot] = heard(latency[slot], now - since, age);
                    client.0 = now + pause;
                }
                None => {
                    let candidates: Vec<_> = (0..service.len())
                        .map(|slot| Candidate {
                            in_flight: in_flight[slot],
                            latency: latency[slot].at(age),
                            silent: if in_flight[slot] > 0 { latency[slot].silent(age) } else { 0.0 },
                            age,
                        })
                        .collect();
                    let slot = choose(&candidates, Tie::Any(rng.usize(..))).expect("there are slots");
                    if in_flight[slot] == 0 {
                        latency[slot] = latency[slot].heard(age);
                    }
                    in_flight[slot] += 1;
                    taken[slot] += 1;
                    let noise = 0.7 + 0.6 * rng.f64();
                    *client = (now + service[slot].mul_f64(noise), Some((slot, now)));
                }
            }
        }
        let all: u64 = taken.iter().sum();
        taken.iter().map(|count| *count as f64 / all as f64).collect()
    }

    #[test]
    fn a_worker_ten_times_slower_gets_less_than_a_twentieth_and_equals_get_equal_shares() {
        let ms = Duration::from_millis;
        for (workers, clients, pause) in [(2, 4, 0), (4, 1, 0), (4, 8, 0), (4, 40, 1), (3, 2, 20), (8, 16, 0)]
        {
            let mut service = vec![ms(10); workers];
            for share in simulate(&service, clients, ms(pause), Duration::from_secs(60)) {
                let fair = 1.0 / workers as f64;
                assert!((share - fair).abs() < fair / 4.0, "{workers} {clients} {pause}: {share}");
            }
            service[0] = ms(100);
            let shares = simulate(&service, clients, ms(pause), Duration::from_secs(60));
            assert!(shares[0] < 0.05, "{workers} {clients} {pause}: {shares:?}");
            assert!(shares[0] > 0.0, "it is asked from time to time");
        }
    }

    /// How many of 150 requests a second that wait 10 to 20 ms are behind one that computes for 500 ms on a worker with one
    /// thread, of which one comes each second.
    fn caught(seconds: u64, seed: u64) -> usize {
        const WORKERS: usize = 4;
        let ms = Duration::from_millis;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut latency, mut computes_until) = ([Latency::default(); WORKERS], [Duration::ZERO; WORKERS]);
        let mut open: Vec<(usize, Duration, Duration)> = Vec::new();
        let mut late = 0;
        for now in (0..seconds * 1000).map(ms) {
            let age = OLD + now;
            open.retain(|&(slot, since, done)| {
                if done <= now {
                    let others = quickest(latency.iter().map(|one| one.at(age)));
                    latency[slot] = latency[slot].after(now - since, age, || others);
                }
                done > now
            });
            let mut come = if rng.u8(..100) < 15 { vec![ms(rng.u64(10..20))] } else { Vec::new() };
            if now.as_millis() % 1000 == 500 {
                come.insert(rng.usize(..=come.len()), ms(500));
            }
            for takes in come {
                let in_flight = |slot| open.iter().filter(|one| one.0 == slot).count() as u64;
                let candidates: Vec<_> = (0..WORKERS)
                    .map(|slot| Candidate {
                        in_flight: in_flight(slot),
                        latency: latency[slot].at(age),
                        silent: if in_flight(slot) > 0 { latency[slot].silent(age) } else { 0.0 },
                        age,
                    })
                    .collect();
                let slot = choose(&candidates, Tie::Any(rng.usize(..))).expect("there are slots");
                if in_flight(slot) == 0 {
                    latency[slot] = latency[slot].heard(age);
                }
                let done = now.max(computes_until[slot]) + takes;
                if takes > ms(100) {
                    computes_until[slot] = done;
                    let behind = open.iter_mut().filter(|one| one.0 == slot && one.2 < done);
                    late += behind.map(|one| one.2 = done).count();
                } else if done > now + takes {
                    late += 1;
                }
                open.push((slot, now, done));
            }
        }
        late
    }

    #[test]
    fn hardly_a_request_is_sent_to_a_worker_that_computes() {
        for seed in 0..20 {
            let late = caught(60, seed);
            assert!(late <= 20, "{late} of 9,000 requests, beside 60 that compute");
        }
    }

    #[test]
    fn forty_long_connections_spread_evenly_over_four_workers() {
        let mut slots = [old(0, 0.002), old(0, 0.004), old(0, 0.003), old(0, 0.0)];
        for turn in 0..40 {
            let place = choose(&slots, Tie::Any(turn * 7)).expect("there are slots");
            slots[place].in_flight += 1;
        }
        assert!(slots.iter().all(|slot| slot.in_flight == 10), "{slots:?}");
    }
}
