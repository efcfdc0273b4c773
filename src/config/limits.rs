//! Deadlines and bounds of connections and requests: checked values, part of the model.

use std::time::Duration;

use crate::config::networks::Networks;

/// Deadlines of connections and requests. Those of bodies, answers and tunnels begin anew with every progress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timeouts {
    /// Accept to TLS finished.
    pub handshake: Duration,
    /// First byte of a request head to its end; for the first on a connection, from the connection's start.
    pub headers: Duration,
    /// Request body without progress.
    pub body: Duration,
    /// Response without progress towards the client.
    pub write: Duration,
    /// Idle HTTP/1.1 client connection.
    pub keepalive: Duration,
    /// Idle HTTP/2 client connection.
    pub keepalive_h2: Duration,
    /// A client connection's whole life, after which it finishes what it has; zero for no end.
    pub connection_age: Duration,
    /// Connecting to a worker.
    pub connect: Duration,
    /// Request sent to first byte of the response.
    pub first_byte: Duration,
    /// Silence in the middle of a response.
    pub upstream_idle: Duration,
    /// Idle worker connection; `None` is by the kind of server.
    pub pool_idle: Option<Duration>,
    /// Silence on a WebSocket.
    pub tunnel: Duration,
}

/// Bounds of connections and requests. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at once.
    pub connections: u32,
    /// Client connections at once from one IPv4 address or IPv6 /64; 0 for any number.
    pub connections_per_client: u32,
    /// Requests of one such client at workers at once; 0 for any number.
    pub in_flight_per_client: u32,
    /// Requests on one connection, after which it finishes what it has; 0 for any number.
    pub requests_per_connection: u32,
    /// TLS handshakes at once.
    pub handshakes: u32,
    /// Least average speed of a request body, bytes a second; 0 for any.
    pub body_rate: u64,
    /// Longest request head.
    pub head_size: usize,
    /// Most fields of a request head, each cookie crumb counted.
    pub header_fields: usize,
    /// Longest path and query.
    pub uri_size: usize,
    /// What trails or accompanies chunks, in requests and answers.
    pub chunks: ChunkLimits,
    /// HTTP/2 streams at once on one connection.
    pub streams: u32,
    /// What an HTTP/2 client may send ahead on one stream.
    pub window: u32,
    /// What an HTTP/2 client may send ahead on one connection.
    pub connection_window: u32,
    /// What is taken from a worker as the head of an answer.
    pub response: ResponseLimits,
    /// Request body that is read on after an early answer.
    pub early_response_drain: usize,
}

/// Bounds of what the chunked coding carries besides data, for each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// Chunk extensions.
    pub extensions: u32,
    /// Longest trailer section.
    pub trailer_size: u32,
    /// Most trailer fields.
    pub trailer_fields: u32,
}

/// Bounds of what a worker may answer before its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseLimits {
    /// Longest head.
    pub head_size: usize,
    /// Most fields.
    pub fields: usize,
    /// Most interim (1xx) responses before the final one.
    pub interim: u32,
}

/// What a connection lives under: a change is for connections that come later, unless a line says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// Who stands between clients and edge.
    pub before: Before,
}

/// Who stands between clients and edge, and is believed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Before {
    /// HTTP proxies that name the client in header fields; known to the routing, so that a change is for every next request.
    pub trusted_proxies: Networks,
    /// Load balancers that name the client before anything else (the PROXY protocol).
    pub proxy_protocol: Networks,
}
