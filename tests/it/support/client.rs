//! Clients: HTTP/1.1 and HTTP/2 over TLS or not, WebSockets, and raw bytes.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap};
use http::{Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::edge::Edge;
use super::within;
use crate::ca::pebble::Pebble;

/// How long any single step of a client may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request's body.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().boxed_unsync()
}

/// A body known at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body given frame by frame; its end is the sender's drop.
pub(crate) fn by_frames() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        let frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(frame), receiver))
    });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// The roots a client trusts.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<RootCertStore>);

impl Trust {
    /// The certificates of a PEM file, if it holds any.
    pub(crate) fn in_file(path: &Path) -> Option<Self> {
        Self::in_pem(&std::fs::read(path).ok()?)
    }

    /// The certificates of a PEM text, if it holds any.
    pub(crate) fn in_pem(pem: &[u8]) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.ok()?).ok()?;
        }
        (!roots.is_empty()).then(|| Self(Arc::new(roots)))
    }

    /// What clients must trust to accept the certificates this CA issues.
    pub(crate) async fn issued_by(ca: &Pebble) -> Self {
        Self::in_pem(ca.issuing_root(0).await.as_bytes()).expect("a root")
    }

    /// A client configuration that offers `alpn` and both TLS versions.
    pub(crate) fn offering(&self, alpn: &[&str]) -> ClientConfig {
        self.restricted_to(rustls::ALL_VERSIONS, alpn)
    }

    /// A client configuration that offers `alpn` and some TLS versions.
    pub(crate) fn restricted_to(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        alpn: &[&str],
    ) -> ClientConfig {
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .expect("the provider has these versions")
                .with_root_certificates(Arc::clone(&self.0))
                .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

/// A TLS connection to `address`, asking for `name`.
pub(crate) async fn tls(
    address: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    tls_over(TcpStream::connect(address).await?, name, config).await
}

/// TLS on an open connection, asking for `name`.
pub(crate) async fn tls_over(
    tcp: TcpStream,
    name: &str,
    config: ClientConfig,
) -> io::Result<TlsStream<TcpStream>> {
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).expect("a server name");
    within(PATIENCE, "the handshake ends", TlsConnector::from(Arc::new(config)).connect(name, tcp)).await
}

/// A connection whose client end has the address `from`.
pub(crate) async fn tcp_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    tcp_with(None, from, to).await
}

/// As [`tcp_from`], where the system takes little that the client does not read.
pub(crate) async fn tcp_narrow(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    tcp_with(Some(4096), from, to).await
}

async fn tcp_with(buffer: Option<u32>, from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(size) = buffer {
        socket.set_recv_buffer_size(size)?;
    }
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    H1,
    H2,
}

impl Wire {
    /// Both: for promises that do not depend on it.
    pub(crate) const BOTH: [Self; 2] = [Self::H1, Self::H2];

    /// Its ALPN name.
    pub(crate) fn alpn(self) -> &'static str {
        match self {
            Self::H1 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

/// A client's connection that carries requests to one host.
pub(crate) struct Connection {
    sender: Sender,
    scheme: &'static str,
    authority: String,
    patience: Duration,
    driver: tokio::task::JoinHandle<()>,
}

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Connection {
    /// HTTPS to `edge`, trusting its internal CA.
    pub(crate) async fn open(edge: &Edge, host: &str, wire: Wire) -> Self {
        let trust = edge.trust().await;
        Self::to(edge.https, host, wire, &trust).await.expect("a connection to edge")
    }

    /// HTTPS to `address`.
    pub(crate) async fn to(
        address: SocketAddr,
        host: &str,
        wire: Wire,
        trust: &Trust,
    ) -> Result<Self, ClientError> {
        let stream = tls(address, host, trust.offering(&[wire.alpn()])).await?;
        Self::over(stream, "https", &format!("{host}:{}", address.port()), wire).await
    }

    /// Plain HTTP/1.1 to `edge`.
    pub(crate) async fn plain(edge: &Edge, host: &str) -> Self {
        let stream = TcpStream::connect(edge.http).await.expect("edge accepts");
        let authority = format!("{host}:{}", edge.http.port());
        Self::over(stream, "http", &authority, Wire::H1).await.expect("a connection to edge")
    }

    /// HTTP on a stream.
    pub(crate) async fn over<S>(
        stream: S,
        scheme: &'static str,
        authority: &str,
        wire: Wire,
    ) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let authority = authority.to_owned();
        // How the connection ends shows in the requests on it.
        let (sender, driver) = match wire {
            Wire::H1 => {
                let (sender, connection) = http1::handshake(io).await?;
                (Sender::H1(sender), tokio::spawn(async { drop(connection.await) }))
            }
            Wire::H2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                (Sender::H2(sender), tokio::spawn(async { drop(connection.await) }))
            }
        };
        Ok(Self { sender, scheme, authority, patience: PATIENCE, driver })
    }

    /// The same, which waits so long for an answer to begin.
    pub(crate) fn waiting(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Host and port as this client writes them.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// A request's head for this connection, to be completed.
    pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
        self.request_for(&self.authority, method, path)
    }

    /// As [`Self::request`], for another host than the connection's.
    pub(crate) fn request_for(&self, authority: &str, method: &str, path: &str) -> http::request::Builder {
        let builder = Request::builder().method(method);
        match self.sender {
            Sender::H1(_) => builder.uri(path).header(HOST, authority),
            Sender::H2(_) => builder.uri(format!("{}://{authority}{path}", self.scheme)),
        }
    }

