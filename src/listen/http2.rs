//! HTTP/2 with a client under the connection's time-outs, closed gracefully at drain.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Handshake};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::limits::{Limits, Timeouts};
use crate::deadline::{Deadline, Spare};
use crate::listen::complaint::Complaints;
use crate::listen::http1::UNUSED_AT_DRAIN;
use crate::listen::meter::{Meter, Metered};
use crate::listen::stage::{Stage, Step};
use crate::listen::standby::Standby;
use crate::listen::stream::{Stream, Streams};
use crate::listen::tcp::Client;
use crate::listen::watch::{Seen, Verdict, Watch};
use crate::proxy::conn::ConnInfo;
use crate::proxy::plane::Plane;
use crate::scope::Scope;

/// How long an aborted connection stays for its WebSockets, which say why they end.
const FAREWELL: Duration = Duration::from_millis(700);

/// Bytes of an answer that may wait for the client's socket. What its windows allow says nothing of what it reads.
const UNSENT: usize = 64 * 1024;

/// How many requests that came with their cancellation are put up with at once: a browser that is sent elsewhere cancels all that
/// it had open, which may arrive together.
const CANCELLED: usize = 100;

/// RFC 9113 §6.9.1.
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

/// How many more requests a client may take back than it lets be answered.
const TAKEN_BACK: u64 = 1000;

/// Serves HTTP/2 on `stream` until it ends. No `async fn`: its future would keep room for the stream that has moved on.
pub fn serve_http2<S>(
    stream: S,
    conn: Rc<ConnInfo>,
    plane: Rc<Plane>,
    stage: Stage,
    tasks: (Scope, Standby<Stream>),
    complaints: Rc<Complaints>,
) -> impl Future<Output = ()>
where
    S: Client + 'static,
{
    let mut serving = Serving::new(stream, conn, plane, stage, tasks);
    async move {
        if let Err(error) = poll_fn(|cx| serving.poll(cx)).await {
            complaints.tell_ended(serving.conn.client_ip(), &error);
        }
    }
}

/// A connection under its time-outs.
struct Serving<S> {
    connection: Connection<Metered<S>>,
    streams: Streams,
    conn: Rc<ConnInfo>,
    meter: Rc<Meter>,
    stage: Stage,
    timeouts: Timeouts,
    watch: Watch,
    deadline: Deadline,
    /// It is aborted, and stays for its WebSockets.
    parting: bool,
    /// At drain: what had been received when it was looked last.
    drained: Option<u64>,
}

impl<S: Client> Serving<S> {
    fn new(
        stream: S,
        conn: Rc<ConnInfo>,
        plane: Rc<Plane>,
        stage: Stage,
        (scope, standby): (Scope, Standby<Stream>),
    ) -> Self {
        let (stream, meter) = Metered::new(stream);
        let (deadline, limits) = (plane.reach.deadlines.deadline(), &plane.reach.limits);
        let timeouts = plane.reach.timeouts;
        let (watch, first) = Watch::new(true, timeouts, limits, deadline.now());
        deadline.set(first);
        let connection = Connection::new(stream, limits);
        let streams = Streams::new(Rc::clone(&conn), plane, scope, standby);
        let (parting, drained) = (false, None);
        Self { connection, streams, conn, meter, stage, timeouts, watch, deadline, parting, drained }
    }

    /// One turn. The connection is polled nowhere but below here: outside a turn that has begun it might never read again.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        self.meter.begin_turn();
        match self.stage.step() {
            Step::Aborting => return self.poll_parting(cx),
            Step::Draining if self.drained.is_none() => self.drain(),
            Step::Draining | Step::Serving => {}
        }
        loop {
            let moved = self.advance(cx);
            if moved.is_ready() {
                return moved;
            }
            let read = self.observe();
            if !self.connection.finishing && self.watch.is_over(self.conn.requests.get(), self.deadline.now())
            {
                self.connection.finish();
                continue;
            }
            ready!(self.deadline.poll_passed(cx));
            if self.is_time_over(read) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Moves what can be moved, and tells the answers where all of it has left.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let moved = self.connection.poll(cx, &self.streams, &self.conn);
        self.connection.make_room(self.conn.unread.count(cx));
        if !self.meter.is_blocked() && !matches!(moved, Poll::Ready(Err(_))) {
            self.streams.written();
        }
        moved
    }

