//! The guard: a second hand beside the agent's while a change could keep the agent itself from being started.
//!
//! kubeadm's kubelet asks its own node's API server which pods to run. After a power cut with a bad API server in
//! the manifest it starts its static pods and nothing else, so the agent, a pod of a `DaemonSet`, would never come
//! back to undo. While a ticket that changes the API server is live, one more static pod therefore stands in the
//! manifest directory: `lockkeeper guard`, with the agent's image and mounts, and neither a token nor an API.
//!
//! The two never act at once: who holds the [`Claim`] acts, the agent for as long as it runs, the guard for one
//! look at a time.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use lockkeeper_crds::{CheckResult, Component, Ticket};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cri::{CONTAINER_NAME, Cri, POD_NAME, RUNNING};
use super::directory::GUARD;
use super::etcd::EtcdMember;
use super::hand::Hand;
use super::host::{self, Host, read_limited};
use super::journal::JournalState;
use super::rescue;
use super::restore::{Restorer, Told, Tools};
use super::time::from_nanos;
use super::{AgentConfig, Error};

/// Between two tries to get the claim.
const PAUSE: Duration = Duration::from_millis(250);

/// Between two looks of the guard.
const LOOK: Duration = Duration::from_secs(1);

/// The kubelet starts all static pods at once: before the guard judges what runs, they have had this time to come.
const SETTLE: Duration = Duration::from_secs(10);

/// How long a guard may take to start: the kubelet looks every 20 s at the latest.
const START_LIMIT: Duration = Duration::from_secs(45);

/// How long it may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(15);

/// The name of its container and of its pod, in the chart.
const NAME: &str = "lockkeeper-guard";

/// A manifest is a few KiB.
const LARGEST: u64 = 256 * 1024;

/// The guard's manifest: put on before a change, taken off after it.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    host: Host,
    template: Option<PathBuf>,
}

impl Guard {
    /// `template`: the manifest as the chart made it; none for an agent that was started without one.
    pub(crate) fn new(host: Host, template: Option<PathBuf>) -> Self {
        Self { host, template }
    }

    fn path(&self) -> PathBuf {
        self.host.manifests().join(GUARD)
    }

    /// True for a change that may keep the kubelet from starting the agent.
    pub(crate) fn is_needed_for(ticket: &Ticket) -> bool {
        ticket
            .changes
            .iter()
            .any(|change| change.component == Component::KubeApiserver)
    }

    /// True when it could be put on: the agent was started with its manifest, and can read it.
    pub(crate) fn is_at_hand(&self) -> bool {
        let readable = |path| read_limited(path, LARGEST).is_ok_and(|bytes| !bytes.is_empty());
        self.template.as_deref().is_some_and(readable)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.path().exists()
    }

    /// Puts it on, durably; without a template there is none.
    pub(crate) fn put_on(&self) -> io::Result<()> {
        let Some(template) = &self.template else {
            return Ok(());
        };
        let bytes = read_limited(template, LARGEST)?;
        host::replace(&self.path(), &bytes, 0o600)
    }

    /// Takes it off.
    pub(crate) fn take_off(&self) -> io::Result<()> {
        host::remove(&self.path())
    }

    /// Puts it on, sees it run, takes it off: before a change is made that counts on it.
    pub(crate) async fn rehearse(&self, cri: &Cri, cancel: &CancellationToken) -> (CheckResult, String) {
        if self.template.is_none() {
            return (
                CheckResult::Warn,
                "The agent was started without --guard-manifest (the chart's agent.guard.enabled): after a power cut in the middle of a step, a bad API server would have to be taken back by hand on this node.".to_owned(),
            );
        }
        let begun = Utc::now();
        let started = match self.put_on() {
            Ok(()) => tokio::select! {
                () = cancel.cancelled() => Err("it was cancelled".to_owned()),
                started = seen(cri, begun, true, START_LIMIT) => started.then_some(()).ok_or_else(|| format!(
                    "it did not start within {} s: look into the kubelet's log for the pod {NAME} (a static pod cannot use imagePullSecrets: let the node itself pull the image, or go without the guard by the chart's agent.guard.enabled)",
                    START_LIMIT.as_secs()
                )),
            },
            Err(error) => Err(format!("{} cannot be written: {error}", self.path().display())),
        };
        if let Err(error) = self.take_off() {
            return (
                CheckResult::Block,
                format!("{} cannot be removed ({error}): remove it", self.path().display()),
            );
        }
        // A ticket may put the same pod on again at once, and the kubelet ends one before it begins the other.
        seen(cri, begun, false, GONE_LIMIT).await;
        match started {
            Ok(()) => (
                CheckResult::Pass,
                "The guard that undoes a step after a power cut starts on this node.".to_owned(),
            ),
            Err(why) => (
                CheckResult::Unknown,
                format!("The guard that undoes a step after a power cut: {why}."),
            ),
        }
    }
}

