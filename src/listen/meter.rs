//! Counts what moves on a client's connection, for the time-outs that ask for progress.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The readings. Written by the connection's own thread; atomics only because hyper wants upgradeable streams to be `Send`.
#[derive(Debug)]
pub struct Meter {
    started: Instant,
    read: AtomicU64,
    /// Milliseconds after `started` at which writing first found no room, plus one; 0 while there is room.
    blocked: AtomicU64,
}

impl Meter {
    fn new() -> Arc<Self> {
        Arc::new(Self { started: Instant::now(), read: AtomicU64::new(0), blocked: AtomicU64::new(0) })
    }

    /// Bytes received so far.
    pub fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// For how long the other end has not taken anything we want to send; `None` while it does.
    pub fn blocked(&self) -> Option<Duration> {
        let since = self.blocked.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    fn note_write<T>(&self, outcome: &Poll<T>) {
        let blocked = self.blocked.load(Ordering::Relaxed);
        if outcome.is_ready() {
            if blocked != 0 {
                self.blocked.store(0, Ordering::Relaxed);
            }
        } else if blocked == 0 {
            let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
            self.blocked.store(now + 1, Ordering::Relaxed);
        }
    }
}

/// A stream with a meter on it.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    /// Puts a meter on `stream`.
    pub fn new(stream: S) -> (Self, Arc<Meter>) {
        let meter = Meter::new();
        (Self { stream, meter: Arc::clone(&meter) }, meter)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.meter.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.meter.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.meter.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx);
        this.meter.note_write(&outcome);
        outcome
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.meter.note_write(&outcome);
        outcome
    }
}
