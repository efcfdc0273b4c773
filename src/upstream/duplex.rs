//! A stream of HTTP/2 as a stream of bytes, which is what a WebSocket on it is (RFC 8441), with a client as with a worker.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::inflow;

/// Most for which room is asked at once: what waits for room takes none from others.
pub const PIECE: usize = 16 * 1024;

/// Both directions of a stream, and what must be held as long. Dropped before both have ended, it resets the stream.
pub struct Duplex<H> {
    sending: SendStream<Bytes>,
    receiving: RecvStream,
    /// What came and was not read yet.
    unread: Bytes,
    shut: bool,
    _held: H,
}

impl<H> Duplex<H> {
    /// A stream whose heads are exchanged.
    pub fn new(sending: SendStream<Bytes>, receiving: RecvStream, held: H) -> Self {
        Self { sending, receiving, unread: Bytes::new(), shut: false, _held: held }
    }
}

impl<H: Unpin> AsyncRead for Duplex<H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receiving.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => self.unread = data,
                Some(Err(error)) => {
                    // Whoever needs the stream no longer says so by a reset.
                    let done = matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL));
                    return Poll::Ready(if done { Ok(()) } else { Err(broken(error)) });
                }
            }
        }
        let size = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..size]);
        inflow::pass(&mut self.unread, size);
        // It fails where the stream is over, which the next read tells.
        let _ = self.receiving.flow_control().release_capacity(size);
        Poll::Ready(Ok(()))
    }
}

impl<H: Unpin> AsyncWrite for Duplex<H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let stream = &mut self.sending;
        stream.reserve_capacity(data.len().min(PIECE));
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let size = data.len().min(stream.capacity());
        stream.send_data(Bytes::copy_from_slice(&data[..size]), false).map_err(broken)?;
        Poll::Ready(Ok(size))
    }

    /// The connection sends what it was given without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.shut, true) {
            self.sending.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::new(io::ErrorKind::BrokenPipe, error)
    }
}
