//! Where a thread's connections stand between serving and ended: a cell that each looks at when it is polled, instead of a
//! future that each would have to poll every time.

use std::cell::Cell;
use std::rc::Rc;

use crate::deadline::Deadlines;
use crate::scope::Scope;

/// The steps of a thread's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Connections come and stay.
    Serving,
    /// Connections finish what they have.
    Draining,
    /// Connections end now.
    Aborting,
}

/// The step now. Clones are handles to the same.
#[derive(Clone)]
pub struct Stage(Rc<Cell<Step>>);

impl Default for Stage {
    fn default() -> Self {
        Self(Rc::new(Cell::new(Step::Serving)))
    }
}

impl Stage {
    /// The step now.
    pub fn step(&self) -> Step {
        self.0.get()
    }

    /// Takes each step when `scope` does, and wakes everybody who holds a deadline; never returns. Cancel-safe.
    pub async fn follow(&self, scope: &Scope, deadlines: &Deadlines) {
        scope.drained().await;
        self.0.set(Step::Draining);
        deadlines.wake_all();
        scope.aborted().await;
        self.0.set(Step::Aborting);
        deadlines.wake_all();
        std::future::pending().await
    }
}
