//! A client's HTTP/1 connection as its loop and the body of its request share it. Both run on one task, or at least on one thread:
//! a borrow lasts for one poll.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWrite;

use crate::config::limits::ChunkLimits;
use crate::inflow::{self, BULK_READ_SIZE, READ_SIZE};
use crate::listen::meter::Metered;
use crate::listen::tcp::Client;
use crate::upstream::error::ClientBodyError;
use crate::upstream::framing::{BodyDecoder, Decoded};
use crate::upstream::wire::{Malformed, RequestFraming};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Bytes of interim answers that wait for a client that takes none; more are dropped, being hints.
const MOST_INTERIM: usize = 64 * 1024;

/// The connection. It holds no buffer of its own: what was read is a slice of the thread's, and nothing while it is idle.
pub struct Wire<S> {
    /// The stream.
    pub stream: Metered<S>,
    /// What was read and not used yet.
    pub input: Bytes,
    /// The last read filled its room.
    bulk: bool,
    reception: Reception,
    /// Interim answers on their way; without memory while there are none.
    interim: Vec<u8>,
    interim_sent: usize,
}

/// How far the body of the request is that is being answered.
enum Reception {
    /// There is none, or all of it was read.
    Whole,
    /// More comes.
    Open {
        decoder: BodyDecoder,
        /// The client waits to be told to send it.
        expects_continue: bool,
        /// Nobody reads it any more.
        abandoned: bool,
    },
    /// Nothing that follows on the connection has a meaning.
    Broken,
}

impl<S: Client> Wire<S> {
    /// A connection on which nothing was said.
    pub fn new(stream: Metered<S>) -> Self {
        let (input, interim) = (Bytes::new(), Vec::new());
        Self { stream, input, bulk: false, reception: Reception::Whole, interim, interim_sent: 0 }
    }

    /// Reads more once `input` is used up; 0 is the end.
    pub fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = if self.bulk {
            inflow::poll_read_bytes(Pin::new(&mut self.stream), cx, BULK_READ_SIZE)
        } else {
            inflow::poll_read_bytes(Pin::new(&mut self.stream.first()), cx, READ_SIZE)
        };
        self.input = ready!(read)?;
        self.bulk = self.input.len() >= READ_SIZE;
        Poll::Ready(Ok(self.input.len()))
    }

    /// A body of this framing follows.
    pub fn expect_body(&mut self, framing: RequestFraming, expects_continue: bool, limits: &ChunkLimits) {
        self.reception = match framing {
            RequestFraming::None => Reception::Whole,
            RequestFraming::Length(_) | RequestFraming::Chunked => Reception::Open {
                decoder: BodyDecoder::of_request(framing, limits),
                expects_continue,
                abandoned: false,
            },
        };
    }

    /// Whether somebody else than the connection's loop may be reading.
    pub fn is_receiving(&self) -> bool {
        match &self.reception {
            Reception::Open { abandoned, .. } => !abandoned,
            Reception::Whole | Reception::Broken => false,
        }
    }

    /// Throws away what is here of a body that nobody reads. Whether the next request can be told from it.
    pub fn settle(&mut self) -> bool {
        let Reception::Open { decoder, expects_continue, abandoned } = &mut self.reception else {
            return matches!(self.reception, Reception::Whole);
        };
        // Who was never told to send may send the body, or not (RFC 9110 §10.1.1).
        if !*abandoned || *expects_continue {
            return false;
        }
        loop {
            match decoder.decode(&mut self.input) {
                Ok(Decoded::Data(_) | Decoded::Trailers(_)) => {}
                Ok(Decoded::More) | Err(_) => return false,
                Ok(Decoded::End) => {
                    self.reception = Reception::Whole;
                    return true;
                }
            }
        }
    }

    /// Takes an interim answer, which `write` appends, to be sent by [`Self::poll_interim`].
    pub fn put_interim(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.interim.len() < MOST_INTERIM {
            write(&mut self.interim);
        }
    }

    /// Gets interim answers out of the way. Nothing else may be written before.
    pub fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.interim.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.interim_sent < self.interim.len() {
            let rest = &self.interim[self.interim_sent..];
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.interim_sent += count;
        }
        ready!(self.poll_flush(cx))?;
        (self.interim, self.interim_sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    /// Gets what was written on its way.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        loop {
            let Reception::Open { decoder, expects_continue, .. } = &mut self.reception else {
                return Poll::Ready(None);
            };
            match decoder.decode(&mut self.input) {
                Ok(Decoded::Data(data)) => {
                    // It did not wait to be told.
                    *expects_continue = false;
                    if decoder.is_over() {
                        self.reception = Reception::Whole;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    // Whoever reads the body asks for no more, and somebody has to notice that the client goes.
                    self.reception = Reception::Whole;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Decoded::End) => {
                    self.reception = Reception::Whole;
                    return Poll::Ready(None);
                }
                Ok(Decoded::More) => {}
                Err(Malformed(what)) => {
                    self.reception = Reception::Broken;
                    return Poll::Ready(Some(Err(ClientBodyError::Malformed(what))));
                }
            }
            if std::mem::take(expects_continue) {
                self.interim.extend_from_slice(CONTINUE);
            }
            let read = match ready!(self.poll_interim(cx)) {
                Ok(()) => ready!(self.poll_input(cx)),
                Err(error) => Err(error),
            };
            let cause = match read {
                Ok(1..) => continue,
                Ok(0) => None,
                Err(error) => Some(error),
            };
            self.reception = Reception::Broken;
            return Poll::Ready(Some(Err(ClientBodyError::Closed(cause))));
        }
    }
}

/// The body of the request on a connection, for whoever reads it.
pub struct RequestStream<S>(Rc<RefCell<Wire<S>>>);

impl<S: Client> RequestStream<S> {
    /// What [`Wire::expect_body`] announced on `wire`.
    pub fn new(wire: &Rc<RefCell<Wire<S>>>) -> Self {
        Self(Rc::clone(wire))
    }
}

impl<S: Client> Body for RequestStream<S> {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        self.0.borrow_mut().poll_body(cx)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0.borrow().reception, Reception::Whole)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0.borrow().reception {
            Reception::Open { decoder, .. } => {
                decoder.left().map_or_else(SizeHint::default, SizeHint::with_exact)
            }
            Reception::Whole => SizeHint::with_exact(0),
            Reception::Broken => SizeHint::default(),
        }
    }
}

impl<S> Drop for RequestStream<S> {
    fn drop(&mut self) {
        if let Reception::Open { abandoned, .. } = &mut self.0.borrow_mut().reception {
            *abandoned = true;
        }
    }
}
