//! What the planner is told: what is wanted, what is remembered, what is seen.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use strum::{Display, EnumIter, IntoStaticStr};

use crate::version::{EtcdVersion, KubernetesVersion};

/// A node's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

impl AsRef<str> for NodeName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A component that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Display, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Component {
    /// `kube-apiserver`.
    KubeApiserver,
    /// `kube-controller-manager`.
    KubeControllerManager,
    /// `kube-scheduler`.
    KubeScheduler,
}

/// Something that was looked at. There is no value that means "fine" by being left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// This is so.
    Known(T),
    /// It could not be seen, and why.
    Unknown(String),
    /// It is certain that there is none.
    Absent,
}

impl<T> Seen<T> {
    /// The value, if it is known.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) | Self::Absent => None,
        }
    }
}

/// What a person asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The version to run.
    pub version: KubernetesVersion,
    /// Only look, or go.
    pub mode: Mode,
    /// No new step.
    pub paused: bool,
    /// Raised to try a failed target again.
    pub retry: i64,
    /// No snapshot, no upgrade.
    pub backup_required: bool,
    /// A store is named, so that a snapshot can be taken.
    pub backup_possible: bool,
    /// A backup that is there already will do, if it is recent enough.
    pub backup_accepted: bool,
    /// Return the nodes already done when a step fails.
    pub rollback_automatic: bool,
    /// Gate rounds in a row that must pass.
    pub gate_passes: u32,
    /// Gate rounds in a row that must fail before a ready step is taken back.
    pub gate_failures: u32,
    /// The object is being deleted: end the step in hand, then let go.
    pub deleting: bool,
}

/// Whether to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bring the cluster there.
    Apply,
    /// Only look.
    Preflight,
}

/// The memory of a rollout: all that cannot be seen in the cluster itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rollout {
    /// Unique.
    pub id: String,
    /// What ran before.
    pub source: KubernetesVersion,
    /// What shall run.
    pub target: KubernetesVersion,
    /// Where it stands.
    pub phase: Phase,
    /// The `retry` that it answers.
    pub retry: i64,
    /// Why it turned round or ended badly.
    pub reason: Option<String>,
    /// Snapshots that have failed for it.
    pub failed_backups: u32,
    /// When the last of them failed, until the checks are asked for again.
    pub backup_failed_at: Option<DateTime<Utc>>,
    /// The backup that was there already and was accepted instead of a snapshot of its own.
    pub accepted: Option<String>,
    /// The last preflight given out; 0 before the first.
    pub preflight_id: i64,
    /// When that was.
    pub preflight_at: Option<DateTime<Utc>>,
    /// Nodes in the order in which they are changed.
    pub order: Vec<NodeName>,
    /// The one ticket that may be out.
    pub in_hand: Option<InHand>,
}

impl Rollout {
    /// The memory of one that begins. `id` is unique; `retry` is the one of the wish that it answers.
    #[must_use]
    pub const fn begun(
        id: String,
        source: KubernetesVersion,
        target: KubernetesVersion,
        order: Vec<NodeName>,
        retry: i64,
    ) -> Self {
        Self {
            id,
            source,
            target,
            phase: Phase::Preflight,
            retry,
            reason: None,
            failed_backups: 0,
            backup_failed_at: None,
            accepted: None,
            preflight_id: 0,
            preflight_at: None,
            order,
            in_hand: None,
        }
    }

    /// The name that the snapshot of this rollout has: another one after each failure, once that has been
    /// waited out.
    #[must_use]
    pub fn backup_name(&self) -> String {
        let number = self.failed_backups + u32::from(self.backup_failed_at.is_none());
        let own = || format!("upgrade-{}-{number}", self.id);
        self.accepted.clone().unwrap_or_else(own)
    }
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
pub enum Phase {
    /// Nothing has been changed.
    Preflight,
    /// Preflight passed; the snapshot is being taken.
    Snapshot,
    /// Nodes go to the target.
    Forward,
    /// Nodes go back to the source.
    Back,
    /// Ended at the target.
    Completed,
    /// Ended at the source.
    RolledBack,
    /// Ended where a person is needed.
    Failed,
    /// The wish changed before anything was changed.
    Superseded,
}

impl Phase {
    /// True when nothing more is done for this rollout.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::Completed | Self::RolledBack | Self::Failed | Self::Superseded
        )
    }
}

