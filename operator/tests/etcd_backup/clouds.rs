//! Google Cloud Storage and Azure Blob Storage, as near as they can be had here.
//!
//! Google's XML protocol is S3's but for who one is and for conditions, and no emulator of it knows multipart uploads:
//! its client is put before the real S3 server, with a relay that translates those two. Azure's client is tried with
//! Azurite by `--ignored`. Neither was ever tried with Google or Microsoft.

use std::collections::BTreeSet;
use std::time::Duration;

use lockkeeper::agent::backup::{Request, take};
use lockkeeper::store::{Access, Identities, Store};
use lockkeeper_crds::{Azure, EtcdBackupStoreSpec, Gcs};
use object_store::PutPayload;
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use tokio_util::sync::CancellationToken;

use super::relay::Relay;
use super::request;
use super::world::{BUCKET, Etcd, ObjectServer, binaries};

/// What a store must do, whatever it stands on.
async fn keeps_lists_and_gives_back(store: &Store, scheme: &str, etcd: &Etcd) {
    let (member, never) = (etcd.member(), CancellationToken::new());
    store.probe().await.unwrap();
    assert!(!store.clock().unwrap().is_off());
    let artifact = take(&member, store, &request(60), &never, |_| ()).await.unwrap();
    assert!(artifact.uri.starts_with(scheme), "{}", artifact.uri);
    assert!(
        artifact.stored_bytes.unwrap() > 8 << 20,
        "all of it went in one part"
    );
    let again = take(&member, store, &request(60), &never, |_| ()).await;
    assert_eq!(again.unwrap_err().reason(), "ManifestConflict");

    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    let manifest = listed[0].manifest.as_ref().unwrap();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("snapshot.db");
    let none = Identities::none();
    let fetched = store.fetch(manifest, &listed[0].key, &none, &file, &never);
    fetched.await.unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), manifest.size_bytes);

    // One that is told to end in the middle leaves nothing that is listed.
    let slow = Request {
        name: "cancelled".to_owned(),
        deadline: Duration::from_millis(1),
        ..request(60)
    };
    take(&member, store, &slow, &never, |_| ()).await.unwrap_err();
    assert_eq!(store.list().await.unwrap().len(), 1);

    store.sweep(&BTreeSet::new()).await.unwrap();
    store.remove(&listed[0].key, &request(1).uid).await.unwrap();
    // What is not there is not missed.
    store.remove(&listed[0].key, &request(1).uid).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn googles_client_keeps_lists_sweeps_and_gives_back() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(1000, 20_000).await;
    let relay = Relay::for_google(&s3).await;
    let spec = EtcdBackupStoreSpec {
        gcs: Some(Gcs {
            bucket: BUCKET.to_owned(),
            prefix: "clusters/one".to_owned(),
            endpoint: Some(relay.endpoint.clone()),
            credentials_secret: None,
            ca_bundle: None,
        }),
        ..EtcdBackupStoreSpec::default()
    };
    // As the client has it for emulators: no token is asked for.
    let key = r#"{"private_key": "-", "private_key_id": "-", "client_email": "-", "disable_oauth": true}"#;
    let store = Store::from_spec("main", &spec, Access::ServiceAccount(key.to_owned())).unwrap();
    keeps_lists_and_gives_back(&store, "gs://backups/clusters/one/", &etcd).await;
    assert!(!relay.heard("x-goog-if-generation-match: 0").is_empty());
    assert_eq!(s3.parts(), [""; 0]);

    // What a killed agent left.
    let (raw, at) = (s3.raw(), Path::from("clusters/one/dead-01234567/snapshot.db.zst"));
    let id = raw.create_multipart(&at).await.unwrap();
    let part = PutPayload::from(vec![0_u8; 5 << 20]);
    raw.put_part(&at, &id, 0, part).await.unwrap();
    assert_eq!(
        store.sweep(&BTreeSet::new()).await.unwrap(),
        0,
        "it may be at work still"
    );
    let ended = BTreeSet::from(["dead-01234567".to_owned()]);
    assert_eq!(store.sweep(&ended).await.unwrap(), 1);
    assert_eq!(s3.parts(), [""; 0]);
    assert!(relay.heard("get /backups?uploads").len() > 2);
}

/// `azurite-blob --inMemoryPersistence --blobPort PORT`, with a container `backups`; its address, with the account, in
/// `LOCKKEEPER_TEST_AZURITE`, the account's key in `LOCKKEEPER_TEST_AZURITE_KEY`, and a signature of the container with
/// `sp=racwdl` in `LOCKKEEPER_TEST_AZURITE_SAS`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Azurite"]
async fn azures_client_keeps_lists_and_gives_back() {
    let bin = binaries().unwrap();
    let etcd = Etcd::start(&bin).await;
    etcd.fill(1000, 20_000).await;
    let endpoint = std::env::var("LOCKKEEPER_TEST_AZURITE").unwrap();
    let key = std::env::var("LOCKKEEPER_TEST_AZURITE_KEY").unwrap();
    let mut spec = EtcdBackupStoreSpec {
        azure: Some(Azure {
            account: endpoint.rsplit('/').next().unwrap().to_owned(),
            container: BUCKET.to_owned(),
            prefix: "clusters/one".to_owned(),
            endpoint: Some(endpoint),
            credentials_secret: None,
            ca_bundle: None,
        }),
        ..EtcdBackupStoreSpec::default()
    };
    let open =
        |spec: &_, key: &str| Store::from_spec("main", spec, Access::AccountKey(key.to_owned())).unwrap();
    keeps_lists_and_gives_back(&open(&spec, &key), "az://backups/clusters/one/", &etcd).await;

    let wrong = open(&spec, "VkVSWVNFQ1JFVA==").probe().await.unwrap_err();
    // Azurite's word for it; Azure's own is AuthenticationFailed.
    assert_eq!(wrong.reason(), "Forbidden", "{wrong}");
    assert!(wrong.to_string().contains("AZURE_STORAGE_ACCOUNT_KEY"), "{wrong}");
    assert!(!wrong.to_string().contains("VkVS"), "{wrong}");
    spec.azure.as_mut().unwrap().container = "nowhere".to_owned();
    let nowhere = open(&spec, &key).probe().await.unwrap_err();
    assert_eq!(nowhere.reason(), "NoSuchBucket", "{nowhere}");
    assert!(nowhere.to_string().contains("spec.azure.container"), "{nowhere}");

    // A signature instead of the key.
    let sas = std::env::var("LOCKKEEPER_TEST_AZURITE_SAS").unwrap();
    spec.azure.as_mut().unwrap().container = BUCKET.to_owned();
    let store = Store::from_spec("main", &spec, Access::Sas(sas)).unwrap();
    keeps_lists_and_gives_back(&store, "az://backups/clusters/one/", &etcd).await;
}
