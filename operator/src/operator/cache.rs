//! What the operator knows of the cluster without asking: one watch a kind, kept by kube's reflectors.
//!
//! Each change rings [`Cache::changed`], or [`Cache::backups_changed`], or both. A watch that breaks is opened again within seconds, through any
//! API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource, ResourceExt as _};
use kube_runtime::WatchStreamExt as _;
use kube_runtime::reflector::{self, Store};
use kube_runtime::watcher::{self, ExponentialBackoff, watcher};
use lockkeeper_crds::{
    ClusterVersion, ControlPlaneNode, EtcdBackup, EtcdBackupSchedule, EtcdBackupStore, EtcdRestore,
};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// The objects that decisions are made on.
pub(super) struct Cache {
    pub(super) versions: Store<ClusterVersion>,
    pub(super) nodes: Store<ControlPlaneNode>,
    pub(super) kube: Store<Node>,
    pub(super) backups: Store<EtcdBackup>,
    pub(super) stores: Store<EtcdBackupStore>,
    pub(super) schedules: Store<EtcdBackupSchedule>,
    pub(super) restores: Store<EtcdRestore>,
    /// Rung at each change of anything but a schedule.
    pub(super) changed: Arc<Notify>,
    /// Rung at each change of a schedule, a backup or a store. A bell of its own: a bell wakes one sleeper.
    pub(super) backups_changed: Arc<Notify>,
    /// Rung at each change of a restore, a node or a backup.
    pub(super) restores_changed: Arc<Notify>,
    /// Dropped with the cache, and the watches with it.
    _watches: JoinSet<()>,
}

impl Cache {
    /// Starts the watches. The stores fill as the answers come in; see [`Cache::ready`].
    pub(super) fn start(client: &Client, namespace: &str) -> Self {
        let [changed, backups_changed, restores_changed] = std::array::from_fn(|_| Arc::new(Notify::new()));
        let mut watches = JoinSet::new();
        let (one, other, both) = (
            [&changed].map(Arc::clone),
            [&backups_changed].map(Arc::clone),
            [&changed, &backups_changed].map(Arc::clone),
        );
        let nodes = [&changed, &restores_changed].map(Arc::clone);
        let all = [&changed, &backups_changed, &restores_changed].map(Arc::clone);
        Self {
            versions: keep(Api::all(client.clone()), &one, &mut watches),
            nodes: keep(Api::all(client.clone()), &nodes, &mut watches),
            kube: keep(Api::all(client.clone()), &one, &mut watches),
            backups: keep(Api::namespaced(client.clone(), namespace), &all, &mut watches),
            stores: keep(Api::namespaced(client.clone(), namespace), &both, &mut watches),
            schedules: keep(Api::namespaced(client.clone(), namespace), &other, &mut watches),
            restores: keep(Api::namespaced(client.clone(), namespace), &nodes, &mut watches),
            changed,
            backups_changed,
            restores_changed,
            _watches: watches,
        }
    }

    /// Waits until every kind but the schedules has been listed once: an empty store must not be taken for "there is none".
    pub(super) async fn ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.versions.wait_until_ready().await?;
        self.nodes.wait_until_ready().await?;
        self.kube.wait_until_ready().await?;
        self.backups.wait_until_ready().await?;
        self.stores.wait_until_ready().await
    }

    /// Waits until the schedules have been listed once.
    pub(super) async fn schedules_ready(&self) -> Result<(), reflector::store::WriterDropped> {
        self.schedules.wait_until_ready().await
    }

    /// The one `ClusterVersion`.
    pub(super) fn version(&self) -> Option<ClusterVersion> {
        self.versions.state().first().map(|v| v.as_ref().clone())
    }

    /// Every node's report, by its name.
    pub(super) fn reports(&self) -> BTreeMap<String, ControlPlaneNode> {
        self.nodes
            .state()
            .iter()
            .map(|n| (n.name_any(), n.as_ref().clone()))
            .collect()
    }

    /// An `EtcdBackup` of the operator's namespace.
    pub(super) fn backup(&self, name: &str) -> Option<EtcdBackup> {
        self.backups
            .state()
            .iter()
            .find(|b| b.name_any() == name)
            .map(|b| b.as_ref().clone())
    }

    /// Whether an `EtcdBackupStore` of this name exists.
    pub(super) fn has_store(&self, name: &str) -> bool {
        self.stores.state().iter().any(|s| s.name_any() == name)
    }
}

/// Watches one kind that not every installation has, for as long as the set lives; the bell rings at each change.
pub(super) fn watched<K>(api: Api<K>, bell: &Arc<Notify>, watches: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    keep(api, &[Arc::clone(bell)], watches)
}

/// Watches one kind for as long as the set lives.
fn keep<K>(api: Api<K>, bells: &[Arc<Notify>], watches: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let (reader, writer) = reflector::store();
    let bells = bells.to_vec();
    // At most 3 s between two tries: during an upgrade the server that a watch hangs on goes away, and
    // every second that is not seen is a second that nothing moves.
    let backoff = backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(300))
        .with_max_delay(Duration::from_secs(3))
        .without_max_times()
        .with_jitter();
    let stream = watcher(api, watcher::Config::default())
        .modify(|object| object.managed_fields_mut().clear())
        .backoff(ExponentialBackoff::from(backoff))
        .reflect(writer)
        .inspect_err(|error| tracing::debug!(kind = %K::kind(&()), %error, "watch broken, opened again"));
    watches.spawn(async move {
        stream
            .for_each(|_| async { bells.iter().for_each(|bell| bell.notify_one()) })
            .await;
    });
    reader
}
