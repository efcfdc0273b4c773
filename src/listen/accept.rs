//! The accept loop of one listening socket on one thread.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::complaint::Complaint;
use crate::deadline::{Deadline, Spare};
use crate::listen::arrivals::Arrivals;
use crate::listen::complaint::Complaints;
use crate::listen::handshakes::Handshakes;
use crate::listen::http1::serve_http1;
use crate::listen::http2::serve_http2;
use crate::listen::introduction::{IntroductionError, introduced};
use crate::listen::proxy_header::Said;
use crate::listen::share::Share;
use crate::listen::stage::Stage;
use crate::listen::standby::Standby;
use crate::listen::stream::Stream;
use crate::listen::tcp::Tcp;
use crate::listen::tls::{self, Accepted, HandshakeError};
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

/// The limit that a client alone can reach.
const PER_CLIENT: &str = "limits.connections_per_client";

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

/// What a listening socket's connections need, all in one thread.
#[derive(Clone)]
pub struct Door {
    /// What is spoken.
    pub kind: Kind,
    /// Whether somebody else holds the socket, too: whoever waits there is not lost when edge ends.
    pub held: bool,
    /// What the thread has of all connections.
    pub share: Share,
    /// What connections live with.
    pub plane: CurrentPlane,
    /// The thread's handshakes.
    pub handshakes: Handshakes,
    /// Where the thread's connections stand.
    pub stage: Stage,
    /// What it may have to complain of.
    pub complaints: Rc<Complaints>,
    /// Owns the connections.
    pub scope: Scope,
    /// What waits for the thread's streams of HTTP/2.
    pub standby: Standby<Stream>,
}

/// A connection that may come in.
struct Admitted {
    stream: TcpStream,
    peer: SocketAddr,
    plane: Rc<Plane>,
    seat: Seat,
    /// `None` where it is a load balancer that is still to say for whom it connects.
    presence: Option<Rc<Presence>>,
}

/// Why a connection comes to nothing.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
    /// `limits.connections_per_client`, noticed once the client was known.
    #[error("its client {0} has too many connections")]
    Crowded(IpAddr),
    #[error("its socket failed")]
    Socket(#[source] io::Error),
    #[error("it was not ready in time")]
    Late,
}

