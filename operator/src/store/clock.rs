//! What the server's clock says: the `Date` of its answers, against this node's own.
//!
//! S3 and Azure refuse what is signed more than 15 minutes from their own time, and Google what is signed 5 or 10. A
//! clock that drifts is seen long before.

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use http::HeaderMap;

/// A clock that NTP keeps is right to a fraction of a second, and one that nothing keeps drifts by seconds a day:
/// after a minute something is wrong, and there are weeks until the server refuses.
const TOLERANCE: TimeDelta = TimeDelta::seconds(60);

/// Two clocks, looked at in the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// When the answer came, by this node's clock.
    pub here: DateTime<Utc>,
    /// What the answer said; whole seconds.
    pub there: DateTime<Utc>,
    /// By how much the server's clock is ahead (behind: negative), at the least: what the way there and back and the
    /// second's rest may explain is not counted.
    pub ahead: TimeDelta,
}

impl Reading {
    /// None when there is no `Date`, or none that can be understood. `sent`: when the request went out.
    pub(super) fn of(headers: &HeaderMap, sent: DateTime<Utc>, here: DateTime<Utc>) -> Option<Self> {
        let date = headers.get(http::header::DATE)?.to_str().ok()?;
        let there = DateTime::parse_from_rfc2822(date).ok()?.with_timezone(&Utc);
        // It was read at some moment between the two, and cut to the second.
        let (least, most) = (sent - there - TimeDelta::seconds(1), here - there);
        let ahead = if most < TimeDelta::zero() {
            -most
        } else if least > TimeDelta::zero() {
            -least
        } else {
            TimeDelta::zero()
        };
        Some(Self { here, there, ahead })
    }

    /// True when one of the two is wrong.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.ahead.abs() > TOLERANCE
    }

    /// Both clocks, in words.
    #[must_use]
    pub fn told(&self, node: &str, server: &str) -> String {
        let time = |at: &DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S UTC").to_string();
        let (here, there) = (time(&self.here), time(&self.there));
        let seconds = self.ahead.num_seconds().abs();
        format!("{node} has {here}, and {server} has {there}: they are {seconds} s apart")
    }
}

/// The last reading of a store's server.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock(Arc<Mutex<Option<Reading>>>);

impl Clock {
    pub(super) fn last(&self) -> Option<Reading> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, reading: Option<Reading>) {
        if reading.is_some() {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reading;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(date: &str, sent: &str, here: &str) -> Option<Reading> {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::DATE, date.parse().unwrap());
        let time = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        Reading::of(&headers, time(sent), time(here))
    }

    #[test]
    fn what_the_way_may_explain_is_no_difference() {
        for (date, ahead) in [
            ("Sat, 21 Nov 2026 18:00:05 GMT", 0),
            ("Sat, 21 Nov 2026 18:00:11 GMT", 1),
            ("Sat, 21 Nov 2026 17:59:58 GMT", -1),
            ("Sat, 21 Nov 2026 17:00:00 GMT", -3599),
            ("Sat, 21 Nov 2026 18:16:10 GMT", 960),
        ] {
            let read = reading(date, "2026-11-21T18:00:00Z", "2026-11-21T18:00:10Z").unwrap();
            assert_eq!(read.ahead.num_seconds(), ahead, "{date}");
            assert_eq!(read.is_off(), ahead.abs() > 60, "{date}");
        }
        assert_eq!(
            reading("yesterday", "2026-11-21T18:00:00Z", "2026-11-21T18:00:10Z"),
            None
        );
        assert_eq!(Reading::of(&HeaderMap::new(), Utc::now(), Utc::now()), None);
    }

    #[test]
    fn both_clocks_are_named() {
        let read = reading(
            "Sat, 21 Nov 2026 18:16:10 GMT",
            "2026-11-21T18:00:00Z",
            "2026-11-21T18:00:10Z",
        );
        assert_eq!(
            read.unwrap().told("cp1", "https://s3.example"),
            "cp1 has 2026-11-21 18:00:10 UTC, and https://s3.example has 2026-11-21 18:16:10 UTC: they are 960 s apart"
        );
    }
}
