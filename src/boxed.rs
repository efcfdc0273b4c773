//! Futures in memory of their own that are made there.

use std::pin::Pin;

/// What `make` makes, in a box. `Box::pin` has it made on the stack first, and then moves all of its room, used or not.
pub fn boxed<F>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}
