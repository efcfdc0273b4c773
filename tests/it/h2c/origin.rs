//! A server of HTTP/2 whose every stream the test decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection as Server, SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::edge::{Edge, Setup};

pub(super) type Link = Server<TcpStream, Bytes>;
pub(super) type Asked = (Request<RecvStream>, SendResponse<Bytes>);

/// A server of HTTP/2 whose every stream the test decides.
pub(super) struct Http2Origin {
    pub(super) address: std::net::SocketAddr,
    accepted: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Http2Origin {
    /// Runs `serve` for each connection.
    pub(super) async fn start<F, Fut>(builder: Builder, serve: F) -> Self
    where
        F: Fn(Link) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let link = builder.handshake(stream).await.expect("edge speaks HTTP/2");
                tokio::spawn(serve(link));
            }
        });
        Self { address, accepted, accepting }
    }

    /// Answers each stream in a task of its own.
    pub(super) async fn answering<F, Fut>(answer: F) -> Self
    where
        F: Fn(Asked) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::start(Builder::new(), move |mut link| {
            let answer = answer.clone();
            async move {
                while let Some(Ok(asked)) = link.accept().await {
                    tokio::spawn(answer(asked));
                }
            }
        })
        .await
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) async fn edge(&self, top: &str) -> Edge {
        let app = format!("domains: [a.test]\nupstream: http://{}\nprotocol: h2c", self.address);
        Setup::new().top(&format!("threads: 1\n{top}")).app("a", &app).start().await
    }
}

impl Drop for Http2Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Answers with `status` and `text`.
pub(super) fn answer(mut respond: SendResponse<Bytes>, status: u16, text: impl Into<Bytes>) {
    let head = Response::builder().status(status).body(()).unwrap();
    // Whoever is gone is none of the test's business.
    if let Ok(mut body) = respond.send_response(head, false) {
        let _ = body.send_data(text.into(), true);
    }
}

/// All of a request's body, and its trailers.
pub(super) async fn read(body: &mut RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        all.extend_from_slice(&data);
    }
    (all, body.trailers().await.unwrap_or_default())
}
