//! What a slot remembers of the workers it had: how many, how often one failed, how the last one ended.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::status::PastStatus;
use crate::worker::last_words::telling;
use crate::worker::rollout::Seat;

/// The past of one slot.
#[derive(Debug, Default)]
pub(super) struct Past {
    so_far: Count,
    /// A worker failed, and nobody was launched since.
    owes_restart: bool,
    /// Why the newest worker was launched, until it failed as a candidate.
    newest: Follows,
    /// A worker that failed and serves on until the next one is ready.
    failing: Option<u64>,
    last_failure: Option<End>,
    last: Option<End>,
}

/// Whom a worker follows in its slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Follows {
    #[default]
    Nobody,
    /// One that failed.
    Failed,
    /// One that did not.
    Sound,
}

/// How many workers of a slot came before one of them, and why it was launched and they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    after_first: u64,
    restarts: u64,
    replacements: u64,
}

/// How a worker ended, or why it did not begin.
#[derive(Debug, Clone)]
struct End {
    how: String,
    /// In seconds since 1970.
    at: u64,
    reason: &'static str,
    /// Which worker it was; 0 where there was none.
    incarnation: u64,
    /// What it printed last.
    line: Option<String>,
}

/// Whose failure an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// Nobody's: the worker was asked to go.
    Nobody,
    /// The slot's: a worker that was in charge, or was to be at once.
    Slot,
    /// A new generation's, which does not take over because of it.
    Candidate,
}

impl Past {
    /// A worker is launched; its count.
    pub(super) fn launched(&mut self, incarnation: u64) -> Count {
        self.so_far.after_first = incarnation.saturating_sub(1);
        // What failed before there was a worker is no restart: nobody is started again.
        let follows = self.so_far.after_first > 0;
        self.newest = match (follows, std::mem::take(&mut self.owes_restart)) {
            (false, _) => Follows::Nobody,
            (true, true) => Follows::Failed,
            (true, false) => Follows::Sound,
        };
        self.so_far.restarts += u64::from(self.newest == Follows::Failed);
        self.so_far.replacements += u64::from(self.newest == Follows::Sound);
        self.so_far
    }

    /// A worker has failed that goes once the next one has taken its place.
    pub(super) fn failing(&mut self, incarnation: u64) {
        self.failing = Some(incarnation);
        // One that was launched since replaces it for another reason, such as a deploy.
        self.owes_restart |= self.so_far.after_first + 1 == incarnation;
    }

    /// A worker has ended, or, as number 0, none could be started.
    pub(super) fn ended(
        &mut self,
        incarnation: u64,
        how: String,
        reason: &'static str,
        at: u64,
        blame: Blame,
    ) {
        let end = End { how, at, reason, incarnation, line: None };
        match blame {
            Blame::Nobody => {}
            Blame::Slot => {
                self.owes_restart |= self.failing != Some(incarnation);
                self.last_failure = Some(end.clone());
            }
            // It took nobody's place, and is no part of what came before the worker that serves on.
            Blame::Candidate => {
                match std::mem::take(&mut self.newest) {
                    Follows::Nobody => {}
                    Follows::Failed => {
                        self.so_far.restarts -= 1;
                        self.owes_restart = true;
                    }
                    Follows::Sound => self.so_far.replacements -= 1,
                }
                return;
            }
        }
        self.last = Some(end);
    }

    /// What the worker that ended last had printed at its end.
    pub(super) fn said(&mut self, incarnation: u64, line: &str) {
        if let Some(end) = self.last.as_mut().filter(|end| end.incarnation == incarnation) {
            end.line = Some(line.to_owned());
        }
    }

    /// Past and present as operators see them, for the slot's worker with this count or, without one, the slot.
    pub(super) fn status(&self, count: Option<Count>) -> PastStatus {
        let count = count.unwrap_or(self.so_far);
        let (last, failure) = (self.last.as_ref(), self.last_failure.as_ref());
        PastStatus {
            after_first: count.after_first,
            restarts: count.restarts,
            replacements: count.replacements,
            last_failure: failure.and_then(|end| moment(end.at)),
            last_failure_text: failure.map(|end| end.how.clone()),
            last_exit: last.map(|end| end.how.clone()),
            last_exit_at: last.and_then(|end| moment(end.at)),
            last_exit_reason: last.map(|end| end.reason.to_owned()),
            last_line: last.and_then(|end| end.line.clone()),
        }
    }
}

/// Why a new generation did not take over.
#[derive(Debug)]
pub(super) struct Rejected {
    how: String,
    at: u64,
    /// The worker that was the cause.
    seat: Option<Seat>,
    last_line: Option<String>,
}

impl Rejected {
    /// At a moment in seconds since 1970.
    pub(super) fn because(how: String, at: u64, seat: Option<Seat>, last_lines: &[String]) -> Self {
        Self { how, at, seat, last_line: telling(last_lines).cloned() }
    }

