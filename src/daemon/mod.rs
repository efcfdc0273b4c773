//! Assembly: no policy.

pub mod admin;
pub mod ask;
pub mod check_certificates;
pub mod check_names;
pub mod cli;
pub mod command;
mod elsewhere;
pub mod explain;
pub mod hello;
pub mod import;
mod interrupted;
pub mod listeners;
pub mod live;
pub mod metrics;
pub mod operation;
pub mod perform;
pub mod progress;
pub mod reload;
pub mod render;
pub mod render_certificates;
pub mod run;
pub mod signals;
pub mod start_error;
pub mod table;
pub mod threads;
pub mod words;