/// Accepts until `open` drains, then takes what the kernel has completed already and closes the socket. The connections belong
/// to the door's scope, which is `open` or above it.
pub async fn run(arrivals: Arrivals, door: Door, open: Scope) {
    let exhausted = Complaint::default();
    // Held so that one can be given up for accepting, and thereby refusing, when there are no others.
    let mut reserve = File::open("/dev/null").ok();
    loop {
        let accepted = tokio::select! {
            biased;
            () = open.drained() => break,
            accepted = arrivals.accept(|| door.leaves_the_next()) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Some(admitted) = door.admit(stream, peer) {
                    door.spawn(admitted);
                }
            }
            Err(error) if is_peers(&error) => {}
            Err(error) => {
                let plane = door.plane.plane();
                plane.reach.deadlines.hurry(Spare::Idle, Duration::MAX);
                let refused = refuse_queued(arrivals.socket(), &mut reserve, &error);
                if let Some(times) = exhausted.is_due(refused) {
                    tracing::error!(error = %Report(&error), refused = times, "cannot accept connections; trying on");
                }
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    if door.held && door.scope.is_draining() {
        // They are the next edge's: this one would wait for them to ask for a second only, and end them.
        return;
    }
    // A connection in the queue of a socket that closes is reset: whoever got that far is still served. The system is asked,
    // because the runtime hears of the newest ones later and lets a task ask for a few only.
    door.take_queue(&arrivals.into_socket());
}

impl Door {
    /// Counts a new connection, or ends it at once where there are too many.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) -> Option<Admitted> {
        let plane = self.plane.plane();
        let limits = &plane.reach.limits;
        let seat = plane.clients.seat(limits.connections);
        if plane.clients.connections() > limits.connections - limits.connections / 8 {
            plane.reach.deadlines.hurry(Spare::Idle, Duration::MAX);
        }
        let refused = match seat {
            None => "limits.connections",
            // Its connections are its clients', each counted once it is introduced.
            Some(seat) if plane.proxy_protocol.contain(peer.ip()) => {
                return Some(Admitted { stream, peer, plane, seat, presence: None });
            }
            Some(seat) => match plane.clients.connect(peer.ip(), limits.connections_per_client) {
                Some(presence) => {
                    return Some(Admitted { stream, peer, plane, seat, presence: Some(presence) });
                }
                None => PER_CLIENT,
            },
        };
        refuse(&stream);
        self.tell_crowded(peer.ip(), refused);
        None
    }

    /// Whether the next connection is for other threads to take, which wait at the same socket.
    fn leaves_the_next(&self) -> bool {
        self.held && self.share.is_exceeded(self.plane.plane().clients.connections())
    }

    fn tell_crowded(&self, client: IpAddr, limit: &str) {
        if let Some(times) = self.complaints.crowded.is_due(1) {
            tracing::warn!(client = %client.to_canonical(), limit, refused = times, "too many connections");
        }
    }

    /// Says why a connection came to nothing: loudly where an operator has to do something.
    fn tell(&self, peer: SocketAddr, refusal: &Refusal) {
        let report = Report(refusal);
        match refusal {
            Refusal::Crowded(client) => self.tell_crowded(*client, PER_CLIENT),
            Refusal::Introduction(error) if error.is_misunderstanding() => {
                if let Some(times) = self.complaints.unintroduced.is_due(1) {
                    tracing::warn!(balancer = %peer.ip().to_canonical(), error = %report, refused = times, "a connection from `proxy_protocol` is closed");
                }
            }
            Refusal::Introduction(_) | Refusal::Handshake(_) | Refusal::Socket(_) | Refusal::Late => {
                tracing::debug!(client = %peer, error = %report, "connection refused");
            }
        }
    }

    fn take_queue(&self, listener: &std::net::TcpListener) {
        for _ in 0..QUEUED {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) if is_peers(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) if self.held => return,
                Err(error) => {
                    tracing::warn!(error = %Report(&error), "connections not accepted yet are reset");
                    return;
                }
            };
            match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
                Ok(stream) => {
                    if let Some(admitted) = self.admit(stream, peer) {
                        self.spawn(admitted);
                    }
                }
                Err(error) => tracing::debug!(client = %peer, error = %Report(&error), "connection refused"),
            }
        }
    }

    fn spawn(&self, admitted: Admitted) {
        let (door, counted) = (self.clone(), self.share.count());
        drop(self.scope.spawn(async move {
            let peer = admitted.peer;
            if let Err(refusal) = door.serve(admitted).await {
                door.tell(peer, &refusal);
            }
            drop(counted);
        }));
    }
}

