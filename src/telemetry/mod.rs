//! What edge says of itself: events, access lines, status.

pub mod line;

pub mod access;
pub mod status;
pub mod tally;

pub mod sink;

pub mod buffer;

pub mod log;
pub mod metrics;
