//! Bytes to requests: sockets, handshakes, and HTTP/1.1 or HTTP/2 on one connection with its time-outs.

pub mod accept;
pub mod arrivals;
pub mod complaint;
pub mod date;
pub mod handshakes;
pub mod http1;
pub mod http2;
pub mod inherited;
pub mod introduction;
pub mod linger;
pub mod meter;
pub mod outflow;
pub mod proxy_header;
pub mod request;
pub mod response;
pub mod share;
pub mod socket;
pub mod stage;
pub mod standby;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod watch;
pub mod wire;
