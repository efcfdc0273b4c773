//! What operators hear of workers while it is so, not only once it is over: one is not ready yet, fails its health check,
//! was killed, or did not take over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::name::WorkerId;
use crate::worker::crew::{Crew, seat};
use crate::worker::last_words;
use crate::worker::lifecycle::{Input, State, Why};
use crate::worker::member::Member;
use crate::worker::rollout::Seat;
use crate::worker::slot::Slot;

/// A worker that is not ready after this long is told of, and each time after this long what has changed of it.
const SLOW: Duration = Duration::from_secs(5);

/// How long after its launch, and then how often, it is looked at where a worker listens that must be ready within `limit`:
/// before that is over in any case.
pub(super) fn pause(limit: Duration) -> Duration {
    if limit > SLOW { SLOW } else { limit / 2 }
}

impl Crew {
    /// The files that a worker is started from do not answer.
    pub(super) fn silent(&mut self, at: Seat, what: String) {
        let app = self.app();
        let Some(launching) = self.launching.get_mut(&at) else { return };
        tracing::warn!(app = %app.name, worker = at.slot, "cannot start a worker yet: {what} does not answer, as of a file server that is gone");
        let text = format!("worker {} is not started yet: {what} does not answer", at.slot);
        launching.waits_for = Some(what);
        self.remark(text);
    }

    /// A worker still starts, and listens there if not where edge asks; none where it listens by now and has not answered.
    pub(super) fn slow(&mut self, id: &WorkerId, elsewhere: Option<Vec<SocketAddr>>) {
        let Some(worker) = self.workers.get_mut(&seat(id)) else { return };
        let State::Starting { .. } = worker.state else { return };
        if elsewhere.is_none() {
            worker.missed = None;
        }
        worker.elsewhere = elsewhere.unwrap_or_default();
        if worker.launched_at.elapsed() < SLOW {
            return;
        }
        let (reason, is_usual) = worker.why_not_ready_yet();
        if worker.trouble.as_ref() == Some(&reason) {
            return;
        }
        let (app, slot, pid) = (&id.app, id.slot, worker.child.pid());
        let limit = worker.setup.spec.start_timeout.as_secs_f64();
        let seconds = worker.launched_at.elapsed().as_secs();
        if is_usual {
            tracing::info!(%app, worker = slot, pid, reason, "the worker is not ready after {seconds} s");
        } else {
            tracing::warn!(%app, worker = slot, pid, reason, "the worker is not ready after {seconds} s");
        }
        let text = format!(
            "worker {slot} is not ready after {seconds} s: {reason}; it has until `start_timeout` ({limit} s)"
        );
        worker.trouble = Some(reason);
        self.remark(text);
    }

    /// A worker was asked for its health.
    pub(super) fn checked(&mut self, id: &WorkerId, trouble: Option<String>) {
        if let Some(worker) = self.workers.get_mut(&seat(id)) {
            worker.trouble = trouble;
        }
    }

    /// Tells after a while what a worker that drains still has to do, again where less of it is left; never completes.
    pub(super) fn told_of_draining(
        &self,
        worker: u32,
        slot: Arc<Slot>,
        limit: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let remarks = self.remarks.clone();
        async move {
            let mut told = 0;
            loop {
                tokio::time::sleep(SLOW).await;
                let open = slot.in_flight();
                if open != told && open > 0 {
                    told = open;
                    let (s, seconds) = (if open == 1 { "" } else { "s" }, limit.as_secs_f64());
                    let _nobody_waits = remarks.send(format!(
                        "worker {worker} still has {open} request{s} open (WebSockets and streams count); it has until \
                         `drain_timeout` ({seconds} s)"
                    ));
                }
            }
        }
    }

    /// A worker has failed its health check as often as is allowed.
    pub(super) fn told_unwell(&self, at: Seat) {
        let Some(worker) = self.workers.get(&at) else { return };
        let (spec, reason) = (&worker.setup.spec, worker.trouble.as_deref().unwrap_or_default());
        let (path, failures) = (spec.healthcheck_path.as_deref().unwrap_or("/"), spec.healthcheck.retries);
        let app = &worker.id.app;
        tracing::warn!(%app, worker = at.slot, path, reason, failures, "a worker fails its health checks: it is to be replaced");
    }

    /// A worker was killed, because of `input`.
    pub(super) fn told_killed(&self, at: Seat, input: Input) {
        let Some(worker) = self.workers.get(&at) else { return };
        let (app, pid) = (&worker.id.app, worker.child.pid());
        let hung = matches!(worker.state, State::Killing { why: Why::Hung, .. });
        if input != Input::Tick || hung {
            tracing::warn!(%app, worker = at.slot, pid, "killing a worker and all it started");
            return;
        }
        let seconds = worker.setup.spec.stop_grace_period.as_secs_f64();
        tracing::warn!(
            %app,
            worker = at.slot,
            pid,
            "killing a worker and all it started: it did not end within `stop_grace_period` ({seconds} s)"
        );
        self.remark(format!("worker {} was killed after `stop_grace_period` ({seconds} s)", at.slot));
    }

    /// A worker was killed and does not end.
    pub(super) fn told_stuck(&self, worker: &Member) {
        let (app, at, pid) = (&worker.id.app, worker.id.slot, worker.child.pid());
        tracing::error!(
            %app,
            worker = at,
            pid,
            "a worker does not end by SIGKILL: it is stuck in the kernel, as with a disk or a file server that does not answer; it \
             is given up, and its slot is free for another"
        );
        self.remark(format!(
            "worker {at} (process {pid}) is stuck in the kernel, does not end, and is given up"
        ));
    }

    /// The last line of a worker that is gone belongs to what is remembered of its end.
    pub(super) fn last_words(&mut self, at: Seat, last_lines: &[String]) {
        let Some(line) = last_words::telling(last_lines) else { return };
        if let Some(rejected) = &mut self.rejected {
            rejected.said(at, line);
        }
        if let Some(past) = self.past.get_mut(&at.slot) {
            past.said(at.incarnation, line);
        }
    }

    /// To whoever waits for a change of this app.
    fn remark(&self, text: String) {
        let _nobody_waits = self.remarks.send(text);
    }
}
