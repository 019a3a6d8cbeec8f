//! Judging what the API servers said. Pure.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::{Gate, GateResult, GateRound, Outcome};

/// An API server renews its identity lease every 10 s (facts 2.6); three misses and a margin.
const IDENTITY_LEASE_LIMIT: i64 = 40;
/// A controller manager and a scheduler renew every 2 s and lose their lease after 15 s.
const LEADER_LEASE_LIMIT: Duration = Duration::from_secs(20);
const IDENTITY_LABEL: &str = "apiserver.kubernetes.io/identity";
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Rounds in a row that passed, and that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateCounter {
    /// Passed in a row.
    pub passes: u32,
    /// Failed in a row. What is unknown is not healthy: it counts here.
    pub failures: u32,
}

impl GateCounter {
    /// Counts a round.
    #[must_use]
    pub fn record(self, round: &GateRound) -> Self {
        if round.outcome() == Outcome::Pass {
            Self {
                passes: self.passes.saturating_add(1),
                failures: 0,
            }
        } else {
            Self {
                passes: 0,
                failures: self.failures.saturating_add(1),
            }
        }
    }
}

/// How long no API server was ready.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    longest: Duration,
}

impl Outage {
    /// A round begun at `began` found a server ready by `now`, or none. The resolution is the time
    /// between two rounds; rounds that were not made count as ready.
    pub(super) fn record(&mut self, began: Instant, now: Instant, any_ready: bool) {
        match (any_ready, self.since) {
            (true, None) => {}
            (true, Some(since)) => {
                self.longest = self.longest.max(began.saturating_duration_since(since));
                self.since = None;
            }
            (false, _) => {
                let since = *self.since.get_or_insert(began);
                self.longest = self.longest.max(now.saturating_duration_since(since));
            }
        }
    }

    pub(super) const fn longest(&self) -> Duration {
        self.longest
    }
}

/// When a leader's lease was last seen to be renewed, by the local clock.
#[derive(Clone, Debug)]
struct Sight {
    renewed: Option<Timestamp>,
    first_seen: Instant,
    last_seen: Instant,
    /// The renewal happened after this: it is when the older value was seen last.
    advanced_after: Option<Instant>,
}

/// What is remembered of the leases from one round to the next.
#[derive(Debug, Default)]
pub(super) struct Sights(HashMap<Gate, Sight>);

impl Sights {
    /// Judges by local observation of change, so that nobody's clock matters: a lease that is seen for
    /// the first time is unknown until it is seen to change.
    pub(super) fn leader(&mut self, gate: Gate, lease: Option<&Lease>, now: Instant) -> GateResult {
        let Some(spec) = lease.and_then(|lease| lease.spec.as_ref()) else {
            self.0.remove(&gate);
            return gate.fail(None, "its lease in kube-system does not exist: no instance leads");
        };
        let renewed = spec.renew_time.as_ref().map(|time| time.0);
        let sight = self.0.entry(gate).or_insert(Sight {
            renewed,
            first_seen: now,
            last_seen: now,
            advanced_after: None,
        });
        if sight.renewed != renewed {
            sight.advanced_after = Some(sight.last_seen);
            sight.renewed = renewed;
        }
        sight.last_seen = now;
        let Some(holder) = spec
            .holder_identity
            .as_deref()
            .filter(|holder| !holder.is_empty())
        else {
            return gate.fail(None, "its lease in kube-system has no holder: no instance leads");
        };
        let since = sight.advanced_after.unwrap_or(sight.first_seen);
        let age = now.saturating_duration_since(since);
        match sight.advanced_after {
            Some(_) if age <= LEADER_LEASE_LIMIT => gate.pass(None, format!("{holder} leads")),
            None if age <= LEADER_LEASE_LIMIT => {
                gate.unknown(None, format!("waiting to see {holder} renew its lease"))
            }
            _ => gate.fail(
                None,
                format!("{holder} has not renewed its lease for {} s", age.as_secs()),
            ),
        }
    }
}

