//! The promises of `edge`, kept by the real binary: every test starts it with a configuration of its own, on ports of its own,
//! in a directory of its own, and talks to it as a client, a worker, a CA or an operator would.
//!
//! `tests/run` prepares what these tests need (Pebble, a Python environment, node) and runs them.
//! `EDGE_TEST_FULL=1` makes the load tests as long as the promises say; without it they are shortened.
//!
//! What makes a supervisor of workers, and the tests that hold it to that:
//!
//! | promise | tests |
//! |---|---|
//! | kills in a storm fail no GET, and execute no POST twice | `disasters::a_storm_of_kills…` |
//! | a killed `uvicorn` serves again in 1.5 s | `disasters::killed_uvicorns…` |
//! | deploys in a row fail no request, and say good-bye to every WebSocket | `endurance::deploy_after_deploy…` |
//! | a broken deploy changes nothing, and says why | `disasters::a_broken_deploy…` |
//! | an app that crashes at every start costs nothing, and is back once it is repaired | `disasters::an_app_that_crashes…` |
//! | a worker that hangs is avoided in 3 s and replaced; one that is merely slow is not | `disasters::requests_that_a_blocked…` and the five after it |
//! | every server stops in time, nothing is cut, nothing is left | `servers` (`stops`) |
//! | whatever a worker starts ends with it | `endurance::whatever_a_worker_starts…`, `hygiene::a_daemon_that_hides…`, `hygiene::as_process_1…` |
//! | recycling costs no request, and a leak is held | `supervising::recycling…`, `supervising::an_app_that_leaks…` |
//! | every server's documented command works as it is, without rights, heard by nobody else | `servers` |
//! | connections are kept no longer than servers keep them, are spread, and cost nothing when closed | `connections`, `queueing::a_worker_ten_times_slower…` |

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
mod amplification;
mod balancers;
mod catalogue;
mod client_certificates;
mod config;
mod connections;
mod cost;
mod disasters;
mod dns;
mod early_answers;
mod endurance;
mod grpc;
mod h2c;
mod handshakes;
mod hostile;
mod http1;
mod hygiene;
mod importing;
mod limits;
mod metrics;
mod operations;
mod proxying;
mod queueing;
mod refusals;
mod reload;
mod scaling;
mod second_ca;
mod servers;
mod shutdown;
mod status;
mod supervising;
mod takeover;
mod telling;
mod tls;
mod upgrades;
mod websockets;
mod workers;
