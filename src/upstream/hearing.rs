//! When a worker was last heard of on a shared connection, and who waits to hear of it. A worker that is slow answers a PING all
//! the same; of a connection on which nothing comes, not even that, nobody else is to expect an answer.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long nothing was heard of a worker for which somebody waits, before it is asked for a sign of life …
const QUIET: Duration = Duration::from_secs(1);
/// … and how long it has for that.
pub(super) const SIGN_WITHIN: Duration = Duration::from_secs(3);
/// What a PONG takes: a read of so many bytes says no more than that.
const PONG: usize = 17;
/// So often in a row a worker is asked that says nothing else meanwhile. Servers of gRPC put up with three PINGs between two
/// answers and close the connection at the next, with the calls on it, where there are not this long …
const IN_A_ROW: u32 = 2;
/// … between them.
const APART: Duration = Duration::from_secs(5 * 60);

/// What is known of the worker on one connection.
pub(super) struct Hearing {
    heard: Cell<Instant>,
    /// Requests of which nothing of an answer has come.
    unanswered: Cell<usize>,
    /// Since when somebody waits, or waited and left, without an answer.
    waits_since: Cell<Option<Instant>>,
    /// When it was last asked for a sign of life, and how often since it said anything else.
    asked: Cell<Option<Instant>>,
    in_a_row: Cell<u32>,
    doubted: Notify,
}

impl Hearing {
    pub(super) fn new() -> Rc<Self> {
        let (unanswered, waits_since, asked, in_a_row, doubted) = Default::default();
        let heard = Cell::new(Instant::now());
        Rc::new(Self { heard, unanswered, waits_since, asked, in_a_row, doubted })
    }

    /// A request is sent to the worker.
    pub(super) fn expect(&self) {
        self.doubt_if_quiet();
        self.unanswered.set(self.unanswered.get() + 1);
        if self.waits_since.get().is_none() {
            self.waits_since.set(Some(Instant::now()));
        }
    }

    /// Its answer has begun.
    pub(super) fn answered(&self) {
        self.unanswered.set(self.unanswered.get() - 1);
        if self.unanswered.get() == 0 {
            self.waits_since.set(None);
        }
    }

    /// Somebody has left who had no answer. What it waited counts on until the worker is heard of.
    pub(super) fn left(&self) {
        self.unanswered.set(self.unanswered.get() - 1);
        self.doubt_if_quiet();
    }

    /// Somebody has left who had a part of its answer.
    pub(super) fn left_in_the_middle(&self) {
        if self.waits_since.get().is_none() {
            self.waits_since.set(Some(self.heard.get()));
        }
        self.doubt_if_quiet();
    }

    fn doubt_if_quiet(&self) {
        if self.is_quiet() {
            self.doubted.notify_one();
        }
    }

    /// Whether the worker is to be asked for a sign of life.
    fn is_quiet(&self) -> bool {
        let Some(since) = self.waits_since.get() else { return false };
        let now = Instant::now();
        let spared = self.in_a_row.get() >= IN_A_ROW && self.asked.get().is_some_and(|at| now - at < APART);
        !spared && now - since.max(self.heard.get()) >= QUIET
    }

    /// Completes when the worker is to be asked for a sign of life, which is then counted as asked. Cancel-safe.
    pub(super) async fn doubt(&self) {
        loop {
            self.doubted.notified().await;
            // What somebody said of it may be long ago.
            if self.is_quiet() {
                self.asked.set(Some(Instant::now()));
                self.in_a_row.set(self.in_a_row.get() + 1);
                return;
            }
        }
    }

    /// Whether anything was heard since it was asked.
    pub(super) fn is_alive(&self) -> bool {
        self.asked.get().is_none_or(|asked| self.heard.get() > asked)
    }

    /// So many bytes came at once; none is its end.
    pub(super) fn hear(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.heard.set(Instant::now());
        if bytes != PONG {
            self.in_a_row.set(0);
        }
        if self.unanswered.get() == 0 {
            self.waits_since.set(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(seconds: f32) {
        tokio::time::advance(Duration::from_secs_f32(seconds)).await;
    }

    fn is_asked(hearing: &Hearing) -> bool {
        use std::future::Future;
        use std::task::{Context, Waker};
        let mut asked = std::pin::pin!(hearing.doubt());
        asked.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_for_nothing_counts_also_when_it_is_gone() {
        let hearing = Hearing::new();
        hearing.expect();
        after(0.5).await;
        hearing.left();
        assert!(!is_asked(&hearing), "not yet");
        after(0.5).await;
        hearing.expect();
        assert!(is_asked(&hearing), "the second waits for nothing too");
        after(0.1).await;
        assert!(!hearing.is_alive());
        hearing.hear(PONG);
        assert!(hearing.is_alive());
        after(1.0).await;
        hearing.left();
        assert!(is_asked(&hearing), "it is still silent");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_heard_of_or_owes_nothing_is_not_asked() {
        let hearing = Hearing::new();
        hearing.expect();
        after(0.9).await;
        hearing.hear(100);
        after(0.9).await;
        hearing.expect();
        assert!(!is_asked(&hearing), "it speaks to others");
        hearing.answered();
        hearing.answered();
        after(60.0).await;
        hearing.expect();
        assert!(!is_asked(&hearing), "it was idle");
        hearing.answered();
        after(2.0).await;
        hearing.left_in_the_middle();
        assert!(is_asked(&hearing), "it stopped in an answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_third_ping_between_two_answers_is_not_sent() {
        let hearing = Hearing::new();
        let asked_again = async || {
            hearing.expect();
            after(2.0).await;
            hearing.left();
            let asked = is_asked(&hearing);
            hearing.hear(PONG);
            asked
        };
        assert!(asked_again().await);
        assert!(asked_again().await);
        assert!(!asked_again().await);
        hearing.hear(100);
        assert!(asked_again().await, "it has said something else");
        assert!(asked_again().await);
        after(300.0).await;
        assert!(asked_again().await, "it is long ago");
    }
}
