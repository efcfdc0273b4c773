//! Which of several slots takes the next request: the one with the least in flight, weighted by what its answers took lately
//! and by how new it is.

use std::time::Duration;

/// Up to this many slots are all looked at; of more, the better of two that chance picks, which is nearly as even and does not
/// send every thread to the same one.
pub const COMPARED: usize = 8;

/// Latencies in this relation are alike: what lies between is noise, or the trace of one slow page, and requests in flight decide.
/// So nobody is sent to a busy worker while another, quick but for its last answer, has nothing to do.
const ALIKE: f32 = LEAP;
/// A latency below this, in seconds, is as good as any.
const SHORT: f32 = 0.001;
/// An answer counts for at most so many times what answers took before: one slow page among many is not a slow worker, and of
/// a slow worker the next answers tell.
const LEAP: f32 = 4.0;
/// The weight of an answer that took less than those before.
const SETTLE: f32 = 0.25;
/// What is not heard of for so long, in seconds, has faded to a third, so that a slow worker is asked again.
const FADE: f32 = 5.0;
/// A worker that owes answers and gave none for a while takes at least so long; of one that is silent for longer than this,
/// in seconds, it may be the application's way, and no more can be told.
const SILENCE: f32 = 1.0;
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
    /// Time since it was opened.
    pub age: Duration,
}

/// The place of the slot that takes the next request. Equals are taken in turn from `turn` on, which callers vary.
pub fn choose(candidates: &[Candidate], turn: usize) -> Option<usize> {
    let count = candidates.len();
    let turn = turn.checked_rem(count)?;
    // Who has not answered yet is taken for as quick as the quickest.
    let known = candidates.iter().map(|one| one.latency).filter(|latency| *latency > 0.0);
    let quickest = known.fold(f32::INFINITY, f32::min);
    let unknown = if quickest.is_finite() { quickest } else { SHORT };
    let weight = |one: &Candidate| {
        let latency = if one.latency > 0.0 { one.latency } else { unknown };
        latency.max(SHORT) * slow_start(one.age)
    };
    let lightest = candidates.iter().map(weight).fold(f32::INFINITY, f32::min);
    let load = |one: &Candidate| weight(one).max(lightest * ALIKE) * (one.in_flight + 1) as f32;
    let in_turn = (0..count).map(|step| (turn + step) % count);
    in_turn.min_by(|a, b| load(&candidates[*a]).total_cmp(&load(&candidates[*b])))
}

