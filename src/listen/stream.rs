//! One request on a client's HTTP/2 connection: handed on, and its answer sent as far as flow control lets it. It may become a
//! WebSocket (RFC 8441).

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE, EXPECT, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};

use crate::boxed::boxed;
use crate::listen::date::date;
use crate::listen::outflow::{Outflow, Sharing};
use crate::listen::standby::Standby;
use crate::proxy::body::Body;
use crate::proxy::conn::ConnInfo;
use crate::proxy::handle::{Reply, handle};
use crate::proxy::plane::Plane;
use crate::proxy::target::Extended;
use crate::proxy::upgrade::Switch;
use crate::scope::Scope;
use crate::upstream::client_body::{Awaited, ClientBody, ReadOn};
use crate::upstream::duplex::{Duplex, PIECE};

/// The requests of one connection.
pub struct Streams {
    conn: Rc<ConnInfo>,
    plane: Rc<Plane>,
    scope: Scope,
    standby: Standby<Stream>,
    tunnels: Tunnels,
    outflow: Rc<Outflow>,
}

impl Streams {
    /// None yet. `scope` waits for those that wait, which is done by tasks of `standby`.
    pub fn new(conn: Rc<ConnInfo>, plane: Rc<Plane>, scope: Scope, standby: Standby<Stream>) -> Self {
        let outflow = Rc::new(Outflow::new(plane.reach.limits.streams));
        Self { conn, plane, scope, standby, tunnels: Tunnels::default(), outflow }
    }

    /// To be called when the socket has taken all that it was given: there is room again.
    pub fn written(&self) {
        self.outflow.written();
    }

    /// Whether a stream is a WebSocket.
    pub fn any_tunnel(&self) -> bool {
        self.tunnels.0.get() > 0
    }

    /// Answers `request`: at once where that can be done, and otherwise in a task of its own.
    ///
    /// A connection's requests are read many at a time, and the head of each is worth a hundred times what it took to send. One
    /// that is refused for what it says, or because its client asks for too much, must not wait for a task with it.
    pub fn begin(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.conn.count_request();
        self.standby.begin(Stream(Phase::Asking(boxed(|| self.ask(request, respond)))), &self.scope);
    }
}

/// A request, and whatever it becomes.
pub struct Stream(Phase);

enum Phase {
    /// Boxed, so that an answer on its way holds no room for what made it. Ready with what could not be sent at once.
    Asking(Pin<Box<dyn Future<Output = Option<Box<Sending>>>>>),
    /// Boxed, because most answers are sent at once: their tasks have no room for one.
    Sending(Box<Sending>),
}

impl Future for Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Phase::Asking(asking) => match ready!(asking.as_mut().poll(cx)) {
                Some(sending) => {
                    self.0 = Phase::Sending(sending);
                    Poll::Pending
                }
                None => Poll::Ready(()),
            },
            Phase::Sending(sending) => sending.poll(cx),
        }
    }
}

