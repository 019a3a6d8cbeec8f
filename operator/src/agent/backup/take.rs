//! One snapshot from the local member into a store. No Kubernetes API: `lockkeeper rescue` may use it too.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds::Artifact;
use tokio_util::sync::CancellationToken;

use crate::agent::etcd::{EtcdError, EtcdMember, Snapshot};
use crate::store::{FORMAT, Failure, Manifest, PART_SIZE, Store, StoreError, UploadError};

/// After a deadline or a shutdown: for aborting the upload and deleting what it left (10 s each, at most).
const CLEAN_UP: Duration = Duration::from_secs(25);

/// What to take, and what to write into its manifest.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the `EtcdBackup`.
    pub name: String,
    /// UID of the `EtcdBackup`.
    pub uid: String,
    /// This node.
    pub node: String,
    /// Of the API server, where one answered.
    pub kubernetes_version: Option<String>,
    /// For all of it.
    pub deadline: Duration,
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
    /// It took too long.
    #[error("not done within spec.deadlineSeconds ({}): see how etcd's disk and the store fare, or raise it in a new EtcdBackup", .0.as_secs())]
    Deadline(Duration),
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
                _ => "StoreUnavailable",
            },
            Self::Deadline(_) => "DeadlineExceeded",
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
    let mut snapshot = tokio::select! {
        snapshot = member.snapshot() => snapshot?,
        () = stop.cancelled() => return Err(TakeError::Interrupted("before the stream began")),
    };
    began(&snapshot);
    let origin = snapshot.origin().clone();
    let key = store.key(&request.name, &request.uid);
    let kept = store.keep(
        &key,
        &mut snapshot,
        |id, fingerprint| Manifest {
            format: FORMAT,
            id,
            name: request.name.clone(),
            uid: request.uid.clone(),
            node: request.node.clone(),
            cluster_id: origin.cluster_id,
            member_id: origin.member_id,
            etcd_version: origin.etcd_version,
            storage_version: origin.storage_version,
            kubernetes_version: request.kubernetes_version.clone(),
            revision: origin.revision,
            size_bytes: fingerprint.size,
            sha256: fingerprint.sha256.clone(),
            part_size_bytes: PART_SIZE as u64,
            started_at,
            completed_at: Time(Timestamp::now()),
        },
        stop,
    );
    match kept.await {
        Ok(manifest) => Ok(artifact(store, &manifest)),
        Err(UploadError::Store(e)) => Err(e.into()),
        Err(UploadError::Source(e)) => Err(e.into()),
        Err(UploadError::Cancelled) => Err(TakeError::Interrupted("while it was uploaded")),
    }
}

/// The status of a backup, from its manifest.
pub(super) fn artifact(store: &Store, manifest: &Manifest) -> Artifact {
    let key = store.key(&manifest.name, &manifest.uid);
    Artifact {
        uri: store.uri(&key.snapshot),
        manifest_uri: store.uri(&key.manifest),
        size_bytes: i64::try_from(manifest.size_bytes).unwrap_or(i64::MAX),
        sha256: manifest.sha256.clone(),
        revision: manifest.revision,
        etcd_version: manifest.etcd_version.clone(),
        cluster_id: manifest.cluster_id.clone(),
        member_id: manifest.member_id.clone(),
    }
}
