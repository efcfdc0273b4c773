//! The live workers of one app: who takes the next request, and what happens while nobody can.
//!
//! While a worker has room, taking it is a compare-and-swap on its slot. Only where all are at their limit, or none is there,
//! requests stand in a line behind a lock; who releases a slot then hands it to the next in line.

use std::cell::Cell;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thread_local::ThreadLocal;
use tokio::sync::oneshot;

use crate::config::model::Queue;
use crate::name::AppName;
use crate::upstream::affinity::Home;
use crate::upstream::balance::{
    COMPARED, Candidate, Latency, Tie, choose, for_long, is_late, is_warm, quickest, usual,
};
use crate::upstream::error::AcquireError;
use crate::upstream::lease::{Freed, Lease};
use crate::upstream::queue::{Line, Terms, Ticket};
use crate::upstream::relief::Allowance;
use crate::worker::slot::{Roster, Slot};

/// How long after a failed attempt the death of its worker is known for sure: the supervisor notices within milliseconds.
const SETTLED: Duration = Duration::from_millis(200);

/// One spawn of a slot: its number and incarnation.
pub type Incarnation = (u32, u64);

/// One app's pool, shared by all threads.
#[derive(Debug)]
pub struct Pool {
    app: AppName,
    roster: Arc<Roster>,
    /// Its length stands in the roster, for who need not wait. It is written before its writer looks at the slots, and read
    /// after the reader has released one, in one order of all threads: so one of the two sees the other.
    line: Mutex<Line<Waiter>>,
    relief: Mutex<Allowance>,
    /// Whom each thread gave its last request.
    last: ThreadLocal<Cell<Option<Given>>>,
}

/// A request that was given to a slot.
#[derive(Debug, Clone, Copy)]
struct Given {
    /// The slot's place in the roster at that time.
    place: usize,
    to: Incarnation,
    at: Instant,
}

/// What a request wants of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Whom it asked already, in vain.
    pub tried: &'a [Incarnation],
    /// Where its client belongs.
    pub home: Home,
    /// It stays long with its worker, as WebSockets do.
    pub lasting: bool,
    /// How it waits, if it must.
    pub queue: Queue,
    /// When it wants it: now.
    pub now: Instant,
}

/// A request in line.
#[derive(Debug)]
struct Waiter {
    tried: Vec<Incarnation>,
    home: Home,
    lasting: bool,
    hand: oneshot::Sender<Lease>,
}

impl Pool {
    /// A pool over what the supervisor publishes in `roster`.
    pub fn new(app: AppName, roster: Arc<Roster>) -> Arc<Self> {
        Arc::new(Self {
            app,
            roster,
            line: Mutex::default(),
            relief: Mutex::default(),
            last: ThreadLocal::new(),
        })
    }

    /// The app it is for.
    pub fn app(&self) -> &AppName {
        &self.app
    }

    /// Requests waiting for a worker now.
    pub fn waiting(&self) -> u64 {
        self.roster.waiting.load(Ordering::Relaxed) as u64
    }

    /// A lease on the slot that suits the request best, where one has room.
    pub fn at_once(self: &Arc<Self>, wish: &Wish<'_>) -> Option<Lease> {
        // Who comes while others wait stands behind them.
        let free = self.roster.waiting.load(Ordering::SeqCst) == 0;
        free.then(|| self.find_for(wish, &self.roster.load(), wish.now)).flatten()
    }

    /// As [`Self::at_once`], but waits in line while there is none. A slot that was tried and is still open after a moment is
    /// not dead, and is taken again where no other is to be had. Cancel-safe: dropping the future gives the place up.
    pub async fn acquire(self: &Arc<Self>, wish: &Wish<'_>) -> Result<Lease, AcquireError> {
        match self.at_once(wish) {
            Some(lease) => Ok(lease),
            None => self.wait(wish).await,
        }
    }

    async fn wait(self: &Arc<Self>, wish: &Wish<'_>) -> Result<Lease, AcquireError> {
        let start = tokio::time::Instant::now();
        let settled = start + SETTLED;
        let terms = Terms {
            until: (start + wish.queue.timeout).into_std(),
            choosy_until: (!wish.tried.is_empty()).then(|| settled.into_std()),
            choosy: wish.home.is_settled(),
        };
        let mut place = match Place::join(self, wish, terms) {
            Ok(place) => place,
            // Those who wait for certain workers keep nobody from the others.
            Err(full) => return self.serve_then(|slots, now| self.find_for(wish, slots, now)).ok_or(full),
        };
        let served = async {
            loop {
                let changed = self.roster.changed();
                self.serve();
                let choosy = terms.is_choosy_yet(tokio::time::Instant::now().into_std());
                tokio::select! {
                    biased;
                    lease = &mut place.lease => return lease.ok(),
                    () = changed => {}
                    () = tokio::time::sleep_until(settled), if choosy => {}
                }
            }
        };
        let served = tokio::time::timeout_at(start + wish.queue.timeout, served).await;
        let none = || AcquireError::NoWorker { waited: start.elapsed(), ended: self.roster.ended() };
        served.ok().flatten().ok_or_else(none)
    }

