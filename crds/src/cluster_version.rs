//! `ClusterVersion`: the one field a person bumps, and the whole story in its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Check, LocalReference, Proof};

/// The version that the cluster's control plane shall run, and how to get there.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "ClusterVersion",
    plural = "clusterversions",
    shortname = "kcv",
    category = "lockkeeper",
    status = "ClusterVersionStatus",
    derive = "PartialEq",
    doc = "The version that this cluster's control plane shall run. Change spec.version and follow status.",
    validation = Rule::new("self.metadata.name == 'cluster'").message("there is one ClusterVersion, and its metadata.name is 'cluster'"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version", description = "lowest version running on any control-plane node"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.version"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.progress.text", description = "nodes whose every component runs the target"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.summary"),
    printcolumn(name = "Snapshot", type_ = "string", json_path = ".status.snapshot.key", priority = 1),
    printcolumn(name = "Outage", type_ = "string", json_path = ".status.longestOutageSeconds", priority = 1),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!self.backup.required || has(self.backup.storeRef)").message("spec.backup.storeRef names no store: name an EtcdBackupStore, or set spec.backup.required to false to go without a snapshot").field_path(".backup"))]
pub struct ClusterVersionSpec {
    /// The Kubernetes version to run, as `vX.Y.Z`. May be edited at any time: the version it came from
    /// means roll back; another one waits for the next safe point.
    #[schemars(
        length(min = 6, max = 24),
        regex(pattern = r"^v1\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$")
    )]
    #[x_kube(validation = Rule::new("int(self.split('.')[1]) >= int(oldSelf.split('.')[1]) - 1").message("the version may go back by one minor at the most (a rollback); Kubernetes supports no more"))]
    pub version: String,

    /// `Apply` brings the cluster there. `Preflight` makes every check and changes nothing.
    #[serde(default)]
    pub mode: Mode,

    /// True: no new step begins. A step in hand is finished or undone.
    #[serde(default)]
    pub paused: bool,

    /// Raise it to try a target again that has failed.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub retry: i64,

    /// The snapshot that is taken before the first change.
    #[serde(default)]
    pub backup: BackupPolicy,

    /// What happens when a step fails.
    #[serde(default)]
    pub rollback: RollbackPolicy,

    /// How long things may take, and how often a gate must pass.
    #[serde(default)]
    pub strategy: Strategy,

    /// How many finished rollouts the status keeps.
    #[serde(default = "default_history_limit")]
    #[schemars(range(min = 1, max = 50))]
    pub history_limit: u32,
}

const fn default_history_limit() -> u32 {
    10
}

/// What to do with `spec.version`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Bring the cluster to the version.
    #[default]
    Apply,
    /// Only look whether it could be done.
    Preflight,
}

/// Whether and where a snapshot is taken first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupPolicy {
    /// No snapshot, no upgrade. False lets an upgrade go ahead without one.
    #[serde(default = "yes")]
    pub required: bool,
    /// The `EtcdBackupStore` in the operator's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<LocalReference>,
    /// How far the snapshot is proven before the first change: see `spec.proof` of an `EtcdBackup`.
    #[serde(default)]
    pub proof: Proof,
    /// Instead of taking a snapshot, the newest backup in the same store that is proven as far as `proof` asks and
    /// was taken at most so many minutes before. What was written since would be lost with it, should it come to a
    /// restore. Absent: a snapshot of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10080))]
    pub accept_within_minutes: Option<u32>,
}

impl Default for BackupPolicy {
    fn default() -> Self {
        Self {
            required: true,
            store_ref: None,
            proof: Proof::Stored,
            accept_within_minutes: None,
        }
    }
}

const fn yes() -> bool {
    true
}

/// What happens when a step fails.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RollbackPolicy {
    /// Return the nodes already done to the version before. False: stop there and wait for a person.
    /// The failed node's own step is undone by its agent either way.
    #[serde(default = "yes")]
    pub automatic: bool,
}

