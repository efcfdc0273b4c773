//! A worker's response body, with what is left of the client's upload.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::deadline::Deadline;
use crate::inflow::{BULK_READ_SIZE, READ_SIZE};
use crate::upstream::connection::Connection;
use crate::upstream::error::ResponseBodyError;
use crate::upstream::framing::{BodyDecoder, Decoded};
use crate::upstream::idle::IdleConnections;
use crate::upstream::lease::Lease;
use crate::upstream::upload::{Upload, UploadState};
use crate::upstream::wire::{Malformed, ResponseFraming};
use crate::worker::slot::Slot;

/// A worker's response body, with what is left of the upload. Dropping it early closes the worker's connection.
///
/// With the last byte, not when it is dropped, the lease is given back and the connection kept for the next request.
pub struct ResponseBody {
    lease: Lease,
    /// Boxed, because most answers are here whole with their heads.
    transfer: Option<Box<Transfer>>,
    /// Trailers that came with the last byte.
    trailers: Option<Box<HeaderMap>>,
    /// A piece that is here: all of the body, or what was decoded while looking for the end.
    ahead: Option<Result<Bytes, Malformed>>,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    request_bytes: u64,
}

/// What a response still needs.
pub(super) struct Transfer {
    pub(super) connection: Connection,
    /// What is left of the request.
    pub(super) upload: Option<Box<Upload>>,
    /// Bytes of the response that were read and not decoded.
    pub(super) input: Bytes,
    pub(super) decoder: BodyDecoder,
    /// The worker said that the connection may serve another request.
    pub(super) reusable: bool,
    pub(super) watch: Watch,
    pub(super) pool: Rc<IdleConnections>,
    /// The last read filled its room.
    pub(super) bulk: bool,
    /// The end of streams on the worker's slot: made once an answer of unknown length lets us wait.
    pub(super) streams_ended: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// A deadline on the worker's silence.
pub(super) struct Watch {
    deadline: Deadline,
    patience: Duration,
    running: bool,
}

impl Watch {
    pub(super) fn new(deadline: Deadline, patience: Duration) -> Self {
        Self { deadline, patience, running: false }
    }

    /// Something moved, or it is not the worker who is waited for.
    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            self.deadline.clear();
        }
    }

    /// The worker is waited for: from now, or still.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.running {
            self.running = true;
            self.deadline.set(self.patience);
        }
        self.deadline.poll_passed(cx)
    }

    /// The time, as deadlines have it.
    pub(super) fn now(&self) -> Instant {
        self.deadline.now()
    }

    /// How long the worker may be silent.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// How long the worker may be silent from now on.
    pub(super) fn be_patient(&mut self, patience: Duration) {
        self.stop();
        self.patience = patience;
    }
}

impl ResponseBody {
    /// One that came whole with its head: the worker is done with it.
    pub(super) fn whole(mut lease: Lease, data: Bytes, request_bytes: u64) -> Self {
        lease.release();
        let left = Some(data.len() as u64);
        let ahead = (!data.is_empty()).then_some(Ok(data));
        Self { lease, transfer: None, trailers: None, ahead, left, request_bytes }
    }

    pub(super) fn new(
        lease: Lease,
        framing: ResponseFraming,
        request_bytes: u64,
        transfer: Box<Transfer>,
    ) -> Self {
        let left = match framing {
            ResponseFraming::None => Some(0),
            ResponseFraming::Length(length) => Some(length),
            ResponseFraming::Chunked | ResponseFraming::UntilClose => None,
        };
        let mut body =
            Self { lease, transfer: Some(transfer), trailers: None, ahead: None, left, request_bytes };
        if left == Some(0) {
            // Nobody polls a body that is over from the start.
            body.finish();
        }
        body
    }

    /// The slot that answers.
    pub fn slot(&self) -> &Arc<Slot> {
        self.lease.slot()
    }

    /// Whether the worker is done with it: what is left to hand out is here.
    pub fn is_whole(&self) -> bool {
        self.transfer.is_none()
    }

