//! A client's request body on its way to a worker: bounded, watched for progress, counted.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::deadline::Deadline;
use crate::upstream::error::RequestBodyError;

/// A client's request body: bounded by `max_body`, watched for progress, counted.
pub struct RequestBody {
    incoming: Incoming,
    limit: u64,
    received: u64,
    deadline: Deadline,
    idle: Duration,
    begun: bool,
    waiting: bool,
}

impl RequestBody {
    /// `limit` in bytes; `idle` is set anew at each byte the worker is ready to take.
    pub fn new(incoming: Incoming, limit: u64, deadline: Deadline, idle: Duration) -> Self {
        Self { incoming, limit, received: 0, deadline, idle, begun: false, waiting: false }
    }

    /// Whether any of it was asked for: after that the request cannot be sent again.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Bytes read from the client so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// An error if it is announced to be longer than the limit.
    pub fn check_announced(&self) -> Result<(), RequestBodyError> {
        if self.incoming.size_hint().lower() > self.limit {
            return Err(RequestBodyError::TooLarge { limit: self.limit });
        }
        Ok(())
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    /// Each poll says that the worker is ready to take more: while it is not, the client's time stands still.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        self.begun = true;
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if !self.waiting {
                    self.waiting = true;
                    self.deadline.set(self.idle);
                }
                return self.deadline.poll_passed(cx).map(|()| Some(Err(RequestBodyError::TooSlow)));
            }
        };
        if std::mem::take(&mut self.waiting) {
            self.deadline.clear();
        }
        Poll::Ready(match frame {
            None => None,
            Some(Err(error)) => Some(Err(RequestBodyError::Broken(error))),
            Some(Ok(frame)) => {
                self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
                if self.received > self.limit {
                    return Poll::Ready(Some(Err(RequestBodyError::TooLarge { limit: self.limit })));
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
