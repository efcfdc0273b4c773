//! How many workers an app with a range of them runs: more as soon as requests wait or workers are busy, fewer one at a time
//! once it has been quiet for long.
//!
//! Must not do: read a clock, count requests, start anything. It is shown the load again and again and says when to change.
//!
//! More are asked for at a load that fills four fifths of what there is, fewer where one less would be half filled: no steady
//! load lies in both. Where less was too little soon after, the next time takes twice as long, so that a load that comes and
//! goes is followed a few times only.

use std::fmt;
use std::time::{Duration, Instant};

use crate::config::model::WorkerCount;
use crate::fading::left;

/// What an app's workers have to do at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Requests that occupy workers.
    pub busy: u64,
    /// Requests in line.
    pub waiting: u64,
    /// How many requests occupy one worker fully, at least 1.
    pub each: u64,
    /// Workers that take requests.
    pub open: u32,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// That many workers, which are more.
    Up(u32, Why),
    /// That many, one less.
    Down(u32),
    /// More would be asked for, and memory has no room for another one. Said once until it has changed.
    NoRoom(Why),
}

/// Why more are needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Why {
    /// That many requests are in line, and some have been for a while.
    Waiting(u64),
    /// Of what the workers can do at once, so many percent are done on average.
    Busy(u32),
}

/// What has been seen of an app's load.
#[derive(Debug, Clone)]
pub struct Scale {
    range: WorkerCount,
    /// Busy requests, averaged over the last seconds.
    usual: f64,
    seen: Instant,
    waits_since: Option<Instant>,
    calm_since: Option<Instant>,
    /// How long it has to be calm before there is one less.
    quiet: Duration,
    fewer_since: Option<Instant>,
    told_of_room: bool,
}

/// In line this long, requests need more workers.
const WAITED: Duration = Duration::from_millis(400);
/// What came before is forgotten to a third within this.
const MEMORY: Duration = Duration::from_secs(2);
/// Above this share of what the workers can do, there are more of them.
const FULL: f64 = 0.8;
/// Below this share of what one less could do, there is one less.
const SLACK: f64 = 0.5;
/// How long it has to be calm, at least and at most.
const QUIET: Duration = Duration::from_secs(30);
const MOST_QUIET: Duration = Duration::from_secs(8 * 60);
/// One less was a mistake if more are needed within so many times the calm before it.
const SOON: u32 = 4;

impl Scale {
    /// Nothing was seen yet.
    pub fn new(range: WorkerCount, now: Instant) -> Self {
        Self {
            range,
            usual: 0.0,
            seen: now,
            waits_since: None,
            calm_since: None,
            quiet: QUIET,
            fewer_since: None,
            told_of_room: false,
        }
    }

    /// Another range: what was seen still counts.
    pub fn set_range(&mut self, range: WorkerCount) {
        self.range = range;
    }

    /// Looks at the load of `workers`. `steady` says that all of them serve and none is being replaced by another generation;
    /// `room` is asked how many more fit into memory, if more are needed.
    pub fn look(
        &mut self,
        now: Instant,
        load: Load,
        workers: u32,
        steady: bool,
        room: impl FnOnce() -> u32,
    ) -> Option<Step> {
        let passed = now.saturating_duration_since(std::mem::replace(&mut self.seen, now));
        let share = 1.0 - left(passed.as_secs_f32() / MEMORY.as_secs_f32());
        self.usual += (load.busy as f64 - self.usual) * f64::from(share);
        if !steady {
            (self.waits_since, self.calm_since) = (None, None);
            return None;
        }
        self.waits_since = (load.waiting > 0).then(|| self.waits_since.unwrap_or(now));
        let each = load.each.max(1) as f64;
        if workers < self.range.max
            && let Some(why) = self.why_more(now, load)
        {
            self.calm_since = None;
            return self.more(now, load, workers, room(), why);
        }
        self.told_of_room = false;
        let calm = load.waiting == 0 && self.usual <= SLACK * each * f64::from(workers.saturating_sub(1));
        self.calm_since = calm.then(|| self.calm_since.unwrap_or(now));
        let since = self.calm_since.filter(|_| workers > self.range.min)?;
        if now.saturating_duration_since(since) < self.quiet {
            return None;
        }
        // The next one less needs a calm of its own.
        self.calm_since = Some(now);
        self.fewer_since = Some(now);
        Some(Step::Down(workers - 1))
    }

    fn why_more(&self, now: Instant, load: Load) -> Option<Why> {
        let able = load.each.max(1) as f64 * f64::from(load.open);
        let waited = |since| now.saturating_duration_since(since) >= WAITED;
        // Who insists on one worker waits for that one while others are free: more of them would not help.
        if self.waits_since.is_some_and(waited) && load.busy as f64 >= SLACK * able {
            return Some(Why::Waiting(load.waiting));
        }
        let full = load.open > 0 && self.usual >= FULL * able;
        full.then(|| Why::Busy((100.0 * self.usual / able) as u32))
    }

    /// As many as the load needs, and no more than twice those there are: what they change shows before the next step.
    fn more(&mut self, now: Instant, load: Load, workers: u32, room: u32, why: Why) -> Option<Step> {
        let fits = workers.saturating_add(room);
        let needed =
            (self.usual.max(load.busy as f64) + load.waiting as f64) / (load.each.max(1) as f64 * FULL);
        let needed = needed.ceil().min(f64::from(u32::MAX)) as u32;
        let most = workers.saturating_mul(2).min(self.range.max).min(fits);
        let wanted = needed.max(workers.saturating_add(1)).min(most);
        if wanted <= workers {
            return (!std::mem::replace(&mut self.told_of_room, true)).then_some(Step::NoRoom(why));
        }
        if let Some(since) = self.fewer_since.take() {
            let mistaken = now.saturating_duration_since(since) <= self.quiet * SOON;
            self.quiet = if mistaken { (self.quiet * 2).min(MOST_QUIET) } else { QUIET };
        }
        self.waits_since = None;
        Some(Step::Up(wanted, why))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(1) => f.write_str("a request waits for a worker"),
            Self::Waiting(count) => write!(f, "{count} requests wait for a worker"),
            Self::Busy(percent) => write!(f, "workers are busy to {percent} %"),
        }
    }
}

#[cfg(test)]
#[path = "scale_tests.rs"]
mod tests;
