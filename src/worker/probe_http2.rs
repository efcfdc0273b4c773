//! A question to a worker that speaks HTTP/2.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{SendRequest, handshake};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

/// How long the close of a connection may take.
const CLOSE: Duration = Duration::from_millis(250);

/// What a worker said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// A response of this status; one of gRPC that says it failed counts as 500.
    Status(u16),
    /// It reset the request, as servers do that take calls of gRPC only: it speaks HTTP/2, and understood.
    Reset,
}

/// Asks on a fresh connection; `None` where nothing like HTTP/2 comes back. Cancel-safe.
pub(super) async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, request: Request<()>) -> Option<Said> {
    let (sender, connection) = handshake(stream).await.ok()?;
    let mut connection = pin!(connection);
    let said = tokio::select! {
        biased;
        said = answer(sender, request) => said,
        _ended = &mut connection => None,
    };
    // It says goodbye once nobody can ask any more.
    let _in_time = tokio::time::timeout(CLOSE, connection).await;
    said
}

async fn answer(sender: SendRequest<Bytes>, request: Request<()>) -> Option<Said> {
    let (response, _) = sender.ready().await.ok()?.send_request(request, true).ok()?;
    match response.await {
        Ok(response) => {
            let failed = response.headers().get("grpc-status").is_some_and(|status| status != "0");
            Some(Said::Status(if failed { 500 } else { response.status().as_u16() }))
        }
        Err(error) if error.is_reset() && error.is_remote() => Some(Said::Reset),
        Err(_) => None,
    }
}
