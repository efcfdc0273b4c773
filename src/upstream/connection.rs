//! One connection to a worker, over a unix socket or TCP.
//!
//! It owns no buffer: an idle connection costs a socket.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::config::model::Address;
use crate::inflow;
use crate::upstream::unix_socket::UnixSocket;

/// Most bytes thrown away to end a connection with FIN.
const MAX_DISCARDED: usize = 64 * 1024;

/// A connection to a worker.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    used: bool,
}

#[derive(Debug)]
enum Stream {
    Unix(UnixSocket),
    Tcp(TcpStream),
}

impl Connection {
    /// Connects. Waits as long as the system does, and while the worker's backlog is full: callers bound it. Cancel-safe.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        let stream = match address {
            Address::Unix(path) => Stream::Unix(UnixSocket::connect(path).await?),
            Address::Tcp(address) => Stream::Tcp(TcpStream::connect(address).await?),
            Address::Name(host, port) => Stream::Tcp(TcpStream::connect((host.as_str(), *port)).await?),
        };
        if let Stream::Tcp(stream) = &stream {
            // Heads and bodies are written whole; waiting to fill a segment only delays the last one.
            stream.set_nodelay(true)?;
        }
        Ok(Self { stream, used: false })
    }

    /// Whether it has served a request before.
    pub fn is_used(&self) -> bool {
        self.used
    }

    pub(super) fn mark_used(&mut self) {
        self.used = true;
    }

    /// Whether the worker has neither closed nor said anything. Costs no system call unless something arrived.
    pub fn is_quiet(&self) -> bool {
        matches!(self.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the worker has left unread what it was sent. Only a unix socket tells.
    pub(super) fn is_unread(&self) -> bool {
        match &self.stream {
            Stream::Unix(stream) => stream.unread().is_ok_and(|bytes| bytes > 0),
            Stream::Tcp(_) => false,
        }
    }

    /// Reads at most `size` bytes; none is the end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>, size: usize) -> Poll<io::Result<Bytes>> {
        inflow::poll_read_bytes(Pin::new(self), cx, size)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.stream {
            Stream::Unix(stream) => stream.try_read(buffer),
            Stream::Tcp(stream) => stream.try_read(buffer),
        }
    }
}

impl Drop for Connection {
    /// Closing a socket with unread bytes resets it, which costs some workers memory. Those that are here already are
    /// thrown away, so that close says FIN.
    fn drop(&mut self) {
        let mut discarded = 0;
        let mut buffer = [0; 1024];
        while discarded < MAX_DISCARDED
            && let Ok(count @ 1..) = self.try_read(&mut buffer)
        {
            discarded += count;
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, data),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, data),
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
