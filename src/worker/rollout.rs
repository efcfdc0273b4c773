//! Which worker fills which slot when: the first start, replacements after deaths, roll-outs of a new generation, recycling.
//!
//! Must not do: read a clock, spawn. It never gives up: a slot that fails is tried again after a growing delay, for ever.
//!
//! A slot has one worker that serves and, while that one is to be replaced, a successor. The successor is ready before the
//! other is asked to go, and only one successor of all slots starts at a time; where memory has no room for one, the worker goes
//! first. A new generation counts as proven with its first ready worker; until then dead workers are replaced by the old
//! one. A worker of it that does not become ready ends the roll-out, and what is there of it is replaced by the old again.

use std::time::Instant;

use crate::backoff::Backoff;
pub use crate::worker::places::{Action, Policy, Seat};
use crate::worker::places::{Leaving, Place, Stage, Worker};

/// What happens to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The worker answered for the first time.
    Ready(Seat),
    /// The worker was not ready in time and is being ended.
    Late(Seat),
    /// The worker is gone, or could not be started.
    Died(Seat),
    /// That many are wanted from now on.
    Want(u32),
    /// Every worker is to be of this generation, and that many are wanted then. Only while none is under way.
    Roll(u64, u32),
    /// The worker is to be replaced by a fresh one when its turn comes.
    Recycle(Seat),
    /// What comes before the generation's first worker is done.
    Prepared(u64),
    /// It failed.
    Unprepared(u64),
    /// It was ended before its time, because another generation is to be prepared.
    Interrupted(u64),
    /// Time passed; the moment of [`Rollout::wake_at`] may have come.
    Tick,
}