/// The one ticket that may be out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InHand {
    /// Whose.
    pub node: NodeName,
    /// Its number on that node.
    pub number: i64,
    /// True when it brings the target, false when it brings the source back.
    pub forward: bool,
}

/// All that is seen of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Control-plane nodes: every Kubernetes node with the control-plane label.
    pub nodes: BTreeMap<NodeName, Node>,
    /// Kubelets of all nodes.
    pub kubelets: BTreeMap<NodeName, Seen<KubernetesVersion>>,
    /// Gate rounds over the whole cluster.
    pub gates: Count,
    /// Gate rounds of one node's own gates.
    pub node_gates: BTreeMap<NodeName, Count>,
    /// The snapshot named by [`Rollout::backup_name`].
    pub backup: Backup,
    /// A backup that is there already, and that the wish would accept: see [`crate::accept::accept`].
    pub acceptable: Option<String>,
    /// The version in the `kubeadm-config` ConfigMap; absent where there is none.
    pub kubeadm_config: Seen<KubernetesVersion>,
    /// Names in the way of any start: failing-closed webhooks with no backend and the like.
    pub warnings: Vec<String>,
    /// The `EtcdRestore` for which everything else stands still.
    pub restoring: Option<String>,
}

/// Gate rounds in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Passed, since the last failure.
    pub passes: u32,
    /// Failed, since the last pass.
    pub failures: u32,
    /// What failed in the last round, as a sentence.
    pub failing: Option<String>,
}

/// The snapshot of a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backup {
    /// There is no such object.
    Absent,
    /// Being taken, or being proven.
    Running(String),
    /// Proven as far as the wish asks: read back, hash equal, at least.
    Stored,
    /// Ended without one.
    Failed(String),
    /// It cannot be told.
    Unknown(String),
}

/// One control-plane node, by its agent's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Why the report cannot be relied on (too old, none yet); `None` when it is fresh.
    pub stale: Option<String>,
    /// What runs.
    pub components: BTreeMap<Component, Running>,
    /// The local etcd member.
    pub etcd: Seen<Etcd>,
    /// What is wrong with the manifest directory.
    pub manifest_problems: Vec<String>,
    /// The highest ticket number that was ever given out here.
    pub last_number: i64,
    /// The last ticket.
    pub ticket: Option<TicketView>,
    /// The last preflight.
    pub preflight: Option<PreflightView>,
}

impl Node {
    /// True when every component is known to run `version` by manifest and by process.
    #[must_use]
    pub fn runs(&self, version: KubernetesVersion) -> bool {
        !self.components.is_empty() && self.components.values().all(|c| c.is_at(version))
    }
}

/// One component, seen from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The version that the process reports, or failing that its container's image tag.
    pub version: Option<KubernetesVersion>,
    /// The version that the manifest asks for.
    pub manifest_version: Option<KubernetesVersion>,
    /// Its own readiness.
    pub ready: bool,
}

impl Running {
    /// True when manifest and process are both at `version`.
    #[must_use]
    pub fn is_at(&self, version: KubernetesVersion) -> bool {
        self.version == Some(version) && self.manifest_version == Some(version)
    }
}

/// The local etcd member and what it says of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// Why a linearizable read through it fails; `None` when it succeeds.
    pub unhealthy: Option<String>,
    /// Its version.
    pub version: Option<EtcdVersion>,
    /// Hexadecimal ids, as etcdctl prints them.
    pub member_id: String,
    /// See `member_id`.
    pub leader_id: String,
    /// See `member_id`.
    pub cluster_id: String,
    /// Raft term.
    pub raft_term: i64,
    /// Members as it knows them.
    pub members: Vec<Member>,
    /// Alarms, as sentences.
    pub alarms: Vec<String>,
}

/// A member of the etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Hexadecimal.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Without a vote.
    pub learner: bool,
}

