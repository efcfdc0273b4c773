//! Promises of this folder that need several of its files, a disk or a real CA.

mod handshake;
mod lab;
mod manager;
mod pebble;
mod real_ca;
mod scenarios;
mod schedule;
mod setup;
mod store;
mod stub;
