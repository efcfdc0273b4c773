//! Binding: the one place that opens listening sockets.
//!
//! Each data-plane thread gets a socket of its own for every address (SO_REUSEPORT), so that a connection is accepted where it
//! will be served.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::model::ListenAddr;

/// Connections the kernel completes ahead of `accept`; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A peer that vanished without a word is noticed after idle + 4 × interval, and one that takes nothing of what was sent to
/// it after as long as that idle time.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("cannot listen on {address}: another program listens there; stop it, or choose another address")]
    InUse {
        /// As configured.
        address: ListenAddr,
    },
    /// A service manager's socket is in the way.
    #[error(
        "cannot listen on {address}: the service manager passes a socket at {passed} in its place; let the socket unit have {unit}"
    )]
    Misfit {
        /// As configured.
        address: ListenAddr,
        /// Where the socket is.
        passed: SocketAddr,
        /// What the unit would say.
        unit: String,
    },
    /// Somebody listens there, and it may be a service manager whose sockets are not for this process.
    #[error(
        "cannot listen on {address}: it is taken, and LISTEN_FDS passes sockets to process {process} (LISTEN_PID), which is not edge; \
         let the service manager execute edge itself, or whatever it executes become edge by `exec`"
    )]
    Elsewhere {
        /// As configured.
        address: ListenAddr,
        /// Whose they are.
        process: u32,
    },
    /// Not allowed.
    #[error(
        "cannot listen on {address}: ports below 1024 need root or CAP_NET_BIND_SERVICE; use the systemd unit, \
         or `setcap cap_net_bind_service=+ep` on the program, or a higher port"
    )]
    NotAllowed {
        /// As configured.
        address: ListenAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Other {
        /// As configured.
        address: ListenAddr,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// One bound address: a socket for each thread.
#[derive(Debug)]
pub struct Bound {
    /// The address with its real port.
    pub address: SocketAddr,
    /// As many sockets as were asked for, non-blocking.
    pub sockets: Vec<TcpListener>,
    /// Whether they are a service manager's, which listens already.
    pub held: bool,
}

impl Bound {
    /// Connections are taken from now on. How many may wait is for whoever holds the socket to say.
    pub fn listen(&self) -> io::Result<()> {
        if self.held {
            return Ok(());
        }
        self.sockets.iter().try_for_each(|socket| SockRef::from(socket).listen(BACKLOG))
    }
}

/// Binds `address` for `threads` threads and listens, or says why not.
pub fn bind(address: ListenAddr, threads: usize) -> Result<Bound, BindError> {
    let bound = reserve(address, threads, Neighbours::None)?;
    bound.listen().map_err(|cause| explain(address, cause))?;
    Ok(bound)
}

/// Who else may listen on the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// Nobody.
    None,
    /// This process itself, on other addresses of the port.
    Own,
}

impl Neighbours {
    /// Those of `wanted` while this process listens on its `own` addresses.
    pub fn of(wanted: ListenAddr, own: impl IntoIterator<Item = ListenAddr>) -> Self {
        if own.into_iter().any(|own| port(own) == port(wanted)) { Self::Own } else { Self::None }
    }
}

/// As [`bind`], without listening yet: nobody can connect.
pub fn reserve(address: ListenAddr, threads: usize, neighbours: Neighbours) -> Result<Bound, BindError> {
    let mut wanted = place(address);
    if neighbours == Neighbours::None {
        // SO_REUSEPORT would let a second edge of the same user share the port and take half of the connections: a first
        // socket without it finds out whether anybody is there.
        drop(open(wanted, false).map_err(|cause| explain(address, cause))?);
    }
    let mut sockets = Vec::with_capacity(threads);
    for _ in 0..threads.max(1) {
        let socket = open(wanted, true).map_err(|cause| explain(address, cause))?;
        let socket = TcpListener::from(socket);
        wanted = socket.local_addr().map_err(|cause| BindError::Other { address, cause })?;
        sockets.push(socket);
    }
    Ok(Bound { address: wanted, sockets, held: false })
}

/// The address that is bound for `address`.
pub fn place(address: ListenAddr) -> SocketAddr {
    match address {
        ListenAddr::At(wanted) => wanted,
        ListenAddr::Any(port) if ipv6_works() => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        ListenAddr::Any(port) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    }
}

/// The port of `address`.
pub fn port(address: ListenAddr) -> u16 {
    match address {
        ListenAddr::Any(port) => port,
        ListenAddr::At(at) => at.port(),
    }
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Dual stack, whatever the system's default: `[::]` also takes IPv4.
        socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
    }
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    tune(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Sets what every listening socket has.
pub fn tune(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit these on Linux, which spares each connection the calls.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(4),
    )?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE_IDLE))
}

fn ipv6_works() -> bool {
    open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), false).is_ok()
}

fn explain(address: ListenAddr, cause: io::Error) -> BindError {
    match cause.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address },
        io::ErrorKind::PermissionDenied => BindError::NotAllowed { address },
        _ => BindError::Other { address, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_gets_a_socket_on_the_same_port() {
        let bound = bind(ListenAddr::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), 3).expect("free port");
        assert_eq!(bound.sockets.len(), 3);
        for socket in &bound.sockets {
            assert_eq!(socket.local_addr().expect("bound"), bound.address);
        }
    }

    #[test]
    fn d10_a_client_that_vanished_is_noticed() {
        let bound = bind(ListenAddr::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), 1).expect("free port");
        let _client = std::net::TcpStream::connect(bound.address).expect("it listens");
        let listener = &bound.sockets[0];
        let socket = loop {
            // The socket does not block; the connection is complete already.
            if let Ok((socket, _)) = listener.accept() {
                break socket;
            }
        };
        let socket = SockRef::from(&socket);
        assert!(socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().expect("an option"), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().expect("an option"), 4);
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(KEEPALIVE_IDLE));
    }

    #[test]
    fn a_taken_port_is_refused_even_for_the_same_user() {
        let first = bind(ListenAddr::At(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), 2).expect("free port");
        let again = bind(ListenAddr::At(first.address), 2);
        assert!(matches!(again, Err(BindError::InUse { .. })), "{again:?}");
    }
}
