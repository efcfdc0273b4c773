//! A synchronous worker's response, read faster than its client takes it: the worker is free with its last byte, and the
//! client reads on from memory. Nothing is held back: what is there is passed on at once.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use crate::inflow::READ_SIZE;
use crate::scope::Scope;
use crate::upstream::body::ResponseBody;
use crate::upstream::budget::{Budget, Share};
use crate::upstream::error::ResponseBodyError;

/// What a frame costs besides its bytes.
const FRAME: usize = 256;

/// Pieces shorter than this are gathered while they wait: each is a slice of a buffer for many reads, and would keep all of it.
const SMALL: usize = READ_SIZE / 2;
/// So much at most in one piece.
const GATHERED: usize = 4 * READ_SIZE;

/// The client's end: the response's body. Dropping it ends the worker's end.
pub struct SpooledBody {
    pipe: Rc<RefCell<Pipe>>,
}

/// The worker's end.
struct Filler {
    body: ResponseBody,
    pipe: Rc<RefCell<Pipe>>,
}

/// What lies between them.
struct Pipe {
    frames: VecDeque<Frame<Bytes>>,
    /// Small pieces that follow the frames.
    gathered: BytesMut,
    share: Share,
    /// Set once nothing more comes; an error is taken out by the client's end.
    end: Option<Option<ResponseBodyError>>,
    abandoned: bool,
    /// Bytes to come, where that is known.
    left: Option<u64>,
    request_bytes: u64,
    /// Waits for what comes, for room, or for the client to go.
    filler: Option<Waker>,
    /// For room: others take it and give it back, so whether there is any says nothing of that.
    waits_for_room: bool,
    /// Waits for bytes.
    client: Option<Waker>,
}

/// Reads `body` ahead, in a task of `tasks` where not all of it is here yet.
pub async fn spool(body: ResponseBody, budget: &Rc<Budget>, tasks: &Scope) -> SpooledBody {
    let pipe = Rc::new(RefCell::new(Pipe {
        frames: VecDeque::new(),
        gathered: BytesMut::new(),
        share: budget.share(),
        end: None,
        abandoned: false,
        left: body.size_hint().exact(),
        request_bytes: body.request_bytes(),
        filler: None,
        waits_for_room: false,
        client: None,
    }));
    let mut filler = Filler { body, pipe: Rc::clone(&pipe) };
    let done = poll_fn(|cx| Poll::Ready(filler.poll_fill(cx).is_ready())).await;
    if !done {
        drop(tasks.spawn(async move { poll_fn(|cx| filler.poll_fill(cx)).await }));
    }
    SpooledBody { pipe }
}

impl Filler {
    /// Reads while there is room. Ready once nothing more comes or nobody wants it.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            {
                let mut pipe = self.pipe.borrow_mut();
                if pipe.abandoned {
                    return Poll::Ready(());
                }
                remember(&mut pipe.filler, cx);
                // One frame always passes, however little room there is.
                pipe.waits_for_room = !pipe.share.has_room() && !pipe.is_empty();
                if pipe.waits_for_room {
                    return Poll::Pending;
                }
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let mut pipe = self.pipe.borrow_mut();
            pipe.request_bytes = self.body.request_bytes();
            let over = match frame {
                Some(Ok(frame)) => {
                    pipe.put(frame);
                    self.body.is_end_stream().then_some(None)
                }
                Some(Err(error)) => Some(Some(error)),
                None => Some(None),
            };
            let done = over.is_some();
            pipe.end = over;
            if let Some(client) = pipe.client.take() {
                client.wake();
            }
            if done {
                return Poll::Ready(());
            }
        }
    }
}

impl Pipe {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.gathered.is_empty()
    }

    fn put(&mut self, frame: Frame<Bytes>) {
        match frame.data_ref().filter(|data| data.len() < SMALL && !self.is_empty()) {
            Some(data) if data.is_empty() => {}
            Some(data) => {
                let first = if self.gathered.is_empty() { FRAME } else { 0 };
                self.share.grow(first + data.len());
                self.gathered.extend_from_slice(data);
                if self.gathered.len() >= GATHERED {
                    self.gather();
                }
            }
            None => {
                self.gather();
                self.share.grow(cost(&frame));
                self.frames.push_back(frame);
            }
        }
    }

    /// Makes one piece of the small ones.
    fn gather(&mut self) {
        if !self.gathered.is_empty() {
            let piece = std::mem::take(&mut self.gathered).freeze();
            self.frames.push_back(Frame::data(piece));
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        if self.frames.is_empty() {
            self.gather();
        }
        let frame = self.frames.pop_front()?;
        self.share.shrink(cost(&frame));
        Some(frame)
    }
}

impl SpooledBody {
    /// Bytes of the request's body that were read so far.
    pub fn request_bytes(&self) -> u64 {
        self.pipe.borrow().request_bytes
    }

    fn take(mut pipe: RefMut<'_, Pipe>) -> Option<Frame<Bytes>> {
        let frame = pipe.pop()?;
        if let (Some(left), Some(data)) = (&mut pipe.left, frame.data_ref()) {
            *left = left.saturating_sub(data.len() as u64);
        }
        if std::mem::take(&mut pipe.waits_for_room)
            && let Some(filler) = pipe.filler.take()
        {
            filler.wake();
        }
        Some(frame)
    }
}

impl Body for SpooledBody {
    type Data = Bytes;
    type Error = ResponseBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseBodyError>>> {
        if let Some(frame) = Self::take(self.pipe.borrow_mut()) {
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut pipe = self.pipe.borrow_mut();
        match &mut pipe.end {
            Some(error) => Poll::Ready(error.take().map(Err)),
            None => {
                remember(&mut pipe.client, cx);
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let pipe = self.pipe.borrow();
        pipe.is_empty() && matches!(pipe.end, Some(None))
    }

    fn size_hint(&self) -> SizeHint {
        self.pipe.borrow().left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for SpooledBody {
    fn drop(&mut self) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.abandoned = true;
        if let Some(filler) = pipe.filler.take() {
            filler.wake();
        }
    }
}

fn cost(frame: &Frame<Bytes>) -> usize {
    FRAME + frame.data_ref().map_or(0, Bytes::len)
}

fn remember(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(known) => known.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}