/// The slots of one app.
#[derive(Debug, Clone)]
pub struct Rollout {
    policy: Policy,
    wanted: u32,
    places: Vec<Place>,
    early_deaths: u32,
    /// What workers are replaced by, unless a roll-out has proven its own.
    base: Generation,
    next: Option<Next>,
    room: bool,
    /// The moment of the last step: what was due then and has not been done waits for something else than time.
    seen: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Generation {
    number: u64,
    prepared: Prepared,
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Prepared {
    Due(Instant),
    Running,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Next {
    generation: Generation,
    wanted: u32,
    /// How many were wanted before.
    before: u32,
    proven: bool,
}

impl Rollout {
    /// Nobody is there and nobody is wanted yet: feed [`Input::Want`]. Workers are of generation 1.
    pub fn new(policy: Policy, now: Instant) -> Self {
        let base = Generation { number: 1, prepared: Prepared::Due(now), failures: 0 };
        Self {
            policy,
            wanted: 0,
            places: Vec::new(),
            early_deaths: 0,
            base,
            next: None,
            room: true,
            seen: now,
        }
    }

    /// Whether memory has room for a successor beside the workers there are. Asked for before each step that
    /// [`Self::is_changing`].
    pub fn set_room(&mut self, room: bool) {
        self.room = room;
    }

    /// Replaces the delays between attempts.
    pub fn set_backoff(&mut self, backoff: Backoff) {
        self.policy.backoff = backoff;
    }

    /// Takes in what happened and says what to do about it.
    pub fn step(&mut self, now: Instant, input: Input, rng: &mut fastrand::Rng) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Ready(seat) => self.ready_now(seat, now, &mut actions),
            Input::Late(seat) => self.late(seat, now, &mut actions),
            Input::Died(seat) => self.died(seat, now, rng, &mut actions),
            Input::Want(wanted) => self.want(wanted, now),
            Input::Roll(number, wanted) => {
                let generation = Generation { number, prepared: Prepared::Due(now), failures: 0 };
                self.next = Some(Next { generation, wanted, before: self.wanted, proven: false });
            }
            Input::Recycle(seat) => {
                if let Some(place) = self.places.get_mut(seat.slot as usize) {
                    place.recycle |= place.current.is_some_and(|current| current.seat == seat);
                }
            }
            Input::Prepared(number) => {
                if let Some(generation) = self.generation(number) {
                    generation.prepared = Prepared::Done;
                }
            }
            Input::Unprepared(number) => self.unprepared(number, now, rng, &mut actions),
            Input::Interrupted(number) => {
                // Not at once: the other one is still to come, and the two may not meet.
                let pause = self.policy.delay(2, rng);
                if let Some(generation) = self.generation(number) {
                    generation.prepared = Prepared::Due(now + pause);
                }
            }
            Input::Tick => {}
        }
        self.settle(now, &mut actions);
        self.seen = now;
        actions
    }

    /// When the next [`Input::Tick`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        let due = |generation: &Generation| match generation.prepared {
            Prepared::Due(at) if self.wanted > 0 => Some(at),
            Prepared::Due(_) | Prepared::Running | Prepared::Done => None,
        };
        let wanted = self.places.iter().take(self.wanted as usize);
        let launches = wanted.filter(|place| {
            self.may_launch() && place.is_vacant()
                || self.handover_is_free(None) && self.is_outdated(place) && place.leaving.is_empty()
        });
        let overlaps = self.places.iter().flat_map(|place| &place.leaving);
        let overlaps = overlaps
            .filter(|_| {
                self.is_rolling() && self.room && self.places.iter().any(|place| self.is_outdated(place))
            })
            .map(|leaving| leaving.since + self.policy.overlap);
        let at = launches.map(|place| place.launch_at).chain(overlaps);
        at.chain(due(&self.base)).filter(|at| *at > self.seen).min()
    }

    /// Whether workers die before they are ready, again and again, and none is ready.
    pub fn is_crash_loop(&self) -> bool {
        self.early_deaths >= self.policy.crash_loop && self.ready() == 0
    }

    /// Whether what comes before the first worker of the generation in charge is done.
    pub fn is_prepared(&self) -> bool {
        self.base.prepared == Prepared::Done
    }

    /// Whether a roll-out is under way.
    pub fn is_rolling(&self) -> bool {
        self.next.is_some()
    }

    /// Whether workers are being replaced, or are about to be.
    pub fn is_changing(&self) -> bool {
        self.is_rolling()
            || self.places.iter().any(|place| self.is_outdated(place) || place.successor.is_some())
    }

    /// Whether everybody who is wanted serves and nobody else is left.
    pub fn is_settled(&self) -> bool {
        let wanted = self.wanted as usize;
        self.places.iter().enumerate().all(|(slot, place)| {
            place.leaving.is_empty()
                && place.successor.is_none()
                && if slot < wanted { place.is_ready() } else { place.current.is_none() }
        })
    }

    /// The generation that workers are of, or shall be.
    pub fn generation_number(&self) -> u64 {
        self.base.number
    }

    /// Whether the worker is of a generation that takes over, and not ready yet: if it fails, the old ones serve on.
    pub fn is_candidate(&self, seat: Seat) -> bool {
        let place = self.places.get(seat.slot as usize);
        let both = place.into_iter().flat_map(|place| [place.current, place.successor]).flatten();
        let is =
            |worker: &Worker| worker.seat == seat && !worker.is_ready() && self.is_next(worker.generation);
        both.into_iter().any(|worker| is(&worker))
    }

    /// Workers that take requests.
    pub fn ready(&self) -> u32 {
        self.places.iter().filter(|place| place.is_ready()).count() as u32
    }

    /// Workers that ought to.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }

    /// The generation that a dead worker is replaced by.
    fn replacement(&self) -> &Generation {
        match &self.next {
            Some(next) if next.proven => &next.generation,
            Some(_) | None => &self.base,
        }
    }

    /// The generation everybody shall be of.
    fn goal(&self) -> &Generation {
        self.next.as_ref().map_or(&self.base, |next| &next.generation)
    }

    fn generation(&mut self, number: u64) -> Option<&mut Generation> {
        let next = self.next.as_mut().map(|next| &mut next.generation);
        [Some(&mut self.base), next].into_iter().flatten().find(|generation| generation.number == number)
    }

    fn is_next(&self, generation: u64) -> bool {
        self.next.is_some_and(|next| next.generation.number == generation)
    }

    /// Whether dead workers can be replaced now.
    fn may_launch(&self) -> bool {
        self.replacement().prepared == Prepared::Done
    }

    fn is_outdated(&self, place: &Place) -> bool {
        place.current.is_some_and(|current| {
            place.successor.is_none() && (place.recycle || current.generation != self.goal().number)
        })
    }

    /// Whether a successor may be started now. `now` given, a roll-out does not wait for ever for those that go.
    fn handover_is_free(&self, now: Option<Instant>) -> bool {
        let overlapped = |leaving: &Leaving| {
            let waited = now.is_some_and(|now| now >= leaving.since + self.policy.overlap);
            self.is_rolling() && self.room && waited
        };
        self.goal().prepared == Prepared::Done
            && self.places.iter().all(|place| {
                let starts = place.current.is_some_and(|current| {
                    current.stage != (Stage::Late) && !current.is_ready() && self.is_next(current.generation)
                });
                place.successor.is_none() && !starts && place.leaving.iter().all(overlapped)
            })
    }

    fn want(&mut self, wanted: u32, now: Instant) {
        self.wanted = wanted;
        if let Some(next) = &mut self.next {
            next.wanted = wanted;
            next.before = wanted;
        }
        if wanted == 0 {
            self.next = None;
        }
        let count = self.places.len().max(wanted as usize);
        self.places.resize_with(count, || Place::vacant(now));
    }

    fn ready_now(&mut self, seat: Seat, now: Instant, actions: &mut Vec<Action>) {
        let Some(place) = self.places.get_mut(seat.slot as usize) else { return };
        let takes_over = place.successor.is_some_and(|one| one.seat == seat && one.stage == Stage::Starting);
        if takes_over {
            let old = std::mem::replace(&mut place.current, place.successor.take());
            place.recycle = false;
            if let Some(old) = old {
                place.leave(old, now, actions);
            }
        }
        let Some(current) = place.current.as_mut().filter(|current| current.seat == seat) else { return };
        if current.stage != Stage::Starting {
            return;
        }
        current.stage = Stage::Ready { since: now };
        let generation = current.generation;
        self.early_deaths = 0;
        if self.is_next(generation)
            && let Some(next) = self.next.as_mut().filter(|next| !next.proven)
        {
            next.proven = true;
            self.wanted = next.wanted;
            // The old generation's failures say nothing of one that starts.
            for place in &mut self.places {
                place.forgive(now);
            }
            let count = self.places.len().max(self.wanted as usize);
            self.places.resize_with(count, || Place::vacant(now));
        }
    }

    fn late(&mut self, seat: Seat, now: Instant, actions: &mut Vec<Action>) {
        let Some(place) = self.places.get_mut(seat.slot as usize) else { return };
        let both = [place.current.as_mut(), place.successor.as_mut()];
        let Some(worker) = both.into_iter().flatten().find(|worker| worker.seat == seat) else { return };
        worker.stage = Stage::Late;
        let generation = worker.generation;
        if self.is_next(generation) {
            self.abandon(Some(seat), now, actions);
        }
    }

    fn died(&mut self, seat: Seat, now: Instant, rng: &mut fastrand::Rng, actions: &mut Vec<Action>) {
        let policy = self.policy;
        let Some(place) = self.places.get_mut(seat.slot as usize) else { return };
        let before = place.leaving.len();
        place.leaving.retain(|leaving| leaving.seat != seat);
        if place.leaving.len() < before {
            if place.leaving.is_empty() && std::mem::take(&mut place.waits) {
                place.forgive(now);
            }
            return;
        }
        let is = |worker: &Option<Worker>| worker.is_some_and(|worker| worker.seat == seat);
        let worker = if is(&place.successor) {
            place.successor.take()
        } else if is(&place.current) {
            place.recycle = false;
            std::mem::replace(&mut place.current, place.successor.take())
        } else {
            None
        };
        let Some(worker) = worker else { return };
        place.launch_at = now + place.delay(worker.stage, now, &policy, rng);
        match worker.stage {
            Stage::Starting | Stage::Late => self.early_deaths = self.early_deaths.saturating_add(1),
            Stage::Ready { .. } => return,
        }
        if self.is_next(worker.generation) {
            self.abandon(Some(seat), now, actions);
            // Its failure says nothing of the old generation.
            self.early_deaths = 0;
            if let Some(place) = self.places.get_mut(seat.slot as usize) {
                place.forgive(now);
            }
        }
    }

    fn unprepared(&mut self, number: u64, now: Instant, rng: &mut fastrand::Rng, actions: &mut Vec<Action>) {
        if self.is_next(number) {
            self.abandon(None, now, actions);
        } else if self.base.number == number {
            self.early_deaths = self.early_deaths.saturating_add(1);
            let delay = self.policy.delay(self.base.failures + 1, rng);
            self.base.failures += 1;
            self.base.prepared = Prepared::Due(now + delay);
        }
    }

    /// Back to the old generation.
    fn abandon(&mut self, culprit: Option<Seat>, now: Instant, actions: &mut Vec<Action>) {
        let Some(next) = self.next.take() else { return };
        self.wanted = next.before;
        for place in &mut self.places {
            if place
                .successor
                .is_some_and(|one| one.generation == next.generation.number && one.stage == Stage::Starting)
                && let Some(successor) = place.successor.take()
            {
                place.leave(successor, now, actions);
            }
        }
        actions.push(Action::Abandoned(next.generation.number, culprit));
    }

    fn settle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.prepare(now, actions);
        let wanted = self.wanted as usize;
        for place in self.places.iter_mut().skip(wanted) {
            for worker in [place.successor.take(), place.current.take()].into_iter().flatten() {
                place.waits = true;
                place.leave(worker, now, actions);
            }
        }
        self.hand_over(now, actions);
        if self.may_launch() {
            let generation = self.replacement().number;
            for (slot, place) in (0u32..).zip(&mut self.places).take(wanted) {
                if place.is_vacant() && place.launch_at <= now {
                    place.current = Some(place.launch(slot, generation, actions));
                }
            }
        }
        self.complete(actions);
    }

    fn prepare(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // While a new generation is tried, it is its turn.
        let generation = self.next.as_mut().map_or(&mut self.base, |next| &mut next.generation);
        match generation.prepared {
            Prepared::Due(at) if at <= now && self.wanted > 0 => {
                generation.prepared = Prepared::Running;
                actions.push(Action::Prepare(generation.number));
            }
            Prepared::Due(_) | Prepared::Running | Prepared::Done => {}
        }
    }

    /// Starts the next successor, if it is time for one.
    fn hand_over(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if !self.handover_is_free(Some(now)) {
            return;
        }
        let goal = self.goal().number;
        let unproven = self.next.is_some_and(|next| !next.proven);
        let all_ready = self.ready() >= self.wanted;
        let wanted = self.wanted as usize;
        let turn = |place: &Place| {
            if unproven && place.is_vacant() {
                return Some(0);
            }
            let other_generation = place.current.is_some_and(|current| current.generation != goal);
            (self.is_outdated(place)
                && place.leaving.is_empty()
                && place.launch_at <= now
                && (other_generation || all_ready))
                .then_some(if other_generation { 1 } else { 2 })
        };
        let turns = self.places.iter().take(wanted).enumerate();
        let first = turns.filter_map(|(slot, place)| Some((turn(place)?, slot))).min();
        let Some(slot) = first.map(|(_, slot)| slot) else { return };
        let others =
            self.places.iter().enumerate().filter(|(other, place)| *other != slot && place.is_ready());
        let (room, others_ready) = (self.room, others.count() + 1 >= wanted);
        let place = &mut self.places[slot];
        if place.current.is_none() {
            place.current = Some(place.launch(slot as u32, goal, actions));
        } else if room {
            place.successor = Some(place.launch(slot as u32, goal, actions));
        } else if others_ready && let Some(old) = place.current.take() {
            place.recycle = false;
            place.waits = true;
            place.leaving.push(Leaving { seat: old.seat, since: now });
            if old.stage != Stage::Late {
                actions.push(Action::MakeRoom(old.seat));
            }
        }
    }

    fn complete(&mut self, actions: &mut Vec<Action>) {
        let Some(next) = &self.next else { return };
        let number = next.generation.number;
        let renewed = |place: &Place| place.current.is_some_and(|current| current.generation == number);
        if next.proven && self.is_settled() && self.places.iter().take(self.wanted as usize).all(renewed) {
            self.base = next.generation;
            self.next = None;
            actions.push(Action::Completed(number));
        }
    }
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
