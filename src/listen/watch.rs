//! Which time-out a client's connection is under now: a pure core, driven by `listen::http1` and `listen::http2` after each poll.

use std::time::{Duration, Instant};

use crate::config::limits::{Limits, Timeouts};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request head is awaited or has begun: `timeouts.headers`. Holds the requests begun until then.
    Head(u64),
    /// Nothing is open and nothing of a next request has come: `timeouts.keepalive`. Holds the same.
    Idle(u64),
    /// Requests are open: looked at every `timeouts.write`.
    Serving,
}

/// What a connection has carried so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Requests begun.
    pub requests: u64,
    /// Whether some of a next head has come, perhaps with the end of the request before. HTTP/2 never says so: its frames between
    /// requests (PING, SETTINGS) are no request head.
    pub begun: bool,
}

/// What a passed deadline means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Look again after this long.
    Again(Duration),
    /// An idle connection's time is over: close it gracefully.
    Close,
    /// A request head took too long: 408 and close.
    HeadTooSlow,
    /// The client takes nothing of what we send: close at once.
    Stalled,
}

/// The rules for one connection.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    phase: Phase,
    multiplexed: bool,
    timeouts: Timeouts,
    /// When the connection has lived for long enough.
    ends: Option<Instant>,
    /// How many requests are enough; 0 is never.
    most: u64,
}

impl Watch {
    /// A connection just set up, with the time until it must have sent a request head. `multiplexed` for HTTP/2.
    pub fn new(multiplexed: bool, timeouts: Timeouts, limits: &Limits, now: Instant) -> (Self, Duration) {
        let age = Some(timeouts.connection_age).filter(|age| !age.is_zero());
        let ends = age.and_then(|age| now.checked_add(age));
        let most = u64::from(limits.requests_per_connection);
        (Self { phase: Phase::Head(0), multiplexed, timeouts, ends, most }, timeouts.headers)
    }

