//! This thread's connections of HTTP/2 to workers, each shared by any number of requests.
//!
//! A connection has a task that reads and writes it; a request has none. What a client does not take of one answer must not hold
//! up the others on its connection: only streams have a window of a size that is ever reached.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::io::InspectReader;

use crate::config::limits::Limits;
use crate::scope::Scope;
use crate::upstream::connection::Connection;
use crate::upstream::hearing::{Hearing, SIGN_WITHIN};
use crate::upstream::idle::PRUNE_EVERY;
use crate::worker::slot::Slot;

/// What a worker may send ahead on all streams of a connection: as much as there can be (RFC 9113 §6.9.1).
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What may wait to be written on one stream.
const SEND_BUFFER: usize = 256 * 1024;

/// Connections by slot incarnation. One per data-plane thread; never shared.
pub struct SharedConnections {
    /// Owns the connections' tasks.
    pub(super) tasks: Scope,
    /// By the slot's address in memory, which is its own as long as the peer holds the slot.
    peers: RefCell<BTreeMap<*const Slot, Rc<Peer>>>,
    filled: Notify,
    /// How long an idle connection is kept whatever its slot says; `None` is as long as the slot says.
    patience: Cell<Option<Duration>>,
}

/// One slot as this thread knows it.
struct Peer {
    slot: Arc<Slot>,
    /// Held by whoever connects: those who come meanwhile share what comes of it.
    turn: tokio::sync::Mutex<()>,
    lines: RefCell<Vec<Rc<Line>>>,
}

/// One connection.
struct Line {
    sender: SendRequest<Bytes>,
    pings: tokio::sync::Mutex<Option<PingPong>>,
    hearing: Rc<Hearing>,
    /// It takes no more requests.
    over: Cell<bool>,
    /// Requests on it.
    open: Cell<usize>,
    /// When the last of them ended.
    idle_since: Cell<Instant>,
}

/// A request's place on a connection, given up when dropped.
pub(super) struct Place {
    line: Rc<Line>,
    /// Its answer has begun.
    answered: bool,
}

impl SharedConnections {
    /// None yet. The tasks of `tasks` may outlive the requests, but not the thread.
    pub fn new(tasks: Scope) -> Rc<Self> {
        let (peers, filled, patience) = Default::default();
        Rc::new(Self { tasks, peers, filled, patience })
    }

    /// Keeps idle connections for this long from now on; `None` is as long as suits each slot.
    pub fn keep_for(&self, patience: Option<Duration>) {
        self.patience.set(patience);
    }

    /// A way to send one request to `slot`: on a connection that has room for it, or on a new one. Callers bound it. Cancel-safe.
    pub(super) async fn take(
        &self,
        slot: &Arc<Slot>,
        limits: &Limits,
    ) -> io::Result<(SendRequest<Bytes>, Place)> {
        let peer = self.peer(slot);
        if let Some(found) = peer.find() {
            return Ok(found);
        }
        let _turn = peer.turn.lock().await;
        if let Some(found) = peer.find() {
            return Ok(found);
        }
        let hearing = Hearing::new();
        let stream = Connection::connect(&slot.address).await?;
        let listening = Rc::clone(&hearing);
        let connection = InspectReader::new(stream, move |read: &[u8]| listening.hear(read.len()));
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(limits.window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(limits.response.head_size).unwrap_or(u32::MAX))
            .max_send_buffer_size(SEND_BUFFER)
            .handshake::<_, Bytes>(connection)
            .await
            .map_err(io::Error::other)?;
        let line = Rc::new(Line {
            sender,
            pings: tokio::sync::Mutex::new(connection.ping_pong()),
            hearing: Rc::clone(&hearing),
            over: Cell::new(false),
            open: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
        });
        // The library ends a connection once nobody can send on it any more: the task must not be one who can.
        let driven = Rc::downgrade(&line);
        drop(self.tasks.spawn(async move {
            // Why it ended shows in the requests that were on it.
            tokio::select! {
                biased;
                _ended = connection => {}
                never = question(&hearing, &driven) => match never {},
            }
            if let Some(line) = driven.upgrade() {
                line.over.set(true);
            }
        }));
        let found = (line.sender.clone(), Place::on(&line));
        peer.lines.borrow_mut().push(line);
        Ok(found)
    }

