//! The one place where the agent's time (chrono) meets the API's (jiff).

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// The API's time: whole seconds on the wire. What the calendar cannot hold becomes its end.
pub(crate) fn to_api(time: DateTime<Utc>) -> Time {
    Time(Timestamp::from_second(time.timestamp()).unwrap_or(Timestamp::MAX))
}

/// Nanoseconds since 1970, as a container runtime gives them.
pub(crate) fn from_nanos(nanos: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(nanos)
}

/// Seconds since 1970, as certificates have them.
pub(crate) fn from_seconds(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_survive_the_way_to_the_api() {
        let at = from_seconds(1_763_700_000);
        assert_eq!(to_api(at).0.as_second(), 1_763_700_000);
        assert_eq!(from_nanos(1_763_700_000_000_000_000), at);
    }
}
