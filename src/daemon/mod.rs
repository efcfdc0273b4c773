//! Assembly: no policy.

pub mod admin;
pub mod ask;
pub mod build;
pub mod cli;
pub mod command;
pub mod explain;
pub mod hello;
pub mod render;
pub mod run;
pub mod signals;
pub mod table;
pub mod threads;