    /// Bytes of the request's body that were read so far.
    pub fn request_bytes(&self) -> u64 {
        let upload = self.transfer.as_ref().and_then(|transfer| transfer.upload.as_deref());
        upload.map_or(self.request_bytes, Upload::received)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, ResponseBodyError>> {
        loop {
            if let Some(ahead) = self.ahead.take() {
                return Poll::Ready(Ok(Some(self.hand_out(ahead.map_err(broken)?))));
            }
            let Some(transfer) = &mut self.transfer else {
                return Poll::Ready(Ok(self.trailers.take().map(|fields| Frame::trailers(*fields))));
            };
            match transfer.decoder.decode(&mut transfer.input).map_err(broken)? {
                Decoded::Data(data) => return Poll::Ready(Ok(Some(self.hand_out(data)))),
                Decoded::Trailers(trailers) => self.finish_with(trailers),
                Decoded::End => self.finish(),
                Decoded::More => match transfer.poll_input(cx)? {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) => self.finish(),
                    Poll::Pending => {
                        // What has an announced end reaches it while the worker stops.
                        if self.left.is_none() {
                            std::task::ready!(transfer.poll_streams_ended(cx, self.lease.slot()));
                            return Poll::Ready(Err(ResponseBodyError::Replaced));
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }

    fn hand_out(&mut self, data: Bytes) -> Frame<Bytes> {
        if let Some(left) = &mut self.left {
            *left -= data.len() as u64;
        }
        self.look_ahead();
        Frame::data(data)
    }

    /// Finds the end as soon as it is here, so that the connection is free for the next request at once and the client's
    /// side can write the last bytes and the end together.
    fn look_ahead(&mut self) {
        let Some(transfer) = &mut self.transfer else { return };
        match transfer.decoder.decode(&mut transfer.input) {
            Ok(Decoded::More) => {}
            Ok(Decoded::End) => self.finish(),
            Ok(Decoded::Trailers(trailers)) => self.finish_with(trailers),
            Ok(Decoded::Data(data)) => self.ahead = Some(Ok(data)),
            Err(error) => self.ahead = Some(Err(error)),
        }
    }

    fn finish_with(&mut self, trailers: HeaderMap) {
        self.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
        self.finish();
    }

    /// The answer is whole.
    fn finish(&mut self) {
        self.request_bytes = self.request_bytes();
        if let Some(transfer) = self.transfer.take() {
            transfer.finish(&self.lease);
        }
        self.lease.release();
    }
}

fn broken(Malformed(what): Malformed) -> ResponseBodyError {
    ResponseBodyError::BadFraming(what)
}

impl Transfer {
    /// Reads more input; false where the worker closed and that is the end of the body. Moves the upload on, too.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ResponseBodyError>> {
        let on_client = self.drive_upload(cx)?;
        let size = if self.bulk { BULK_READ_SIZE } else { READ_SIZE };
        match self.connection.poll_data(cx, size) {
            Poll::Ready(Ok(input)) if !input.is_empty() => {
                self.watch.stop();
                self.bulk = input.len() >= READ_SIZE;
                self.input = input;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Ok(_)) if self.decoder.ends_with_close() => Poll::Ready(Ok(false)),
            Poll::Ready(ended) => Poll::Ready(Err(ResponseBodyError::Truncated(ended.err()))),
            Poll::Pending if on_client => {
                self.watch.stop();
                Poll::Pending
            }
            Poll::Pending => self.watch.poll_passed(cx).map(|()| Err(ResponseBodyError::Stalled)),
        }
    }

    fn poll_streams_ended(&mut self, cx: &mut Context<'_>, slot: &Slot) -> Poll<()> {
        self.streams_ended.get_or_insert_with(|| Box::pin(slot.streams_ended())).as_mut().poll(cx)
    }

    /// Whether only the client keeps the upload from moving.
    fn drive_upload(&mut self, cx: &mut Context<'_>) -> Result<bool, ResponseBodyError> {
        let Some(upload) = &mut self.upload else { return Ok(false) };
        let (state, moved) = upload.drive(cx, &mut self.connection)?;
        if moved {
            self.watch.stop();
        }
        Ok(match state {
            UploadState::OnClient => true,
            UploadState::Sent | UploadState::OnWorker | UploadState::Refused => false,
        })
    }

    fn finish(self, lease: &Lease) {
        if !self.input.is_empty() {
            let id = &lease.slot().id;
            tracing::warn!(app = %id.app, worker = id.slot, "the worker sent more than its answer; connection closed");
        }
        let sent = self.upload.as_deref().is_none_or(Upload::is_sent);
        if self.reusable && sent && self.input.is_empty() {
            self.pool.put(lease.slot(), self.connection, self.watch.now());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        let frame = std::task::ready!(self.poll_body(cx));
        if frame.is_err() {
            self.request_bytes = self.request_bytes();
            self.transfer = None;
            self.lease.release();
        }
        Poll::Ready(frame.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.transfer.is_none() && self.trailers.is_none() && self.ahead.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
