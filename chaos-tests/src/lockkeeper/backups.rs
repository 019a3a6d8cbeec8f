//! Backups as a scenario makes and reads them: through the API, and beside it through the library with keys of its
//! own, and in the S3 server's own directory.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use lockkeeper::store::{Credentials, Listed, Store};
use lockkeeper_crds::{
    EtcdBackup, EtcdBackupStatus, EtcdBackupStore, EtcdBackupStoreSpec, RETAIN_ANNOTATION,
};
use serde_json::{Value, json};

use super::{Keeper, MINUTE};
use crate::fabric::{BUCKET, S3Keys, s3_endpoint};
use crate::install::{NAMESPACE, STORE_SECRET};
use crate::scene::{Look, Scene};

/// Backups of one store.
#[derive(Debug)]
pub struct Backups<'a> {
    scene: &'a Scene,
    api: Api<EtcdBackup>,
    stores: Api<EtcdBackupStore>,
    store: String,
}

impl<'a> Backups<'a> {
    /// A store of this name, made or changed, under a prefix of that name; `more` is merged into its spec.
    pub async fn of(scene: &'a Scene, keeper: &Keeper<'_>, store: &str, more: &Value) -> Result<Self> {
        let backups = Self {
            scene,
            api: Api::namespaced(keeper.client(), NAMESPACE),
            stores: Api::namespaced(keeper.client(), NAMESPACE),
            store: store.to_owned(),
        };
        backups.change(more).await?;
        Ok(backups)
    }

    /// Changes the store.
    pub async fn change(&self, more: &Value) -> Result<()> {
        let mut spec = json!({"s3": {"bucket": BUCKET, "prefix": self.store, "endpoint": s3_endpoint(),
            "credentialsSecret": {"name": STORE_SECRET}}});
        merge(&mut spec, more);
        let object = json!({"apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupStore",
            "metadata": {"name": self.store}, "spec": spec});
        let params = PatchParams::apply("lab").force();
        self.stores
            .patch(&self.store, &params, &Patch::Apply(&object))
            .await?;
        Ok(())
    }

    /// Makes a backup. Any other fields of its spec: `more`.
    pub async fn begin(&self, name: &str, more: &Value) -> Result<()> {
        let mut spec = json!({"storeRef": {"name": self.store}, "deadlineSeconds": 120});
        merge(&mut spec, more);
        let object: EtcdBackup = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": name}, "spec": spec,
        }))?;
        self.api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Waits until the status is as wanted.
    pub async fn reaches(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&EtcdBackupStatus) -> bool,
    ) -> Result<EtcdBackup> {
        self.scene
            .wait_for(&format!("{name} {what}"), MINUTE * 6, || async {
                let backup = self.api.get(name).await?;
                let status = backup.status.clone().unwrap_or_default();
                Ok(if wanted(&status) {
                    Look::Done(backup)
                } else {
                    Look::NotYet(status.message)
                })
            })
            .await
    }

    /// Waits for its end, which must be a backup.
    pub async fn stored(&self, name: &str) -> Result<EtcdBackup> {
        let backup = self.reaches(name, "to end", |s| s.completed_at.is_some()).await?;
        ensure!(
            backup.is_proven(),
            "{name} has failed: {}",
            backup.status.unwrap_or_default().message
        );
        Ok(backup)
    }

    /// Waits for its end, which must be a failure; reason and message.
    pub async fn failed(&self, name: &str) -> Result<(String, String)> {
        let backup = self.reaches(name, "to end", |s| s.completed_at.is_some()).await?;
        let status = backup.status.unwrap_or_default();
        let mut all = status.conditions.into_iter();
        match all.find(|c| c.type_ == "Succeeded" && c.status == "False") {
            Some(condition) => Ok((condition.reason, condition.message)),
            None => bail!("{name} did not fail: {}", status.message),
        }
    }

    /// The store as the library sees it, with the lab's own keys.
    pub async fn library(&self) -> Result<Store> {
        let keys = S3Keys::of(self.scene.lab.home())?;
        let spec: EtcdBackupStoreSpec = self.stores.get(&self.store).await?.spec;
        let credentials = Credentials {
            access_key_id: keys.access,
            secret_access_key: keys.secret,
        };
        Ok(Store::from_spec(&self.store, &spec, credentials)?)
    }

    /// What the store lists; it must be these backups, whole, and no others.
    pub async fn lists(&self, wanted: &[&str]) -> Result<Vec<Listed>> {
        let listed = self.library().await?.list().await?;
        let mut names = vec![];
        for one in &listed {
            let manifest = one.manifest.as_ref();
            names.push(manifest.map_err(|e| anyhow::anyhow!("{e}"))?.name.clone());
        }
        names.sort();
        let mut wanted: Vec<&str> = wanted.to_vec();
        wanted.sort_unstable();
        ensure!(names == wanted, "the store lists {names:?} instead of {wanted:?}");
        Ok(listed)
    }

    /// Files under the store's prefix, as the S3 server's own directory has them.
    pub fn files(&self) -> Result<Vec<String>> {
        let root = self.scene.lab.home().path("s3").join(BUCKET).join(&self.store);
        let mut found = vec![];
        for backup in folders(&root)? {
            for entry in std::fs::read_dir(root.join(&backup))? {
                found.push(format!("{backup}/{}", entry?.file_name().to_string_lossy()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Deletes the objects of backups and store. What is stored stays.
    pub async fn clear(&self) -> Result<()> {
        for backup in self.api.list(&Default::default()).await? {
            if backup.spec.store_ref.name == self.store {
                let name = &backup.name_any();
                let kept = json!({"metadata": {"annotations": {RETAIN_ANNOTATION: "the lab"}}});
                self.api
                    .patch(name, &PatchParams::default(), &Patch::Merge(&kept))
                    .await?;
                self.api.delete(name, &DeleteParams::default()).await?;
            }
        }
        self.stores.delete(&self.store, &DeleteParams::default()).await?;
        let root = self.scene.lab.home().path("s3").join(BUCKET).join(&self.store);
        std::fs::remove_dir_all(root).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })?;
        Ok(())
    }

    /// Waits until the agent of a node is there again.
    pub async fn agent_is_back(&self, node: &str) -> Result<()> {
        self.scene
            .wait_for("the agent to be back", Duration::from_secs(120), || async {
                let running = self.scene.lab.node(node)?.processes("agent")?;
                Ok(if running.is_empty() {
                    Look::NotYet("no agent".to_owned())
                } else {
                    Look::Done(())
                })
            })
            .await
    }
}

/// Uploads that were begun and never ended, as the S3 server's own directory has them.
pub fn unfinished(scene: &Scene) -> Result<Vec<String>> {
    let root = scene.lab.home().path("s3").join(BUCKET);
    let root = root.join(".sgwtmp/multipart");
    let mut found = vec![];
    for object in folders(&root)? {
        for upload in folders(&root.join(&object))? {
            found.push(format!("{object}/{upload}"));
        }
    }
    Ok(found)
}

fn merge(spec: &mut Value, more: &Value) {
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
}

fn folders(root: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(root) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries.with_context(|| root.display().to_string())?,
    };
    let mut names = vec![];
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}
