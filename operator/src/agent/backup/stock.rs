//! Looks into the stores: can they hold a backup, and do they hold what the `EtcdBackup`s say.
//!
//! | | |
//! | --- | --- |
//! | comes in | `EtcdBackupStore`s, by one watch; at each look the backups that lie there, and the `EtcdBackup`s |
//! | goes out | the store's conditions, and what no object stands for; `Stored` = False of this node's backups that are gone |
//! | may touch | a probe in the store, those statuses |
//!
//! A restore of etcd takes the objects back to an older state, and not what lies in a store. No watch outlives a restore,
//! so one that begins anew is reason enough to look again.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::OptionFuture;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt as _};
use lockkeeper_crds::{EtcdBackup, EtcdBackupStore, Unclaimed};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::report::{Report, within};
use crate::store::{Fared, Listed, Store, StoreError, folder, publish_availability};

/// Between two looks at a store that is well.
const WELL: Duration = Duration::from_secs(6 * 3600);

/// Between two looks at one that is not.
const ILL: Duration = Duration::from_secs(300);

/// Within which the nodes look one after the other.
const SPREAD: Duration = Duration::from_secs(10);

/// So many that no object stands for are told; objects are of a megabyte at most.
const TOLD: usize = 100;

/// Why a look was not finished.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Api(String),
}

/// Looks into every store of `namespace` when it begins, when one is made or changed, and a few times a day, until
/// `shutdown` and 18 s at most.
pub(crate) async fn look_after_stores(
    client: kube::Client,
    namespace: String,
    node: String,
    shutdown: CancellationToken,
) {
    let eye = Eye {
        client,
        namespace,
        node,
    };
    let mut events = pin!(watcher(eye.stores(), watcher::Config::default()).default_backoff());
    let mut due = Due::new(&eye.node);
    while !shutdown.is_cancelled() {
        let wake = OptionFuture::from(due.wake().map(tokio::time::sleep_until));
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => due.see(&event),
                Some(Err(error)) => tracing::warn!(%error, "EtcdBackupStores cannot be watched; trying again"),
                None => return,
            },
            Some(()) = wake => {
                if let Some(name) = due.next() {
                    let well = eye.look(&name, &shutdown).await;
                    due.looked(&name, well);
                }
            }
            () = shutdown.cancelled() => {}
        }
    }
}

/// When each store is looked into next.
struct Due {
    /// Until this node's turn.
    turn: Duration,
    stores: BTreeMap<String, Look>,
}

struct Look {
    generation: Option<i64>,
    at: Instant,
}

impl Due {
    fn new(node: &str) -> Self {
        let mut hash = DefaultHasher::new();
        node.hash(&mut hash);
        let most = SPREAD.as_millis() as u64;
        Self {
            turn: Duration::from_millis(hash.finish() % most),
            stores: BTreeMap::new(),
        }
    }

    fn see(&mut self, event: &Event<EtcdBackupStore>) {
        match event {
            Event::Apply(store) | Event::InitApply(store) => {
                let (generation, now) = (store.metadata.generation, Instant::now());
                let known = self.stores.get_mut(&store.name_any());
                match known.filter(|look| look.generation == generation) {
                    // Somebody found that it fails.
                    Some(look) if is_ill(store) => look.at = look.at.min(now + ILL),
                    Some(_) => {}
                    None => {
                        let at = now + self.turn;
                        self.stores.insert(store.name_any(), Look { generation, at });
                    }
                }
            }
            Event::Delete(store) => drop(self.stores.remove(&store.name_any())),
            Event::Init => self.stores.clear(),
            Event::InitDone => {}
        }
    }

    fn wake(&self) -> Option<Instant> {
        self.stores.values().map(|look| look.at).min()
    }

    fn next(&self) -> Option<String> {
        let now = Instant::now();
        let due = self.stores.iter().find(|(_, look)| look.at <= now);
        due.map(|(name, _)| name.clone())
    }

    fn looked(&mut self, name: &str, well: bool) {
        if let Some(look) = self.stores.get_mut(name) {
            look.at = Instant::now() + if well { WELL } else { ILL };
        }
    }
}

fn is_ill(store: &EtcdBackupStore) -> bool {
    let conditions = store.status.iter().flat_map(|s| &s.conditions);
    conditions
        .into_iter()
        .any(|c| c.type_ == "Available" && c.status == "False")
}

/// What looking takes.
struct Eye {
    client: kube::Client,
    namespace: String,
    node: String,
}

