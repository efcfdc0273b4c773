//! Children of this process that somebody waits for. In a process to which orphans fall, whoever reaps those must not take
//! the status of these.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

static OWNED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
static REAPED: Notify = Notify::const_new();

/// Says that somebody waits for a child, as long as it lives. To be made on the thread that spawned the child and reaps
/// orphans, before it does anything else.
#[derive(Debug)]
pub struct Owned(u32);

impl Owned {
    /// Somebody waits for the child with this id.
    pub fn new(pid: u32) -> Self {
        all().insert(pid);
        Self(pid)
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        all().remove(&self.0);
        REAPED.notify_one();
    }
}

/// Whether somebody waits for the child with this id.
pub fn is_owned(pid: u32) -> bool {
    all().contains(&pid)
}

/// Completes when somebody has ceased to wait for a child, whose end may have hidden those of others.
pub async fn let_go() {
    REAPED.notified().await;
}

fn all() -> MutexGuard<'static, BTreeSet<u32>> {
    OWNED.lock().unwrap_or_else(PoisonError::into_inner)
}
