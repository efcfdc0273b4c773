//! What an operator asked for and waits for: new workers, or another number of them.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::config::model::{App, WorkerSpec};
use crate::worker::rollout::Seat;

/// Where the outcome of a change is awaited.
pub(super) type Reply = oneshot::Sender<Result<(), RollError>>;

/// Why new workers could not take over. Printed, it is the reason and below it the last lines of the worker that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollError {
    /// What went wrong, in one line.
    pub reason: String,
    /// What the worker that failed wrote last, oldest line first.
    pub last_lines: Vec<String>,
}

impl RollError {
    pub(super) fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), last_lines: Vec::new() }
    }

    pub(super) fn stopping() -> Self {
        Self::because("the app is being stopped")
    }
}

impl std::error::Error for RollError {}

impl fmt::Display for RollError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// What is wished.
#[derive(Debug)]
pub(super) enum Wish {
    /// That what comes before the first worker of this app and spec is run, and nothing else.
    Prepare(Box<(Arc<App>, WorkerSpec)>),
    /// Workers of this app and spec.
    Roll(Box<(Arc<App>, WorkerSpec)>),
    /// The same where what comes before them has been run.
    TakeOver(Box<(Arc<App>, WorkerSpec)>),
    /// Fresh workers of the same.
    Restart,
}

/// The changes of one app: one under way, others in line, and who waits for their outcome.
#[derive(Debug, Default)]
pub(super) struct Changes {
    line: VecDeque<(Wish, Reply)>,
    under_way: Option<UnderWay>,
    begun: u64,
    /// What operators say of the number of workers, until no change is under way.
    pub(super) holding: Vec<(Option<u32>, Reply)>,
    /// Who waits for another number of workers.
    pub(super) scaling: Vec<Reply>,
    /// Workers that ended before they were ready, until their last lines are in.
    dying: BTreeMap<Seat, String>,
    last_failure: Option<(Seat, RollError)>,
    /// Why a generation could not be prepared.
    pub(super) unprepared: Option<RollError>,
}

#[derive(Debug)]
struct UnderWay {
    reply: Reply,
    /// The worker that ended it.
    culprit: Option<Seat>,
    /// All workers are of the new generation.
    completed: bool,
}

impl Changes {
    /// Takes a wish; [`Self::next`] gives it back in its turn.
    pub(super) fn ask(&mut self, wish: Wish, reply: Reply) {
        self.line.push_back((wish, reply));
    }

    /// The wish whose turn it is, now under way.
    pub(super) fn next(&mut self) -> Option<Wish> {
        if self.under_way.is_some() {
            return None;
        }
        let (wish, reply) = self.line.pop_front()?;
        self.under_way = Some(UnderWay { reply, culprit: None, completed: false });
        Some(wish)
    }

    /// Whether [`Self::next`] has a wish to give.
    pub(super) fn is_next(&self) -> bool {
        self.under_way.is_none() && !self.line.is_empty()
    }

    /// Whether a wish has been begun and has not ended.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The number of a generation that was never used before.
    pub(super) fn number(&self) -> u64 {
        self.begun + 1
    }

    pub(super) fn begun(&mut self, generation: u64) {
        self.begun = generation;
    }

    /// What comes before a first worker was run, and no more was wished.
    pub(super) fn prepared(&mut self, outcome: Result<(), RollError>) {
        if let Some(under_way) = self.under_way.take() {
            let _nobody_waits = under_way.reply.send(outcome);
        }
    }

    /// All workers are of the new generation. Whoever waits is told once [`Self::cleared`].
    pub(super) fn completed(&mut self) {
        if let Some(under_way) = &mut self.under_way {
            under_way.completed = true;
        }
    }

    /// Nothing is left of any worker that ended.
    pub(super) fn cleared(&mut self) {
        if let Some(under_way) = self.under_way.take_if(|under_way| under_way.completed) {
            let _nobody_waits = under_way.reply.send(Ok(()));
        }
    }

    /// The new generation does not start. Its reason is said when the culprit's last lines are in.
    pub(super) fn abandoned(&mut self, culprit: Option<Seat>) {
        match (culprit, &mut self.under_way) {
            (Some(_), Some(under_way)) => under_way.culprit = culprit,
            (None, Some(_)) => {
                let error = self.unprepared.take();
                self.fail(error.unwrap_or_else(|| RollError::because("the new generation does not start")));
            }
            (_, None) => {}
        }
        self.explain();
    }

    /// A worker ended before it was ready; why is known, its last lines are not.
    pub(super) fn dying(&mut self, seat: Seat, reason: String) {
        self.dying.insert(seat, reason);
    }

    /// Nothing is left of a worker.
    pub(super) fn buried(&mut self, seat: Seat, last_lines: Vec<String>) {
        if let Some(reason) = self.dying.remove(&seat) {
            let reason = format!("the new worker ended: {reason}");
            self.failed(seat, RollError { reason, last_lines });
        }
    }

    /// A worker did not become ready, for this reason.
    pub(super) fn failed(&mut self, seat: Seat, error: RollError) {
        for reply in self.scaling.drain(..) {
            let _nobody_waits = reply.send(Err(error.clone()));
        }
        self.last_failure = Some((seat, error));
        self.explain();
    }

    /// Everybody who is wanted serves, and nobody else is left.
    pub(super) fn settled(&mut self) {
        for reply in self.scaling.drain(..) {
            let _nobody_waits = reply.send(Ok(()));
        }
    }

    /// Nothing will be changed any more.
    pub(super) fn stop(&mut self) {
        self.fail(RollError::stopping());
        let holding = self.holding.drain(..).map(|(_, reply)| reply);
        let waiting =
            self.line.drain(..).map(|(_, reply)| reply).chain(holding).chain(self.scaling.drain(..));
        for reply in waiting {
            let _nobody_waits = reply.send(Err(RollError::stopping()));
        }
    }

    fn explain(&mut self) {
        let culprit = self.under_way.as_ref().and_then(|under_way| under_way.culprit);
        if let Some((_, error)) = self.last_failure.take_if(|(seat, _)| Some(*seat) == culprit) {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: RollError) {
        if let Some(under_way) = self.under_way.take() {
            let _nobody_waits = under_way.reply.send(Err(error));
        }
    }
}
