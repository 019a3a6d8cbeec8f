//! One snapshot from the local member into a store. No Kubernetes API: `lockkeeper rescue` may use it too.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds::Artifact;
use tokio_util::sync::CancellationToken;

use super::pki::{self, PkiUnreadable};
use crate::agent::etcd::{EtcdError, EtcdMember, Snapshot};
use crate::store::{FORMAT, Failure, Kept, Manifest, PART_SIZE, Store, StoreError, UploadError};

/// After a deadline or a shutdown: for aborting the upload and deleting what it left (10 s each, at most).
const CLEAN_UP: Duration = Duration::from_secs(25);

/// What to take, and what to write into its manifest.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the `EtcdBackup`.
    pub name: String,
    /// UID of the `EtcdBackup`.
    pub uid: String,
    /// The `EtcdBackupSchedule` that it is of.
    pub schedule: Option<String>,
    /// This node.
    pub node: String,
    /// Of the API server, where one answered.
    pub kubernetes_version: Option<String>,
    /// Backups that have ended, by the names of their directories in the store: nobody uploads for them any more.
    pub ended: BTreeSet<String>,
    /// For all of it.
    pub deadline: Duration,
    /// The node's PKI goes with it.
    pub pki: bool,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The member could not be read, or what it streamed is no snapshot.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's PKI was to go with it, and cannot.
    #[error(transparent)]
    Pki(#[from] PkiUnreadable),
    /// It took too long.
    #[error("not done within spec.deadlineSeconds ({}): see how etcd's disk and the store fare, or raise it in a new EtcdBackup", .0.as_secs())]
    Deadline(Duration),
    /// It was to lie in the store already.
    #[error(
        "there is no backup at {0}: a backup without its manifest does not exist; what there is, the status of the EtcdBackupStore says"
    )]
    Absent(String),
    /// The agent ended, or the object was deleted.
    #[error("interrupted: {0}")]
    Interrupted(&'static str),
}

impl TakeError {
    /// Short and stable, for the condition's reason.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Etcd(EtcdError::Snapshot(_)) => "TrailerMismatch",
            Self::Etcd(_) => "EtcdUnavailable",
            Self::Store(e) => match e.failure() {
                Failure::ReadBack { .. } => "ReadBackMismatch",
                Failure::ManifestTaken { .. } | Failure::ManifestInvalid { .. } => "ManifestConflict",
                Failure::EncryptionWanted => "EncryptionRequired",
                _ => "StoreUnavailable",
            },
            Self::Pki(_) => "PkiUnreadable",
            Self::Deadline(_) => "DeadlineExceeded",
            Self::Absent(_) => "Absent",
            Self::Interrupted(_) => "Interrupted",
        }
    }
}

/// Streams a snapshot of `member` into `store`: probe, linearizable read, upload, read back, manifest.
///
/// `began` gets the counter of streamed bytes once the stream begins.
///
/// # Guarantees
/// Those of [`Store::keep`]. Returns within `request.deadline` and 25 s, and within 25 s of `cancel`.
///
/// # Errors
/// When the store fails its probe (nothing was streamed then), or anything after it does.
pub async fn take(
    member: &EtcdMember,
    store: &Store,
    request: &Request,
    cancel: &CancellationToken,
    began: impl FnOnce(&Snapshot) + Send,
) -> Result<Artifact, TakeError> {
    // Told to the work below instead of dropping it: so its cleaning up is waited for.
    let stop = CancellationToken::new();
    let work = work(member, store, request, &stop, began);
    tokio::pin!(work);
    let why = tokio::select! {
        done = &mut work => return done,
        () = tokio::time::sleep(request.deadline) => TakeError::Deadline(request.deadline),
        () = cancel.cancelled() => TakeError::Interrupted("the agent ends, or the EtcdBackup was deleted"),
    };
    stop.cancel();
    match tokio::time::timeout(CLEAN_UP, work).await {
        // It was done after all, or failed for a better reason.
        Ok(Ok(artifact)) => Ok(artifact),
        Ok(Err(e)) if !matches!(e, TakeError::Interrupted(_)) => Err(e),
        Ok(Err(_)) | Err(_) => Err(why),
    }
}

