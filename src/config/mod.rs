//! What the operator wrote, and the checked form the program uses. Raw forms never leave this folder.
//!
//! A file's way: `load` reads the text, `raw` makes a tree with positions of it, `check` walks the tree through `section` and
//! collects every problem, or returns the `model`. `keys` is the one table of what may be written.

pub mod account;
pub mod acme;
pub mod care;
pub mod check;
mod check_acme;
mod check_app;
mod check_dns;
pub mod check_limits;
mod check_worker;
mod context;
pub mod diff;
pub mod env_file;
pub mod key;
pub mod keys;
mod keys_app;
mod keys_global;
pub mod limits;
pub mod load;
pub mod model;
pub mod networks;
pub mod problem;
pub mod raw;
pub mod scalar;
pub mod schema;
pub mod script;
pub mod section;
pub mod surroundings;
pub mod trusted;

#[cfg(test)]
mod files;
