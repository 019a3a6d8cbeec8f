//! The manifest: a small JSON file beside the snapshot, published last. It is the backup.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Failure, Store, StoreError};

/// The format written here. A reader refuses a higher one.
pub const FORMAT: u32 = 1;

/// One operation on a small object, retries and all.
const SMALL: Duration = Duration::from_secs(80);

/// A manifest is under 1 KiB; what is larger than this is something else.
const MOST_BYTES: u64 = 64 * 1024;

/// How often the manifest's put is tried: the client does not retry a conditional put by itself.
const TRIES: u32 = 4;

/// Where one backup lies: `<prefix>/<name>-<first 8 of the UID>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupKey {
    /// The snapshot file, as etcd streamed it.
    pub snapshot: Path,
    /// The manifest.
    pub manifest: Path,
}

impl BackupKey {
    pub(super) fn new(prefix: &Path, backup: &str, uid: &str) -> Self {
        Self::at(prefix.clone().join(directory(backup, uid)))
    }

    /// Of the backup in this directory.
    pub(super) fn at(directory: Path) -> Self {
        Self {
            snapshot: directory.clone().join("snapshot.db"),
            manifest: directory.join("manifest.json"),
        }
    }

    /// Of the backup in the directory of this path, prefix included; one of the files in it may be named instead.
    ///
    /// # Errors
    /// When it is no path of a store.
    pub fn parse(path: &str) -> Result<Self, object_store::path::Error> {
        let path = path.trim_matches('/');
        let file = |name: &str| path.strip_suffix(name).and_then(|p| p.strip_suffix('/'));
        let directory = file("manifest.json").or_else(|| file("snapshot.db"));
        Ok(Self::at(Path::parse(directory.unwrap_or(path))?))
    }

    /// The directory's own name, without the store's prefix: `<name>-<first 8 of the UID>`.
    #[must_use]
    pub fn name(&self) -> &str {
        let mut parts = self.manifest.as_ref().rsplit('/');
        parts.nth(1).unwrap_or_default()
    }
}

fn directory(backup: &str, uid: &str) -> String {
    let uid8: String = uid.chars().take(8).collect();
    format!("{backup}-{uid8}")
}

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Of this one attempt: tells our own manifest from another's after an ambiguous failure.
    pub id: String,
    /// Name of the `EtcdBackup`.
    pub name: String,
    /// UID of the `EtcdBackup`.
    pub uid: String,
    /// The node whose member was read.
    pub node: String,
    /// Hexadecimal.
    pub cluster_id: String,
    /// Hexadecimal.
    pub member_id: String,
    /// The server's version.
    pub etcd_version: String,
    /// Of the data, where the server says it (from 3.6 on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_version: Option<String>,
    /// Of the API server that was asked, where one answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// Of a linearizable read just before: the snapshot is at least this new.
    pub revision: i64,
    /// Of the snapshot file.
    pub size_bytes: u64,
    /// Of the whole snapshot file, lower-case hexadecimal.
    pub sha256: String,
    /// In which it was uploaded.
    pub part_size_bytes: u64,
    /// When the stream began.
    pub started_at: Time,
    /// When it had been read back.
    pub completed_at: Time,
}

impl Manifest {
    /// True when it is of the backup that lies there: one that was copied from elsewhere is not.
    #[must_use]
    pub fn is_of(&self, key: &BackupKey) -> bool {
        directory(&self.name, &self.uid) == key.name()
    }
}

impl Store {
    /// The manifest at this key; none when there is no backup.
    ///
    /// # Errors
    /// When the store fails, or what lies there is no manifest of a known format.
    pub async fn manifest(&self, key: &BackupKey) -> Result<Option<Manifest>, StoreError> {
        let read = async {
            let answer = self.objects.get(&key.manifest).await?;
            if answer.meta.size > MOST_BYTES {
                return Ok(Err(format!("{} bytes", answer.meta.size)));
            }
            Ok(Ok(answer.bytes().await?))
        };
        let read = match tokio::time::timeout(SMALL, read).await {
            Ok(Ok(read)) => read,
            Ok(Err(e)) => {
                let error = self.error("read the manifest", &e);
                let absent = matches!(e, object_store::Error::NotFound { .. })
                    && !matches!(error.failure(), Failure::NoSuchBucket { .. });
                return if absent { Ok(None) } else { Err(error) };
            }
            Err(_) => return Err(self.place.timed_out("read the manifest", SMALL)),
        };
        read.and_then(|bytes| parse(&bytes)).map(Some).map_err(|detail| {
            self.failure(Failure::ManifestInvalid {
                location: self.uri(&key.manifest),
                detail,
            })
        })
    }

    /// Publishes the manifest, if none is there. From then on the backup exists.
    pub(super) async fn publish(&self, key: &BackupKey, manifest: &Manifest) -> Result<(), StoreError> {
        let invalid = |e: serde_json::Error| {
            self.failure(Failure::ManifestInvalid {
                location: self.uri(&key.manifest),
                detail: e.to_string(),
            })
        };
        let body = PutPayload::from(serde_json::to_vec_pretty(manifest).map_err(invalid)?);
        let mut tries = 0;
        loop {
            tries += 1;
            let create = PutOptions::from(PutMode::Create);
            let put = self.objects.put_opts(&key.manifest, body.clone(), create);
            let Err(put) = self.within(SMALL, "write the manifest", put).await else {
                return Ok(());
            };
            // It may have arrived although its answer did not: what lies there decides.
            match self.manifest(key).await {
                Ok(Some(found)) if found.id == manifest.id => return Ok(()),
                Ok(Some(_)) => {
                    return Err(self.failure(Failure::ManifestTaken {
                        location: self.uri(&key.manifest),
                    }));
                }
                Ok(None) if put.failure().passing() && tries < TRIES => {}
                Err(read) if read.failure().passing() && tries < TRIES => {}
                Ok(None) | Err(_) => return Err(put),
            }
            tokio::time::sleep(Duration::from_millis(500) * 2_u32.pow(tries)).await;
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if format != FORMAT {
        return Err(format!(
            "it is of format {format}, and this version knows format {FORMAT} only"
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| e.to_string())
}
