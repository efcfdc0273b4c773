//! One attempt: a request on a lease's connection, up to the head of the answer, or the beginning of its body.
//!
//! Everything is polled inside the request's own task: no task, channel or timer is made for it.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::config::limits::{Limits, ResponseLimits, Timeouts};
use crate::deadline::{Deadline, Deadlines};
use crate::inflow::{self, READ_SIZE};
use crate::outbox::Outbox;
use crate::prefixed::Prefixed;
use crate::upstream::body::{ResponseBody, Transfer, Watch};
use crate::upstream::budget::Budget;
use crate::upstream::connection::Connection;
use crate::upstream::error::SendError;
use crate::upstream::framing::BodyDecoder;
use crate::upstream::idle::IdleConnections;
use crate::upstream::lease::Lease;
use crate::upstream::multiplex::SharedConnections;
use crate::upstream::request_body::{Bounds, RequestBody};
use crate::upstream::stream_body::StreamBody;
use crate::upstream::upload::{Upload, UploadState};
use crate::upstream::wire::{
    Asked, Malformed, RequestFraming, RequestHead, ResponseHead, parse_response_head, write_request_head,
};
use crate::worker::slot::Slot;

/// How often a request that waits for a worker looks whether to wait any longer …
const LOOK: Duration = Duration::from_secs(1);
/// … and when first, where it may be asked of another. Deadlines pass with a clock that ticks every 100 ms, and begin as if the
/// present tick were over: so this is the second tick from now, 100 to 200 ms after the worker was first waited for.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// How long a head is held back for the body it announces, by the same clock: 100 to 200 ms. Many servers write the two apart, and
/// until the client has seen the one, the death of a worker before the other costs no request.
const HELD: Duration = Duration::from_millis(50);

/// What one data-plane thread needs to reach workers. Cheap to clone.
#[derive(Clone)]
pub struct Reach {
    /// Its idle connections.
    pub idle: Rc<IdleConnections>,
    /// Its connections of HTTP/2.
    pub shared: Rc<SharedConnections>,
    /// Its deadlines.
    pub deadlines: Deadlines,
    /// The configured time-outs.
    pub timeouts: Timeouts,
    /// The configured bounds.
    pub limits: Limits,
    /// What it may hold in memory for clients of synchronous workers.
    pub budget: Rc<Budget>,
}

impl Reach {
    /// What a request's body of at most `length` bytes must keep to.
    pub fn bounds(&self, length: u64) -> Bounds {
        let Limits { body_rate: rate, chunks, .. } = self.limits;
        Bounds { length, idle: self.timeouts.body, rate, chunks }
    }
}

/// A worker's answer.
pub enum Answer {
    /// A response. Its headers are the worker's without framing and hop-by-hop fields, except that a `Content-Length` the
    /// body is known to have is kept.
    Response(http::Response<ResponseBody>),
    /// The same over HTTP/2.
    Stream(http::Response<StreamBody>),
    /// 101, or what stands for it in HTTP/2: the head, and the connection with any bytes the worker sent after it.
    Upgraded {
        /// Its status and fields.
        head: http::Response<()>,
        /// The connection.
        tunnel: Tunnel,
    },
}

impl Answer {
    /// The slot that answers.
    pub fn slot(&self) -> &Slot {
        match self {
            Self::Response(response) => response.body().slot(),
            Self::Stream(response) => response.body().slot(),
            Self::Upgraded { tunnel, .. } => tunnel.lease.slot(),
        }
    }

    /// The fields of its head.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Response(response) => response.headers_mut(),
            Self::Stream(response) => response.headers_mut(),
            Self::Upgraded { head, .. } => head.headers_mut(),
        }
    }
}

/// A worker's connection after 101, still holding the lease.
pub struct Tunnel {
    /// The lease.
    pub lease: Lease,
    /// The connection, or a stream of it.
    pub stream: Box<dyn ByteStream>,
}

/// Both directions of a tunnel's far end.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream for S {}

/// Takes interim answers, status and fields, that are meant for the client; `None` where it cannot be told of them. 100 is not
/// among them: edge itself asks a client to go on.
pub type Interim<'a> = Option<&'a dyn Fn(StatusCode, &HeaderMap)>;

