//! A client's request body on its way to a worker: bounded, watched for progress, counted.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::deadline::Deadline;
use crate::upstream::budget::{Budget, Share};
use crate::upstream::client_body::ClientBody;
use crate::upstream::error::RequestBodyError;

/// A body up to this length usually comes with the request's head.
const SHORT: u64 = 16 * 1024;

/// A client's request body: bounded by `max_body`, watched for progress, counted.
pub struct RequestBody {
    incoming: ClientBody,
    limit: u64,
    received: u64,
    deadline: Deadline,
    idle: Duration,
    waiting: bool,
    ahead: Option<Ahead>,
}

/// What was taken in before a worker was asked.
struct Ahead {
    /// In one piece: frames are slices of larger buffers, and a slow client's would each hold one.
    data: BytesMut,
    trailers: Option<HeaderMap>,
    /// That was all.
    whole: bool,
    _share: Share,
}

impl RequestBody {
    /// `limit` in bytes; `idle` is set anew at each byte the worker is ready to take.
    pub fn new(incoming: ClientBody, limit: u64, deadline: Deadline, idle: Duration) -> Self {
        Self { incoming, limit, received: 0, deadline, idle, waiting: false, ahead: None }
    }

    /// Takes in what fits into memory, so that a worker that is busy with one request at a time is not busy with waiting for
    /// this client.
    pub async fn take_in(&mut self, budget: &Rc<Budget>) -> Result<(), RequestBodyError> {
        let mut share = budget.share();
        let (mut data, mut trailers) = (BytesMut::new(), None);
        let mut whole = self.incoming.is_end_stream();
        while !whole && share.has_room() {
            match poll_fn(|cx| self.poll_incoming(cx)).await.transpose()?.map(Frame::into_data) {
                Some(Ok(more)) => {
                    share.grow(more.len());
                    data.extend_from_slice(&more);
                }
                Some(Err(frame)) => trailers = frame.into_trailers().ok(),
                None => whole = true,
            }
            whole |= self.incoming.is_end_stream();
        }
        self.ahead = Some(Ahead { data, trailers, whole, _share: share });
        Ok(())
    }

    /// Whether all of it came with the request's head, or nearly so.
    pub fn is_short(&self) -> bool {
        self.size_hint().upper().is_some_and(|length| length <= SHORT)
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

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
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
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    /// Each poll says that the worker is ready to take more: while it is not, the client's time stands still.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(ahead) = &mut self.ahead {
            if !ahead.data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(ahead.data.split().freeze()))));
            }
            if let Some(trailers) = ahead.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if ahead.whole {
                return Poll::Ready(None);
            }
        }
        self.poll_incoming(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) => {
                let passed = ahead.data.is_empty() && ahead.trailers.is_none();
                passed && (ahead.whole || self.incoming.is_end_stream())
            }
            None => self.incoming.is_end_stream(),
        }
    }

    /// Exact where all of a body without trailers is here, whatever the client announced.
    fn size_hint(&self) -> SizeHint {
        let Some(ahead) = &self.ahead else { return self.incoming.size_hint() };
        let here = ahead.data.len() as u64;
        if ahead.whole && ahead.trailers.is_none() {
            return SizeHint::with_exact(here);
        }
        let (coming, mut hint) = (self.incoming.size_hint(), SizeHint::new());
        hint.set_lower(coming.lower() + here);
        if let Some(upper) = coming.upper().filter(|_| ahead.trailers.is_none()) {
            hint.set_upper(upper + here);
        }
        hint
    }
}
