//! How many orders run at once, how fast they start, and which come first.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::cert::validity::Validity;

/// How many orders may run, and how fast they may start.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    in_flight: usize,
    started: VecDeque<SystemTime>,
}

impl Gate {
    const AT_ONCE: usize = 4;
    const PER_WINDOW: usize = 10;
    const WINDOW: Duration = Duration::from_secs(10);

    /// Which of `waiting` (an index and what is installed) may start now. Nothing installed and little time left come first.
    pub fn admit(&mut self, waiting: &[(usize, Option<Validity>)], now: SystemTime) -> Vec<usize> {
        // Both conditions, so that a clock set back does not shut the gate.
        self.started.retain(|at| *at <= now && *at + Self::WINDOW > now);
        let rate = Self::PER_WINDOW - self.started.len().min(Self::PER_WINDOW);
        let room = (Self::AT_ONCE - self.in_flight.min(Self::AT_ONCE)).min(rate);
        let mut order: Vec<_> = waiting.to_vec();
        order.sort_by_key(|(index, installed)| (rank(*installed, now), *index));
        order.truncate(room);
        self.in_flight += order.len();
        self.started.extend(order.iter().map(|_| now));
        order.into_iter().map(|(index, _)| index).collect()
    }

    /// One that was admitted has ended.
    pub fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Orders that run.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// When a full window has room again; `None` while only the end of an order helps.
    pub fn opens_at(&self) -> Option<SystemTime> {
        if self.in_flight >= Self::AT_ONCE || self.started.len() < Self::PER_WINDOW {
            return None;
        }
        self.started.front().map(|at| *at + Self::WINDOW)
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