/// Judges a server's identity lease by that server's own clock: `clock` is the `Date` of an answer of
/// the same server, so `renewTime` and it were read from one clock and no other matters.
pub(super) fn identity_lease(node: &str, leases: &[Lease], clock: Option<Timestamp>) -> GateResult {
    let gate = Gate::ServerLease;
    let identities = || {
        leases
            .iter()
            .filter(|lease| label(lease, IDENTITY_LABEL) == Some("kube-apiserver"))
    };
    let newest = identities()
        .filter(|lease| label(lease, HOSTNAME_LABEL).is_some_and(|host| is_host_of(host, node)))
        .filter_map(|lease| lease.spec.as_ref()?.renew_time.as_ref())
        .map(|time| time.0)
        .max();
    let Some(renewed) = newest else {
        let seen: Vec<_> = identities()
            .filter_map(|lease| label(lease, HOSTNAME_LABEL))
            .collect();
        return gate.fail(
            Some(node),
            format!(
                "no identity lease in kube-system has the label {HOSTNAME_LABEL}={node} (seen: {})",
                if seen.is_empty() {
                    "none".to_owned()
                } else {
                    seen.join(", ")
                }
            ),
        );
    };
    let Some(clock) = clock else {
        return gate.unknown(Some(node), "its clock is unknown: /readyz brought no Date");
    };
    match clock.as_second() - renewed.as_second() {
        // It was renewed after that answer, or the clock was set back: within a margin, fine.
        age if age.abs() <= IDENTITY_LEASE_LIMIT => {
            gate.pass(Some(node), format!("renewed {} s ago", age.max(0)))
        }
        age if age > 0 => gate.fail(
            Some(node),
            format!("its identity lease was renewed {age} s ago, last"),
        ),
        age => gate.unknown(
            Some(node),
            format!(
                "its identity lease was renewed {} s in the future of its own clock",
                -age
            ),
        ),
    }
}

fn label<'a>(lease: &'a Lease, key: &str) -> Option<&'a str> {
    lease.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// A node's name is its host's name in lower case unless kubeadm was told otherwise; a host may know
/// itself with its domain.
fn is_host_of(host: &str, node: &str) -> bool {
    let host = host.to_ascii_lowercase();
    host == node || host.split('.').next() == Some(node)
}