impl Eye {
    fn stores(&self) -> Api<EtcdBackupStore> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn backups(&self) -> Api<EtcdBackup> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// True when nothing was found wanting.
    async fn look(&self, name: &str, shutdown: &CancellationToken) -> bool {
        let opened = Store::open(&self.client, &self.namespace, name).await;
        // Not cut short: the probe would stay in the store.
        let tried = match &opened {
            Ok(store) => store.probe().await,
            Err(error) => Err(error.clone()),
        };
        if tried.as_ref().err().is_none_or(StoreError::of_the_store) {
            let fared = Fared::of(&self.node, tried.as_ref().copied(), opened.as_ref().ok());
            if let Err(error) = publish_availability(&self.client, &self.namespace, name, &fared).await {
                tracing::warn!(store = name, %error, "its availability could not be written");
            }
        }
        let (Ok(store), Ok(())) = (&opened, &tried) else {
            return false;
        };
        let compared = shutdown.run_until_cancelled(self.compare(store)).await;
        match compared {
            Some(Err(error)) => {
                tracing::warn!(store = name, %error, "what lies in it was not compared with the EtcdBackups");
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    async fn compare(&self, store: &Store) -> Result<(), LookError> {
        // The store first: whatever lies there had an object before.
        let listed = store.list().await?;
        let params = ListParams::default();
        let backups = within(self.backups().list(&params))
            .await
            .map_err(LookError::Api)?;
        let here = |b: &EtcdBackup| b.spec.store_ref.name == store.name();
        let here: Vec<EtcdBackup> = backups.items.into_iter().filter(here).collect();
        self.tell(store.name(), &unclaimed(&here, &listed)).await?;
        let ours = |b: &&EtcdBackup| b.status.as_ref().and_then(|s| s.node.as_ref()) == Some(&self.node);
        for backup in missing(store, &here, &listed).into_iter().filter(ours) {
            // It may have come after the listing.
            let key = store.place(backup);
            if store.manifest(&key).await?.is_none() {
                self.tell_gone(backup, &store.uri(&key.manifest)).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, store: &str, unclaimed: &[Unclaimed]) -> Result<(), LookError> {
        let status = serde_json::json!({
            "status": { "unclaimed": unclaimed, "comparedAt": Time(Timestamp::now()) },
        });
        let (params, patch, stores) = (PatchParams::default(), Patch::Merge(&status), self.stores());
        let written = within(stores.patch_status(store, &params, &patch)).await;
        written.map(drop).map_err(LookError::Api)
    }

    async fn tell_gone(&self, backup: &EtcdBackup, manifest: &str) -> Result<(), LookError> {
        let name = backup.name_any();
        let fresh = Report::read(&self.backups(), &name)
            .await
            .map_err(LookError::Api)?;
        let same = |r: &Report| r.backup.metadata.uid == backup.metadata.uid && r.backup.is_proven();
        let Some(mut report) = fresh.filter(same) else {
            return Ok(());
        };
        tracing::warn!(backup = %name, %manifest, "is gone from its store");
        let message = format!(
            "{manifest} is not there any more: it was removed from the store, or a restore has brought this object back; delete the EtcdBackup"
        );
        report.gone(&message).await.map(drop).map_err(LookError::Api)
    }
}

/// What lies in the store and has no object, the newest first.
fn unclaimed(backups: &[EtcdBackup], listed: &[Listed]) -> Vec<Unclaimed> {
    let claimed: BTreeSet<String> = backups.iter().map(folder).collect();
    let free = listed.iter().rev().filter(|l| !claimed.contains(l.key.name()));
    // What cannot be understood is nobody's.
    let understood = free.filter_map(|l| Some((&l.key, l.manifest.as_ref().ok()?)));
    let told = understood.map(|(key, manifest)| Unclaimed {
        name: manifest.name.clone(),
        stored_as: key.name().to_owned(),
        schedule: manifest.schedule.clone(),
        started_at: manifest.started_at.clone(),
        cluster_id: manifest.cluster_id.clone(),
    });
    told.take(TOLD).collect()
}

/// Backups that are said to lie where the store means, and do not.
fn missing<'a>(store: &Store, backups: &'a [EtcdBackup], listed: &[Listed]) -> Vec<&'a EtcdBackup> {
    let there: BTreeSet<&str> = listed.iter().map(|l| l.key.name()).collect();
    let is_missing = |backup: &&EtcdBackup| {
        let key = store.place(backup);
        let artifact = backup.status.as_ref().and_then(|s| s.artifact.as_ref());
        // The store may have been given another bucket or prefix since.
        let lies_here = artifact.is_some_and(|a| a.manifest_uri == store.uri(&key.manifest));
        backup.is_proven() && lies_here && !there.contains(key.name())
    };
    backups.iter().filter(is_missing).collect()
}

#[cfg(test)]
#[path = "stock_tests.rs"]
mod tests;
