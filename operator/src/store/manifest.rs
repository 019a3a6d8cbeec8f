//! The manifest: a small JSON file beside the snapshot, published last. It is the backup.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lockkeeper_crds::{Compression, Encrypted, EtcdBackup};
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Failure, Fingerprint, Store, StoreError};

/// The format written here. A reader refuses a higher one and reads every lower one, for ever.
///
/// 1: the snapshot as etcd streamed it, `snapshot.db`. 2: packed, under the name that [`Manifest::snapshot`] says.
pub const FORMAT: u32 = 2;

/// The snapshot file's name before it is packed.
pub(super) const SNAPSHOT: &str = "snapshot.db";

/// The name of the node's PKI before it is packed.
pub(super) const PKI: &str = "pki.tar";

const MANIFEST: &str = "manifest.json";

/// One operation on a small object, retries and all.
const SMALL: Duration = Duration::from_secs(80);

/// A manifest is under 4 KiB; what is larger than this is something else.
const MOST_BYTES: u64 = 64 * 1024;

/// How often the manifest's put is tried: the client does not retry a conditional put by itself.
const TRIES: u32 = 4;

/// Where one backup lies: `<prefix>/<name>-<first 8 of the UID>/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupKey {
    directory: Path,
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
            manifest: directory.clone().join(MANIFEST),
            directory,
        }
    }

    /// From a path in the store: the backup's directory, or an object in it.
    fn parse(path: &str) -> Result<Self, object_store::path::Error> {
        let path = path.trim_matches('/');
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        let is_object = file == MANIFEST || names().any(|name| name == file);
        Ok(Self::at(Path::parse(if is_object { directory } else { path })?))
    }

    /// The directory's own name, without the store's prefix: `<name>-<first 8 of the UID>`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.directory.filename().unwrap_or_default()
    }

    /// The object of this name beside the manifest.
    #[must_use]
    pub fn object(&self, name: &str) -> Path {
        self.directory.clone().join(name)
    }

    /// Every place where data of this backup can lie, whatever it was packed with.
    pub(super) fn objects(&self) -> impl Iterator<Item = Path> + '_ {
        names().map(|name| self.object(&name))
    }
}

/// Why what was given names no place in a store.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // Each sentence says what its fields are.
pub enum KeyError {
    /// A URI of somewhere else.
    #[error("{given} is not in this store, which is {root}")]
    Elsewhere { given: String, root: String },
    /// No path.
    #[error("{given} is no key: {source}")]
    Invalid {
        given: String,
        source: object_store::path::Error,
    },
}

/// Every name that data of a backup can have.
pub(super) fn names() -> impl Iterator<Item = String> {
    let packed = |name: &'static str| {
        ["", ".zst", ".age", ".zst.age"]
            .into_iter()
            .map(move |p| format!("{name}{p}"))
    };
    // The PKI is never stored without encryption.
    packed(SNAPSHOT).chain(packed(PKI).filter(|name| name.ends_with(".age")))
}

/// The folder of what this object stands for, below the store's prefix.
#[must_use]
pub fn folder(backup: &EtcdBackup) -> String {
    let uid = backup.metadata.uid.as_deref().unwrap_or_default();
    let own = || directory(&backup.name_any(), uid);
    backup.stored_as().map_or_else(own, str::to_owned)
}

fn directory(backup: &str, uid: &str) -> String {
    let uid8: String = uid.chars().take(8).collect();
    format!("{backup}-{uid8}")
}

/// One object of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// Its name beside the manifest: what it holds, and then what to undo, from the right.
    pub name: String,
    /// As it lies in the store.
    pub stored: Fingerprint,
    /// Decrypted and decompressed.
    pub plain: Fingerprint,
    /// How it is compressed.
    pub compression: Compression,
    /// How it is encrypted; none when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encrypted: Option<Encrypted>,
}

