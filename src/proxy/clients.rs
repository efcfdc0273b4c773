//! What one client holds of edge at the moment, whichever threads serve it: its connections and its requests in flight. A
//! client is an IPv4 address or an IPv6 /64, which is what one subscriber gets.
//!
//! The table is locked when a connection comes and goes. A request counts in one atomic word, which its connection holds.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::deadline::Deadlines;
use crate::telemetry::metrics::Connections;

/// How long a request waits while as many of its client's as allowed are in flight.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How many requests of a client may wait for each that may be in flight. Whoever waits holds its head and its place in a
/// connection: a burst of an office fits, what one address asks for without end does not.
const WAITING_EACH: u32 = 4;

/// Parts of the table, so that threads seldom meet at one lock.
const SHARDS: usize = 64;

/// Every client of the process.
pub struct Clients {
    connections: AtomicU32,
    accepted: AtomicU64,
    over_total: AtomicU64,
    over_client: AtomicU64,
    shards: [Mutex<HashMap<Key, Known>>; SHARDS],
}

/// An IPv4 address, or the first half of an IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    V4(u32),
    V6(u64),
}

impl Key {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }

    fn shard(self) -> usize {
        // Neighbours in a network differ in their last bits; the multiplication carries all of them upwards (Fibonacci hashing).
        let bits = match self {
            Self::V4(bits) => u64::from(bits),
            Self::V6(bits) => bits,
        };
        (bits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % SHARDS
    }
}

/// A client in the table.
struct Known {
    connections: u32,
    /// Presences, counted connections or not.
    holders: u32,
    requests: Arc<Requests>,
}

/// A client's requests at workers, in a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Requests {
    /// In flight in the lower half, waiting in the upper.
    word: AtomicU64,
    /// Event streams beside them.
    streams: AtomicU32,
    freed: Notify,
}

impl Requests {
    /// One less is in flight.
    fn leave(&self) {
        let before = self.word.fetch_sub(1, Ordering::Relaxed);
        if before >= WAITING {
            self.freed.notify_one();
        }
    }
}

const WAITING: u64 = 1 << 32;

impl Default for Clients {
    fn default() -> Self {
        Self {
            connections: AtomicU32::new(0),
            accepted: AtomicU64::new(0),
            over_total: AtomicU64::new(0),
            over_client: AtomicU64::new(0),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }
}

impl Clients {
    /// A place for one more connection, if fewer than `most` are there.
    pub fn seat(self: &Arc<Self>, most: u32) -> Option<Seat> {
        let seat = Seat(Arc::clone(self));
        // Counted first: two threads at the last place are both refused rather than both let in.
        let free = self.connections.fetch_add(1, Ordering::Relaxed) < most;
        if !free {
            self.over_total.fetch_add(1, Ordering::Relaxed);
        }
        free.then_some(seat)
    }

    /// Connections now.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// All connections since the start.
    pub fn counted(&self) -> Connections {
        Connections {
            open: self.connections().into(),
            accepted: self.accepted.load(Ordering::Relaxed),
            over_total: self.over_total.load(Ordering::Relaxed),
            over_client: self.over_client.load(Ordering::Relaxed),
        }
    }

    /// One more connection of `ip`, unless it has `most` already; 0 is any number.
    pub fn connect(self: &Arc<Self>, ip: IpAddr, most: u32) -> Option<Rc<Presence>> {
        let come = self.come(ip, |known| {
            let room = most == 0 || known.connections < most;
            known.connections += u32::from(room);
            room
        });
        let counter = if come.is_some() { &self.accepted } else { &self.over_client };
        counter.fetch_add(1, Ordering::Relaxed);
        come.map(|requests| self.presence(ip, true, requests))
    }

    /// `ip` as the client of requests on somebody else's connection.
    pub fn represent(self: &Arc<Self>, ip: IpAddr) -> Rc<Presence> {
        let requests = self.come(ip, |_| true).unwrap_or_default();
        self.presence(ip, false, requests)
    }

    fn presence(self: &Arc<Self>, ip: IpAddr, connected: bool, requests: Arc<Requests>) -> Rc<Presence> {
        Rc::new(Presence { clients: Arc::clone(self), key: Key::of(ip), connected, requests })
    }

