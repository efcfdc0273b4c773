//! What can go wrong between choosing a worker and the end of its answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// No worker could be had.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// None was ready, or all were at their limit, for too long.
    #[error("no worker was free within {:.1} s{}", waited.as_secs_f64(), nobody(ended))]
    NoWorker {
        /// How long the request waited.
        waited: Duration,
        /// How the last worker ended, where none is ready.
        ended: Option<Arc<String>>,
    },
    /// As many requests as allowed wait already.
    #[error("{waiting} requests wait for a worker already{}", nobody(ended))]
    QueueFull {
        /// How many.
        waiting: u64,
        /// How the last worker ended, where none is ready.
        ended: Option<Arc<String>>,
    },
}

/// Why a client's body broke off.
#[derive(Debug, thiserror::Error)]
pub enum ClientBodyError {
    /// The client reset its stream of HTTP/2, or its connection ended.
    #[error(transparent)]
    Stream(#[from] h2::Error),
    /// It breaks the rules of its framing.
    #[error("{0}")]
    Malformed(&'static str),
    /// The client closed or reset its connection.
    #[error("the client closed the connection")]
    Closed(#[source] Option<io::Error>),
}

fn nobody(ended: &Option<Arc<String>>) -> String {
    ended
        .as_ref()
        .map_or_else(String::new, |ended| format!("; none is ready, the last one ended with: {ended}"))
}

/// The client's request body failed: never the worker's fault.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// Longer than the app allows.
    #[error("the request body is longer than {limit} bytes")]
    TooLarge {
        /// The app's `max_body`.
        limit: u64,
    },
    /// Trailers beyond the limits.
    #[error("the trailers of the request are too large")]
    TrailersTooLarge,
    /// No progress for `timeouts.body`, or less than `limits.body_rate`.
    #[error("the client sent too little of its request body for too long")]
    TooSlow,
    /// Framing broken, or the client is gone.
    #[error("the request body ended early or was malformed")]
    Broken(#[source] ClientBodyError),
}

/// One attempt failed before anything of its answer was handed on.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection could not be made: nothing was sent.
    #[error("cannot connect to the worker")]
    Connect(#[source] io::Error),
    /// The worker closed or reset before any byte of an answer.
    #[error("the worker closed the connection before it answered")]
    Closed {
        /// What the system said, if anything.
        #[source]
        cause: Option<io::Error>,
        /// Whether the connection had served a request before (the keep-alive race).
        reused: bool,
        /// Whether any byte of this request was written.
        sent: bool,
    },
    /// The worker closed or reset after the head of an answer, when nothing of the body it announced had come.
    #[error("the worker closed the connection between the head of its answer and the body")]
    Bodiless {
        /// What the system said, if anything.
        #[source]
        cause: Option<io::Error>,
    },
    /// The worker said that it did nothing with the request, as when it is about to close its connection of HTTP/2.
    #[error("the worker did not take the request")]
    Refused,
    /// The worker reset the request's stream of HTTP/2.
    #[error("the worker reset the request before it answered: {}", .0.description())]
    Reset(h2::Reason),
    /// The worker speaks HTTP/2 without WebSockets (RFC 8441 §3): nothing was sent.
    #[error("the worker does not take WebSockets over HTTP/2")]
    NoWebSockets,
    /// The worker had read the request, read nothing more from then on, and was ended for it.
    #[error("the worker hung and was ended before it answered")]
    Hung,
    /// The request cannot be said in HTTP/1.1: nothing was sent, and the client is to blame.
    #[error("the request cannot be written as HTTP/1.1: {0}")]
    Unwritable(&'static str),
    /// The answer is not HTTP, or breaks its rules or our limits.
    #[error("the worker's answer is not valid HTTP: {0}")]
    BadResponse(&'static str),
    /// The worker hangs, or is at something long, and has not read the request: nothing was done with it so far.
    #[error("the worker has not read the request")]
    Unread,
    /// No first byte in `timeouts.first_byte`.
    #[error("the worker did not answer in time")]
    TimedOut,
    /// The client's body failed meanwhile.
    #[error(transparent)]
    RequestBody(#[from] RequestBodyError),
}

/// The answer broke off in the middle: its end must be visible to the client as truncation.
#[derive(Debug, thiserror::Error)]
pub enum ResponseBodyError {
    /// The worker closed before the end its framing promised.
    #[error("the worker's answer ended early")]
    Truncated(#[source] Option<io::Error>),
    /// The worker reset the stream of HTTP/2 that its answer came on.
    #[error("the worker reset its answer: {}", .0.description())]
    Reset(h2::Reason),
    /// Nothing for `timeouts.upstream_idle`.
    #[error("the worker stopped in the middle of its answer")]
    Stalled,
    /// It has no end of its own, and the worker was replaced.
    #[error("the worker was replaced in the middle of its answer")]
    Replaced,
    /// Framing broken.
    #[error("the worker's answer is not valid HTTP: {0}")]
    BadFraming(&'static str),
    /// The client's upload failed while the worker was answering.
    #[error(transparent)]
    RequestBody(#[from] RequestBodyError),
}
