//! HTTP/2 with a client: hyper's server under the connection's time-outs, closed gracefully at drain. A stream may become a
//! WebSocket (RFC 8441).

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Method;
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::boxed::boxed;
use crate::deadline::{Deadlines, Spare};
use crate::listen::http1::UNUSED_AT_DRAIN;
use crate::listen::meter::Metered;
use crate::listen::stage::{Stage, Step};
use crate::listen::watch::{Seen, Verdict, Watch};
use crate::proxy::conn::{ConnInfo, Turn};
use crate::proxy::handle::handle;
use crate::proxy::plane::Plane;
use crate::proxy::target::Extended;
use crate::proxy::upgrade::Switch;
use crate::scope::Scope;
use crate::upstream::client_body::{ClientBody, ReadOn};

/// How long an aborted connection stays for its WebSockets, which say why they end.
const FAREWELL: Duration = Duration::from_millis(700);

/// Serves HTTP/2 on `stream` until it ends.
pub async fn serve_http2<S>(stream: S, conn: Rc<ConnInfo>, plane: Rc<Plane>, stage: Stage, scope: Scope)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (stream, meter) = Metered::new(stream);
    let deadline = plane.reach.deadlines.deadline();
    let tunnels = Tunnels::default();
    let service = service(&conn, &plane, &tunnels);
    let limits = plane.reach.limits;
    let mut connection = Box::pin(
        http2::Builder::new(Streams::new(&conn, &plane, &scope))
            .enable_connect_protocol()
            .max_concurrent_streams(limits.streams)
            .initial_stream_window_size(limits.window)
            .initial_connection_window_size(limits.connection_window)
            .max_header_list_size(u32::try_from(limits.head_size).unwrap_or(u32::MAX))
            .serve_connection(TokioIo::new(stream), service_fn(service)),
    );
    let timeouts = plane.reach.timeouts;
    let (mut watch, first) = Watch::new(true, timeouts, &limits, deadline.now());
    deadline.set(first);
    let (mut finishing, mut parting) = (false, false);
    // At drain: what had been received when it was looked last.
    let mut drained: Option<u64> = None;
    let ended = poll_fn(|cx: &mut Context<'_>| {
        let step = stage.step();
        if step == Step::Aborting {
            if tunnels.none_open() && !parting {
                return Poll::Ready(Ok(()));
            }
            if !std::mem::replace(&mut parting, true) {
                deadline.set(FAREWELL);
            }
            if let Poll::Ready(outcome) = connection.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            // What the last one said is written by now.
            return if tunnels.none_open() { Poll::Ready(Ok(())) } else { deadline.poll_passed(cx).map(Ok) };
        }
        if drained.is_none() && step == Step::Draining {
            drained = Some(meter.read());
            if !std::mem::replace(&mut finishing, true) {
                connection.as_mut().graceful_shutdown();
            }
            if conn.open.get() == 0 {
                // A request that is on its way gets this long, and a client that is gone without a word no longer.
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
                let at_drain = drained.is_some() && watch.is_idle();
                deadline.set_spare(if at_drain { UNUSED_AT_DRAIN } else { next }, spare);
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
                // The rest of an answer is still taken, as its windows show.
                Verdict::Close if drained.is_some_and(|before| before != seen.read) => {
                    drained = Some(seen.read);
                    deadline.set(UNUSED_AT_DRAIN);
                }
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
        // Boxed here, because a task is moved several times before it is where it stays.
        let mut stream = Box::pin(stream);
        drop(self.scope.spawn(async move {
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

/// How many streams of a connection are WebSockets. Clones are handles to the same.
#[derive(Clone, Default)]
struct Tunnels(Rc<Cell<u32>>);

impl Tunnels {
    fn none_open(&self) -> bool {
        self.0.get() == 0
    }

    /// Carries what `switch` stands for, once the client's 200 is out.
    async fn carry(self, client: OnUpgrade, switch: Switch, plane: Rc<Plane>) {
        let _open = Open::among(&self);
        match client.await {
            Ok(client) => switch.carry(&mut TokioIo::new(client), &plane).await,
            Err(_) => switch.abandon("the client was gone before the WebSocket was open"),
        }
    }
}

/// Counts one until it is dropped.
struct Open(Tunnels);

impl Open {
    fn among(tunnels: &Tunnels) -> Self {
        tunnels.0.set(tunnels.0.get() + 1);
        Self(tunnels.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// The client's end of what an extended CONNECT asks for.
fn connected(request: &mut http::Request<Incoming>) -> Option<OnUpgrade> {
    if request.method() != Method::CONNECT {
        return None;
    }
    if let Some(protocol) = request.extensions_mut().remove::<Protocol>() {
        let websocket = protocol.as_str() == "websocket";
        request.extensions_mut().insert(if websocket { Extended::WebSocket } else { Extended::Other });
    }
    Some(hyper::upgrade::on(request))
}

type Answer = Result<http::Response<crate::proxy::body::Body>, Infallible>;

fn service(
    conn: &Rc<ConnInfo>,
    plane: &Rc<Plane>,
    tunnels: &Tunnels,
) -> impl Fn(http::Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer>>> + 'static {
    let (conn, plane, tunnels) = (Rc::clone(conn), Rc::clone(plane), tunnels.clone());
    move |mut request| {
        let (conn, plane, tunnels) = (Rc::clone(&conn), Rc::clone(&plane), tunnels.clone());
        let client = connected(&mut request);
        // Boxed, so that an idle connection does not hold room for a request.
        boxed(|| async move {
            let (parts, incoming) = request.into_parts();
            // Nothing is left to read on of what is over with the head.
            let read_on = (!incoming.is_end_stream())
                .then(|| ReadOn { tasks: plane.tunnels.clone(), deadlines: plane.reach.deadlines.clone() });
            let body = ClientBody::new(incoming, read_on);
            // Interim answers end here: hyper's server keeps the stream's sending half to itself until there is a final one.
            let reply = handle(parts, body, &conn, &plane, None).await;
            if let (Some(client), Some(switch)) = (client, reply.switch) {
                let tasks = plane.tunnels.clone();
                drop(tasks.spawn(tunnels.carry(client, switch, plane)));
            }
            Ok(reply.response)
        })
    }
}
