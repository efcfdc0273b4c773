//! The sending half of an attempt: the head and, as far as the worker takes it, the client's body.
//!
//! Polled by whoever waits for the answer, so that both directions move in one task.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};

use crate::outbox::Outbox;
use crate::upstream::budget::Budget;
use crate::upstream::connection::Connection;
use crate::upstream::error::RequestBodyError;
use crate::upstream::framing::{Speaker, write_chunk_size, write_last_chunk};
use crate::upstream::request_body::RequestBody;
use crate::upstream::wire::RequestFraming;

/// A request on its way. At most one frame of the body is held.
pub(super) struct Upload {
    /// The head, a chunk's size line, the last chunk; a frame of the body.
    out: Outbox,
    body: Option<Box<RequestBody>>,
    /// How the body is written; the length counts down.
    framing: RequestFraming,
    /// The body is read to its end.
    body_read: bool,
    /// Bytes of this request that the system took.
    sent: u64,
    /// The worker takes no more; it may still answer.
    refused: Option<io::Error>,
}

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UploadState {
    /// All of it is sent.
    Sent,
    /// The client has to say more.
    OnClient,
    /// The worker has to take more.
    OnWorker,
    /// The worker will not take more.
    Refused,
}

impl Upload {
    /// Begins with `head`. `body` is not touched before the first poll.
    pub(super) fn new(head: Outbox, framing: RequestFraming) -> Self {
        Self {
            out: head,
            body: None,
            framing,
            body_read: matches!(framing, RequestFraming::None),
            sent: 0,
            refused: None,
        }
    }

    /// Gives it the body to send, at most once.
    pub(super) fn attach(&mut self, body: Option<Box<RequestBody>>) {
        if self.body.is_none() {
            self.body = body;
        }
    }

    /// Whether the system took any byte.
    pub(super) fn any_sent(&self) -> bool {
        self.sent > 0
    }

    /// Whether the system took all.
    pub(super) fn is_sent(&self) -> bool {
        self.body_read && self.out.is_empty()
    }

    /// Bytes read from the client so far.
    pub(super) fn received(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.received())
    }

    /// What the system said when the worker stopped taking bytes.
    pub(super) fn take_refusal(&mut self) -> Option<io::Error> {
        self.refused.take()
    }

    /// Notes that the worker has taken nothing for a while, though there is something to take.
    pub(super) fn leave(&mut self) {
        if let Some(body) = self.body.as_mut().filter(|_| !self.body_read) {
            body.leave();
        }
    }

    /// Makes ready to send the same again on another connection, where all of it is still here.
    pub(super) fn rewind(&mut self) -> bool {
        if self.any_sent() && self.body.is_some() {
            return false;
        }
        // Without a body the text is the head, and kept to the end.
        self.out.rewind();
        self.sent = 0;
        self.refused = None;
        true
    }

    /// The body as it was, where nothing was sent and all that was read of it is still here.
    pub(super) fn take_back(&mut self, budget: &Rc<Budget>) -> Option<Box<RequestBody>> {
        if self.any_sent() {
            return None;
        }
        match self.framing {
            RequestFraming::Length(_) => {}
            // Trailers that were read are text by now.
            RequestFraming::None | RequestFraming::Chunked => return None,
        }
        let mut body = self.body.take()?;
        let read = self.out.take_data();
        if !read.is_empty() {
            body.put_back(&[read], None, budget);
        }
        Some(body)
    }

    /// Sends what can be sent. Also tells whether anything moved.
    pub(super) fn drive(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Result<(UploadState, bool), RequestBodyError> {
        let mut moved = false;
        if self.refused.is_some() {
            return Ok((UploadState::Refused, false));
        }
        // The head waits for the first frame only if that is here already: they leave in one write.
        let mut on_client = self.sent == 0 && !self.body_read && !self.out.has_data() && !self.fill(cx)?;
        loop {
            if self.refused.is_some() {
                return Ok((UploadState::Refused, moved));
            }
            while !self.out.is_empty() {
                match self.out.poll_some(cx, connection) {
                    Poll::Ready(Ok(count)) => {
                        moved = true;
                        self.sent += count as u64;
                    }
                    Poll::Ready(Err(error)) => {
                        self.refused = Some(error);
                        return Ok((UploadState::Refused, moved));
                    }
                    Poll::Pending => return Ok((UploadState::OnWorker, moved)),
                }
            }
            if self.body_read {
                if let Some(body) = &mut self.body {
                    body.passed_on();
                }
                return Ok((UploadState::Sent, moved));
            }
            if on_client || !self.fill(cx)? {
                return Ok((UploadState::OnClient, moved));
            }
            on_client = false;
            moved = true;
        }
    }

    /// Takes the next frame of the body; false while there is none.
    fn fill(&mut self, cx: &mut Context<'_>) -> Result<bool, RequestBodyError> {
        let Some(body) = &mut self.body else {
            self.body_read = true;
            return Ok(true);
        };
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(frame) => frame.transpose()?,
        };
        let over = body.is_end_stream();
        match frame.map(Frame::into_data) {
            Some(Ok(data)) => self.put_data(data, over),
            Some(Err(frame)) => self.put_end(frame.into_trailers().ok().as_ref()),
            None => self.put_end(None),
        }
        Ok(true)
    }

    fn put_data(&mut self, mut data: Bytes, over: bool) {
        match &mut self.framing {
            RequestFraming::None => {}
            RequestFraming::Length(left) => {
                // The server side has counted them already; more than announced would be another request.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.body_read = *left == 0;
                self.out.put(data, b"");
            }
            RequestFraming::Chunked if data.is_empty() => {
                if over {
                    self.put_end(None);
                }
            }
            RequestFraming::Chunked => {
                write_chunk_size(self.out.text(), data.len());
                self.out.put(data, if over { b"\r\n0\r\n\r\n" } else { b"\r\n" });
                self.body_read = over;
            }
        }
    }

    fn put_end(&mut self, trailers: Option<&http::HeaderMap>) {
        match self.framing {
            RequestFraming::None | RequestFraming::Length(0) => self.body_read = true,
            // Shorter than announced, which the server side reports as an error before it comes to this. What is missing
            // cannot be made up: the worker must see the request break off.
            RequestFraming::Length(_) => self.refused = Some(io::ErrorKind::UnexpectedEof.into()),
            RequestFraming::Chunked => {
                write_last_chunk(self.out.text(), trailers, Speaker::Client);
                self.body_read = true;
            }
        }
    }
}