/// A ticket, from both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TicketView {
    /// Its number.
    pub number: i64,
    /// What the operator has said of it.
    pub verdict: Verdict,
    /// What the agent says; `None` while it has said nothing of this number.
    pub state: Option<TicketState>,
    /// The agent's sentence.
    pub message: String,
}

/// The operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None yet.
    Pending,
    /// Keep it.
    Confirmed,
    /// Take it back.
    Withdrawn,
}

/// The agent's word; see the API type of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketState {
    /// New manifests are being put in place.
    Applying,
    /// Processes are starting.
    Starting,
    /// Ready, waits for the operator's word.
    Ready,
    /// Kept.
    Confirmed,
    /// Old manifests are back, processes are starting.
    Undoing,
    /// As before.
    Undone,
    /// Nothing was touched.
    Refused,
}

impl TicketState {
    /// True when the agent does nothing more about it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Confirmed | Self::Undone | Self::Refused)
    }
}

/// A node's preflight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreflightView {
    /// Which request it answers.
    pub id: i64,
    /// Whether it is complete.
    pub done: bool,
    /// Verdicts so far.
    pub checks: Vec<Check>,
}

/// One check and its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Short and stable.
    pub name: String,
    /// Where; `None` for the whole cluster.
    pub node: Option<NodeName>,
    /// Its verdict.
    pub verdict: CheckVerdict,
    /// A sentence.
    pub message: String,
}

/// A check's verdict, worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckVerdict {
    /// Good.
    Pass,
    /// Worth a look.
    Warn,
    /// Not seen; stops like `Block`.
    Unknown,
    /// Stops the upgrade.
    Block,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn version(minor: u32) -> KubernetesVersion {
        KubernetesVersion { minor, patch: 0 }
    }

    /// A healthy stacked cluster of `n` nodes that runs `minor`.
    pub(crate) fn cluster(n: usize, minor: u32) -> Cluster {
        use strum::IntoEnumIterator as _;
        let names: Vec<NodeName> = (1..=n).map(|i| NodeName(format!("cp{i}"))).collect();
        let members: Vec<Member> = (1..=n)
            .map(|i| Member {
                id: format!("{i:x}"),
                name: format!("cp{i}"),
                learner: false,
            })
            .collect();
        let node = |i: usize| Node {
            stale: None,
            components: Component::iter()
                .map(|c| {
                    let at = Some(version(minor));
                    (
                        c,
                        Running {
                            version: at,
                            manifest_version: at,
                            ready: true,
                        },
                    )
                })
                .collect(),
            etcd: Seen::Known(Etcd {
                unhealthy: None,
                version: "3.6.6".parse().ok(),
                member_id: format!("{i:x}"),
                leader_id: "1".into(),
                cluster_id: "c".into(),
                raft_term: 2,
                members: members.clone(),
                alarms: vec![],
            }),
            manifest_problems: vec![],
            last_number: 0,
            ticket: None,
            preflight: None,
        };
        Cluster {
            kubelets: names
                .iter()
                .map(|n| (n.clone(), Seen::Known(version(minor))))
                .collect(),
            node_gates: names
                .iter()
                .map(|n| {
                    (
                        n.clone(),
                        Count {
                            passes: 9,
                            ..Count::default()
                        },
                    )
                })
                .collect(),
            nodes: names
                .iter()
                .enumerate()
                .map(|(i, n)| (n.clone(), node(i + 1)))
                .collect(),
            gates: Count {
                passes: 9,
                ..Count::default()
            },
            backup: Backup::Absent,
            acceptable: None,
            kubeadm_config: Seen::Known(version(minor)),
            warnings: vec![],
            restoring: None,
        }
    }

    impl Cluster {
        pub(crate) fn node_mut(&mut self, name: &str) -> &mut Node {
            self.nodes.get_mut(&NodeName::from(name)).unwrap()
        }

        pub(crate) fn etcd_mut(&mut self, name: &str) -> &mut Etcd {
            match &mut self.node_mut(name).etcd {
                Seen::Known(etcd) => etcd,
                other => panic!("no member on {name}: {other:?}"),
            }
        }
    }
}
