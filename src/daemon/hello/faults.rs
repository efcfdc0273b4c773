//! What a broken worker does to its connections, for `EDGE_HELLO_FAULTS=1`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::daemon::hello::Duplex;

const GARBAGE: &[u8] = b"\x00\xffthis is not HTTP\r\n\r\n";

/// A connection that writes garbage instead of answers once its flag is set.
pub(super) struct Wire {
    stream: Box<dyn Duplex>,
    garbage: Arc<AtomicBool>,
}

impl Wire {
    /// A connection that behaves until `garbage` is set.
    pub(super) fn new(stream: Box<dyn Duplex>, garbage: Arc<AtomicBool>) -> Self {
        Self { stream, garbage }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.garbage.load(Ordering::Relaxed) {
            // Written in one piece or not: garbage either way.
            return Pin::new(&mut *self.stream).poll_write(cx, GARBAGE).map_ok(|_| bytes.len());
        }
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.garbage.load(Ordering::Relaxed) {
            let length = slices.iter().map(|slice| slice.len()).sum();
            return Pin::new(&mut *self.stream).poll_write(cx, GARBAGE).map_ok(|_| length);
        }
        Pin::new(&mut *self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

/// A body that announces 1000 bytes and ends after 10.
#[derive(Debug, Default)]
pub(super) struct Truncated {
    polls: u8,
}

impl Body for Truncated {
    type Data = Bytes;
    type Error = crate::daemon::hello::routes::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.polls = self.polls.saturating_add(1);
        match self.polls {
            1 => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"0123456789"))))),
            // Only a body that is not ready makes hyper write what it has.
            2 => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            _ => Poll::Ready(Some(Err("truncated on request".into()))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(1000)
    }
}
