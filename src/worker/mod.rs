//! Worker processes: spawned, watched, drained, replaced.

pub mod adapter;
pub mod child;
mod crew;
pub mod environment;
pub mod family;
mod flags;
mod guard;
pub mod launch;
pub mod leftovers;
pub mod lifecycle;
pub mod listening;
mod member;
pub mod output;
pub mod pidfd;
pub mod probe;
pub mod program;
mod registry;
pub mod rollout;
mod servers;
pub mod slot;
pub mod supervisor;
pub mod usage;
