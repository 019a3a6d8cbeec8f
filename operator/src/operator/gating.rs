//! Rounds of gates, counted. The counts begin anew when the ticket in hand becomes ready, so that what
//! passed before the change does not speak for what came after.

use std::collections::BTreeMap;
use std::time::Duration;

use lockkeeper_crds::{ControlPlaneNode, TicketState};
use lockkeeper_policies::{Count, InHand, NodeName};
use tokio::time::Instant;

use super::gates::{GateCounter, GateProbe, GateResult, GateRound, Outcome, Server};
use crate::api::Address;

/// One round a second: three passes then outlast a flap of a load balancer's check, and a leader's lease
/// (renewed every 2 s) is seen to move.
const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Gating {
    whole: GateCounter,
    failing: Option<String>,
    each: BTreeMap<NodeName, (GateCounter, Option<String>)>,
    counted_for: Option<(InHand, TicketState)>,
    last: Option<Instant>,
}

impl Gating {
    /// True when it is time for another round.
    pub(super) fn due(&self, now: Instant) -> bool {
        self.last
            .is_none_or(|last| now.saturating_duration_since(last) >= EVERY)
    }

    /// Asks every server once and counts the answers. Returns the round, for metrics.
    pub(super) async fn round(
        &mut self,
        probe: &GateProbe,
        reports: &BTreeMap<String, ControlPlaneNode>,
        in_hand: Option<&InHand>,
    ) -> GateRound {
        self.begin_anew(reports, in_hand);
        self.last = Some(Instant::now());
        let (servers, without): (Vec<_>, Vec<_>) = reports
            .iter()
            .map(|(n, r)| (n, server(n, r)))
            .partition(|(_, s)| s.is_some());
        let servers: Vec<Server> = servers.into_iter().filter_map(|(_, s)| s).collect();
        let round = probe.round(&servers).await;
        self.count(
            &round,
            without
                .first()
                .map(|(name, _)| format!("the address of {name}'s API server is not known")),
        );
        round
    }

    fn count(&mut self, round: &GateRound, unseen: Option<String>) {
        self.whole = if unseen.is_some() {
            GateCounter {
                passes: 0,
                failures: self.whole.failures.saturating_add(1),
            }
        } else {
            self.whole.record(round)
        };
        self.failing = unseen.or_else(|| round.problems().first().map(ToString::to_string));
        let mut by_node: BTreeMap<NodeName, Vec<GateResult>> = BTreeMap::new();
        for result in &round.results {
            if let Some(node) = &result.node {
                by_node
                    .entry(node.as_str().into())
                    .or_default()
                    .push(result.clone());
            }
        }
        for (node, results) in by_node {
            let own = GateRound {
                results,
                any_ready: round.any_ready,
                longest_outage: round.longest_outage,
            };
            let entry = self.each.entry(node).or_default();
            entry.0 = entry.0.record(&own);
            entry.1 = own.problems().first().map(ToString::to_string);
        }
    }

    fn begin_anew(&mut self, reports: &BTreeMap<String, ControlPlaneNode>, in_hand: Option<&InHand>) {
        let stands = in_hand.and_then(|ticket| {
            let told = reports
                .get(ticket.node.as_ref())?
                .status
                .as_ref()?
                .ticket
                .as_ref()?;
            (told.number == ticket.number).then(|| (ticket.clone(), told.state))
        });
        let became =
            self.counted_for != stands && stands.as_ref().is_some_and(|(_, s)| *s == TicketState::Ready);
        if became {
            (self.whole, self.failing) = Default::default();
            self.each.clear();
        }
        self.counted_for = stands;
    }

    /// Rounds over the whole cluster.
    pub(super) fn whole(&self) -> Count {
        Count {
            passes: self.whole.passes,
            failures: self.whole.failures,
            failing: self.failing.clone(),
        }
    }

    /// Rounds of each node's own gates.
    pub(super) fn each(&self) -> BTreeMap<NodeName, Count> {
        let count = |(counter, failing): &(GateCounter, Option<String>)| Count {
            passes: counter.passes,
            failures: counter.failures,
            failing: failing.clone(),
        };
        self.each
            .iter()
            .map(|(name, entry)| (name.clone(), count(entry)))
            .collect()
    }
}

/// True for a round in which everything passed.
pub(super) fn passed(round: &GateRound) -> bool {
    round.outcome() == Outcome::Pass
}

fn server(name: &str, report: &ControlPlaneNode) -> Option<Server> {
    let status = report.status.as_ref()?;
    let (host, port) = status.address.as_deref()?.rsplit_once(':')?;
    let address = Address::new(host.trim_matches(['[', ']']), port.parse().ok()?).ok()?;
    let runs = status
        .components
        .iter()
        .find(|c| c.component == lockkeeper_crds::Component::KubeApiserver);
    Some(Server {
        node: name.to_owned(),
        address,
        expected_version: runs.and_then(|c| c.version.clone()),
    })
}

/// The addresses of all API servers, as the agents report them.
pub(super) fn addresses(reports: &BTreeMap<String, ControlPlaneNode>) -> Vec<Address> {
    reports
        .iter()
        .filter_map(|(name, report)| Some(server(name, report)?.address))
        .collect()
}
