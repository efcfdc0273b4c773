//! The pages and streams of the demo worker.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRAILER, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use crate::daemon::hello::Hello;
use crate::daemon::hello::faults::Truncated;

/// Why a body broke off.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Reply = Response<Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>>;

const ROUTES: &str = "/  /json  /events  /ws  /echo  /bytes/N  /upload  /slow/MS  /status/CODE  /chunked\n";

/// Answers one request. `garbage` spoils the connection it came on.
pub(super) async fn answer(
    hello: Rc<Hello>,
    request: Request<Incoming>,
    garbage: Arc<AtomicBool>,
) -> Result<Reply, Infallible> {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let (first, rest) = path.split_once('/').unwrap_or((&path, ""));
    Ok(match (first, rest) {
        ("", _) => page(&hello, request.headers()),
        ("json", "") => json_page(&hello, &request),
        ("events", "") => events(hello),
        ("ws", "") => websocket(&hello, request),
        ("echo", "") => echo(request),
        ("upload", "") => upload(request.into_body()).await,
        ("chunked", "") => chunked(),
        ("bytes", count) => count.parse().map_or_else(|_| bad("/bytes/N"), bytes),
        ("slow", millis) => match millis.parse::<u32>() {
            Ok(millis) => {
                tokio::time::sleep(Duration::from_millis(millis.into())).await;
                text(StatusCode::OK, format!("after {millis} ms\n"))
            }
            Err(_) => bad("/slow/MS"),
        },
        ("status", code) => status(code),
        (fault, rest) if hello.faults => misbehave(&hello, fault, rest, &garbage).await,
        _ => text(StatusCode::NOT_FOUND, format!("this worker knows {ROUTES}")),
    })
}

fn page(hello: &Hello, headers: &HeaderMap) -> Reply {
    let (head, tail) = include_str!("page.html").split_once("{{rows}}").unwrap_or_default();
    let mut page = String::with_capacity(head.len() + tail.len() + 1024);
    page.push_str(head);
    let pid = std::process::id().to_string();
    for (name, value) in [
        ("app", hello.app.as_str()),
        ("worker", hello.worker.as_str()),
        ("process", &pid),
        ("scheme", scheme(headers)),
        ("your address", client(headers)),
        ("host", field(headers, HOST.as_str())),
        ("Forwarded", field(headers, "forwarded")),
        ("request id", field(headers, "x-request-id")),
    ] {
        // Writing to a String cannot fail.
        let _ = write!(page, "<tr><th>{name}</th><td>");
        escape(value, &mut page);
        page.push_str("</td></tr>\n");
    }
    page.push_str(tail);
    reply(StatusCode::OK, "text/html; charset=utf-8", page)
}

fn json_page(hello: &Hello, request: &Request<Incoming>) -> Reply {
    let headers = request.headers();
    let all: serde_json::Map<_, _> = headers
        .keys()
        .map(|name| {
            let values: Vec<_> =
                headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
            (name.to_string(), values.join(", ").into())
        })
        .collect();
    let seen = json!({
        "app": hello.app,
        "worker": hello.worker,
        "pid": std::process::id(),
        "requests": hello.requests.get(),
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "version": format!("{:?}", request.version()),
        "scheme": scheme(headers),
        "client": client(headers),
        "host": field(headers, HOST.as_str()),
        "headers": all,
    });
    reply(StatusCode::OK, "application/json", format!("{seen}\n"))
}

/// What edge says of the client's connection; `http` where nobody says anything.
fn scheme(headers: &HeaderMap) -> &str {
    match field(headers, "x-forwarded-proto") {
        "-" => "http",
        scheme => scheme,
    }
}

fn client(headers: &HeaderMap) -> &str {
    field(headers, "x-forwarded-for").split(',').next().unwrap_or("-").trim()
}

fn field<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-")
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
}

