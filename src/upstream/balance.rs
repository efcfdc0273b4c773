//! Which of several slots takes the next request.

/// The place of the least load in `loads`; `None` stands for a slot that is not to be had. Equal loads are taken in turn from
/// `start` on, which callers vary from call to call.
pub fn least_loaded(loads: impl ExactSizeIterator<Item = Option<u64>>, start: usize) -> Option<usize> {
    let count = loads.len();
    let start = start.checked_rem(count)?;
    loads
        .enumerate()
        .filter_map(|(place, load)| Some((load?, (place + count - start) % count, place)))
        .min()
        .map(|(_, _, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_loaded_takes_the_next_request() {
        for start in 0..7 {
            assert_eq!(least_loaded([Some(3), Some(1), None, Some(2)].into_iter(), start), Some(1));
        }
    }

    #[test]
    fn equal_loads_are_taken_in_turn_and_closed_slots_never() {
        let taken: Vec<_> =
            (0..5).map(|start| least_loaded([Some(1), None, Some(1), Some(1)].into_iter(), start)).collect();
        assert_eq!(taken, [Some(0), Some(2), Some(2), Some(3), Some(0)]);
    }

    #[test]
    fn nobody_is_found_where_nobody_is() {
        assert_eq!(least_loaded([].into_iter(), 3), None);
        assert_eq!(least_loaded([None, None].into_iter(), 3), None);
    }
}
