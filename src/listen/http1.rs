//! HTTP/1.1 with a client: one request after the other, each answered before the next is read (RFC 9112 §9.3.2).
//!
//! One task does all of it: it reads a head, polls the request's future, writes the answer. An idle connection holds neither a
//! buffer nor room for a request.

mod answer;

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};

use crate::boxed::boxed;
use crate::deadline::{Deadline, Spare};
use crate::inflow;
use crate::listen::date::date;
use crate::listen::http1::answer::Answer;
use crate::listen::linger;
use crate::listen::meter::{Meter, Metered};
use crate::listen::request::{self, Fault, Head};
use crate::listen::response::{self, Asked};
use crate::listen::stage::{Stage, Step};
use crate::listen::tcp::Client;
use crate::listen::watch::{Seen, Verdict, Watch};
use crate::listen::wire::{RequestStream, Wire};
use crate::outbox::Outbox;
use crate::prefixed::Prefixed;
use crate::proxy::body::Body;
use crate::proxy::conn::ConnInfo;
use crate::proxy::error::ProxyError;
use crate::proxy::handle::{Reply, handle, refuse};
use crate::proxy::plane::Plane;
use crate::proxy::upgrade::Switch;
use crate::upstream::client_body::ClientBody;
use crate::upstream::wire::RequestFraming;

/// How long a connection that never carried a request is kept at drain.
pub const UNUSED_AT_DRAIN: Duration = Duration::from_secs(1);

/// Serves HTTP/1.1 on `stream` until it ends. No `async fn`: its future would keep room for the stream that has moved on.
pub fn serve_http1<S: Client + 'static>(
    stream: S,
    conn: Rc<ConnInfo>,
    plane: Rc<Plane>,
    stage: Stage,
) -> impl Future<Output = ()> {
    let mut talk = Talk::new(stream, conn, plane, stage);
    async move {
        // Boxed, both of them, so that an idle connection holds room neither for a request nor for its end.
        let end = loop {
            let next = match poll_fn(|cx| talk.poll_next(cx)).await {
                Ok(next) => next,
                Err(end) => break end,
            };
            if let Err(end) = boxed(|| talk.answer(next)).await {
                break end;
            }
        };
        boxed(|| talk.end(end)).await;
    }
}

/// What comes next on a connection.
#[expect(clippy::large_enum_variant, reason = "it lives until the next line")]
enum Next {
    Request(Head),
    /// What was no request, and why.
    Refusal(Box<(Parts, ProxyError)>),
}

/// Why a connection carries no more requests.
pub(super) enum End {
    /// One side wants no more. What was sent must arrive.
    Close,
    /// The same, and the last answer was handed to the system before.
    Idle,
    /// It has to go at once, or is gone.
    Abort,
    /// The client must not take its end for the end of an answer.
    Reset,
    /// It is a tunnel from now on.
    Tunnel(Box<Switch>),
}

/// A connection.
struct Talk<S> {
    wire: Rc<RefCell<Wire<S>>>,
    meter: Rc<Meter>,
    conn: Rc<ConnInfo>,
    plane: Rc<Plane>,
    stage: Stage,
    deadline: Deadline,
    watch: Watch,
    /// An incomplete head.
    partial: BytesMut,
    /// No request is read after the one that is being answered.
    finishing: bool,
}