/// `Maintenance.HashKV` of the member, for comparing with what was restored: equal hashes say something only of equal
/// revisions *and* equal compact revisions (facts.md section 3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyHash {
    /// Of keys and values.
    pub hash: u32,
    /// Up to which it was made.
    pub revision: i64,
    /// From which it was made.
    pub compact_revision: i64,
}

/// What a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT`], or a lower one.
    pub format: u32,
    /// Of this one attempt: tells our own manifest from another's after an ambiguous failure.
    pub id: String,
    /// Name of the `EtcdBackup`.
    pub name: String,
    /// UID of the `EtcdBackup`.
    pub uid: String,
    /// The `EtcdBackupSchedule` that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
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
    /// Keys at that revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<i64>,
    /// The member's own hash of its keys, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_kv: Option<KeyHash>,
    /// Of the snapshot file as etcd streamed it.
    pub size_bytes: u64,
    /// Of the whole snapshot file as etcd streamed it, lower-case hexadecimal.
    pub sha256: String,
    /// The snapshot in the store. None in format 1; [`Manifest::snapshot`] knows both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Object>,
    /// The node's PKI in the store, when it was included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pki: Option<Object>,
    /// In which it was uploaded.
    pub part_size_bytes: u64,
    /// When the stream began.
    pub started_at: Time,
    /// When it had been read back.
    pub completed_at: Time,
}

impl Manifest {
    /// The snapshot in the store.
    #[must_use]
    pub fn snapshot(&self) -> Object {
        self.snapshot.clone().unwrap_or_else(|| {
            let file = Fingerprint {
                size: self.size_bytes,
                sha256: self.sha256.clone(),
            };
            Object {
                name: SNAPSHOT.to_owned(),
                stored: file.clone(),
                plain: file,
                compression: Compression::None,
                encrypted: None,
            }
        })
    }

    /// True when it is of the backup that lies there: one that was copied from elsewhere is not.
    #[must_use]
    pub fn is_of(&self, key: &BackupKey) -> bool {
        directory(&self.name, &self.uid) == key.name()
    }
}

impl Store {
    /// Where a backup lies, by its key in this store, prefix included, or by its URI; of its directory, or of an
    /// object in it.
    ///
    /// # Errors
    /// When it is a URI of another bucket or directory, or no path of a store.
    pub fn locate(&self, given: &str) -> Result<BackupKey, KeyError> {
        let root = self.uri(&Path::default());
        let path = given.strip_prefix(&root).unwrap_or(given);
        let given = given.to_owned();
        if path.contains("://") {
            return Err(KeyError::Elsewhere { given, root });
        }
        BackupKey::parse(path).map_err(|source| KeyError::Invalid { given, source })
    }

