//! A client's request body as its connection gives it; over HTTP/2, read on after an answer that did not wait for its end.
//!
//! RFC 9113 section 8.1 lets a server answer early and then reset the stream with NO_ERROR. Widely used clients take that reset
//! for a failure and lose the answer, or never end. So what such a client still sends is read and thrown away: then it is the
//! client who ends the stream, and there is nothing to reset. Over HTTP/1.1 the connection does the same where it closes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderValue;
use http_body::{Body, Frame, SizeHint};

use crate::deadline::Deadlines;
use crate::scope::Scope;
use crate::upstream::error::ClientBodyError;
use crate::upstream::wire::content_length;

/// For how long a body is read on at most. There is no bound in bytes, as there is where a TCP connection is closed: flow
/// control holds back what is not read, so nothing piles up, and an upload that a worker takes costs more than this one.
const LONGEST: Duration = Duration::from_secs(2);

/// The bodies of a connection's requests that wait for their turn, or for a worker that is at something else; what comes of them
/// meanwhile lies unread. Where requests share the connection, it takes room from the others: also from those that are waited for,
/// which need the rest of theirs.
#[derive(Default)]
pub struct Unread {
    bodies: Cell<u32>,
    connection: RefCell<Option<Waker>>,
}

/// One of them, until it is dropped.
pub struct Waiting(Rc<Unread>);

impl Unread {
    /// One more.
    pub fn add(self: &Rc<Self>) -> Waiting {
        self.bodies.set(self.bodies.get() + 1);
        if let Some(connection) = &*self.connection.borrow() {
            connection.wake_by_ref();
        }
        Waiting(Rc::clone(self))
    }

    /// How many there are. The task of `cx`, which is the connection's, is woken once there are more.
    pub fn count(&self, cx: &Context<'_>) -> u32 {
        let mut connection = self.connection.borrow_mut();
        match connection.as_mut() {
            Some(known) => known.clone_from(cx.waker()),
            None => *connection = Some(cx.waker().clone()),
        }
        self.bodies.get()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.bodies.set(self.0.bodies.get() - 1);
    }
}

/// A body that an HTTP/1.1 connection of edge's own gives.
pub type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = ClientBodyError>>>;

/// A client's request body. One of HTTP/2 that is dropped before its end is read on.
pub struct ClientBody(Source);

enum Source {
    /// Nothing more comes.
    Over,
    /// Boxed, because most requests have none: they keep no room for it.
    Stream(Box<(Incoming, ReadOn)>),
    Streamed(Streamed),
}

/// A body of HTTP/2. That it is as long as announced is seen to by the connection.
struct Incoming {
    stream: RecvStream,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    /// Only trailers may follow.
    over: bool,
    awaited: Option<Awaited>,
    unread: Rc<Unread>,
    /// Set while nobody reads it.
    waiting: Option<Waiting>,
}

/// Set once more of a body is waited for, though nothing of it has come: for whoever tells a client that waits for that.
pub type Awaited = Rc<Cell<bool>>;

/// How a body is read on: in a task of its own, so that neither the answer nor the worker waits for it.
pub struct ReadOn {
    /// Owns the task.
    pub tasks: Scope,
    /// The thread's deadlines.
    pub deadlines: Deadlines,
}

impl ClientBody {
    /// What comes on `stream`, whose request says that it is of this length.
    pub fn stream(
        stream: RecvStream,
        length: Option<&HeaderValue>,
        read_on: ReadOn,
        awaited: Option<Awaited>,
        unread: &Rc<Unread>,
    ) -> Self {
        if stream.is_end_stream() {
            return Self::none();
        }
        let left = length.and_then(|length| content_length(length.as_bytes()).ok());
        let unread = Rc::clone(unread);
        let incoming = Incoming { stream, left, over: false, awaited, unread, waiting: None };
        Self(Source::Stream(Box::new((incoming, read_on))))
    }

    /// Nobody reads it for now: until it is read again, it takes no room from others.
    pub fn leave(&mut self) {
        if let Source::Stream(stream) = &mut self.0 {
            let incoming = &mut stream.0;
            incoming.waiting.get_or_insert_with(|| incoming.unread.add());
        }
    }

    /// `body`, whose connection decides what becomes of a rest.
    pub fn streamed(body: Streamed) -> Self {
        Self(Source::Streamed(body))
    }

    /// None.
    pub fn none() -> Self {
        Self(Source::Over)
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        let frame = match &mut self.0 {
            Source::Over => None,
            Source::Stream(stream) => {
                ready!(stream.0.poll_frame(cx)).map(|frame| frame.map_err(ClientBodyError::from))
            }
            Source::Streamed(body) => ready!(body.as_mut().poll_frame(cx)),
        };
        if !matches!(frame, Some(Ok(_))) {
            self.0 = Source::Over;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Over => true,
            Source::Stream(stream) => stream.0.stream.is_end_stream(),
            Source::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Over => SizeHint::with_exact(0),
            Source::Stream(stream) => stream.0.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Streamed(body) => body.size_hint(),
        }
    }
}

impl Incoming {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        self.waiting = None;
        if !self.over {
            let data = self.stream.poll_data(cx);
            // Asked once: who has sent something does not wait to be told.
            if let Some(awaited) = self.awaited.take() {
                awaited.set(data.is_pending());
            }
            match ready!(data) {
                Some(Ok(data)) => {
                    // It fails where the stream is over, which the next read tells.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // A reset, whatever its reason, is no end (RFC 9113 §8.1): the worker must not take a part for the whole.
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.over = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Source::Stream(stream) = std::mem::replace(&mut self.0, Source::Over)
            && !stream.0.stream.is_end_stream()
            && !stream.1.tasks.is_aborting()
        {
            let (rest, how) = *stream;
            let tasks = how.tasks.clone();
            drop(tasks.spawn(how.discard(rest)));
        }
    }
}

impl ReadOn {
    /// A client that goes away or resets the stream ends its body with an error, which is an end like any other here.
    async fn discard(self, mut rest: Incoming) {
        let deadline = self.deadlines.deadline();
        deadline.set(LONGEST);
        let read = poll_fn(|cx| {
            while let Some(Ok(_)) = ready!(rest.poll_frame(cx)) {}
            Poll::Ready(())
        });
        tokio::select! {
            () = read => {}
            () = deadline.passed() => {}
            () = self.tasks.aborted() => {}
        }
    }
}
