//! What the requests that wait on one thread hold with their heads, bounded over all clients together: one client's share may be
//! small and yet be that of thousands.

use std::cell::Cell;

use crate::complaint::Complaint;
use crate::config::limits::Limits;

/// What a request holds while it waits, and what each of its fields adds: as measured, whatever its client sent for it. A field
/// that HTTP/2 has told once is a byte from then on.
const REQUEST: usize = 8 << 10;
const FIELD: usize = 160;

/// One more is let in where so many of its size fit: the less room there is, the smaller is the largest that may come, so that
/// those of browsers pass long after those made to be large do not.
const RESERVE: usize = 128;

/// The least that a thread has for heads.
const LEAST: usize = 16 << 20;

/// The heads of one thread.
#[derive(Debug)]
pub struct Heads {
    threads: usize,
    held: Cell<usize>,
    refused: Complaint,
}

/// The head of a request that waits, until it is dropped.
#[derive(Debug)]
pub struct Held<'a> {
    heads: &'a Heads,
    size: usize,
}

impl Heads {
    /// None yet, in one of so many threads.
    pub fn new(threads: u32) -> Self {
        Self { threads: threads.max(1) as usize, held: Cell::new(0), refused: Complaint::default() }
    }

    /// Room for one of so many fields and bytes, where there is enough.
    pub fn hold(&self, fields: usize, bytes: usize, limits: &Limits) -> Option<Held<'_>> {
        let size = size(fields, bytes);
        let held = self.held.get();
        if held + size * RESERVE > self.most(limits) {
            self.tell_refused();
            return None;
        }
        self.held.set(held + size);
        Some(Held { heads: self, size })
    }

    /// What this thread may hold: its share of one of the longest that are allowed for each connection that there may be.
    fn most(&self, limits: &Limits) -> usize {
        let longest = size(limits.header_fields, limits.head_size);
        ((limits.connections as usize).saturating_mul(longest) / self.threads).max(LEAST)
    }

    fn tell_refused(&self) {
        if let Some(times) = self.refused.is_due(1) {
            tracing::warn!(
                refused = times,
                "the heads of requests that wait take all the room that `limits.connections`, `limits.head_size` and `limits.header_fields` give them: more are answered 503"
            );
        }
    }
}

/// At how much one of so many fields and bytes is reckoned.
fn size(fields: usize, bytes: usize) -> usize {
    REQUEST + fields * FIELD + bytes
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.heads.held.set(self.heads.held.get() - self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check_limits::presets;

    #[test]
    fn f03_the_less_room_there_is_the_smaller_is_the_largest_head_that_may_wait() {
        let limits = Limits { connections: 4096, ..presets().1 };
        let heads = Heads::new(2);
        let most = heads.most(&limits);
        let full = |fields, bytes| {
            let held: Vec<_> = std::iter::from_fn(|| heads.hold(fields, bytes, &limits)).collect();
            assert!(heads.held.get() <= most);
            held
        };
        let large = full(100, 500);
        assert!(large.len() > 1000 && heads.hold(100, 500, &limits).is_none());
        let browsers = full(20, 1000);
        assert!(browsers.len() > 60, "a browser's still may, {}", browsers.len());
        drop(large);
        assert!(heads.hold(100, 500, &limits).is_some(), "there is room again");
        drop(browsers);
        assert_eq!(heads.held.get(), 0);
    }

    #[test]
    fn each_connection_may_have_a_request_that_waits_with_a_head_of_a_browser() {
        let limits = presets().1;
        let heads = Heads::new(2);
        // One thread may have more of the connections than the other.
        let mine = limits.connections as usize * 3 / 5;
        let held: Vec<_> = std::iter::from_fn(|| heads.hold(40, 4000, &limits)).take(mine).collect();
        assert_eq!(held.len(), mine);
    }

    #[test]
    fn where_few_connections_may_be_each_head_that_is_allowed_may_wait() {
        let limits = Limits { connections: 1, ..presets().1 };
        assert!(Heads::new(64).hold(limits.header_fields, limits.head_size, &limits).is_some());
    }
}