    /// Where what this object stands for lies, or would lie.
    #[must_use]
    pub fn place(&self, backup: &EtcdBackup) -> BackupKey {
        BackupKey::at(self.prefix.clone().join(folder(backup)))
    }

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
            Ok(Err(e)) => return self.unless_absent("read the manifest", &e).map(|()| None),
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
    if !(1..=FORMAT).contains(&format) {
        return Err(format!(
            "it is of format {format}, and this version of Lockkeeper knows formats 1 to {FORMAT}: use a newer one"
        ));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let named = match (&manifest.snapshot, format) {
        (None, 1) => return Ok(manifest),
        (None, _) => return Err("it names no snapshot".to_owned()),
        (Some(snapshot), _) => snapshot,
    };
    // What it names is read and deleted: it must be a name that we gave.
    for object in [Some(named), manifest.pki.as_ref()].into_iter().flatten() {
        if !names().any(|name| name == object.name) {
            return Err(format!(
                "it names an object {:?}, which no backup has",
                object.name
            ));
        }
    }
    if (named.plain.size, &named.plain.sha256) != (manifest.size_bytes, &manifest.sha256) {
        return Err("it contradicts itself about the snapshot's size or SHA-256".to_owned());
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn format(format: u32) -> Value {
        let mut manifest = json!({
            "format": format, "id": "a", "name": "nightly", "uid": "0123456789", "node": "cp1", "clusterId": "c",
            "memberId": "m", "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 4, "sha256": "plain",
            "partSizeBytes": 8388608, "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:05Z",
        });
        if format == 2 {
            manifest["keys"] = json!(3);
            manifest["snapshot"] = json!({
                "name": "snapshot.db.zst.age", "stored": {"sizeBytes": 2, "sha256": "stored"},
                "plain": {"sizeBytes": 4, "sha256": "plain"}, "compression": "Zstd",
                "encrypted": {"kind": "age-recipients", "recipients": ["age1x"]},
            });
        }
        manifest
    }

    fn read(manifest: &Value) -> Result<Manifest, String> {
        parse(manifest.to_string().as_bytes())
    }

    #[test]
    fn format_1_is_read_for_ever_and_written_again_as_it_was() {
        let first = read(&format(1)).unwrap();
        let snapshot = first.snapshot();
        assert_eq!((snapshot.name.as_str(), snapshot.stored.size), ("snapshot.db", 4));
        assert_eq!(snapshot.stored, snapshot.plain);
        assert_eq!(serde_json::to_value(&first).unwrap(), format(1));
    }

    #[test]
    fn format_2_says_what_lies_there_and_what_it_was() {
        let second = read(&format(2)).unwrap();
        assert_eq!(serde_json::to_value(&second).unwrap(), format(2));
        assert_eq!((second.snapshot().stored.size, second.size_bytes), (2, 4));
    }

    #[test]
    fn a_backup_is_located_by_key_or_uri_in_its_own_store_only() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().display().to_string();
        let spec = json!({"directory": {"path": format!("{path}/")}});
        let spec = serde_json::from_value(spec).unwrap();
        let directory = Store::from_spec("nfs", &spec, super::super::Secrets::default()).unwrap();
        let bucket = Store::from_objects(
            std::sync::Arc::new(object_store::memory::InMemory::new()),
            "clusters/a",
        );
        for (store, root, folder) in [
            (&directory, &*format!("file://{path}/"), "nightly-01234567"),
            (&bucket, "s3://bucket/", "clusters/a/nightly-01234567"),
        ] {
            let manifest = format!("{folder}/manifest.json");
            for given in [
                folder.to_owned(),
                format!("/{folder}/"),
                manifest.clone(),
                format!("{root}{folder}"),
                format!("{root}{folder}/snapshot.db.zst.age"),
                format!("{root}{manifest}"),
            ] {
                let key = store.locate(&given).unwrap();
                assert_eq!(key.manifest.as_ref(), manifest, "{given}");
            }
            for foreign in [
                "s3://bucket2/clusters/a/nightly-01234567",
                "gs://bucket/clusters/a/nightly-01234567",
                &format!("file://{path}2/nightly-01234567"),
            ] {
                let told = store.locate(foreign).unwrap_err().to_string();
                assert!(told.contains(foreign) && told.ends_with(root), "{told}");
            }
            let out = store.locate(&format!("{root}../x")).unwrap_err();
            assert!(matches!(out, KeyError::Invalid { .. }), "{out}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (path, value, says) in [
            ("/format", json!(3), "use a newer one"),
            ("/format", json!(0), "format 0"),
            (
                "/snapshot/name",
                json!("../../another/snapshot.db"),
                "which no backup has",
            ),
            ("/snapshot/name", json!("pki.tar.zst"), "which no backup has"),
            ("/snapshot/plain/sizeBytes", json!(5), "contradicts itself"),
            ("/snapshot", Value::Null, "names no snapshot"),
        ] {
            let mut manifest = format(2);
            *manifest.pointer_mut(path).unwrap() = value;
            let told = read(&manifest).unwrap_err();
            assert!(told.contains(says), "{path}: {told}");
        }
    }
}