    /// Whether nothing of a next request has come, so that the connection may be closed where room is needed.
    pub fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle(_))
    }

    /// Whether the connection has lived for long enough: it is to finish what it has.
    pub fn is_over(&self, requests: u64, now: Instant) -> bool {
        (self.most != 0 && requests >= self.most) || self.ends.is_some_and(|ends| now >= ends)
    }

    /// To be called whenever something may have moved; returns the new deadline where the phase changed.
    pub fn observe(&mut self, open: u32, seen: Seen) -> Option<Duration> {
        let rest = if seen.begun { Phase::Head(seen.requests) } else { Phase::Idle(seen.requests) };
        let next = match self.phase {
            Phase::Head(_) | Phase::Idle(_) if open > 0 => Phase::Serving,
            Phase::Serving if open == 0 => rest,
            // A request that came and went between two looks, as quick ones do.
            Phase::Head(before) | Phase::Idle(before) if seen.requests != before => rest,
            Phase::Idle(_) if seen.begun => rest,
            Phase::Head(_) | Phase::Idle(_) | Phase::Serving => return None,
        };
        self.phase = next;
        Some(match next {
            Phase::Head(_) => self.timeouts.headers,
            Phase::Idle(_) if self.multiplexed => self.timeouts.keepalive_h2,
            Phase::Idle(_) => self.timeouts.keepalive,
            Phase::Serving => self.timeouts.write,
        })
    }

    /// To be called when the deadline has passed and [`Self::observe`] saw no change. `blocked` says for how long the client
    /// has not taken what is to be sent. That may be the rest of an answer whose request is over already: it must neither be
    /// cut off as idle nor have a 408 written into it.
    pub fn passed(&self, blocked: Option<Duration>) -> Verdict {
        match (self.phase, blocked) {
            (_, Some(blocked)) if blocked >= self.timeouts.write => Verdict::Stalled,
            (_, Some(blocked)) => Verdict::Again(self.timeouts.write - blocked),
            (Phase::Head(_), None) => Verdict::HeadTooSlow,
            (Phase::Idle(_), None) => Verdict::Close,
            (Phase::Serving, None) => Verdict::Again(self.timeouts.write),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check_limits::presets;

    fn watch(multiplexed: bool) -> (Watch, Duration) {
        let (timeouts, limits) = presets();
        Watch::new(multiplexed, timeouts, &limits, Instant::now())
    }

    fn seen(requests: u64) -> Seen {
        Seen { requests, begun: false }
    }

    fn begun(requests: u64) -> Seen {
        Seen { requests, begun: true }
    }

    #[test]
    fn requests_too_quick_to_be_seen_open_keep_a_connection_alive() {
        let (mut watch, _) = watch(true);
        assert_eq!(watch.observe(0, seen(1)), Some(Duration::from_secs(75)));
        assert_eq!(watch.observe(0, seen(2)), Some(Duration::from_secs(75)));
        assert_eq!(watch.observe(0, seen(2)), None);
    }

    #[test]
    fn a_new_connection_must_send_a_head_in_time() {
        let (watch, first) = watch(false);
        assert_eq!(first, Duration::from_secs(10));
        assert_eq!(watch.passed(None), Verdict::HeadTooSlow);
    }

    #[test]
    fn idle_lasts_until_the_first_byte_and_then_the_head_is_timed() {
        let (mut watch, _) = watch(false);
        assert_eq!(watch.observe(1, seen(1)), Some(Duration::from_secs(30)));
        assert_eq!(watch.observe(0, seen(1)), Some(Duration::from_secs(60)));
        assert_eq!(watch.passed(None), Verdict::Close);
        assert_eq!(watch.observe(0, begun(1)), Some(Duration::from_secs(10)));
        assert_eq!(watch.passed(None), Verdict::HeadTooSlow);
    }

    #[test]
    fn a_head_that_began_with_the_request_before_it_is_timed_as_one() {
        for open in [true, false] {
            let (mut watch, _) = watch(false);
            if open {
                watch.observe(1, seen(1));
            }
            assert_eq!(watch.observe(0, begun(1)), Some(Duration::from_secs(10)));
            assert_eq!(watch.passed(None), Verdict::HeadTooSlow);
            assert_eq!(watch.observe(0, begun(2)), Some(Duration::from_secs(10)), "and so is the next");
        }
    }

    #[test]
    fn only_a_client_that_takes_nothing_is_stalled() {
        let (mut watch, _) = watch(false);
        watch.observe(1, seen(1));
        let s = Duration::from_secs;
        assert_eq!(watch.passed(None), Verdict::Again(s(30)));
        assert_eq!(watch.passed(Some(s(12))), Verdict::Again(s(18)));
        assert_eq!(watch.passed(Some(s(30))), Verdict::Stalled);
    }

    #[test]
    fn the_rest_of_an_answer_is_neither_cut_off_as_idle_nor_followed_by_a_408() {
        let (mut watch, _) = watch(false);
        let s = Duration::from_secs;
        watch.observe(1, seen(1));
        watch.observe(0, seen(1));
        assert_eq!(watch.passed(Some(s(1))), Verdict::Again(s(29)), "idle, but for what is in the buffers");
        watch.observe(0, begun(1));
        assert_eq!(watch.passed(Some(s(1))), Verdict::Again(s(29)), "the next head has begun meanwhile");
        assert_eq!(watch.passed(Some(s(30))), Verdict::Stalled);
        assert_eq!(watch.passed(None), Verdict::HeadTooSlow);
    }

    #[test]
    fn f12_a_connection_is_over_after_its_requests_or_its_age() {
        let (timeouts, limits) = presets();
        let now = Instant::now();
        let hour = now + Duration::from_secs(3600);
        let (watch, _) = Watch::new(true, timeouts, &limits, now);
        assert!(!watch.is_over(9_999, now) && watch.is_over(10_000, now));
        assert!(watch.is_over(0, hour) && !watch.is_over(0, hour - Duration::from_secs(1)));
        let endless = Timeouts { connection_age: Duration::ZERO, ..timeouts };
        let (watch, _) = Watch::new(true, endless, &Limits { requests_per_connection: 0, ..limits }, now);
        assert!(!watch.is_over(u64::MAX, hour));
    }
}
