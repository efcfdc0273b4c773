//! One answer of HTTP/1.1 on its way to a client: its head leaves with the first piece of its body, and what breaks off looks so.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame};

use crate::listen::http1::End;
use crate::listen::response::{self, Announced, Asked, CHUNK_END, Date, Framing, LAST_CHUNK};
use crate::listen::tcp::Client;
use crate::listen::wire::Wire;
use crate::outbox::Outbox;
use crate::proxy::body::Body;
use crate::upstream::framing::write_chunk_size;

/// A response on its way.
pub(super) struct Answer {
    /// Where its bytes come from.
    pub(super) body: Body,
    framing: Framing,
    asked: Asked,
    out: Outbox,
    /// The head waits for the first piece of the body.
    fresh: bool,
    /// All of it is in `out`, or was.
    over: bool,
    /// It breaks off here.
    cut: bool,
    /// The connection may carry another request.
    pub(super) more: bool,
}

impl Answer {
    /// The answer `response` to what was `asked`; after it the connection closes where `close` says so, or its framing.
    pub(super) fn begin(
        response: Response<Body>,
        asked: Asked,
        close: bool,
        date: impl FnOnce() -> Date,
    ) -> Self {
        let (head, body) = response.into_parts();
        let mut out = Outbox::empty();
        let announced = Announced { length: body.size_hint().exact(), empty: body.is_end_stream() };
        let (framing, more) = response::write_head(out.text(), &head, announced, asked, close, date);
        let over = matches!(framing, Framing::None | Framing::Length(0));
        Self { body, framing, asked, out, fresh: true, over, cut: false, more }
    }

    /// Writes what there is to write, as far as the client takes it.
    pub(super) fn poll<S: Client>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &RefCell<Wire<S>>,
    ) -> Poll<Result<(), End>> {
        // What is here already leaves with the head, in one write.
        let mut waiting = std::mem::take(&mut self.fresh) && !self.over && self.poll_piece(cx).is_pending();
        loop {
            {
                let wire = &mut *wire.borrow_mut();
                if self.over && !self.more {
                    wire.stream.get_mut().part();
                }
                let written = match wire.poll_interim(cx) {
                    Poll::Ready(Ok(())) => self.out.poll_write(cx, &mut wire.stream),
                    other => other,
                };
                // What was written may still lie in TLS's buffer.
                let written = match written {
                    Poll::Ready(Ok(())) if self.over || waiting => wire.poll_flush(cx),
                    other => other,
                };
                if ready!(written).is_err() {
                    return Poll::Ready(Err(End::Abort));
                }
            }
            if self.over {
                return Poll::Ready(if self.cut { Err(self.torn(End::Close)) } else { Ok(()) });
            }
            if waiting {
                return Poll::Pending;
            }
            waiting = self.poll_piece(cx).is_pending();
        }
    }

    /// How the connection ends where the rest of the answer is not sent: by `end`, if the client can tell from that alone.
    pub(super) fn torn(&self, end: End) -> End {
        match self.framing {
            Framing::UntilClose => End::Reset,
            Framing::None | Framing::Length(_) | Framing::Chunked => end,
        }
    }

    /// Puts the next piece of the body into the outbox, which must be empty but for the head.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose() {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => self.put(data),
                Err(frame) => self.finish(Some(frame)),
            },
            Ok(None) => self.finish(None),
            // Its entry has the reason.
            Err(_) => (self.over, self.cut) = (true, true),
        }
        Poll::Ready(())
    }

    fn put(&mut self, mut data: Bytes) {
        let last = self.body.is_end_stream();
        match &mut self.framing {
            Framing::None => {}
            Framing::Length(left) => {
                // More than announced would be another response.
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                self.over = *left == 0;
                self.out.put(data, b"");
            }
            Framing::Chunked if data.is_empty() => {}
            Framing::Chunked => {
                write_chunk_size(self.out.text(), data.len());
                self.out.put(data, if last { LAST_CHUNK } else { CHUNK_END });
                self.over = last;
            }
            Framing::UntilClose => self.out.put(data, b""),
        }
        if last && !self.over {
            self.finish(None);
        }
    }

    fn finish(&mut self, trailers: Option<Frame<Bytes>>) {
        self.over = true;
        match self.framing {
            Framing::None | Framing::Length(0) | Framing::UntilClose => {}
            Framing::Length(_) => self.cut = true,
            Framing::Chunked => {
                let trailers = trailers.and_then(|frame| frame.into_trailers().ok());
                response::write_end(self.out.text(), trailers.as_ref(), self.asked);
            }
        }
    }
}
