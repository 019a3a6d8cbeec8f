//! What lies in the bucket is changed behind Lockkeeper's back: one byte is flipped, an object is cut short, it is
//! gone, another backup's manifest takes its place, a manifest is no manifest. Whoever fetches is refused, and told which
//! and why; nothing is written to the disk. A backup that is whole, and of another etcd cluster, is a backup: an
//! EtcdRestore refuses it by both clusters' ids unless it was told to take it.
//!
//! Seen failing: an engine that compares no hash ("what is damaged was fetched as if it were whole"); an agent that
//! compares no cluster's id ("another-clusters is Completed and not Failed").

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use kube::api::DeleteParams;
use lockkeeper::store::{Identities, Listed, Store};
use lockkeeper_crds::{EtcdRestoreStatus, RestoreState, Strategy};
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::restoring::Stage;
use super::{Scenario, Suite};
use crate::lockkeeper::{Backups, Keeper};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "backup-corrupt",
    about: "a flipped byte, a truncated object, another backup's manifest, another cluster: refused by name",
    suite: Suite::Quick,
    minutes: 3,
    lab: super::one_node,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

/// The store's name and prefix.
const STORE: &str = "corrupt";
/// The id of an etcd cluster that is none of ours.
const ANOTHER: &str = "deadbeef";

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let backups = Backups::of(scene, &keeper, STORE, &json!({})).await?;
    for name in ["one", "two"] {
        backups.begin(name, &json!({})).await?;
        backups.stored(name).await?;
    }
    let store = backups.library().await?;
    let listed = backups.lists(&["one", "two"]).await?;
    let [one, two] = listed.as_slice() else {
        anyhow::bail!("not two");
    };
    let folder = tempfile::tempdir()?;
    fetched(&store, one, folder.path())
        .await
        .context("as it was stored")?;
    let data = |listed: &Listed| -> Result<String> {
        let manifest = listed.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(listed.key.object(&manifest.snapshot().name).to_string())
    };
    let (object, manifest) = (data(one)?, one.key.manifest.to_string());
    let good = Good {
        scene,
        object: read(scene, &object).await?,
        manifest: read(scene, &manifest).await?,
    };

    let mut flipped = good.object.clone();
    let at = usize::try_from(scene.below(flipped.len() as u64))?;
    *flipped.get_mut(at).context("empty")? ^= 1 << scene.below(8);
    let mut shorter = good.object.clone();
    shorter.truncate(flipped.len() / 2);
    scene.say(format_args!("byte {at} of {} flipped", flipped.len()));
    for (what, content, says) in [
        ("flipped", Some(flipped), "SHA-256"),
        ("truncated", Some(shorter), "bytes instead of"),
        ("gone", None, "it is not there"),
    ] {
        good.put(&object, content).await?;
        let told = refused(&store, one, folder.path(), "Damaged").await?;
        ensure!(told.contains(says) && told.contains(&object), "{what}: {told}");
        good.put(&object, Some(good.object.clone())).await?;
    }
    manifests(&good, &store, &manifest, two).await?;
    let foreign = good.of_another_cluster()?;
    good.put(&manifest, Some(foreign)).await?;
    let listed = backups.lists(&["one", "two"]).await?;
    let found = listed.iter().find(|l| l.key.manifest.as_ref() == manifest);
    let found = found.context("it is not listed")?;
    let own = two.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    another_cluster(&Stage::new(scene, &keeper), found, &own.cluster_id).await?;
    good.put(&manifest, Some(good.manifest.clone())).await?;
    fetched(&store, one, folder.path())
        .await
        .context("put right again")?;
    backups.clear().await?;
    Ok(
        "5 kinds of damage and another cluster refused by name; put right, the backup is one again"
            .to_owned(),
    )
}

