//! Why, in words: what the status says beside the one next thing to do.

use crate::model::{Check, Cluster, Component, NodeName, Phase, Rollout};
use crate::quorum;
use crate::version::KubernetesVersion;

/// One word for what goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
pub enum State {
    /// Not all is seen.
    Unknown,
    /// At the wanted version.
    Idle,
    /// Checks are made.
    Preflight,
    /// A check stops it; nothing was changed.
    Blocked,
    /// Only a look was asked for, and all is well.
    Preflighted,
    /// The snapshot is being taken.
    BackingUp,
    /// Nodes go to the target.
    Rolling,
    /// Nodes go back.
    RollingBack,
    /// Paused between two steps.
    Paused,
    /// Ended at the version before.
    RolledBack,
    /// Ended where a person is needed.
    Failed,
}

/// Why nothing moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Short and stable, for conditions and alerts.
    pub reason: &'static str,
    /// A sentence with the way out.
    pub message: String,
}

/// A way back that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayBack {
    /// `Step`, `Version` or `Data`.
    pub kind: &'static str,
    /// What it does, and what it costs.
    pub message: String,
}

/// One step that is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// On which node.
    pub node: NodeName,
    /// What is changed there, all at once.
    pub components: Vec<Component>,
    /// To which version.
    pub version: KubernetesVersion,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.components.iter().map(ToString::to_string).collect();
        write!(f, "{} to {} on {}", names.join(" and "), self.version, self.node)
    }
}

/// Why, in words. An unread report helps nobody.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// One word.
    pub state: State,
    /// One line.
    pub summary: String,
    /// Set whenever nothing is done and the wish is not fulfilled.
    pub held: Option<Held>,
    /// What preflight found, worst first. Empty when there was none in this rollout.
    pub checks: Vec<Check>,
    /// Steps that are left, in order.
    pub remaining: Vec<Step>,
    /// Ways back that are open, best first.
    pub ways_back: Vec<WayBack>,
    /// Nodes whose every component is at the version gone to.
    pub done: usize,
}

/// The ways back that are open in a rollout, best first.
pub(crate) fn ways_back(rollout: &Rollout, cluster: &Cluster, snapshot: bool) -> Vec<WayBack> {
    let mut ways = Vec::new();
    if rollout.in_hand.is_some() {
        let message = "the step in hand is undone by the node's own agent, API or no API; no data is lost";
        ways.push(WayBack {
            kind: "Step",
            message: message.to_owned(),
        });
    }
    let moved = cluster.nodes.values().any(|n| !n.runs(rollout.source));
    if rollout.phase == Phase::Forward && moved {
        let message = format!(
            "set spec.version back to {}: the nodes return one by one; no data is lost",
            rollout.source
        );
        ways.push(WayBack {
            kind: "Version",
            message,
        });
    }
    if snapshot && quorum::healthy(cluster) != Ok(0) {
        let message = "restore the snapshot with etcdutl: every write after it is lost";
        ways.push(WayBack {
            kind: "Data",
            message: message.to_owned(),
        });
    }
    ways
}
