//! Takes a backup out of the store.

use std::time::Duration;

use object_store::ObjectStoreExt as _;
use object_store::path::Path;

use super::{BackupKey, Failure, Store, StoreError};

/// One deletion, retries and all.
const DELETE: Duration = Duration::from_secs(80);

impl Store {
    /// Deletes the backup at `key`, if it is the one of the `EtcdBackup` with this UID: the manifest first, so that
    /// at no moment there is a manifest without its data. What is not there is not missed.
    ///
    /// # Errors
    /// When the store fails, or the manifest there is of another backup or cannot be understood; nothing is
    /// deleted then, or the manifest alone, and the same call again completes it.
    pub async fn remove(&self, key: &BackupKey, uid: &str) -> Result<(), StoreError> {
        let objects: Vec<Path> = match self.manifest(key).await? {
            // Half of it may have gone before.
            None => key.objects().collect(),
            Some(manifest) if manifest.uid == uid => {
                self.delete(&key.manifest, "delete the manifest").await?;
                let named = [Some(manifest.snapshot()), manifest.pki];
                named.into_iter().flatten().map(|o| key.object(&o.name)).collect()
            }
            Some(_) => {
                return Err(self.failure(Failure::NotOurs {
                    kind: self.place.kind,
                    location: self.uri(&key.manifest),
                }));
            }
        };
        for object in objects {
            self.delete(&object, "delete the data").await?;
        }
        Ok(())
    }

    pub(super) async fn delete(&self, location: &Path, doing: &'static str) -> Result<(), StoreError> {
        match tokio::time::timeout(DELETE, self.objects.delete(location)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => self.unless_absent(doing, &e),
            Err(_) => Err(self.place.timed_out(doing, DELETE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::TryStreamExt as _;
    use object_store::memory::InMemory;
    use object_store::{ObjectStore, PutPayload};

    use super::*;

    const UID: &str = "01234567-89ab";

    async fn bucket(manifest: Option<&str>) -> (Arc<InMemory>, Store, BackupKey) {
        let objects = Arc::new(InMemory::new());
        let store = Store::from_objects(objects.clone(), "cluster");
        let key = store.key("nightly-20261101-0300", UID);
        let others = Path::from("cluster/by-hand-fedcba98/snapshot.db");
        for location in [&key.object("snapshot.db"), &others] {
            objects
                .put(location, PutPayload::from_static(b"data"))
                .await
                .unwrap();
        }
        if let Some(manifest) = manifest {
            let manifest = PutPayload::from(manifest.to_owned());
            objects.put(&key.manifest, manifest).await.unwrap();
        }
        (objects, store, key)
    }

    fn manifest(uid: &str) -> String {
        format!(
            r#"{{"format": 1, "id": "a", "name": "nightly-20261101-0300", "uid": "{uid}", "node": "cp1",
            "clusterId": "c", "memberId": "m", "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 4, "sha256": "s",
            "partSizeBytes": 8388608, "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:05Z"}}"#
        )
    }

    async fn names(objects: &InMemory) -> Vec<String> {
        let mut names: Vec<String> = objects
            .list(None)
            .map_ok(|o| o.location.to_string())
            .try_collect()
            .await
            .unwrap();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_backup_goes_whole_or_half_and_its_neighbours_stay() {
        for there in [Some(manifest(UID)), None] {
            let (objects, store, key) = bucket(there.as_deref()).await;
            store.remove(&key, UID).await.unwrap();
            assert_eq!(names(&objects).await, ["cluster/by-hand-fedcba98/snapshot.db"]);
            store.remove(&key, UID).await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_anothers_or_cannot_be_understood_is_left_alone() {
        for (there, reason) in [
            (manifest("01234567-another"), "NotOurs"),
            (
                manifest(UID).replace("\"format\": 1", "\"format\": 3"),
                "ManifestInvalid",
            ),
            ("{".to_owned(), "ManifestInvalid"),
        ] {
            let (objects, store, key) = bucket(Some(&there)).await;
            assert_eq!(store.remove(&key, UID).await.unwrap_err().reason(), reason);
            assert_eq!(names(&objects).await.len(), 3);
        }
    }
}
