//! Proves that a backup can be restored, by doing so beside the cluster.
//!
//! | | |
//! | --- | --- |
//! | comes in | a snapshot file's origin (its manifest in the store), the level wanted |
//! | goes out | [`Findings`], or why it is not proven |
//! | may touch | a directory of its own, never on etcd's disk unless that is allowed; chores |
//!
//! *Verified*: `etcdutl` of the node's etcd image restores it into an empty directory, `etcd` boots on that, and what
//! it holds is compared with what the manifest says. *Drilled*: the node's own API server, made harmless, is booted on
//! that too, and every Secret is read through it: with the keys of this node, as after a restore.
//!
//! Neither needs an API. What listens does so on loopback, behind the node's own etcd certificates or a token that is
//! made for the occasion; all files lie in a directory that only root may enter.

mod boot;
mod drill;
mod error;
mod place;
mod verdict;

use std::path::PathBuf;
use std::time::Duration;

use lockkeeper_crds::{Findings, Proof};
use tokio_util::sync::CancellationToken;

use super::cri::Cri;
use super::host::Host;
use crate::store::{BackupKey, Identities, Manifest, Store};

pub(crate) use error::ProofError;

use boot::EtcdImage;
use place::Place;

/// How backups are proven on this node.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct ProofConfig {
    /// Where backups are restored to be proven. It should lie on another disk than etcd's data: it is written to at
    /// the disk's full speed, and an etcd whose disk is slow loses its leader.
    #[arg(long, default_value = "/var/lib/lockkeeper/work", value_name = "DIRECTORY")]
    pub work_directory: PathBuf,
    /// Prove backups on the disk of etcd's data all the same.
    #[arg(long)]
    pub proof_on_etcd_disk: bool,
    /// MiB of memory for each program of a proof: etcdutl, etcd, kube-apiserver.
    #[arg(long, default_value_t = 2048, value_name = "MIB", value_parser = clap::value_parser!(u64).range(128..=1_048_576))]
    pub proof_memory_mib: u64,
    /// Thousandths of a processor for each of them.
    #[arg(long, default_value_t = 1000, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(100..=256_000))]
    pub proof_cpu_millis: u32,
}

/// The backup to prove.
pub(crate) struct Subject<'a> {
    pub(crate) store: &'a Store,
    pub(crate) key: &'a BackupKey,
    pub(crate) manifest: &'a Manifest,
    pub(crate) keys: &'a Identities,
    /// What it has come to before.
    pub(crate) reached: Proof,
}

/// Proves backups on this node, one at a time.
#[derive(Clone, Debug)]
pub(crate) struct Prover {
    host: Host,
    cri: Cri,
    config: ProofConfig,
}

/// What is found, level by level.
pub(crate) trait Told: Send {
    /// This level is reached; `sentence` says how.
    fn reached(
        &mut self,
        level: Proof,
        findings: &Findings,
        sentence: &str,
    ) -> impl Future<Output = ()> + Send;
}

impl Prover {
    pub(crate) fn new(host: Host, cri: Cri, config: ProofConfig) -> Self {
        Self { host, cri, config }
    }

    /// Removes what a killed process left. Nothing is being proven meanwhile.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub(crate) fn clear(&self) -> Result<(), ProofError> {
        self.place().clear()
    }

    fn place(&self) -> Place {
        Place::new(&self.host, &self.config)
    }

    /// Proves a backup up to `level`, telling of each level as it is reached.
    ///
    /// # Guarantees
    /// * Nothing of it is left when this returns: no file, no manifest, no process; or the error says what.
    /// * Nothing that the cluster uses is written to.
    ///
    /// # Errors
    /// When a level is not reached: because the backup is bad, or because it cannot be told. See
    /// [`ProofError::is_verdict`].
    pub(crate) async fn prove(
        &self,
        level: Proof,
        subject: &Subject<'_>,
        limit: Duration,
        cancel: &CancellationToken,
        told: &mut impl Told,
    ) -> Result<(), ProofError> {
        // The chores heed a cancellation and see their containers go; dropped, they could not wait for that.
        let stop = cancel.child_token();
        let work = self.work(level, subject, &stop, told);
        tokio::pin!(work);
        let (done, late) = tokio::select! {
            done = &mut work => (done, false),
            () = tokio::time::sleep(limit) => {
                stop.cancel();
                (work.await, true)
            }
        };
        let cleared = self.place().clear();
        match done {
            Err(error) if error.is_interruption() && late => Err(ProofError::Deadline { limit }),
            Err(error) => Err(error),
            Ok(()) => cleared,
        }
    }

    async fn work(
        &self,
        level: Proof,
        subject: &Subject<'_>,
        cancel: &CancellationToken,
        told: &mut impl Told,
    ) -> Result<(), ProofError> {
        let manifest = subject.manifest;
        let image = EtcdImage::of(&self.host)?;
        image.fits(manifest)?;
        let drill = match level {
            Proof::Drilled => Some(drill::ApiServer::of(&self.host)?.fits(manifest)),
            Proof::Stored | Proof::Verified => None,
        };
        let drill = match drill {
            // Nothing is fetched for what cannot be; what comes before a drill, an API server of another minor leaves be.
            Some(Err(error)) if subject.reached >= Proof::Verified => return Err(error),
            drill => drill,
        };
        let place = self.place();
        place.make(&image.data_directory, manifest.size_bytes)?;
        let snapshot = place.inside("snapshot.db");
        subject
            .store
            .fetch(manifest, subject.key, subject.keys, &snapshot, cancel)
            .await?;
        let chores = boot::Chores {
            host: &self.host,
            cri: &self.cri,
            config: &self.config,
            place: &place,
            cancel,
        };
        chores.restore(&image).await?;
        // Its copy is all that is needed from here on.
        place.remove(&snapshot)?;
        let booted = chores.boot(&image).await?;
        let found = async {
            let read = booted.read(manifest).await?;
            let (findings, sentence) = verdict::verified(manifest, &read)?;
            told.reached(Proof::Verified, &findings, &sentence).await;
            if let Some(server) = drill {
                let (findings, sentence) = chores.drill(&server?, &booted, findings).await?;
                told.reached(Proof::Drilled, &findings, &sentence).await;
            }
            Ok(())
        };
        let found = tokio::select! {
            found = found => found,
            () = cancel.cancelled() => Err(ProofError::Interrupted),
        };
        let dismissed = booted.dismiss().await;
        found.and(dismissed)
    }
}
