//! Bytes both ways between a client and a worker after a protocol switch. Idle tunnels hold no buffers.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::deadline::Deadline;
use crate::proxy::frames::{self, Frames};
use crate::scope::Scope;

/// Bytes moved at once.
const STEP: usize = 16 * 1024;
/// How long a goodbye to the client may take.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long client and worker have to end a WebSocket, once the client was told that edge ends: it holds up the next edge.
const CLOSING: Duration = Duration::from_secs(1);

/// How long a tunnel may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// While both directions are open.
    pub idle: Duration,
    /// Once one side has ended.
    pub half_closed: Duration,
    /// The worker's, once its client was gone; none where the end of its connection tells it that.
    pub parting: Option<Duration>,
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said so.
    Closed,
    /// Nothing moved for too long.
    Idle,
    /// Edge ends, and the client was told that, or of its worker's end.
    Told,
    /// Edge ended before the client could be told.
    Aborted,
    /// The worker is being replaced.
    Replaced,
    /// The client was gone.
    ClientGone(io::Error),
    /// The worker broke off.
    WorkerGone(io::Error),
}

/// What a tunnel carried.
#[derive(Debug)]
pub struct Relayed {
    /// Bytes from the client to the worker.
    pub to_worker: u64,
    /// Bytes from the worker to the client.
    pub to_client: u64,
    /// Why it ended.
    pub end: End,
}

/// Carries a WebSocket until both sides have ended, nothing moves for too long, `scope` drains, or the worker is `replaced`. A
/// client whose tunnel edge ends, or whose worker ends without a word, gets a Close frame where one fits between two frames.
///
/// At drain it gets that at once, or after the frame that is on its way to it, as nobody can come back to this process; its own
/// Close frame is passed on to the worker, which then ends.
pub async fn relay<C, W, R>(
    client: &mut C,
    worker: &mut W,
    deadline: &Deadline,
    patience: Patience,
    scope: &Scope,
    replaced: R,
) -> Relayed
where
    C: AsyncRead + AsyncWrite + Unpin,
    W: AsyncRead + AsyncWrite + Unpin,
    R: Future<Output = ()>,
{
    let mut up = Lane::new(None);
    let mut down = Lane::new(Some(Frames::default()));
    let (mut drained, mut aborted, mut replaced) =
        (pin!(scope.drained()), pin!(scope.aborted()), pin!(replaced));
    deadline.set(patience.idle);
    let (mut half_closed, mut closing) = (false, false);
    let end = poll_fn(|cx| {
        if aborted.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Aborted);
        }
        if replaced.as_mut().poll(cx).is_ready() {
            return Poll::Ready(End::Replaced);
        }
        if !down.parting && drained.as_mut().poll(cx).is_ready() {
            down.parting = true;
            deadline.set(patience.half_closed);
        }
        let before = (up.moved, down.moved, half_closed);
        match [up.poll(cx, client, worker), down.poll(cx, worker, client)] {
            [Poll::Ready(Err(Broken::Reader(error))), _] | [_, Poll::Ready(Err(Broken::Writer(error)))] => {
                return Poll::Ready(End::ClientGone(error));
            }
            [Poll::Ready(Err(Broken::Writer(error))), _] | [_, Poll::Ready(Err(Broken::Reader(error)))] => {
                return Poll::Ready(End::WorkerGone(error));
            }
            [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => return Poll::Ready(End::Closed),
            [Poll::Ready(Ok(())), Poll::Pending] | [Poll::Pending, Poll::Ready(Ok(()))] => half_closed = true,
            [Poll::Pending, Poll::Pending] => {}
        }
        if down.parting && down.is_closed() {
            // Once: whoever goes on talking does not stay for it.
            if !std::mem::replace(&mut closing, true) {
                deadline.set(CLOSING);
            }
        } else if down.parting {
            // What it says itself does not help.
            if down.moved != before.1 {
                deadline.set(patience.half_closed);
            }
        } else if (up.moved, down.moved, half_closed) != before {
            deadline.set(if half_closed { patience.half_closed } else { patience.idle });
        }
        deadline.poll_passed(cx).map(|()| match (down.parting, down.is_closed()) {
            (false, _) => End::Idle,
            (true, true) => End::Told,
            (true, false) => End::Aborted,
        })
    })
    .await;
    let gone = matches!(end, End::ClientGone(_));
    let end = match end {
        _ if down.told => End::Told,
        // It has the worker's Close frame, and need not wait for the end of the connection.
        End::ClientGone(_) if down.is_closed() && down.rest.is_empty() => End::Closed,
        end => end,
    };
    let goodbye = match end {
        End::Aborted | End::Idle => Some(frames::GOING_AWAY),
        // A killed worker resets its connection.
        End::WorkerGone(_) | End::Replaced => Some(frames::RESTART),
        End::Closed | End::Told | End::ClientGone(_) => None,
    };
    if let Some(code) = goodbye.filter(|_| down.takes_close()) {
        farewell(client, code, deadline).await;
    }
    if let Some(patience) = patience.parting.filter(|_| gone) {
        tokio::select! {
            () = part(&mut up, client, worker, deadline, patience) => {}
            () = &mut aborted => {}
            () = &mut replaced => {}
        }
    }
    Relayed { to_worker: up.moved, to_client: down.moved, end }
}