    /// Gives what is free to those in line.
    fn serve(self: &Arc<Self>) {
        self.serve_then(|_, _| ());
    }

    /// The same, and what `then` makes of the slots while nobody else can be given any.
    fn serve_then<T>(self: &Arc<Self>, then: impl FnOnce(&[Arc<Slot>], Instant) -> T) -> T {
        let (served, made) = {
            let mut line = self.lock();
            let (slots, now) = (self.roster.load(), tokio::time::Instant::now().into_std());
            let served = line.serve(now, |waiter, terms| {
                let tried = if terms.is_choosy_yet(now) { &waiter.tried[..] } else { &[] };
                self.find(&slots, now, tried, (waiter.home, waiter.lasting))
            });
            self.roster.waiting.store(line.len(), Ordering::SeqCst);
            (served, then(&slots, now))
        };
        for (waiter, lease) in served {
            // Who has just gone gives it back by dropping it, and that serves the next.
            drop(waiter.hand.send(lease));
        }
        made
    }

    fn find_for(self: &Arc<Self>, wish: &Wish<'_>, slots: &[Arc<Slot>], now: Instant) -> Option<Lease> {
        self.find(slots, now, wish.tried, (wish.home, wish.lasting))
    }

    fn find(
        self: &Arc<Self>,
        slots: &[Arc<Slot>],
        now: Instant,
        tried: &[Incarnation],
        (home, lasting): (Home, bool),
    ) -> Option<Lease> {
        let untried = |slot: &Slot| !tried.contains(&incarnation(slot));
        let at_home = home.among(&self.app, slots.iter().map(|slot| slot.id.slot)).map(|place| &slots[place]);
        if let Some(slot) = at_home.filter(|slot| slot.is_open() && untried(slot)) {
            return self.take(slot, u64::MAX, now);
        }
        // What stays is spread evenly: WebSockets, and clients.
        let last = (home == Home::Anywhere && !lasting).then(|| self.last.get_or_default());
        let look = || {
            let (place, seen) = pick(slots, now, &untried, lasting, last.and_then(Cell::get))?;
            if let Some(last) = last {
                last.set(Some(Given { place, to: incarnation(&slots[place]), at: now }));
            }
            Some((place, seen))
        };
        let best = look()?;
        self.take_or_look_again(slots, now, look, best)
    }

    /// A lease on the slot that [`pick`] found best, or on another. Threads that look at the same moment see the same: who comes
    /// second looks again.
    fn take_or_look_again(
        self: &Arc<Self>,
        slots: &[Arc<Slot>],
        now: Instant,
        look: impl Fn() -> Option<(usize, u64)>,
        (place, seen): (usize, u64),
    ) -> Option<Lease> {
        if let Some(lease) = self.take(&slots[place], seen, now) {
            return Some(lease);
        }
        // Ends: a slot that fills or closes between the look and the lease has no room at the next look.
        loop {
            let (place, _) = look()?;
            if let Some(lease) = self.take(&slots[place], u64::MAX, now) {
                return Some(lease);
            }
        }
    }

    /// A lease on `slot`, unless more than `seen` are in flight there by now.
    fn take(self: &Arc<Self>, slot: &Arc<Slot>, seen: u64, now: Instant) -> Option<Lease> {
        let lease = Lease::take_after(slot, seen, self)?;
        if slot.unanswered() == 1 {
            // From now on it is waited for.
            note(slot, |latency| latency.heard(age(slot, now)));
        }
        Some(lease)
    }

    /// Notes that `slot` began to answer a request, `took` after it was asked where that says something of the worker.
    pub fn note_answer(&self, slot: &Slot, took: Option<Duration>, now: Instant) {
        slot.trust();
        let age = age(slot, now);
        let others = || {
            let slots = self.roster.load();
            quickest(slots.iter().map(|other| latency_of(other).at(self::age(other, now))))
        };
        note(slot, |latency| match took {
            Some(took) => latency.after(took, age, others),
            None => latency.heard(age),
        });
    }

    /// A lease on another worker for a request that the worker of `slot` has left unread: where nobody is answered there, another
    /// has room and answers as usual, nobody waits in line for it, and [`Allowance`] grants it, unless the first is known to read
    /// nothing.
    pub fn relieve(self: &Arc<Self>, slot: &Slot, now: Instant) -> Option<Lease> {
        let slots = self.roster.load();
        let known = |slot: &Slot| latency_of(slot).when_heard();
        let quickest = quickest(slots.iter().map(|slot| known(slot)));
        let late = |slot: &Slot| {
            let silent = latency_of(slot).silent(age(slot, now));
            slot.unanswered() > 0 && is_late(silent, usual(known(slot), quickest))
        };
        if !late(slot) || self.waiting() > 0 {
            return None;
        }
        let (place, _) = pick(&slots, now, &|other| other.id != slot.id, false, None)?;
        let (other, requests) = (&slots[place], slots.iter().map(|slot| slot.requests()).sum());
        let granted = || {
            slot.is_forsaken() || self.relief.lock().unwrap_or_else(PoisonError::into_inner).take(requests)
        };
        if late(other) || !granted() {
            return None;
        }
        // Last, because each counts as a request. What was granted is lost where another thread has taken the room meanwhile.
        let lease = self.take(other, u64::MAX, now)?;
        slot.doubt(now);
        Some(lease)
    }

