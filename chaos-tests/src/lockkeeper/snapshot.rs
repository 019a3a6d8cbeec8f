//! The snapshot in the bucket: there, whole, and proven by restoring it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::cache::{Cache, hex};
use crate::process::Run;
use crate::recipes::ETCD;
use crate::scene::Scene;

/// What the manifest must say; the rest is the store's own.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    size_bytes: u64,
    sha256: String,
    revision: i64,
    snapshot: Object,
}

#[derive(Debug, Deserialize)]
struct Object {
    name: String,
    stored: Stored,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    size_bytes: u64,
    sha256: String,
}

/// The manifests in the bucket: a backup without one does not exist. Fails where one has no whole snapshot.
pub async fn published_backups(scene: &Scene) -> Result<Vec<String>> {
    let store = scene.store()?;
    let objects: Vec<_> = store.list(None).try_collect().await?;
    let mut found = Vec::new();
    for object in &objects {
        let key = object.location.to_string();
        let Some(folder) = key.strip_suffix("/manifest.json") else {
            continue;
        };
        let manifest: Manifest = serde_json::from_slice(&store.get(&object.location).await?.bytes().await?)?;
        let (name, size) = (&manifest.snapshot.name, manifest.snapshot.stored.size_bytes);
        let snapshot = format!("{folder}/{name}");
        let whole = objects
            .iter()
            .any(|object| object.location.as_ref() == snapshot && object.size == size);
        ensure!(whole, "{key} is there, and no whole {snapshot} beside it");
        found.push(key);
    }
    Ok(found)
}

/// As [`check_snapshot`]; how many keys it holds, too.
pub async fn restored(scene: &Scene, uri: &str) -> Result<(u64, String)> {
    let key = uri
        .strip_prefix("s3://")
        .and_then(|rest| rest.split_once('/'))
        .map(|(_, key)| key)
        .with_context(|| format!("`{uri}` is no s3:// address"))?;
    let store = scene.store()?;
    let (folder, name) = key
        .rsplit_once('/')
        .with_context(|| format!("`{uri}` lies in no folder"))?;
    let beside = format!("{folder}/manifest.json");
    let manifest = store
        .get(&beside.clone().into())
        .await
        .with_context(|| beside.clone())?;
    let manifest: Manifest = serde_json::from_slice(&manifest.bytes().await?)?;
    let stored = store.get(&key.into()).await?.bytes().await?;
    let as_stored = (stored.len() as u64, hex(&Sha256::digest(&stored)));
    let wanted = &manifest.snapshot.stored;
    ensure!(
        manifest.snapshot.name == name && as_stored == (wanted.size_bytes, wanted.sha256.clone()),
        "{uri} is not what its manifest says"
    );
    // With the library, not with our own code: anybody can open what is stored.
    let bytes = match name {
        "snapshot.db" => stored.to_vec(),
        "snapshot.db.zst" => zstd::decode_all(stored.as_ref())?,
        other => bail!("{other} needs a key"),
    };
    ensure!(
        bytes.len() as u64 == manifest.size_bytes && hex(&Sha256::digest(&bytes)) == manifest.sha256,
        "{uri}, unpacked, is not what its manifest says"
    );
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("snapshot.db"), &bytes)?;
    let keys = restore(folder.path())?;
    ensure!(keys > 100, "the restored etcd has only {keys} keys");
    let sentence = format!(
        "snapshot of {:.1} MB at revision {} restored: {keys} keys",
        bytes.len() as f64 / 1e6,
        manifest.revision
    );
    Ok((keys, sentence))
}

/// Downloads a snapshot by its `s3://` address, compares it with its manifest, restores it, starts an etcd on
/// what came out, and reads it. Returns a sentence.
pub async fn check_snapshot(scene: &Scene, uri: &str) -> Result<String> {
    Ok(restored(scene, uri).await?.1)
}

/// As a person would; the member runs in a network of its own, where it can meet nobody.
fn restore(folder: &Path) -> Result<u64> {
    let programs = Cache::open()?.binaries("etcd", ETCD);
    Run::new(programs.join("etcdutl"))
        .args(["snapshot", "restore", "snapshot.db", "--data-dir", "data"])
        .dir(folder)
        .check()
        .context("etcdutl snapshot restore")?;
    let script = "ip link set lo up
        etcd --data-dir data >etcd.log 2>&1 &
        for _ in $(seq 100); do
            etcdctl get '' --from-key --count-only --write-out=fields >count 2>/dev/null && break
            sleep 0.2
        done
        etcdctl get /registry/lockkeeper.dev/clusterversions/cluster --keys-only
        cat count";
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        programs.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let said = Run::new("unshare")
        .args(["--net", "--pid", "--fork", "--kill-child", "sh", "-c", script])
        .env("PATH", path)
        .dir(folder)
        .limit(Duration::from_secs(60))
        .check()?;
    ensure!(
        said.contains("/registry/lockkeeper.dev/clusterversions/cluster"),
        "the restored etcd does not have the ClusterVersion: {said}"
    );
    said.lines()
        .find_map(|line| line.strip_prefix("\"Count\" : "))
        .and_then(|count| count.trim().parse().ok())
        .with_context(|| format!("the restored etcd did not count its keys: {said}"))
}
