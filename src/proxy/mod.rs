//! HTTP meaning, independent of the wire version.

pub mod attempt;
pub mod body;
pub mod caller;
pub mod clients;
pub mod conn;
pub mod entry;
pub mod error;
pub mod forwarded;
pub mod frames;
pub mod handle;
pub mod headers;
pub mod heads;
pub mod plane;
pub mod relay;
pub mod reply;
pub mod route;
pub mod sticky;
pub mod target;
pub mod upgrade;
