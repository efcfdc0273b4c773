//! When a worker that serves well is replaced all the same: enough requests, enough time, too much memory.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::config::model::Recycle;
use crate::config::scalar;
use crate::worker::child::Child;
use crate::worker::slot::Slot;

/// One worker's share of the limits, jitter drawn: workers started together must not go together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Limits {
    requests: Option<u64>,
    lifetime: Option<Duration>,
    memory: Option<u64>,
}

/// Between two looks at the count of requests.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at the memory.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// Share of the lifetime by which it may be shorter.
const LIFETIME_JITTER: f64 = 0.1;

impl Limits {
    pub(super) fn draw(recycle: &Recycle, rng: &mut fastrand::Rng) -> Self {
        let spread = recycle.max_requests.saturating_mul(recycle.jitter_percent.into()) / 100;
        let requests = recycle.max_requests.saturating_add(rng.u64(0..=spread));
        let lifetime = recycle.max_lifetime.mul_f64(1.0 - LIFETIME_JITTER * rng.f64());
        Self {
            requests: (recycle.max_requests > 0).then_some(requests),
            lifetime: (!lifetime.is_zero()).then_some(lifetime),
            memory: recycle.max_memory,
        }
    }

    /// Completes when the worker is due, saying why; never, if nothing limits it. `measured` hears of its memory. Cancel-safe.
    pub(super) async fn reached(self, slot: Arc<Slot>, child: Rc<Child>, measured: impl Fn(u64)) -> String {
        tokio::select! {
            reason = requests(self.requests, &slot) => reason,
            reason = lifetime(self.lifetime) => reason,
            reason = memory(self.memory, &child, measured) => reason,
        }
    }
}

async fn requests(limit: Option<u64>, slot: &Slot) -> String {
    let Some(limit) = limit else { return std::future::pending().await };
    while slot.requests() < limit {
        tokio::time::sleep(COUNT_EVERY).await;
    }
    format!("it has served {limit} requests")
}

async fn lifetime(limit: Option<Duration>) -> String {
    let Some(limit) = limit else { return std::future::pending().await };
    tokio::time::sleep(limit).await;
    format!("it has served for {} s", limit.as_secs())
}

/// Two looks in a row: a peak that passes is no leak.
async fn memory(limit: Option<u64>, child: &Child, measured: impl Fn(u64)) -> String {
    let Some(limit) = limit else { return std::future::pending().await };
    let mut above = 0;
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        let bytes = child.memory().await;
        measured(bytes);
        above = if bytes > limit { above + 1 } else { 0 };
        if above == 2 {
            let (used, limit) = (scalar::size_about(bytes), scalar::size_about(limit));
            return format!("it uses {used} of memory, more than {limit}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_spreads_requests_upwards_and_lifetimes_downwards() {
        let recycle = Recycle {
            max_requests: 1000,
            jitter_percent: 20,
            max_lifetime: Duration::from_secs(100),
            max_memory: None,
        };
        let mut rng = fastrand::Rng::with_seed(7);
        let drawn: Vec<_> = (0..100).map(|_| Limits::draw(&recycle, &mut rng)).collect();
        let requests: Vec<_> = drawn.iter().filter_map(|limits| limits.requests).collect();
        assert!(requests.iter().all(|count| (1000..=1200).contains(count)));
        assert!(requests.iter().max() > requests.iter().min());
        assert!(drawn.iter().all(|limits| limits.lifetime.is_some_and(|span| span.as_secs() >= 90)));
        let never = Recycle { max_requests: 0, max_lifetime: Duration::ZERO, ..recycle };
        let limits = Limits::draw(&never, &mut rng);
        assert_eq!(limits, Limits { requests: None, lifetime: None, memory: None });
    }
}