impl Default for RollbackPolicy {
    fn default() -> Self {
        Self { automatic: true }
    }
}

/// Deadlines and gates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    /// Seconds that a component has from the change of its manifest until it is ready.
    /// After that its agent puts the old manifest back.
    #[schemars(range(min = 30, max = 3600))]
    pub ready_seconds: u32,
    /// Seconds that an agent waits, once ready, for the confirmation. After that it puts the old
    /// manifest back, whether it can reach an API server or not.
    #[schemars(range(min = 30, max = 3600))]
    pub confirm_seconds: u32,
    /// Seconds that an API server which is being replaced has for its requests in flight, counted from when it
    /// takes no new connection. After that only watches are left on it, which do not end by themselves, and its
    /// agent ends it; the kubelet would after the pod's grace period, 30 s with kubeadm.
    #[schemars(range(min = 0, max = 600))]
    pub drain_seconds: u32,
    /// Rounds of gates in a row that must pass before the next node.
    #[schemars(range(min = 1, max = 100))]
    pub gate_passes: u32,
    /// Rounds of gates in a row that must fail before a ready step is taken back.
    #[schemars(range(min = 1, max = 1000))]
    pub gate_failures: u32,
}

/// As long as a webhook may take unless its configuration says otherwise: a write that waits for one is finished.
pub(crate) const DRAIN_SECONDS: u32 = 10;

impl Default for Strategy {
    fn default() -> Self {
        // 300 s to be ready: kubeadm allows 4 to 5 minutes for the same (facts 1.4), on slow disks too.
        // 3 passes at one a second outlast a load balancer's usual flap. 120 failures outlast what follows
        // when a node's own API server was away: its controller manager and scheduler lose their lease,
        // end, and are started again after the kubelet's back-off of 10, 20, 40 s.
        Self {
            ready_seconds: 300,
            confirm_seconds: 300,
            drain_seconds: DRAIN_SECONDS,
            gate_passes: 3,
            gate_failures: 120,
        }
    }
}

/// What is, and how it came about.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterVersionStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The lowest version that any control-plane component runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The version being brought in (or, on the way back, returned to).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// One word for a table; for decisions use the conditions.
    #[serde(default)]
    pub state: State,
    /// Since when the state is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// One line: what goes on, or why nothing does.
    #[serde(default)]
    pub summary: String,
    /// Nodes done.
    #[serde(default)]
    pub progress: Progress,
    /// The step in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepStatus>,
    /// The steps that are left, in order.
    #[serde(default)]
    pub plan: Vec<String>,
    /// What the last preflight found, worst first.
    #[serde(default)]
    pub preflight: Vec<Check>,
    /// A row a node.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default)]
    pub nodes: Vec<NodeRow>,
    /// The snapshot that this rollout can fall back on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
    /// The ways back that are open now, best first.
    #[serde(default)]
    pub ways_back: Vec<WayBack>,
    /// Why nothing moves, since when, and the way out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The memory of the rollout under way or last ended. The operator's own; read `state` instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Rollout>,
    /// Finished rollouts, newest first, `spec.historyLimit` of them.
    #[serde(default)]
    pub history: Vec<HistoryEntry>,
    /// Longest time in this rollout in which no API server answered ready to the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_outage_seconds: Option<i64>,
    /// `Ready`, `Reconciling`, `Stalled` (kstatus), and `Settled`: True at every end, good or bad.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One word for what goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum State {
    /// Not looked at yet, or not all nodes are seen.
    #[default]
    Unknown,
    /// At the wanted version; nothing to do.
    Idle,
    /// Checks are made; nothing has been changed.
    Preflight,
    /// A check stops the upgrade; nothing has been changed.
    Blocked,
    /// `spec.mode: Preflight` and every check passes.
    Preflighted,
    /// The snapshot is being taken.
    BackingUp,
    /// Nodes are being brought to the target.
    Rolling,
    /// Nodes are being returned to the version before.
    RollingBack,
    /// `spec.paused`, between two steps.
    Paused,
    /// Ended at the version before.
    RolledBack,
    /// Ended, and a person is needed.
    Failed,
}