/// One event at once, then one a second, until the worker is told to end.
fn events(hello: Rc<Hello>) -> Reply {
    let ticks = tokio::time::interval(Duration::from_secs(1));
    let events = stream::unfold((hello, ticks), |(hello, mut ticks)| async move {
        tokio::select! {
            _ = ticks.tick() => {}
            () = hello.scope.drained() => return None,
        }
        let data = json!({
            "app": hello.app,
            "worker": hello.worker,
            "pid": std::process::id(),
            "requests": hello.requests.get(),
            "uptime_s": hello.started.elapsed().as_secs(),
        });
        let event = Frame::data(Bytes::from(format!("data: {data}\n\n")));
        Some((Ok::<_, BoxError>(event), (hello, ticks)))
    });
    let mut response = Response::new(Box::pin(StreamBody::new(events)) as Pin<Box<_>>);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// RFC 6455 §4.2: accepts, and sends every message back.
fn websocket(hello: &Rc<Hello>, mut request: Request<Incoming>) -> Reply {
    let asked = field(request.headers(), UPGRADE.as_str()).eq_ignore_ascii_case("websocket");
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).filter(|_| asked) else {
        let mut response = text(StatusCode::UPGRADE_REQUIRED, "this is a WebSocket\n".to_owned());
        response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        return response;
    };
    let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) else { return bad("/ws") };
    let upgrade = hyper::upgrade::on(&mut request);
    let owner = Rc::clone(hello);
    drop(hello.scope.spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            converse(&owner, TokioIo::new(upgraded)).await;
        }
    }));
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, String::new());
    let headers = response.headers_mut();
    headers.remove(CONTENT_TYPE);
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// Errors end a conversation like a close does.
async fn converse(hello: &Hello, io: TokioIo<hyper::upgrade::Upgraded>) {
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    loop {
        let message = tokio::select! {
            message = socket.next() => message,
            () = hello.scope.drained() => {
                let away = CloseFrame { code: CloseCode::Away, reason: "worker ends".into() };
                // The peer's close frame is awaited, for a while.
                let farewell = async {
                    if socket.close(Some(away)).await.is_ok() {
                        while let Some(Ok(_)) = socket.next().await {}
                    }
                };
                let _ = tokio::time::timeout(Duration::from_secs(2), farewell).await;
                return;
            }
            () = hello.scope.aborted() => return,
        };
        match message {
            Some(Ok(message)) if message.is_text() || message.is_binary() => {
                if socket.send(message).await.is_err() {
                    return;
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return,
        }
    }
}

fn echo(request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let mut response = Response::new(Box::pin(body.map_err(BoxError::from)) as Pin<Box<_>>);
    if let Some(kind) = head.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

async fn upload(mut body: Incoming) -> Reply {
    let mut received = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => received += frame.data_ref().map_or(0, Bytes::len),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("after {received} bytes: {error}\n")),
        }
    }
    reply(StatusCode::OK, "application/json", format!("{}\n", json!({ "received": received })))
}

fn bytes(count: u64) -> Reply {
    let mut response = Response::new(Box::pin(Pattern { sent: 0, count }) as Pin<Box<_>>);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

/// Byte `i` is `i % 251`: a lost or repeated piece shows, whatever the sizes of reads.
struct Pattern {
    sent: u64,
    count: u64,
}

static PIECE: [u8; 251 * 256] = {
    let mut piece = [0; 251 * 256];
    let mut at = 0;
    while at < piece.len() {
        piece[at] = (at % 251) as u8;
        at += 1;
    }
    piece
};

impl Body for Pattern {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let left = self.count - self.sent;
        if left == 0 {
            return Poll::Ready(None);
        }
        let length = left.min(PIECE.len() as u64);
        self.sent += length;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE[..length as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent == self.count
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.count - self.sent)
    }
}

/// Three chunks, then a trailer field that counts them.
fn chunked() -> Reply {
    let mut trailers = HeaderMap::new();
    trailers.insert(HeaderName::from_static("x-lines"), HeaderValue::from_static("3"));
    let lines = ["one\n", "two\n", "three\n"]
        .map(|line| Ok::<_, BoxError>(Frame::data(Bytes::from_static(line.as_bytes()))));
    let frames = stream::iter(lines).chain(stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(Box::pin(StreamBody::new(frames)) as Pin<Box<_>>);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-lines"));
    response
}

fn status(code: &str) -> Reply {
    match code.parse::<u16>().ok().filter(|code| (200..600).contains(code)).map(StatusCode::from_u16) {
        Some(Ok(status)) if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED => {
            let mut response = text(status, String::new());
            response.headers_mut().remove(CONTENT_TYPE);
            response
        }
        Some(Ok(status)) => text(status, format!("{status}\n")),
        Some(Err(_)) | None => bad("/status/CODE, 200 to 599"),
    }
}

async fn misbehave(hello: &Hello, fault: &str, rest: &str, garbage: &AtomicBool) -> Reply {
    match (fault, rest.parse::<u8>()) {
        ("exit", Ok(code)) => {
            hello.ask_exit(code);
            std::future::pending().await
        }
        ("abort", _) => std::process::abort(),
        ("block", _) => match rest.parse::<u32>() {
            Ok(millis) => {
                block(Duration::from_millis(millis.into()));
                text(StatusCode::OK, format!("blocked {millis} ms\n"))
            }
            Err(_) => bad("/block/MS"),
        },
        ("hang", _) => std::future::pending().await,
        ("truncate", _) => Response::new(Box::pin(Truncated::default())),
        ("garbage", _) => {
            garbage.store(true, Ordering::Relaxed);
            text(StatusCode::OK, String::new())
        }
        _ => text(
            StatusCode::NOT_FOUND,
            format!("this worker knows {ROUTES}/exit/CODE  /abort  /block/MS  /hang  /truncate  /garbage\n"),
        ),
    }
}

/// What a blocking call in an asynchronous handler does: nobody else is served meanwhile.
#[expect(clippy::disallowed_methods, reason = "to block the event loop is what is asked for")]
fn block(span: Duration) {
    std::thread::sleep(span);
}

fn bad(usage: &str) -> Reply {
    text(StatusCode::BAD_REQUEST, format!("write {usage}\n"))
}

fn text(status: StatusCode, text: String) -> Reply {
    reply(status, "text/plain; charset=utf-8", text)
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Reply {
    let mut response =
        Response::new(Box::pin(Full::from(text).map_err(|never: Infallible| -> BoxError { match never {} }))
            as Pin<Box<_>>);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