    /// Sends a request; the response's body is still to be read.
    pub(crate) async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, ClientError> {
        let answer = async {
            match &mut self.sender {
                Sender::H1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::H2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(ClientError::Impatient),
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn exchange(&mut self, request: Request<Body>) -> Result<Answer, ClientError> {
        Answer::read(self.send(request).await?).await
    }

    /// GET, and the whole answer.
    pub(crate) async fn get(&mut self, path: &str) -> Answer {
        self.try_get(path).await.expect("an answer")
    }

    /// GET, and the whole answer or why not.
    pub(crate) async fn try_get(&mut self, path: &str) -> Result<Answer, ClientError> {
        let request = self.request("GET", path).body(empty()).expect("a request");
        self.exchange(request).await
    }

    /// POST, and the whole answer.
    pub(crate) async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Answer {
        let request = self.request("POST", path).body(full(body)).expect("a request");
        self.exchange(request).await.expect("an answer")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A complete answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    /// Reads the rest of a response.
    pub(crate) async fn read(response: Response<Incoming>) -> Result<Self, ClientError> {
        let (head, body) = response.into_parts();
        let collected = match tokio::time::timeout(PATIENCE * 2, body.collect()).await {
            Ok(collected) => collected?,
            Err(_) => return Err(ClientError::Impatient),
        };
        let trailers = collected.trailers().cloned();
        Ok(Self {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }

    /// A header as text; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header is text"))
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Why a client has no complete answer.
#[derive(Debug)]
pub(crate) enum ClientError {
    Io(io::Error),
    Http(hyper::Error),
    Impatient,
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Http(error) => write!(f, "{}", edge::report::Report(error)),
            Self::Impatient => write!(f, "no answer in time"),
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<hyper::Error> for ClientError {
    fn from(error: hyper::Error) -> Self {
        Self::Http(error)
    }
}

/// One data frame of a streamed response; `None` at its end.
pub(crate) async fn next_chunk(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    loop {
        match tokio::time::timeout(PATIENCE, body.frame()).await {
            Err(_) => return Err(ClientError::Impatient),
            Ok(None) => return Ok(None),
            Ok(Some(frame)) => {
                if let Ok(data) = frame?.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A WebSocket to `edge`.
pub(crate) async fn websocket(edge: &Edge, host: &str, path: &str) -> WebSocketStream<TlsStream<TcpStream>> {
    let trust = edge.trust().await;
    let stream = tls(edge.https, host, trust.offering(&["http/1.1"])).await.expect("a TLS connection");
    let url = format!("wss://{host}:{}{path}", edge.https.port());
    let (socket, response) = within(PATIENCE, "the upgrade", tokio_tungstenite::client_async(url, stream))
        .await
        .expect("the server switches protocols");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    socket
}

/// A WebSocket on a stream of an HTTP/2 connection that has carried a request before (RFC 8441).
pub(crate) type SharedSocket = WebSocketStream<TokioIo<Upgraded>>;

/// The head of a WebSocket's handshake over HTTP/2, to be completed.
pub(crate) fn connect(connection: &Connection, path: &str) -> http::request::Builder {
    let mut builder = connection.request("CONNECT", path).header("sec-websocket-version", "13");
    let extensions = builder.extensions_mut().expect("a request");
    extensions.insert(Protocol::from_static("websocket"));
    builder
}

/// Opens a WebSocket on `connection`, with the answer's head.
pub(crate) async fn shared_websocket(
    connection: &mut Connection,
    request: http::request::Builder,
) -> (SharedSocket, HeaderMap) {
    let mut response = connection.send(request.body(empty()).expect("a request")).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let upgraded = within(PATIENCE, "the stream is open", hyper::upgrade::on(&mut response)).await;
    let stream = TokioIo::new(upgraded.expect("an open stream"));
    let headers = response.headers().clone();
    (WebSocketStream::from_raw_socket(stream, Role::Client, None).await, headers)
}

/// A TLS connection to `edge` that carries whatever bytes the test writes.
pub(crate) async fn raw(edge: &Edge, host: &str) -> Raw<TlsStream<TcpStream>> {
    let trust = edge.trust().await;
    Raw::new(tls(edge.https, host, trust.offering(&["http/1.1"])).await.expect("a TLS connection"))
}

/// Bytes out, bytes in.
pub(crate) struct Raw<S> {
    stream: S,
    read: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    /// Over a stream.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, read: Vec::new() }
    }

    /// The stream, with nothing read from it that was not asked for.
    pub(crate) fn into_inner(self) -> S {
        assert!(self.read.is_empty(), "bytes were read ahead");
        self.stream
    }

    /// Writes all bytes.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(PATIENCE, "the bytes are written", async {
            self.stream.write_all(bytes.as_ref()).await?;
            self.stream.flush().await
        })
        .await
        .expect("the bytes are written");
    }

    /// Writes all bytes; whether the other end is still there.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// Reads until `end` has been seen, and returns everything up to and including it.
    pub(crate) async fn read_to(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = memchr::memmem::find(&self.read, end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                let found = std::mem::replace(&mut self.read, rest);
                return String::from_utf8_lossy(&found).into_owned();
            }
            let so_far = String::from_utf8_lossy(&self.read).into_owned();
            let count =
                within(PATIENCE, &format!("{end:?} after {so_far:?}"), self.stream.read_buf(&mut self.read))
                    .await
                    .expect("the connection is open");
            assert!(count > 0, "closed before {end:?}, after {so_far:?}");
        }
    }

    /// Reads to the end of the connection, however it ends.
    pub(crate) async fn read_to_close(&mut self) -> String {
        let reading =
            async { while matches!(self.stream.read_buf(&mut self.read).await, Ok(count) if count > 0) {} };
        within(PATIENCE, "the connection is closed", reading).await;
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}
