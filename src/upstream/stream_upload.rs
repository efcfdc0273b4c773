//! The sending half of a stream: the client's body as far as the worker takes it. Driven by whoever waits for the answer, and from
//! then on by a task of its own, because both directions of a call may go on for hours without waiting for each other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::task::JoinHandle;

use crate::scope::Scope;
use crate::upstream::budget::Budget;
use crate::upstream::duplex::PIECE;
use crate::upstream::error::RequestBodyError;
use crate::upstream::framing::{Speaker, keep_trailers};
use crate::upstream::request_body::RequestBody;
use crate::upstream::upload::UploadState;

/// Bytes of a body that are kept until the worker has answered: it may say that it did nothing with them.
const KEPT: usize = 16 * 1024;

/// A body on its way. At most one frame of it is held.
pub(super) struct StreamUpload {
    stream: SendStream<Bytes>,
    /// `None` once all of it is read.
    body: Option<Box<RequestBody>>,
    data: Bytes,
    trailers: Option<HeaderMap>,
    kept: Option<Kept>,
    received: u64,
    over: bool,
}

#[derive(Default)]
struct Kept {
    data: Vec<Bytes>,
    size: usize,
    trailers: Option<HeaderMap>,
}

impl StreamUpload {
    /// `body` on `stream`; none where the request's head was all.
    pub(super) fn new(stream: SendStream<Bytes>, body: Option<Box<RequestBody>>) -> Self {
        let over = body.is_none();
        let (data, trailers) = Default::default();
        Self { stream, body, data, trailers, kept: Some(Kept::default()), received: 0, over }
    }

    /// Bytes read from the client so far.
    pub(super) fn received(&self) -> u64 {
        self.body.as_ref().map_or(self.received, |body| body.received())
    }

    /// Whether the worker has all of it, or wants no more.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The stream, on which nothing was sent.
    pub(super) fn into_stream(self) -> SendStream<Bytes> {
        self.stream
    }

    /// The body as it was, where the worker did nothing with it and all that was read is still here.
    pub(super) fn take_back(&mut self, budget: &Rc<Budget>) -> Option<Box<RequestBody>> {
        let (mut body, kept) = (self.body.take()?, self.kept.take()?);
        body.put_back(&kept.data, kept.trailers, budget);
        Some(body)
    }

    /// Sends what can be sent. Also tells whether anything moved.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Result<(UploadState, bool), RequestBodyError> {
        let mut moved = false;
        while !self.over {
            if !self.data.is_empty() {
                match self.poll_data(cx) {
                    Poll::Ready(()) => moved = true,
                    Poll::Pending => return Ok((UploadState::OnWorker, moved)),
                }
            } else if let Some(trailers) = self.trailers.take() {
                // Whoever wants no more says so in its answer.
                let _refused = self.stream.send_trailers(trailers);
                self.over = true;
            } else if !self.fill(cx)? {
                return Ok((UploadState::OnClient, moved));
            }
        }
        if let Some(body) = &mut self.body {
            body.passed_on();
        }
        Ok((UploadState::Sent, moved))
    }

    /// Takes the next frame of the body; false while there is none.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, RequestBodyError> {
        let Some(body) = &mut self.body else { return Ok(true) };
        let frame = match Pin::new(body).poll_frame(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(frame) => frame.transpose()?,
        };
        match frame.map(Frame::into_data) {
            Some(Ok(data)) => {
                self.keep(&data);
                self.data = data;
                if self.data.is_empty() && self.is_read() {
                    self.end();
                }
            }
            Some(Err(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    keep_trailers(&mut trailers, Speaker::Client);
                    if let Some(kept) = &mut self.kept {
                        kept.trailers = Some(trailers.clone());
                    }
                    self.trailers = Some(trailers);
                }
                Err(_) => self.end(),
            },
            None => self.end(),
        }
        Ok(true)
    }

    fn keep(&mut self, data: &Bytes) {
        let Some(kept) = &mut self.kept else { return };
        kept.size += data.len();
        if kept.size > KEPT {
            self.kept = None;
        } else {
            kept.data.push(data.clone());
        }
    }

    fn is_read(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn end(&mut self) {
        let _refused = self.stream.send_data(Bytes::new(), true);
        self.over = true;
    }

    /// Sends a piece of `data` once there is room for one.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.reserve_capacity(self.data.len().min(PIECE));
        while self.stream.capacity() == 0 {
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                // The worker takes no more; it may still answer.
                Poll::Ready(Some(Err(_)) | None) => {
                    self.over = true;
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        let piece = self.data.split_to(self.data.len().min(self.stream.capacity()));
        let last = self.data.is_empty() && self.is_read();
        self.over = self.stream.send_data(piece, last).is_err() || last;
        Poll::Ready(())
    }
}

/// What is left of an upload once the answer has begun. Dropping it ends the upload, and tells the worker.
pub(super) struct Rest {
    shared: Rc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    received: Cell<u64>,
    /// It is the client who is waited for.
    on_client: Cell<bool>,
    failed: RefCell<Option<RequestBodyError>>,
    reader: RefCell<Option<Waker>>,
}

impl Rest {
    /// Sends the rest of `upload` in a task of its own.
    pub(super) fn send(mut upload: StreamUpload, tasks: &Scope) -> Self {
        let shared = Rc::new(Shared::default());
        let told = Rc::clone(&shared);
        upload.kept = None;
        let task = tasks.spawn(async move {
            let sent = poll_fn(|cx| {
                let driven = upload.drive(cx);
                told.received.set(upload.received());
                let (state, moved) = match driven {
                    Ok(driven) => driven,
                    Err(error) => return Poll::Ready(Err(error)),
                };
                let on_client = state == UploadState::OnClient;
                if moved || told.on_client.replace(on_client) != on_client {
                    told.wake();
                }
                if upload.is_over() { Poll::Ready(Ok(())) } else { Poll::Pending }
            });
            told.failed.replace(sent.await.err());
            told.on_client.set(false);
            told.wake();
        });
        Self { shared, task }
    }

    /// Bytes read from the client so far.
    pub(super) fn received(&self) -> u64 {
        self.shared.received.get()
    }

    /// Whether only the client keeps it from moving; an error where the client's body failed. Wakes the task of `cx` when that
    /// changes.
    pub(super) fn look(&self, cx: &Context<'_>) -> Result<bool, RequestBodyError> {
        if let Some(error) = self.shared.failed.take() {
            return Err(error);
        }
        let mut reader = self.shared.reader.borrow_mut();
        match reader.as_mut() {
            Some(known) => known.clone_from(cx.waker()),
            None => *reader = Some(cx.waker().clone()),
        }
        Ok(self.shared.on_client.get())
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.task.abort();
    }
}
