//! The order's backup out of its store: the one part of a restore that asks the API, for the store and its Secret.

use std::sync::Arc;

use futures::FutureExt as _;
use lockkeeper_crds::{RestoreOrder, RestoredBackup};

use super::Fetch;
use super::prepare::room_for;
use crate::store::{BackupKey, Identities, Manifest, Store};

/// Fetches from the `EtcdBackupStore` that the order names, in `namespace`.
pub(crate) fn by_api(client: kube::Client, namespace: String) -> Fetch {
    Arc::new(move |order, into, cancel| {
        let (client, namespace) = (client.clone(), namespace.clone());
        async move {
            let store = Store::open(&client, &namespace, &order.store.name)
                .await
                .map_err(|e| e.to_string())?;
            from(&store, store.identities(), &order, &into, &cancel).await
        }
        .boxed()
    })
}

/// Fetches from a store that is open already, with keys that a person gave.
pub(crate) fn by_hand(store: Store, keys: Identities) -> Fetch {
    Arc::new(move |order, into, cancel| {
        let (store, keys) = (store.clone(), keys.clone());
        async move { from(&store, &keys, &order, &into, &cancel).await }.boxed()
    })
}

async fn from(
    store: &Store,
    keys: &Identities,
    order: &RestoreOrder,
    into: &std::path::Path,
    cancel: &tokio_util::sync::CancellationToken,
) -> Result<RestoredBackup, String> {
    let key = store.locate(&order.key).map_err(|e| {
        format!(
            "EtcdBackupStore {}: {e}: make a new EtcdRestore, with the store that it lies in as spec.storeRef, or with its place in this one as spec.from.uri or spec.from.key",
            store.name()
        )
    })?;
    let manifest = store.manifest(&key).await.map_err(|e| e.to_string())?;
    let manifest = manifest.ok_or_else(|| {
        format!(
            "there is no backup at {}: a backup without its manifest does not exist",
            store.uri(&key.manifest)
        )
    })?;
    let backup = describe(store, &key, &manifest);
    if !order.sha256.is_empty() && manifest.sha256 != order.sha256 {
        return Err(format!(
            "the backup at {} is not the one that was chosen: its SHA-256 is {}, not {}",
            backup.uri, manifest.sha256, order.sha256
        ));
    }
    room_for(manifest.size_bytes, into)?;
    store
        .fetch(&manifest, &key, keys, into, cancel)
        .await
        .map_err(|e| e.to_string())?;
    Ok(backup)
}

pub(crate) fn describe(store: &Store, key: &BackupKey, manifest: &Manifest) -> RestoredBackup {
    RestoredBackup {
        uri: store.uri(&key.object(&manifest.snapshot().name)),
        taken_at: Some(manifest.started_at.clone()),
        revision: manifest.revision,
        etcd_version: manifest.etcd_version.clone(),
        cluster_id: manifest.cluster_id.clone(),
        size_bytes: i64::try_from(manifest.size_bytes).unwrap_or(i64::MAX),
        sha256: manifest.sha256.clone(),
    }
}

#[cfg(test)]
mod tests {
    use lockkeeper_crds::{Directory, EtcdBackupStoreSpec};
    use sha2::{Digest as _, Sha256};

    use super::super::testing::order;
    use super::*;
    use crate::store::{Secrets, hex};

    fn directory(path: &std::path::Path) -> Store {
        let path = path.display().to_string();
        let spec = EtcdBackupStoreSpec {
            directory: Some(Directory { path }),
            ..EtcdBackupStoreSpec::default()
        };
        Store::from_spec("nfs", &spec, Secrets::default()).unwrap()
    }

    /// A backup of these bytes, by its manifest of so many.
    fn keep(bucket: &std::path::Path, bytes: &str, size: u64) {
        let folder = bucket.join("a-12345678");
        std::fs::create_dir(&folder).unwrap();
        let sha256 = hex(&Sha256::digest(bytes));
        let manifest = serde_json::json!({
            "format": 1, "id": "a", "name": "a", "uid": "12345678", "node": "cp1", "clusterId": "c", "memberId": "m",
            "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": size, "sha256": sha256, "partSizeBytes": 8388608,
            "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:05Z",
        });
        std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::write(folder.join("snapshot.db"), bytes).unwrap();
    }

    #[tokio::test]
    async fn a_backup_in_a_directory_is_fetched_by_its_uri_and_nothing_of_another_place_is() {
        let (bucket, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        keep(bucket.path(), "a snapshot", 10);
        let (store, into) = (directory(bucket.path()), disk.path().join("snapshot.db"));
        let fetched = async |key: String| {
            let order = RestoreOrder { key, ..order(1) };
            from(&store, &Identities::none(), &order, &into, &Default::default()).await
        };
        let root = format!("file://{}/", bucket.path().display());
        for key in ["a-12345678".to_owned(), format!("{root}a-12345678/manifest.json")] {
            let backup = fetched(key.clone()).await.unwrap();
            assert_eq!(backup.uri, format!("{root}a-12345678/snapshot.db"), "{key}");
            assert_eq!(std::fs::read_to_string(&into).unwrap(), "a snapshot");
            std::fs::remove_file(&into).unwrap();
        }
        let told = fetched("s3://other/a-12345678".to_owned()).await.unwrap_err();
        for says in [
            "s3://other/a-12345678",
            "EtcdBackupStore nfs",
            &root,
            "spec.from.uri",
            "spec.storeRef",
        ] {
            assert!(told.contains(says), "{says}: {told}");
        }
        assert!(!into.exists());
    }

    #[tokio::test]
    async fn a_backup_for_which_there_is_no_room_is_not_begun_to_be_fetched() {
        let (bucket, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // A petabyte, by its manifest.
        keep(bucket.path(), "the first bytes of it", 1 << 50);
        let store = directory(bucket.path());
        let (into, never) = (disk.path().join("snapshot.db"), Default::default());
        let told = from(&store, &Identities::none(), &order(1), &into, &never)
            .await
            .unwrap_err();
        assert!(told.contains("make room on this node's disk"), "{told}");
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    }
}
