//! The live workers of one app: who takes the next request, and what happens while nobody can.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::name::AppName;
use crate::upstream::balance::least_loaded;
use crate::upstream::error::AcquireError;
use crate::upstream::lease::Lease;
use crate::worker::slot::{Roster, Slot};

/// Most requests that wait for a worker of one app.
pub const QUEUE_SIZE: u64 = 100;
/// How long one waits.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after a failed attempt the death of its worker is known for sure: the supervisor notices within milliseconds.
const SETTLED: Duration = Duration::from_millis(200);

/// One spawn of a slot: its number and incarnation.
pub type Incarnation = (u32, u64);

/// One app's pool, shared by all threads.
#[derive(Debug)]
pub struct Pool {
    app: AppName,
    roster: Arc<Roster>,
    waiting: AtomicU64,
}

impl Pool {
    /// A pool over what the supervisor publishes in `roster`.
    pub fn new(app: AppName, roster: Arc<Roster>) -> Arc<Self> {
        Arc::new(Self { app, roster, waiting: AtomicU64::new(0) })
    }

    /// The app it is for.
    pub fn app(&self) -> &AppName {
        &self.app
    }

    /// Requests waiting for a worker now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A lease on the open slot with the fewest requests in flight, but for those in `tried`; while there is none, waits in
    /// line. A slot that was tried and is still open after a moment is not dead, and is taken again where no other is to be
    /// had. Cancel-safe: dropping the future gives the place up.
    pub async fn acquire(&self, tried: &[Incarnation]) -> Result<Lease, AcquireError> {
        let untried = |slot: &Slot| !tried.contains(&(slot.id.slot, slot.id.incarnation));
        if let Some(lease) = take_least_loaded(&self.roster.load(), untried) {
            return Ok(lease);
        }
        let _place = Place::in_line(&self.waiting)?;
        let start = Instant::now();
        if !tried.is_empty() {
            let other = self.roster.wait_for_change(|slots| take_least_loaded(slots, untried));
            if let Ok(lease) = tokio::time::timeout(SETTLED, other).await {
                return Ok(lease);
            }
        }
        let found = self.roster.wait_for_change(|slots| take_least_loaded(slots, |_| true));
        tokio::time::timeout(QUEUE_TIMEOUT, found)
            .await
            .map_err(|_| AcquireError::NoWorker { waited: start.elapsed() })
    }
}

/// Ends: a slot that closes between the look and the lease stays closed, and is not looked at again.
fn take_least_loaded(slots: &[Arc<Slot>], wanted: impl Fn(&Slot) -> bool) -> Option<Lease> {
    loop {
        let loads = slots.iter().map(|slot| (slot.is_open() && wanted(slot)).then(|| slot.in_flight()));
        let place = least_loaded(loads, fastrand::usize(..))?;
        if let Some(lease) = Lease::take(&slots[place]) {
            return Some(lease);
        }
    }
}

/// A place in the line, given up when dropped.
struct Place<'a>(&'a AtomicU64);

impl<'a> Place<'a> {
    fn in_line(waiting: &'a AtomicU64) -> Result<Self, AcquireError> {
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < QUEUE_SIZE).then_some(waiting + 1)
            })
            .map(|_| Self(waiting))
            .map_err(|waiting| AcquireError::QueueFull { waiting })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Address;
    use crate::name::WorkerId;

    fn slots(count: u32) -> Vec<Arc<Slot>> {
        let app: AppName = "api".parse().expect("valid");
        let slot = |slot| {
            let id = WorkerId { app: app.clone(), slot, incarnation: 1 };
            Slot::new(id, 1, Address::Unix("/x".into()), Duration::ZERO)
        };
        (0..count).map(slot).collect()
    }

    fn pool(slots: &[Arc<Slot>]) -> (Arc<Pool>, Arc<Roster>) {
        let roster = Roster::new();
        roster.publish(slots.to_vec());
        (Pool::new("api".parse().expect("valid"), Arc::clone(&roster)), roster)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_spread_evenly_and_avoid_who_was_tried() {
        let slots = slots(3);
        let (pool, _) = pool(&slots);
        let mut leases = Vec::new();
        for _ in 0..9 {
            leases.push(pool.acquire(&[]).await.expect("open"));
        }
        assert!(slots.iter().all(|slot| slot.in_flight() == 3));
        leases.retain(|lease| lease.slot().id.slot != 0);
        assert_ne!(pool.acquire(&[(0, 1)]).await.expect("open").slot().id.slot, 0);
        slots[1].close();
        slots[2].close();
        assert_eq!(pool.acquire(&[(0, 1)]).await.expect("better again than nobody").slot().id.slot, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_failed_the_only_worker_waits_for_its_successor() {
        let (pool, roster) = pool(&slots(1));
        let replace = async {
            while pool.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let id = WorkerId { app: pool.app().clone(), slot: 0, incarnation: 2 };
            roster.publish(vec![Slot::new(id, 2, Address::Unix("/y".into()), Duration::ZERO)]);
        };
        let (lease, ()) = tokio::join!(pool.acquire(&[(0, 1)]), replace);
        assert_eq!(lease.expect("replaced").slot().id.incarnation, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_a_worker_but_not_for_ever() {
        let (pool, roster) = pool(&[]);
        let publish = async {
            while pool.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            roster.publish(slots(1));
        };
        let (lease, ()) = tokio::join!(pool.acquire(&[]), publish);
        assert!(lease.is_ok());
        assert_eq!(pool.waiting(), 0);
        roster.publish(Vec::new());
        assert!(
            matches!(pool.acquire(&[]).await, Err(AcquireError::NoWorker { waited }) if waited >= QUEUE_TIMEOUT)
        );
    }

    #[tokio::test]
    async fn the_line_is_bounded_and_who_leaves_gives_the_place_up() {
        let (pool, _roster) = pool(&[]);
        let mut line: Vec<_> = (0..QUEUE_SIZE).map(|_| Box::pin(pool.acquire(&[]))).collect();
        for waiting in &mut line {
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        }
        assert!(matches!(pool.acquire(&[]).await, Err(AcquireError::QueueFull { waiting: QUEUE_SIZE })));
        drop(line);
        assert_eq!(pool.waiting(), 0);
    }
}
