//! How what was seen fades with time.

/// What is left of 1 after so many lifetimes, of which the first leaves a third: e to the power of minus `lifetimes`, near enough.
/// Nothing else in edge needs the C library's mathematics, and a third of a MiB would be mapped for it.
pub fn left(lifetimes: f32) -> f32 {
    (1.0 + lifetimes / 16.0).powi(-16)
}

#[cfg(test)]
mod tests {
    use super::left;

    #[test]
    fn it_is_near_the_exponential_and_falls_to_nothing() {
        let steps: Vec<f32> = (0..2000u16).map(|step| f32::from(step) / 100.0).collect();
        for pair in steps.windows(2) {
            assert!((left(pair[0]) - (-pair[0]).exp()).abs() < 0.02, "{}", pair[0]);
            assert!(left(pair[1]) < left(pair[0]), "{}", pair[1]);
        }
        assert_eq!(left(0.0), 1.0);
        assert_eq!(left(f32::MAX), 0.0);
    }
}
