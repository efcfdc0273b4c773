//! What is on its way to a client or a worker: text, a piece of a body, and what ends the piece, in one write where they fit.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::inflow;

/// Largest text whose memory is kept for another.
const KEPT: usize = 8 * 1024;
/// How many are kept for each thread: as many requests may wait for their workers without asking for memory.
const MOST_KEPT: usize = 64;

thread_local! {
    /// Texts of earlier requests and answers, emptied.
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes to write, in this order. Nothing may be added to `text` before all is written.
pub struct Outbox {
    text: Vec<u8>,
    text_sent: usize,
    data: Bytes,
    tail: &'static [u8],
}

impl Outbox {
    /// Nothing yet.
    pub fn empty() -> Self {
        let text = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(1024));
        Self { text, text_sent: 0, data: Bytes::new(), tail: b"" }
    }

    /// Where text is appended. What was written is gone from it.
    pub fn text(&mut self) -> &mut Vec<u8> {
        if self.text_sent == self.text.len() {
            self.text.clear();
            self.text_sent = 0;
        }
        &mut self.text
    }

    /// A piece of a body, and what follows it.
    pub fn put(&mut self, data: Bytes, tail: &'static [u8]) {
        self.data = data;
        self.tail = tail;
    }

    /// Whether there is a piece of a body in it.
    pub fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// Takes the piece of a body out of it.
    pub fn take_data(&mut self) -> Bytes {
        std::mem::take(&mut self.data)
    }

    /// Whether all was written.
    pub fn is_empty(&self) -> bool {
        self.text_sent == self.text.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// The text is written once more, from its beginning: for whoever has put nothing after it.
    pub fn rewind(&mut self) {
        self.text_sent = 0;
    }

    /// Writes all of it.
    pub fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            ready!(self.poll_some(cx, stream))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes once, and tells how much. To be called while it is not empty.
    pub fn poll_some<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
    ) -> Poll<io::Result<usize>> {
        let (stream, text) = (Pin::new(stream), &self.text[self.text_sent..]);
        let written = if self.data.is_empty() && self.tail.is_empty() {
            stream.poll_write(cx, text)
        } else if text.is_empty() && self.tail.is_empty() {
            stream.poll_write(cx, &self.data)
        } else {
            let slices = [IoSlice::new(text), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            stream.poll_write_vectored(cx, &slices)
        };
        let count = ready!(written)?;
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(count);
        Poll::Ready(Ok(count))
    }

    fn advance(&mut self, mut count: usize) {
        let text = count.min(self.text.len() - self.text_sent);
        self.text_sent += text;
        count -= text;
        let data = count.min(self.data.len());
        inflow::pass(&mut self.data, data);
        count -= data;
        self.tail = &self.tail[count..];
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut text = std::mem::take(&mut self.text);
        if text.capacity() <= KEPT {
            text.clear();
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MOST_KEPT {
                    spare.push(text);
                }
            });
        }
    }
}
