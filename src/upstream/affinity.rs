//! Which worker a client stays with: the one its cookie names, or the one its address falls to.
//!
//! The cookie's value names a slot of the app and nothing else: it holds no identity, is the same for all clients of a worker,
//! and outlives restarts of edge and of the worker. It needs no secret: who alters it chooses another worker, as anybody can by
//! asking again without it.

use std::net::IpAddr;

use crate::name::AppName;

/// Where a client belongs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Home {
    /// Nowhere, now or later.
    #[default]
    Anywhere,
    /// Nowhere yet: it will stay with the slot that answers.
    Unsettled,
    /// With the slot that has this mark.
    Marked(u64),
    /// With the slot that fits this address best.
    Nearest(u64),
}

impl Home {
    /// The home of a client by its address. IPv6 clients change their lower half at will.
    pub fn of_client(client: IpAddr) -> Self {
        Self::Nearest(match client {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
        })
    }

    /// The home a cookie names; another cookie's text, and one nobody could have got, name none.
    pub fn in_cookie(text: &[u8]) -> Self {
        let mark = std::str::from_utf8(text).ok().filter(|text| text.len() == 16);
        mark.and_then(|text| u64::from_str_radix(text, 16).ok()).map_or(Self::Unsettled, Self::Marked)
    }

    /// Whether it belongs to a slot.
    pub fn is_settled(self) -> bool {
        match self {
            Self::Anywhere | Self::Unsettled => false,
            Self::Marked(_) | Self::Nearest(_) => true,
        }
    }

    /// The place among `slots`, which are the numbers of an app's slots that serve. An address's neighbours stay where they
    /// are when one of them goes (rendezvous hashing).
    pub fn among(self, app: &AppName, slots: impl Iterator<Item = u32>) -> Option<usize> {
        let mut places = slots.enumerate();
        match self {
            Self::Anywhere | Self::Unsettled => None,
            Self::Marked(wanted) => {
                places.find(|(_, slot)| mark(app, *slot) == wanted).map(|(place, _)| place)
            }
            Self::Nearest(client) => {
                places.max_by_key(|(_, slot)| mix(client ^ mark(app, *slot))).map(|(place, _)| place)
            }
        }
    }
}

/// What stands for a slot of an app.
pub fn mark(app: &AppName, slot: u32) -> u64 {
    let start = mix(u64::from(slot) + 1);
    app.as_str().bytes().fold(start, |hash, byte| mix(hash ^ u64::from(byte)))
}

/// Spreads every bit over the word (the finalizer of SplitMix64).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> AppName {
        "api".parse().expect("valid")
    }

    #[test]
    fn a_cookie_leads_back_to_its_slot_while_that_serves() {
        for slot in 0..1000 {
            let home = Home::in_cookie(format!("{:016x}", mark(&app(), slot)).as_bytes());
            assert_eq!(home.among(&app(), 0..1000), Some(slot as usize));
            assert_eq!(home.among(&app(), (0..1000).filter(|other| *other != slot)), None);
        }
        let other: AppName = "shop".parse().expect("valid");
        assert_ne!(mark(&app(), 0), mark(&other, 0));
        for wrong in
            [&b""[..], b"0", b"+000000000000000", b"zzzzzzzzzzzzzzzz", b"\xff\xff", b"00000000000000000"]
        {
            assert_eq!(Home::in_cookie(wrong).among(&app(), 0..4), None, "{wrong:?}");
        }
    }

    #[test]
    fn addresses_spread_evenly_and_only_those_of_a_lost_slot_move() {
        let homes: Vec<_> =
            (0..4000u32).map(|ip| Home::of_client(IpAddr::V4((0x0a00_0000 + ip).into()))).collect();
        let mut counts = [0; 4];
        for home in &homes {
            let place = home.among(&app(), 0..4).expect("somewhere");
            counts[place] += 1;
            let left = home.among(&app(), [0, 1, 3].into_iter()).expect("somewhere");
            assert!(place == 2 || [0, 1, 3][left] == place);
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        let ip: IpAddr = "2001:db8::1".parse().expect("an address");
        let neighbour: IpAddr = "2001:db8::ffff:1".parse().expect("an address");
        assert_eq!(Home::of_client(ip), Home::of_client(neighbour));
    }
}