/// Ends a connection with a reset: waiting for the client's side of a close would hold what there is too little of.
fn refuse(stream: &TcpStream) {
    // Where even this fails the connection is closed the usual way.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// When there is no descriptor left, gives up the one in `reserve` to refuse those who wait in the queue; returns how many.
fn refuse_queued(listener: &std::net::TcpListener, reserve: &mut Option<File>, error: &io::Error) -> u64 {
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

impl Door {
    async fn serve(&self, admitted: Admitted) -> Result<(), Refusal> {
        let Admitted { stream, peer, plane, seat: _seat, presence } = admitted;
        let mut stream = Tcp::new(stream);
        let deadline = (presence.is_none() || self.kind == Kind::Https).then(|| {
            let deadline = plane.reach.deadlines.deadline();
            // So far it carries nothing, and makes room where that is scarce: its time is over before that of most idle ones.
            deadline.set_spare(plane.reach.timeouts.handshake, Spare::Idle);
            deadline
        });
        let mut ends = Ends { peer, local: stream.stream.local_addr().map_err(Refusal::Socket)? };
        let entrance = ends.local.port();
        let presence = match presence {
            Some(presence) => presence,
            None => {
                let introducing = Box::pin(self.introduce(&mut stream.stream, &mut ends, &plane, &deadline));
                let Some(presence) = introducing.await? else { return Ok(()) };
                presence
            }
        };
        let Ends { peer, local } = ends.canonical();
        let (stage, scope, standby) = (self.stage.clone(), self.scope.clone(), self.standby.clone());
        // Each phase is boxed and gone before the next begins: a connection has no room for its handshake while it serves.
        let serving: Pin<Box<dyn Future<Output = ()>>> = match self.kind {
            Kind::Http => {
                drop(deadline);
                let conn = Rc::new(ConnInfo::new(peer, local, None, presence).through(entrance));
                Box::pin(serve_http1(stream, conn, plane, stage))
            }
            Kind::Https => {
                let accepting = Box::pin(self.shake_hands(stream, local.ip(), &plane, &deadline));
                let Some(accepted) = self.in_time(accepting, &deadline).await? else { return Ok(()) };
                drop(deadline);
                let conn =
                    Rc::new(ConnInfo::new(peer, local, Some(accepted.info), presence).through(entrance));
                if accepted.h2 {
                    let tasks = (scope, standby);
                    let complaints = Rc::clone(&self.complaints);
                    Box::pin(serve_http2(accepted.stream, conn, plane, stage, tasks, complaints))
                } else {
                    Box::pin(serve_http1(accepted.stream, conn, plane, stage))
                }
            }
        };
        serving.await;
        Ok(())
    }

    /// TLS on `stream`, once its client has said something and has its turn: who is silent holds up nobody's handshake. Waiting for
    /// a turn and the handshake are each given their time.
    async fn shake_hands(
        &self,
        stream: Tcp,
        local: IpAddr,
        plane: &Plane,
        deadline: &Option<Deadline>,
    ) -> Result<Accepted<Tcp>, Refusal> {
        let (limits, timeouts, deadlines) =
            (&plane.reach.limits, &plane.reach.timeouts, &plane.reach.deadlines);
        let give = |spare: Spare| {
            // At drain there is only the time that it leaves.
            if let Some(deadline) = deadline.as_ref().filter(|_| !self.scope.is_draining()) {
                deadline.set_spare(timeouts.handshake, spare);
            }
        };
        stream.stream.readable().await.map_err(Refusal::Socket)?;
        give(Spare::No);
        let _turn = tokio::select! {
            biased;
            turn = self.handshakes.begin(limits.handshakes, timeouts.handshake, deadlines) => turn,
            () = self.scope.drained() => self.handshakes.begin_now(),
        };
        give(Spare::Handshake);
        Ok(tls::accept(stream, local, &plane.certificates, &plane.challenges).await?)
    }

    /// The client for whom a load balancer connects, whose ends take the place of the balancer's; `None` where edge ends first.
    async fn introduce(
        &self,
        stream: &mut TcpStream,
        ends: &mut Ends,
        plane: &Plane,
        deadline: &Option<Deadline>,
    ) -> Result<Option<Rc<Presence>>, Refusal> {
        let Some(said) = self.in_time(introduced(stream), deadline).await? else { return Ok(None) };
        let presence = match said {
            // Its own connections are few; where it has no other, they are all of its clients'.
            Said::Own => plane.clients.connect(ends.peer.ip(), 0),
            Said::Relayed { client, local } => {
                *ends = Ends { peer: client, local };
                plane.clients.connect(client.ip(), plane.reach.limits.connections_per_client)
            }
        };
        if presence.is_none() {
            refuse(stream);
            return Err(Refusal::Crowded(ends.peer.ip()));
        }
        Ok(presence)
    }

    /// What comes of `opening` before `deadline`, which drain brings nearer; `None` where edge ends first.
    async fn in_time<T, E>(
        &self,
        opening: impl Future<Output = Result<T, E>>,
        deadline: &Option<Deadline>,
    ) -> Result<Option<T>, Refusal>
    where
        Refusal: From<E>,
    {
        let passed = async {
            match deadline {
                Some(deadline) => deadline.passed().await,
                None => std::future::pending().await,
            }
        };
        let hurry = async {
            self.scope.drained().await;
            if let Some(deadline) = deadline {
                deadline.set(HANDSHAKE_AT_DRAIN);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            opened = opening => Ok(Some(opened?)),
            () = passed => Err(Refusal::Late),
            () = hurry => Ok(None),
            () = self.scope.aborted() => Ok(None),
        }
    }
}

/// The two ends of a connection, as whoever relays it says where it is relayed.
struct Ends {
    peer: SocketAddr,
    local: SocketAddr,
}

impl Ends {
    /// IPv4 clients of a dual-stack socket appear under their IPv4 address everywhere.
    fn canonical(&self) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { peer: plain(self.peer), local: plain(self.local) }
    }
}

#[cfg(test)]
mod tests;
