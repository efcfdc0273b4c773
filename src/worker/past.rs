//! What a slot remembers of the workers it had: how many, how often one failed, how the last one ended.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::telemetry::status::PastStatus;

/// The past of one slot.
#[derive(Debug, Default)]
pub(super) struct Past {
    incarnations: u64,
    failures: u64,
    /// In seconds since 1970.
    last_failure: Option<u64>,
    last: Option<End>,
}

/// How a worker ended, or why it did not begin.
#[derive(Debug)]
struct End {
    how: String,
    /// In seconds since 1970.
    at: u64,
    reason: &'static str,
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
    /// A worker is launched.
    pub(super) fn launched(&mut self, incarnation: u64) {
        self.incarnations = incarnation;
    }

    /// A worker has ended, or none could be started.
    pub(super) fn ended(&mut self, how: String, reason: &'static str, at: u64, blame: Blame) {
        match blame {
            Blame::Nobody | Blame::Candidate => {}
            Blame::Slot => {
                self.failures += 1;
                self.last_failure = Some(at);
            }
        }
        self.last = Some(End { how, at, reason });
    }

    /// Past and present as operators see them, for the slot's worker with this number or, without one, the slot.
    pub(super) fn status(&self, incarnation: Option<u64>) -> PastStatus {
        let after_first = incarnation.unwrap_or(self.incarnations).saturating_sub(1);
        // Where the next worker is not there yet, there is one failure more than restarts.
        let restarts = self.failures.min(after_first);
        PastStatus {
            restarts,
            replacements: after_first - restarts,
            last_failure: self.last_failure.and_then(moment),
            last_exit: self.last.as_ref().map(|end| end.how.clone()),
            last_exit_at: self.last.as_ref().and_then(|end| moment(end.at)),
            last_exit_reason: self.last.as_ref().map(|end| end.reason.to_owned()),
        }
    }
}

/// Why nobody was started, in one word.
pub(super) const NOT_STARTED: &str = "not_started";

fn moment(at: u64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(at).ok()?).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_no_restart_and_neither_is_a_candidate_that_failed() {
        let mut past = Past::default();
        past.launched(1);
        assert_eq!(past.status(None), PastStatus::default());
        past.ended("SIGKILL while it served".to_owned(), "signal", 60, Blame::Slot);
        assert_eq!(past.status(None).restarts, 0, "nobody was started in its place yet");
        past.launched(2);
        let status = past.status(Some(2));
        assert_eq!((status.restarts, status.replacements), (1, 0));
        assert_eq!(status.last_failure.as_deref(), Some("1970-01-01T00:01:00Z"));
        past.launched(3);
        past.ended("exit status 3 before it was ready".to_owned(), "exit", 120, Blame::Candidate);
        past.launched(4);
        past.ended("exit status 0 after it was asked to stop".to_owned(), "asked", 180, Blame::Nobody);
        let status = past.status(Some(4));
        assert_eq!((status.restarts, status.replacements), (1, 2));
        assert_eq!(status.last_failure.as_deref(), Some("1970-01-01T00:01:00Z"));
        assert_eq!(status.last_exit_at.as_deref(), Some("1970-01-01T00:03:00Z"));
        assert_eq!(status.last_exit_reason.as_deref(), Some("asked"));
    }
}
