//! Backups that are encrypted, with the node's PKI: nothing of them can be read without a key; a wrong key is called
//! so; when the recipients change, what is stored stays readable with the older key and what comes with the newer.
//! Without encryption the PKI does not leave the node.
//!
//! Seen failing: an engine that names the recipients in the manifest and writes in the clear ("older:
//! encrypted/older-2e669ccb/snapshot.db.zst.age is not encrypted").

use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper::store::{Identities, Listed, Store, StoreError};
use lockkeeper_crds::Strategy;
use object_store::ObjectStoreExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Scenario, Suite};
use crate::lockkeeper::{Backups, Keeper};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "encrypted",
    about: "unreadable without the key; a wrong key says so; recipients rotate; the PKI goes encrypted or not at all",
    suite: Suite::Quick,
    minutes: 3,
    lab: super::one_node,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let backups = Backups::of(scene, &keeper, "encrypted", &json!({})).await?;
    let with_pki = json!({"include": ["PKI"]});
    backups.begin("in-the-clear", &with_pki).await?;
    let (reason, message) = backups.failed("in-the-clear").await?;
    ensure!(
        reason == "EncryptionRequired" && message.contains("set spec.encryption"),
        "{reason}: {message}"
    );
    ensure!(
        backups.files()?.is_empty(),
        "something was stored: {:?}",
        backups.files()?
    );

    let (first, first_public, _) = Identities::generate();
    let (second, second_public, _) = Identities::generate();
    let (stranger, ..) = Identities::generate();
    let to = |recipients: &[&String]| json!({"encryption": {"recipients": recipients}});
    backups.change(&to(&[&first_public])).await?;
    backups.begin("older", &with_pki).await?;
    let older = backups.stored("older").await?;
    backups.change(&to(&[&second_public])).await?;
    backups.begin("newer", &with_pki).await?;
    backups.stored("newer").await?;
    backups.change(&to(&[&first_public, &second_public])).await?;
    backups.begin("both", &with_pki).await?;
    backups.stored("both").await?;
    let told = older.status.and_then(|s| s.artifact).and_then(|a| a.encrypted);
    ensure!(
        told.is_some_and(|e| e.recipients == [first_public.clone()]),
        "the status does not say for whom it is"
    );

    let store = backups.library().await?;
    let listed = backups.lists(&["older", "newer", "both"]).await?;
    let folder = tempfile::tempdir()?;
    for (name, opens, says) in [
        ("older", [true, false], &first_public),
        ("newer", [false, true], &second_public),
        ("both", [true, true], &first_public),
    ] {
        let of = |l: &&Listed| l.manifest.as_ref().is_ok_and(|m| m.name == name);
        let backup = listed.iter().find(of).context("not listed")?;
        unreadable(scene, backup).await.with_context(|| name.to_owned())?;
        for (keys, opens) in [(&first, opens[0]), (&second, opens[1]), (&stranger, false)] {
            match (open(&store, backup, keys, folder.path()).await?, opens) {
                (Ok(()), true) => {}
                (Err(error), false) => {
                    let told = error.to_string();
                    ensure!(
                        error.reason() == "WrongKey" && told.contains("wrong key") && told.contains(says),
                        "{name}: {told}"
                    );
                }
                (Ok(()), false) => anyhow::bail!("{name} opens with a key that it is not for"),
                (Err(error), true) => anyhow::bail!("{name} does not open with its key: {error}"),
            }
        }
        let none = open(&store, backup, &Identities::none(), folder.path()).await?;
        let none = none.err().context("it opens without a key")?;
        ensure!(none.reason() == "NoKey", "{none}");
    }
    pki(scene, &store, &listed, &first.and(&second)).await?;
    backups.clear().await?;
    Ok("3 backups with the PKI; each opens with its keys alone, a wrong one is called so".to_owned())
}

async fn open(
    store: &Store,
    backup: &Listed,
    keys: &Identities,
    folder: &Path,
) -> Result<Result<(), StoreError>> {
    let manifest = backup.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    let (file, never) = (folder.join("snapshot.db"), CancellationToken::new());
    let fetched = store.fetch(manifest, &backup.key, keys, &file, &never).await;
    if fetched.is_ok() {
        let bytes = std::fs::read(&file)?;
        ensure!(
            bytes.windows(10).any(|w| w == b"/registry/"),
            "what came out is no etcd of Kubernetes"
        );
        std::fs::remove_file(&file)?;
    }
    ensure!(
        std::fs::read_dir(folder)?.next().is_none(),
        "something is left on the disk"
    );
    Ok(fetched)
}

/// The bytes in the bucket say nothing: they are in age's format, and neither decompress nor hold a key of etcd's.
async fn unreadable(scene: &Scene, backup: &Listed) -> Result<()> {
    let manifest = backup.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
    let objects = [Some(manifest.snapshot()), manifest.pki.clone()];
    for object in objects.into_iter().flatten() {
        let key = backup.key.object(&object.name);
        let bytes = scene.store()?.get(&key).await?.bytes().await?;
        ensure!(
            bytes.starts_with(b"age-encryption.org/v1\n"),
            "{key} is not encrypted"
        );
        for telling in [&b"/registry/"[..], b"PRIVATE KEY", b"\x28\xb5\x2f\xfd"] {
            let found = bytes.windows(telling.len()).any(|w| w == telling);
            // Four bytes of zstd's may be there by chance, once in a gigabyte.
            ensure!(!found, "{key} holds {telling:?}");
        }
    }
    Ok(())
}

/// What a node is made of comes back to the byte.
async fn pki(scene: &Scene, store: &Store, listed: &[Listed], keys: &Identities) -> Result<()> {
    let never = CancellationToken::new();
    let disk = scene.lab.node("cp1")?.kubernetes_folder();
    for backup in listed {
        let manifest = backup.manifest.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
        let files = store.fetch_pki(manifest, &backup.key, keys, &never).await?;
        let files = files.context("it has no PKI")?;
        let sa = Path::new("etc/kubernetes/pki/sa.key");
        ensure!(files.iter().any(|f| f.path == sa), "sa.key is not among it");
        for file in &files {
            let at = disk.join(file.path.strip_prefix("etc/kubernetes")?);
            ensure!(
                std::fs::read(&at)? == file.content,
                "{} is not as on the node",
                file.path.display()
            );
        }
    }
    Ok(())
}
