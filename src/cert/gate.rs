//! How many orders run at once, how fast they start, and which come first.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::cert::validity::Validity;

/// How many orders may run, and how fast they may start.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    in_flight: usize,
    /// When attempts were let through lately.
    started: VecDeque<SystemTime>,
    /// When those ended that may have cost an order.
    orders: VecDeque<SystemTime>,
}

impl Gate {
    const AT_ONCE: usize = 4;
    /// A burst that no CA minds.
    const BURST: (usize, Duration) = (10, Duration::from_secs(10));
    /// What Let's Encrypt lets one account order.
    const ORDERS: (usize, Duration) = (300, Duration::from_secs(3 * 3600));
    /// Between two renewals: nobody waits for one.
    const SPACING: Duration = Duration::from_secs(1);

    /// One before which certificates came at these moments.
    pub fn after(obtained: impl IntoIterator<Item = SystemTime>) -> Self {
        let mut orders: Vec<_> = obtained.into_iter().collect();
        orders.sort_unstable();
        Self { orders: orders.into(), ..Self::default() }
    }

    /// Which of `waiting` (an index and what is installed) may start now. Nothing installed and little time left come first.
    pub fn admit(&mut self, waiting: &[(usize, Option<Validity>)], now: SystemTime) -> Vec<usize> {
        // Both conditions, so that a clock set back does not shut the gate.
        let within = |window: Duration| move |at: &SystemTime| *at <= now && *at + window > now;
        self.started.retain(within(Self::BURST.1));
        self.orders.retain(within(Self::ORDERS.1));
        let mut order: Vec<_> = waiting.to_vec();
        order.sort_by_key(|(index, installed)| (rank(*installed, now), *index));
        let mut admitted = Vec::new();
        for (index, installed) in order {
            if self.in_flight >= Self::AT_ONCE || self.full_until(now).is_some() {
                break;
            }
            if installed.is_some() && self.rests_until(now).is_some() {
                continue;
            }
            self.in_flight += 1;
            self.started.push_back(now);
            admitted.push(index);
        }
        admitted
    }

    /// One that was admitted has ended; `cost` is whether there may be one order more at the CA.
    pub fn release(&mut self, cost: bool, now: SystemTime) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if cost {
            self.orders.push_back(now);
        }
    }

    /// Orders that run.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When one that waits may start: at once where time stands against it no more; `None` while only the end of an order helps.
    pub fn opens_at(&self, now: SystemTime) -> Option<SystemTime> {
        if self.in_flight >= Self::AT_ONCE {
            return None;
        }
        Some(self.full_until(now).max(self.rests_until(now)).unwrap_or(now))
    }

    /// Until when a window is full. What runs counts as ordered.
    fn full_until(&self, now: SystemTime) -> Option<SystemTime> {
        let full = |times: &VecDeque<SystemTime>, running: usize, (most, window): (usize, Duration)| {
            let first = times.get((times.len() + running).checked_sub(most)?)?;
            Some(*first + window).filter(|until| *until > now)
        };
        full(&self.started, 0, Self::BURST).max(full(&self.orders, self.in_flight, Self::ORDERS))
    }

    /// Until when no renewal starts.
    fn rests_until(&self, now: SystemTime) -> Option<SystemTime> {
        self.started.back().map(|last| *last + Self::SPACING).filter(|until| *until > now)
    }
}

/// Lowest first: renewals in their last quarter, then first issuance, then the rest; each by what is left.
fn rank(installed: Option<Validity>, now: SystemTime) -> (u8, Duration) {
    match installed {
        Some(validity) if validity.left(now) < validity.life() / 4 => (0, validity.left(now)),
        None => (1, Duration::ZERO),
        Some(validity) => (2, validity.left(now)),
    }
}
