//! Certificates: decided when, ordered, stored, published.

pub mod seconds;
pub mod self_check;
pub mod validity;

pub mod bundle;
pub mod ca_id;
pub mod cas;
pub mod challenge;
pub mod change;
pub mod failure;
pub mod tls_alpn;

pub mod advice;
pub mod client_policy;
pub mod delay;
pub mod gate;
pub mod history;
pub mod schedule;
pub mod subject;
pub mod turns;

pub mod pending;
pub mod store;
pub mod store_error;

pub mod ca_client;
pub mod directory;

pub mod trouble;

pub mod account;
mod binding;

mod dns_ask;
mod dns_hook;
pub mod dns_message;
pub mod dns_persist;
mod dns_proof;
pub mod dns_record;
mod dns_update;
mod dns_watch;
mod dns_zone;

pub mod reach;

mod authorize;
mod ca;
pub mod issuer;
mod order;

pub mod foreign;
pub mod import;
pub mod internal;
pub mod look_tls;

pub mod resolver;

pub mod file_watch;
pub mod files;
pub mod names;
pub mod offer;
mod telling;

pub mod disk;
pub mod driver;
mod importing;
mod ordering;
mod reconfigure;

pub mod manager;

#[cfg(test)]
mod tests;
