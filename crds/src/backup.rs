//! `EtcdBackup` (one snapshot). Where it lies: `store`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalReference;

/// On an `EtcdBackup`: the name of the `EtcdBackupSchedule` that it is of.
pub const SCHEDULE_LABEL: &str = "lockkeeper.dev/schedule";

/// On an `EtcdBackup`: the object goes only when what it stored has been taken out of the store. A schedule puts
/// it on its backups; on any other, a person may.
pub const STORED_FINALIZER: &str = "lockkeeper.dev/stored";

/// On an `EtcdBackup`, whatever its value: no schedule lets it go, and should the object be deleted all the same,
/// what it stored stays in the store.
pub const RETAIN_ANNOTATION: &str = "lockkeeper.dev/retain";

/// One snapshot of etcd. Immutable.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "EtcdBackup",
    plural = "etcdbackups",
    shortname = "eb",
    category = "lockkeeper",
    namespaced,
    status = "EtcdBackupStatus",
    derive = "PartialEq",
    doc = "One snapshot of etcd.",
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(
        name = "Succeeded",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Succeeded\")].status"
    ),
    printcolumn(
        name = "Stored",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Stored\")].status"
    ),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.artifact.sizeBytes"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.artifact.revision"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(
        name = "Uri",
        type_ = "string",
        json_path = ".status.artifact.uri",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a backup's spec cannot be changed: make a new EtcdBackup"))]
pub struct EtcdBackupSpec {
    /// The store, in the same namespace.
    pub store_ref: LocalReference,
    /// Seconds that it may take.
    #[serde(default = "default_deadline")]
    #[schemars(range(min = 10, max = 86400))]
    pub deadline_seconds: u32,
    /// What is stored beside the snapshot. `PKI` needs a store with `spec.encryption`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1))]
    pub include: Vec<Include>,
}

/// What is stored beside the snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Include {
    /// What a node needs to be built again with the same identity: the keys and certificates of
    /// `/etc/kubernetes/pki`, the API server's encryption configuration, the static pod manifests. A restore on new
    /// machines is none without them.
    #[serde(rename = "PKI")]
    Pki,
}

pub(crate) const fn default_deadline() -> u32 {
    // 11.8 s were measured for 1.2 GB; an hour lets the largest supported etcd (8 GiB) through a slow link.
    3600
}

impl EtcdBackup {
    /// True when it lies in the store, was read back, and is not about to go.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.is_finished() && self.metadata.deletion_timestamp.is_none() && self.has("Stored")
    }

    /// True when it has ended, well or not.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s.completed_at.is_some())
    }

    /// True when the node that it was given to could not read its member: the operator gives it to another one.
    #[must_use]
    pub fn is_handed_back(&self) -> bool {
        self.status.as_ref().is_some_and(|s| {
            s.completed_at.is_none() && s.tried.iter().any(|t| s.node.as_ref() == Some(&t.node))
        })
    }

    /// True when a person wants what it stored kept for ever.
    #[must_use]
    pub fn is_retained(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        annotations.is_some_and(|a| a.contains_key(RETAIN_ANNOTATION))
    }

    /// True when the object waits for what it stored to be taken out of the store.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        let finalizers = self.metadata.finalizers.as_deref().unwrap_or_default();
        self.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|f| f == STORED_FINALIZER)
    }

    /// True when the condition of this type is `True`.
    #[must_use]
    pub fn has(&self, condition: &str) -> bool {
        let conditions = self.status.as_ref().map(|s| s.conditions.as_slice());
        conditions
            .unwrap_or_default()
            .iter()
            .any(|c| c.type_ == condition && c.status == "True")
    }
}

/// What became of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupStatus {
    /// The node whose agent takes it; chosen by the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Nodes whose member could not be read for it: another one is asked, and when none is left it has failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tried: Vec<Tried>,
    /// When the operator chose the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_at: Option<Time>,
    /// When the agent began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended, well or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Bytes streamed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streamed_bytes: Option<i64>,
    /// One line.
    #[serde(default)]
    pub message: String,
    /// What lies in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// `Succeeded` (Unknown while it runs), `Stored` (read back, hash equal), `Deleted` (while the object waits to
    /// go: whether what it stored is gone).
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// A node whose member could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tried {
    /// The node.
    pub node: String,
    /// Why, short and stable.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// What lies in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// `s3://bucket/key` of the snapshot: `snapshot.db`, with `.zst` when it is compressed and then `.age` when it is
    /// encrypted. What comes out is a file as `etcdutl snapshot restore` takes it.
    pub uri: String,
    /// Its manifest beside it, published last: a backup without one does not exist.
    pub manifest_uri: String,
    /// Size of the snapshot file, bytes, once it is decrypted and decompressed.
    pub size_bytes: i64,
    /// SHA-256 of the whole snapshot file, decrypted and decompressed, lower-case hex.
    pub sha256: String,
    /// Size of the object, bytes: what the store holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<i64>,
    /// How it is encrypted; absent when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<Encrypted>,
    /// `s3://bucket/key` of the node's PKI, when it was included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pki_uri: Option<String>,
    /// etcd's revision when the stream began; what it holds is at least this new.
    pub revision: i64,
    /// How many keys etcd had at that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// The server's version.
    pub etcd_version: String,
    /// Hexadecimal.
    pub cluster_id: String,
    /// The member it was streamed from, hexadecimal.
    pub member_id: String,
}

/// How a backup is encrypted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Encrypted {
    /// `age`, with keys or a passphrase.
    pub kind: EncryptionKind,
    /// The public keys whose secret keys open it; none with a passphrase.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
}

/// What opens an encrypted backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EncryptionKind {
    /// The secret key of any one of its recipients; `age --decrypt --identity FILE` opens it too.
    #[serde(rename = "age-recipients")]
    AgeRecipients,
    /// A passphrase; `age --decrypt` opens it too.
    #[serde(rename = "age-passphrase")]
    AgePassphrase,
}
