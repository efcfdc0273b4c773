//! Bytes to requests: sockets, handshakes, and HTTP/1.1 or HTTP/2 on one connection with its time-outs.

pub mod accept;
pub mod http;
pub mod linger;
pub mod meter;
pub mod socket;
pub mod stage;
pub mod tcp;
pub mod tls;
pub mod watch;
