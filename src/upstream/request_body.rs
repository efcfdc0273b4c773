//! A client's request body on its way to a worker: bounded, watched for progress, counted.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::config::limits::ChunkLimits;
use crate::deadline::Deadline;
use crate::upstream::budget::{Budget, Share};
use crate::upstream::client_body::ClientBody;
use crate::upstream::error::RequestBodyError;

/// A body up to this length usually comes with the request's head.
const SHORT: u64 = 16 * 1024;

/// A client's request body: bounded by `max_body`, watched for progress, counted.
pub struct RequestBody {
    incoming: ClientBody,
    bounds: Bounds,
    received: Rc<Cell<u64>>,
    deadline: Deadline,
    pace: Pace,
    ahead: Option<Ahead>,
}

/// What a body must keep to.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Longest body, in bytes.
    pub length: u64,
    /// Longest silence while more is waited for.
    pub idle: Duration,
    /// Least average speed once it was waited for as long as that, in bytes a second; 0 for any.
    pub rate: u64,
    /// Of its trailers.
    pub chunks: ChunkLimits,
}

/// How long the client was waited for.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    since: Option<Instant>,
}

impl Pace {
    /// How long the client may be silent from now on, after `received` bytes.
    fn patience(&self, received: u64, bounds: &Bounds) -> Duration {
        let Some(earned) = received.checked_mul(1000).and_then(|millis| millis.checked_div(bounds.rate))
        else {
            return bounds.idle;
        };
        let allowed = Duration::from_millis(earned).max(bounds.idle);
        allowed.saturating_sub(self.waited).min(bounds.idle)
    }

    /// The client is not waited for any more.
    fn stop(&mut self, now: Instant) -> bool {
        let Some(since) = self.since.take() else { return false };
        self.waited += now.duration_since(since);
        true
    }
}

/// What was taken in before a worker was asked.
struct Ahead {
    /// In one piece: frames are slices of larger buffers, and a slow client's would each hold one.
    data: BytesMut,
    trailers: Option<HeaderMap>,
    /// That was all.
    whole: bool,
    share: Share,
}

impl RequestBody {
    /// The client's time runs on `deadline` whenever the worker is ready to take more. Boxed, because most requests have none, and
    /// it goes from hand to hand: each would keep room for it.
    pub fn new(incoming: ClientBody, deadline: Deadline, bounds: Bounds) -> Box<Self> {
        let received = Rc::default();
        Box::new(Self { incoming, bounds, received, deadline, pace: Pace::default(), ahead: None })
    }

    /// Takes in what fits into memory, so that a worker that is busy with one request at a time is not busy with waiting for
    /// this client.
    pub async fn take_in(&mut self, budget: &Rc<Budget>) -> Result<(), RequestBodyError> {
        let mut share = budget.share();
        let (mut data, mut trailers) = (BytesMut::new(), None);
        let mut whole = self.incoming.is_end_stream();
        while !whole && share.has_room() {
            match poll_fn(|cx| self.poll_incoming(cx)).await.transpose()?.map(Frame::into_data) {
                Some(Ok(more)) => {
                    share.grow(more.len());
                    data.extend_from_slice(&more);
                }
                Some(Err(frame)) => trailers = frame.into_trailers().ok(),
                None => whole = true,
            }
            whole |= self.incoming.is_end_stream();
        }
        self.ahead = Some(Ahead { data, trailers, whole, share });
        Ok(())
    }

    /// Puts back what was read of it, to be read once more.
    pub(super) fn put_back(&mut self, read: &[Bytes], trailers: Option<HeaderMap>, budget: &Rc<Budget>) {
        let mut share = budget.share();
        let (rest, unread, whole) = match self.ahead.take() {
            Some(ahead) => (ahead.data, ahead.trailers, ahead.whole),
            None => (BytesMut::new(), None, self.incoming.is_end_stream()),
        };
        let trailers = trailers.or(unread);
        let mut data = BytesMut::with_capacity(read.iter().map(Bytes::len).sum::<usize>() + rest.len());
        for piece in read.iter().map(|piece| &piece[..]).chain([&rest[..]]) {
            data.extend_from_slice(piece);
        }
        share.grow(data.len());
        self.ahead = Some(Ahead { data, trailers, whole, share });
    }

    /// Notes that the worker takes no more for now.
    pub(super) fn leave(&mut self) {
        self.incoming.leave();
    }

