//! A program of an image that is on this node, run beside the components: `etcdutl` of the etcd image, an `etcd`
//! on a copy of its data.
//!
//! What comes in: a [`Chore`]. What goes out: the last words of a program that ended well, or a server that
//! stands until it is dismissed. May touch: one manifest of its own in the kubelet's static pod directory, and
//! the containers that come of it.
//!
//! A static pod, as the rehearsal is: the kubelet starts it with an API or without one, in the node's own
//! runtime, cgroups and image store, and this process needs no right to do so but the one to write manifests.
//!
//! Each run is a pod of its own name and UID. A kubelet that has heard nothing from an API since it started takes
//! no pod away and begins no other of the same name (ARCHITECTURE.md, "The guard"), so nothing here waits for an
//! earlier run to go, and what does not go by itself is ended by the runtime.

mod pod;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cri::{Container, ContainerStatus, Cri, CriError, EXITED, POD_NAME, POD_UID, RUNNING};
use super::host::{self, Host};
use super::logs;
use super::time::from_nanos;
use crate::store::unique;

/// Begins the name of every manifest and pod of a chore: no others are ours to clear away.
pub(crate) const PREFIX: &str = "lockkeeper-chore-";

/// The kubelet looks every 20 s at the latest, and the image is on the node. But while its API server accepts and does not
/// answer, as one does whose etcd is lost, the kubelet waits 34 s for it, in its one loop, wherever it deletes or makes a
/// mirror pod: one to delete for each static pod that went before, and one to make.
const START_LIMIT: Duration = Duration::from_secs(240);

/// A kubelet that minds its pods ends one within seconds of its manifest's going. After that the runtime is asked.
const GRACE: Duration = Duration::from_secs(8);

/// How long what was killed may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(20);

/// How often the runtime is asked meanwhile.
const PAUSE: Duration = Duration::from_millis(500);

/// A path of the host inside a chore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As the host names it. It must exist.
    pub(crate) host: PathBuf,
    /// Where the program finds it.
    pub(crate) inside: PathBuf,
    pub(crate) read_only: bool,
}

impl Mount {
    /// The same path inside as outside.
    pub(crate) fn same(path: impl Into<PathBuf>, read_only: bool) -> Self {
        let host = path.into();
        Self {
            inside: host.clone(),
            host,
            read_only,
        }
    }
}

/// A program to run. It runs as root with no capability but to read and write files whoever owns them, on a root
/// file system that it cannot write to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chore {
    /// What it is for, in letters, digits and dashes, e.g. `verify`: `lockkeeper-chore-verify.yaml`. One at a time.
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    /// Directories that live and die with it.
    pub(crate) scratch: Vec<PathBuf>,
    /// On the node's own network; otherwise in the pod network, where a node without its CNI starts nothing.
    pub(crate) host_network: bool,
    /// Bytes; beyond them it is killed.
    pub(crate) memory_limit: Option<u64>,
    /// Thousandths of a processor.
    pub(crate) cpu_limit: Option<u32>,
    /// True: the node's memory running out takes it last, as it does the components. False: before other pods.
    pub(crate) critical: bool,
}

/// Why a chore was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChoreError {
    #[error("{path} cannot be written: {source}")]
    PutOn { path: String, source: io::Error },
    #[error("{path} cannot be removed ({source}): remove it")]
    TakeOff { path: String, source: io::Error },
    #[error(transparent)]
    Runtime(#[from] CriError),
    #[error(
        "{command} was not started within {seconds} s: look into the kubelet's log on this node for the pod {pod} (is its image {image} there, or can it be pulled?)"
    )]
    NotStarted {
        command: String,
        pod: String,
        image: String,
        seconds: u64,
    },
    #[error("{command} ended with exit code {code}: {said}")]
    Failed {
        command: String,
        code: i32,
        /// Its own words, or the runtime's.
        said: String,
    },
    #[error("{command} ran out of the {} MiB of memory that it is given", limit.unwrap_or(0) / (1024 * 1024))]
    OutOfMemory { command: String, limit: Option<u64> },
    #[error("{command} was not done within {seconds} s")]
    Deadline { command: String, seconds: u64 },
    #[error("cancelled")]
    Cancelled,
    #[error("its containers did not go within {seconds} s")]
    Lingers { seconds: u64 },
}

