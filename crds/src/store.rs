//! `EtcdBackupStore`: where backups lie, and how they are packed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LocalReference;

/// Where backups lie.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "EtcdBackupStore",
    plural = "etcdbackupstores",
    shortname = "ebstore",
    category = "lockkeeper",
    namespaced,
    status = "EtcdBackupStoreStatus",
    derive = "PartialEq",
    doc = "A place for etcd backups.",
    printcolumn(name = "Bucket", type_ = "string", json_path = ".spec.s3.bucket"),
    printcolumn(name = "Prefix", type_ = "string", json_path = ".spec.s3.prefix"),
    printcolumn(name = "GCS", type_ = "string", json_path = ".spec.gcs.bucket", priority = 1),
    printcolumn(
        name = "Azure",
        type_ = "string",
        json_path = ".spec.azure.container",
        priority = 1
    ),
    printcolumn(
        name = "Directory",
        type_ = "string",
        json_path = ".spec.directory.path",
        priority = 1
    ),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].message"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.s3), has(self.gcs), has(self.azure), has(self.directory)].filter(named, named).size() == 1").message("spec must name exactly one place, spec.s3, spec.gcs, spec.azure or spec.directory: name one, and remove the others"))]
pub struct EtcdBackupStoreSpec {
    /// An S3 bucket or what speaks its protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
    /// A bucket of Google Cloud Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gcs: Option<Gcs>,
    /// A container of Azure Blob Storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure: Option<Azure>,
    /// A directory on the control-plane nodes: shared storage that is mounted on each of them, such as NFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<Directory>,
    /// How a snapshot is compressed before it is stored.
    #[serde(default)]
    pub compression: Compression,
    /// Backups are encrypted before they leave the node. Absent: they are not, and the PKI is never included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The most bytes a second that are read from etcd for a backup into this store. Absent: 12582912 (12 MiB), of
    /// which writes to etcd notice little; without a limit the slowest in a hundred take several times as long
    /// (BENCHMARKS.md). A backup's `deadlineSeconds` must leave room for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 65536))]
    pub limit_bytes_per_second: Option<i64>,
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Directory {
    /// Its path in the agents' pods: the chart's value `store.directory` mounts it there. Every agent must see the
    /// same directory. It must exist, and hard links must work on it; several clusters may share one under paths of
    /// their own.
    #[schemars(length(min = 2, max = 512), regex(pattern = r"^(/[A-Za-z0-9._-]+)+$"))]
    pub path: String,
}

/// How a snapshot is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compression {
    /// Zstandard, level 1: Kubernetes' objects shrink to a quarter or less, faster than etcd streams them.
    #[default]
    Zstd,
    /// Not at all.
    None,
}

/// Encryption with age (age-encryption.org). Exactly one of `recipients` and `passphraseSecret`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.recipients) && size(self.recipients) > 0) != has(self.passphraseSecret)").message("spec.encryption must name recipients or a passphraseSecret, and not both: remove the other"))]
pub struct Encryption {
    /// Public keys `age1…`, of which each secret key alone opens a backup. Keep the secret keys elsewhere. To change
    /// them, change this list: what is stored already stays readable with the keys it was stored for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(regex(pattern = r"^age1[02-9ac-hj-np-z]{58}$")))]
    pub recipients: Vec<String>,
    /// A Secret in the same namespace whose key `passphrase` holds at least 20 characters. The chart's value
    /// `store.secretNames` must name it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_secret: Option<LocalReference>,
    /// A Secret in the same namespace whose key `identity` holds secret keys `AGE-SECRET-KEY-1…`, one a line; older
    /// ones too, while backups are kept that only they open. Only for proofs and restores inside the cluster: with
    /// it, whoever can read the cluster's Secrets can read its backups. The chart's value `store.secretNames` must
    /// name it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_secret: Option<LocalReference>,
}

/// An S3 bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// The bucket; it must exist.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// Goes before every key; several clusters may share a bucket under prefixes of their own.
    #[serde(default)]
    #[schemars(
        length(max = 512),
        regex(pattern = r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    )]
    pub prefix: String,
    /// The server, for one that is not Amazon's: `https://host:port`. `http://` sends data in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^ ]+$"))]
    pub endpoint: Option<String>,
    /// The region.
    #[serde(default = "default_region")]
    pub region: String,
    /// True: `https://bucket.host/key`; false: `https://host/bucket/key`, as most servers of one's own want.
    #[serde(default)]
    pub virtual_hosted_style: bool,
    /// A Secret in the same namespace with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`. The chart's
    /// value `store.secretNames` must name it too, or Lockkeeper may not read it. Absent: the agents' environment
    /// says who they are (`AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`, or the instance's own role).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<LocalReference>,
    /// Certificates in PEM that the server's is signed with, for a server of one's own CA. Absent: the image's own
    /// set of public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
    /// What the server itself encrypts with, besides `spec.encryption`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// The checksum that is sent with every object and part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<Checksum>,
}

