//! The body of a worker's answer over HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::config::limits::ChunkLimits;
use crate::scope::Scope;
use crate::upstream::body::Watch;
use crate::upstream::error::ResponseBodyError;
use crate::upstream::framing::{Speaker, keep_trailers};
use crate::upstream::lease::Lease;
use crate::upstream::multiplex::Place;
use crate::upstream::request_body::fits;
use crate::upstream::stream_upload::Rest;
use crate::worker::slot::Slot;

/// How long the end of a stream may follow the last byte of an answer of known length.
const LATE_END: Duration = Duration::from_secs(1);

/// A worker's response body, with what is left of the upload. Dropping it early resets the stream.
///
/// With the last byte, not when it is dropped, the lease is given back.
pub struct StreamBody {
    lease: Lease,
    /// Boxed: a body moves a few times before it is read.
    transfer: Option<Box<Transfer>>,
    /// Trailers that came with the last byte.
    trailers: Option<Box<HeaderMap>>,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    request_bytes: u64,
}

/// What an answer still needs.
pub(super) struct Transfer {
    pub(super) stream: RecvStream,
    pub(super) upload: Option<Rest>,
    pub(super) watch: Watch,
    pub(super) trailers: ChunkLimits,
    pub(super) place: Place,
    /// Owns what waits for a late end.
    pub(super) tasks: Scope,
    /// The end of streams on the worker's slot.
    pub(super) ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl StreamBody {
    pub(super) fn new(lease: Lease, left: Option<u64>, request_bytes: u64, transfer: Box<Transfer>) -> Self {
        let ended = transfer.stream.is_end_stream();
        let mut body = Self { lease, transfer: Some(transfer), trailers: None, left, request_bytes };
        // Nobody polls a body that is over from the start.
        if ended {
            body.finish();
        } else if left == Some(0) {
            body.lease.release();
        }
        body
    }

    /// The slot that answers.
    pub fn slot(&self) -> &Arc<Slot> {
        self.lease.slot()
    }

    /// Bytes of the request's body that were read so far.
    pub fn request_bytes(&self) -> u64 {
        let upload = self.transfer.as_ref().and_then(|transfer| transfer.upload.as_ref());
        upload.map_or(self.request_bytes, Rest::received)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, ResponseBodyError>> {
        let Some(transfer) = &mut self.transfer else {
            return Poll::Ready(Ok(self.trailers.take().map(|fields| Frame::trailers(*fields))));
        };
        let on_client = match &transfer.upload {
            Some(upload) => upload.look(cx)?,
            None => false,
        };
        if let Poll::Ready(frame) = transfer.poll_frame(cx)? {
            transfer.watch.stop();
            match frame.as_ref().and_then(Frame::data_ref) {
                Some(data) => {
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    self.look_ahead(cx)?;
                }
                None => self.finish(),
            }
            return Poll::Ready(Ok(frame));
        }
        // What has an announced end reaches it while the worker stops.
        if self.left.is_none() {
            let slot = self.lease.slot();
            let ended = transfer.ended.get_or_insert_with(|| Box::pin(slot.streams_ended()));
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(ResponseBodyError::Replaced));
            }
        }
        if on_client {
            transfer.watch.stop();
            return Poll::Pending;
        }
        ready!(transfer.watch.poll_passed(cx));
        transfer.place.give_up_connection();
        Poll::Ready(Err(ResponseBodyError::Stalled))
    }

    /// Finds the end where it is here already: some servers send it in a frame of its own.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), ResponseBodyError> {
        let Some(transfer) = &mut self.transfer else { return Ok(()) };
        if transfer.stream.is_end_stream() {
            self.finish();
        } else if self.left == Some(0)
            && let Poll::Ready(frame) = transfer.poll_frame(cx)?
        {
            let trailers = frame.and_then(|frame| frame.into_trailers().ok());
            self.trailers = trailers.map(Box::new);
            self.finish();
        }
        Ok(())
    }

    /// The answer is whole, or given up.
    fn finish(&mut self) {
        self.request_bytes = self.request_bytes();
        self.transfer = None;
        self.lease.release();
    }
}

impl Drop for StreamBody {
    /// A reset where only the end is missing would make a whole answer a cancelled one to its server.
    fn drop(&mut self) {
        let Some(mut transfer) = self.transfer.take() else { return };
        if self.left == Some(0) {
            transfer.upload = None;
            transfer.watch.be_patient(LATE_END);
            let tasks = transfer.tasks.clone();
            drop(tasks.spawn(async move {
                poll_fn(|cx| match transfer.poll_frame(cx) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => transfer.watch.poll_passed(cx),
                })
                .await;
            }));
        } else {
            transfer.place.left();
        }
    }
}

impl Transfer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, ResponseBodyError>> {
        loop {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It is on its way to the client, who is asked before there is more.
                    let _closed = self.stream.flow_control().release_capacity(data.len());
                    if !data.is_empty() || self.stream.is_end_stream() {
                        return Poll::Ready(Ok(Some(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => break,
            }
        }
        let mut trailers = ready!(self.stream.poll_trailers(cx)).map_err(broken)?;
        if trailers.as_ref().is_some_and(|trailers| !fits(trailers, &self.trailers)) {
            return Poll::Ready(Err(ResponseBodyError::BadFraming("its trailers are too long")));
        }
        if let Some(trailers) = &mut trailers {
            keep_trailers(trailers, Speaker::Worker);
        }
        Poll::Ready(Ok(trailers.map(Frame::trailers)))
    }
}

fn broken(error: h2::Error) -> ResponseBodyError {
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() && reason != Reason::NO_ERROR => {
            ResponseBodyError::Reset(reason)
        }
        Some(_) if error.is_library() => ResponseBodyError::BadFraming("it breaks the rules of HTTP/2"),
        Some(_) | None => ResponseBodyError::Truncated(error.into_io()),
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let frame = ready!(self.poll_body(cx));
        if frame.is_err() {
            self.finish();
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && (self.transfer.is_none() || self.left == Some(0))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
