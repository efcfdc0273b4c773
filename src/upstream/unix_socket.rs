//! A unix socket to a worker, watched for what comes, and for room to write only once that was missing.
//!
//! The kernel tells of room each time the worker reads what it was sent. Whoever listens for that from the beginning is woken
//! once more for every request, in vain: before its answer, and where nothing else is to be done, from sleep.
#![expect(unsafe_code, reason = "descriptors that stay the same, and memory that the kernel has written")]

use std::io::{self, IoSlice, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::worker::unread;

/// First and longest pause while a worker's backlog is full.
const BACKLOG_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// A connected socket. Both of its directions must be polled by the same task.
#[derive(Debug)]
pub(super) struct UnixSocket {
    /// `None` once the system would not watch it any more.
    watched: Option<AsyncFd<UnixStream>>,
    /// It is watched for room, too.
    for_room: bool,
}

impl UnixSocket {
    /// Connects. A non-blocking connect does not wait for room in the backlog but fails, so the waiting is done here.
    /// Cancel-safe.
    pub(super) async fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let (mut pause, longest) = BACKLOG_PAUSE;
        loop {
            match rustix::net::connect(&socket, &address) {
                Err(Errno::AGAIN) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
                connected => {
                    connected?;
                    return Self::new(UnixStream::from(socket));
                }
            }
        }
    }

    /// `socket` does not block.
    fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self { watched: Some(watch(socket, Interest::READABLE)?), for_room: false })
    }

    fn watched(&self) -> io::Result<&AsyncFd<UnixStream>> {
        self.watched.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Reads what is here. No system call where nothing was heard of.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |socket: &UnixStream| Ok(rustix::net::recv(socket, &mut *buffer, RecvFlags::empty())?.1);
        self.watched()?.try_io(Interest::READABLE, read)
    }

    /// Bytes that the worker has not read.
    pub(super) fn unread(&self) -> io::Result<u64> {
        unread::of_socket(self.watched()?.get_ref())
    }

    /// Writes with `write`, which wants to write `wanted` bytes.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        if !self.for_room {
            match write(self.watched()?.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.watch_for_room(cx)?,
                written => return Poll::Ready(written),
            }
        }
        loop {
            let mut room = ready!(self.watched()?.poll_write_ready(cx))?;
            match write(room.get_inner()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => room.clear_ready(),
                written => {
                    if matches!(written, Ok(count) if count < wanted) {
                        room.clear_ready();
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }

    /// From now on it is also watched for room. A worker that once took less than it was sent may do so again.
    fn watch_for_room(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Some(watched) = self.watched.take() {
            self.watched = Some(watch(watched.into_inner(), Interest::READABLE | Interest::WRITABLE)?);
            self.for_room = true;
        }
        // The runtime has forgotten who waits for what comes.
        cx.waker().wake_by_ref();
        Ok(())
    }
}

fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: the descriptor is owned by the registration, which this file neither gives away nor lets change.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(Into::into)
}

impl AsyncRead for UnixSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = self.watched()?;
        loop {
            let mut here = ready!(watched.poll_read_ready(cx))?;
            let wanted = buffer.remaining();
            // SAFETY: nothing that was written before is made uninitialised: the kernel only writes.
            let room = unsafe { buffer.unfilled_mut() };
            match rustix::net::recv(watched.get_ref(), room, RecvFlags::empty()) {
                Ok((_, count)) => {
                    // A read that does not fill its room has emptied the socket.
                    if (1..wanted).contains(&count) {
                        here.clear_ready();
                    }
                    // SAFETY: the kernel has written that many bytes at the front.
                    unsafe { buffer.assume_init(count) };
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => here.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for UnixSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, data.len(), |mut socket| socket.write(data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = data.iter().map(|slice| slice.len()).sum();
        self.poll_write_with(cx, wanted, |mut socket| socket.write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.watched()?.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixListener;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    /// Both ends of a connection, the worker's without blocking.
    async fn ends() -> (UnixSocket, tokio::net::UnixStream) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("worker.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let near = UnixSocket::connect(&path).await.expect("connected");
        (near, listener.accept().await.expect("accepted").0)
    }

    #[tokio::test]
    async fn what_the_worker_has_no_room_for_waits_and_what_comes_meanwhile_is_heard() {
        let (mut near, mut far) = ends().await;
        let piece = [7; 64 * 1024];
        let (mut sent, mut wants_room) = (0, false);
        let answer = poll_fn(|cx| {
            while let Poll::Ready(written) = Pin::new(&mut near).poll_write(cx, &piece) {
                sent += written.expect("it takes bytes");
            }
            if !std::mem::replace(&mut wants_room, true) {
                // The other end speaks only now: after a read was begun in vain.
                let mut room = [0; 8];
                assert!(Pin::new(&mut near).poll_read(cx, &mut ReadBuf::new(&mut room)).is_pending());
                assert_eq!(far.try_write(b"early").expect("there is room"), 5);
            }
            let mut room = [0; 8];
            let mut heard = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut near).poll_read(cx, &mut heard)).expect("read");
            Poll::Ready(heard.filled().to_vec())
        })
        .await;
        assert_eq!(answer, b"early");
        assert!(near.for_room && near.unread().expect("asked") > 0);

        let more = async {
            for _ in 0..16 {
                near.write_all(&piece).await.expect("there is room again");
                sent += piece.len();
            }
            near.shutdown().await.expect("ended");
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(far.read_to_end(&mut received), more);
        read.expect("read");
        assert_eq!(received.len(), sent);
    }

    #[tokio::test]
    async fn an_idle_socket_is_not_asked_until_something_was_heard() {
        let (mut near, mut far) = ends().await;
        let would_block = |near: &UnixSocket| matches!(near.try_read(&mut [0; 8]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        assert!(would_block(&near));
        near.write_all(b"ask").await.expect("sent");
        far.read_exact(&mut [0; 3]).await.expect("received");
        far.write_all(b"answer").await.expect("answered");
        assert_eq!(near.read(&mut [0; 64]).await.expect("read"), 6);
        assert!(would_block(&near) && !near.for_room);
        drop(far);
        assert_eq!(near.read(&mut [0; 64]).await.expect("read"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_backlog_is_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("worker.sock");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
        rustix::net::bind(&socket, &SocketAddrUnix::new(&path).expect("an address")).expect("bound");
        rustix::net::listen(&socket, 0).expect("listening");
        let listener = UnixListener::from(socket);
        let _first = UnixSocket::connect(&path).await.expect("connected");
        let begun = Instant::now();
        let second = UnixSocket::connect(&path);
        let accepting = async {
            tokio::time::sleep(BACKLOG_PAUSE.0 / 2).await;
            listener.accept().expect("the first")
        };
        let (second, _accepted) = tokio::join!(second, accepting);
        assert!(second.is_ok() && begun.elapsed() >= BACKLOG_PAUSE.0);
        assert!(UnixSocket::connect(&dir.path().join("none")).await.is_err());
    }
}
