//! The objects and the bucket of the scenario.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds::{
    EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleStatus, Proof, RETAIN_ANNOTATION, SCHEDULE_LABEL,
};
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde_json::json;

use super::watcher::{Watcher, slot};
use super::{BY_HAND, MINUTE, NAME, STRANGER};
use crate::install::NAMESPACE;
use crate::lockkeeper::{Keeper, unfinished};
use crate::scene::{Look, Scene};

/// What the scenario does and sees.
pub(in crate::scenarios) struct Stage<'a> {
    pub(in crate::scenarios) scene: &'a Scene,
    pub(in crate::scenarios) schedules: Api<EtcdBackupSchedule>,
    pub(in crate::scenarios) backups: Api<EtcdBackup>,
    pub(in crate::scenarios) pods: Api<Pod>,
}

impl<'a> Stage<'a> {
    /// With two things in the bucket that are not the schedule's, though both look like it.
    pub(in crate::scenarios) async fn set(scene: &'a Scene, keeper: &Keeper<'_>) -> Result<Self> {
        let stage = Self {
            scene,
            schedules: Api::namespaced(keeper.client(), NAMESPACE),
            backups: Api::namespaced(keeper.client(), NAMESPACE),
            pods: Api::namespaced(keeper.client(), NAMESPACE),
        };
        scene
            .store()?
            .put(&STRANGER.into(), PutPayload::from_static(b"a stranger's"))
            .await?;
        stage.make(BY_HAND, json!({SCHEDULE_LABEL: NAME})).await?;
        Ok(stage)
    }

