//! The body of a response on its way to the client, and the access line that ends with it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::proxy::entry::Entry;
use crate::report::Report;
use crate::upstream::body::ResponseBody;
use crate::upstream::error::ResponseBodyError;
use crate::upstream::spool::SpooledBody;
use crate::upstream::stream_body::StreamBody;

/// What a response's body is made of.
pub enum Content {
    /// Nothing.
    Empty,
    /// A page of edge's own.
    Full(Bytes),
    /// A worker's answer.
    Upstream(ResponseBody),
    /// A worker's answer over HTTP/2.
    Stream(StreamBody),
    /// A synchronous worker's answer, read ahead of the client.
    Spooled(SpooledBody),
}

/// A response's body with its request's entry: the request is over when this is dropped.
pub struct Body {
    content: Content,
    entry: Option<Box<Entry>>,
    /// Why the answer broke off, where the connection does not know yet.
    broken: Option<ResponseBodyError>,
}

impl Body {
    /// `content`, at the end of which `entry` is written.
    pub fn new(content: Content, entry: Box<Entry>) -> Self {
        Self { content, entry: Some(entry), broken: None }
    }

    /// No body, and nothing that ends with it: the request goes on as a tunnel.
    pub fn detached() -> Self {
        Self { content: Content::Empty, entry: None, broken: None }
    }

    /// Notes why what is left of it is not sent.
    pub fn give_up(&mut self, why: &str) {
        if let Some(entry) = &mut self.entry {
            entry.blame(|| why.to_owned());
        }
    }

    /// Notes that its end does not reach the client, though the connection was given all of it.
    pub fn cut(&mut self) {
        if let Some(entry) = &mut self.entry {
            entry.cut();
        }
    }

    /// The request's entry, where the connection was given all of the answer: it is written once that has left, and holds nothing
    /// of its client's until then.
    pub fn settle(&mut self) -> Option<Box<Entry>> {
        if !http_body::Body::is_end_stream(self) {
            return None;
        }
        self.finish();
        let mut entry = self.entry.take()?;
        entry.leave();
        Some(entry)
    }

    fn count(&mut self, bytes: usize) {
        if let Some(entry) = &mut self.entry {
            entry.record.bytes_out += bytes as u64;
        }
    }

    fn poll_content(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = match &mut self.content {
            Content::Empty => return Poll::Ready(None),
            Content::Full(page) => {
                let page = std::mem::take(page);
                self.content = Content::Empty;
                self.count(page.len());
                return Poll::Ready(Some(Ok(Frame::data(page))));
            }
            Content::Upstream(body) => Pin::new(body).poll_frame(cx),
            Content::Stream(body) => Pin::new(body).poll_frame(cx),
            Content::Spooled(body) => Pin::new(body).poll_frame(cx),
        };
        match ready!(frame) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.count(data.len());
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                if let Some(entry) = &mut self.entry {
                    entry.blame(|| Report(&error).to_string());
                }
                // The connection drops what it has not sent when it hears of this: it gets one turn to send it first.
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        self.poll_content(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Full(page) => page.is_empty(),
            Content::Upstream(body) => body.is_end_stream(),
            Content::Stream(body) => body.is_end_stream(),
            Content::Spooled(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty => SizeHint::with_exact(0),
            Content::Full(page) => SizeHint::with_exact(page.len() as u64),
            Content::Upstream(body) => body.size_hint(),
            Content::Stream(body) => body.size_hint(),
            Content::Spooled(body) => body.size_hint(),
        }
    }
}

impl Body {
    /// The worker's answer is complete: its lease goes back before the connection is done with the last bytes.
    fn finish(&mut self) {
        let request_bytes = match &self.content {
            Content::Empty | Content::Full(_) => None,
            Content::Upstream(body) => Some(body.request_bytes()),
            Content::Stream(body) => Some(body.request_bytes()),
            Content::Spooled(body) => Some(body.request_bytes()),
        };
        if let (Some(bytes), Some(entry)) = (request_bytes, &mut self.entry) {
            entry.record.bytes_in = bytes;
        }
        self.content = Content::Empty;
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let complete = http_body::Body::is_end_stream(self);
        if !complete {
            self.cut();
        }
        self.finish();
    }
}

#[cfg(test)]
mod tests;