impl Streams {
    /// Hands a request on, and sends what can be sent of its answer; what is left. No `async fn`: its future would keep room for
    /// what has moved on.
    fn ask(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> impl Future<Output = Option<Box<Sending>>> + use<> {
        let answering = Answering {
            respond: RefCell::new(respond),
            plane: Rc::clone(&self.plane),
            tunnels: self.tunnels.clone(),
            outflow: Rc::clone(&self.outflow),
        };
        let conn = Rc::clone(&self.conn);
        let (mut parts, incoming) = request.into_parts();
        // RFC 9110 §10.1.1: a client that expects it must be told to go on, or answered.
        let awaited =
            (!incoming.is_end_stream() && parts.headers.contains_key(EXPECT)).then(Awaited::default);
        let (body, mut connected) =
            client_body(&mut parts, incoming, (&self.conn, &self.plane), awaited.clone());
        async move {
            let early = |status: StatusCode, fields: &HeaderMap| answering.hint(status, fields);
            let mut handling = pin!(handle(parts, body, &conn, &answering.plane, Some(&early)));
            poll_fn(|cx| {
                // First: nothing may be said on a stream that was reset.
                if answering.respond.borrow_mut().poll_reset(cx).is_ready() {
                    conn.taken_back.set(conn.taken_back.get() + 1);
                    return Poll::Ready(None);
                }
                let handled = handling.as_mut().poll(cx);
                if handled.is_pending() && awaited.as_ref().is_some_and(|awaited| awaited.take()) {
                    answering.hint(StatusCode::CONTINUE, &HeaderMap::new());
                }
                let reply = ready!(handled);
                let mut sending = answering.send(reply, connected.take());
                // Where it stands: most are over with this, and never move.
                if sending.as_mut().is_some_and(|sending| sending.poll(cx).is_ready()) {
                    sending = None;
                }
                Poll::Ready(sending.map(Box::new))
            })
            .await
        }
    }
}

/// What a request says after its head, and for a CONNECT the client's direction of what it asks for.
fn client_body(
    parts: &mut Parts,
    incoming: RecvStream,
    (conn, plane): (&ConnInfo, &Plane),
    awaited: Option<Awaited>,
) -> (ClientBody, Option<RecvStream>) {
    if parts.method == Method::CONNECT {
        if let Some(protocol) = parts.extensions.remove::<h2::ext::Protocol>() {
            let websocket = protocol.as_str() == "websocket";
            parts.extensions.insert(if websocket { Extended::WebSocket } else { Extended::Other });
        }
        (ClientBody::none(), Some(incoming))
    } else if incoming.is_end_stream() {
        (ClientBody::none(), None)
    } else {
        // Three tokens with a lock each: not for a request that is over with its head.
        let read_on = ReadOn { tasks: plane.tunnels.clone(), deadlines: plane.reach.deadlines.clone() };
        (
            ClientBody::stream(incoming, parts.headers.get(CONTENT_LENGTH), read_on, awaited, &conn.unread),
            None,
        )
    }
}

/// Where the answer to one request goes.
struct Answering {
    respond: RefCell<SendResponse<Bytes>>,
    plane: Rc<Plane>,
    tunnels: Tunnels,
    outflow: Rc<Outflow>,
}

impl Answering {
    /// Sends an interim answer. It fails where the connection does, which the answer learns as well.
    fn hint(&self, status: StatusCode, fields: &HeaderMap) {
        let mut hints = Response::new(());
        *hints.status_mut() = status;
        *hints.headers_mut() = fields.clone();
        let _ = self.respond.borrow_mut().send_informational(hints);
    }