/// The checksum that is sent with every object and part. Amazon takes nothing without one into a bucket whose Object
/// Lock has a default retention. Absent: `SHA256` where `endpoint` is absent too, and `None` elsewhere, since not every
/// server knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Checksum {
    /// SHA-256.
    #[serde(rename = "SHA256")]
    Sha256,
    /// None.
    None,
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gcs {
    /// The bucket; it must exist.
    #[schemars(
        length(min = 3, max = 222),
        regex(pattern = r"^[a-z0-9][a-z0-9._-]*[a-z0-9]$")
    )]
    pub bucket: String,
    /// Goes before every key; several clusters may share a bucket under prefixes of their own.
    #[serde(default)]
    #[schemars(
        length(max = 512),
        regex(pattern = r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    )]
    pub prefix: String,
    /// Another address of the service, such as a private endpoint's. Absent: `https://storage.googleapis.com`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^ ]+$"))]
    pub endpoint: Option<String>,
    /// A Secret in the same namespace whose key `GOOGLE_SERVICE_ACCOUNT_KEY` holds a service account's key, the JSON
    /// file. The chart's value `store.secretNames` must name it too. Absent: the agents' environment says who they are
    /// (`GOOGLE_SERVICE_ACCOUNT`, a file), or the metadata server of the machine (workload identity of GKE, or the
    /// instance's own account). A key of type `external_account` is not understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<LocalReference>,
    /// As of `s3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
}

/// A container of Azure Blob Storage. What a killed agent had begun to upload is not listed there, and cannot be taken
/// away: Azure drops it after a week.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Azure {
    /// The storage account.
    #[schemars(regex(pattern = r"^[a-z0-9]{3,24}$"))]
    pub account: String,
    /// The container; it must exist.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9](-?[a-z0-9])*$"))]
    pub container: String,
    /// Goes before every key; several clusters may share a container under prefixes of their own.
    #[serde(default)]
    #[schemars(
        length(max = 512),
        regex(pattern = r"^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$")
    )]
    pub prefix: String,
    /// Another address of the account's blobs, for another cloud of Azure's or one of one's own. Absent:
    /// `https://<account>.blob.core.windows.net`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^ ]+$"))]
    pub endpoint: Option<String>,
    /// A Secret in the same namespace with either `AZURE_STORAGE_ACCOUNT_KEY`, the account's key, or
    /// `AZURE_STORAGE_SAS_TOKEN`, a shared access signature of the container with `sp=racwdl`. The chart's value
    /// `store.secretNames` must name it too. Absent: the agents' environment says who they are (`AZURE_CLIENT_ID`,
    /// `AZURE_TENANT_ID` and `AZURE_FEDERATED_TOKEN_FILE`, or the machine's managed identity).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret: Option<LocalReference>,
    /// As of `s3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub ca_bundle: Option<String>,
}

/// Encryption by the server.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind == 'KMS' || !has(self.kmsKeyId)").message("spec.s3.serverSideEncryption.kmsKeyId is for kind KMS: remove it, or set kind to KMS"))]
pub struct ServerSideEncryption {
    /// With whose keys.
    pub kind: ServerSideKind,
    /// The key, for `KMS`. Absent: the bucket's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub kms_key_id: Option<String>,
}

/// With whose keys a server encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerSideKind {
    /// The server's (SSE-S3).
    S3,
    /// Those of a key management service (SSE-KMS).
    #[serde(rename = "KMS")]
    Kms,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// What is known of a store.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupStoreStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Available`: the last backup or probe could write, read and delete, and a conditional put was honoured.
    /// `Reachable`, `Writable` and `ConditionalPut` say the same of each: Unknown is what the first one that is False
    /// kept from being tried. `ClockInSync`: the `Date` of the server's answers is within a minute of the node's clock;
    /// Unknown where nothing has answered with one, as a directory does not. `KeepsVersions`: what is deleted stays in
    /// the bucket as an older version, as it always does under Object Lock; Unknown where the server does not say, as
    /// Google's never does, nor Azure's without versions. Not part of `Available`.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Backups in it that no `EtcdBackup` stands for, the newest first, a hundred at most: of a state that a restore has
    /// taken back (they are given an object again), kept when their object was deleted, or another cluster's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unclaimed: Vec<Unclaimed>,
    /// When what lies in it was last compared with the `EtcdBackup`s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared_at: Option<Time>,
}

/// A backup that no object stands for, by its manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unclaimed {
    /// The name of the `EtcdBackup` that it was taken for.
    pub name: String,
    /// Its folder in the store: an `EtcdBackup` with the annotation `lockkeeper.dev/stored-as` of this value stands for it.
    pub stored_as: String,
    /// The `EtcdBackupSchedule` that it was of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// When it was begun.
    pub started_at: Time,
    /// The etcd cluster that it is of, hexadecimal.
    pub cluster_id: String,
}
