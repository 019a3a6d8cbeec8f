//! What a node is told of a restore, and what it may do.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::NodeName;

/// Where a restore stands on one node. Each is in the journal before it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// The backup is fetched, checked and restored beside the data in use.
    Preparing,
    /// That is done; nothing was touched.
    Prepared,
    /// The same, and the word was given that all are to be.
    Armed,
    /// The control plane of this node goes down, the data is exchanged, and it comes up again on the new data.
    Going,
    /// This node is ready on the new data and signs so: in doubt until it knows the decision.
    Ready,
    /// Decided: the new data stays.
    Committed,
    /// The old data comes back.
    Undoing,
    /// The new data runs. An end.
    Done,
    /// The old data runs. An end.
    Undone,
    /// Given up before anything was touched. An end.
    Dropped,
}

impl Stage {
    /// True when nothing more is done about it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Undone | Self::Dropped)
    }

    /// True while the node's control plane is not as it was before: the node must come back to it by itself.
    #[must_use]
    pub const fn is_touching(self) -> bool {
        matches!(self, Self::Going | Self::Ready | Self::Committed | Self::Undoing)
    }
}

/// What the operator says, as far as the API has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The API has not answered.
    Unknown,
    /// It answered, and there is no such order.
    Withdrawn,
    /// Get ready to.
    Prepare,
    /// All are prepared: wait for the beginning.
    Arm,
    /// All are armed: begin.
    Go,
}

/// A static pod of a control-plane node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// `kube-scheduler`.
    KubeScheduler,
    /// `kube-controller-manager`.
    KubeControllerManager,
    /// `kube-apiserver`.
    KubeApiserver,
    /// `etcd`.
    Etcd,
}

impl Part {
    /// All of them, in the order in which they go down.
    pub const ALL: [Self; 4] = [
        Self::KubeScheduler,
        Self::KubeControllerManager,
        Self::KubeApiserver,
        Self::Etcd,
    ];

    /// The name as kubeadm writes it: of the manifest, of the pod and of the container.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KubeScheduler => "kube-scheduler",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeApiserver => "kube-apiserver",
            Self::Etcd => "etcd",
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One static pod as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSeen {
    /// Its manifest is in the kubelet's directory.
    pub on: bool,
    /// A container of it runs; `None` when the runtime did not say.
    pub running: Option<bool>,
    /// It answers that it is ready. For etcd this is not asked.
    pub ready: bool,
}

/// Which data lies where etcd takes it from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Live {
    /// That of before.
    Old,
    /// None: in the middle of an exchange. That of before is kept.
    Neither,
    /// The restored. That of before is kept.
    New,
    /// It cannot be said, and why.
    Unknown(String),
}

/// Which cluster an etcd member belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one of before.
    Old,
    /// The restored one.
    New,
}

/// The one word that ends a restore for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// The new data stays.
    Commit,
    /// The old data comes back.
    Undo,
}

/// What stands in the restored etcd, read linearizably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Who is up on the new data.
    pub up: BTreeSet<NodeName>,
    /// Who is ready.
    pub ready: BTreeSet<NodeName>,
    /// Alarms and leases of the backup's time are gone.
    pub cleansed: bool,
    /// The decision.
    pub decision: Option<Decision>,
    /// An alarm says that a member is corrupt.
    pub corrupt: bool,
}

/// How far the new data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// In hand.
    Pending,
    /// It lies beside the data in use.
    Ready,
    /// It cannot be had, and why.
    Failed(String),
}

/// What a node sees of itself and of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The operator's word.
    pub word: Word,
    /// Of the new data.
    pub preparation: Preparation,
    /// The four static pods.
    pub parts: BTreeMap<Part, PartSeen>,
    /// The data etcd would take.
    pub live: Live,
    /// The register, where this node's own member of the restored cluster answered.
    pub register: Option<Register>,
    /// This node's own member of the cluster of before answered a linearizable read.
    pub old_whole: bool,
    /// To which cluster the members of other nodes belong, where they were asked since the last act and answered.
    pub peers: BTreeMap<NodeName, Side>,
}

/// What the journal says.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// All nodes, this one among them.
    pub nodes: &'a BTreeSet<NodeName>,
    /// Where it stands.
    pub stage: Stage,
    /// When this stage is given up, by this node's own clock.
    pub deadline: DateTime<Utc>,
}

/// The one next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing but wait, and for what.
    Wait(String),
    /// Journal the next stage, and why.
    Mark(Stage, String),
    /// Take the manifest out of the kubelet's directory, keeping it.
    TakeOff(Part),
    /// Put it back as it was.
    PutOn(Part),
    /// Put the data in use aside and the new data in its place.
    SwapIn,
    /// Put the data of before back into its place.
    SwapOut,
    /// Write into the register that this node is up.
    SignUp,
    /// Take out of the restored etcd what belongs to the backup's time: alarms of lacking space, leases.
    Cleanse,
    /// Write into the register that this node is ready, unless something was decided.
    SignReady,
    /// Write the decision unless there is one; a commit only if all have signed that they are ready.
    Propose(Decision),
}