    /// Sends the head of an answer. What is left to send, if anything.
    fn send(&self, reply: Reply, connected: Option<RecvStream>) -> Option<Sending> {
        let (head, mut body) = reply.response.into_parts();
        let mut head = Response::from_parts(head, ());
        let fields = head.headers_mut();
        // One look over all, which costs less than a search for each.
        let (mut has_length, mut has_date) = (false, false);
        for name in fields.keys() {
            has_length |= *name == CONTENT_LENGTH;
            has_date |= *name == DATE;
        }
        if let Some(length) = body.size_hint().exact().filter(|length| *length > 0)
            && !has_length
        {
            fields.insert(CONTENT_LENGTH, length.into());
        }
        if !has_date {
            let date = HeaderValue::from_bytes(&date(self.plane.clock.now()));
            fields.insert(DATE, date.expect("a date is printable ASCII"));
        }
        if head.status() == StatusCode::UPGRADE_REQUIRED {
            // RFC 9113 §8.2.2: HTTP/2 has no field for it.
            head.headers_mut().remove(UPGRADE);
        }
        let whole = body.is_end_stream() && reply.switch.is_none();
        let mut respond = self.respond.borrow_mut();
        let sent = match respond.send_response(head, whole) {
            Ok(sent) => sent,
            Err(error) => {
                tracing::debug!(%error, "an answer could not be sent");
                respond.send_reset(Reason::INTERNAL_ERROR);
                body.cut();
                if let Some(switch) = reply.switch {
                    switch.abandon("the client was gone before the WebSocket was open");
                }
                return None;
            }
        };
        match (reply.switch, connected) {
            (Some(switch), Some(client)) => {
                let carrying =
                    self.tunnels.clone().carry(Duplex::new(sent, client, ()), switch, Rc::clone(&self.plane));
                drop(self.plane.tunnels.spawn(carrying));
                None
            }
            (Some(_), None) | (None, _) if whole => {
                self.outflow.end(body.settle());
                None
            }
            (Some(_), None) | (None, _) => Some(Sending::new(sent, body, &self.plane, &self.outflow)),
        }
    }
}

/// An answer's body on its way.
///
/// A client that takes nothing at all is the connection's to notice, but flow control lets it take one answer and leave
/// another, which would hold its worker for ever: then the stream is reset.
struct Sending {
    stream: SendStream<Bytes>,
    body: Body,
    /// What the client has no room for yet.
    data: Bytes,
    sharing: Sharing,
    plane: Rc<Plane>,
}

impl Sending {
    fn new(stream: SendStream<Bytes>, body: Body, plane: &Rc<Plane>, outflow: &Rc<Outflow>) -> Self {
        Self { stream, body, data: Bytes::new(), sharing: Sharing::new(outflow), plane: Rc::clone(plane) }
    }

    /// Ready at the end, whatever that is.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_sent(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.stream.poll_reset(cx).map(drop),
        }
    }

    /// Ready once all is handed on, or nothing can be.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.data.is_empty() {
                ready!(self.sharing.poll_room(cx));
                match self.poll_data(cx) {
                    Poll::Ready(true) => continue,
                    Poll::Ready(false) => return Poll::Ready(()),
                    Poll::Pending => {
                        ready!(self.sharing.poll_patience(cx, &self.plane.reach));
                        self.body.give_up("the client did not take the answer in time");
                        return Poll::Ready(());
                    }
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return self.end(Bytes::new());
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) if data.is_empty() && self.body.is_end_stream() => return self.end(data),
                Ok(Ok(data)) => self.data = data,
                Ok(Err(frame)) => {
                    if frame.into_trailers().is_ok_and(|fields| self.stream.send_trailers(fields).is_ok()) {
                        self.sharing.end(self.body.settle());
                    }
                    return Poll::Ready(());
                }
                Err(_) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
            }
        }
    }

    /// A failure is the connection's, which tells of it.
    fn end(&mut self, data: Bytes) -> Poll<()> {
        if self.stream.send_data(data, true).is_ok() {
            self.sharing.end(self.body.settle());
        }
        Poll::Ready(())
    }

    /// Sends a piece of `data` once there is room for one; false where nothing follows.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.stream.reserve_capacity(self.data.len().min(PIECE));
        let mut room = self.stream.capacity();
        while room == 0 {
            room = match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Poll::Ready(false),
            };
        }
        let piece = self.data.split_to(self.data.len().min(room));
        self.sharing.hand_on(piece.len(), self.data.is_empty());
        let last = self.data.is_empty() && self.body.is_end_stream();
        let sent = self.stream.send_data(piece, last);
        if last && sent.is_ok() {
            self.sharing.end(self.body.settle());
        }
        Poll::Ready(sent.is_ok() && !last)
    }
}

impl Drop for Sending {
    /// What was handed on to its end is no longer its own to tell of.
    fn drop(&mut self) {
        self.body.cut();
    }
}

/// How many streams of a connection are WebSockets. Clones are handles to the same.
#[derive(Clone, Default)]
struct Tunnels(Rc<Cell<u32>>);

impl Tunnels {
    /// Carries what `switch` stands for.
    async fn carry(self, mut client: Duplex<()>, switch: Box<Switch>, plane: Rc<Plane>) {
        let _open = Open::among(&self);
        switch.carry(&mut client, &plane).await;
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
