use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use object_store::memory::InMemory;
use object_store::{ObjectStoreExt as _, PutPayload};

use super::*;

const UID: &str = "01234567-89ab";

fn content() -> Vec<u8> {
    (0..700_000_u32).map(|i| (i % 251) as u8).collect()
}

fn manifest(content: &[u8]) -> Manifest {
    Manifest {
        format: 1,
        id: "id".to_owned(),
        name: "nightly".to_owned(),
        uid: UID.to_owned(),
        schedule: None,
        node: "cp-1".to_owned(),
        cluster_id: "c1".to_owned(),
        member_id: "m".to_owned(),
        etcd_version: "3.6.6".to_owned(),
        storage_version: None,
        kubernetes_version: None,
        revision: 7,
        keys: None,
        hash_kv: None,
        snapshot: None,
        pki: None,
        size_bytes: content.len() as u64,
        sha256: hex(&Sha256::digest(content)),
        part_size_bytes: 8 << 20,
        started_at: Time(Timestamp::UNIX_EPOCH),
        completed_at: Time(Timestamp::UNIX_EPOCH),
    }
}

struct World {
    store: Store,
    objects: Arc<InMemory>,
    key: BackupKey,
    disk: tempfile::TempDir,
}

impl World {
    async fn with(stored: &[u8]) -> Self {
        let objects = Arc::new(InMemory::new());
        let store = Store::from_objects(objects.clone(), "cluster");
        let key = store.key("nightly", UID);
        let payload = PutPayload::from(stored.to_vec());
        objects.put(&key.object("snapshot.db"), payload).await.unwrap();
        Self {
            store,
            objects,
            key,
            disk: tempfile::tempdir().unwrap(),
        }
    }

    fn target(&self) -> PathBuf {
        self.disk.path().join("snapshot.db")
    }

    async fn fetch(&self, manifest: &Manifest) -> Result<(), StoreError> {
        let (keys, never) = (Identities::none(), CancellationToken::new());
        self.store
            .fetch(manifest, &self.key, &keys, &self.target(), &never)
            .await
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.disk.path()).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[tokio::test]
async fn what_was_stored_comes_back_as_a_file_of_its_owner_alone() {
    let world = World::with(&content()).await;
    // Of one that was killed.
    std::fs::write(world.disk.path().join(".snapshot.db.part"), "half").unwrap();
    world.fetch(&manifest(&content())).await.unwrap();
    assert_eq!(std::fs::read(world.target()).unwrap(), content());
    let mode = std::fs::metadata(world.target()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(world.files(), ["snapshot.db"]);
}

#[tokio::test]
async fn what_is_not_what_the_manifest_says_is_refused_and_leaves_no_file() {
    let mut flipped = content();
    flipped[350_000] ^= 1;
    let mut shorter = content();
    shorter.truncate(699_999);
    for (stored, says) in [(flipped, "SHA-256"), (shorter, "699999 bytes instead of 700000")] {
        let world = World::with(&stored).await;
        std::fs::write(world.target(), "what was there before").unwrap();
        let error = world.fetch(&manifest(&content())).await.unwrap_err();
        assert_eq!(error.reason(), "Damaged", "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("use another backup"), "{error}");
        assert_eq!(world.files(), ["snapshot.db"]);
        assert_eq!(std::fs::read(world.target()).unwrap(), b"what was there before");
    }
    let world = World::with(&content()).await;
    world
        .objects
        .delete(&world.key.object("snapshot.db"))
        .await
        .unwrap();
    let error = world.fetch(&manifest(&content())).await.unwrap_err();
    assert!(error.to_string().contains("it is not there"), "{error}");
}

#[tokio::test]
async fn a_manifest_of_another_backup_is_refused_by_name() {
    let world = World::with(&content()).await;
    let theirs = Manifest {
        uid: "fedcba98".to_owned(),
        cluster_id: "another".to_owned(),
        ..manifest(&content())
    };
    let error = world.fetch(&theirs).await.unwrap_err();
    assert_eq!(error.reason(), "Misplaced");
    let told = error.to_string();
    assert!(
        told.contains("nightly, UID fedcba98, of etcd cluster another, from node cp-1"),
        "{told}"
    );
}

#[tokio::test]
async fn a_disk_that_does_not_take_it_is_named() {
    let world = World::with(&content()).await;
    std::fs::remove_dir(world.disk.path()).unwrap();
    let error = world.fetch(&manifest(&content())).await.unwrap_err();
    assert_eq!(error.reason(), "FileUnusable");
    assert!(error.to_string().contains(".snapshot.db.part"), "{error}");
    std::fs::create_dir(world.disk.path()).unwrap();
}

#[tokio::test]
async fn cancelling_leaves_nothing() {
    let world = World::with(&content()).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let (manifest, keys, target) = (manifest(&content()), Identities::none(), world.target());
    let fetched = world.store.fetch(&manifest, &world.key, &keys, &target, &cancel);
    // Either it was quicker, or nothing is there.
    match fetched.await {
        Ok(()) => assert_eq!(world.files(), ["snapshot.db"]),
        Err(error) => {
            assert_eq!(error.reason(), "Cancelled");
            assert_eq!(world.files(), [""; 0]);
        }
    }
}

#[test]
fn a_wrong_key_ends_it_at_once() {
    let ((_, public, _), (other, _, _)) = (Identities::generate(), Identities::generate());
    let lock = crate::store::keys::Lock::recipients(&[public]).unwrap();
    let mut age = lock.encryptor().unwrap().wrap_output(vec![]).unwrap();
    age.write_all(&content()).unwrap();
    let stored = age.finish().unwrap();
    let of = |data: &[u8]| Fingerprint {
        size: data.len() as u64,
        sha256: hex(&Sha256::digest(data)),
    };
    let object = Object {
        name: "snapshot.db.age".to_owned(),
        stored: of(&stored),
        plain: of(&content()),
        compression: lockkeeper_crds::Compression::None,
        encrypted: Some(lock.described()),
    };
    let (give, taken) = mpsc::channel(1);
    give.try_send(stored.into()).unwrap();
    drop(give);
    let ended = plain(Pieces::new(taken), &object, &other, |_| {
        panic!("nothing is unpacked")
    });
    assert!(matches!(ended, Err(Unwritten::Content(Unreadable::WrongKey))));
}
