//! `lockkeeper agent`: makes its own node match the intent.
//!
//! What comes in: the spec of one `ControlPlaneNode`, and what the host shows. What goes out: manifests in the
//! kubelet's static pod directory, and that object's status. May touch: this host's manifest directory and its
//! own state directory, the container runtime's socket, this node's own processes, its own object, its etcd member.
//!
//! | file | what |
//! | --- | --- |
//! | `ticket` | decides the one next act; pure |
//! | `executor`, `journal` | do it: journal first, then the file |
//! | `hand` | look, decide, act: what agent and guard share |
//! | [`guard`] | undoes when the kubelet cannot start the agent |
//! | `observe`, `cri`, `processes`, `probe`, `logs`, `certificates`, `directory` | what the host shows |
//! | `manifest`, `flags`, `host` | one manifest, and how it is changed to the byte |
//! | `preflight`, `rehearsal`, `rehearse` | checks before anything is changed |
//! | `desk` | one preflight at a time |
//! | `chore` | a program of an image that is on this node, as a static pod |
//! | `proof` | whether a backup can be restored: restores it, boots an etcd and an API server on it |
//! | `restore` | the engine of a restore of etcd, for agent and guard |
//! | `report` | the object: watch it, tell it |
//! | [`serve`] | the process around it: its port, its client |
//! | [`etcd`], [`backup`] | the local etcd member, and snapshots of it |
//! | `rescue` | the same hands without any API: `lockkeeper rescue` |

pub mod backup;
pub mod etcd;

mod certificates;
mod chore;
mod cri;
mod desk;
mod directory;
mod executor;
mod flags;
mod guard;
mod hand;
mod host;
mod journal;
mod logs;
mod manifest;
mod observe;
mod preflight;
mod probe;
mod processes;
mod proof;
mod rehearsal;
mod rehearse;
mod report;
pub(crate) mod rescue;
mod restore;
mod serve;
mod ticket;
mod time;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockkeeper_crds::Component;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use backup::Proving;
use cri::CriError;
use etcd::EtcdMember;
use guard::{Claim, Guard};
use hand::Hand;
use proof::Prover;
use report::Known;
use restore::Restorer;

pub(crate) use cri::Cri;
pub use guard::guard;
pub(crate) use host::{Host, remove_tree};
pub use proof::ProofConfig;
pub use serve::{ServeError, serve};

/// Snapshots in hand take their parts out of the store within this; the chart gives the pod more.
const CLOSING: Duration = Duration::from_secs(40);

/// A snapshot task that ended is started again after this.
const BACKUP_PAUSE: Duration = Duration::from_secs(5);

/// Where the agent is and what it may touch.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentConfig {
    /// The node's name as the API knows it; also the name of its `ControlPlaneNode`.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// The namespace of stores and backups: the agent's own.
    #[arg(long, env = "POD_NAMESPACE", default_value = "lockkeeper-system")]
    pub namespace: String,
    /// The container runtime's socket.
    #[arg(
        long,
        env = "CRI_SOCKET",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub cri_socket: String,
    /// The kubelet's static pod directory (`staticPodPath`).
    #[arg(long, default_value = "/etc/kubernetes/manifests")]
    pub manifest_directory: PathBuf,
    /// The journal's place. It must lie on the node's own disk.
    #[arg(long, default_value = "/var/lib/lockkeeper")]
    pub state_directory: PathBuf,
    /// The guard's static pod manifest, put on while an API server is changed: it undoes the change when the
    /// node boots into an API server that does not come up, and the kubelet therefore starts no agent.
    #[arg(long, env = "GUARD_MANIFEST", value_name = "FILE")]
    pub guard_manifest: Option<PathBuf>,
    /// How backups are proven.
    #[command(flatten)]
    pub proof: ProofConfig,
    /// Goes before every host path; `/` where the host's directories are mounted at their own paths.
    #[arg(long, default_value = "/", hide = true)]
    pub host_root: PathBuf,
}

impl AgentConfig {
    /// Where this node's own API server listens by its manifest, `host:port`: the first to be asked. None when
    /// the manifest does not say.
    #[must_use]
    pub fn own_api_server(&self) -> Option<String> {
        let host = self.host();
        processes::api_address(directory::scan(&host).manifest(Component::KubeApiserver)?)
    }

    fn host(&self) -> Host {
        Host::new(&self.host_root, &self.manifest_directory, &self.state_directory)
    }
}

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container runtime's socket is not given as one.
    #[error("{0}")]
    Cri(String),
    /// A part of the agent ended by itself, which none does.
    #[error("the agent's task {0} ended; the agent ends too, to be started anew")]
    Task(&'static str),
}

impl From<CriError> for Error {
    fn from(error: CriError) -> Self {
        Self::Cri(error.to_string())
    }
}