impl<S: Client + 'static> Talk<S> {
    fn new(stream: S, conn: Rc<ConnInfo>, plane: Rc<Plane>, stage: Stage) -> Self {
        let (stream, meter) = Metered::new(stream);
        let deadline = plane.reach.deadlines.deadline();
        let rules = &plane.reach;
        let (watch, first) = Watch::new(false, rules.timeouts, &rules.limits, deadline.now());
        deadline.set(first);
        let wire = Rc::new(RefCell::new(Wire::new(stream)));
        Self { wire, meter, conn, plane, stage, deadline, watch, partial: BytesMut::new(), finishing: false }
    }

    /// Waits for a request.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next, End>> {
        loop {
            match self.stage.step() {
                Step::Aborting => return Poll::Ready(Err(End::Abort)),
                Step::Draining if !self.finishing => {
                    self.finishing = true;
                    if self.meter.read() == 0 {
                        // Browsers open connections they may never use: a request that is on its way gets this long.
                        self.deadline.set(UNUSED_AT_DRAIN);
                    } else if !self.has_begun() && self.wire.borrow().input.is_empty() {
                        return Poll::Ready(Err(End::Idle));
                    }
                }
                Step::Draining | Step::Serving => {}
            }
            if let Some(next) = self.take_next() {
                return Poll::Ready(next);
            }
            if !self.wire.borrow().input.is_empty() {
                // What looked like the end of a head were empty lines before one.
                continue;
            }
            let read = self.wire.borrow_mut().poll_input(cx);
            match read {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(End::Idle)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(End::Abort)),
                Poll::Pending => {}
            }
            match ready!(self.poll_time(cx)) {
                // Whoever sent nothing expects no answer.
                Verdict::HeadTooSlow if self.meter.read() > 0 => {
                    return Poll::Ready(Ok(Next::Refusal(request::too_slow())));
                }
                Verdict::HeadTooSlow | Verdict::Close => return Poll::Ready(Err(End::Idle)),
                Verdict::Stalled => return Poll::Ready(Err(End::Abort)),
                Verdict::Again(after) => self.deadline.set(after),
            }
        }
    }

    /// The next request, where all of its head is here.
    fn take_next(&mut self) -> Option<Result<Next, End>> {
        let block = self.take_block()?;
        match request::read(&block, &self.plane.reach.limits) {
            Ok(Some((head, length))) => {
                let mut wire = self.wire.borrow_mut();
                if length < block.len() {
                    // Only where the head had no end that is easily found.
                    let rest = [&block[length..], &wire.input[..]].concat();
                    wire.input = Bytes::from(rest);
                }
                Some(Ok(Next::Request(head)))
            }
            Ok(None) => {
                self.partial = block.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                None
            }
            Err(Fault::Refused(refused)) => Some(Ok(Next::Refusal(refused))),
            Err(Fault::Foreign) => Some(Err(End::Abort)),
        }
    }

    /// What may be a head, in memory of its own: fields and access line outlive the thread's buffer, and would keep all of it.
    fn take_block(&mut self) -> Option<Bytes> {
        let mut wire = self.wire.borrow_mut();
        if wire.input.is_empty() {
            return None;
        }
        if self.partial.is_empty() {
            let end = head_end(&wire.input).unwrap_or(wire.input.len());
            let block = Bytes::copy_from_slice(&wire.input[..end]);
            inflow::pass(&mut wire.input, end);
            return Some(block);
        }
        let input = std::mem::take(&mut wire.input);
        // A head ends with a line, so there is no use in parsing before another line has ended.
        let line_ended = memchr::memchr(b'\n', &input).is_some();
        self.partial.extend_from_slice(&input);
        (line_ended || self.partial.len() >= self.plane.reach.limits.head_size)
            .then(|| std::mem::take(&mut self.partial).freeze())
    }

    /// Answers what came. An error is an end of the connection, not of the request.
    async fn answer(&mut self, next: Next) -> Result<(), End> {
        let (conn, plane) = (Rc::clone(&self.conn), Rc::clone(&self.plane));
        conn.count_request();
        let (asked, persistent, Reply { response, switch }) = match next {
            Next::Refusal(refused) => {
                let (parts, error) = *refused;
                (Asked::of(&parts, false), false, refuse(parts, error, &conn, &plane))
            }
            Next::Request(Head { parts, framing, persistent, expects_continue, takes_trailers }) => {
                let asked = Asked::of(&parts, takes_trailers);
                let body = self.body(framing, expects_continue);
                let wire = Rc::clone(&self.wire);
                let early = |status: StatusCode, fields: &HeaderMap| {
                    wire.borrow_mut().put_interim(|out| response::write_interim(out, status, fields));
                };
                // RFC 9110 §15.2: never to a client of HTTP/1.0, which would take it for the answer.
                let early = (asked.version == Version::HTTP_11).then_some(&early as &dyn Fn(_, &_));
                let mut asking = pin!(handle(parts, body, &conn, &plane, early));
                let reply = poll_fn(|cx| self.poll_reply(cx, asking.as_mut())).await?;
                (asked, persistent, reply)
            }
        };
        if let Some(switch) = switch {
            return Err(self.switch(response, switch).await);
        }
        self.finishing |= self.stage.step() != Step::Serving
            || self.watch.is_over(self.conn.requests.get(), self.deadline.now());
        // Whoever waits for its 100 gets a final status in its place, and may not know what to send next.
        let settled = self.wire.borrow_mut().settle();
        let close = !persistent || self.finishing || !(settled || self.wire.borrow().is_receiving());
        let mut answer = Answer::begin(response, asked, close, || date(plane.clock.now()));
        let sent = poll_fn(|cx| self.poll_answer(cx, &mut answer)).await;
        sent.inspect_err(|_| answer.body.cut())?;
        let more = answer.more;
        drop(answer);
        if more && self.wire.borrow_mut().settle() { Ok(()) } else { Err(End::Close) }
    }

    /// The body of a request whose head was just read.
    fn body(&self, framing: RequestFraming, expects_continue: bool) -> ClientBody {
        self.wire.borrow_mut().expect_body(framing, expects_continue, &self.plane.reach.limits.chunks);
        match framing {
            RequestFraming::None => ClientBody::none(),
            RequestFraming::Length(_) | RequestFraming::Chunked => {
                ClientBody::streamed(Box::pin(RequestStream::new(&self.wire)))
            }
        }
    }

    fn poll_reply(
        &mut self,
        cx: &mut Context<'_>,
        asking: Pin<&mut impl Future<Output = Reply>>,
    ) -> Poll<Result<Reply, End>> {
        if self.stage.step() == Step::Aborting {
            return Poll::Ready(Err(End::Abort));
        }
        if let Poll::Ready(reply) = asking.poll(cx) {
            return Poll::Ready(Ok(reply));
        }
        if let Poll::Ready(Err(_)) = self.wire.borrow_mut().poll_interim(cx) {
            return Poll::Ready(Err(End::Abort));
        }
        self.poll_meanwhile(cx).map(Err)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>, answer: &mut Answer) -> Poll<Result<(), End>> {
        if self.stage.step() == Step::Aborting {
            return Poll::Ready(Err(answer.torn(End::Abort)));
        }
        if let Poll::Ready(end) = answer.poll(cx, &self.wire) {
            return Poll::Ready(end);
        }
        self.poll_meanwhile(cx).map(|end| Err(answer.torn(end)))
    }

    /// While a request is open: whether its client is gone, or its time is over.
    fn poll_meanwhile(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.is_client_gone(cx) {
            return Poll::Ready(End::Abort);
        }
        loop {
            match ready!(self.poll_time(cx)) {
                Verdict::Again(after) => self.deadline.set(after),
                Verdict::Close | Verdict::HeadTooSlow | Verdict::Stalled => return Poll::Ready(End::Abort),
            }
        }
    }

    /// Nothing is read on while a next request is here already.
    fn is_client_gone(&self, cx: &mut Context<'_>) -> bool {
        let mut wire = self.wire.borrow_mut();
        if wire.is_receiving() || !wire.input.is_empty() {
            return false;
        }
        match wire.poll_input(cx) {
            Poll::Ready(Ok(0) | Err(_)) => true,
            Poll::Ready(Ok(_)) | Poll::Pending => false,
        }
    }

    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        let seen = Seen { requests: self.conn.requests.get(), begun: self.has_begun() };
        if let Some(next) = self.watch.observe(self.conn.open.get(), seen) {
            let spare = if self.watch.is_idle() { Spare::Idle } else { Spare::No };
            self.deadline.set_spare(next, spare);
        }
        ready!(self.deadline.poll_passed(cx));
        Poll::Ready(self.watch.passed(self.meter.blocked()))
    }

    /// Whether a head has begun. Some clients end a body with an empty line that belongs to nothing.
    fn has_begun(&self) -> bool {
        self.partial.iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }

    async fn switch(&mut self, response: Response<Body>, switch: Box<Switch>) -> End {
        let mut out = Outbox::empty();
        response::write_switch(out.text(), &response.into_parts().0);
        self.deadline.set(self.plane.reach.timeouts.write);
        let written = poll_fn(|cx| {
            if self.stage.step() == Step::Aborting {
                return Poll::Ready(Err("edge ended before the switch of protocols"));
            }
            let mut wire = self.wire.borrow_mut();
            let written = match wire.poll_interim(cx) {
                Poll::Ready(Ok(())) => out.poll_write(cx, &mut wire.stream),
                other => other,
            };
            let written = match written {
                Poll::Ready(Ok(())) => wire.poll_flush(cx),
                other => other,
            };
            match written {
                Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => Poll::Ready(Err("the client was gone before the switch of protocols")),
                Poll::Pending => self
                    .deadline
                    .poll_passed(cx)
                    .map(|()| Err("the client did not take the switch of protocols")),
            }
        })
        .await;
        match written {
            Ok(()) => End::Tunnel(switch),
            Err(why) => {
                switch.abandon(why);
                End::Abort
            }
        }
    }

    async fn end(self, end: End) {
        // Whoever reads a body of this connection holds it, too; there is none left where it ends in order.
        let Some(wire) = Rc::into_inner(self.wire) else { return };
        let Wire { stream, input, .. } = wire.into_inner();
        match end {
            End::Close | End::Idle => {
                let most = self.plane.reach.limits.early_response_drain;
                let has_answered = matches!(end, End::Close);
                let under_way = |stream: &Metered<S>| stream.get_ref().is_under_way();
                linger::close(stream, most, has_answered, under_way, &self.deadline).await
            }
            End::Abort => {}
            End::Reset => stream.get_ref().reset_on_close(),
            End::Tunnel(switch) => {
                drop(self.deadline);
                Box::pin(switch.carry(&mut Prefixed::new(input, stream), &self.plane)).await;
            }
        }
    }
}

/// Where the first empty line ends: a head is a few short lines, among which a search for all four bytes at once begins anew.
fn head_end(input: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', input).find(|at| input[..*at].ends_with(b"\r\n\r")).map(|at| at + 1)
}

impl Asked {
    fn of(parts: &Parts, trailers: bool) -> Self {
        Self { head: parts.method == Method::HEAD, version: parts.version, trailers }
    }
}

#[cfg(test)]
pub(super) mod tests;
