//! A client's TCP connection, below TLS.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::worker::unread;

/// A client's connection, whatever is spoken on it.
pub trait Client: AsyncRead + AsyncWrite + Unpin {
    /// Reads what came first. [`AsyncRead::poll_read`] of TLS looks for more once it has something, which for a request in one
    /// record is in vain.
    fn poll_read_first(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_read(cx, buf)
    }

    /// What is written from now on is the last: it may wait for the end, which is sent at once after it, and leave in one packet
    /// with that.
    fn part(&mut self);

    /// Has the connection end with a reset once it is closed: the client must not take its end for the end of an answer.
    fn reset_on_close(&self);

    /// Whether something that was sent has not arrived at the other end.
    fn is_under_way(&self) -> bool;

    /// How often the socket has taken something, to be compared with what it was: it begins anew after its largest. A write says
    /// less, since TLS takes what the socket has no room for.
    fn taken(&self) -> u32;
}

/// Sends what is in one piece with `send`, which costs the kernel less than `writev`. TLS nearly always has one piece.
#[derive(Debug)]
pub struct Tcp {
    /// The socket.
    pub stream: TcpStream,
    parting: bool,
    taken: u32,
}

impl Tcp {
    /// A connection on which nothing was said.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, parting: false, taken: 0 }
    }

    fn note(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.taken = self.taken.wrapping_add(1);
        }
        written
    }

    fn poll_send_last(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let send = || Ok(rustix::net::send(&self.stream, buf, flags)?);
            match self.stream.try_io(Interest::WRITABLE, send) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = if self.parting {
            self.poll_send_last(cx, buf)
        } else {
            Pin::new(&mut self.stream).poll_write(cx, buf)
        };
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs {
            [one] => self.poll_write(cx, one),
            _ => {
                let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
                self.note(written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Client for Tcp {
    fn part(&mut self) {
        self.parting = true;
    }

    fn reset_on_close(&self) {
        // Where this fails the connection is gone already.
        if let Err(error) = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            tracing::debug!(%error, "a connection cannot be reset");
        }
    }

    fn is_under_way(&self) -> bool {
        unread::of_socket(&self.stream).is_ok_and(|bytes| bytes > 0)
    }

    fn taken(&self) -> u32 {
        self.taken
    }
}

impl Client for TlsStream<Tcp> {
    fn poll_read_first(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (tcp, session) = self.get_ref();
        if session.wants_read() {
            // All that came was handed out: asked by way of TLS, a socket with nothing to read would be as dear as one with something.
            ready!(tcp.stream.poll_read_ready(cx))?;
        }
        let record = ready!(Pin::new(&mut *self).poll_fill_buf(cx))?;
        let count = record.len().min(buf.remaining());
        buf.put_slice(&record[..count]);
        Pin::new(self).consume(count);
        Poll::Ready(Ok(()))
    }

    fn part(&mut self) {
        self.get_mut().0.part();
    }

    fn reset_on_close(&self) {
        self.get_ref().0.reset_on_close();
    }

    fn is_under_way(&self) -> bool {
        self.get_ref().0.is_under_way()
    }

    fn taken(&self) -> u32 {
        self.get_ref().0.taken
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_its_client_has_no_room_for_is_under_way() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut client, mut stream) = (client.expect("connected"), Tcp::new(accepted.expect("accepted").0));
        assert!(!stream.is_under_way());
        let mut sent = 0;
        // Unconstrained, because it is the socket that is asked and not the task's budget.
        while let Poll::Ready(more) = tokio::task::unconstrained(std::future::poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut stream).poll_write(cx, &[0; 64 * 1024]))
        }))
        .await
        {
            sent += more.expect("open");
        }
        assert!(stream.is_under_way());
        stream.shutdown().await.expect("open");
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.expect("open");
        assert_eq!(read.len(), sent);
        drop(client);
        // Its own end confirms all that it has got.
        assert_eq!(stream.read(&mut [0]).await.expect("open"), 0);
        assert!(!stream.is_under_way());
    }
}