/// How many times slower a new worker counts.
fn slow_start(age: Duration) -> f32 {
    let left = 1.0 - age.as_secs_f32() / SLOW_START.as_secs_f32();
    1.0 + (COLD - 1.0) * left.max(0.0)
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
        self.seconds * (-self.silent(age) / FADE).exp()
    }

    /// The estimate while requests wait for an answer: a blocked worker says nothing, and that tells.
    pub fn awaited(self, age: Duration) -> f32 {
        self.at(age).max(self.silent(age).min(SILENCE))
    }

    /// The same estimate, heard of at `age`.
    #[must_use]
    pub fn heard(self, age: Duration) -> Self {
        Self { seconds: self.at(age), at: millis(age), ..self }
    }

    /// Seconds since it was heard of.
    fn silent(self, age: Duration) -> f32 {
        let silent = millis(age).wrapping_sub(self.at);
        // Another thread's answer may be a little ahead of this one's clock.
        if silent > u32::MAX / 2 { 0.0 } else { silent as f32 / 1000.0 }
    }

    /// The estimate after an answer that took `took`.
    #[must_use]
    pub fn after(self, took: Duration, age: Duration) -> Self {
        let (asked, took) = (millis(age.saturating_sub(took)), took.as_secs_f32());
        let Self { seconds: before, at, risen } = self.heard(age);
        if before == 0.0 {
            return Self { seconds: took, at, risen: at };
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
    age.as_millis() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(3600);

    fn old(in_flight: u64, latency: f32) -> Candidate {
        Candidate { in_flight, latency, age: OLD }
    }

    #[test]
    fn of_equals_the_least_busy_takes_the_next_request_and_ties_go_in_turn() {
        for turn in 0..7 {
            let noisy = [old(3, 0.010), old(1, 0.013), old(2, 0.009)];
            assert_eq!(choose(&noisy, turn), Some(1));
        }
        let taken: Vec<_> =
            (0..4).map(|turn| choose(&[old(1, 0.0), old(1, 0.0), old(1, 0.0)], turn)).collect();
        assert_eq!(taken, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(choose(&[], 3), None);
    }

    #[test]
    fn a_new_worker_begins_with_little_and_has_its_share_after_ten_seconds() {
        let new = |seconds| Candidate { in_flight: 0, latency: 0.0, age: Duration::from_secs(seconds) };
        assert_eq!(choose(&[old(3, 0.010), new(0)], 1), Some(0));
        assert_eq!(choose(&[old(6, 0.010), new(0)], 0), Some(1));
        assert_eq!(choose(&[old(1, 0.010), new(10)], 0), Some(1));
        assert_eq!(choose(&[new(0), new(0)], 1), Some(1), "where all are new, none is");
        assert_eq!(choose(&[new(1), new(0)], 1), Some(1), "nor where some are a little newer");
    }

    #[test]
    fn one_slow_page_is_not_a_slow_worker() {
        let mut latency = Latency::default();
        let ms = Duration::from_millis;
        for step in 0..100 {
            latency = latency.after(ms(5), ms(step * 10));
        }
        latency = latency.after(ms(5000), ms(1000));
        assert!(latency.at(ms(1000)) < 0.025, "{latency:?}");
        for step in 0..20 {
            latency = latency.after(ms(5), ms(1000 + step * 10));
        }
        assert!(latency.at(ms(1200)) < 0.010, "{latency:?}");
        // All that waited behind one slow thing tell of one.
        for step in 0..5 {
            latency = latency.after(ms(5000 - step), ms(6200 + step));
        }
        assert!(latency.at(ms(6210)) < 0.025, "{latency:?}");
        // Asked again, it was slow again.
        for step in 1..6 {
            latency = latency.after(ms(500), ms(6210 + step * 510));
        }
        assert!(latency.at(ms(8760)) > 0.4, "{latency:?}");
        assert!(latency.at(ms(38_760)) < 0.005, "it fades: {latency:?}");
        let (word, risen) = latency.pack();
        assert_eq!(Latency::unpack(word, risen), latency);
        assert_eq!(Latency::unpack(0, 0).at(OLD), 0.0);
    }

    #[test]
    fn nobody_is_sent_to_a_busy_worker_for_the_one_slow_page_of_an_idle_one() {
        let ms = Duration::from_millis;
        let usual = Latency::default().after(ms(5), ms(1000));
        let slow = usual.after(ms(500), ms(1600));
        for turn in 0..4 {
            let candidates = [old(1, usual.at(ms(1600))), old(0, slow.at(ms(1600)))];
            assert_eq!(choose(&candidates, turn), Some(1), "{slow:?}");
        }
    }

    #[test]
    fn a_worker_that_owes_answers_and_is_silent_is_passed_over() {
        let ms = Duration::from_millis;
        let latency = Latency::default().after(ms(5), ms(1000)).heard(ms(2000));
        assert!(latency.awaited(ms(2004)) < 0.006, "no longer than usual");
        let blocked = Candidate { in_flight: 1, latency: latency.awaited(ms(2100)), age: OLD };
        assert_eq!(choose(&[blocked, old(5, 0.005)], 0), Some(1));
        assert!(latency.awaited(ms(60_000)) <= 1.0, "bounded");
        assert!(latency.at(ms(60_000)) < 0.005, "nobody waits");
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
                    latency[slot] = latency[slot].after(now - since, age);
                    client.0 = now + pause;
                }
                None => {
                    let candidates: Vec<_> = (0..service.len())
                        .map(|slot| Candidate {
                            in_flight: in_flight[slot],
                            latency: latency[slot].at(age),
                            age,
                        })
                        .collect();
                    let slot = choose(&candidates, rng.usize(..)).expect("there are slots");
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

    #[test]
    fn forty_long_connections_spread_evenly_over_four_workers() {
        let mut slots = [old(0, 0.002), old(0, 0.004), old(0, 0.003), old(0, 0.0)];
        for turn in 0..40 {
            let place = choose(&slots, turn * 7).expect("there are slots");
            slots[place].in_flight += 1;
        }
        assert!(slots.iter().all(|slot| slot.in_flight == 10), "{slots:?}");
    }
}