    fn peer(&self, slot: &Arc<Slot>) -> Rc<Peer> {
        let mut peers = self.peers.borrow_mut();
        if peers.is_empty() {
            self.filled.notify_one();
        }
        let new = || {
            let (turn, lines) = Default::default();
            Rc::new(Peer { slot: Arc::clone(slot), turn, lines })
        };
        Rc::clone(peers.entry(Arc::as_ptr(slot)).or_insert_with(new))
    }

    /// Lets go of connections that are over or idle for too long, and of those to closed slots. What is open on one goes on: it
    /// is closed after that.
    pub fn prune(&self) {
        let now = Instant::now();
        self.peers.borrow_mut().retain(|_, peer| {
            let patience = self.patience.get().unwrap_or(peer.slot.idle_timeout);
            let idle = |line: &Line| line.open.get() == 0 && now - line.idle_since.get() >= patience;
            let open = peer.slot.is_open();
            let mut lines = peer.lines.borrow_mut();
            lines.retain(|line| open && !line.over.get() && !idle(line));
            // Somebody may be connecting.
            !lines.is_empty() || Rc::strong_count(peer) > 1
        });
    }

    /// Prunes from time to time; never returns. One task of each data-plane thread. Cancel-safe.
    pub async fn run(&self) {
        loop {
            if self.peers.borrow().is_empty() {
                self.filled.notified().await;
            }
            tokio::time::sleep(PRUNE_EVERY).await;
            self.prune();
        }
    }
}

impl Peer {
    /// The first connection with room; full ones are followed by another.
    fn find(&self) -> Option<(SendRequest<Bytes>, Place)> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| !line.over.get());
        lines.iter().find_map(|line| {
            let mut sender = line.sender.clone();
            if line.open.get() >= sender.current_max_send_streams() {
                return None;
            }
            match sender.poll_ready(&mut cx) {
                Poll::Ready(Ok(())) => Some((sender, Place::on(line))),
                Poll::Pending => None,
                // The worker said GOAWAY, or is gone.
                Poll::Ready(Err(_)) => {
                    line.over.set(true);
                    None
                }
            }
        })
    }
}

impl Line {
    /// Completes when the worker answers a PING, or the connection ends.
    async fn pong(&self) {
        if let Some(pings) = &mut *self.pings.lock().await {
            // It is refused where somebody has given up waiting for the last one, whose answer is as good.
            let _ = pings.send_ping(Ping::opaque());
            // It fails where the connection does.
            let _ = poll_fn(|cx| pings.poll_pong(cx)).await;
        }
    }
}

/// Asks the worker of a connection for a sign of life whenever somebody waits, or waited and left, and nothing is heard; where
/// there is none, nobody else is sent there. Part of the connection's task.
async fn question(hearing: &Hearing, line: &Weak<Line>) -> Infallible {
    loop {
        hearing.doubt().await;
        let Some(line) = line.upgrade() else { return pending().await };
        let sign = tokio::time::timeout(SIGN_WITHIN, line.pong()).await;
        if sign.is_err() && !hearing.is_alive() {
            line.over.set(true);
        }
    }
}

impl Place {
    fn on(line: &Rc<Line>) -> Self {
        line.open.set(line.open.get() + 1);
        line.hearing.expect();
        Self { line: Rc::clone(line), answered: false }
    }

    /// The answer has begun.
    pub(super) fn answered(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.line.hearing.answered();
        }
    }

    /// The client goes away before its answer is whole.
    pub(super) fn left(&self) {
        if self.answered {
            self.line.hearing.left_in_the_middle();
        }
    }

    /// Whether the worker takes WebSockets on its connection, whose other end `sender` is. It says so in its settings, which come
    /// before anything else it says: on a fresh connection it is asked to say something. Callers bound it. Cancel-safe.
    pub(super) async fn takes_websockets(&self, sender: &SendRequest<Bytes>) -> bool {
        if !sender.is_extended_connect_protocol_enabled() {
            self.line.pong().await;
        }
        sender.is_extended_connect_protocol_enabled()
    }

    /// Nobody else is to be sent where this one waited in vain.
    pub(super) fn give_up_connection(&self) {
        self.line.over.set(true);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.open.set(self.line.open.get() - 1);
        self.line.idle_since.set(Instant::now());
        if !self.answered {
            self.line.hearing.left();
        }
    }
}