/// Tells the client that edge ends. Its connection closes next whether or not this arrives.
async fn farewell<C: AsyncWrite + Unpin>(client: &mut C, code: u16, deadline: &Deadline) {
    deadline.set(FAREWELL);
    let said = async {
        client.write_all(&frames::close(code)).await?;
        client.shutdown().await
    };
    tokio::select! {
        result = said => {
            if let Err(error) = result {
                tracing::debug!(%error, "a client was gone before its WebSocket was closed");
            }
        }
        () = deadline.passed() => {}
    }
}

/// Tells the worker that nothing more comes and lets it end, for a while: a stream of HTTP/2 that is given up drops what the worker
/// has not been sent yet.
async fn part<C, W>(up: &mut Lane, client: &mut C, worker: &mut W, deadline: &Deadline, patience: Duration)
where
    C: AsyncRead + AsyncWrite + Unpin,
    W: AsyncRead + AsyncWrite + Unpin,
{
    up.ended = true;
    deadline.set(patience);
    poll_fn(|cx| {
        if let Poll::Ready(Err(_)) = up.poll(cx, client, worker) {
            return Poll::Ready(());
        }
        let mut scratch = [MaybeUninit::uninit(); STEP];
        loop {
            let mut read = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *worker).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        deadline.poll_passed(cx)
    })
    .await;
}

/// Which end of a direction failed.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

/// One direction.
struct Lane {
    /// What was read and could not be written yet; empty, and without memory, while the reader is the slower side.
    rest: Vec<u8>,
    written: usize,
    ended: bool,
    shut: bool,
    unflushed: bool,
    moved: u64,
    /// Follows the frames towards a client.
    frames: Option<Frames>,
    /// The client is to be told that edge ends.
    parting: bool,
    /// It was, and nothing may follow that.
    told: bool,
}

impl Lane {
    fn new(frames: Option<Frames>) -> Self {
        Self {
            rest: Vec::new(),
            written: 0,
            ended: false,
            shut: false,
            unflushed: false,
            moved: 0,
            frames,
            parting: false,
            told: false,
        }
    }

    fn is_closed(&self) -> bool {
        self.frames.as_ref().is_some_and(Frames::is_closed)
    }

    /// Has the client told next, where it is to be told and can be.
    fn tell(&mut self) -> bool {
        let tells = self.parting && self.takes_close();
        if tells {
            self.say(frames::GOING_AWAY);
            self.told = true;
        }
        tells
    }

    fn say(&mut self, code: u16) {
        self.rest = frames::close(code).to_vec();
        if let Some(frames) = &mut self.frames {
            frames.feed(&self.rest);
        }
    }

    fn takes_close(&self) -> bool {
        self.rest.is_empty() && !self.ended && self.frames.as_ref().is_some_and(Frames::takes_close)
    }

    /// Moves what can be moved; ready once the reader has ended and the writer was told.
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // A socket's reads and writes take from the task's budget, and a stream of HTTP/2 has no more than came before: so this
        // ends however fast both sides are.
        while !self.shut {
            ready!(self.poll_rest(cx, writer)).map_err(Broken::Writer)?;
            if self.tell() {
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Broken::Writer)?;
                self.shut = true;
                break;
            }
            let mut scratch = [MaybeUninit::uninit(); STEP];
            let mut read = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut *reader).poll_read(cx, &mut read) {
                Poll::Ready(result) => result.map_err(Broken::Reader)?,
                Poll::Pending => {
                    if self.unflushed {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Broken::Writer)?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
            self.take(cx, read.filled(), writer).map_err(Broken::Writer)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what was just read, and keeps what the writer does not take at once.
    fn take<W>(&mut self, cx: &mut Context<'_>, bytes: &[u8], writer: &mut W) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
    {
        if bytes.is_empty() {
            let unsaid = self.frames.as_ref().is_some_and(Frames::takes_close);
            self.ended = true;
            if unsaid {
                self.say(frames::RESTART);
            }
            return Ok(());
        }
        if self.told {
            return Ok(());
        }
        let bytes = match &mut self.frames {
            Some(frames) if self.parting => &bytes[..frames.finish(bytes)],
            Some(frames) => {
                frames.feed(bytes);
                bytes
            }
            None => bytes,
        };
        let written = match Pin::new(writer).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        self.moved += written as u64;
        self.unflushed = true;
        if written < bytes.len() {
            self.rest = bytes[written..].to_vec();
        }
        Ok(())
    }

    fn poll_rest<W>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>>
    where
        W: AsyncWrite + Unpin,
    {
        while self.written < self.rest.len() {
            let written = ready!(Pin::new(&mut *writer).poll_write(cx, &self.rest[self.written..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
            self.moved += written as u64;
            self.unflushed = true;
        }
        if self.written > 0 {
            (self.rest, self.written) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