    fn come(&self, ip: IpAddr, may: impl FnOnce(&mut Known) -> bool) -> Option<Arc<Requests>> {
        let key = Key::of(ip);
        let mut shard = self.shard(key);
        let known = shard.entry(key).or_insert_with(|| Known {
            connections: 0,
            holders: 0,
            requests: Arc::default(),
        });
        // Refused, somebody else holds the entry.
        may(known).then(|| {
            known.holders += 1;
            Arc::clone(&known.requests)
        })
    }

    fn go(&self, key: Key, connected: bool) {
        let mut shard = self.shard(key);
        if let Some(known) = shard.get_mut(&key) {
            known.connections -= u32::from(connected);
            known.holders -= 1;
            if known.holders == 0 {
                shard.remove(&key);
                if shard.is_empty() {
                    // What a flood of addresses needed is given back.
                    shard.shrink_to_fit();
                }
            }
        }
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, Known>> {
        // The lock is held for a few arithmetic steps, none of which can leave the table torn.
        self.shards[key.shard()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the connections that may be open.
pub struct Seat(Arc<Clients>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client, for as long as a connection or a request of it is there.
pub struct Presence {
    clients: Arc<Clients>,
    key: Key,
    /// It counts as a connection.
    connected: bool,
    requests: Arc<Requests>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.clients.go(self.key, self.connected);
    }
}

/// As many requests of the client as allowed were in flight for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crowded;

impl Presence {
    /// One more request in flight, if fewer than `most` are.
    pub fn try_enter(self: &Rc<Self>, most: u32) -> Option<InFlight> {
        // Never counted for a moment where there is no room: who is told in that moment that another has ended would find none.
        let enter = |word| (word & (WAITING - 1) < u64::from(most)).then_some(word + 1);
        let entered = self.requests.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
        entered.is_ok().then(|| InFlight { presence: Rc::clone(self), is_stream: false })
    }

    /// Waits for others of the client to end, unless too many wait already. Cancel-safe.
    pub async fn enter(self: &Rc<Self>, most: u32, deadlines: &Deadlines) -> Result<InFlight, Crowded> {
        let waiting = Waiting::new(&self.requests, most.saturating_mul(WAITING_EACH)).ok_or(Crowded)?;
        let deadline = deadlines.deadline();
        deadline.set(LONGEST_WAIT);
        loop {
            let freed = self.requests.freed.notified();
            if let Some(entered) = self.try_enter(most) {
                drop(waiting);
                return Ok(entered);
            }
            tokio::select! {
                () = freed => {}
                () = deadline.passed() => return Err(Crowded),
            }
        }
    }
}

struct Waiting<'a>(&'a Requests);

impl<'a> Waiting<'a> {
    /// One more, if fewer than `most` are.
    fn new(requests: &'a Requests, most: u32) -> Option<Self> {
        let waiting = Self(requests);
        let before = requests.word.fetch_add(WAITING, Ordering::Relaxed) / WAITING;
        (before < u64::from(most)).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.word.fetch_sub(WAITING, Ordering::Relaxed);
    }
}

/// One request of a client at a worker.
pub struct InFlight {
    presence: Rc<Presence>,
    /// It makes room for others.
    is_stream: bool,
}

impl InFlight {
    /// From now on it is an event stream, which lasts: it makes room for another request, unless the client has `most` such
    /// streams already; 0 is any number.
    pub fn stream(&mut self, most: u32) {
        let requests = &self.presence.requests;
        let more = |streams| (most == 0 || streams < most).then_some(streams + 1);
        if !self.is_stream
            && requests.streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        {
            self.is_stream = true;
            requests.leave();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let requests = &self.presence.requests;
        if self.is_stream {
            requests.streams.fetch_sub(1, Ordering::Relaxed);
        } else {
            requests.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn d05_a_client_is_an_ipv4_address_or_an_ipv6_network() {
        for (a, b, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("0.0.0.1", "::1:0:0:0:1", false),
        ] {
            assert_eq!(Key::of(ip(a)) == Key::of(ip(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn d05_connections_are_counted_by_client_and_in_total() {
        let clients = Arc::<Clients>::default();
        let seats: Vec<_> = (0..3).map_while(|_| clients.seat(3)).collect();
        assert_eq!((seats.len(), clients.seat(3).is_none(), clients.connections()), (3, true, 3));
        drop(seats);
        assert_eq!(clients.connections(), 0);

        let first = clients.connect(ip("192.0.2.1"), 2).expect("room");
        let second = clients.connect(ip("192.0.2.1"), 2).expect("room");
        assert!(clients.connect(ip("192.0.2.1"), 2).is_none());
        assert!(clients.connect(ip("192.0.2.2"), 2).is_some());
        let forwarded = clients.represent(ip("192.0.2.1"));
        drop(second);
        let third = clients.connect(ip("192.0.2.1"), 2).expect("room again");
        drop((first, third, forwarded));
        assert!(
            clients.shards.iter().all(|shard| shard.lock().expect("sound").is_empty()),
            "nobody is remembered"
        );
        assert!(clients.connect(ip("192.0.2.1"), 0).is_some(), "0 is any number");
    }

    #[tokio::test(start_paused = true)]
    async fn f04_requests_beyond_the_limit_wait_for_a_second_at_most() {
        let clients = Arc::<Clients>::default();
        let client = clients.connect(ip("192.0.2.1"), 0).expect("room");
        // Another connection of the same client, on another thread in real life.
        let other = clients.connect(ip("192.0.2.1"), 0).expect("room");
        let deadlines = Deadlines::new();
        let first = client.try_enter(2).expect("room");
        let second = other.try_enter(2).expect("room");
        assert!(client.try_enter(2).is_none());
        let begun = tokio::time::Instant::now();
        let steps = async {
            assert!(client.enter(2, &deadlines).await.is_err());
            let waited = begun.elapsed();
            assert!(waited >= LONGEST_WAIT && waited < LONGEST_WAIT * 2, "{waited:?}");
            let (entered, ()) = tokio::join!(client.enter(2, &deadlines), async { drop(second) });
            drop((first, entered));
        };
        tokio::select! {
            () = steps => {}
            () = deadlines.run() => unreachable!("it never returns"),
        }
        assert_eq!(client.requests.word.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn event_streams_make_room_for_requests_until_they_are_too_many() {
        let clients = Arc::<Clients>::default();
        let client = clients.connect(ip("192.0.2.1"), 0).expect("room");
        let other = clients.connect(ip("192.0.2.1"), 0).expect("room");
        let mut streams: Vec<_> = (0..3)
            .map(|_| {
                let mut stream = client.try_enter(1).expect("room");
                stream.stream(3);
                stream.stream(3);
                stream
            })
            .collect();
        let mut fourth = other.try_enter(1).expect("room");
        fourth.stream(3);
        assert!(client.try_enter(1).is_none(), "one more than may make room counts like any other");
        streams.pop();
        fourth.stream(3);
        let last = client.try_enter(1).expect("room");
        drop((streams, fourth, last));
        let requests = &client.requests;
        let left = (requests.word.load(Ordering::Relaxed), requests.streams.load(Ordering::Relaxed));
        assert_eq!(left, (0, 0));
        let mut unbounded = client.try_enter(1).expect("room");
        unbounded.stream(0);
        assert!(client.try_enter(1).is_some(), "0 is any number");
    }

    #[test]
    fn whoever_is_not_let_in_is_never_counted() {
        let clients = Arc::<Clients>::default();
        let (asking, looking) = (Arc::clone(&clients), clients.represent(ip("192.0.2.1")));
        let _only = looking.try_enter(1).expect("room");
        let asking = std::thread::spawn(move || {
            let client = asking.represent(ip("192.0.2.1"));
            (0..2_000_000).all(|_| client.try_enter(1).is_none())
        });
        while !asking.is_finished() {
            assert_eq!(looking.requests.word.load(Ordering::Relaxed), 1);
        }
        assert!(asking.join().expect("no panic"));
    }

    #[tokio::test(start_paused = true)]
    async fn f03_so_many_requests_wait_and_the_next_is_refused_at_once() {
        let clients = Arc::<Clients>::default();
        let client = clients.connect(ip("192.0.2.1"), 0).expect("room");
        let deadlines = Deadlines::new();
        let first = client.try_enter(1).expect("room");
        let waiting: Vec<_> = (0..WAITING_EACH).map_while(|_| Waiting::new(&client.requests, 4)).collect();
        assert_eq!(waiting.len(), 4);
        let begun = tokio::time::Instant::now();
        assert!(client.enter(1, &deadlines).await.is_err());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        drop((first, waiting));
        assert_eq!(client.requests.word.load(Ordering::Relaxed), 0);
    }
}
