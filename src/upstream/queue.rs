//! Who waits for a worker, who is refused, and who is next. First come, first served: a free worker goes to the first in line
//! that takes it. Some do not take every worker, so others may pass them.

use std::collections::VecDeque;
use std::time::Instant;

/// Requests in line; each is handed its worker through an `H`.
#[derive(Debug)]
pub struct Line<H> {
    waiting: VecDeque<Waiting<H>>,
    tickets: u64,
}

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Waiting<H> {
    ticket: Ticket,
    terms: Terms,
    hand: H,
}

/// On what terms a request waits.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Until then; from then on it is passed over.
    pub until: Instant,
    /// Until then it takes some workers only.
    pub choosy_until: Option<Instant>,
    /// It takes some workers only, for as long as it waits.
    pub choosy: bool,
}

impl Terms {
    /// Whether it takes some workers only at `now`.
    pub fn is_choosy(&self, now: Instant) -> bool {
        self.choosy || self.is_choosy_yet(now)
    }

    /// Whether it takes some workers only at `now`, and more of them later.
    pub fn is_choosy_yet(&self, now: Instant) -> bool {
        self.choosy_until.is_some_and(|until| now < until)
    }
}

impl<H> Default for Line<H> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), tickets: 0 }
    }
}

impl<H> Line<H> {
    /// Requests in line.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A place at the end, unless `size` wait already.
    pub fn join(&mut self, size: usize, terms: Terms, hand: H) -> Option<Ticket> {
        if self.waiting.len() >= size {
            return None;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.push_back(Waiting { ticket, terms, hand });
        Some(ticket)
    }

    /// Gives a place up; one that was served already is gone.
    pub fn leave(&mut self, ticket: Ticket) {
        // Tickets are in order.
        if let Ok(place) = self.waiting.binary_search_by_key(&ticket.0, |waiting| waiting.ticket.0) {
            self.waiting.remove(place);
        }
    }

    /// Everybody who is served now, in order. `find` looks for what one of them takes.
    pub fn serve<L>(&mut self, now: Instant, mut find: impl FnMut(&H, &Terms) -> Option<L>) -> Vec<(H, L)> {
        let mut served = Vec::new();
        let mut place = 0;
        while let Some(next) = self.waiting.get(place) {
            if next.terms.until <= now {
                place += 1;
                continue;
            }
            match find(&next.hand, &next.terms) {
                Some(found) => served.extend(self.waiting.remove(place).map(|next| (next.hand, found))),
                None if next.terms.is_choosy(now) => place += 1,
                // Who takes any worker found none, so nobody behind will.
                None => break,
            }
        }
        served
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn terms(now: Instant, choosy: bool) -> Terms {
        Terms { until: now + Duration::from_secs(10), choosy_until: None, choosy }
    }

    #[test]
    fn the_first_in_line_is_the_next_and_the_line_is_bounded() {
        let now = Instant::now();
        let mut line = Line::default();
        let tickets: Vec<_> = (0..4).map(|name| line.join(3, terms(now, false), name)).collect();
        assert!(tickets[..3].iter().all(Option::is_some) && tickets[3].is_none());
        let mut free = 1;
        let mut take = |_: &i32, _: &Terms| (free > 0).then(|| free -= 1);
        assert_eq!(line.serve(now, &mut take), [(0, ())]);
        assert_eq!(line.serve(now, &mut take), []);
        line.leave(tickets[1].expect("joined"));
        line.leave(tickets[1].expect("joined"));
        assert_eq!(line.serve(now, |_, _| Some(())), [(2, ())]);
        assert!(line.is_empty());
    }

    #[test]
    fn who_does_not_take_this_worker_is_passed_and_keeps_the_place() {
        let now = Instant::now();
        let mut line = Line::default();
        for (name, choosy) in [("choosy", true), ("first", false), ("second", false)] {
            line.join(10, terms(now, choosy), name);
        }
        let mut free = 1;
        let served = line.serve(now, |name, _| (*name != "choosy" && free > 0).then(|| free -= 1));
        assert_eq!(served, [("first", ())]);
        assert_eq!(line.serve(now, |_, _| Some(())), [("choosy", ()), ("second", ())]);
    }

    #[test]
    fn whose_time_is_over_is_not_served() {
        let now = Instant::now();
        let mut line = Line::default();
        line.join(10, Terms { until: now, ..terms(now, false) }, "late");
        line.join(10, terms(now, false), "next");
        assert_eq!(line.serve(now, |_, _| Some(())), [("next", ())]);
    }

    proptest! {
        #[test]
        fn requests_that_take_any_worker_are_served_in_order_and_never_kept_from_a_free_one(
            steps in prop::collection::vec((0u8..4, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let mut line: Line<(u64, bool)> = Line::default();
            let (mut free, mut names, mut last) = (0u32, 0u64, 0u64);
            for (step, choosy) in steps {
                match step {
                    0 | 1 => {
                        names += 1;
                        prop_assert_eq!(line.len() < 20, line.join(20, terms(now, choosy), (names, choosy)).is_some());
                    }
                    _ => free += 1,
                }
                // The choosy ones take nobody here.
                let served = line.serve(now, |(_, choosy), _| (!choosy && free > 0).then(|| free -= 1));
                for ((name, _), ()) in served {
                    prop_assert!(name > last);
                    last = name;
                }
                prop_assert!(free == 0 || line.waiting.iter().all(|waiting| waiting.hand.1));
            }
        }
    }
}
