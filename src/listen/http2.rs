//! HTTP/2 with a client: hyper's server under the connection's time-outs, closed gracefully at drain.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::deadline::{Deadlines, Spare};
use crate::listen::http1::UNUSED_AT_DRAIN;
use crate::listen::meter::Metered;
use crate::listen::stage::{Stage, Step};
use crate::listen::watch::{Seen, Verdict, Watch};
use crate::proxy::conn::{ConnInfo, Turn};
use crate::proxy::handle::handle;
use crate::proxy::plane::Plane;
use crate::scope::Scope;
use crate::upstream::client_body::{ClientBody, ReadOn};

/// Serves HTTP/2 on `stream` until it ends.
pub async fn serve_http2<S>(stream: S, conn: Rc<ConnInfo>, plane: Rc<Plane>, stage: Stage, scope: Scope)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream, meter) = Metered::new(stream);
    let deadline = plane.reach.deadlines.deadline();
    let service = service(&conn, &plane);
    let limits = plane.reach.limits;
    let mut connection = Box::pin(
        http2::Builder::new(Streams::new(&conn, &plane, &scope))
            .max_concurrent_streams(limits.streams)
            .initial_stream_window_size(limits.window)
            .initial_connection_window_size(limits.connection_window)
            .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
            .serve_connection(TokioIo::new(stream), service_fn(service)),
    );
    let timeouts = plane.reach.timeouts;
    let (mut watch, first) = Watch::new(true, timeouts, &limits, deadline.now());
    deadline.set(first);
    let mut finishing = false;
    let ended = poll_fn(|cx: &mut Context<'_>| {
        let step = stage.step();
        if step == Step::Aborting {
            return Poll::Ready(Ok(()));
        }
        if !finishing && step == Step::Draining {
            finishing = true;
            connection.as_mut().graceful_shutdown();
            if meter.read() == 0 {
                // Browsers open connections they may never use: a request that is on its way gets this long.
                deadline.set(UNUSED_AT_DRAIN);
            }
        }
        loop {
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            let seen = Seen { requests: conn.requests.get(), read: meter.read() };
            if let Some(next) = watch.observe(conn.open.get(), seen) {
                let spare = if watch.is_idle() { Spare::Idle } else { Spare::No };
                deadline.set_spare(next, spare);
            }
            if !finishing && watch.is_over(seen.requests, deadline.now()) {
                finishing = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            if deadline.poll_passed(cx).is_pending() {
                return Poll::Pending;
            }
            match watch.passed(meter.blocked()) {
                Verdict::Again(after) => deadline.set(after),
                Verdict::HeadTooSlow | Verdict::Stalled => return Poll::Ready(Ok(())),
                // A connection told to finish and still there has had its time.
                Verdict::Close if finishing => return Poll::Ready(Ok(())),
                Verdict::Close => {
                    finishing = true;
                    connection.as_mut().graceful_shutdown();
                    deadline.set(timeouts.headers);
                }
            }
        }
    })
    .await;
    if let Err(error) = ended {
        tracing::debug!(client = %conn.peer, error = %crate::report::Report(&error), "connection ended");
    }
}

/// Runs the streams of an HTTP/2 connection, and resets one whose answer the client does not take: the connection's own
/// time-out sees a client that takes nothing at all, but flow control lets it take one answer and leave another, which would
/// hold its worker for ever.
#[derive(Clone)]
struct Streams {
    scope: Scope,
    turn: Rc<Cell<Turn>>,
    deadlines: Deadlines,
    patience: Duration,
}

impl Streams {
    fn new(conn: &ConnInfo, plane: &Plane, scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            turn: Rc::clone(&conn.turn),
            deadlines: plane.reach.deadlines.clone(),
            patience: plane.reach.timeouts.write,
        }
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let (turn, deadline, patience) = (Rc::clone(&self.turn), self.deadlines.deadline(), self.patience);
        drop(self.scope.spawn(async move {
            let mut stream = pin!(stream);
            poll_fn(|cx| {
                // Streams of one connection are polled one after the other, so what is set meanwhile is this one's.
                turn.set(Turn::Unasked);
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                match turn.get() {
                    Turn::Client => deadline.set(patience),
                    Turn::Worker => deadline.clear(),
                    Turn::Unasked | Turn::Over => {}
                }
                let passed = deadline.poll_passed(cx);
                if passed.is_ready() {
                    turn.set(Turn::Over);
                }
                passed
            })
            .await;
        }));
    }
}

type Answer = Result<http::Response<crate::proxy::body::Body>, Infallible>;

fn service(
    conn: &Rc<ConnInfo>,
    plane: &Rc<Plane>,
) -> impl Fn(http::Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer>>> + 'static {
    let (conn, plane) = (Rc::clone(conn), Rc::clone(plane));
    move |request| {
        let (conn, plane) = (Rc::clone(&conn), Rc::clone(&plane));
        // Boxed, so that an idle connection does not hold room for a request.
        Box::pin(async move {
            let (parts, incoming) = request.into_parts();
            let read_on = ReadOn { tasks: plane.tunnels.clone(), deadlines: plane.reach.deadlines.clone() };
            let reply = handle(parts, ClientBody::new(incoming, Some(read_on)), &conn, &plane).await;
            // A handshake of HTTP/1.1 is none in HTTP/2, so there is no switch.
            Ok(reply.response)
        })
    }
}
