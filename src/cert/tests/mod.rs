//! Promises of this folder that need several of its files, a disk or a real CA.

#[path = "../../../tests/ca/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of the real process use other parts of it")]
mod ca;

mod clocks;
mod dns;
mod fakes;
mod faults;
mod files;
mod handshake;
mod hostile;
mod import;
mod knot;
mod lab;
mod limits;
mod look;
mod manager;
mod many;
mod proofs;
mod real_ca;
mod renewals;
mod scenarios;
mod schedule;
mod setup;
mod store;
mod traces;
mod zone;