/// Says whether a request that the worker of this slot leaves unread is to be asked of another now.
pub type Elsewhere<'a> = Option<&'a dyn Fn(&Slot, std::time::Instant) -> bool>;

/// Sends one request and reads the head of its answer. Interim answers before it go to `early`. While the worker leaves a request
/// unread that changes nothing (a safe method, without a body), `elsewhere` is asked from time to time.
///
/// `body` is `None` where the request has none. It is taken out only once the exchange begins to read it, and put back where nothing
/// was sent, so after an error a body that is there can be sent again. Dropping the future closes the worker's connection, which
/// cancels the request there.
/// An idle connection that turns out closed before anything was sent is replaced by a fresh one without being reported. No
/// `async fn`: its future would have room for each parameter twice, as it came and as it is used.
pub fn exchange(
    reach: &Reach,
    mut lease: Lease,
    head: &RequestHead<'_>,
    body: &mut Option<Box<RequestBody>>,
    early: Interim<'_>,
    elsewhere: Elsewhere<'_>,
) -> impl Future<Output = Result<Answer, SendError>> {
    if body.as_ref().is_some_and(|body| !body.is_short()) {
        // It may be the client who is waited for.
        lease.answered();
    }
    async move {
        // A block, so that the future keeps no room for what has moved into the attempt.
        let mut attempt = {
            let framing = request_framing(body.as_deref());
            let mut out = Outbox::empty();
            write_request_head(out.text(), head, framing)
                .map_err(|Malformed(what)| SendError::Unwritable(what))?;
            if let Some(body) = body.as_ref() {
                body.check_announced()?;
            }
            let deadline = reach.deadlines.deadline();
            let connection = match reach.idle.take(lease.slot(), deadline.now()) {
                Some(connection) => connection,
                // Boxed, so that requests that find a connection need no room for it.
                None => Box::pin(connect(reach, lease.slot(), &deadline)).await?,
            };
            // Safe, not merely idempotent: the worker may read it yet, when the client has long gone on. A DELETE carried out then
            // would undo what came after it.
            let may_leave = head.method.is_safe() && framing == RequestFraming::None;
            let elsewhere = elsewhere.filter(|_| may_leave);
            let first_look = if elsewhere.is_some() { FIRST_LOOK } else { LOOK };
            let mut upload = Upload::new(out, framing);
            if framing != RequestFraming::None {
                upload.attach(body.take());
            }
            Attempt {
                connection,
                upload,
                partial: BytesMut::new(),
                asked: Asked { head: *head.method == Method::HEAD, upgrade: head.upgrade },
                limits: reach.limits.response,
                interim: 0,
                held: None,
                early,
                elsewhere,
                watch: Watch::new(deadline, first_look.min(reach.timeouts.first_byte)),
                first_byte: reach.timeouts.first_byte,
                silent_since: None,
            }
        };
        let mut answer = poll_fn(|cx| attempt.poll_answer(cx, lease.slot())).await;
        if let Err(SendError::Closed { reused: true, sent, .. }) = answer
            && !lease.slot().is_stuck()
            && attempt.may_send_again(head.method)
        {
            // Whatever else is idle is as old, so the second try is on a connection of its own.
            let deadline = reach.deadlines.deadline();
            attempt.moved();
            match Box::pin(connect(reach, lease.slot(), &deadline)).await {
                Ok(connection) => {
                    attempt.connection = connection;
                    answer = poll_fn(|cx| attempt.poll_answer(cx, lease.slot())).await;
                }
                // It was no idle connection's end but the worker's, and this request may have been the reason.
                Err(_) if sent => {}
                Err(unreachable) => {
                    // No worker has seen any of it: another may.
                    *body = attempt.upload.take_back(&reach.budget);
                    return Err(unreachable);
                }
            }
        }
        match answer {
            Ok(begun) => Ok(attempt.into_answer(reach, lease, begun)),
            // A worker's end resets the connections it has left something unread on, and closes the others.
            Err(SendError::Closed { cause: None, sent: true, .. } | SendError::Bodiless { cause: None })
                if lease.slot().is_stuck() =>
            {
                Err(SendError::Hung)
            }
            Err(error) => Err(error),
        }
    }
}