/// The checks that fail, of the answer of `/readyz`: lines such as `[-]etcd failed: reason withheld`.
pub(super) fn failing_checks(body: &str) -> String {
    let failing: Vec<_> = body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .map(|line| line.trim_end_matches(": reason withheld"))
        .take(8)
        .collect();
    if failing.is_empty() {
        body.lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect()
    } else {
        failing.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::coordination::v1::LeaseSpec;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

    fn lease(host: &str, holder: &str, renewed: i64) -> Lease {
        Lease {
            metadata: ObjectMeta {
                labels: Some(
                    [
                        (IDENTITY_LABEL.to_owned(), "kube-apiserver".to_owned()),
                        (HOSTNAME_LABEL.to_owned(), host.to_owned()),
                    ]
                    .into(),
                ),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    fn round(outcome: Outcome) -> GateRound {
        let result = match outcome {
            Outcome::Pass => Gate::Readyz.pass(None, ""),
            Outcome::Fail => Gate::Readyz.fail(None, ""),
            Outcome::Unknown => Gate::Readyz.unknown(None, ""),
        };
        GateRound {
            results: vec![Gate::Version.pass(None, ""), result],
            any_ready: true,
            longest_outage: Duration::ZERO,
        }
    }

    #[test]
    fn only_rounds_in_a_row_count_and_the_unknown_is_a_failure() {
        let counter = |outcomes: &[Outcome]| {
            outcomes.iter().fold(GateCounter::default(), |counter, outcome| {
                counter.record(&round(*outcome))
            })
        };
        use Outcome::{Fail, Pass, Unknown};
        assert_eq!(
            counter(&[Pass, Pass]),
            GateCounter {
                passes: 2,
                failures: 0
            }
        );
        assert_eq!(
            counter(&[Pass, Fail, Pass]),
            GateCounter {
                passes: 1,
                failures: 0
            }
        );
        assert_eq!(
            counter(&[Pass, Fail, Unknown]),
            GateCounter {
                passes: 0,
                failures: 2
            }
        );
    }

    #[test]
    fn a_round_without_results_does_not_pass() {
        let empty = GateRound {
            results: vec![],
            any_ready: false,
            longest_outage: Duration::ZERO,
        };
        assert_eq!(empty.outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_leader_must_be_seen_to_renew() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut sights = Sights::default();
        let mut see = |renewed, s| {
            sights
                .leader(Gate::Scheduler, Some(&lease("h", "n1_x", renewed)), at(s))
                .outcome
        };
        assert_eq!(see(1000, 0), Outcome::Unknown);
        assert_eq!(see(1000, 1), Outcome::Unknown);
        assert_eq!(see(1002, 2), Outcome::Pass);
        assert_eq!(see(1002, 21), Outcome::Pass);
        assert_eq!(see(1002, 22), Outcome::Fail);
        // Renewed, but at some time in a long pause between two rounds: not known to be recent.
        assert_eq!(see(1004, 300), Outcome::Fail);
        assert_eq!(see(1006, 301), Outcome::Pass);
        assert_eq!(
            sights.leader(Gate::Scheduler, None, at(302)).outcome,
            Outcome::Fail
        );
        assert_eq!(
            sights
                .leader(Gate::Scheduler, Some(&lease("h", "", 1008)), at(303))
                .outcome,
            Outcome::Fail
        );
    }

    #[test]
    fn a_leader_that_never_renews_fails_in_the_end() {
        let start = Instant::now();
        let mut sights = Sights::default();
        for (s, expected) in [(0, Outcome::Unknown), (20, Outcome::Unknown), (21, Outcome::Fail)] {
            let now = start + Duration::from_secs(s);
            assert_eq!(
                sights
                    .leader(Gate::ControllerManager, Some(&lease("h", "n1_x", 5)), now)
                    .outcome,
                expected
            );
        }
    }

    #[test]
    fn an_identity_lease_is_judged_by_its_own_servers_clock() {
        let leases = [
            lease("n1", "a", 1000),
            lease("n1", "old", 10),
            lease("N2.example.org", "b", 1000),
        ];
        let clock = |s| Some(Timestamp::from_second(s).unwrap());
        assert_eq!(identity_lease("n1", &leases, clock(1040)).outcome, Outcome::Pass);
        assert_eq!(identity_lease("n1", &leases, clock(1041)).outcome, Outcome::Fail);
        assert_eq!(identity_lease("n2", &leases, clock(1010)).outcome, Outcome::Pass);
        assert_eq!(
            identity_lease("n1", &leases, clock(900)).outcome,
            Outcome::Unknown
        );
        assert_eq!(identity_lease("n1", &leases, None).outcome, Outcome::Unknown);
        let missing = identity_lease("n3", &leases, clock(1000));
        assert_eq!(missing.outcome, Outcome::Fail);
        assert!(
            missing.message.contains("seen: n1, n1, N2.example.org"),
            "{}",
            missing.message
        );
    }

    #[test]
    fn an_outage_lasts_from_the_first_round_without_a_ready_server_to_the_first_with_one() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut outage = Outage::default();
        outage.record(at(0), at(0), true);
        outage.record(at(100), at(100), true);
        assert_eq!(outage.longest(), Duration::ZERO);
        outage.record(at(101), at(103), false);
        assert_eq!(outage.longest(), Duration::from_secs(2));
        outage.record(at(104), at(106), false);
        outage.record(at(107), at(107), true);
        assert_eq!(outage.longest(), Duration::from_secs(6));
        outage.record(at(200), at(201), false);
        outage.record(at(202), at(202), true);
        assert_eq!(outage.longest(), Duration::from_secs(6));
    }

    #[test]
    fn the_failing_checks_of_readyz_are_named() {
        let body = "[+]ping ok\n[-]etcd failed: reason withheld\n[-]informer-sync failed: reason withheld\nreadyz check failed\n";
        assert_eq!(failing_checks(body), "etcd failed, informer-sync failed");
        assert_eq!(failing_checks("Forbidden: user\nx"), "Forbidden: user");
    }
}
