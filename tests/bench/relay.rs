//! A relay that moves bytes and does nothing else: no TLS, no HTTP. Each TCP connection has a connection of its own to a unix socket;
//! what comes on one is sent on the other, with one call to receive and one to send. Beside it a proxy's figures show how much of
//! them the kernel takes for any program that stands in between.
//!
//! ```text
//! relay 127.0.0.1:PORT /path/of/the.sock
//! ```

#![allow(clippy::expect_used, reason = "a tool that cannot run says why and ends")]

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// The two ends of what passes through, which wait where they are full: nobody is served meanwhile.
struct Pair {
    client: OwnedFd,
    worker: OwnedFd,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().expect("ADDRESS SOCKET");
    let (address, upstream) = (next(), next());
    let listener = TcpListener::bind(address).expect("the address is free");
    let poll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
    let add = |fd: &OwnedFd| {
        let token = EventData::new_u64(number(fd));
        epoll::add(&poll, fd, token, EventFlags::IN).expect("room for a descriptor");
    };
    let listener: OwnedFd = listener.into();
    add(&listener);
    let mut pairs: HashMap<u64, Rc<Pair>> = HashMap::new();
    let mut bytes: Vec<u8> = Vec::with_capacity(1 << 17);
    let mut ready: Vec<Event> = Vec::with_capacity(256);
    loop {
        ready.clear();
        match epoll::wait(&poll, spare_capacity(&mut ready), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => unreachable!("an epoll: {error}"),
        }
        for event in &ready {
            let token = event.data.u64();
            if token == number(&listener) {
                let Ok(client) = rustix::net::accept(&listener) else { continue };
                rustix::net::sockopt::set_tcp_nodelay(&client, true).expect("a TCP socket");
                let worker = UnixStream::connect(&upstream).expect("the upstream listens").into();
                let pair = Rc::new(Pair { client, worker });
                for end in [&pair.client, &pair.worker] {
                    add(end);
                    pairs.insert(number(end), Rc::clone(&pair));
                }
                continue;
            }
            let Some(pair) = pairs.get(&token) else { continue };
            let (from, to) = if number(&pair.client) == token {
                (&pair.client, &pair.worker)
            } else {
                (&pair.worker, &pair.client)
            };
            if !moved(from, to, bytes.spare_capacity_mut()) {
                let ends = [number(from), number(to)];
                for end in ends {
                    pairs.remove(&end);
                }
            }
        }
    }
}

/// Whether there may be more.
fn moved(from: &OwnedFd, to: &OwnedFd, room: &mut [MaybeUninit<u8>]) -> bool {
    let mut rest = match rustix::net::recv(from, room, RecvFlags::DONTWAIT) {
        Ok(((bytes, _), _)) => bytes,
        // What was told of may have been one that ended, whose number this one has now.
        Err(Errno::AGAIN | Errno::INTR) => return true,
        Err(_) => return false,
    };
    if rest.is_empty() {
        return false;
    }
    while !rest.is_empty() {
        let Ok(sent) = rustix::net::send(to, rest, SendFlags::NOSIGNAL) else { return false };
        rest = &mut rest[sent..];
    }
    true
}

fn number(fd: &OwnedFd) -> u64 {
    fd.as_raw_fd().unsigned_abs().into()
}