/// No framing for a body that is known to be empty.
fn request_framing(body: Option<&RequestBody>) -> RequestFraming {
    let Some(body) = body else { return RequestFraming::None };
    match body.size_hint().exact() {
        Some(0) => RequestFraming::None,
        Some(length) => RequestFraming::Length(length),
        None if body.is_end_stream() => RequestFraming::None,
        None => RequestFraming::Chunked,
    }
}

async fn connect(reach: &Reach, slot: &Slot, deadline: &Deadline) -> Result<Connection, SendError> {
    let mut connecting = pin!(Connection::connect(&slot.address));
    deadline.set(reach.timeouts.connect);
    let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(connected) => Poll::Ready(connected),
        Poll::Pending => deadline.poll_passed(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
    })
    .await;
    deadline.clear();
    connected.inspect_err(|error| slot.note_failure(error)).map_err(SendError::Connect)
}

/// A request on a connection whose answer has not begun or is not complete.
struct Attempt<'a> {
    connection: Connection,
    upload: Upload,
    /// An incomplete head.
    partial: BytesMut,
    asked: Asked,
    limits: ResponseLimits,
    /// Interim responses so far.
    interim: u32,
    /// A final head whose body has not begun. Boxed, because most answers come whole.
    held: Option<Box<ResponseHead>>,
    /// Who takes interim responses.
    early: Interim<'a>,
    /// Who says whether another worker is asked for the same, which may be.
    elsewhere: Elsewhere<'a>,
    /// Until the next look.
    watch: Watch,
    /// How long the worker may be silent.
    first_byte: Duration,
    /// Since when it is, known at the first look.
    silent_since: Option<Instant>,
}

/// A final head, and what was read after it.
type Begun = (ResponseHead, Bytes);