/// Waits until a guard's container that was made after `begun` runs, or none does.
async fn seen(cri: &Cri, begun: DateTime<Utc>, running: bool, limit: Duration) -> bool {
    let limit = Instant::now() + limit;
    loop {
        let there = cri.containers().await.is_ok_and(|all| {
            all.iter().any(|container| {
                container.label(CONTAINER_NAME) == NAME
                    && container.label(POD_NAME).starts_with(NAME)
                    && container.state == RUNNING
                    && from_nanos(container.created_at) >= begun
            })
        });
        if there == running {
            return true;
        }
        if Instant::now() >= limit {
            return false;
        }
        sleep(PAUSE).await;
    }
}

/// Held by the one process on this node that may act. The kernel gives it back when that process ends.
#[derive(Debug)]
pub(crate) struct Claim {
    _file: File,
}

impl Claim {
    /// The claim, unless another process has it.
    pub(crate) fn take(host: &Host) -> io::Result<Option<Self>> {
        let path = host.state().join("claim");
        // A lock needs no right to write: a disk that has become read-only does not keep the agent from acting.
        let file = File::open(&path).or_else(|_| {
            host::create_directory(host.state())?;
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
        })?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for it; none when `shutdown` came first.
    pub(crate) async fn wait(host: &Host, shutdown: &CancellationToken) -> Option<Self> {
        let mut told = false;
        while !shutdown.is_cancelled() {
            let why = match Self::take(host) {
                Ok(Some(claim)) => return Some(claim),
                Ok(None) => "another process of this node holds the claim".to_owned(),
                Err(error) => format!("the claim cannot be taken: {error}"),
            };
            if !std::mem::replace(&mut told, true) {
                tracing::info!(why, "waiting to act");
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = shutdown.cancelled() => {}
            }
        }
        None
    }
}

/// `lockkeeper guard`: whenever nobody else holds the claim, does what the journal says, with no API. Ends when the
/// manifest that it came from is taken off, which it does itself once no ticket and no restore is live.
///
/// # Errors
/// When the container runtime's socket is not given as one.
pub async fn guard(config: AgentConfig, shutdown: CancellationToken) -> Result<(), Error> {
    let host = config.host();
    let cri = Cri::new(&config.cri_socket)?;
    let guard = Guard::new(host.clone(), config.guard_manifest.clone());
    let mut hand = Hand::open(host.clone(), cri.clone(), guard.clone());
    // It begins no restore, and only goes on with what the journal says.
    let mut restorer = Restorer::open(Tools {
        host: host.clone(),
        cri,
        member: Arc::new(EtcdMember::from_host(&config.host_root, None)),
        guard,
        fetch: None,
        node: config.node_name.clone(),
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "guard");
    tokio::select! {
        () = sleep(SETTLE) => {}
        () = shutdown.cancelled() => {}
    }
    while !shutdown.is_cancelled() {
        let mut acted = false;
        match Claim::take(&host) {
            // A person has the node in hand.
            Ok(Some(_)) if rescue::in_hand(&host).is_some() => {}
            Ok(Some(_claim)) => {
                // The agent may have written since.
                hand.executor.reload();
                restorer.reload();
                acted = look(&mut hand, &mut restorer).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the claim cannot be taken"),
        }
        if !acted {
            tokio::select! {
                () = sleep(LOOK) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }
    Ok(())
}

/// One look at the node and what follows from it. True when something was done.
async fn look(hand: &mut Hand, restorer: &mut Restorer) -> bool {
    if let Some(why) = restorer.trouble() {
        tracing::error!(why, "no restore can be gone on with");
    }
    let free = hand.executor.journal().live().is_none();
    if restorer.is_going() {
        return restorer.step(Told::Nothing, free, true).await;
    }
    if let JournalState::Broken(why) = hand.executor.journal() {
        tracing::error!(why, "nothing can be undone");
        return false;
    }
    let wanted = hand.images(None);
    let mut seen = hand.observer.observe(&wanted, true).await.seen;
    seen.alone = true;
    hand.see_out(&seen).await;
    hand.act(seen, || None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        (root, host)
    }

    #[test]
    fn only_one_has_the_claim_and_an_ended_process_has_none() {
        let (_root, host) = node();
        let first = Claim::take(&host).unwrap();
        assert!(first.is_some());
        assert!(Claim::take(&host).unwrap().is_none());
        drop(first);
        assert!(Claim::take(&host).unwrap().is_some());
    }

    #[test]
    fn a_guard_is_put_on_and_taken_off_and_a_missing_template_is_an_error() {
        let (root, host) = node();
        let template = root.path().join("guard.yaml");
        let guard = Guard::new(host.clone(), Some(template.clone()));
        assert!(guard.put_on().is_err());
        fs::write(&template, "kind: Pod").unwrap();
        guard.put_on().unwrap();
        assert!(guard.is_on());
        guard.take_off().unwrap();
        guard.take_off().unwrap();
        assert!(!guard.is_on());
    }
}
