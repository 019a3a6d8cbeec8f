//! Lockkeeper as a scenario meets it: its objects through the API, and beside them the truth, looked up without
//! its help: files on the nodes' disks, the processes that run, each API server asked itself.
//!
//! In: a [`Scene`]. Out: what was seen. May touch: the ClusterVersion, and nothing else of Lockkeeper's.

mod backups;
mod book;
pub mod journal;
mod snapshot;
mod targets;
mod truth;
mod watcher;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use lockkeeper_crds::{
    BackupPolicy, ClusterVersion, ClusterVersionSpec, ClusterVersionStatus, ControlPlaneNode, EtcdBackup,
    LocalReference, State, Strategy,
};

use crate::cache::write_whole;
use crate::install::NAMESPACE;
use crate::recipes::START;
use crate::scene::{Look, Scene};

pub use backups::{Backups, unfinished};
pub use book::Book;
pub use snapshot::{check_snapshot, published_backups, restored};
pub use targets::{BAD_TARGET, break_target_on, import_bad_target, mend_target_on};
pub use truth::{Manifests, as_before, manifests, runs};
pub use watcher::Watcher;

/// The name of the one ClusterVersion.
pub const CLUSTER: &str = "cluster";
/// The name of the chart's store.
const STORE: &str = "default";
const MINUTE: Duration = Duration::from_secs(60);
/// An upgrade of three nodes takes 2 to 5 minutes on two cores; other work of the machine slows it.
pub const UPGRADE: Duration = Duration::from_secs(20 * 60);

/// Short waits for scenarios whose target fails: they are what the scenario then takes.
#[must_use]
pub fn impatient() -> Strategy {
    Strategy {
        ready_seconds: 90,
        confirm_seconds: 60,
        ..Strategy::default()
    }
}

/// The spec that scenarios and the demo apply.
#[must_use]
pub fn spec(version: &str, strategy: Strategy) -> ClusterVersionSpec {
    ClusterVersionSpec {
        version: version.to_owned(),
        mode: Default::default(),
        paused: false,
        retry: 0,
        backup: BackupPolicy {
            required: true,
            store_ref: Some(LocalReference { name: STORE.into() }),
            ..BackupPolicy::default()
        },
        rollback: Default::default(),
        strategy,
        history_limit: 10,
    }
}

/// A running container's restarts, by pod and container.
pub type Restarts = BTreeMap<String, i32>;

/// Lockkeeper in a scene.
#[derive(Clone)]
pub struct Keeper<'a> {
    scene: &'a Scene,
    client: kube::Client,
}

impl std::fmt::Debug for Keeper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

impl<'a> Keeper<'a> {
    /// Lockkeeper installed in a cluster that is whole, with a ClusterVersion at the version that runs.
    pub async fn at_start(scene: &'a Scene, strategy: Strategy) -> Result<Self> {
        scene.wait_until_whole(MINUTE * 3).await?;
        install_once(scene)?;
        let keeper = Self::at_rest(scene, START, strategy).await?;
        runs(scene, START).await?;
        Ok(keeper)
    }

    /// Lockkeeper in a lab where it is installed, with a ClusterVersion at the version that runs.
    pub async fn at_rest(scene: &'a Scene, version: &str, strategy: Strategy) -> Result<Self> {
        let keeper = Self::installed(scene).await?;
        keeper.apply(&spec(version, strategy)).await?;
        keeper.idle_at(version).await?;
        Ok(keeper)
    }

    /// Lockkeeper in a lab where it is installed.
    pub async fn installed(scene: &'a Scene) -> Result<Self> {
        Ok(Self {
            scene,
            client: scene.client().await?,
        })
    }