/// Nodes done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    /// Nodes whose every component runs the target.
    pub done: u32,
    /// Control-plane nodes.
    pub total: u32,
    /// `done/total`.
    pub text: String,
}

/// The step in hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// What is done, e.g. `kube-apiserver to v1.36.3`.
    pub name: String,
    /// On which node.
    pub node: String,
    /// Where it stands, in the agent's words.
    pub state: String,
    /// When the agent took it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// When the agent takes it back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// A node in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// The node's name.
    pub name: String,
    /// `Pending`, `Upgrading`, `Done`, `RollingBack`, `Unknown`.
    pub state: String,
    /// The version that each component's process runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apiserver: Option<String>,
    /// See `apiserver`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_manager: Option<String>,
    /// See `apiserver`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The kubelet's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelet: Option<String>,
    /// The local etcd member's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<String>,
    /// What this node waits for or lacks; empty when all is well.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The snapshot that was taken before the first change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// The `EtcdBackup`.
    pub backup: String,
    /// Where it lies: `s3://bucket/key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// etcd's revision in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// When it was read back and its hash compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<Time>,
    /// How far it is proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// True: it was there before, and accepted by `spec.backup.acceptWithinMinutes`.
    #[serde(default)]
    pub accepted: bool,
}

/// A way back that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WayBack {
    /// `Step`, `Version` or `Data`.
    pub kind: String,
    /// What it does, and what it costs.
    pub message: String,
}

/// Why nothing moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// Short and stable.
    pub reason: String,
    /// A sentence with the way out.
    pub message: String,
    /// Since when.
    pub since: Time,
}

/// The operator's memory of a rollout. Everything else is seen anew each time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rollout {
    /// Unique within the cluster's life; also in the ticket and the backup's name.
    pub id: String,
    /// What ran before.
    pub source: String,
    /// What shall run.
    pub target: String,
    /// Which way it goes, or how it ended.
    pub phase: Phase,
    /// The `spec.retry` that it answers.
    #[serde(default)]
    pub retry: i64,
    /// When it began.
    pub started_at: Time,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Why it turned round or stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The `EtcdBackup` taken for it, or accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The `EtcdBackup` that was accepted instead of one of its own: see `spec.backup.acceptWithinMinutes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_backup: Option<String>,
    /// How many snapshots have failed for it.
    #[serde(default)]
    pub failed_backups: u32,
    /// When the last of them failed, until the checks are made again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_failed_at: Option<Time>,
    /// Ready nodes when it began: it must not get worse.
    #[serde(default)]
    pub ready_nodes: u32,
    /// The last preflight number given out.
    #[serde(default)]
    pub preflight_id: i64,
    /// When it was given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight_at: Option<Time>,
    /// Nodes in the order in which they are changed, fixed at the start.
    #[serde(default)]
    pub order: Vec<String>,
    /// The one ticket that may be out. Written here before it is issued, so that whoever leads next
    /// knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_hand: Option<InHand>,
}

/// The one ticket that may be out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InHand {
    /// The node.
    pub node: String,
    /// The ticket's number on that node.
    pub number: i64,
    /// True when it brings the target, false when it brings the source back.
    pub forward: bool,
}

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing has been changed yet.
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
    /// The spec changed before anything was changed.
    Superseded,
}

/// A rollout that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// What ran before.
    pub source: String,
    /// What was asked for.
    pub target: String,
    /// `Completed`, `RolledBack`, `Failed`, `Superseded`.
    pub result: Phase,
    /// When it began.
    pub started_at: Time,
    /// When it ended.
    pub ended_at: Time,
    /// Why it did not complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the snapshot lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Longest time in which no API server answered ready to the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_outage_seconds: Option<i64>,
}
