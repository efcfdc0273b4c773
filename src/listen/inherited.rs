//! Listening sockets that a service manager holds for edge and passes to it (sd_listen_fds(3)). While edge is restarted the
//! kernel goes on completing connections there, which wait for the next one.
#![expect(unsafe_code, reason = "descriptors that are edge's because its environment says so")]

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd};

use socket2::{SockRef, Socket, Type};

use crate::config::model::ListenAddr;
use crate::listen::socket::{self, BindError, Bound};

/// What was passed. Kept as long as edge runs: an address that a reload takes away may come back.
#[derive(Debug, Default)]
pub struct Inherited {
    passed: Vec<One>,
    /// The process that sockets were passed to, where it is another one.
    elsewhere: Option<u32>,
}

#[derive(Debug)]
struct One {
    socket: TcpListener,
    address: SocketAddr,
}

/// What was passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// There is no such descriptor, or the variables make no sense.
    #[error(
        "cannot take the sockets that LISTEN_FDS promises; start edge without LISTEN_FDS and LISTEN_PID, or mend whatever sets them"
    )]
    Promised(#[source] io::Error),
    /// Not a listening TCP socket.
    #[error(
        "descriptor {descriptor}, which LISTEN_FDS passes to edge, is no listening TCP socket; let the socket unit have ListenStream= alone, with ports"
    )]
    Foreign {
        /// Its number.
        descriptor: i32,
    },
    /// Edge would answer at one of them.
    #[error(
        "LISTEN_FDS passes two sockets at {0}, and clients at one of them would wait for ever; let one line of one socket unit have that address"
    )]
    Twice(SocketAddr),
}

impl Inherited {
    /// Takes what was passed to this process; none to another one. To be called once, before edge opens anything.
    pub fn take() -> Result<Self, InheritError> {
        let mut passed: Vec<One> = Vec::new();
        for descriptor in sd_notify::listen_fds().map_err(InheritError::Promised)? {
            // SAFETY: it is open, or could not have been made to close on exec; it was passed to this process by number, and
            // nothing here owns it yet.
            let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
            let one = One::of(socket).ok_or(InheritError::Foreign { descriptor })?;
            if passed.iter().any(|other| other.address == one.address) {
                return Err(InheritError::Twice(one.address));
            }
            passed.push(one);
        }
        let named =
            std::env::var_os("LISTEN_FDS").and_then(|_| std::env::var("LISTEN_PID").ok()?.parse().ok());
        Ok(Self { passed, elsewhere: named.filter(|process| *process != std::process::id()) })
    }

    /// A socket for each of `threads` on what was passed for `address`, if anything was: the same one for all of them, so that
    /// nothing waits where nobody takes it.
    pub fn at(&self, address: ListenAddr, threads: usize) -> Option<Result<Bound, BindError>> {
        let one = self.passed.iter().find(|one| one.fits(address))?;
        let share = || {
            socket::tune(&SockRef::from(&one.socket))?;
            (0..threads.max(1)).map(|_| one.socket.try_clone()).collect()
        };
        let shared: io::Result<_> = share();
        Some(match shared {
            Ok(sockets) => Ok(Bound { address: one.address, sockets, held: true }),
            Err(cause) => Err(BindError::Other { address, cause }),
        })
    }

    /// Why an address is not to be had, where a service manager's sockets have to do with it.
    pub fn explain(&self, error: BindError) -> BindError {
        let BindError::InUse { address } = error else { return error };
        let port = socket::port(address);
        let unit = match address {
            ListenAddr::Any(port) => format!("ListenStream={port} and BindIPv6Only=both"),
            ListenAddr::At(at) if at.ip() == Ipv6Addr::UNSPECIFIED => {
                format!("ListenStream={at} and BindIPv6Only=both")
            }
            ListenAddr::At(at) => format!("ListenStream={at}"),
        };
        match (self.passed.iter().find(|one| one.address.port() == port), self.elsewhere) {
            (Some(one), _) => BindError::Misfit { address, passed: one.address, unit },
            (None, Some(process)) => BindError::Elsewhere { address, process },
            (None, None) => BindError::InUse { address },
        }
    }

