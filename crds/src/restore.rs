//! `EtcdRestore`: the data of etcd goes back to a backup, on every control-plane node at once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalReference;

/// On an `EtcdRestore` that was made anew after the restore itself, since the restored etcd does not know the object
/// that it began with: the id. Such an object tells how it ended and never begins anything.
pub const RESTORED_ANNOTATION: &str = "lockkeeper.dev/restored";

/// What is to be restored, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "EtcdRestore",
    plural = "etcdrestores",
    shortname = "er",
    category = "lockkeeper",
    namespaced,
    status = "EtcdRestoreStatus",
    derive = "PartialEq",
    doc = "Puts etcd back to a backup, on every control-plane node at once, or tries it on one. Immutable but for the confirmation.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.backup.revision",
        description = "of the backup"
    ),
    printcolumn(
        name = "Lost",
        type_ = "integer",
        json_path = ".status.loss.revisions",
        description = "revisions since the backup"
    ),
    printcolumn(name = "Confirm-With", type_ = "string", json_path = ".status.confirmWith"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(oldSelf.confirm) ? true : has(self.confirm) && self.confirm == oldSelf.confirm").message("spec.confirm was given already and cannot be taken back or changed: while nothing has begun, delete the EtcdRestore"),
    validation = Rule::new("self.from == oldSelf.from && self.mode == oldSelf.mode && self.bumpRevision == oldSelf.bumpRevision && self.allowOtherCluster == oldSelf.allowOtherCluster && self.deadlines == oldSelf.deadlines && has(self.storeRef) == has(oldSelf.storeRef) && (!has(self.storeRef) || self.storeRef == oldSelf.storeRef) && has(self.node) == has(oldSelf.node) && (!has(self.node) || self.node == oldSelf.node) && has(self.directory) == has(oldSelf.directory) && (!has(self.directory) || self.directory == oldSelf.directory)").message("an EtcdRestore cannot be changed but for spec.confirm: make a new one"),
    validation = Rule::new("has(self.storeRef) || has(self.from.backupRef)").message("spec.storeRef is missing: spec.from.key and spec.from.uri need the EtcdBackupStore that they lie in"),
    validation = Rule::new("(self.mode == 'NewDirectory') == has(self.directory)").message("spec.directory belongs to mode NewDirectory, which needs it: an absolute path on the node that does not exist yet"),
    validation = Rule::new("self.mode == 'InPlace' || !has(self.confirm)").message("spec.confirm is for mode InPlace only: the other modes change nothing that needs one"),
    validation = Rule::new("self.mode != 'InPlace' || !has(self.node)").message("spec.node is not for mode InPlace: a restore in place is made on all control-plane nodes at once")
)]
pub struct EtcdRestoreSpec {
    /// Which backup.
    pub from: RestoreSource,

    /// The store that it lies in, in the same namespace. Absent: that of `from.backupRef`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<LocalReference>,

    /// What to do with it.
    pub mode: RestoreMode,

    /// `NewDirectory`: where the restored data directory is put and left. It must not exist, and must lie on the
    /// file system of etcd's data directory, below it or beside it where the agent is given that path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^/[A-Za-z0-9._/-]+$"))]
    pub directory: Option<String>,

    /// `DryRun` and `NewDirectory`: the node that does it. Absent: the first by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub node: Option<String>,

    /// How far etcd's revision is raised above the backup's, so that no client waits for revisions that it has seen
    /// already. Raised further by itself where the present revision asks for it.
    #[serde(default = "default_bump")]
    #[schemars(range(min = 1_000_000, max = 1_000_000_000_000_i64))]
    pub bump_revision: i64,

    /// Take a backup of another etcd cluster too. A cluster that was restored before has a new identity: its older
    /// backups are then another cluster's.
    #[serde(default)]
    pub allow_other_cluster: bool,

    /// How long each part may take.
    #[serde(default)]
    pub deadlines: RestoreDeadlines,

    /// `InPlace`: what `status.confirmWith` says, typed by a person who has read `status.loss`. It can be set once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub confirm: Option<String>,
}

const fn default_bump() -> i64 {
    // etcd's own advice: a week of 1500 writes a second (facts.md 3.3).
    1_000_000_000
}

/// Which backup: one of the three.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.backupRef), has(self.key), has(self.uri)].filter(x, x).size() == 1").message("spec.from names no backup or several: give exactly one of backupRef, key and uri"))]
pub struct RestoreSource {
    /// An `EtcdBackup` in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalReference>,
    /// The folder of a backup in the store, prefix included, as the store lists it: `clusters/a/nightly-20261121-0300-1a2b3c4d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub key: Option<String>,
    /// The same as a URI, as `status.artifact.uri` of an `EtcdBackup` has it: `s3://bucket/folder/snapshot.db`, or
    /// `file:///backups/folder/snapshot.db`. It must lie in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub uri: Option<String>,
}

