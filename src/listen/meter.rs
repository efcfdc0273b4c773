//! Counts what moves on a client's connection, for the time-outs that ask for progress; and knows when nothing is there to read.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::listen::tcp::Client;

/// The readings.
#[derive(Debug, Default)]
pub struct Meter {
    read: Cell<u64>,
    /// Since when the socket has taken nothing of what there is to send; `None` while it does.
    blocked: Cell<Option<Instant>>,
    /// [`Client::taken`] when it was last asked.
    taken: Cell<u32>,
    /// Whether reading found nothing in this turn; `None` where nobody tells of turns. Who has told of one must tell of each: once
    /// it is `Some(true)`, nothing but [`Meter::begin_turn`] lets the stream be read again.
    dry: Cell<Option<bool>>,
}

impl Meter {
    /// A turn of the connection's task begins. Where turns are told of, reading that has found nothing finds nothing for the rest
    /// of one, and whoever asks again, as HTTP/2 does after each request, is told without a look: what comes meanwhile wakes the task.
    pub fn begin_turn(&self) {
        self.dry.set(Some(false));
    }

    /// Bytes received so far.
    pub fn read(&self) -> u64 {
        self.read.get()
    }

    /// Whether there is something to send that the other end has no room for.
    pub fn is_blocked(&self) -> bool {
        self.blocked.get().is_some()
    }

    /// For how long the other end has not taken anything we want to send; `None` while it does.
    pub fn blocked(&self) -> Option<Duration> {
        self.blocked.get().map(|since| since.elapsed())
    }

    /// `all` of a write that is ready only once nothing is left. Another may have gone no further than into what TLS holds, which
    /// has room for some more each time that a deadline has it tried again.
    fn note_write<T>(&self, outcome: &Poll<T>, taken: u32, all: bool) {
        let moved = self.taken.replace(taken) != taken;
        match (outcome, self.blocked.get()) {
            (Poll::Ready(_), Some(_)) if moved || all => self.blocked.set(None),
            (Poll::Pending, Some(_)) if moved => self.blocked.set(Some(Instant::now())),
            (Poll::Pending, None) => self.blocked.set(Some(Instant::now())),
            (Poll::Ready(_), Some(_) | None) | (Poll::Pending, Some(_)) => {}
        }
    }
}

/// A stream with a meter on it.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    meter: Rc<Meter>,
}

impl<S> Metered<S> {
    /// Puts a meter on `stream`.
    pub fn new(stream: S) -> (Self, Rc<Meter>) {
        let meter = Rc::new(Meter::default());
        (Self { stream, meter: Rc::clone(&meter) }, meter)
    }

    /// The stream below.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The same, read by [`Client::poll_read_first`].
    pub fn first(&mut self) -> First<'_, S> {
        First(self)
    }

    fn poll_read_with(
        &mut self,
        buf: &mut ReadBuf<'_>,
        poll: impl FnOnce(&mut S, &mut ReadBuf<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        let dry = &self.meter.dry;
        if dry.get() == Some(true) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = poll(&mut self.stream, buf);
        dry.set(dry.get().map(|_| read.is_pending()));
        ready!(read)?;
        self.meter.read.set(self.meter.read.get() + (buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_read_with(buf, |stream, buf| Pin::new(stream).poll_read(cx, buf))
    }
}

/// A stream with a meter on it that gives what came first.
pub struct First<'a, S>(&'a mut Metered<S>);

impl<S: Client> AsyncRead for First<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().0.poll_read_with(buf, |stream, buf| stream.poll_read_first(cx, buf))
    }
}

impl<S: Client> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.meter.note_write(&outcome, this.stream.taken(), false);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.meter.note_write(&outcome, this.stream.taken(), false);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        this.meter.note_write(&outcome, this.stream.taken(), true);
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.meter.note_write(&outcome, this.stream.taken(), true);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Counts how often it is asked for something to read.
    struct Asked<S>(S, u32);

    impl<S: AsyncRead + Unpin> AsyncRead for Asked<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1 += 1;
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    #[test]
    fn only_what_the_socket_takes_or_the_end_of_all_shows_that_there_is_room() {
        let meter = Meter::default();
        let since = || meter.blocked.get();
        meter.note_write(&Poll::Ready(()), 1, false);
        assert_eq!(since(), None);
        meter.note_write(&Poll::<()>::Pending, 1, true);
        let first = since();
        assert!(first.is_some());
        meter.note_write(&Poll::Ready(()), 1, false);
        meter.note_write(&Poll::<()>::Pending, 1, true);
        assert_eq!(since(), first, "TLS has taken it");
        meter.note_write(&Poll::<()>::Pending, 2, true);
        assert!(since() > first, "a part has left");
        meter.note_write(&Poll::Ready(()), 3, false);
        assert_eq!(since(), None);
        meter.note_write(&Poll::<()>::Pending, 3, false);
        meter.note_write(&Poll::Ready(()), 3, true);
        assert_eq!(since(), None, "nothing is left");
    }

    #[tokio::test]
    async fn what_is_dry_is_asked_once_a_turn_where_turns_are_told_of() {
        let (mut client, server) = tokio::io::duplex(64);
        let (mut stream, meter) = Metered::new(Asked(server, 0));
        let mut read = async || {
            let mut room = [0; 64];
            let mut buf = ReadBuf::new(&mut room);
            std::future::poll_fn(|cx| {
                let read = Pin::new(&mut stream).poll_read(cx, &mut buf).is_ready();
                Poll::Ready((read, stream.get_ref().1))
            })
            .await
        };
        assert_eq!((read().await, read().await), ((false, 1), (false, 2)));
        meter.begin_turn();
        assert_eq!((read().await, read().await), ((false, 3), (false, 3)));
        client.write_all(b"a").await.expect("there is room");
        assert_eq!(read().await, (false, 3));
        meter.begin_turn();
        assert_eq!((read().await, meter.read()), ((true, 4), 1));
        assert_eq!((read().await, read().await), ((false, 5), (false, 5)));
    }
}
