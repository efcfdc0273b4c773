//! Whose turn it is: which of several CAs is asked for a name, and when another stands in for the first.
//!
//! The first is asked as long as that may help. Where the others have been asked as well, the next round of them is a day later.

use std::time::{Duration, SystemTime};

use crate::cert::delay::LONGEST_WAIT;
use crate::cert::failure::{Class, Failure};
use crate::cert::history::History;
use crate::cert::seconds;
use crate::cert::validity::Validity;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Attempts at the first that fail of what may as well be mended here.
const ROUNDS: u32 = 3;

/// What decides besides the history.
#[derive(Debug, Clone, Copy)]
pub struct Others {
    /// How many CAs there are besides the first.
    pub many: usize,
    /// What is installed.
    pub installed: Option<Validity>,
}

impl Others {
    /// From when on the name cannot wait for the first; `None` where it never could.
    fn in_need_from(&self) -> Option<SystemTime> {
        self.installed.map(|validity| validity.not_after - validity.life() / 10)
    }
}

impl History {
    /// The CA whose turn it is, 0 being the first; of another it is noted that it has had it.
    pub fn take_turn(&mut self, others: Others, now: SystemTime) -> usize {
        match self.other(others, now) {
            Some(other) => {
                self.fallback = other;
                self.fallback_at = Some(seconds::whole(now));
                other
            }
            None => 0,
        }
    }

    /// Which other one is asked instead of the first, if any is.
    pub fn other(&self, others: Others, now: SystemTime) -> Option<usize> {
        let failed = |class| self.count(class);
        let away = failed(Class::Transient) >= ROUNDS || failed(Class::Account) > 0;
        let in_need = others.in_need_from().is_none_or(|from| from <= now);
        let refused = self.is_refused()
            || [Class::Validation, Class::Order].map(failed).iter().any(|count| *count >= ROUNDS);
        let lately = self.fallback_at.is_some_and(|at| at <= now + LONGEST_WAIT && at + DAY > now);
        let last = if lately { self.fallback } else { 0 };
        let may = self.fallback_from.is_none_or(|from| from <= now || from > now + LONGEST_WAIT);
        (may && (away || in_need && refused) && last < others.many).then_some(last + 1)
    }

    /// From when on another one is asked, whatever the first wants to be waited for; `None` where there is no reason, or no other.
    pub fn elsewhere_at(&self, others: Others) -> Option<SystemTime> {
        if others.many == 0 || !self.is_refused() {
            return None;
        }
        let again = self.fallback_at.filter(|_| self.fallback >= others.many).map(|at| at + DAY);
        Some(others.in_need_from().max(again).max(self.fallback_from).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// Whether the first has said no, and would again.
    fn is_refused(&self) -> bool {
        let refusals = [Class::Account, Class::Caa, Class::Permanent, Class::Action];
        self.limited_until.is_some() || refusals.into_iter().any(|class| self.count(class) > 0)
    }

    /// What a CA refuses that stands in for the first is no reason to keep from that one, whose turn it is for a day now; or for
    /// longer, where the other wants to be left alone so long.
    pub fn stand_in(&mut self, failure: Failure, now: SystemTime) -> Failure {
        match failure.class {
            Class::Transient | Class::Validation | Class::Dns | Class::Store => failure,
            Class::Limited
            | Class::Caa
            | Class::Order
            | Class::Account
            | Class::Permanent
            | Class::Action => {
                let over = failure.retry_after.map(|wait| wait.min(8 * DAY).saturating_sub(DAY));
                self.fallback_at = Some(seconds::whole(now + over.unwrap_or_default()));
                Failure { class: Class::Transient, retry_after: None, ..failure }
            }
        }
    }

    /// The other one, `ca`, was not asked after all: its turn comes again, no sooner than `at`.
    pub fn give_turn_back(&mut self, ca: usize, at: Option<SystemTime>) {
        self.fallback = ca.saturating_sub(1);
        self.fallback_from = at;
    }
}
