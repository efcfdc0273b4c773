//! Choosing and reaching a worker.

pub mod affinity;
pub mod balance;
pub mod body;
pub mod budget;
pub mod client_body;
pub mod connection;
pub mod duplex;
pub mod error;
pub mod exchange;
pub mod framing;
pub(crate) mod hearing;
pub mod idle;
pub mod lease;
pub mod multiplex;
pub mod pool;
pub mod queue;
pub mod relief;
pub mod request_body;
pub mod spool;
pub mod stream;
pub mod stream_body;
pub(crate) mod stream_head;
pub(crate) mod stream_upload;
pub(crate) mod unix_socket;
pub(crate) mod upload;
pub mod wire;
