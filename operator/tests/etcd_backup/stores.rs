//! What stores hold beside whole backups: parts of dead uploads; and a directory as a store.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use lockkeeper::agent::backup::{Request, take};
use lockkeeper::store::{Identities, Store};
use lockkeeper_crds::{Compression, Directory, Encryption, EtcdBackupStoreSpec};
use object_store::PutPayload;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::request;
use super::world::{BUCKET, Etcd, ObjectServer, binaries};

/// Every unfinished upload, as the server's own directory has them: `object's hash/upload's id`.
fn uploads(s3: &ObjectServer) -> Vec<std::path::PathBuf> {
    let root = s3.root.path().join(BUCKET).join(".sgwtmp/multipart");
    let below = |at: std::path::PathBuf| {
        let entries = std::fs::read_dir(at).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect::<Vec<_>>()
    };
    below(root).into_iter().flat_map(below).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_the_dead_are_swept_and_nobody_elses() {
    let Some(bin) = binaries() else { return };
    let s3 = ObjectServer::start(&bin).await;
    let (store, raw) = (s3.store(), s3.raw());
    let begin = |key: &str| {
        let (s3, raw, key) = (&s3, &raw, Path::from(key));
        async move {
            let before = uploads(s3);
            let id = raw.create_multipart(&key).await.unwrap();
            let part = PutPayload::from(vec![0_u8; 5 << 20]);
            raw.put_part(&key, &id, 0, part).await.unwrap();
            let after = uploads(s3);
            let new = after.into_iter().find(|u| !before.contains(u)).unwrap();
            (key, id, new)
        }
    };
    let aged = |upload: &std::path::Path| {
        let aged = Command::new("touch")
            .args(["-d", "2 days ago"])
            .arg(upload)
            .status();
        assert!(aged.unwrap().success());
    };
    let (_, _, dead) = begin("clusters/one/dead-01234567/snapshot.db.zst").await;
    let (_, _, fresh) = begin("clusters/one/fresh-01234567/snapshot.db.zst").await;
    let (_, _, deeper) = begin("clusters/one/two/dead-01234567/snapshot.db.zst").await;
    let (_, _, beside) = begin("clusters/ones/dead-01234567/snapshot.db.zst").await;
    let (_, _, film) = begin("clusters/one/dead-01234567/film.mp4").await;
    for upload in [&dead, &deeper, &beside, &film] {
        aged(upload);
    }
    assert_eq!(store.sweep(&BTreeSet::new()).await.unwrap(), 1);
    let mut left = uploads(&s3);
    left.sort();
    let mut others = vec![fresh.clone(), deeper, beside, film];
    others.sort();
    assert_eq!(left, others);

    // One that is known to be dead goes at once, and its neighbours stay.
    let key = store.key("fresh", "0123456789");
    assert_eq!(store.sweep_of(&key).await.unwrap(), 1);
    assert!(!uploads(&s3).contains(&fresh));
    assert_eq!(store.sweep_of(&key).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_keeps_lists_and_gives_back_as_a_bucket_does() {
    let Some(bin) = binaries() else { return };
    let etcd = Etcd::start(&bin).await;
    etcd.fill(2000, 8192).await;
    let root = tempfile::tempdir().unwrap();
    let (keys, public, _) = Identities::generate();
    let spec = EtcdBackupStoreSpec {
        directory: Some(Directory {
            path: root.path().display().to_string(),
        }),
        compression: Compression::Zstd,
        encryption: Some(Encryption {
            recipients: vec![public],
            ..Encryption::default()
        }),
        ..EtcdBackupStoreSpec::default()
    };
    let store = Store::from_spec("nfs", &spec, lockkeeper::store::Secrets::default()).unwrap();
    store.probe().await.unwrap();
    assert_eq!(
        std::fs::read_dir(root.path()).unwrap().count(),
        0,
        "the probe is left"
    );

    let (member, never) = (etcd.member(), CancellationToken::new());
    let artifact = take(&member, &store, &request(60), &never, |_| ()).await.unwrap();
    assert!(artifact.uri.starts_with("file:///"), "{}", artifact.uri);
    let at = std::path::Path::new(artifact.uri.strip_prefix("file://").unwrap());
    let stored = std::fs::metadata(at).unwrap().len();
    assert_eq!(artifact.stored_bytes, i64::try_from(stored).ok());
    let taken = take(&member, &store, &request(60), &never, |_| ()).await;
    assert_eq!(taken.unwrap_err().reason(), "ManifestConflict");

    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    let manifest = listed[0].manifest.as_ref().unwrap();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("snapshot.db");
    store
        .fetch(manifest, &listed[0].key, &keys, &file, &never)
        .await
        .unwrap();
    let data = out.path().join("data");
    let restored = Command::new(bin.join("etcdutl"))
        .args(["snapshot", "restore"])
        .arg(&file)
        .arg("--data-dir")
        .arg(&data)
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");

    // What a killed agent left.
    let killed = root.path().join("killed-01234567");
    std::fs::create_dir(&killed).unwrap();
    let half = || std::fs::write(killed.join("snapshot.db.zst.age#1"), "half").unwrap();
    half();
    let others = BTreeSet::from(["other-01234567".to_owned()]);
    assert_eq!(store.sweep(&others).await.unwrap(), 0, "it may be at work still");
    let ended = BTreeSet::from(["killed-01234567".to_owned()]);
    assert_eq!(store.sweep(&ended).await.unwrap(), 1);
    half();
    let key = store.key("killed", "0123456789");
    assert_eq!(store.sweep_of(&key).await.unwrap(), 1);
    assert_eq!(store.list().await.unwrap().len(), 1);
    store.remove(&listed[0].key, &request(1).uid).await.unwrap();
    assert!(!at.exists());

    // Gone while nobody looked, or not writable: said by the name of its field.
    let spec = EtcdBackupStoreSpec {
        directory: Some(Directory {
            path: "/nowhere/at/all".to_owned(),
        }),
        ..EtcdBackupStoreSpec::default()
    };
    let told = Store::from_spec("nfs", &spec, lockkeeper::store::Secrets::default()).unwrap_err();
    assert!(told.to_string().contains("spec.directory.path"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_slows_the_stream_and_nothing_else() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(1000, 8192).await;
    let spec = EtcdBackupStoreSpec {
        limit_bytes_per_second: Some(4 << 20),
        ..s3.spec()
    };
    let store = Store::from_spec("main", &spec, ObjectServer::credentials()).unwrap();
    let began = std::time::Instant::now();
    let request = Request {
        name: "limited".to_owned(),
        ..request(60)
    };
    let artifact = take(
        &etcd.member(),
        &store,
        &request,
        &CancellationToken::new(),
        |_| (),
    )
    .await
    .unwrap();
    let least = artifact.size_bytes as f64 / f64::from(4 << 20) - 0.5;
    assert!(
        began.elapsed() > Duration::from_secs_f64(least.max(1.)),
        "{:?}",
        began.elapsed()
    );
}
