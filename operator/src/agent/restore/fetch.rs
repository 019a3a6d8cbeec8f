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
    let key = BackupKey::parse(&order.key).map_err(|e| format!("{}: {e}", order.key))?;
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

    use super::super::testing::order;
    use super::*;
    use crate::store::Secrets;

    #[tokio::test]
    async fn a_backup_for_which_there_is_no_room_is_not_begun_to_be_fetched() {
        let (bucket, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = bucket.path().join("a-12345678");
        std::fs::create_dir(&folder).unwrap();
        // A petabyte, by its manifest.
        std::fs::write(
            folder.join("manifest.json"),
            r#"{"format": 1, "id": "a", "name": "a", "uid": "12345678", "node": "cp1", "clusterId": "c",
            "memberId": "m", "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 1125899906842624, "sha256": "s",
            "partSizeBytes": 8388608, "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:05Z"}"#,
        )
        .unwrap();
        std::fs::write(folder.join("snapshot.db"), "the first bytes of it").unwrap();
        let spec = EtcdBackupStoreSpec {
            directory: Some(Directory {
                path: bucket.path().display().to_string(),
            }),
            ..EtcdBackupStoreSpec::default()
        };
        let store = Store::from_spec("nfs", &spec, Secrets::default()).unwrap();
        let (into, never) = (disk.path().join("snapshot.db"), Default::default());
        let told = from(&store, &Identities::none(), &order(1), &into, &never)
            .await
            .unwrap_err();
        assert!(told.contains("make room on this node's disk"), "{told}");
        assert_eq!(std::fs::read_dir(disk.path()).unwrap().count(), 0);
    }
}
