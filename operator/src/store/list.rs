//! What backups a store holds, by their manifests.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};

use super::{BackupKey, Failure, Manifest, Store, StoreError};

/// A listing of many pages, retries and all.
const LIST: Duration = Duration::from_secs(120);

/// Manifests that are read at the same time.
const AT_ONCE: usize = 8;

/// A manifest that lies in the store.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Where.
    pub key: BackupKey,
    /// What it says, or why that is not known: of a newer format, damaged, or of another backup.
    pub manifest: Result<Manifest, StoreError>,
}

impl Store {
    /// All backups directly under the prefix, the oldest first, those that cannot be understood last.
    ///
    /// A directory without a manifest is no backup and is not listed. What lies deeper is another prefix's.
    ///
    /// # Errors
    /// When the store fails. A manifest that cannot be understood is no error: it is listed with the reason.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let listing = self.objects.list_with_delimiter(Some(&self.prefix));
        let listing = self.within(LIST, "list the backups", listing).await?;
        let mut found: Vec<Listed> = futures::stream::iter(listing.common_prefixes)
            .map(|directory| self.look(BackupKey::at(directory)))
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|found| std::future::ready(Ok(found)))
            .try_collect()
            .await?;
        found.sort_by_key(|listed| {
            let started = listed.manifest.as_ref().ok().map(|m| m.started_at.0);
            (started.is_none(), started, listed.key.manifest.to_string())
        });
        Ok(found)
    }

    async fn look(&self, key: BackupKey) -> Result<Option<Listed>, StoreError> {
        let manifest = match self.manifest(&key).await {
            Ok(None) => return Ok(None),
            Ok(Some(manifest)) => self.belongs(&manifest, &key).map(|()| manifest),
            // What the store itself has to say is not the manifest's fault.
            Err(error) if error.of_the_store() => return Err(error),
            Err(error) => Err(error),
        };
        Ok(Some(Listed { key, manifest }))
    }

    /// Refuses a manifest that is of another backup than the one that lies there.
    pub(super) fn belongs(&self, manifest: &Manifest, key: &BackupKey) -> Result<(), StoreError> {
        if manifest.is_of(key) {
            return Ok(());
        }
        Err(self.failure(Failure::Misplaced {
            location: self.uri(&key.manifest),
            name: manifest.name.clone(),
            uid: manifest.uid.clone(),
            cluster: manifest.cluster_id.clone(),
            node: manifest.node.clone(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStoreExt as _, PutPayload};

    use super::*;

    fn manifest(format: u32, name: &str, started: &str) -> String {
        format!(
            r#"{{"format": {format}, "id": "a", "name": "{name}", "uid": "01234567-89ab", "node": "cp1",
            "clusterId": "c", "memberId": "m", "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 4, "sha256": "s",
            "partSizeBytes": 8388608, "startedAt": "{started}", "completedAt": "2026-11-01T03:00:05Z"}}"#
        )
    }

    #[tokio::test]
    async fn whole_backups_are_listed_and_what_cannot_be_understood_with_its_reason() {
        let objects = Arc::new(InMemory::new());
        let store = Store::from_objects(objects.clone(), "one/cluster");
        for (path, body) in [
            (
                "one/cluster/newer-01234567/manifest.json",
                manifest(1, "newer", "2026-11-02T00:00:00Z"),
            ),
            (
                "one/cluster/older-01234567/manifest.json",
                manifest(1, "older", "2026-11-01T00:00:00Z"),
            ),
            ("one/cluster/half-01234567/snapshot.db", "half".to_owned()),
            (
                "one/cluster/later-01234567/manifest.json",
                manifest(99, "later", "2026-11-01T00:00:00Z"),
            ),
            ("one/cluster/broken-01234567/manifest.json", "{".to_owned()),
            (
                "one/cluster/moved-01234567/manifest.json",
                manifest(1, "another", "2026-11-01T00:00:00Z"),
            ),
            ("one/cluster/.lockkeeper-probe-0", "x".to_owned()),
            (
                "one/cluster/deeper/x-01234567/manifest.json",
                manifest(1, "x", "2026-11-01T00:00:00Z"),
            ),
            (
                "one/clusters/y-01234567/manifest.json",
                manifest(1, "y", "2026-11-01T00:00:00Z"),
            ),
        ] {
            objects
                .put(&Path::from(path), PutPayload::from(body))
                .await
                .unwrap();
        }
        let listed = store.list().await.unwrap();
        let told: Vec<(&str, Option<&str>)> = listed
            .iter()
            .map(|l| (l.key.name(), l.manifest.as_ref().err().map(StoreError::reason)))
            .collect();
        assert_eq!(
            told,
            [
                ("older-01234567", None),
                ("newer-01234567", None),
                ("broken-01234567", Some("ManifestInvalid")),
                ("later-01234567", Some("ManifestInvalid")),
                ("moved-01234567", Some("Misplaced")),
            ]
        );
        let moved = listed[4].manifest.as_ref().unwrap_err().to_string();
        assert!(
            moved.contains("another, UID 01234567-89ab, of etcd cluster c"),
            "{moved}"
        );
        assert_eq!(
            Store::from_objects(objects, "nothing/here")
                .list()
                .await
                .unwrap()
                .len(),
            0
        );
    }
}
