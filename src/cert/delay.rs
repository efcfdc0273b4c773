//! How long to wait after a failure: the table of delays by class. Constants only; `schedule` keeps the counts.

use std::time::{Duration, SystemTime};

use fastrand::Rng;

use crate::cert::failure::{Class, Failure};
use crate::cert::validity::Validity;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Longest wait a CA may ask for. Beyond it the clock or the CA is wrong.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8 * 24 * 3600 + 600);

/// How long to wait after the `count`th failure of its class.
pub fn delay(
    failure: &Failure,
    count: u32,
    installed: Option<Validity>,
    now: SystemTime,
    rng: &mut Rng,
) -> Duration {
    let life = installed.map(|validity| validity.life());
    if failure.class == Class::Limited
        && let Some(asked) = failure.retry_after
    {
        // Never sooner than asked; late enough that a herd of names does not return in one second.
        let asked = asked.min(8 * DAY);
        // A wait that is over as it is named, of 0 seconds or until a date that has passed, must not lead to a circle.
        let least = table_delay(Class::Transient, count, life).unwrap_or(DAY).min(5 * MINUTE);
        return asked.max(least) + (asked / 10).min(10 * MINUTE).mul_f64(rng.f64());
    }
    if let Some(soon) = failure.free_after {
        let wait = if count <= QUICK { soon } else { soon.saturating_mul(3) };
        return wait.min(longest(life));
    }
    let plain = table_delay(failure.class, count, life).unwrap_or(DAY);
    let left = installed.map(|validity| validity.left(now)).filter(|left| !left.is_zero());
    // However hopeless it looks: whatever is repaired before the end is noticed before the end.
    let closing = left.map_or(Duration::MAX, |left| (left / 4).max(15 * MINUTE));
    let plain = plain.min(closing);
    match failure.class {
        // The table is what the CA would say, so it is a floor as well.
        Class::Limited => plain.mul_f64(1.0 + rng.f64() * 0.1),
        // Once a day means once a day.
        Class::Permanent | Class::Action => plain.mul_f64(1.0 + rng.f64() * 0.2),
        Class::Transient if left.zip(life).is_some_and(|(left, life)| left < life / 20) => {
            plain.min(15 * MINUTE).mul_f64(0.8 + rng.f64() * 0.4)
        }
        Class::Transient
        | Class::Validation
        | Class::Caa
        | Class::Dns
        | Class::Order
        | Class::Account
        | Class::Store => plain.mul_f64(0.8 + rng.f64() * 0.4),
    }
}

/// How many times whoever makes room on a disk finds edge at once.
const QUICK: u32 = 12;

/// How many attempts that may each cost an order a name has in an hour, whatever they fail of.
pub const PER_HOUR: usize = 4;

/// How long at least to wait after the last of the attempts that failed at the moments `spent`, so that no hour has more than
/// [`PER_HOUR`] of them. Classes take turns, and the table counts each by itself.
pub fn budget(spent: &[SystemTime], life: Option<Duration>, now: SystemTime) -> Duration {
    let first = spent.len().checked_sub(PER_HOUR).and_then(|at| spent.get(at));
    let until = first.map_or(now, |first| *first + HOUR);
    until.duration_since(now).unwrap_or_default().min(longest(life))
}

/// A certificate that lives for minutes is retried within them; for one of months this is no limit.
fn longest(life: Option<Duration>) -> Duration {
    life.map_or(Duration::MAX, |life| (life / 20).max(SECOND))
}

/// The table of delays. `None`: park, and look again after a day.
pub fn table_delay(class: Class, count: u32, life: Option<Duration>) -> Option<Duration> {
    let nth = |steps: &[Duration], rest: Duration| {
        steps.get(count.saturating_sub(1) as usize).copied().unwrap_or(rest)
    };
    let plain = match class {
        Class::Transient => nth(&[5 * SECOND, 15 * SECOND, MINUTE, 5 * MINUTE, 15 * MINUTE], HOUR),
        // Three quick ones, then four a day for a week, then one a day.
        Class::Validation if count <= 31 => nth(&[MINUTE, 10 * MINUTE, 100 * MINUTE], 6 * HOUR),
        Class::Validation => DAY,
        Class::Caa => nth(&[HOUR, 6 * HOUR], DAY),
        // It costs nothing at the CA; whoever repairs it need not wait long.
        Class::Dns => nth(&[30 * SECOND, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE], HOUR),
        // Five orders a day: what a CA issues and edge cannot use counts against its limits.
        Class::Order => nth(&[5 * SECOND, 30 * SECOND, 5 * MINUTE, HOUR], DAY),
        Class::Account => nth(&[10 * SECOND], DAY),
        Class::Limited => return Some(nth(&[HOUR, 6 * HOUR], DAY)),
        Class::Permanent | Class::Action => return None,
        Class::Store => nth(&[30 * SECOND, MINUTE, 2 * MINUTE, 5 * MINUTE], 10 * MINUTE),
    };
    Some(plain.min(longest(life)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_own_ca_is_asked_again_soon_and_for_ever() {
        let mut failure = Failure::new(Class::Store, "no room");
        failure.free_after = Some(5 * SECOND);
        let mut rng = Rng::with_seed(7);
        for (count, wait) in [(1, 5), (12, 5), (13, 15), (100_000, 15)] {
            let waits = delay(&failure, count, None, SystemTime::UNIX_EPOCH, &mut rng);
            assert_eq!(waits, wait * SECOND, "{count}");
        }
    }
}