    /// The addresses of what was passed: those that `used` contain, and those nobody asked for.
    pub fn addresses(&self, used: &[ListenAddr]) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let is_used = |one: &&One| used.iter().any(|address| one.fits(*address));
        let (used, idle): (Vec<&One>, Vec<&One>) = self.passed.iter().partition(is_used);
        let of = |some: Vec<&One>| some.iter().map(|one| one.address).collect();
        (of(used), of(idle))
    }
}

impl One {
    fn of(socket: Socket) -> Option<Self> {
        let stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
        let listens = socket.is_listener().is_ok_and(|listens| listens);
        let address = socket.local_addr().ok()?.as_socket()?;
        (stream && listens).then(|| Self { socket: TcpListener::from(socket), address })
    }

    /// Whether this is what edge would open itself for `address`.
    fn fits(&self, address: ListenAddr) -> bool {
        let dual = self.address.ip() != Ipv6Addr::UNSPECIFIED
            || SockRef::from(&self.socket).only_v6().is_ok_and(|only| !only);
        dual && socket::place(address) == self.address
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn passed(address: SocketAddr) -> One {
        let bound = socket::bind(ListenAddr::At(address), 1).expect("free port");
        let socket = bound.sockets.into_iter().next().expect("one");
        One::of(Socket::from(socket)).expect("a listening socket")
    }

    #[test]
    fn an_address_gets_the_socket_that_was_passed_for_it_on_every_thread() {
        let one = passed(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let at = ListenAddr::At(one.address);
        let any = ListenAddr::Any(one.address.port());
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let inherited = Inherited { passed: vec![one, passed(other)], elsewhere: None };
        let bound = inherited.at(at, 3).expect("it was passed").expect("a socket can be shared");
        assert_eq!(bound.sockets.len(), 3);
        assert!(bound.held, "and listened on already");
        let _client = std::net::TcpStream::connect(bound.address).expect("it listens");
        let accepted = bound.sockets.iter().filter(|socket| socket.accept().is_ok()).count();
        assert_eq!(accepted, 1, "whoever comes first");
        assert!(inherited.at(any, 1).is_none(), "less than what was asked for");
        assert!(inherited.at(ListenAddr::At(other), 1).is_none(), "any port is no port");
        let (used, idle) = inherited.addresses(&[at]);
        assert_eq!((used, idle.len()), (vec![bound.address], 1));
    }

    #[test]
    fn all_addresses_of_a_port_are_one_socket_only_where_it_takes_both_versions() {
        let both = passed(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
        assert!(both.fits(ListenAddr::Any(both.address.port())));
        assert!(both.fits(ListenAddr::At(both.address)));
        let one = Socket::new(socket2::Domain::IPV6, Type::STREAM, None).expect("IPv6");
        one.set_only_v6(true).expect("an option");
        one.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).expect("free port");
        assert!(One::of(one.try_clone().expect("a descriptor")).is_none(), "it does not listen");
        one.listen(1).expect("it can");
        let one = One::of(one).expect("a listening socket");
        assert!(!one.fits(ListenAddr::Any(one.address.port())));
    }

    #[test]
    fn what_a_passed_socket_would_have_to_be_is_said() {
        let one = passed(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let (port, address) = (one.address.port(), one.address);
        let mut inherited = Inherited { passed: vec![one], elsewhere: None };
        let told =
            |inherited: &Inherited, address| inherited.explain(BindError::InUse { address }).to_string();
        let any = told(&inherited, ListenAddr::Any(port));
        assert!(any.contains(&format!("a socket at {address} in its place")), "{any}");
        assert!(any.ends_with(&format!("have ListenStream={port} and BindIPv6Only=both")), "{any}");
        let other = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let at = told(&inherited, ListenAddr::At(other));
        assert!(at.ends_with(&format!("have ListenStream=0.0.0.0:{port}")), "{at}");
        let elsewhere = ListenAddr::Any(port ^ 1);
        assert!(told(&inherited, elsewhere).contains("another program"), "nothing to do with it");
        inherited.elsewhere = Some(7);
        assert!(told(&inherited, elsewhere).contains("to process 7 (LISTEN_PID)"));
    }
}
