//! HTTP/2 with a client under the connection's time-outs, closed gracefully at drain.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Handshake};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::limits::Limits;
use crate::deadline::Spare;
use crate::listen::http1::UNUSED_AT_DRAIN;
use crate::listen::meter::Metered;
use crate::listen::stage::{Stage, Step};
use crate::listen::standby::Standby;
use crate::listen::stream::{Stream, Streams};
use crate::listen::watch::{Seen, Verdict, Watch};
use crate::proxy::conn::ConnInfo;
use crate::proxy::plane::Plane;
use crate::scope::Scope;

/// How long an aborted connection stays for its WebSockets, which say why they end.
const FAREWELL: Duration = Duration::from_millis(700);

/// Bytes of an answer that may wait for the client's socket. What its windows allow says nothing of what it reads.
const UNSENT: usize = 64 * 1024;

/// Serves HTTP/2 on `stream` until it ends. No `async fn`: its future would keep room for the stream that has moved on.
pub fn serve_http2<S>(
    stream: S,
    conn: Rc<ConnInfo>,
    plane: Rc<Plane>,
    stage: Stage,
    (scope, standby): (Scope, Standby<Stream>),
) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream, meter) = Metered::new(stream);
    let deadline = plane.reach.deadlines.deadline();
    let limits = plane.reach.limits;
    let mut connection = Connection::new(stream, &limits);
    let (peer, timeouts) = (conn.peer, plane.reach.timeouts);
    let streams = Streams::new(Rc::clone(&conn), plane, scope, standby);
    let (mut watch, first) = Watch::new(true, timeouts, &limits, deadline.now());
    deadline.set(first);
    let mut parting = false;
    // At drain: what had been received when it was looked last.
    let mut drained: Option<u64> = None;
    let mut poll = move |cx: &mut Context<'_>| {
        let step = stage.step();
        if step == Step::Aborting {
            if !std::mem::replace(&mut parting, true) {
                deadline.set(FAREWELL);
            }
            if let Poll::Ready(outcome) = connection.poll(cx, &streams) {
                return Poll::Ready(outcome);
            }
            // What the last one said is written by now.
            return if streams.any_tunnel() { deadline.poll_passed(cx).map(Ok) } else { Poll::Ready(Ok(())) };
        }
        if drained.is_none() && step == Step::Draining {
            drained = Some(meter.read());
            connection.finish();
            if conn.open.get() == 0 {
                // A request that is on its way gets this long, and a client that is gone without a word no longer.
                deadline.set(UNUSED_AT_DRAIN);
            }
        }
        loop {
            if let Poll::Ready(outcome) = connection.poll(cx, &streams) {
                return Poll::Ready(outcome);
            }
            if !meter.is_blocked() {
                streams.written();
            }
            let seen = Seen { requests: conn.requests.get(), read: meter.read(), begun: false };
            if let Some(next) = watch.observe(conn.open.get(), seen) {
                let spare = if watch.is_idle() { Spare::Idle } else { Spare::No };
                let at_drain = drained.is_some() && watch.is_idle();
                deadline.set_spare(if at_drain { UNUSED_AT_DRAIN } else { next }, spare);
            }
            if !connection.finishing && watch.is_over(seen.requests, deadline.now()) {
                connection.finish();
                continue;
            }
            if deadline.poll_passed(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.passed(meter.blocked()) {
                Verdict::Again(after) => deadline.set(after),
                Verdict::HeadTooSlow | Verdict::Stalled => return Poll::Ready(Ok(())),
                // The rest of an answer is still taken, as its windows show.
                Verdict::Close if drained.is_some_and(|before| before != seen.read) => {
                    drained = Some(seen.read);
                    deadline.set(UNUSED_AT_DRAIN);
                }
                // A connection told to finish and still there has had its time.
                Verdict::Close if connection.finishing => return Poll::Ready(Ok(())),
                Verdict::Close => {
                    connection.finish();
                    deadline.set(timeouts.headers);
                }
            }
        }
    };
    async move {
        if let Err(error) = poll_fn(&mut poll).await {
            tracing::debug!(client = %peer, error = %crate::report::Report(&error), "connection ended");
        }
    }
}

/// A connection, and before it the preface and the settings of both sides.
struct Connection<S> {
    phase: Phase<S>,
    /// It takes no more requests.
    finishing: bool,
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
            .handshake(stream);
        Self { phase: Phase::Opening(opening), finishing: false }
    }

    /// Lets it take no more requests, and end after those it has.
    fn finish(&mut self) {
        match &mut self.phase {
            Phase::Open(open) if !self.finishing => open.graceful_shutdown(),
            Phase::Open(_) | Phase::Opening(_) => {}
        }
        self.finishing = true;
    }

    /// Moves what can be moved; ready at the end.
    fn poll(&mut self, cx: &mut Context<'_>, streams: &Streams) -> Poll<Result<(), h2::Error>> {
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
                        let (request, respond) = accepted?;
                        streams.begin(request, respond);
                    }
                    None => return Poll::Ready(Ok(())),
                },
            }
        }
    }
}
