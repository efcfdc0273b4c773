//! One attempt over HTTP/2: a request as a stream of a shared connection, up to the head of the answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body::Body as _;

use crate::config::limits::ResponseLimits;
use crate::upstream::body::Watch;
use crate::upstream::duplex::Duplex;
use crate::upstream::error::SendError;
use crate::upstream::exchange::{Answer, Interim, Reach, Tunnel};
use crate::upstream::lease::Lease;
use crate::upstream::multiplex::Place;
use crate::upstream::request_body::RequestBody;
use crate::upstream::stream_body::{StreamBody, Transfer};
use crate::upstream::stream_head;
use crate::upstream::stream_upload::{Rest, StreamUpload};
use crate::upstream::upload::UploadState;
use crate::upstream::wire::{Malformed, RequestHead};

/// As `exchange`, to a worker that speaks HTTP/2. Dropping the future resets the stream. Where the worker says that it did
/// nothing with the request, a body of which not too much was read is put back.
pub async fn exchange(
    reach: &Reach,
    mut lease: Lease,
    head: &RequestHead<'_>,
    body: &mut Option<Box<RequestBody>>,
    early: Interim<'_>,
) -> Result<Answer, SendError> {
    if body.as_ref().is_some_and(|body| !body.is_short()) {
        // It may be the client who is waited for.
        lease.answered();
    }
    let has_body = body.as_ref().is_some_and(|body| !body.is_end_stream());
    let length = body.as_ref().filter(|_| has_body).and_then(|body| body.size_hint().exact());
    let request =
        stream_head::request(head, length).map_err(|Malformed(what)| SendError::Unwritable(what))?;
    if let Some(body) = body.as_ref() {
        body.check_announced()?;
    }
    let deadline = reach.deadlines.deadline();
    let (mut sender, place) = {
        let mut taking = pin!(async {
            let taken = reach.shared.take(lease.slot(), &reach.limits).await;
            let taken = taken.inspect_err(|error| lease.slot().note_failure(error));
            let (sender, place) = taken.map_err(SendError::Connect)?;
            if head.upgrade && !place.takes_websockets(&sender).await {
                return Err(SendError::NoWebSockets);
            }
            Ok((sender, place))
        });
        deadline.set(reach.timeouts.connect);
        let taken = poll_fn(|cx| match taking.as_mut().poll(cx) {
            Poll::Ready(taken) => Poll::Ready(taken),
            Poll::Pending => deadline
                .poll_passed(cx)
                .map(|()| Err(SendError::Connect(std::io::ErrorKind::TimedOut.into()))),
        });
        taken.await?
    };
    deadline.clear();
    let ends = !has_body && !head.upgrade;
    let (response, stream) = sender.send_request(request, ends).map_err(|_| SendError::Refused)?;
    let (silent, idle) = if stream_head::is_grpc(head.headers) {
        // A call may be silent in both directions for as long as its own deadline says, and its messages be small and rare.
        if let Some(body) = body.as_mut() {
            body.be_patient(reach.timeouts.tunnel);
        }
        (reach.timeouts.tunnel, reach.timeouts.tunnel)
    } else {
        (reach.timeouts.first_byte, reach.timeouts.upstream_idle)
    };
    let mut attempt = Attempt {
        response,
        upload: StreamUpload::new(stream, body.take().filter(|_| has_body)),
        watch: Watch::new(deadline, silent),
        interim: 0,
        limits: &reach.limits.response,
        early,
        place,
    };
    let response = match poll_fn(|cx| attempt.poll_head(cx)).await {
        Ok(response) => response,
        Err(error) => {
            if matches!(error, SendError::Refused) {
                *body = attempt.upload.take_back(&reach.budget);
            }
            let ended = matches!(error, SendError::Closed { .. });
            return Err(if ended && lease.slot().is_stuck() { SendError::Hung } else { error });
        }
    };
    lease.answered();
    let (mut head_in, stream) = response.into_parts();
    let left = stream_head::check_response(&mut head_in, head.method, &reach.limits.response)
        .map_err(|Malformed(what)| SendError::BadResponse(what))?;
    let Attempt { upload, mut watch, mut place, .. } = attempt;
    place.answered();
    if head.upgrade && head_in.status.is_success() {
        if stream.is_end_stream() {
            return Err(SendError::BadResponse("it opens a WebSocket and ends it with the same frame"));
        }
        // RFC 9110 §8.6: it means nothing there, and clients may hold the tunnel to it.
        head_in.headers.remove(CONTENT_LENGTH);
        let stream = Box::new(Duplex::new(upload.into_stream(), stream, place));
        return Ok(Answer::Upgraded {
            head: Response::from_parts(head_in, ()),
            tunnel: Tunnel { lease, stream },
        });
    }
    watch.be_patient(idle);
    let request_bytes = upload.received();
    let upload = (!upload.is_over()).then(|| Rest::send(upload, &reach.shared.tasks));
    let trailers = reach.limits.chunks;
    let tasks = reach.shared.tasks.clone();
    let transfer = Box::new(Transfer { stream, upload, watch, trailers, place, tasks, ended: None });
    let body = StreamBody::new(lease, left, request_bytes, transfer);
    Ok(Answer::Stream(Response::from_parts(head_in, body)))
}

/// A request whose answer has not begun.
struct Attempt<'a> {
    response: ResponseFuture,
    upload: StreamUpload,
    watch: Watch,
    /// Interim responses so far.
    interim: u32,
    limits: &'a ResponseLimits,
    early: Interim<'a>,
    place: Place,
}

impl Attempt<'_> {
    /// Sends and waits: an answer may come before the body is all sent.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, SendError>> {
        let (state, moved) = self.upload.drive(cx)?;
        if moved {
            self.watch.stop();
        }
        while let Poll::Ready(Some(interim)) = self.response.poll_informational(cx) {
            let (mut interim, ()) = interim.map_err(failed)?.into_parts();
            self.watch.stop();
            self.interim += 1;
            if self.interim > self.limits.interim {
                return Poll::Ready(Err(SendError::BadResponse("it has too many interim responses")));
            }
            stream_head::check_interim(&mut interim, self.limits)
                .map_err(|Malformed(what)| SendError::BadResponse(what))?;
            if let Some(early) = self.early.filter(|_| interim.status != StatusCode::CONTINUE) {
                early(interim.status, &interim.headers);
            }
        }
        if let Poll::Ready(answer) = Pin::new(&mut self.response).poll(cx) {
            return Poll::Ready(answer.map_err(failed));
        }
        match state {
            UploadState::OnClient => {
                self.watch.stop();
                Poll::Pending
            }
            UploadState::Sent | UploadState::OnWorker | UploadState::Refused => {
                ready!(self.watch.poll_passed(cx));
                self.place.give_up_connection();
                Poll::Ready(Err(SendError::TimedOut))
            }
        }
    }
}

/// Why a stream ended before there was an answer.
fn failed(error: h2::Error) -> SendError {
    let reason = error.reason();
    match reason {
        // RFC 9113 §8.7: nothing was done with it. The library tells of GOAWAY to those streams only that it says so of, unless
        // the connection broke over it.
        Some(Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => SendError::Refused,
        Some(Reason::NO_ERROR) if error.is_go_away() && error.is_remote() => SendError::Refused,
        Some(reason) if error.is_reset() && error.is_remote() => SendError::Reset(reason),
        Some(_) if error.is_library() => SendError::BadResponse("it breaks the rules of HTTP/2"),
        Some(_) | None => SendError::Closed { cause: error.into_io(), reused: false, sent: true },
    }
}