impl Attempt<'_> {
    /// Sends and reads until a final head is there, and with it the beginning of a body of known length, unless that is long in
    /// coming. Reads while it sends: an answer may come before the body is all sent.
    fn poll_answer(&mut self, cx: &mut Context<'_>, slot: &Slot) -> Poll<Result<Begun, SendError>> {
        let (state, moved) = self.upload.drive(cx, &mut self.connection)?;
        if moved {
            self.moved();
        }
        if state == UploadState::Refused && self.connection.is_used() && !self.upload.any_sent() {
            // Whatever the worker said before it closed an idle connection, it is not the answer to this request.
            return Poll::Ready(Err(self.closed(None)));
        }
        while let Poll::Ready(read) = self.connection.poll_data(cx, READ_SIZE) {
            let input = match read {
                Ok(input) if !input.is_empty() => input,
                ended => return Poll::Ready(Err(self.closed(ended.err()))),
            };
            if let Some(head) = self.held.take() {
                return Poll::Ready(Ok((*head, input)));
            }
            let begun = self.take_input(input).map_err(|Malformed(what)| SendError::BadResponse(what))?;
            match begun {
                Some((head, input))
                    if input.is_empty() && state == UploadState::Sent && head.announces_bytes() =>
                {
                    self.watch.be_patient(HELD);
                    self.held = Some(Box::new(head));
                }
                Some(begun) => return Poll::Ready(Ok(begun)),
                None => {}
            }
        }
        if self.held.is_some() {
            ready!(self.watch.poll_passed(cx));
        }
        if let Some(head) = self.held.take() {
            return Poll::Ready(Ok((*head, Bytes::new())));
        }
        match state {
            UploadState::OnClient => {
                self.moved();
                Poll::Pending
            }
            UploadState::Sent | UploadState::OnWorker | UploadState::Refused => {
                self.poll_silence(cx, slot).map(Err)
            }
        }
    }

    /// Something moved, or it is not the worker who is waited for.
    fn moved(&mut self) {
        if self.silent_since.take().is_some() {
            self.watch.be_patient(LOOK.min(self.first_byte));
        } else {
            self.watch.stop();
        }
    }

    /// Waits for a silent worker as long as it may be silent, or until it is found to hang with this request unread.
    fn poll_silence(&mut self, cx: &mut Context<'_>, slot: &Slot) -> Poll<SendError> {
        loop {
            ready!(self.watch.poll_passed(cx));
            self.upload.leave();
            let now = Instant::now();
            let since = now.checked_sub(self.watch.patience()).unwrap_or(now);
            let since = *self.silent_since.get_or_insert(since);
            let silent = now - since;
            let leaves = |ask: &dyn Fn(&Slot, std::time::Instant) -> bool| ask(slot, now.into_std());
            if self.connection.is_unread() && self.elsewhere.is_some_and(leaves) {
                return Poll::Ready(SendError::Unread);
            }
            let left = self.first_byte.saturating_sub(silent);
            if left.is_zero() {
                return Poll::Ready(SendError::TimedOut);
            }
            let pause = if self.elsewhere.is_some() { silent.clamp(FIRST_LOOK, LOOK) } else { LOOK };
            self.watch.be_patient(left.min(pause));
        }
    }

    fn take_input(&mut self, input: Bytes) -> Result<Option<Begun>, Malformed> {
        let mut block = input;
        if !self.partial.is_empty() {
            // A head ends with a line, so there is no use in parsing before another line has ended.
            let line_ended = memchr::memchr(b'\n', &block).is_some();
            self.partial.extend_from_slice(&block);
            if !line_ended && self.partial.len() < self.limits.head_size {
                return Ok(None);
            }
            block = std::mem::take(&mut self.partial).freeze();
        }
        loop {
            let Some((head, length)) = parse_response_head(&block, self.asked, &self.limits)? else {
                self.partial = block.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                return Ok(None);
            };
            inflow::pass(&mut block, length);
            if !head.is_interim() {
                return Ok(Some((head, block)));
            }
            // Only whole heads are progress: one that is dripped must not hold the client for ever.
            self.moved();
            self.interim += 1;
            if self.interim > self.limits.interim {
                return Err(Malformed("it has too many interim responses"));
            }
            let interim = &head.response;
            if let Some(early) = self.early.filter(|_| interim.status() != StatusCode::CONTINUE) {
                early(interim.status(), interim.headers());
            }
            if block.is_empty() {
                return Ok(None);
            }
        }
    }

    fn closed(&mut self, cause: Option<io::Error>) -> SendError {
        if !self.partial.is_empty() {
            return SendError::BadResponse("its head ended early");
        }
        if self.held.is_some() {
            return SendError::Bodiless { cause };
        }
        // An interim answer says no more than that the worker had begun, as many do without saying so.
        SendError::Closed {
            cause: self.upload.take_refusal().or(cause),
            // Who had begun did not merely close an idle connection.
            reused: self.connection.is_used() && self.interim == 0,
            sent: self.upload.any_sent(),
        }
    }

    /// After a reused connection was found closed: whether the same may be sent on another one, and all of it is here.
    fn may_send_again(&mut self, method: &Method) -> bool {
        (method.is_idempotent() || !self.upload.any_sent()) && self.upload.rewind()
    }

    fn into_answer(self, reach: &Reach, mut lease: Lease, (head, input): Begun) -> Answer {
        lease.answered();
        let ResponseHead { response, framing, reusable } = head;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let stream = Box::new(Prefixed::new(input, self.connection));
            return Answer::Upgraded { head: response, tunnel: Tunnel { lease, stream } };
        }
        let request_bytes = self.upload.received();
        if framing.is_here(&input) && self.upload.is_sent() {
            if reusable {
                reach.idle.put(lease.slot(), self.connection, self.watch.now());
            }
            return Answer::Response(response.map(|()| ResponseBody::whole(lease, input, request_bytes)));
        }
        let mut watch = self.watch;
        watch.be_patient(reach.timeouts.upstream_idle);
        let upload = (!self.upload.is_sent()).then(|| Box::new(self.upload));
        let transfer = Box::new(Transfer {
            connection: self.connection,
            upload,
            bulk: input.len() >= READ_SIZE,
            input,
            decoder: BodyDecoder::new(framing, &reach.limits.chunks),
            reusable,
            watch,
            pool: Rc::clone(&reach.idle),
            streams_ended: None,
        });
        Answer::Response(response.map(|()| ResponseBody::new(lease, framing, request_bytes, transfer)))
    }
}

#[cfg(test)]
mod tests;