/// A manifest that does not belong where it lies, and one that is none.
async fn manifests(good: &Good<'_>, store: &Store, manifest: &str, other: &Listed) -> Result<()> {
    let others = read(good.scene, other.key.manifest.as_ref()).await?;
    for (what, content, reason, says) in [
        (
            "of another backup",
            others,
            "Misplaced",
            "is of another backup (two",
        ),
        (
            "half of one",
            good.manifest.get(..40).unwrap_or_default().to_vec(),
            "ManifestInvalid",
            "cannot be understood",
        ),
    ] {
        good.put(manifest, Some(content)).await?;
        let listed = store.list().await?;
        ensure!(listed.len() == 2, "{what}: it is hidden: {listed:?}");
        let found = listed.iter().find(|l| l.key.manifest.as_ref() == manifest);
        let found = found.context("it is not listed")?;
        let error = found
            .manifest
            .as_ref()
            .err()
            .with_context(|| format!("{what}: it was believed"))?;
        ensure!(
            error.reason() == reason && error.to_string().contains(says),
            "{what}: {error}"
        );
        good.scene.say(format_args!("{what}: {error}"));
    }
    Ok(())
}

/// Whole and where it belongs, so that nothing but the cluster's id is in its way.
async fn another_cluster(stage: &Stage<'_>, backup: &Listed, own: &str) -> Result<()> {
    let (folder, _) = backup
        .key
        .manifest
        .as_ref()
        .rsplit_once('/')
        .context("no folder")?;
    let tried = async |name: &str, allowed: bool, wanted| -> Result<EtcdRestoreStatus> {
        let spec = json!({"from": {"key": folder}, "storeRef": {"name": STORE}, "mode": "DryRun",
            "allowOtherCluster": allowed});
        stage.begin(name, spec).await?;
        stage.reaches(name, wanted, Duration::from_secs(180)).await
    };
    let refused = tried("another-clusters", false, RestoreState::Failed).await?;
    ensure!(
        refused
            .message
            .contains(&format!("is of etcd cluster {ANOTHER}, and this is {own}"))
            && refused.message.contains("spec.allowOtherCluster"),
        "it does not say whose it is: {}",
        refused.message
    );
    stage
        .scene
        .say(format_args!("of another cluster: {}", refused.message));
    tried("another-clusters-all-the-same", true, RestoreState::Completed).await?;
    for name in ["another-clusters", "another-clusters-all-the-same"] {
        stage.restores.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}

struct Good<'a> {
    scene: &'a Scene,
    object: Vec<u8>,
    manifest: Vec<u8>,
}

impl Good<'_> {
    /// Its manifest, with another cluster's id.
    fn of_another_cluster(&self) -> Result<Vec<u8>> {
        let mut manifest: Value = serde_json::from_slice(&self.manifest)?;
        let fields = manifest.as_object_mut().context("a manifest is an object")?;
        fields.insert("clusterId".to_owned(), json!(ANOTHER));
        Ok(manifest.to_string().into_bytes())
    }

    async fn put(&self, key: &str, content: Option<Vec<u8>>) -> Result<()> {
        let bucket = self.scene.store()?;
        match content {
            Some(content) => drop(bucket.put(&key.into(), PutPayload::from(content)).await?),
            None => bucket.delete(&key.into()).await?,
        }
        Ok(())
    }
}

async fn read(scene: &Scene, key: &str) -> Result<Vec<u8>> {
    let answer = scene.store()?.get(&key.into()).await?;
    Ok(answer.bytes().await?.to_vec())
}

async fn fetched(store: &Store, listed: &Listed, folder: &Path) -> Result<()> {
    let manifest = listed.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    let (file, never) = (folder.join("snapshot.db"), CancellationToken::new());
    store
        .fetch(manifest, &listed.key, &Identities::none(), &file, &never)
        .await?;
    ensure!(
        std::fs::metadata(&file)?.len() == manifest.size_bytes,
        "of another size"
    );
    std::fs::remove_file(file)?;
    Ok(())
}

async fn refused(store: &Store, listed: &Listed, folder: &Path, reason: &str) -> Result<String> {
    let manifest = listed.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    let (file, never) = (folder.join("snapshot.db"), CancellationToken::new());
    let error = store
        .fetch(manifest, &listed.key, &Identities::none(), &file, &never)
        .await
        .err()
        .context("what is damaged was fetched as if it were whole")?;
    ensure!(error.reason() == reason, "{}: {error}", error.reason());
    ensure!(
        std::fs::read_dir(folder)?.next().is_none(),
        "something of it is on the disk"
    );
    Ok(error.to_string())
}
