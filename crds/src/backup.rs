//! `EtcdBackup` (one snapshot). Where it lies: `store`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalReference;

/// On an `EtcdBackup`: the name of the `EtcdBackupSchedule` that it is of.
pub const SCHEDULE_LABEL: &str = "lockkeeper.dev/schedule";

/// On an `EtcdBackup`: the object goes only when what it stored has been taken out of the store. The operator puts it
/// on each one before anything is stored, but for those that are retained.
pub const STORED_FINALIZER: &str = "lockkeeper.dev/stored";

/// On an `EtcdBackup`, whatever its value: no schedule lets it go, and should the object be deleted all the same,
/// what it stored stays in the store.
pub const RETAIN_ANNOTATION: &str = "lockkeeper.dev/retain";

/// On an `EtcdBackup`: the slot of its schedule's drill that it was taken for, as RFC 3339 writes it.
pub const DRILL_ANNOTATION: &str = "lockkeeper.dev/drill-slot";

/// On an `EtcdBackup` that stands for a backup which lies in the store already: its folder there, as `lockkeeper rescue
/// list` shows it. Nothing is taken then: its status is what the manifest says.
pub const STORED_AS_ANNOTATION: &str = "lockkeeper.dev/stored-as";

/// The reasons of `Verified` and `Drilled` that say that the backup itself is bad. With any other one it could not
/// be told, and is tried again.
pub const VERDICTS: [&str; 6] = [
    "Damaged",
    "Misplaced",
    "RestoreFailed",
    "Mismatch",
    "Empty",
    "CorruptAlarm",
];

/// How far it is proven that a backup can be restored. Each level has those before it in it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Proof {
    /// It was read back from the store, and its hash is that of what was streamed.
    #[default]
    Stored,
    /// It was restored into an empty directory by `etcdutl` of its own minor, an `etcd` was booted on that, its
    /// keys were counted and its alarms listed.
    Verified,
    /// An API server of its own minor was booted on that, and every Secret could be read through it.
    Drilled,
}

impl Proof {
    /// All, the lowest first.
    pub const ALL: [Self; 3] = [Self::Stored, Self::Verified, Self::Drilled];

    /// The condition's type, and the value in a spec.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stored => "Stored",
            Self::Verified => "Verified",
            Self::Drilled => "Drilled",
        }
    }
}

impl std::fmt::Display for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One snapshot of etcd. Immutable, but that more proof of it may be asked for.
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
    printcolumn(
        name = "Verified",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Verified\")].status"
    ),
    printcolumn(
        name = "Drilled",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Drilled\")].status"
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
#[x_kube(validation = Rule::new("self.storeRef == oldSelf.storeRef && self.deadlineSeconds == oldSelf.deadlineSeconds && has(self.include) == has(oldSelf.include) && (!has(self.include) || self.include == oldSelf.include)").message("a backup's spec cannot be changed, spec.proof aside: make a new EtcdBackup"))]
#[x_kube(validation = Rule::new("self.proof == oldSelf.proof || oldSelf.proof == 'Stored' || self.proof == 'Drilled'").message("spec.proof can only be raised, from Stored to Verified to Drilled: what was proven stays so; make a new EtcdBackup for less").field_path(".proof"))]
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
    /// How far it is proven that it can be restored: `Stored`, `Verified` or `Drilled`. It may be raised at any
    /// time, of a backup that is stored already too. `deadlineSeconds` is the limit of each proof by itself.
    #[serde(default)]
    pub proof: Proof,
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

    /// The highest level that it has come to, and those below it; none when it does not lie in the store.
    #[must_use]
    pub fn proven(&self) -> Option<Proof> {
        let reached = |level: &&Proof| self.has(level.name());
        let levels = Proof::ALL.iter().take_while(reached).copied().last();
        levels.filter(|_| self.is_proven())
    }

    /// The level that `spec.proof` asks for and that it has not come to, unless it is known to be bad.
    #[must_use]
    pub fn unproven(&self) -> Option<Proof> {
        let reached = self.proven()?;
        let bad = |level: &Proof| {
            let condition = self.condition(level.name());
            condition.is_some_and(|c| c.status == "False" && VERDICTS.contains(&c.reason.as_str()))
        };
        (self.spec.proof > reached && !Proof::ALL.iter().any(bad)).then_some(self.spec.proof)
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        let conditions = self.status.as_ref().map(|s| s.conditions.as_slice());
        conditions.unwrap_or_default().iter().find(|c| c.type_ == type_)
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

    /// The folder of the backup that it stands for, when that was taken for another object.
    #[must_use]
    pub fn stored_as(&self) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        annotations.get(STORED_AS_ANNOTATION).map(String::as_str)
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
        self.condition(condition).is_some_and(|c| c.status == "True")
    }
}

/// What became of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupStatus {
    /// The node whose agent takes it and proves it; chosen by the operator, and another one when it is lost.
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
    /// What was found in it when it was proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
    /// `Succeeded` (Unknown while it runs), `Stored` (read back, hash equal; False when it is gone), `Verified` and `Drilled` (where
    /// `spec.proof` asks for them; Unknown while that goes on), `Deleted` (while the object waits to go: whether
    /// what it stored is gone; with the reason `VersionsKept`, deleted in a bucket that keeps versions; with `Locked`,
    /// kept by a lock for now). Of a proof that waits for something a person can do, the reason says for what.
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
    /// `s3://bucket/key` (or `gs:`, `az:`, `file:`) of the snapshot: `snapshot.db`, with `.zst` when it is compressed and then `.age` when it is
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

/// What was found in a backup when it was proven.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Keys in it, all of them.
    pub keys: i64,
    /// The revision that it opens with.
    pub revision: i64,
    /// Alarms that were set when it was taken, e.g. `NOSPACE`: who restores it has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// Secrets that an API server could read in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<i64>,
}
