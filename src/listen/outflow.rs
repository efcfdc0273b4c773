//! What the answers on a client's HTTP/2 connection have handed on, and what of it the socket has not taken yet. Windows say
//! nothing of what a client reads: they may have room for all of an answer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use crate::deadline::Deadline;
use crate::proxy::entry::Entry;
use crate::upstream::duplex::PIECE;
use crate::upstream::exchange::Reach;

/// Bytes of all answers of a connection that may wait for its socket.
const ROOM: usize = 256 * 1024;

/// In how many turns an answer takes a piece at least: what a client makes room for is seldom a whole number of pieces.
const TURNS: u64 = 4;

/// The answers of one connection.
pub struct Outflow {
    /// Bytes since the socket had last taken all of it.
    handed: Cell<usize>,
    /// Bytes ever.
    moved: Cell<u64>,
    /// Answers on their way.
    sending: Cell<u32>,
    /// Those that wait for room.
    waiting: RefCell<Vec<Waker>>,
    /// Requests whose answers were handed on to their ends since then.
    whole: RefCell<VecDeque<Box<Entry>>>,
    /// Most of them.
    most: usize,
}

impl Outflow {
    /// No answers yet, on a connection of so many streams at once.
    pub fn new(streams: u32) -> Self {
        Self {
            handed: Cell::new(0),
            moved: Cell::new(0),
            sending: Cell::new(0),
            waiting: RefCell::default(),
            whole: RefCell::default(),
            most: streams as usize,
        }
    }

    /// To be called when the socket has taken all that it was given: there is room again, and whole answers have left.
    pub fn written(&self) {
        self.handed.set(0);
        self.waiting.borrow_mut().drain(..).for_each(Waker::wake);
        let mut whole = self.whole.borrow_mut();
        if !whole.is_empty() {
            let now = Instant::now();
            whole.drain(..).for_each(|entry| entry.ended(now));
        }
    }

    /// The answer to this request was handed on to its end. Where more wait to leave than there may be streams, the first of them is
    /// told as sent: a client that takes nothing and resets what was answered has a stream for the next, as often as it likes.
    pub fn end(&self, entry: Option<Box<Entry>>) {
        let mut whole = self.whole.borrow_mut();
        whole.extend(entry);
        if whole.len() > self.most {
            drop(whole.pop_front());
        }
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        for entry in self.whole.get_mut() {
            entry.cut();
        }
    }
}

/// One answer's place among those on their way, given up when dropped.
pub struct Sharing {
    outflow: Rc<Outflow>,
    /// Set while the client has no room for the next piece.
    patience: Option<Patience>,
    /// Bytes since it was set: a client that takes a piece in `timeouts.write` goes on with its answer.
    taken: usize,
}

struct Patience {
    deadline: Deadline,
    /// What all answers had moved when it was set, and at its last look.
    since: u64,
    looked: u64,
    /// How many they were when it was set.
    sending: u32,
}

impl Sharing {
    /// A place in `outflow`.
    pub fn new(outflow: &Rc<Outflow>) -> Self {
        outflow.sending.set(outflow.sending.get() + 1);
        Self { outflow: Rc::clone(outflow), patience: None, taken: 0 }
    }

    /// Ready where something may be handed on. However long that takes: that the socket takes something at all is the
    /// connection's to see to.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.outflow.handed.get() < ROOM {
            return Poll::Ready(());
        }
        let mut waiting = self.outflow.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// So much of the answer is handed on now; `all` of what there is of it.
    pub fn hand_on(&mut self, bytes: usize, all: bool) {
        let outflow = &self.outflow;
        outflow.handed.set(outflow.handed.get() + bytes);
        outflow.moved.set(outflow.moved.get() + bytes as u64);
        self.taken += bytes;
        if self.taken >= PIECE || all {
            (self.patience, self.taken) = (None, 0);
        }
    }

    /// To be called while the client has no room for the next piece; ready once that has lasted for too long. The client may be
    /// slow and have many answers, which share one window: then each has its turn after all the others.
    pub fn poll_patience(&mut self, cx: &mut Context<'_>, reach: &Reach) -> Poll<()> {
        let (moved, sending) = (self.outflow.moved.get(), self.outflow.sending.get());
        let patience = self.patience.get_or_insert_with(|| {
            let deadline = reach.deadlines.deadline();
            deadline.set(reach.timeouts.write);
            Patience { deadline, since: moved, looked: moved, sending }
        });
        loop {
            ready!(patience.deadline.poll_passed(cx));
            let turns = TURNS * u64::from(sending.max(patience.sending)) * PIECE as u64;
            if moved - patience.looked < PIECE as u64 || moved - patience.since >= turns {
                return Poll::Ready(());
            }
            patience.looked = moved;
            patience.deadline.set(reach.timeouts.write);
        }
    }

    /// The answer was handed on to its end.
    pub fn end(&self, entry: Option<Box<Entry>>) {
        self.outflow.end(entry);
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.outflow.sending.set(self.outflow.sending.get() - 1);
    }
}