    /// At an abort: what is on its way gets one turn, and WebSockets time to say why they end.
    fn poll_parting(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if !std::mem::replace(&mut self.parting, true) {
            self.deadline.set(FAREWELL);
        }
        if let Poll::Ready(outcome) = self.advance(cx) {
            return Poll::Ready(outcome);
        }
        // What the last one said is written by now.
        if self.streams.any_tunnel() { self.deadline.poll_passed(cx).map(Ok) } else { Poll::Ready(Ok(())) }
    }

    fn drain(&mut self) {
        self.drained = Some(self.meter.read());
        self.connection.finish();
        if self.conn.open.get() == 0 {
            // A request that is on its way gets this long, and a client that is gone without a word no longer.
            self.deadline.set(UNUSED_AT_DRAIN);
        }
    }

    /// Tells the watch what has moved, and sets the deadline it asks for; returned is what was received so far.
    fn observe(&mut self) -> u64 {
        let seen = Seen { requests: self.conn.requests.get(), begun: false };
        if let Some(next) = self.watch.observe(self.conn.open.get(), seen) {
            let idle = self.watch.is_idle();
            let next = if self.drained.is_some() && idle { UNUSED_AT_DRAIN } else { next };
            self.deadline.set_spare(next, if idle { Spare::Idle } else { Spare::No });
        }
        self.meter.read()
    }

    /// What a passed deadline means: whether the connection ends at once.
    fn is_time_over(&mut self, read: u64) -> bool {
        match self.watch.passed(self.meter.blocked()) {
            Verdict::Again(after) => self.deadline.set(after),
            Verdict::HeadTooSlow | Verdict::Stalled => return true,
            // The rest of an answer is still taken, as its windows show.
            Verdict::Close if self.drained.is_some_and(|before| before != read) => {
                self.drained = Some(read);
                self.deadline.set(UNUSED_AT_DRAIN);
            }
            // A connection told to finish and still there has had its time.
            Verdict::Close if self.connection.finishing => return true,
            Verdict::Close => {
                self.connection.finish();
                self.deadline.set(self.timeouts.headers);
            }
        }
        false
    }
}

/// A connection, and before it the preface and the settings of both sides.
struct Connection<S> {
    phase: Phase<S>,
    /// It takes no more requests.
    finishing: bool,
    /// It ends for what its client sent.
    flooded: bool,
    /// What its client may send ahead on one stream, and on all.
    windows: (u32, u32),
    /// Bodies for which there is more room than that.
    unread: u32,
}

enum Phase<S> {
    Opening(Handshake<S, Bytes>),
    Open(h2::server::Connection<S, Bytes>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, limits: &Limits) -> Self {
        let opening = Builder::new()
            .enable_connect_protocol()
            .max_concurrent_streams(limits.streams)
            .initial_window_size(limits.window)
            .initial_connection_window_size(limits.connection_window)
            .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
            .max_send_buffer_size(UNSENT)
            .max_pending_accept_reset_streams(CANCELLED.max(limits.streams as usize))
            .handshake(stream);
        let windows = (limits.window, limits.connection_window);
        Self { phase: Phase::Opening(opening), finishing: false, flooded: false, windows, unread: 0 }
    }

    /// Lets it take no more requests, and end after those it has.
    fn finish(&mut self) {
        match &mut self.phase {
            Phase::Open(open) if !self.finishing => open.graceful_shutdown(),
            Phase::Open(_) | Phase::Opening(_) => {}
        }
        self.finishing = true;
    }

    /// Gives so many bodies that lie unread room of their own, beside what there is for all others.
    fn make_room(&mut self, unread: u32) {
        if let Phase::Open(open) = &mut self.phase
            && self.unread != unread
        {
            let (each, all) = self.windows;
            open.set_target_window_size(each.saturating_mul(unread).saturating_add(all).min(LARGEST_WINDOW));
            self.unread = unread;
        }
    }

    /// Moves what can be moved; ready at the end.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        streams: &Streams,
        conn: &ConnInfo,
    ) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.phase {
                Phase::Opening(opening) => {
                    let mut open = ready!(Pin::new(opening).poll(cx))?;
                    if self.finishing {
                        open.graceful_shutdown();
                    }
                    self.phase = Phase::Open(open);
                }
                Phase::Open(open) => match ready!(open.poll_accept(cx)) {
                    Some(accepted) => {
                        // All that came, in one turn: meanwhile heads that nobody has reckoned would wait on each connection.
                        let (request, respond) = accepted?;
                        streams.begin(request, respond);
                        if 2 * conn.taken_back.get() > TAKEN_BACK + conn.requests.get() {
                            open.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                            self.flooded = true;
                        }
                    }
                    None if self.flooded => return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into())),
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests;
