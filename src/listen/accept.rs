//! The accept loop of one listening socket on one thread.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use crate::listen::http1::serve_http1;
use crate::listen::http2::serve_http2;
use crate::listen::stage::Stage;
use crate::listen::tcp::Tcp;
use crate::listen::tls::{self, HandshakeError};
use crate::proxy::conn::ConnInfo;
use crate::proxy::plane::{CurrentPlane, Plane};
use crate::report::Report;
use crate::scope::Scope;

/// How long accepting rests when the system is out of descriptors or memory: long enough not to spin, short enough not to be
/// noticed once some are free.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Connections taken from the queue at drain at the most: more than it holds, so that a flood of new ones ends nevertheless.
const QUEUED: usize = 8192;

/// How long a handshake may still take at drain: silent connections must not delay the end.
const HANDSHAKE_AT_DRAIN: Duration = Duration::from_secs(1);

/// What is spoken on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain HTTP/1.1.
    Http,
    /// TLS, then what ALPN says.
    Https,
}

/// Accepts until `open` drains, then takes what the kernel has completed already and closes the socket. The connections belong
/// to `scope`, which is `open` or above it.
pub async fn run(
    listener: TcpListener,
    kind: Kind,
    plane: CurrentPlane,
    stage: Stage,
    scope: Scope,
    open: Scope,
) {
    let mut complained = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = open.drained() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                complained = false;
                admit(stream, peer, kind, plane.plane(), &stage, &scope);
            }
            Err(error) if is_peers(&error) => {}
            Err(error) => {
                if !complained {
                    complained = true;
                    tracing::error!(error = %Report(&error), "cannot accept connections; trying on");
                }
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    // A connection in the queue of a socket that closes is reset: whoever got that far is still served. The system is asked,
    // because the runtime hears of the newest ones later and lets a task ask for a few only.
    match listener.into_std() {
        Ok(listener) => take_queue(&listener, kind, &plane.plane(), &stage, &scope),
        Err(error) => tracing::warn!(error = %Report(&error), "connections not accepted yet are reset"),
    }
}

fn take_queue(listener: &std::net::TcpListener, kind: Kind, plane: &Rc<Plane>, stage: &Stage, scope: &Scope) {
    for _ in 0..QUEUED {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if is_peers(&error) => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::warn!(error = %Report(&error), "connections not accepted yet are reset");
                return;
            }
        };
        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => admit(stream, peer, kind, Rc::clone(plane), stage, scope),
            Err(error) => tracing::debug!(client = %peer, error = %Report(&error), "connection refused"),
        }
    }
}

/// Whether an accept error concerns one connection that is gone already (accept(2)), not the listener.
fn is_peers(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

fn admit(stream: TcpStream, peer: SocketAddr, kind: Kind, plane: Rc<Plane>, stage: &Stage, scope: &Scope) {
    let (stage, scope) = (stage.clone(), scope.clone());
    let owner = scope.clone();
    drop(owner.spawn(async move {
        if let Err(error) = serve(stream, peer, kind, plane, stage, scope).await {
            tracing::debug!(client = %peer, error = %Report(&error), "connection refused");
        }
    }));
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    kind: Kind,
    plane: Rc<Plane>,
    stage: Stage,
    scope: Scope,
) -> Result<(), HandshakeError> {
    // IPv4 clients of a dual-stack socket appear under their IPv4 address everywhere.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let stream = Tcp(stream);
    let (local, peer) = (plain(stream.0.local_addr().map_err(HandshakeError::Failed)?), plain(peer));
    match kind {
        Kind::Http => {
            let conn = Rc::new(ConnInfo::new(peer, local, None));
            Box::pin(serve_http1(stream, conn, plane, stage)).await;
        }
        Kind::Https => {
            let accepted = {
                let deadline = plane.reach.deadlines.deadline();
                deadline.set(plane.reach.timeouts.handshake);
                // Boxed, so that the room of a handshake is not kept for the connection's life.
                let handshake =
                    Box::pin(tls::accept(stream, local.ip(), &plane.certificates, &plane.challenges));
                let hurry = async {
                    scope.drained().await;
                    deadline.set(HANDSHAKE_AT_DRAIN);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    accepted = handshake => accepted?,
                    () = deadline.passed() => {
                        return Err(HandshakeError::Failed(io::ErrorKind::TimedOut.into()));
                    }
                    () = hurry => return Ok(()),
                    () = scope.aborted() => return Ok(()),
                }
            };
            let conn = Rc::new(ConnInfo::new(peer, local, Some(accepted.info)));
            if accepted.h2 {
                Box::pin(serve_http2(accepted.stream, conn, plane, stage, scope)).await;
            } else {
                Box::pin(serve_http1(accepted.stream, conn, plane, stage)).await;
            }
        }
    }
    Ok(())
}
