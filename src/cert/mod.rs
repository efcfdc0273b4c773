//! Certificates: decided when, ordered, stored, published.

pub mod validity;

pub mod bundle;
pub mod challenge;
pub mod change;
pub mod failure;

pub mod delay;
pub mod gate;
pub mod schedule;

pub mod store;

pub mod ca_client;

pub mod trouble;

pub mod account;

pub mod issuer;

pub mod internal;

pub mod resolver;

pub mod files;
pub mod names;

pub mod disk;
pub mod driver;
mod reconfigure;

pub mod manager;

#[cfg(test)]
mod tests;