    /// A backup every minute, the newest two kept, and what more the spec says.
    pub(in crate::scenarios) async fn schedule(&self, more: &serde_json::Value) -> Result<()> {
        let mut object = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupSchedule", "metadata": {"name": NAME},
            "spec": {"storeRef": {"name": "default"}, "schedule": "* * * * *", "deadlineSeconds": 60,
                "retention": {"keepLast": 2}},
        });
        if let Some(spec) = object.get_mut("spec").and_then(|s| s.as_object_mut()) {
            spec.extend(more.as_object().cloned().unwrap_or_default());
        }
        let object: EtcdBackupSchedule = serde_json::from_value(object)?;
        self.schedules.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    pub(in crate::scenarios) async fn make(&self, name: &str, labels: serde_json::Value) -> Result<()> {
        let object: EtcdBackup = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": name, "labels": labels},
            "spec": {"storeRef": {"name": "default"}},
        }))?;
        self.backups.create(&PostParams::default(), &object).await?;
        self.scene
            .wait_for(&format!("{name} to be stored"), MINUTE * 2, || async {
                let backup = self.backups.get(name).await?;
                Ok(if backup.is_proven() {
                    Look::Done(())
                } else {
                    Look::NotYet("not yet".into())
                })
            })
            .await
    }

    pub(in crate::scenarios) async fn status(
        &self,
        what: &str,
        limit: Duration,
        accepted: impl Fn(&EtcdBackupScheduleStatus) -> bool,
    ) -> Result<EtcdBackupScheduleStatus> {
        self.scene
            .wait_for(what, limit, || async {
                let status = self.schedules.get(NAME).await?.status.context("no status yet")?;
                Ok(if accepted(&status) {
                    Look::Done(status)
                } else {
                    Look::NotYet(status.message)
                })
            })
            .await
    }

    /// No more backups.
    pub(in crate::scenarios) async fn suspend(&self) -> Result<()> {
        let patch = json!({"spec": {"suspend": true}});
        self.schedules
            .patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        self.scene
            .wait_for("every proof to end", MINUTE * 3, || async {
                let open = self.own().await?.into_values().find(|b| {
                    !b.is_finished() || b.unproven().is_some() || b.metadata.deletion_timestamp.is_some()
                });
                Ok(open.map_or(Look::Done(()), |b| {
                    Look::NotYet(b.status.map(|s| s.message).unwrap_or_default())
                }))
            })
            .await
    }

    /// Asks for so much proof of a backup.
    pub(in crate::scenarios) async fn ask_for(&self, name: &str, proof: Proof) -> Result<()> {
        let patch = json!({"spec": {"proof": proof}});
        self.backups
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Waits until a backup is just being verified.
    pub(in crate::scenarios) async fn being_verified(&self, name: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let backup = self.backups.get(name).await?;
            match backup.condition("Verified") {
                Some(c) if c.status == "Unknown" => return Ok(()),
                Some(c) => bail!("{name} was not met while it was being verified: {}", c.message),
                None => ensure!(begun.elapsed() < MINUTE, "nobody verifies {name}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until it is told whether a backup is verified: `True/Why: message`.
    pub(in crate::scenarios) async fn verdict(&self, name: &str) -> Result<String> {
        self.scene
            .wait_for(&format!("{name} to be verified or not"), MINUTE * 3, || async {
                let backup = self.backups.get(name).await?;
                let said = backup.condition("Verified").filter(|c| c.status != "Unknown");
                Ok(said.map_or_else(
                    || Look::NotYet("nothing said".into()),
                    |c| Look::Done(format!("{}/{}: {}", c.status, c.reason, c.message)),
                ))
            })
            .await
    }

    /// Deletes a backup made by hand, with what it stored.
    pub(in crate::scenarios) async fn remove(&self, name: &str) -> Result<()> {
        self.backups.delete(name, &DeleteParams::default()).await?;
        self.scene
            .wait_for(&format!("{name} to go"), MINUTE, || async {
                Ok(match self.backups.get_opt(name).await? {
                    None => Look::Done(()),
                    Some(_) => Look::NotYet("it is there".into()),
                })
            })
            .await
    }

    /// Everything goes.
    pub(in crate::scenarios) async fn clear_all(&self) -> Result<()> {
        let retained = self.retain().await?;
        self.clear(&retained).await
    }

    /// Waits until three backups were begun and two are there.
    pub(in crate::scenarios) async fn three(&self, watcher: &Watcher) -> Result<usize> {
        self.scene
            .wait_for("three backups, the first of them let go", MINUTE * 6, || async {
                let begun = watcher.so_far()?.len();
                let there = self.own().await?.len();
                Ok(if begun >= 3 && there == 2 {
                    Look::Done(begun)
                } else {
                    Look::NotYet(format!("{begun} begun, {there} there"))
                })
            })
            .await
    }

    /// The schedule's backups by name.
    pub(in crate::scenarios) async fn own(&self) -> Result<BTreeMap<String, EtcdBackup>> {
        let labelled = ListParams::default().labels(&format!("{SCHEDULE_LABEL}={NAME}"));
        let own = self.backups.list(&labelled).await?.into_iter();
        let named = own.filter_map(|b| Some((b.metadata.name.clone()?, b)));
        Ok(named.filter(|(name, _)| slot(name).is_some()).collect())
    }

    /// The keys of the bucket that could be of a backup of the schedule.
    async fn keys(&self) -> Result<BTreeSet<String>> {
        let all: Vec<_> = self.scene.store()?.list(None).try_collect().await?;
        let all = all.iter().map(|o| o.location.to_string());
        Ok(all.filter(|k| k.starts_with(NAME) && k != STRANGER).collect())
    }

    /// Waits for a moment in which nothing is going on; then every recovery point lies in the bucket, and nothing else.
    pub(in crate::scenarios) async fn bucket_is_as_told(&self) -> Result<()> {
        self.scene
            .wait_for("the bucket to hold what the status tells", MINUTE * 3, || async {
                let status = self.schedules.get(NAME).await?.status.context("no status yet")?;
                let own = self.own().await?;
                if own
                    .values()
                    .any(|b| !b.is_finished() || b.metadata.deletion_timestamp.is_some())
                {
                    return Ok(Look::NotYet("a backup is going on".into()));
                }
                let proven: Vec<_> = own.values().filter(|b| b.is_proven()).collect();
                let told: BTreeSet<String> = proven.iter().flat_map(|b| lies(b)).collect();
                let there = self.keys().await?;
                let points = u32::try_from(proven.len()).ok();
                let uploads = unfinished(self.scene)?;
                let same =
                    there == told && points == Some(status.recovery_points.count) && uploads.is_empty();
                Ok(if same {
                    Look::Done(())
                } else {
                    Look::NotYet(format!(
                        "{there:?} there, {told:?} told, {} counted, unfinished: {uploads:?}",
                        status.recovery_points.count
                    ))
                })
            })
            .await?;
        let store = self.scene.store()?;
        store
            .head(&STRANGER.into())
            .await
            .context("a stranger's object was deleted")?;
        let by_hand = self.backups.get(BY_HAND).await?;
        let key = by_hand
            .status
            .and_then(|s| s.artifact)
            .context("by-hand has no artifact")?
            .uri;
        let key = key
            .strip_prefix("s3://")
            .and_then(|k| k.split_once('/'))
            .map(|(_, key)| key.to_owned());
        store
            .head(&key.unwrap_or_default().into())
            .await
            .context("the backup by hand was deleted")?;
        Ok(())
    }

    /// Wants the oldest one kept for ever.
    pub(in crate::scenarios) async fn retain(&self) -> Result<String> {
        let own = self.own().await?;
        let proven = own.iter().find(|(_, b)| b.is_proven());
        let (name, _) = proven.context("there is no recovery point to retain")?;
        let patch = json!({"metadata": {"annotations": {RETAIN_ANNOTATION: "the lab"}}});
        self.backups
            .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(name.clone())
    }

    pub(in crate::scenarios) fn scale(&self, replicas: u32) -> Result<()> {
        let count = format!("--replicas={replicas}");
        let scale = [
            "kubectl",
            "-n",
            NAMESPACE,
            "scale",
            "deployment",
            "lockkeeper-operator",
            &count,
        ];
        self.scene.lab.out(&scale)?.check().map(drop)
    }

    /// Without the schedule its backups stay; deleted, they take what they stored along, but for the retained one.
    pub(in crate::scenarios) async fn clear(&self, kept: &str) -> Result<()> {
        self.schedules.delete(NAME, &DeleteParams::default()).await?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let own = self.own().await?;
        ensure!(!own.is_empty(), "the backups went with their schedule");
        let retained = lies(own.get(kept).context("the retained one has gone")?);
        for name in own.keys() {
            self.backups.delete(name, &DeleteParams::default()).await?;
        }
        self.scene
            .wait_for("the backups to go", MINUTE * 3, || async {
                let left = self.own().await?;
                Ok(if left.is_empty() {
                    Look::Done(())
                } else {
                    Look::NotYet(format!("{} left", left.len()))
                })
            })
            .await?;
        let left = self.keys().await?;
        ensure!(
            left == retained.into_iter().collect(),
            "left in the bucket: {left:?}"
        );
        let store = self.scene.store()?;
        for key in store
            .list(None)
            .map_ok(|o| o.location)
            .try_collect::<Vec<_>>()
            .await?
        {
            if key.as_ref().starts_with(NAME) {
                store.delete(&key).await?;
            }
        }
        self.backups.delete(BY_HAND, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// The keys of its snapshot and its manifest.
fn lies(backup: &EtcdBackup) -> Vec<String> {
    let artifact = backup.status.as_ref().and_then(|s| s.artifact.as_ref());
    let uris = artifact.map(|a| [&a.uri, &a.manifest_uri]);
    let keys = uris.into_iter().flatten().filter_map(|uri| {
        let (_, key) = uri.strip_prefix("s3://")?.split_once('/')?;
        Some(key.to_owned())
    });
    keys.collect()
}
