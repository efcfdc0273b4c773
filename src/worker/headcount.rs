//! How many workers an app shall have, and who decides that: the file, an operator, or the load.
//!
//! Must not do: judge the load; `scale` does.

use std::time::{Duration, Instant};

use crate::config::model::{WorkerCount, WorkerSpec};
use crate::telemetry::status::ScaleStatus;
use crate::worker::scale::Scale;

/// Between two looks at the load.
pub(super) const LOOK: Duration = Duration::from_millis(250);
/// Between two looks at the workers' memory.
pub(super) const MEASURE: Duration = Duration::from_secs(30);

/// The number of workers of one app, and who decides it.
pub(super) struct Headcount {
    range: WorkerCount,
    /// What an operator holds it at.
    held: Option<u32>,
    pub(super) scale: Scale,
    /// When the load is looked at next, and the workers' memory.
    pub(super) look_at: Instant,
    pub(super) measure_at: Instant,
    /// How many there were before those that are starting because of the load: an app that grows is not degraded.
    pub(super) grows_from: Option<u32>,
    /// The range of the generation that takes over, and whether an operator has spoken since it began: an earlier number ends
    /// with its success.
    next: Option<(WorkerCount, bool)>,
}

impl Headcount {
    pub(super) fn new(range: WorkerCount, now: Instant) -> Self {
        Self {
            range,
            held: None,
            scale: Scale::new(range, now),
            look_at: now + LOOK,
            measure_at: now + MEASURE,
            grows_from: None,
            next: None,
        }
    }

    /// How many there are to begin with.
    pub(super) fn first(&self) -> u32 {
        self.range.min
    }

    /// What the file says.
    pub(super) fn range(&self) -> WorkerCount {
        self.range
    }

    /// Whether the load decides.
    fn is_elastic(&self) -> bool {
        self.held.is_none() && !self.range.is_fixed()
    }

    /// How many a roll-out of this spec leads to, from `wanted` now; `same` says that it is what runs already.
    pub(super) fn begin(&mut self, spec: &WorkerSpec, wanted: u32, same: bool) -> u32 {
        if same {
            return wanted;
        }
        self.next = Some((spec.workers, false));
        spec.workers.nearest(wanted)
    }

    /// The roll-out has succeeded, or not.
    pub(super) fn ended(&mut self, completed: bool) {
        if let Some((range, spoken)) = self.next.take().filter(|_| completed) {
            self.range = range;
            self.held = self.held.filter(|_| spoken);
            self.scale.set_range(range);
        }
    }

    /// What an operator says, `wanted` being the number now; returned is the number there shall be.
    pub(super) fn hold(&mut self, number: Option<u32>, wanted: u32) -> u32 {
        (self.held, self.grows_from) = (number, None);
        let range = self.next.as_mut().map_or(self.range, |(range, spoken)| {
            *spoken = true;
            *range
        });
        number.unwrap_or_else(|| range.nearest(wanted))
    }

    /// What the file says from now on, likewise: whatever number it allows stays.
    pub(super) fn take(&mut self, range: WorkerCount, wanted: u32) -> u32 {
        (self.range, self.held, self.grows_from) = (range, None, None);
        self.scale.set_range(range);
        range.nearest(wanted)
    }

    /// How many have to be ready for the app to be whole.
    pub(super) fn needed(&self, wanted: u32) -> u32 {
        self.grows_from.map_or(wanted, |before| before.min(wanted))
    }

    /// A worker ended before it was ready.
    pub(super) fn failed(&mut self) {
        self.grows_from = None;
    }

    /// As operators see it.
    pub(super) fn status(&self, wanted: u32) -> ScaleStatus {
        ScaleStatus { min: self.range.min, max: self.range.max, target: wanted, held: self.held.is_some() }
    }

    /// When the load is looked at next.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.is_elastic().then_some(self.look_at)
    }
}
