//! A client's request body as its connection gives it, read on after an answer that did not wait for its end.
//!
//! RFC 9113 section 8.1 lets a server answer early and then reset the stream with NO_ERROR. Widely used clients take that reset
//! for a failure and lose the answer, or never end. So what such a client still sends is read and thrown away: then it is the
//! client who ends the stream, and there is nothing to reset.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::deadline::Deadlines;
use crate::scope::Scope;

/// For how long a body is read on at most. There is no bound in bytes, as there is where a TCP connection is closed: flow
/// control holds back what is not read, so nothing piles up, and an upload that a worker takes costs more than this one.
const LONGEST: Duration = Duration::from_secs(2);

/// A client's request body. Dropped before its end, it is read on where it was told how.
pub struct ClientBody {
    /// `None` once nothing more comes.
    incoming: Option<Incoming>,
    read_on: Option<ReadOn>,
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
        Self { incoming: Some(incoming), read_on }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.incoming = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let (Some(rest), Some(how)) = (self.incoming.take(), self.read_on.take())
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
