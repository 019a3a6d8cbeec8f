//! Why a backup is not proven, as sentences with the way out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lockkeeper_crds::VERDICTS;

use crate::agent::chore::ChoreError;
use crate::agent::etcd::EtcdError;
use crate::store::{Failure, StoreError};

/// Why a level was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProofError {
    #[error(
        "{} is on the same disk as etcd's data {}, and a proof would slow etcd down: give the agents another disk by the chart's agent.workDirectory, or allow it by agent.verification.onEtcdDisk", work.display(), data.display()
    )]
    SameDisk { work: PathBuf, data: PathBuf },
    #[error(
        "{} cannot be looked at ({source}), so it is not known whether {} is on another disk: mount it into the agent by the chart's agent.etcdDataDir, or allow any disk by agent.verification.onEtcdDisk", data.display(), work.display()
    )]
    DiskUnknown {
        work: PathBuf,
        data: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} has {free_mib} MiB free and {need_mib} MiB are needed, twice the snapshot and some: make room, or give the agents a larger disk by the chart's agent.workDirectory", work.display()
    )]
    Space {
        work: PathBuf,
        free_mib: u64,
        need_mib: u64,
    },
    #[error("{} cannot be {doing}: {source}", path.display())]
    File {
        path: PathBuf,
        doing: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no manifest at {0}: somebody has taken the backup out of the store")]
    NoManifest(String),
    #[error("{0}")]
    NoComponent(String),
    #[error(
        "the backup is of {component} {backup}, and this node has {node}: a backup is proven with the minor that it was taken of, so make a new one"
    )]
    OtherMinor {
        component: &'static str,
        backup: String,
        node: String,
    },
    #[error("etcdutl cannot restore it: {0}")]
    Restore(ChoreError),
    #[error("{doing}: {source}")]
    Chore { doing: &'static str, source: ChoreError },
    #[error("the etcd that was booted on it: {0}")]
    Etcd(#[from] EtcdError),
    #[error("the etcd that was booted on it does not serve within {seconds} s: {said}")]
    Boot { seconds: u64, said: String },
    #[error("it holds {found} {what}, and its manifest says {told}")]
    Mismatch {
        what: &'static str,
        told: String,
        found: String,
    },
    #[error("it holds no key below {prefix}: it is no backup of a Kubernetes cluster")]
    Empty { prefix: String },
    #[error("it has the alarm {alarm}: etcd itself found its data corrupt, so restore an older one")]
    Corrupt { alarm: String },
    #[error("{image} on the restored data is not ready within {seconds} s: {said}")]
    ApiServer {
        image: String,
        seconds: u64,
        said: String,
    },
    #[error(
        "its Secrets cannot be read through {image}: {said} (does --encryption-provider-config of this node's kube-apiserver.yaml have every key that they were written with?)"
    )]
    Secrets { image: String, said: String },
    #[error("{keys} keys are Secrets, and {listed} can be read through the API server")]
    SecretsDiffer { keys: i64, listed: i64 },
    #[error("not done within {} s (spec.deadlineSeconds of a new EtcdBackup)", limit.as_secs())]
    Deadline { limit: Duration },
    #[error("interrupted: it begins again when this node is at rest")]
    Interrupted,
}

impl ProofError {
    /// Short and stable, for a condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::SameDisk { .. } => "SameDisk",
            Self::DiskUnknown { .. } => "DiskUnknown",
            Self::Space { .. } => "NoSpace",
            Self::File { .. } => "WorkDirectory",
            Self::Store(e) if matches!(e.failure(), Failure::NoKey { .. }) => "NoIdentity",
            Self::Store(e) => e.reason(),
            Self::NoManifest(_) => "NoManifest",
            Self::NoComponent(_) => "NoComponent",
            Self::OtherMinor { .. } => "OtherMinor",
            Self::Restore(ChoreError::Failed { .. }) => "RestoreFailed",
            Self::Restore(source) | Self::Chore { source, .. } => match source {
                ChoreError::Failed { .. } => "BootFailed",
                ChoreError::OutOfMemory { .. } => "OutOfMemory",
                ChoreError::Cancelled => "Interrupted",
                _ => "NotStarted",
            },
            Self::Etcd(_) | Self::Boot { .. } => "BootFailed",
            Self::Mismatch { .. } => "Mismatch",
            Self::Empty { .. } => "Empty",
            Self::Corrupt { .. } => "CorruptAlarm",
            Self::ApiServer { .. } => "ApiServerFailed",
            Self::Secrets { .. } => "SecretsUnreadable",
            Self::SecretsDiffer { .. } => "SecretsDiffer",
            Self::Deadline { .. } => "DeadlineExceeded",
            Self::Interrupted => "Interrupted",
        }
    }

    /// Nothing was found out because somebody said stop.
    pub(crate) fn is_interruption(&self) -> bool {
        self.reason() == "Interrupted"
            || matches!(self, Self::Store(e) if matches!(e.failure(), Failure::Cancelled))
    }

    /// True when the backup itself is bad, which another try would only find again.
    pub(crate) fn is_verdict(&self) -> bool {
        VERDICTS.contains(&self.reason())
    }
}