impl Chore {
    /// Runs a program to its end. What it wrote last, at most 16 KiB of it.
    ///
    /// # Guarantees
    /// * Its manifest is gone when this returns, also when the future is dropped; its container has ended too, or
    ///   the error says otherwise.
    ///
    /// # Assumptions
    /// * The caller holds the [`super::guard::Claim`]: no other process of this node runs or clears chores.
    ///
    /// # Errors
    /// When it does not start, ends otherwise than with 0, takes longer than `limit`, or at `cancel`.
    pub(crate) async fn run(
        &self,
        host: &Host,
        cri: &Cri,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<String, ChoreError> {
        let standing = self.put_on(host, cri)?;
        let ended = tokio::select! {
            ended = tokio::time::timeout(limit, standing.until(Stage::Ended)) => ended.unwrap_or_else(|_| Err(ChoreError::Deadline {
                command: self.shown(),
                seconds: limit.as_secs(),
            })),
            () = cancel.cancelled() => Err(ChoreError::Cancelled),
        };
        // The reason that it failed says more than a container that is slow to go.
        let dismissed = standing.dismiss().await;
        let said = ended?;
        dismissed.map(|()| said)
    }

    /// Starts a server. Whether it serves is for the caller to ask; meanwhile [`Standing::check`] tells why it
    /// does not.
    ///
    /// # Guarantees
    /// * Its manifest is taken off by [`Standing::dismiss`], or when the [`Standing`] is dropped.
    ///
    /// # Errors
    /// When it is not started within `limit`, has ended at once, or at `cancel`.
    pub(crate) async fn stand(
        &self,
        host: &Host,
        cri: &Cri,
        limit: Duration,
        cancel: &CancellationToken,
    ) -> Result<Standing, ChoreError> {
        let standing = self.put_on(host, cri)?;
        let begun = tokio::select! {
            begun = tokio::time::timeout(limit, standing.until(Stage::Runs)) => begun.unwrap_or_else(|_| Err(standing.not_started(limit))),
            () = cancel.cancelled() => Err(ChoreError::Cancelled),
        };
        match begun {
            Ok(_) => Ok(standing),
            Err(error) => {
                if let Err(error) = standing.dismiss().await {
                    tracing::warn!(chore = self.name, %error, "a chore that did not start is slow to go");
                }
                Err(error)
            }
        }
    }

    fn put_on(&self, host: &Host, cri: &Cri) -> Result<Standing, ChoreError> {
        let uid = unique();
        let pod = format!("{PREFIX}{}-{}", self.name, uid.get(..8).unwrap_or_default());
        let path = host.manifests().join(format!("{PREFIX}{}.yaml", self.name));
        let shown = path.display().to_string();
        let text = pod::render(self, &pod, &uid).map_err(|why| ChoreError::PutOn {
            path: shown.clone(),
            source: io::Error::other(why),
        })?;
        host::replace(&path, text.as_bytes(), 0o600)
            .map_err(|source| ChoreError::PutOn { path: shown, source })?;
        tracing::debug!(chore = self.name, pod, "put on");
        Ok(Standing {
            chore: self.clone(),
            pod,
            uid,
            manifest: Manifest(path),
            host: host.clone(),
            cri: cri.clone(),
        })
    }

    /// For a sentence: the program and what it was told first.
    fn shown(&self) -> String {
        let words = self.command.iter().take_while(|word| !word.starts_with('-'));
        words.map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// A manifest in the static pod directory; gone when this is.
#[derive(Debug)]
struct Manifest(PathBuf);

impl Drop for Manifest {
    fn drop(&mut self) {
        if let Err(error) = host::remove(&self.0) {
            tracing::error!(%error, path = %self.0.display(), "a chore's manifest cannot be removed");
        }
    }
}

/// How far a chore is to be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Runs,
    Ended,
}

/// What one look at the runtime shows.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    Absent,
    Waits,
    /// It has come to the stage, and what it said.
    Done(String),
}

/// A server that stands.
#[derive(Debug)]
pub(crate) struct Standing {
    chore: Chore,
    pod: String,
    uid: String,
    manifest: Manifest,
    host: Host,
    cri: Cri,
}

impl Standing {
    /// Looks whether it runs still.
    ///
    /// # Errors
    /// Why it ended, or why the runtime could not be asked.
    pub(crate) async fn check(&self) -> Result<(), ChoreError> {
        self.look(Stage::Runs).await.map(drop)
    }

    /// Takes its manifest off and sees its containers go.
    ///
    /// # Errors
    /// When the manifest cannot be removed, or a container is still there: it then has what it was given still.
    pub(crate) async fn dismiss(self) -> Result<(), ChoreError> {
        host::remove(&self.manifest.0).map_err(|source| ChoreError::TakeOff {
            path: self.manifest.0.display().to_string(),
            source,
        })?;
        see_off(&self.cri, |c| c.label(POD_UID) == self.uid).await
    }