/// What to do with a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreMode {
    /// Fetch, check and restore it beside the data in use on one node, tell what would be lost, and remove it again.
    DryRun,
    /// Put it in the place of the present data on all control-plane nodes.
    InPlace,
    /// Restore it into a new directory on one node and leave it there.
    NewDirectory,
}

/// How long each part of a restore may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreDeadlines {
    /// Seconds to fetch, check and restore the backup beside the data in use, on each node.
    #[serde(default = "prepare_seconds")]
    #[schemars(range(min = 30, max = 86_400))]
    pub prepare_seconds: u32,
    /// Seconds that the prepared data waits for the confirmation; then it is removed, and the restore has failed.
    #[serde(default = "confirm_seconds")]
    #[schemars(range(min = 60, max = 604_800))]
    pub confirm_seconds: u32,
    /// Seconds from the word to begin until all nodes are ready on the restored data, or all go back.
    #[serde(default = "ready_seconds")]
    #[schemars(range(min = 60, max = 7200))]
    pub ready_seconds: u32,
}

impl Default for RestoreDeadlines {
    fn default() -> Self {
        Self {
            prepare_seconds: prepare_seconds(),
            confirm_seconds: confirm_seconds(),
            ready_seconds: ready_seconds(),
        }
    }
}

const fn prepare_seconds() -> u32 {
    // The largest supported etcd (8 GiB) through a slow link, as for a backup.
    3600
}

const fn confirm_seconds() -> u32 {
    // A person reads what will be lost, and asks another.
    14_400
}

const fn ready_seconds() -> u32 {
    // kubeadm gives an API server 4 minutes to start; etcd and the way down take one more.
    420
}

/// Where a restore stands, for all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestoreState {
    /// Waits for what must hold before anything is fetched.
    #[default]
    Validating,
    /// Every node fetches, checks and restores the backup beside its data in use.
    Preparing,
    /// The loss is shown; a person's word is wanted.
    AwaitingConfirmation,
    /// Confirmed: the present state is stored once more, and all nodes are told to be ready to begin.
    Arming,
    /// The control plane is down and comes up on the restored data, or goes back.
    Restoring,
    /// An end: the restored data stays, or the trial was made. Where `Succeeded` is False all the same, something of a
    /// control plane did not come up on it, and the message names it.
    Completed,
    /// An end: nothing was touched.
    Failed,
    /// An end: something went wrong on the way, and the data of before runs again.
    Undone,
}

impl RestoreState {
    /// True when nothing more will happen.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Undone)
    }
}

/// What became of a restore.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdRestoreStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands.
    #[serde(default)]
    pub state: RestoreState,
    /// The id under which the nodes know it: the UID of the object that began it. The object itself is made anew
    /// after a restore in place, since the restored etcd does not know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A sentence.
    #[serde(default)]
    pub message: String,
    /// What `spec.confirm` must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_with: Option<String>,
    /// The backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<RestoredBackup>,
    /// The `EtcdBackup` of the state right before, made when the restore was confirmed. After a restore in place the
    /// restored etcd does not know that object; what it stored is in the store under this name, as `lockkeeper rescue
    /// list` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safety_backup: Option<String>,
    /// Each node.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    #[serde(default)]
    pub nodes: Vec<RestoreNode>,
    /// What is lost by it. Counted when the node had prepared; more is lost with each minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<RestoreLoss>,
    /// etcd's revision when the loss was counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_before: Option<i64>,
    /// etcd's revision when the restored data had come up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_after: Option<i64>,
    /// What changed by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<RestoreReport>,
    /// When the nodes were first asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// `Succeeded` (Unknown while it lasts), `Validated`, `Confirmed`; and `Ready`, `Reconciling`, `Stalled` as
    /// tools read them.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// The backup that is restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoredBackup {
    /// Where it lies.
    pub uri: String,
    /// When its stream began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// etcd's revision then.
    pub revision: i64,
    /// The server's version then.
    pub etcd_version: String,
    /// Hexadecimal.
    pub cluster_id: String,
    /// Of the snapshot, bytes.
    pub size_bytes: i64,
    /// SHA-256 of the snapshot, lower-case hex.
    #[serde(default)]
    pub sha256: String,
}

