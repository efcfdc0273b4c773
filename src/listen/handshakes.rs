//! How many TLS handshakes one thread has under way. They cost the most of all a stranger can ask for, so there are only so
//! many at once, and when nobody can begin, those that take long make room for those that wait.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};

use crate::deadline::{Deadlines, Spare, TICK};

/// What a handshake may take however many wait: more than an honest client needs across the world.
const AT_LEAST: Duration = Duration::from_secs(1);

/// The handshakes of one thread. Clones are handles to the same.
#[derive(Clone)]
pub struct Handshakes(Rc<Open>);

struct Open {
    count: Cell<u32>,
    freed: Notify,
    /// Held by whoever is next: one looks for room, however many wait, and they begin as they came.
    next: Mutex<()>,
    /// By how many threads the limit is divided: connections are spread evenly, and no thread waits for another.
    threads: u32,
}

impl Handshakes {
    /// None yet, on one of `threads` threads.
    pub fn new(threads: u32) -> Self {
        Self(Rc::new(Open { count: Cell::new(0), freed: Notify::new(), next: Mutex::new(()), threads }))
    }

    /// One more, whatever the limit.
    pub fn begin_now(&self) -> Handshake {
        self.0.count.set(self.0.count.get() + 1);
        Handshake(Rc::clone(&self.0))
    }

    /// One more, once fewer than this thread's part of `most` are under way and whoever came before has begun. `timeout` is what
    /// each is given. Cancel-safe.
    pub async fn begin(&self, most: u32, timeout: Duration, deadlines: &Deadlines) -> Handshake {
        let _next = self.0.next.lock().await;
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

    #[tokio::test]
    async fn who_waits_begins_in_turn_and_whoever_gives_up_holds_up_nobody() {
        let (handshakes, deadlines) = (Handshakes::new(1), Deadlines::new());
        let timeout = Duration::from_secs(10);
        let first = handshakes.begin(1, timeout, &deadlines).await;
        let begun = std::cell::RefCell::new(Vec::new());
        let wait = async |name| {
            let turn = handshakes.begin(1, timeout, &deadlines).await;
            begun.borrow_mut().push(name);
            turn
        };
        let (mut second, mut third, mut fourth) =
            (Box::pin(wait("second")), Box::pin(wait("third")), Box::pin(wait("fourth")));
        for waiting in [&mut second, &mut third, &mut fourth] {
            assert!(futures_util::poll!(waiting).is_pending());
        }
        drop(second);
        assert!(futures_util::poll!(&mut fourth).is_pending());
        drop(first);
        assert!(futures_util::poll!(&mut fourth).is_pending(), "the third came before");
        drop(third.await);
        drop(fourth.await);
        assert_eq!(*begun.borrow(), ["third", "fourth"]);
    }

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
