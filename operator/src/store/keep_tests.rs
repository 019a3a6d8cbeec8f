use lockkeeper_crds::Compression;
use object_store::ObjectStoreExt as _;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::store::Identities;
use crate::store::keys::Lock;
use crate::store::pack::Packing;
use crate::store::pki::{self, PkiFile};
use crate::store::testing::{Bytewise, Fault, SIZE, World, manifest};

/// A store that packs, its keys, and what it was given.
async fn packed(lock: Option<Lock>) -> (World, Manifest, Vec<u8>) {
    let mut world = World::with(Fault::None);
    world.store.packing = Packing {
        compression: Compression::Zstd,
        lock,
    };
    let written = world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap();
    let mut content = vec![];
    let mut source = Bytewise::of(SIZE);
    while let Piece::Data(piece) = source.next().await.unwrap() {
        content.extend_from_slice(&piece);
    }
    (world, written, content)
}

async fn fetched(world: &World, manifest: &Manifest, keys: &Identities) -> Result<Vec<u8>, StoreError> {
    let at = tempfile::tempdir().unwrap();
    let (key, file) = (world.store.key("nightly", "0123456789ab"), at.path().join("x"));
    let never = CancellationToken::new();
    world.store.fetch(manifest, &key, keys, &file, &never).await?;
    Ok(std::fs::read(file).unwrap())
}

#[tokio::test]
async fn what_was_packed_is_small_and_comes_back_whole() {
    let (world, manifest, content) = packed(None).await;
    let snapshot = manifest.snapshot();
    assert_eq!(snapshot.name, "snapshot.db.zst");
    assert!(snapshot.stored.size < snapshot.plain.size / 10, "{snapshot:?}");
    assert_eq!(manifest.size_bytes, SIZE as u64);
    let back = fetched(&world, &manifest, &Identities::none()).await.unwrap();
    assert!(back == content);
}

#[tokio::test]
async fn an_encrypted_backup_opens_with_any_of_its_keys_and_with_no_other() {
    let (first, first_public, _) = Identities::generate();
    let (second, second_public, _) = Identities::generate();
    let (other, ..) = Identities::generate();
    let lock = Lock::recipients(&[first_public.clone(), second_public]).unwrap();
    let (world, manifest, content) = packed(Some(lock)).await;
    assert_eq!(manifest.snapshot().name, "snapshot.db.zst.age");
    for keys in [&first, &second, &other.clone().and(&second)] {
        assert!(fetched(&world, &manifest, keys).await.unwrap() == content);
    }
    let none = fetched(&world, &manifest, &Identities::none()).await.unwrap_err();
    assert_eq!(none.reason(), "NoKey", "{none}");
    let wrong = fetched(&world, &manifest, &other).await.unwrap_err();
    assert_eq!(wrong.reason(), "WrongKey");
    let told = wrong.to_string();
    assert!(
        told.contains("wrong key") && told.contains(&first_public),
        "{told}"
    );
}

#[tokio::test]
async fn a_wrong_passphrase_is_told_from_a_damaged_object() {
    let text = "correct horse battery staple";
    let (world, manifest, content) = packed(Some(Lock::passphrase(text, "keys").unwrap())).await;
    let (right, wrong) = (
        Identities::none().with_passphrase(text),
        Identities::none().with_passphrase("another horse altogether"),
    );
    assert!(fetched(&world, &manifest, &right).await.unwrap() == content);
    assert_eq!(
        fetched(&world, &manifest, &wrong).await.unwrap_err().reason(),
        "WrongKey"
    );

    // A flipped byte in the header keeps the right one from fitting too: what lies there is asked first.
    let location = world
        .store
        .key("nightly", "0123456789ab")
        .object("snapshot.db.zst.age");
    let mut stored = world
        .inner
        .get(&location)
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    stored[60] ^= 1;
    world.inner.put(&location, stored.into()).await.unwrap();
    let told = fetched(&world, &manifest, &right).await.unwrap_err();
    assert_eq!(told.reason(), "Damaged", "{told}");
}

#[tokio::test]
async fn the_pki_goes_encrypted_or_not_at_all() {
    let file = PkiFile {
        path: "etc/kubernetes/pki/sa.key".into(),
        mode: 0o600,
        owner: 0,
        group: 0,
        content: b"VERYSECRET".to_vec(),
    };
    let tar = pki::archive(std::slice::from_ref(&file)).unwrap();
    let mut world = World::with(Fault::None);
    let (key, never) = (
        world.store.key("nightly", "0123456789ab"),
        CancellationToken::new(),
    );
    let plain = world
        .store
        .keep(&key, &mut Bytewise::of(SIZE), Some(tar.clone()), manifest, &never)
        .await
        .unwrap_err();
    assert!(plain.to_string().contains("set spec.encryption"), "{plain}");
    assert_eq!(world.objects().await, [""; 0]);

    let (keys, public, _) = Identities::generate();
    world.store.packing.lock = Some(Lock::recipients(&[public]).unwrap());
    let written = world
        .store
        .keep(&key, &mut Bytewise::of(SIZE), Some(tar), manifest, &never)
        .await
        .unwrap();
    assert_eq!(world.objects().await.len(), 3);
    let files = world
        .store
        .fetch_pki(&written, &key, &keys, &never)
        .await
        .unwrap();
    assert_eq!(files, Some(vec![file]));
    let (other, ..) = Identities::generate();
    let told = world
        .store
        .fetch_pki(&written, &key, &other, &never)
        .await
        .unwrap_err();
    assert_eq!(told.reason(), "WrongKey");
    for object in world.objects().await {
        let bytes = world
            .inner
            .get(&object.into())
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap();
        assert!(!bytes.windows(10).any(|w| w == b"VERYSECRET"));
    }
    world.store.remove(&key, "0123456789ab").await.unwrap();
    assert_eq!(world.objects().await, [""; 0]);
}

#[tokio::test]
async fn a_manifest_whose_answer_was_lost_is_recognised() {
    let world = World::with(Fault::ManifestAnswer);
    world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(world.objects().await.len(), 2);
}

#[tokio::test]
async fn anothers_manifest_is_left_alone() {
    let world = World::with(Fault::ManifestRace);
    let error = world
        .keep(Bytewise::of(SIZE), &CancellationToken::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("written by somebody else"), "{error}");
    let key = world.store.key("nightly", "0123456789ab");
    assert_eq!(world.store.manifest(&key).await.unwrap().unwrap().id, "theirs");
}

#[tokio::test]
async fn a_manifest_that_is_none_is_not_taken_for_absent() {
    for (body, says) in [
        ("{", "EOF"),
        (r#"{"format": 3}"#, "is of format 3"),
        (r#"{"format": 1}"#, "missing field"),
    ] {
        let world = World::with(Fault::None);
        let key = world.store.key("nightly", "0123456789ab");
        world.inner.put(&key.manifest, body.into()).await.unwrap();
        let error = world.store.manifest(&key).await.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("s3://bucket/"), "{error}");
    }
}