/// A node's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreNode {
    /// Its name.
    pub node: String,
    /// Where it stands; absent until its agent has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<RestoreStage>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// What a restore would lose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreLoss {
    /// Everything since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// etcd's revision when this was counted; absent where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Writes since the backup. Absent where etcd was restored since then, which raised its revision: what is gone is told
    /// by `created` and `changed` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revisions: Option<i64>,
    /// Keys that were made since: they will be gone. Absent where they were not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<i64>,
    /// Keys that are older and were changed since: they will be as they were. Absent where they were not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<i64>,
    /// Why they were not counted: the loss is then whatever was written since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<String>,
    /// Some of the keys that will be gone.
    #[serde(default)]
    pub samples: Vec<String>,
}

/// What a restore changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreReport {
    /// Keys that were there right before and are not now.
    pub gone: i64,
    /// Keys that were not there right before and are now.
    pub came_back: i64,
    /// Some of the first.
    #[serde(default)]
    pub gone_samples: Vec<String>,
    /// Some of the second.
    #[serde(default)]
    pub came_back_samples: Vec<String>,
    /// Leases and API servers' own entries of the backup's time that were taken out.
    #[serde(default)]
    pub cleansed: i64,
    /// Alarms that were disarmed.
    #[serde(default)]
    pub disarmed: Vec<String>,
    /// Where the data of before is kept on each node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kept_at: String,
}

/// What the operator wants of one node: in `ControlPlaneNode.spec.restore`. The node obeys one `id` once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreOrder {
    /// The UID of the `EtcdRestore`; also the restored cluster's token.
    pub id: String,
    /// The name of the `EtcdRestore`.
    pub name: String,
    /// What to do.
    pub mode: RestoreMode,
    /// How far to go by now.
    pub word: RestoreWord,
    /// The store's name.
    pub store: LocalReference,
    /// The backup's folder in it, prefix included, or an object in that; or the URI of either.
    pub key: String,
    /// SHA-256 of the snapshot as its `EtcdBackup` has it, lower-case hex: another file is refused. Empty where only
    /// the store knows it.
    #[serde(default)]
    pub sha256: String,
    /// Take a backup of another cluster too.
    #[serde(default)]
    pub allow_other_cluster: bool,
    /// The member of each node in the restored cluster.
    pub members: Vec<RestoreMember>,
    /// `--bump-revision`.
    pub bump_revision: i64,
    /// The cluster id of the etcd that runs now, hexadecimal.
    pub cluster_id: String,
    /// `NewDirectory`: where to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// How long each part may take.
    pub deadlines: RestoreDeadlines,
    /// This node counts the loss, and lists the keys for the report.
    #[serde(default)]
    pub counts: bool,
}

/// How far a node may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoreWord {
    /// Fetch, check, restore beside; touch nothing.
    Prepare,
    /// All nodes have: be ready to begin.
    Arm,
    /// All nodes are: begin.
    Go,
}

/// An etcd member of the restored cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreMember {
    /// The node it runs on.
    pub node: String,
    /// `--name`.
    pub name: String,
    /// `--initial-advertise-peer-urls`; several are joined by commas.
    pub peer_urls: String,
}

/// Where a restore stands on its node. Each is in the node's journal before it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestoreStage {
    /// The backup is fetched, checked and restored beside the data in use.
    Preparing,
    /// That is done.
    Prepared,
    /// Told to be ready to begin.
    Armed,
    /// The control plane of this node changes over to the restored data.
    Going,
    /// Ready on it; waits for all others.
    Ready,
    /// All are: it stays.
    Committed,
    /// The data of before comes back.
    Undoing,
    /// The restored data runs. An end.
    Done,
    /// The data of before runs. An end.
    Undone,
    /// Given up before anything was touched. An end.
    Dropped,
}

impl RestoreStage {
    /// True when the agent does nothing more about it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Undone | Self::Dropped)
    }
}

/// What the agent says of the last restore on its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    /// The order's.
    pub id: String,
    /// The name of the `EtcdRestore`.
    pub name: String,
    /// Where it stands.
    pub stage: RestoreStage,
    /// Since when.
    pub since: Time,
    /// When the agent acts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The node that counts: what would be lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<RestoreLoss>,
    /// The node that counts: what was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<RestoreReport>,
    /// What kind of restore it was.
    pub mode: RestoreMode,
    /// The store, for an operator whose own object the restored etcd does not know.
    pub store: String,
    /// The backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<RestoredBackup>,
    /// etcd's revision after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_after: Option<i64>,
    /// The etcd cluster that it took the place of, hexadecimal; empty when that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replaced_cluster_id: String,
}