    /// The client it asks with: through the load balancer.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    fn versions(&self) -> Api<ClusterVersion> {
        Api::all(self.client.clone())
    }

    /// Applies the ClusterVersion, as a person would.
    pub async fn apply(&self, spec: &ClusterVersionSpec) -> Result<()> {
        let object = ClusterVersion::new(CLUSTER, spec.clone());
        let versions = self.versions();
        let manager = PatchParams::apply("lab").force();
        self.scene
            .wait_for("the ClusterVersion to be taken", MINUTE, || async {
                versions.patch(CLUSTER, &manager, &Patch::Apply(&object)).await?;
                Ok(Look::Done(()))
            })
            .await
    }

    /// Changes the one field.
    pub async fn bump(&self, version: &str) -> Result<()> {
        self.scene.say(format_args!("spec.version: {version}"));
        let versions = self.versions();
        let patch = serde_json::json!({"spec": {"version": version}});
        self.scene
            .wait_for("spec.version to be taken", MINUTE, || async {
                versions
                    .patch(CLUSTER, &PatchParams::default(), &Patch::Merge(&patch))
                    .await?;
                Ok(Look::Done(()))
            })
            .await
    }

    /// The object now.
    pub async fn read(&self) -> Result<ClusterVersion> {
        Ok(self.versions().get(CLUSTER).await?)
    }

    /// Its status, once it answers the present spec.
    pub async fn status(&self) -> Result<ClusterVersionStatus> {
        let object = self.read().await?;
        let status = object.status.context("no status yet")?;
        ensure!(
            status.observed_generation == object.metadata.generation,
            "the status answers an older spec"
        );
        Ok(status)
    }

    /// Waits for the condition `Settled` of the present spec, and returns its reason with the status. Blocked is
    /// waited through: it is an end for a person who waits, but its checks are made again by themselves.
    pub async fn settled(&self, limit: Duration) -> Result<(String, ClusterVersionStatus)> {
        self.ended(limit, |reason| reason != "Blocked").await
    }

    async fn ended(
        &self,
        limit: Duration,
        counts: impl Fn(&str) -> bool,
    ) -> Result<(String, ClusterVersionStatus)> {
        self.scene
            .wait_for("the cluster to settle", limit, || async {
                let object = self.read().await?;
                let status = object.status.context("no status yet")?;
                let settled = status
                    .conditions
                    .iter()
                    .find(|condition| condition.type_ == "Settled")
                    .context("no condition Settled yet")?;
                let answers = settled.observed_generation == object.metadata.generation;
                Ok(
                    if settled.status == "True" && answers && counts(&settled.reason) {
                        Look::Done((settled.reason.clone(), status))
                    } else {
                        Look::NotYet(format!("{:?}: {}", status.state, status.summary))
                    },
                )
            })
            .await
    }

    /// Waits until it has settled with this reason; another end is an error.
    pub async fn settles(&self, wanted: &str, limit: Duration) -> Result<ClusterVersionStatus> {
        let counts = |reason: &str| reason == wanted || reason != "Blocked";
        let (reason, status) = self.ended(limit, counts).await?;
        ensure!(
            reason == wanted,
            "it settled as {reason}, not {wanted}: {}",
            status.summary
        );
        Ok(status)
    }

    /// Waits until the status of the present spec is in a state that is accepted.
    pub async fn reaches(
        &self,
        what: &str,
        limit: Duration,
        accepted: impl Fn(&ClusterVersionStatus) -> bool,
    ) -> Result<ClusterVersionStatus> {
        self.scene
            .wait_for(what, limit, || async {
                let status = self.status().await?;
                Ok(if accepted(&status) {
                    Look::Done(status)
                } else {
                    Look::NotYet(format!("{:?}: {}", status.state, status.summary))
                })
            })
            .await
    }

    /// Waits until it rests at a version.
    pub async fn idle_at(&self, version: &str) -> Result<()> {
        let there =
            |s: &ClusterVersionStatus| s.state == State::Idle && s.version.as_deref() == Some(version);
        self.reaches(&format!("it to rest at {version}"), MINUTE * 5, there)
            .await
            .map(drop)
    }

    /// Sets the version back and waits until the cluster rests there, for whatever comes next.
    pub async fn back_to_start(&self) -> Result<()> {
        self.bump(START).await?;
        self.idle_at(START).await
    }

    /// Every ControlPlaneNode by name.
    pub async fn nodes(&self) -> Result<BTreeMap<String, ControlPlaneNode>> {
        let nodes: Api<ControlPlaneNode> = Api::all(self.client.clone());
        let found = nodes.list(&ListParams::default()).await?;
        Ok(found
            .items
            .into_iter()
            .filter_map(|node| Some((node.metadata.name.clone()?, node)))
            .collect())
    }

    /// The highest ticket number of each node.
    pub async fn ticket_numbers(&self) -> Result<BTreeMap<String, i64>> {
        let number = |node: ControlPlaneNode| node.spec.ticket.map_or(0, |ticket| ticket.number);
        let nodes = self.nodes().await?;
        Ok(nodes
            .into_iter()
            .map(|(name, node)| (name, number(node)))
            .collect())
    }

    /// Every EtcdBackup.
    pub async fn backups(&self) -> Result<Vec<EtcdBackup>> {
        let backups: Api<EtcdBackup> = Api::namespaced(self.client.clone(), NAMESPACE);
        Ok(backups.list(&ListParams::default()).await?.items)
    }

    /// How often each container of ours was restarted. A pod that was replaced has another name.
    pub async fn restarts(&self) -> Result<Restarts> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let mut all = Restarts::new();
        for pod in pods.list(&ListParams::default()).await? {
            let name = pod.metadata.name.unwrap_or_default();
            for container in pod.status.and_then(|s| s.container_statuses).unwrap_or_default() {
                all.insert(format!("{name}/{}", container.name), container.restart_count);
            }
        }
        ensure!(!all.is_empty(), "no pod of Lockkeeper is there");
        Ok(all)
    }

    /// Fails if a pod of ours was replaced or restarted since.
    pub async fn not_restarted_since(&self, before: &Restarts) -> Result<()> {
        let now = self.restarts().await?;
        ensure!(
            now == *before,
            "Lockkeeper's pods were restarted: {before:?} before, {now:?} after"
        );
        Ok(())
    }

    /// The node on which the leading operator runs.
    pub async fn leader_node(&self) -> Result<String> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        let lease = leases.get("lockkeeper-operator").await?;
        let holder = lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .filter(|holder| !holder.is_empty())
            .context("nobody leads")?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        for pod in pods.list(&ListParams::default()).await? {
            let name = pod.metadata.name.unwrap_or_default();
            if holder.starts_with(&name) {
                return pod
                    .spec
                    .and_then(|spec| spec.node_name)
                    .context("the leader has no node");
            }
        }
        bail!("the leader {holder} is no pod")
    }

    /// The version that `kubeadm join` would take.
    pub async fn kubeadm_version(&self) -> Result<String> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "kube-system");
        let map = maps.get("kubeadm-config").await?;
        let text = map
            .data
            .and_then(|mut data| data.remove("ClusterConfiguration"))
            .context("kubeadm-config has no ClusterConfiguration")?;
        let parsed: serde_yaml::Value = serde_yaml::from_str(&text)?;
        parsed
            .get("kubernetesVersion")
            .and_then(serde_yaml::Value::as_str)
            .map(str::to_owned)
            .context("kubeadm-config names no version")
    }
}

/// A lab that is used again has it already.
fn install_once(scene: &Scene) -> Result<()> {
    let marker = scene.file("installed");
    let what = match &scene.install.binary {
        Some(binary) => {
            let about = std::fs::metadata(binary)
                .with_context(|| format!("there is no lockkeeper at {}: `make build`", binary.display()))?;
            format!("{} {} {:?}", binary.display(), about.len(), about.modified()?)
        }
        None => bail!("no `lockkeeper` lies beside this program: `make build`, or give --image-from BINARY"),
    };
    if std::fs::read_to_string(&marker).is_ok_and(|there| there == what) {
        return Ok(());
    }
    scene.lab.install(&scene.install, &scene.progress)?;
    write_whole(&marker, what.as_bytes())
}