    /// Notes that the worker has all that was taken in: there is room for others', however long the answer takes.
    pub(super) fn passed_on(&mut self) {
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.data.is_empty()) {
            ahead.share.clear();
        }
    }

    /// Whether all of it came with the request's head, or nearly so.
    pub fn is_short(&self) -> bool {
        self.size_hint().upper().is_some_and(|length| length <= SHORT)
    }

    /// From now on the client may be as slow as it likes, but not silent for longer than `idle`.
    pub(super) fn be_patient(&mut self, idle: Duration) {
        self.bounds.idle = idle;
        self.bounds.rate = 0;
    }

    /// Bytes read from the client so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// The same, for whoever wants to know once it is in other hands.
    pub fn counter(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.received)
    }

    /// An error if it is announced to be longer than the limit.
    pub fn check_announced(&self) -> Result<(), RequestBodyError> {
        if self.incoming.size_hint().lower() > self.bounds.length {
            return Err(RequestBodyError::TooLarge { limit: self.bounds.length });
        }
        Ok(())
    }

    fn poll_incoming(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if self.pace.since.is_none() {
                    self.deadline.set(self.pace.patience(self.received(), &self.bounds));
                    self.pace.since = Some(self.deadline.now());
                }
                return self.deadline.poll_passed(cx).map(|()| Some(Err(RequestBodyError::TooSlow)));
            }
        };
        if self.pace.since.is_some() && self.pace.stop(self.deadline.now()) {
            self.deadline.clear();
        }
        Poll::Ready(match frame {
            None => None,
            Some(Err(error)) => Some(Err(RequestBodyError::Broken(error))),
            Some(Ok(frame)) => {
                self.received.set(self.received() + frame.data_ref().map_or(0, |data| data.len() as u64));
                if self.received() > self.bounds.length {
                    return Poll::Ready(Some(Err(RequestBodyError::TooLarge { limit: self.bounds.length })));
                }
                if frame.trailers_ref().is_some_and(|trailers| !fits(trailers, &self.bounds.chunks)) {
                    return Poll::Ready(Some(Err(RequestBodyError::TrailersTooLarge)));
                }
                Some(Ok(frame))
            }
        })
    }
}

/// Whether trailers keep to their limits.
pub(super) fn fits(trailers: &HeaderMap, limits: &ChunkLimits) -> bool {
    let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    trailers.len() <= limits.trailer_fields as usize && size <= limits.trailer_size as usize
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    /// Each poll says that the worker is ready to take more: while it is not, the client's time stands still.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        if let Some(ahead) = &mut self.ahead {
            if !ahead.data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(ahead.data.split().freeze()))));
            }
            if let Some(trailers) = ahead.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
            }
            if ahead.whole {
                return Poll::Ready(None);
            }
        }
        // Who asks for more has sent what there was.
        self.passed_on();
        self.poll_incoming(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) => {
                let passed = ahead.data.is_empty() && ahead.trailers.is_none();
                passed && (ahead.whole || self.incoming.is_end_stream())
            }
            None => self.incoming.is_end_stream(),
        }
    }

    /// Exact where all of a body without trailers is here, whatever the client announced.
    fn size_hint(&self) -> SizeHint {
        let Some(ahead) = &self.ahead else { return self.incoming.size_hint() };
        let here = ahead.data.len() as u64;
        if ahead.whole && ahead.trailers.is_none() {
            return SizeHint::with_exact(here);
        }
        let (coming, mut hint) = (self.incoming.size_hint(), SizeHint::new());
        hint.set_lower(coming.lower() + here);
        if let Some(upper) = coming.upper().filter(|_| ahead.trailers.is_none()) {
            hint.set_upper(upper + here);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(rate: u64) -> Bounds {
        let chunks = ChunkLimits { extensions: 0, trailer_size: 20, trailer_fields: 2 };
        Bounds { length: 1 << 40, idle: Duration::from_secs(30), rate, chunks }
    }

    fn after(waited: u64) -> Pace {
        Pace { waited: Duration::from_secs(waited), since: None }
    }

    #[test]
    fn d03_a_client_is_waited_for_as_long_as_it_is_not_too_slow_on_average() {
        for (waited, received, rate, patience) in [
            (0, 0, 1000, 30),
            (29, 15, 1000, 1),
            (30, 15, 1000, 0),
            (30, 60_000, 1000, 30),
            (59, 60_000, 1000, 1),
            (60, 60_000, 1000, 0),
            (3600, 15, 0, 30),
            (3600, u64::MAX, 1000, 30),
        ] {
            let found = after(waited).patience(received, &bounds(rate));
            assert_eq!(found, Duration::from_secs(patience), "{received} bytes in {waited} s at {rate} B/s");
        }
    }

    #[test]
    fn a12_trailers_are_bounded_in_fields_and_bytes() {
        let trailers = |fields: &[(&'static str, &str)]| {
            let fields = fields
                .iter()
                .map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")));
            HeaderMap::from_iter(fields)
        };
        let limits = bounds(0).chunks;
        assert!(fits(&trailers(&[("a", "b"), ("c", "d")]), &limits));
        assert!(!fits(&trailers(&[("a", "b"), ("c", "d"), ("e", "f")]), &limits));
        assert!(!fits(&trailers(&[("a", "0123456789abcdef")]), &limits));
    }
}
