//! The accept loop of one listening socket on one thread.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

use crate::deadline::Spare;
use crate::listen::handshakes::{Handshake, Handshakes};
use crate::listen::http1::serve_http1;
use crate::listen::http2::serve_http2;
use crate::listen::stage::Stage;
use crate::listen::tcp::Tcp;
use crate::listen::tls::{self, HandshakeError};
use crate::proxy::clients::{Presence, Seat};
use crate::proxy::conn::ConnInfo;
use crate::proxy::plane::{CurrentPlane, Plane};
use crate::report::Report;
use crate::scope::Scope;

/// How long accepting rests when the system is out of descriptors or memory: long enough not to spin, short enough not to be
/// noticed once some are free.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// Connections taken from the queue at drain at the most: more than it holds, so that a flood of new ones ends nevertheless.
const QUEUED: usize = 8192;

/// Connections refused at once when there is no descriptor for any: they learn it now instead of waiting in the queue.
const REFUSED_AT_ONCE: usize = 64;

/// How long a handshake may still take at drain: silent connections must not delay the end.
const HANDSHAKE_AT_DRAIN: Duration = Duration::from_secs(1);

/// Between two lines in the log about the same trouble.
const COMPLAIN_EVERY: Duration = Duration::from_secs(1);

/// What is spoken on a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain HTTP/1.1.
    Http,
    /// TLS, then what ALPN says.
    Https,
}

/// What a listening socket's connections need, all in one thread.
#[derive(Clone)]
pub struct Door {
    /// What is spoken.
    pub kind: Kind,
    /// What connections live with.
    pub plane: CurrentPlane,
    /// The thread's handshakes.
    pub handshakes: Handshakes,
    /// Where the thread's connections stand.
    pub stage: Stage,
    /// Owns the connections.
    pub scope: Scope,
}

/// A connection that may come in.
struct Admitted {
    stream: TcpStream,
    peer: SocketAddr,
    plane: Rc<Plane>,
    seat: Seat,
    presence: Rc<Presence>,
}

/// Accepts until `open` drains, then takes what the kernel has completed already and closes the socket. The connections belong
/// to the door's scope, which is `open` or above it.
pub async fn run(listener: TcpListener, door: Door, open: Scope) {
    let (exhausted, crowded) = (Complaint::default(), Complaint::default());
    // Held so that one can be given up for accepting, and thereby refusing, when there are no others.
    let mut reserve = File::open("/dev/null").ok();
    loop {
        let accepted = tokio::select! {
            biased;
            () = open.drained() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(admitted) = door.admit(stream, peer, &crowded) else { continue };
                let handshake = tokio::select! {
                    handshake = door.handshake(&admitted.plane) => handshake,
                    () = open.drained() => door.handshake_now(),
                };
                door.spawn(admitted, handshake);
            }
            Err(error) if is_peers(&error) => {}
            Err(error) => {
                let plane = door.plane.plane();
                plane.reach.deadlines.hurry(Spare::Idle, Duration::MAX);
                let refused = refuse_queued(&listener, &mut reserve, &error);
                if let Some(times) = exhausted.is_due(refused) {
                    tracing::error!(error = %Report(&error), refused = times, "cannot accept connections; trying on");
                }
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    // A connection in the queue of a socket that closes is reset: whoever got that far is still served. The system is asked,
    // because the runtime hears of the newest ones later and lets a task ask for a few only.
    match listener.into_std() {
        Ok(listener) => door.take_queue(&listener),
        Err(error) => tracing::warn!(error = %Report(&error), "connections not accepted yet are reset"),
    }
}

impl Door {
    /// Counts a new connection, or ends it at once where there are too many.
    fn admit(&self, stream: TcpStream, peer: SocketAddr, crowded: &Complaint) -> Option<Admitted> {
        let plane = self.plane.plane();
        let limits = &plane.reach.limits;
        let seat = plane.clients.seat(limits.connections);
        if plane.clients.connections() > limits.connections - limits.connections / 8 {
            plane.reach.deadlines.hurry(Spare::Idle, Duration::MAX);
        }
        let refused = match seat {
            None => "limits.connections",
            Some(seat) => match plane.clients.connect(peer.ip(), limits.connections_per_client) {
                Some(presence) => return Some(Admitted { stream, peer, plane, seat, presence }),
                None => "limits.connections_per_client",
            },
        };
        refuse(&stream);
        if let Some(times) = crowded.is_due(1) {
            tracing::warn!(client = %peer.ip().to_canonical(), limit = refused, refused = times, "too many connections");
        }
        None
    }

    /// A turn for the handshake, where there is one.
    async fn handshake(&self, plane: &Plane) -> Option<Handshake> {
        let (limits, timeouts) = (&plane.reach.limits, &plane.reach.timeouts);
        match self.kind {
            Kind::Http => None,
            Kind::Https => {
                let begun =
                    self.handshakes.begin(limits.handshakes, timeouts.handshake, &plane.reach.deadlines);
                Some(begun.await)
            }
        }
    }

    fn handshake_now(&self) -> Option<Handshake> {
        match self.kind {
            Kind::Http => None,
            Kind::Https => Some(self.handshakes.begin_now()),
        }
    }

    fn take_queue(&self, listener: &std::net::TcpListener) {
        let crowded = Complaint::default();
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
                Ok(stream) => {
                    if let Some(admitted) = self.admit(stream, peer, &crowded) {
                        self.spawn(admitted, self.handshake_now());
                    }
                }
                Err(error) => tracing::debug!(client = %peer, error = %Report(&error), "connection refused"),
            }
        }
    }

    fn spawn(&self, admitted: Admitted, handshake: Option<Handshake>) {
        let (kind, stage, scope) = (self.kind, self.stage.clone(), self.scope.clone());
        drop(self.scope.spawn(async move {
            let peer = admitted.peer;
            if let Err(error) = serve(admitted, kind, handshake, stage, scope).await {
                tracing::debug!(client = %peer, error = %Report(&error), "connection refused");
            }
        }));
    }
}

