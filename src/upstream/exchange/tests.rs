//! Exchanges with scripted workers on unix sockets; uploads come through hyper's server.

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, Collected};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::config::model::{Address, Protocol};
use crate::name::WorkerId;
use crate::scope::Scope;
use crate::upstream::client_body::ClientBody;
use crate::upstream::error::{ClientBodyError, RequestBodyError, ResponseBodyError};
use crate::worker::slot::Slot;

mod ahead;
mod answers;
mod connections;
mod uploads;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(30);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

struct Rig {
    _dir: tempfile::TempDir,
    listener: UnixListener,
    slot: Arc<Slot>,
    reach: Reach,
    max_body: u64,
    /// How the last exchange of the front failed.
    failed: RefCell<Option<SendError>>,
    /// What is answered to who asks whether an unread request is to be asked of another.
    relief: Option<bool>,
}

/// The worker's end of a connection.
struct Peer(UnixStream);

impl Peer {
    /// Reads up to and with `end`.
    async fn read_to(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            text.push(self.0.read_u8().await.expect("the request goes on"));
        }
        String::from_utf8(text).expect("text")
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("edge listens");
    }

    async fn answer(&mut self, text: &str) {
        self.read_to("\r\n\r\n").await;
        self.say(text).await;
    }

    /// What is left to read until edge closes.
    async fn rest(mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).await.expect("closed, not reset");
        text
    }
}

impl Rig {
    /// It waits long for everything: a short time may pass while the machine stands still, and is set where it must pass.
    fn new() -> Self {
        let timeouts = Timeouts {
            handshake: LONG,
            headers: LONG,
            body: LONG,
            write: LONG,
            keepalive: LONG,
            keepalive_h2: LONG,
            connection_age: LONG,
            pool_idle: None,
            connect: LONG,
            first_byte: LONG,
            upstream_idle: LONG,
            tunnel: LONG,
        };
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("w");
        let listener = UnixListener::bind(&path).expect("bound");
        let id = WorkerId { app: "api".parse().expect("valid"), slot: 0, incarnation: 1 };
        let slot = Slot::new(id, 1, Address::Unix(path), Protocol::Http1, LONG, None);
        let reach = Reach {
            idle: IdleConnections::new(),
            shared: SharedConnections::new(Scope::new()),
            deadlines: Deadlines::new(),
            timeouts,
            limits: Limits { body_rate: 0, ..crate::config::check_limits::presets().1 },
            budget: Budget::new(),
        };
        Self { _dir: dir, listener, slot, reach, max_body: 1 << 20, failed: RefCell::new(None), relief: None }
    }

    fn at(address: Address) -> Self {
        let rig = Self::new();
        let slot = Slot::new(rig.slot.id.clone(), 1, address, Protocol::Http1, LONG, None);
        Self { slot, ..rig }
    }

    async fn accept(&self) -> Peer {
        Peer(self.listener.accept().await.expect("accepted").0)
    }

    fn lease(&self) -> Lease {
        Lease::take(&self.slot).expect("open")
    }

    async fn send(
        &self,
        method: Method,
        upgrade: bool,
        body: &mut Option<Box<RequestBody>>,
    ) -> Result<Answer, SendError> {
        let (host, headers) = (HeaderValue::from_static("a.test"), http::HeaderMap::new());
        let head = RequestHead {
            method: &method,
            target: "/",
            host: &host,
            headers: &headers,
            add: &|_| {},
            upgrade,
        };
        let relief = |_: &Slot, _| self.relief == Some(true);
        let elsewhere: Elsewhere<'_> = if self.relief.is_some() { Some(&relief) } else { None };
        exchange(&self.reach, self.lease(), &head, body, None, elsewhere).await
    }

    async fn response(&self, method: Method) -> Result<Response<ResponseBody>, SendError> {
        self.send(method, false, &mut None).await.map(|answer| match answer {
            Answer::Response(response) => response,
            Answer::Stream(_) | Answer::Upgraded { .. } => panic!("not asked for"),
        })
    }

    async fn get(&self) -> Result<Collected<Bytes>, ResponseBodyError> {
        self.response(Method::GET).await.expect("a head").into_body().collect().await
    }

    /// GETs while a worker answers with `text` and closes.
    async fn get_answered(&self, text: &str) -> Result<Collected<Bytes>, ResponseBodyError> {
        let worker = async { self.accept().await.answer(text).await };
        self.run(async { tokio::join!(self.get(), worker).0 }).await
    }

    /// Runs to the end of `work`, which must not take long.
    async fn run<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            () = self.reach.deadlines.run() => unreachable!("never returns"),
            () = tokio::time::sleep(LONG) => panic!("hangs"),
        }
    }

    /// An HTTP/1.1 server that forwards to the slot, and the client's end of a connection to it.
    fn front(&self) -> (DuplexStream, impl Future<Output = ()>) {
        let (client, server) = tokio::io::duplex(1 << 20);
        let service = service_fn(async |request: Request<Incoming>| {
            let (parts, incoming) = request.into_parts();
            let deadline = self.reach.deadlines.deadline();
            let incoming = incoming.map_err(|error| ClientBodyError::Closed(Some(io::Error::other(error))));
            let incoming = ClientBody::streamed(Box::pin(incoming));
            let mut body = Some(RequestBody::new(incoming, deadline, self.reach.bounds(self.max_body)));
            match self.send(parts.method, false, &mut body).await {
                Ok(Answer::Response(response)) => Ok(response),
                Ok(Answer::Stream(_) | Answer::Upgraded { .. }) => panic!("not asked for"),
                Err(error) => {
                    let text = error.to_string();
                    *self.failed.borrow_mut() = Some(error);
                    Err(text)
                }
            }
        });
        let server = async move {
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(server), service)
                .await;
        };
        (client, server)
    }

    /// Sends `request` through the front and ends when `worker` does.
    async fn upload(&self, request: &str, worker: impl Future<Output = ()>) -> DuplexStream {
        let (mut client, server) = self.front();
        client.write_all(request.as_bytes()).await.expect("room");
        self.run(async {
            tokio::select! {
                biased;
                () = worker => {}
                () = async { server.await; std::future::pending().await } => {}
            }
        })
        .await;
        client
    }
}
