//! Connections that wait to be accepted: looked for before one is taken.
//!
//! For an accept in vain the system makes a socket and ends it, which takes it ten times as long as a look. Where connections come
//! one by one, every second accept is in vain.
#![expect(unsafe_code, reason = "a descriptor that stays the same")]

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;

/// How long one is left to other threads: they were woken for it, too, and an idle one has it by then.
const TURN: Duration = Duration::from_millis(1);

/// A listening socket on its thread.
#[derive(Debug)]
pub struct Arrivals {
    watched: AsyncFd<TcpListener>,
    /// The runtime was told of some since they had all been taken, and none of those was taken yet.
    told: Cell<bool>,
    /// Those that wait were left to other threads once: they are not again until none wait.
    left: Cell<bool>,
}

impl Arrivals {
    /// Those of `socket`, which must not block.
    pub fn new(socket: TcpListener) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the registration, which this file neither gives away nor lets change.
        let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { watched, told: Cell::new(true), left: Cell::new(false) })
    }

    /// The next one. Where `leaves` says so it is left to other threads once; what none has taken by then is taken, and what comes
    /// until none wait. Cancel-safe. A flood of them leaves the thread's other tasks their turns.
    pub async fn accept(&self, leaves: impl Fn() -> bool) -> io::Result<(TcpStream, SocketAddr)> {
        tokio::task::coop::consume_budget().await;
        loop {
            let mut readiness = self.watched.readable().await?;
            if !self.left.get() && leaves() {
                tokio::time::sleep(TURN).await;
                self.left.set(true);
                self.told.set(false);
            }
            match readiness.try_io(|watched| self.take(watched.get_ref())) {
                Ok(accepted) => return accepted,
                Err(_none) => {
                    self.told.set(true);
                    self.left.set(false);
                }
            }
        }
    }

    fn take(&self, socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        if !self.told.replace(false) && !is_anybody_here(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (stream, peer) = rustix::net::acceptfrom_with(socket, flags)?;
        let peer = peer.ok_or(Errno::AFNOSUPPORT)?.try_into()?;
        Ok((TcpStream::from_std(stream.into())?, peer))
    }

    /// The socket, for who takes or refuses what waits in its own way.
    pub fn socket(&self) -> &TcpListener {
        self.watched.get_ref()
    }

    /// The socket, of which the runtime hears no more.
    pub fn into_socket(self) -> TcpListener {
        self.watched.into_inner()
    }
}

fn is_anybody_here(socket: &TcpListener) -> io::Result<bool> {
    let mut asked = [PollFd::new(socket, PollFlags::IN)];
    Ok(rustix::event::poll(&mut asked, Some(&Timespec::default()))? > 0)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::TcpStream as Client;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::*;

    fn listening() -> (Arrivals, impl Fn() -> Client) {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        socket.set_nonblocking(true).expect("set");
        let address = socket.local_addr().expect("bound");
        (Arrivals::new(socket).expect("watched"), move || Client::connect(address).expect("connected"))
    }

    #[tokio::test]
    async fn who_comes_together_and_who_comes_later_is_accepted() {
        let (arrivals, come) = listening();
        for together in [1, 3, 0, 2] {
            let clients: Vec<Client> = (0..together).map(|_| come()).collect();
            for client in &clients {
                let (stream, peer) = arrivals.accept(|| false).await.expect("accepted");
                assert_eq!(peer, client.local_addr().expect("known"));
                assert_eq!(stream.peer_addr().expect("known"), peer);
            }
            // Nobody else, and whoever comes once that was seen is heard of.
            let mut next = pin!(arrivals.accept(|| false));
            assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let late = come();
            assert_eq!(next.await.expect("accepted").1, late.local_addr().expect("known"));
        }
        let _waiting = come();
        assert!(is_anybody_here(&arrivals.into_socket()).expect("asked"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_left_to_others_once_and_again_when_none_waited() {
        let (arrivals, come) = listening();
        let (leaves, asked) = (Cell::new(true), Notify::new());
        let accept = || {
            arrivals.accept(|| {
                asked.notify_one();
                leaves.get()
            })
        };
        let taken = async |client: &Client| {
            let since = Instant::now();
            assert_eq!(accept().await.expect("accepted").1, client.local_addr().expect("known"));
            since.elapsed() >= TURN
        };
        let see_none = || assert!(pin!(accept()).poll(&mut Context::from_waker(Waker::noop())).is_pending());

        let burst = [come(), come()];
        assert!(taken(&burst[0]).await, "nobody else took it in its time");
        assert!(!taken(&burst[1]).await, "it waited with one that was left");
        see_none();
        let next = come();
        assert!(taken(&next).await, "none waited before it");
        see_none();
        leaves.set(false);
        let within = come();
        assert!(!taken(&within).await, "the thread has not more than its share");

        see_none();
        leaves.set(true);
        let late = come();
        asked.notified().await;
        tokio::select! {
            biased;
            _ = accept() => panic!("it was not left"),
            () = asked.notified() => {}
        }
        assert!(taken(&late).await, "its time had not passed");
    }
}
