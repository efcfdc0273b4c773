//! How many TLS handshakes one thread has under way. They cost the most of all a stranger can ask for, so there are only so
//! many at once, and when nobody can begin, those that take long make room for those that wait.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::deadline::{Deadlines, Spare, TICK};

/// What a handshake may take however many wait: more than an honest client needs across the world.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The handshakes of one thread. Clones are handles to the same.
#[derive(Clone)]
pub struct Handshakes(Rc<Open>);

struct Open {
    count: Cell<u32>,
    freed: Notify,
    /// By how many threads the limit is divided: connections are spread evenly, and no thread waits for another.
    threads: u32,
}

impl Handshakes {
    /// None yet, on one of `threads` threads.
    pub fn new(threads: u32) -> Self {
        Self(Rc::new(Open { count: Cell::new(0), freed: Notify::new(), threads }))
    }

    /// One more, whatever the limit.
    pub fn begin_now(&self) -> Handshake {
        self.0.count.set(self.0.count.get() + 1);
        Handshake(Rc::clone(&self.0))
    }

    /// One more, once fewer than this thread's part of `most` are under way. `timeout` is what each is given. Cancel-safe.
    pub async fn begin(&self, most: u32, timeout: Duration, deadlines: &Deadlines) -> Handshake {
        while self.0.count.get() >= (most / self.0.threads).max(1) {
            deadlines.hurry(Spare::Handshake, timeout.saturating_sub(AT_LEAST));
            tokio::select! {
                () = self.0.freed.notified() => {}
                // Others have been under way for long enough by then.
                () = tokio::time::sleep(TICK) => {}
            }
        }
        self.begin_now()
    }
}

/// A handshake under way.
pub struct Handshake(Rc<Open>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn d07_a_stalled_handshake_makes_room_after_a_second_and_not_before() {
        let (handshakes, deadlines) = (Handshakes::new(2), Deadlines::new());
        let begun = tokio::time::Instant::now();
        let timeout = Duration::from_secs(10);
        let stalled = async {
            let turn = handshakes.begin(2, timeout, &deadlines).await;
            let deadline = deadlines.deadline();
            deadline.set_spare(timeout, Spare::Handshake);
            deadline.passed().await;
            drop(turn);
        };
        let next = async { drop(handshakes.begin(2, timeout, &deadlines).await) };
        tokio::select! {
            ((), ()) = futures_util::future::join(stalled, next) => {}
            () = deadlines.run() => unreachable!("it never returns"),
        }
        let took = begun.elapsed();
        assert!(took >= AT_LEAST && took < AT_LEAST * 2, "{took:?}");
    }
}