    async fn until(&self, stage: Stage) -> Result<String, ChoreError> {
        // When it was last there, or put on; and when the runtime last answered.
        let (mut there, mut heard) = (Instant::now(), Instant::now());
        loop {
            match self.look(stage).await {
                Ok(Look::Done(said)) => return Ok(said),
                Ok(Look::Waits) => (there, heard) = (Instant::now(), Instant::now()),
                Ok(Look::Absent) if there.elapsed() < START_LIMIT => heard = Instant::now(),
                Ok(Look::Absent) => return Err(self.not_started(START_LIMIT)),
                Err(ChoreError::Runtime(_)) if heard.elapsed() < START_LIMIT => {}
                Err(error) => return Err(error),
            }
            sleep(PAUSE).await;
        }
    }

    async fn look(&self, stage: Stage) -> Result<Look, ChoreError> {
        let all = self.cri.containers().await?;
        let Some(container) = all.into_iter().find(|c| c.label(POD_UID) == self.uid) else {
            return Ok(Look::Absent);
        };
        if container.state != EXITED {
            let runs = container.state == RUNNING && stage == Stage::Runs;
            return Ok(if runs {
                Look::Done(String::new())
            } else {
                Look::Waits
            });
        }
        let Some(status) = self.cri.container(&container.id).await? else {
            return Ok(Look::Absent);
        };
        let log = self.host.reach(Path::new(&status.log_path));
        judge(&self.chore, stage, &status, &logs::tail(&log)).map(Look::Done)
    }

    fn not_started(&self, limit: Duration) -> ChoreError {
        ChoreError::NotStarted {
            command: self.chore.shown(),
            pod: self.pod.clone(),
            image: self.chore.image.clone(),
            seconds: limit.min(START_LIMIT).as_secs(),
        }
    }
}

/// What the end of a program means.
fn judge(chore: &Chore, stage: Stage, status: &ContainerStatus, log: &str) -> Result<String, ChoreError> {
    if status.exit_code == 0 && stage == Stage::Ended {
        return Ok(log.to_owned());
    }
    if status.reason == "OOMKilled" {
        return Err(ChoreError::OutOfMemory {
            command: chore.shown(),
            limit: chore.memory_limit,
        });
    }
    Err(ChoreError::Failed {
        command: chore.shown(),
        code: status.exit_code,
        said: last_words(status, &logs::sentence(log)),
    })
}

/// Why a container ended: what it said itself, or what the runtime says of it.
pub(crate) fn last_words(status: &ContainerStatus, said: &str) -> String {
    [said, &status.message, &status.reason]
        .into_iter()
        .find(|s| !s.is_empty())
        .unwrap_or_default()
        .to_owned()
}

/// Waits until none of these containers runs; one that the kubelet does not end is killed.
async fn see_off(cri: &Cri, ours: impl Fn(&Container) -> bool) -> Result<(), ChoreError> {
    if gone(cri, &ours, GRACE).await {
        return Ok(());
    }
    let all = cri.containers().await?;
    for container in all.iter().filter(|c| ours(c) && c.state == RUNNING) {
        cri.kill(&container.id).await?;
    }
    if gone(cri, &ours, GONE_LIMIT).await {
        return Ok(());
    }
    Err(ChoreError::Lingers {
        seconds: (GRACE + GONE_LIMIT).as_secs(),
    })
}

/// Waits until the runtime says that none of these containers runs; false when it does not come to that.
pub(crate) async fn gone(cri: &Cri, ours: impl Fn(&Container) -> bool, limit: Duration) -> bool {
    let limit = Instant::now() + limit;
    loop {
        match cri.containers().await {
            Ok(all) if !all.iter().any(|c| ours(c) && c.state == RUNNING) => return true,
            _ if Instant::now() >= limit => return false,
            _ => sleep(PAUSE).await,
        }
    }
}

/// Clears away the manifests that a process left which was killed. Whoever calls this holds the
/// [`super::guard::Claim`] and has no chore in hand.
///
/// # Errors
/// When a manifest cannot be removed.
pub(crate) fn clear(host: &Host) -> io::Result<()> {
    for entry in fs::read_dir(host.manifests())? {
        let entry = entry?;
        if is_manifest(&entry.file_name().to_string_lossy()) {
            host::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Sees containers go that such a process left: those made before `begun`.
///
/// # Errors
/// When one does not go, or the runtime does not answer.
pub(crate) async fn sweep(cri: &Cri, begun: DateTime<Utc>) -> Result<(), ChoreError> {
    see_off(cri, |c| {
        c.label(POD_NAME).starts_with(PREFIX) && from_nanos(c.created_at) < begun
    })
    .await
}

/// True for the name of a chore's manifest.
pub(crate) fn is_manifest(file: &str) -> bool {
    file.starts_with(PREFIX) && file.ends_with(".yaml")
}

#[cfg(test)]
#[path = "chore_tests.rs"]
mod tests;
