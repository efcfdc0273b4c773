//! What is counted of requests, on the request path: by each thread for itself, without a lock or a lookup.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the classes of duration, in microseconds: those of OpenTelemetry, and one for time-outs.
pub const BOUNDS: [u64; 15] = [
    5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000,
    5_000_000, 7_500_000, 10_000_000, 30_000_000,
];

/// Classes of status, in the order of [`Counted::classes`]; the last is for clients that were gone before there was one.
pub const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "client_gone"];

/// One thread's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Mine {
    classes: [AtomicU64; CLASSES.len()],
    durations: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
    retries: AtomicU64,
    cut: AtomicU64,
}

/// The counters of one app.
#[derive(Debug)]
pub struct Tally(Box<[Mine]>);

/// Their sums over all threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Requests by class of status.
    pub classes: [u64; CLASSES.len()],
    /// Requests by class of duration, those beyond every bound last.
    pub durations: [u64; BOUNDS.len() + 1],
    /// All durations together.
    pub microseconds: u64,
    /// Attempts at workers after a request's first.
    pub retries: u64,
    /// Requests that edge cut when it ended.
    pub cut: u64,
}

impl Tally {
    /// Counters for so many threads.
    pub fn new(threads: usize) -> Self {
        Self((0..threads).map(|_| Mine::default()).collect())
    }

    /// Counts a request that ends, without a status where its client was gone before there was one. Called by thread number `thread` alone, so that nobody waits for anybody's cache line. What
    /// became a WebSocket has no duration; its status does not tell, which over HTTP/2 is 200.
    pub fn count(&self, thread: usize, status: Option<u16>, duration: Option<Duration>) {
        let Some(mine) = self.0.get(thread) else { return };
        let class = match status {
            None => CLASSES.len() - 1,
            Some(status) => usize::from(status / 100).clamp(1, 5) - 1,
        };
        add(&mine.classes[class], 1);
        if let Some(duration) = duration {
            let took = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
            add(&mine.durations[BOUNDS.partition_point(|bound| *bound < took)], 1);
            add(&mine.microseconds, took);
        }
    }

    /// Counts attempts after a request's first; by thread number `thread` alone.
    pub fn count_retries(&self, thread: usize, retries: u32) {
        if let Some(mine) = self.0.get(thread) {
            add(&mine.retries, retries.into());
        }
    }

    /// Counts a request that edge cuts because it ends; by thread number `thread` alone.
    pub fn count_cut(&self, thread: usize) {
        if let Some(mine) = self.0.get(thread) {
            add(&mine.cut, 1);
        }
    }

    /// What was counted so far.
    pub fn counted(&self) -> Counted {
        let mut sums = Counted::default();
        let add_all = |sums: &mut [u64], of: &[AtomicU64]| {
            for (sum, one) in sums.iter_mut().zip(of) {
                *sum += one.load(Ordering::Relaxed);
            }
        };
        for mine in &self.0 {
            add_all(&mut sums.classes, &mine.classes);
            add_all(&mut sums.durations, &mine.durations);
            sums.cut = sums.cut.wrapping_add(mine.cut.load(Ordering::Relaxed));
            sums.retries = sums.retries.wrapping_add(mine.retries.load(Ordering::Relaxed));
            sums.microseconds = sums.microseconds.wrapping_add(mine.microseconds.load(Ordering::Relaxed));
        }
        sums
    }
}

/// One writer: reading and writing need not be one step.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_thread_counts_is_summed_by_class_and_duration() {
        let tally = Tally::new(2);
        for (thread, status, millis) in [
            (0, 200, Some(5)),
            (1, 204, Some(6)),
            (1, 404, Some(0)),
            (0, 0, Some(1)),
            (0, 503, Some(60_000)),
            (1, 101, None),
            (0, 200, None),
            (1, 499, None),
            (2, 200, Some(1)),
        ] {
            tally.count(thread, Some(status).filter(|status| *status > 0), millis.map(Duration::from_millis));
        }
        tally.count_retries(0, 1);
        tally.count_retries(1, 2);
        tally.count_cut(0);
        tally.count_cut(1);
        let counted = tally.counted();
        assert_eq!((counted.retries, counted.cut), (3, 2));
        assert_eq!(counted.classes, [1, 3, 0, 2, 1, 1]);
        assert_eq!(counted.durations.iter().sum::<u64>(), 5, "a WebSocket has none");
        assert_eq!((counted.durations[0], counted.durations[1], counted.durations[15]), (3, 1, 1));
        assert_eq!(counted.microseconds, 60_012_000);
    }
}
