//! How long to wait after failures in a row.

use std::time::Duration;

/// Doubles from the first wait to the limit. `failures`: how many there were before this one.
pub(crate) fn wait(failures: u32, first: Duration, limit: Duration) -> Duration {
    first.saturating_mul(1 << failures.min(10)).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit() {
        let [first, limit] = [Duration::from_secs(1), Duration::from_secs(60)];
        let waits = [0, 1, 2, 5, 6, u32::MAX].map(|failures| wait(failures, first, limit).as_secs());
        assert_eq!(waits, [1, 2, 4, 32, 60, 60]);
    }
}