async fn work(
    member: &EtcdMember,
    store: &Store,
    request: &Request,
    stop: &CancellationToken,
    began: impl FnOnce(&Snapshot),
) -> Result<Artifact, TakeError> {
    let started_at = Time(Timestamp::now());
    // Before a gigabyte is read: does the store take, give back and guard what it is given? Not cut short by a
    // cancellation, or the probe would stay in the bucket; it ends within 18 s.
    store.probe().await?;
    let pki = match request.pki {
        true if !store.encrypts() => return Err(store.wants_encryption().into()),
        true => Some(pki::collect(member.root()).await?),
        false => None,
    };
    sweep(store, &request.ended).await;
    let mut snapshot = tokio::select! {
        snapshot = member.snapshot(store.pace()) => snapshot?,
        () = stop.cancelled() => return Err(TakeError::Interrupted("before the stream began")),
    };
    began(&snapshot);
    let origin = snapshot.origin().clone();
    let key = store.key(&request.name, &request.uid);
    let describe = |kept: Kept| Manifest {
        format: FORMAT,
        id: kept.id,
        name: request.name.clone(),
        uid: request.uid.clone(),
        schedule: request.schedule.clone(),
        node: request.node.clone(),
        cluster_id: origin.cluster_id,
        member_id: origin.member_id,
        etcd_version: origin.etcd_version,
        storage_version: origin.storage_version,
        kubernetes_version: request.kubernetes_version.clone(),
        revision: origin.revision,
        keys: origin.keys,
        hash_kv: origin.hash_kv,
        size_bytes: kept.snapshot.plain.size,
        sha256: kept.snapshot.plain.sha256.clone(),
        snapshot: Some(kept.snapshot),
        pki: kept.pki,
        part_size_bytes: PART_SIZE as u64,
        started_at,
        completed_at: Time(Timestamp::now()),
    };
    match store.keep(&key, &mut snapshot, pki, describe, stop).await {
        Ok(manifest) => Ok(artifact(store, &manifest)),
        Err(UploadError::Store(e)) => Err(e.into()),
        Err(UploadError::Source(e)) => Err(e.into()),
        Err(UploadError::Cancelled) => Err(TakeError::Interrupted("while it was uploaded")),
    }
}

/// What earlier attempts have left goes before something new comes: those of agents that were killed, and of a store
/// that did not even take the abort. A store that cannot say what is there is no reason not to take a backup.
async fn sweep(store: &Store, ended: &BTreeSet<String>) {
    match store.sweep(ended).await {
        Ok(0) => {}
        Ok(count) => tracing::info!(store = store.name(), count, "dead uploads were aborted"),
        Err(error) => tracing::warn!(%error, "dead uploads, if there are any, stay for now"),
    }
}

/// The status of a backup, from its manifest.
pub(super) fn artifact(store: &Store, manifest: &Manifest) -> Artifact {
    let key = store.key(&manifest.name, &manifest.uid);
    let snapshot = manifest.snapshot();
    let signed = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Artifact {
        uri: store.uri(&key.object(&snapshot.name)),
        manifest_uri: store.uri(&key.manifest),
        size_bytes: signed(manifest.size_bytes),
        sha256: manifest.sha256.clone(),
        stored_bytes: Some(signed(snapshot.stored.size)),
        encrypted: snapshot.encrypted,
        pki_uri: manifest.pki.as_ref().map(|pki| store.uri(&key.object(&pki.name))),
        revision: manifest.revision,
        keys: manifest.keys,
        etcd_version: manifest.etcd_version.clone(),
        cluster_id: manifest.cluster_id.clone(),
        member_id: manifest.member_id.clone(),
    }
}