/// Runs the agent until `shutdown`.
///
/// # Guarantees
/// * Needs no API to begin, to finish or to undo what its journal says; `client` is only ever awaited in tasks
///   of their own.
/// * Killed at any moment and started again, it goes on where the journal says.
///
/// # Errors
/// When a flag cannot be used, or a task ended that never should.
pub async fn run(
    config: AgentConfig,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let host = config.host();
    let cri = Cri::new(&config.cri_socket)?;
    let Some(claim) = Claim::wait(&host, &shutdown).await else {
        return Ok(());
    };
    clear_chores(&host, &cri);
    let guard = Guard::new(host.clone(), config.guard_manifest.clone());
    let member = Arc::new(EtcdMember::from_host(&config.host_root, None));
    let prover = Prover::new(host.clone(), cri.clone(), config.proof.clone());
    if let Err(error) = prover.clear() {
        tracing::error!(%error, "what a proof left cannot be removed");
    }
    // Until the first look at the journal nobody knows.
    let (busy, tickets) = watch::channel(true);
    let proving = Proving { prover, tickets };
    let (known, _) = watch::channel(Known::default());
    let known = Arc::new(known);
    let (status, statuses) = watch::channel(None);
    let (etcd, etcd_seen) = watch::channel(None);
    let node = config.node_name.clone();

    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    {
        let (client, node, known, shutdown) = (client.clone(), node.clone(), known.clone(), shutdown.clone());
        tasks.spawn(async move {
            report::follow(client, node, known, shutdown).await;
            "watch"
        });
    }
    {
        let (client, node, known, shutdown) = (client.clone(), node.clone(), known.clone(), shutdown.clone());
        tasks.spawn(async move {
            report::tell(client, node, statuses, known, shutdown).await;
            "report"
        });
    }
    {
        let (member, known, shutdown) = (member.clone(), known.subscribe(), shutdown.clone());
        let host = host.clone();
        tasks.spawn(async move {
            work::watch_etcd(&host, &member, known, etcd, shutdown).await;
            "etcd"
        });
    }
    {
        let (client, namespace, node) = (client.clone(), config.namespace.clone(), node.clone());
        let (member, shutdown) = (member.clone(), shutdown.clone());
        tasks.spawn(async move {
            keep_backups(client, namespace, node, member, proving, shutdown).await;
            "backup"
        });
    }
    let bench = preflight::Bench {
        host: host.clone(),
        cri: cri.clone(),
        guard: guard.clone(),
        client,
        namespace: config.namespace,
        node,
        etcd: member,
    };
    let restorer = Restorer::open(restore::Tools {
        host: host.clone(),
        cri: cri.clone(),
        member: bench.etcd.clone(),
        guard: guard.clone(),
        fetch: Some(restore::by_api(bench.client.clone(), bench.namespace.clone())),
        node: bench.node.clone(),
    });
    let hand = Hand::open(host, cri, guard);
    let hands = work::Hands {
        hand,
        restorer,
        claim: Some(claim),
    };
    let mut work = work::Work::new(hands, bench, known.subscribe(), status, etcd_seen, busy);
    let ended = tokio::select! {
        () = work.run(&shutdown) => None,
        ended = tasks.join_next() => Some(ended),
    };
    // Whoever looks for a stale rehearsal later finds none.
    work.close().await;
    // Snapshots may take a while to end; whoever comes next need not wait for them to act.
    drop(work);
    if shutdown.is_cancelled() {
        // Each heeds the shutdown; a snapshot in hand takes its parts out of the store first.
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSING, all).await.is_err() {
            tracing::warn!("ended without waiting longer for what is in hand");
        }
        return Ok(());
    }
    match ended {
        Some(Some(Ok(name))) => Err(Error::Task(name)),
        Some(Some(Err(error))) => {
            tracing::error!(%error, "a task of the agent broke");
            Err(Error::Task("(broken)"))
        }
        _ => Err(Error::Task("work")),
    }
}

/// With the claim in hand, and none of its own begun: what stands there is a killed agent's.
fn clear_chores(host: &Host, cri: &Cri) {
    if let Err(error) = chore::clear(host) {
        tracing::error!(%error, "a stale chore cannot be removed");
    }
    // In its own time: a runtime that does not answer must not hold up a way back.
    let (cri, begun) = (cri.clone(), chrono::Utc::now());
    tokio::spawn(async move {
        if let Err(error) = chore::sweep(&cri, begun).await {
            tracing::warn!(%error, "containers of a stale chore are there still");
        }
    });
}

async fn keep_backups(
    client: kube::Client,
    namespace: String,
    node: String,
    member: Arc<EtcdMember>,
    proving: Proving,
    shutdown: CancellationToken,
) {
    let stores = backup::look_after_stores(client.clone(), namespace.clone(), node.clone(), shutdown.clone());
    let backups = async {
        while !shutdown.is_cancelled() {
            let run = backup::run(
                client.clone(),
                namespace.clone(),
                node.clone(),
                member.clone(),
                Some(proving.clone()),
                shutdown.clone(),
            );
            if let Err(error) = run.await {
                tracing::error!(%error, "snapshots stopped, starting them again");
            }
            tokio::select! {
                () = tokio::time::sleep(BACKUP_PAUSE) => {}
                () = shutdown.cancelled() => {}
            }
        }
    };
    // Boxed: together, and unoptimized, they are more than a thread's stack takes.
    tokio::join!(Box::pin(stores), Box::pin(backups));
}