    fn lock(&self) -> MutexGuard<'_, Line<Waiter>> {
        // Nothing in there is left half done by a panic.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Freed for Pool {
    fn freed(self: Arc<Self>) {
        if self.roster.waiting.load(Ordering::SeqCst) > 0 {
            self.serve();
        }
    }
}

/// What another thread notes at the same time may be lost, which is no loss.
fn note(slot: &Slot, change: impl FnOnce(Latency) -> Latency) {
    let (word, risen) = change(latency_of(slot)).pack();
    slot.latency.store(word, Ordering::Relaxed);
    slot.latency_risen.store(risen, Ordering::Relaxed);
}

fn latency_of(slot: &Slot) -> Latency {
    Latency::unpack(slot.latency.load(Ordering::Relaxed), slot.latency_risen.load(Ordering::Relaxed))
}

fn incarnation(slot: &Slot) -> Incarnation {
    (slot.id.slot, slot.id.incarnation)
}

fn age(slot: &Slot, now: Instant) -> Duration {
    now.saturating_duration_since(slot.opened_at)
}

/// The place of the best slot with room, and how many are in flight there: of all where they are few; where they are many, of two
/// that chance picks, or of the warm one and another. For what is `lasting`, who has more of that than others matters longer than
/// who is busy now. Of equals it is the first from the one on that had the `last` request, if that is still warm, and otherwise any:
/// two threads that meet at the same slot part there, and each stays with its own.
fn pick(
    slots: &[Arc<Slot>],
    now: Instant,
    wanted: &impl Fn(&Slot) -> bool,
    lasting: bool,
    last: Option<Given>,
) -> Option<(usize, u64)> {
    if let [only] = slots {
        return only.room().filter(|_| wanted(only)).map(|in_flight| (0, in_flight));
    }
    let candidate = |place: usize| {
        let slot = &slots[place];
        let in_flight = slot.room().filter(|_| wanted(slot))?;
        let (age, latency) = (age(slot, now), latency_of(slot));
        let owes = slot.unanswered() > 0 || slot.is_doubted(now);
        let silent = if owes { latency.silent(age) } else { 0.0 };
        let silent = if lasting { for_long(silent) } else { silent };
        Some(Candidate { in_flight, latency: latency.at(age), silent, age })
    };
    let warm = last.and_then(|Given { place, to, at }| {
        let slot = slots.get(place).filter(|slot| incarnation(slot) == to)?;
        let since = now.saturating_duration_since(at);
        is_warm(latency_of(slot).at(age(slot, now)), since).then_some(place)
    });
    let mut places = [0; COMPARED];
    let mut candidates = [Candidate::default(); COMPARED];
    let mut count = 0;
    let mut note = |place, candidate| {
        (places[count], candidates[count]) = (place, candidate);
        count += 1;
    };
    if slots.len() <= COMPARED {
        for place in 0..slots.len() {
            if let Some(found) = candidate(place) {
                note(place, found);
            }
        }
    } else {
        for start in [warm, None] {
            let start = start.unwrap_or_else(|| fastrand::usize(..slots.len()));
            let mut from = (start..slots.len()).chain(0..start);
            if let Some((place, found)) = from.find_map(|place| Some((place, candidate(place)?))) {
                note(place, found);
            }
        }
    }
    let first = warm.and_then(|warm| places[..count].iter().position(|place| *place == warm));
    let tie = first.map_or_else(|| Tie::Any(fastrand::usize(..)), Tie::From);
    let chosen = choose(&candidates[..count], tie)?;
    Some((places[chosen], candidates[chosen].in_flight))
}

/// A place in the line, given up when dropped.
struct Place<'a> {
    pool: &'a Pool,
    ticket: Ticket,
    lease: oneshot::Receiver<Lease>,
}

impl<'a> Place<'a> {
    fn join(pool: &'a Pool, wish: &Wish<'_>, terms: Terms) -> Result<Self, AcquireError> {
        let (hand, lease) = oneshot::channel();
        let waiter = Waiter { tried: wish.tried.to_vec(), home: wish.home, lasting: wish.lasting, hand };
        let mut line = pool.lock();
        let ticket = line.join(wish.queue.size as usize, terms, waiter);
        pool.roster.waiting.store(line.len(), Ordering::SeqCst);
        match ticket {
            Some(ticket) => Ok(Self { pool, ticket, lease }),
            None => Err(AcquireError::QueueFull { waiting: line.len() as u64, ended: pool.roster.ended() }),
        }
    }
}

impl Drop for Place<'_> {
    /// A lease that was sent and not received goes back after this, with the receiver.
    fn drop(&mut self) {
        let mut line = self.pool.lock();
        line.leave(self.ticket);
        self.pool.roster.waiting.store(line.len(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests;