/// Ends a connection with a reset: waiting for the client's side of a close would hold what there is too little of.
fn refuse(stream: &TcpStream) {
    // Where even this fails the connection is closed the usual way.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// When there is no descriptor left, gives up the one in `reserve` to refuse those who wait in the queue; returns how many.
fn refuse_queued(listener: &TcpListener, reserve: &mut Option<File>, error: &io::Error) -> u64 {
    const EMFILE: i32 = nix::errno::Errno::EMFILE as i32;
    const ENFILE: i32 = nix::errno::Errno::ENFILE as i32;
    if !matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) || reserve.take().is_none() {
        *reserve = reserve.take().or_else(|| File::open("/dev/null").ok());
        return 0;
    }
    let mut refused = 0;
    for _ in 0..REFUSED_AT_ONCE {
        // The runtime's own accept would register the socket, which takes memory and time.
        let Ok((socket, _)) = SockRef::from(listener).accept() else { break };
        let _ = socket.set_linger(Some(Duration::ZERO));
        refused += 1;
    }
    *reserve = File::open("/dev/null").ok();
    refused
}

/// Trouble that may come thousands of times a second and is told once.
#[derive(Default)]
struct Complaint {
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Complaint {
    /// It came `times` more; returns how often since it was told last, where it is time to tell.
    fn is_due(&self, times: u64) -> Option<u64> {
        let untold = self.untold.get() + times;
        if self.told.get().is_some_and(|told| told.elapsed() < COMPLAIN_EVERY) {
            self.untold.set(untold);
            return None;
        }
        self.told.set(Some(Instant::now()));
        self.untold.set(0);
        Some(untold)
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

async fn serve(
    admitted: Admitted,
    kind: Kind,
    handshake: Option<Handshake>,
    stage: Stage,
    scope: Scope,
) -> Result<(), HandshakeError> {
    let Admitted { stream, peer, plane, seat: _seat, presence } = admitted;
    // IPv4 clients of a dual-stack socket appear under their IPv4 address everywhere.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let stream = Tcp(stream);
    let (local, peer) = (plain(stream.0.local_addr().map_err(HandshakeError::Failed)?), plain(peer));
    match kind {
        Kind::Http => {
            let conn = Rc::new(ConnInfo::new(peer, local, None, presence));
            Box::pin(serve_http1(stream, conn, plane, stage)).await;
        }
        Kind::Https => {
            let accepted = {
                let deadline = plane.reach.deadlines.deadline();
                deadline.set_spare(plane.reach.timeouts.handshake, Spare::Handshake);
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
            drop(handshake);
            let conn = Rc::new(ConnInfo::new(peer, local, Some(accepted.info), presence));
            if accepted.h2 {
                Box::pin(serve_http2(accepted.stream, conn, plane, stage, scope)).await;
            } else {
                Box::pin(serve_http1(accepted.stream, conn, plane, stage)).await;
            }
        }
    }
    Ok(())
}
