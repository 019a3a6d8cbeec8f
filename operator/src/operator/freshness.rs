//! How old a report is, by this process' own clock.
//!
//! A report is as old as the last rise of its `heartbeat` that was seen here: no two clocks are compared.

use std::collections::HashMap;
use std::time::Duration;

use lockkeeper_crds::ControlPlaneNode;
use tokio::time::Instant;

/// An agent that is asked to be attentive reports every 3 s; six that are missed are no accident.
const ATTENTIVE: Duration = Duration::from_secs(20);
/// Otherwise it reports every minute, and two and a half that are missed are none.
const IDLE: Duration = Duration::from_secs(150);

#[derive(Default)]
pub(super) struct Freshness {
    seen: HashMap<String, Beat>,
}

struct Beat {
    heartbeat: i64,
    risen_at: Instant,
    /// Since when the object asks for attention, as far as this process saw it.
    attentive_since: Option<Instant>,
}

impl Freshness {
    /// Takes in the reports as they are now.
    pub(super) fn observe<'a>(
        &mut self,
        reports: impl Iterator<Item = (&'a String, &'a ControlPlaneNode)>,
        now: Instant,
    ) {
        for (name, node) in reports {
            let heartbeat = node.status.as_ref().map_or(0, |s| s.heartbeat);
            let beat = self.seen.entry(name.clone()).or_insert(Beat {
                heartbeat,
                risen_at: now,
                attentive_since: None,
            });
            if beat.heartbeat != heartbeat {
                beat.heartbeat = heartbeat;
                beat.risen_at = now;
            }
            beat.attentive_since = match (node.spec.attentive, beat.attentive_since) {
                (true, None) => Some(now),
                (true, since) => since,
                (false, _) => None,
            };
        }
    }

    /// Why a node's report cannot be relied on; `None` when it can.
    pub(super) fn stale(&self, name: &str, now: Instant) -> Option<String> {
        let Some(beat) = self.seen.get(name) else {
            return Some("no agent has reported from it yet".to_owned());
        };
        let age = now.saturating_duration_since(beat.risen_at);
        let attentive = beat
            .attentive_since
            .is_some_and(|since| now.saturating_duration_since(since) > ATTENTIVE);
        let limit = if attentive { ATTENTIVE } else { IDLE };
        (age > limit).then(|| format!("its agent has not reported for {} s", age.as_secs()))
    }

    /// Seconds since the last report of a node.
    pub(super) fn age(&self, name: &str, now: Instant) -> Option<Duration> {
        self.seen
            .get(name)
            .map(|b| now.saturating_duration_since(b.risen_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockkeeper_crds::{ControlPlaneNodeSpec, ControlPlaneNodeStatus};

    fn report(heartbeat: i64, attentive: bool) -> ControlPlaneNode {
        let mut node = ControlPlaneNode::new(
            "cp1",
            ControlPlaneNodeSpec {
                attentive,
                ..Default::default()
            },
        );
        node.status = Some(ControlPlaneNodeStatus {
            heartbeat,
            ..Default::default()
        });
        node
    }

    #[test]
    fn a_report_ages_from_the_last_rise_of_its_heartbeat() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let name = "cp1".to_owned();
        let mut fresh = Freshness::default();
        assert!(fresh.stale("cp1", start).is_some(), "never seen is not fresh");
        fresh.observe([(&name, &report(7, false))].into_iter(), at(0));
        assert_eq!(fresh.stale("cp1", at(149)), None);
        assert!(fresh.stale("cp1", at(151)).is_some());
        fresh.observe([(&name, &report(8, true))].into_iter(), at(151));
        assert_eq!(
            fresh.stale("cp1", at(171)),
            None,
            "it is given time to hear that it is to be attentive"
        );
        fresh.observe([(&name, &report(8, true))].into_iter(), at(175));
        assert!(
            fresh.stale("cp1", at(175)).is_some(),
            "the same report seen again is not a new one"
        );
        fresh.observe([(&name, &report(9, true))].into_iter(), at(176));
        assert_eq!(fresh.stale("cp1", at(195)), None);
    }
}
