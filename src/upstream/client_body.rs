//! A client's request body as its connection gives it; over HTTP/2, read on after an answer that did not wait for its end.
//!
//! RFC 9113 section 8.1 lets a server answer early and then reset the stream with NO_ERROR. Widely used clients take that reset
//! for a failure and lose the answer, or never end. So what such a client still sends is read and thrown away: then it is the
//! client who ends the stream, and there is nothing to reset. Over HTTP/1.1 the connection does the same where it closes.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::deadline::Deadlines;
use crate::scope::Scope;
use crate::upstream::error::ClientBodyError;

/// For how long a body is read on at most. There is no bound in bytes, as there is where a TCP connection is closed: flow
/// control holds back what is not read, so nothing piles up, and an upload that a worker takes costs more than this one.
const LONGEST: Duration = Duration::from_secs(2);

/// A body that an HTTP/1.1 connection of edge's own gives.
pub type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = ClientBodyError>>>;

/// A client's request body. Dropped before its end, it is read on where it was told how.
pub struct ClientBody {
    source: Source,
    read_on: Option<ReadOn>,
}

enum Source {
    /// Nothing more comes.
    Over,
    Incoming(Incoming),
    Streamed(Streamed),
}

/// How a body is read on: in a task of its own, so that neither the answer nor the worker waits for it.
pub struct ReadOn {
    /// Owns the task.
    pub tasks: Scope,
    /// The thread's deadlines.
    pub deadlines: Deadlines,
}

impl ClientBody {
    /// `incoming`. Without `read_on` its connection decides what becomes of a rest.
    pub fn new(incoming: Incoming, read_on: Option<ReadOn>) -> Self {
        Self { source: Source::Incoming(incoming), read_on }
    }

    /// `body`, whose connection decides what becomes of a rest.
    pub fn streamed(body: Streamed) -> Self {
        Self { source: Source::Streamed(body), read_on: None }
    }

    /// None.
    pub fn none() -> Self {
        Self { source: Source::Over, read_on: None }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        let frame = match &mut self.source {
            Source::Over => None,
            Source::Incoming(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(ClientBodyError::from))
            }
            Source::Streamed(body) => ready!(body.as_mut().poll_frame(cx)),
        };
        if !matches!(frame, Some(Ok(_))) {
            self.source = Source::Over;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Over => true,
            Source::Incoming(incoming) => incoming.is_end_stream(),
            Source::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Over => SizeHint::with_exact(0),
            Source::Incoming(incoming) => incoming.size_hint(),
            Source::Streamed(body) => body.size_hint(),
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let (Source::Incoming(rest), Some(how)) =
            (std::mem::replace(&mut self.source, Source::Over), self.read_on.take())
            && !rest.is_end_stream()
            && !how.tasks.is_aborting()
        {
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
            while let Some(Ok(_)) = ready!(Pin::new(&mut rest).poll_frame(cx)) {}
            Poll::Ready(())
        });
        tokio::select! {
            () = read => {}
            () = deadline.passed() => {}
            () = self.tasks.aborted() => {}
        }
    }
}
