//! What the clients counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What all streams saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether the clients came to their end and looked every write up.
    pub complete: bool,
    /// How long they asked.
    pub seconds: f64,
    /// Each stream by its name.
    pub streams: BTreeMap<String, StreamReport>,
    /// Writes that the server said it has.
    pub acknowledged_writes: u64,
    /// Acknowledged writes that are not there, each in a sentence.
    pub lost_writes: Vec<String>,
}

impl Report {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.streams.values().map(|stream| stream.requests).sum()
    }

    /// All that failed, without any retry.
    #[must_use]
    pub fn failed_raw(&self) -> u64 {
        self.streams.values().map(|stream| stream.failed_raw).sum()
    }

    /// All that failed after client-go's own retries.
    #[must_use]
    pub fn failed_after_retry(&self) -> u64 {
        self.streams
            .values()
            .map(|stream| stream.failed_after_retry)
            .sum()
    }

    /// Fails where a write that the server said it has is not there.
    pub fn none_lost(&self) -> Result<()> {
        ensure!(
            self.lost_writes.is_empty(),
            "writes were lost: {}",
            self.lost_writes.join("; ")
        );
        Ok(())
    }

    /// What failed and when, a line a stream that has something to tell.
    #[must_use]
    pub fn details(&self) -> String {
        let lines: Vec<String> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.failed_raw > 0)
            .map(|(name, stream)| {
                format!(
                    "{name}: {:?} in the seconds {:?}; longest gap {} ms, until {} ms",
                    stream.errors,
                    stream.failed_in_second,
                    stream.longest_gap_ms,
                    stream.longest_gap_until_ms
                )
            })
            .collect();
        lines.join("\n")
    }

    /// The longest time that any stream saw no success.
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        Duration::from_millis(
            self.streams
                .values()
                .map(|stream| stream.longest_gap_ms)
                .max()
                .unwrap_or(0),
        )
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} requests, {} failed raw, {} after client-go's retries, longest gap {:.2} s, {} of {} writes lost",
            self.requests(),
            self.failed_raw(),
            self.failed_after_retry(),
            self.longest_gap().as_secs_f64(),
            self.lost_writes.len(),
            self.acknowledged_writes
        )
    }
}

/// What one stream saw.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamReport {
    /// Requests asked for; a retry is not another one.
    pub requests: u64,
    /// Failed at the first try.
    pub failed_raw: u64,
    /// Failed after client-go's own retries.
    pub failed_after_retry: u64,
    /// The longest time without a success, in milliseconds.
    pub longest_gap_ms: u64,
    /// When it ended, in milliseconds since the clients began.
    #[serde(default)]
    pub longest_gap_until_ms: u64,
    /// First failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// When each second with a first failure began, in seconds since the clients began, and how many it had.
    #[serde(default)]
    pub failed_in_second: BTreeMap<u64, u64>,
}

/// One stream's counters while it runs.
#[derive(Debug)]
pub(super) struct Counter {
    report: StreamReport,
    began: Instant,
    last_success: Instant,
}

impl Counter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            report: StreamReport::default(),
            began: now,
            last_success: now,
        }
    }

    pub(super) fn asked(&mut self) {
        self.report.requests += 1;
    }

    pub(super) fn succeeded(&mut self, now: Instant) {
        if self.gap(now) > self.report.longest_gap_ms {
            self.report.longest_gap_ms = self.gap(now);
            self.report.longest_gap_until_ms = millis(now.saturating_duration_since(self.began));
        }
        // Answers may overtake each other.
        self.last_success = self.last_success.max(now);
    }

    pub(super) fn failed_at_first(&mut self, now: Instant, kind: &str) {
        let second = now.saturating_duration_since(self.began).as_secs();
        *self.report.failed_in_second.entry(second).or_default() += 1;
        self.report.failed_raw += 1;
        *self.report.errors.entry(kind.to_owned()).or_default() += 1;
    }

    pub(super) fn failed_for_good(&mut self) {
        self.report.failed_after_retry += 1;
    }

    fn gap(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(self.last_success))
    }

    /// The counters now; a gap that is still open counts.
    pub(super) fn report(&self, now: Instant) -> StreamReport {
        let mut report = self.report.clone();
        report.longest_gap_ms = report.longest_gap_ms.max(self.gap(now));
        report
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_while_it_is_open_and_after() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut counter = Counter::new(start);
        counter.succeeded(at(1));
        assert_eq!(counter.report(at(4)).longest_gap_ms, 3000);
        counter.succeeded(at(6));
        counter.succeeded(at(7));
        assert_eq!(counter.report(at(7)).longest_gap_ms, 5000);
        assert_eq!(counter.report(at(7)).longest_gap_until_ms, 6000);
    }
}
