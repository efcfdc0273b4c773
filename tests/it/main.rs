//! The promises of `edge`, kept by the real binary: every test starts it with a configuration of its own, on ports of its own,
//! in a directory of its own, and talks to it as a client, a worker, a CA or an operator would.
//!
//! `tests/run` prepares what these tests need (Pebble, a Python environment, node) and runs them.
//! `EDGE_TEST_FULL=1` makes the load tests as long as the promises say; without it they are shortened.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "the rules are for the program; a test has no owner to give tasks to"
)]
#![allow(clippy::large_futures, reason = "a few tests at a time: their size costs nothing")]

#[path = "../ca/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests inside the crate use other parts of it")]
mod ca;
mod support;

mod access_log;
mod acme;
mod balancers;
mod config;
mod connections;
mod cost;
mod disasters;
mod dns;
mod early_answers;
mod endurance;
mod hostile;
mod http1;
mod hygiene;
mod limits;
mod operations;
mod proxying;
mod queueing;
mod refusals;
mod reload;
mod scaling;
mod servers;
mod shutdown;
mod status;
mod supervising;
mod tls;
mod upgrades;
mod websockets;
mod workers;
