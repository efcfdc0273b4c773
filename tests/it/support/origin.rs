//! An upstream server whose every byte the test decides and sees.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::client::PATIENCE;
use super::within;

/// A listener that gives each connection to the same function.
pub(crate) struct Origin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Origin {
    /// Listens, and runs `serve` for each connection.
    pub(crate) async fn start<F, Fut>(serve: F) -> Self
    where
        F: Fn(Peer) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&accepted);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                stream.set_nodelay(true).expect("a fresh connection");
                tokio::spawn(serve(Peer { stream, read: Vec::new() }));
            }
        });
        Self { address, accepted, accepting }
    }

    /// Answers every request with `200` and the request's own head as text; bodies with a length are read and dropped.
    pub(crate) async fn mirror() -> Self {
        Self::start(async |mut peer| {
            while let Some(head) = peer.head().await {
                if let Some(length) = head.header("content-length") {
                    peer.body(length.parse().expect("a length")).await;
                }
                peer.answer("200 OK", "", &head.text).await;
            }
        })
        .await
    }

    /// The app's key for it.
    pub(crate) fn upstream(&self) -> String {
        format!("upstream: http://{}", self.address)
    }

    /// Connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The head of a request as it came.
pub(crate) struct Head {
    /// All of it, line ends as they came.
    pub(crate) text: String,
}

impl Head {
    /// Method, target, version.
    pub(crate) fn request_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }

    /// The values of a field, in order.
    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        let fields = self.text.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    /// The value of a field that stands there at most once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let values = self.headers(name);
        assert!(values.len() <= 1, "{name} repeated in {}", self.text);
        values.first().copied()
    }
}

/// A connection from `edge`.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Peer {
    /// The next request's head; `None` where the connection ends instead.
    pub(crate) async fn head(&mut self) -> Option<Head> {
        let text = self.up_to(b"\r\n\r\n").await?;
        Some(Head { text })
    }

    /// The next chunk of a chunked body: its data; empty for the last, whose trailers are still to be read.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.up_to(b"\r\n").await?;
        let size = usize::from_str_radix(size.trim_end().split(';').next()?, 16).expect("a chunk size");
        if size == 0 {
            return Some(Vec::new());
        }
        let mut data = self.body(size + 2).await?;
        data.truncate(size);
        Some(data)
    }

    /// The lines after the last chunk, up to the empty one.
    pub(crate) async fn trailers(&mut self) -> Option<String> {
        let mut lines = String::new();
        loop {
            let line = self.up_to(b"\r\n").await?;
            if line == "\r\n" {
                return Some(lines);
            }
            lines.push_str(&line);
        }
    }

    /// Exactly `length` bytes.
    pub(crate) async fn body(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        let rest = self.read.split_off(length);
        Some(std::mem::replace(&mut self.read, rest))
    }

    /// Writes bytes; a peer that is gone is fine.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Writes a whole answer with a length. `fields` are header lines, each with its line end.
    pub(crate) async fn answer(&mut self, status: &str, fields: &str, body: &str) {
        let length = body.len();
        self.write(format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n{body}")).await;
    }

    /// Waits for the other end to close or reset.
    pub(crate) async fn closed(&mut self) {
        while self.fill().await {}
    }

    async fn up_to(&mut self, end: &[u8]) -> Option<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.read, end) {
                let rest = self.read.split_off(at + end.len());
                let found = std::mem::replace(&mut self.read, rest);
                return Some(String::from_utf8_lossy(&found).into_owned());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        let reading = self.stream.read_buf(&mut self.read);
        matches!(within(PATIENCE * 6, "edge sends or closes", reading).await, Ok(count) if count > 0)
    }
}
