//! What operators are told of workers that have ended: how and when, and for how long that is news. Plain data in, text out.

use time::OffsetDateTime;

use crate::daemon::words::{safe, seconds_since, span};
use crate::telemetry::status::{AppStatus, PastStatus, WorkerState, WorkerStatus};

/// For so many seconds the end of a worker whose successor serves is worth a remark.
const NEWS: u64 = 3600;

/// Why the last new generation did not take over, while it is news.
pub(super) fn failed_deploy(app: &AppStatus, now: OffsetDateTime) -> Option<String> {
    let (how, at) = (app.failed_deploy.as_deref()?, age(app.failed_deploy_at.as_deref(), now)?);
    (at < NEWS).then(|| format!("{} ago new workers did not take over: {}", span(at), safe(how)))
}

/// How often workers failed and others were started, and when one failed last.
pub(super) fn restarts<'a>(
    pasts: impl Iterator<Item = &'a PastStatus> + Clone,
    now: OffsetDateTime,
) -> String {
    let count: u64 = pasts.clone().map(|past| past.restarts).sum();
    let last =
        pasts.filter(|past| past.restarts > 0).filter_map(|past| age(past.last_failure.as_deref(), now));
    match last.min().filter(|_| count > 0) {
        Some(seconds) => format!("{count} ({} ago)", span(seconds)),
        None => count.to_string(),
    }
}

/// How the worker before ended, and when, while it is news; where that was asked to go, how the last one did that failed.
pub(super) fn last_exit(worker: &WorkerStatus, now: OffsetDateTime) -> Option<String> {
    let past = &worker.past;
    let (how, at) = if was_asked(past) {
        (&past.last_failure_text, &past.last_failure)
    } else {
        (&past.last_exit, &past.last_exit_at)
    };
    let how = how.as_deref()?;
    let waits = match worker.state {
        WorkerState::Backoff | WorkerState::Starting => true,
        WorkerState::Suspect | WorkerState::Stopping | WorkerState::Draining | WorkerState::Ready => false,
    };
    match age(at.as_deref(), now) {
        Some(seconds) if (waits && !was_asked(past)) || seconds < NEWS => {
            Some(format!("{} ago: {}", span(seconds), safe(how)))
        }
        Some(_) => None,
        None => Some(safe(how)),
    }
}

/// Where somebody killed it, what it printed last says nothing of that.
pub(super) fn ended_by_itself(past: &PastStatus) -> bool {
    past.last_exit_reason.as_deref() == Some("exit")
}

/// It ended because edge asked it to.
pub(super) fn was_asked(past: &PastStatus) -> bool {
    past.last_exit_reason.as_deref() == Some("asked")
}

/// Seconds since a moment; 0 where the clock was set back.
fn age(at: Option<&str>, now: OffsetDateTime) -> Option<u64> {
    seconds_since(at?, now).map(|seconds| u64::try_from(seconds).unwrap_or(0))
}
