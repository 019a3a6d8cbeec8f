//! What the scenarios of restores have in common: a restore point, writes after it, the object and its states, and
//! where a restore stands in a node's own journal.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds::{
    EtcdBackup, EtcdRestore, EtcdRestoreStatus, RestoreStage, RestoreState, STORED_FINALIZER,
};
use serde::Deserialize;
use serde_json::json;

use crate::install::NAMESPACE;
use crate::lockkeeper::Keeper;
use crate::node::Node;
use crate::scene::{Look, Scene};

/// The label of everything that these scenarios write.
pub(super) const LABEL: &str = "lab=restore";
const MINUTE: Duration = Duration::from_secs(60);

/// ConfigMaps by name, with what they say.
pub(super) type Notes = BTreeMap<String, String>;

/// What the scenarios do and see.
pub(super) struct Stage<'a> {
    pub(super) scene: &'a Scene,
    pub(super) maps: Api<ConfigMap>,
    pub(super) backups: Api<EtcdBackup>,
    pub(super) restores: Api<EtcdRestore>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(scene: &'a Scene, keeper: &Keeper<'_>) -> Self {
        Self {
            scene,
            maps: Api::namespaced(keeper.client(), "default"),
            backups: Api::namespaced(keeper.client(), NAMESPACE),
            restores: Api::namespaced(keeper.client(), NAMESPACE),
        }
    }

    pub(super) async fn note(&self, name: &str, says: &str) -> Result<()> {
        let map: ConfigMap = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "labels": {"lab": "restore"}}, "data": {"says": says},
        }))?;
        let apply = PatchParams::apply("lab").force();
        self.maps.patch(name, &apply, &Patch::Apply(&map)).await?;
        Ok(())
    }

    /// What was written, as the API tells it now, and its revision.
    pub(super) async fn notes(&self) -> Result<(Notes, i64)> {
        let listed = self.maps.list(&ListParams::default().labels(LABEL)).await?;
        let revision = listed.metadata.resource_version.as_deref().unwrap_or_default();
        let revision = revision.parse().context("no revision")?;
        let notes = listed.items.into_iter().filter_map(|map| {
            let says = map.data.and_then(|mut d| d.remove("says"))?;
            Some((map.metadata.name?, says))
        });
        Ok((notes.collect(), revision))
    }

    /// Waits until the API tells exactly this.
    pub(super) async fn tells(&self, wanted: &Notes) -> Result<i64> {
        self.scene
            .wait_for("the API to tell what it should", MINUTE * 3, || async {
                let (notes, revision) = self.notes().await?;
                Ok(if notes == *wanted {
                    Look::Done(revision)
                } else {
                    Look::NotYet(format!("{notes:?}"))
                })
            })
            .await
    }

    /// Three notes, a backup of them, and then a new one, a changed one and a deleted one: what was, and what is.
    pub(super) async fn write(&self, backup: &str) -> Result<(Notes, Notes)> {
        let then = self.write_before().await?;
        self.back_up(backup).await?;
        let now = self.write_after(&then).await?;
        Ok((then, now))
    }

    /// Three notes.
    pub(super) async fn write_before(&self) -> Result<Notes> {
        for name in ["stays", "changes", "goes"] {
            self.note(name, "before").await?;
        }
        Ok(self.notes().await?.0)
    }

    /// A new one, a changed one and a deleted one.
    pub(super) async fn write_after(&self, then: &Notes) -> Result<Notes> {
        self.note("changes", "after").await?;
        self.note("comes", "after").await?;
        self.maps.delete("goes", &DeleteParams::default()).await?;
        let (now, _) = self.notes().await?;
        ensure!(
            *then != now && now.len() == 3,
            "the notes are not as written: {now:?}"
        );
        Ok(now)
    }

    pub(super) async fn back_up(&self, name: &str) -> Result<()> {
        let object: EtcdBackup = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup",
            "metadata": {"name": name, "finalizers": [STORED_FINALIZER]},
            "spec": {"storeRef": {"name": "default"}},
        }))?;
        self.backups.create(&PostParams::default(), &object).await?;
        self.scene
            .wait_for(&format!("{name} to be stored"), MINUTE * 3, || async {
                Ok(if self.backups.get(name).await?.is_proven() {
                    Look::Done(())
                } else {
                    Look::NotYet("not yet".into())
                })
            })
            .await
    }

    /// Deletes a backup, and waits until it is gone with what it stored.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        self.backups.delete(name, &DeleteParams::default()).await?;
        self.scene
            .wait_for(&format!("{name} to go"), MINUTE * 2, || async {
                Ok(match self.backups.get_opt(name).await? {
                    None => Look::Done(()),
                    Some(there) => Look::NotYet(there.status.unwrap_or_default().message),
                })
            })
            .await
    }

    /// Waits until a restore's loss of the object of this backup is made good: another one stands for what it stored.
    pub(super) async fn stands_for(&self, name: &str, folder: Option<&str>) -> Result<()> {
        self.scene
            .wait_for(&format!("{name} to have an object again"), MINUTE * 2, || async {
                let Some(there) = self.backups.get_opt(name).await? else {
                    return Ok(Look::NotYet("it has none".into()));
                };
                let stored = there.stored_as();
                let same = stored.is_some() && folder.is_none_or(|folder| stored == Some(folder));
                Ok(if same && there.is_proven() && there.is_retained() {
                    Look::Done(())
                } else {
                    Look::NotYet(there.status.unwrap_or_default().message)
                })
            })
            .await
    }

    /// Waits until a backup that a restore has brought back says that what it stored is gone.
    pub(super) async fn says_gone(&self, name: &str) -> Result<()> {
        self.scene
            .wait_for(&format!("{name} to say that it is gone"), MINUTE * 2, || async {
                let there = self.backups.get(name).await?;
                let stored = there.condition("Stored");
                Ok(match stored.map(|c| (c.status.as_str(), c.reason.as_str())) {
                    Some(("False", "Gone")) => Look::Done(()),
                    other => Look::NotYet(format!("{other:?}")),
                })
            })
            .await
    }

    /// The key of a backup's snapshot in the bucket.
    pub(super) async fn key(&self, backup: &str) -> Result<String> {
        let artifact = self.backups.get(backup).await?.status.and_then(|s| s.artifact);
        let uri = artifact.context("it has no artifact")?.uri;
        let key = uri.strip_prefix("s3://").and_then(|k| k.split_once('/'));
        Ok(key.context("its address is none")?.1.to_owned())
    }

    pub(super) async fn begin(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let object: EtcdRestore = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdRestore", "metadata": {"name": name}, "spec": spec,
        }))?;
        self.restores.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    pub(super) async fn confirm(&self, name: &str, with: &str) -> Result<()> {
        let patch = json!({"spec": {"confirm": with}});
        self.restores
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Waits until the restore is in this state; another end is an error.
    pub(super) async fn reaches(
        &self,
        name: &str,
        wanted: RestoreState,
        limit: Duration,
    ) -> Result<EtcdRestoreStatus> {
        let ended = self
            .scene
            .wait_for(&format!("{name} to be {wanted:?}"), limit, || async {
                let status = self.restores.get(name).await?.status.context("no status yet")?;
                Ok(if status.state == wanted || status.state.is_end() {
                    Look::Done(status)
                } else {
                    let nodes = status.nodes.iter().map(|n| format!("{} {:?}", n.node, n.stage));
                    let nodes: Vec<_> = nodes.collect();
                    Look::NotYet(format!(
                        "{:?}: {} ({})",
                        status.state,
                        status.message,
                        nodes.join(", ")
                    ))
                })
            })
            .await?;
        if ended.state != wanted {
            bail!(
                "{name} is {:?} and not {wanted:?}: {}",
                ended.state,
                ended.message
            );
        }
        Ok(ended)
    }
}

#[derive(Deserialize)]
struct Journal {
    entry: Option<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    stage: RestoreStage,
    deadline: DateTime<Utc>,
    message: String,
}

/// Where the last restore stands by the node's own journal, and why.
pub(super) fn stage(node: &Node) -> Result<Option<(RestoreStage, String)>> {
    Ok(entry(node)?.map(|entry| (entry.stage, entry.message)))
}

/// When that stage is given up.
pub(super) fn deadline(node: &Node) -> Result<DateTime<Utc>> {
    Ok(entry(node)?.context("no restore is in the journal")?.deadline)
}

/// From the node's disk, whether it is on or off.
fn entry(node: &Node) -> Result<Option<Entry>> {
    let path = node.var_lib("lockkeeper/restore.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let journal: Journal =
                serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?;
            Ok(journal.entry)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}