    /// What its worker had printed at its end.
    pub(super) fn said(&mut self, seat: Seat, line: &str) {
        if self.seat == Some(seat) {
            self.last_line = Some(line.to_owned());
        }
    }

    /// How and when, as operators see it.
    pub(super) fn told(&self) -> (String, Option<String>) {
        let line = self.last_line.as_ref().map(|line| format!("; its last line: {line}")).unwrap_or_default();
        (format!("{}{line}", self.how), moment(self.at))
    }
}

/// Why nobody was started, in one word.
pub(super) const NOT_STARTED: &str = "not_started";

/// A time as operators read it.
fn moment(at: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at).ok()?).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(status: &PastStatus) -> (u64, u64) {
        (status.restarts, status.replacements)
    }

    #[test]
    fn what_was_asked_for_is_no_restart_and_neither_is_a_candidate_that_failed() {
        let mut past = Past::default();
        let first = past.launched(1);
        assert_eq!(past.status(None), PastStatus::default());
        past.ended(1, "SIGKILL while it served".to_owned(), "signal", 60, Blame::Slot);
        assert_eq!(past.status(None).restarts, 0, "nobody was started in its place yet");
        let second = past.launched(2);
        let status = past.status(Some(second));
        assert_eq!(counted(&status), (1, 0));
        assert_eq!(status.last_failure.as_deref(), Some("1970-01-01T00:01:00Z"));
        assert_eq!(counted(&past.status(Some(first))), (0, 0), "of before, while it is still there");
        let candidate = past.launched(3);
        past.ended(3, "exit status 3 before it was ready".to_owned(), "exit", 120, Blame::Candidate);
        assert_eq!(counted(&past.status(None)), (1, 0), "it took nobody's place");
        past.said(3, "no such module");
        let status = past.status(Some(second));
        assert_eq!(
            status.last_exit.as_deref(),
            Some("SIGKILL while it served"),
            "the newcomer's end is not its"
        );
        assert_eq!(status.last_line, None);
        past.said(1, "its last words");
        assert_eq!(past.status(Some(second)).last_line.as_deref(), Some("its last words"));
        let fourth = past.launched(4);
        past.ended(2, "exit status 0 after it was asked to stop".to_owned(), "asked", 180, Blame::Nobody);
        let status = past.status(Some(fourth));
        assert_eq!((counted(&status), status.after_first), ((1, 1), 3));
        assert_eq!(past.status(Some(candidate)).after_first, 2, "each has its place in the order");
        assert_eq!(status.last_failure.as_deref(), Some("1970-01-01T00:01:00Z"));
        assert_eq!(status.last_failure_text.as_deref(), Some("SIGKILL while it served"));
        assert_eq!(status.last_exit_at.as_deref(), Some("1970-01-01T00:03:00Z"));
        assert_eq!(status.last_exit_reason.as_deref(), Some("asked"));
    }

    #[test]
    fn one_that_fails_and_serves_until_the_next_is_ready_counts_once() {
        let mut past = Past::default();
        past.launched(1);
        past.failing(1);
        past.launched(2);
        assert_eq!(counted(&past.status(None)), (1, 0));
        past.ended(2, "exit status 3 before it was ready".to_owned(), "exit", 10, Blame::Candidate);
        assert_eq!(counted(&past.status(None)), (0, 0), "it took nobody's place");
        past.launched(3);
        past.ended(
            1,
            "exit status 0 after it failed its health checks".to_owned(),
            "unwell",
            20,
            Blame::Slot,
        );
        let status = past.status(None);
        assert_eq!(counted(&status), (1, 0));
        assert_eq!(status.last_failure.as_deref(), Some("1970-01-01T00:00:20Z"));
        past.launched(4);
        assert_eq!(counted(&past.status(None)), (1, 1), "a deploy");
        past.failing(3);
        past.ended(3, "SIGKILL while it served".to_owned(), "signal", 30, Blame::Slot);
        past.launched(5);
        assert_eq!(counted(&past.status(None)), (1, 2), "the deploy had replaced it");
        past.failing(5);
        past.ended(5, "SIGKILL while it served".to_owned(), "signal", 40, Blame::Slot);
        past.launched(6);
        assert_eq!(counted(&past.status(None)), (2, 2), "dead before another could start");
    }

    #[test]
    fn what_failed_before_there_was_a_worker_makes_no_later_one_a_restart() {
        let mut past = Past::default();
        for at in 0..3 {
            past.ended(0, "`sh` of `before_start` failed".to_owned(), NOT_STARTED, at, Blame::Slot);
        }
        past.launched(1);
        assert_eq!(counted(&past.status(None)), (0, 0));
        past.launched(2);
        past.ended(2, "exit status 0 after it was asked to stop".to_owned(), "asked", 9, Blame::Nobody);
        assert_eq!(counted(&past.status(None)), (0, 1), "a deploy");
        past.ended(2, "SIGKILL while it served".to_owned(), "signal", 10, Blame::Slot);
        past.launched(3);
        assert_eq!(counted(&past.status(None)), (1, 1));
    }
}
