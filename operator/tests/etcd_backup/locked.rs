//! Buckets with Object Lock: what is deleted stays, and is said to.

use std::time::Duration;

use chrono::TimeDelta;
use http::Method;
use lockkeeper::store::Identities;
use lockkeeper_crds::{Checksum, EtcdBackupStoreSpec};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::deleted::deleted;
use super::relay::Relay;
use super::world::{BUCKET, Etcd, ObjectServer, binaries};
use super::{NODE, agent, condition};

fn spec(s3: &ObjectServer, relay: &Relay) -> EtcdBackupStoreSpec {
    let mut spec = s3.spec();
    let bucket = spec.s3.as_mut().unwrap();
    bucket.endpoint = Some(relay.endpoint.clone());
    bucket.checksum = Some(Checksum::Sha256);
    spec
}

fn message<'a>(status: &'a Value, type_: &str) -> &'a str {
    let all = status["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == type_).unwrap();
    found["message"].as_str().unwrap()
}

/// versitygw does not insist on a checksum as Amazon does; it compares one that comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_in_a_locked_bucket_can_be_restored_and_what_is_deleted_of_it_stays() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (
        Etcd::start(&bin).await,
        ObjectServer::start_locked(&bin, true).await,
    );
    etcd.fill(1000, 20_000).await;
    let relay = Relay::start(s3.port, TimeDelta::zero()).await;
    let (api, client) = Api::start().await;
    api.put_store(&spec(&s3, &relay), "secret-key");
    let (shutdown, running) = agent(&client, &etcd);
    let take = async |name: &str| {
        api.put_backup(name, 60, &json!({ "node": NODE }));
        let status = api.end_of(name, Duration::from_secs(60)).await;
        assert_eq!(condition(&status, "Succeeded").0, "True", "{status:#}");
        status
    };

    let status = take("nightly").await;
    let told = api.store()["status"].clone();
    assert_eq!(condition(&told, "Available").0, "True", "{told:#}");
    assert_eq!(condition(&told, "KeepsVersions"), ("True", "Versioned"));
    assert!(message(&told, "KeepsVersions").contains("NoncurrentVersionExpiration"));
    // Two probes and one that stays, put twice or once; the parts; the manifest. And the upload itself says which.
    let parts = status["artifact"]["storedBytes"]
        .as_u64()
        .unwrap()
        .div_ceil(8 << 20);
    assert_eq!(relay.heard("x-amz-checksum-sha256: ").len() as u64, 3 + parts + 1);
    assert_eq!(relay.heard("x-amz-checksum-algorithm: sha256").len(), 1);

    let store = s3.store();
    let listed = store.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    let (manifest, out) = (listed[0].manifest.as_ref().unwrap(), tempfile::tempdir().unwrap());
    let file = out.path().join("snapshot.db");
    let (never, none) = (CancellationToken::new(), Identities::none());
    let fetched = store.fetch(manifest, &listed[0].key, &none, &file, &never);
    fetched.await.unwrap();

    // Another probe adds nothing.
    let probes = async || {
        let kept = s3.kept("Version").await;
        kept.into_iter().filter(|(key, _)| key.contains("probe")).count()
    };
    let before = probes().await;
    assert_eq!(before, 2);
    take("later").await;
    assert_eq!(probes().await, before);

    api.mark_deleted("nightly");
    let status = deleted(&api, "nightly", "True").await;
    assert_eq!(
        condition(&status, "Deleted"),
        ("True", "VersionsKept"),
        "{status:#}"
    );
    let said = message(&status, "Deleted");
    for says in ["s3://backups/clusters/one/nightly-", "lifecycle", "object lock"] {
        assert!(said.contains(says), "{said}");
    }
    assert!(!said.contains("gone"), "{said}");
    assert_eq!(s3.store().list().await.unwrap().len(), 1);
    let kept = s3.kept("Version").await;
    let kept: Vec<_> = kept.iter().filter(|(key, _)| key.contains("/nightly-")).collect();
    assert_eq!(kept.len(), 2, "{kept:?}");
    for (key, id) in kept {
        let refused = s3.ask(Method::DELETE, key, &[("versionId", id)], &[], "").await;
        assert_eq!(refused.0, 403, "{refused:?}");
        assert!(refused.1.contains("protected by object lock"), "{refused:?}");
    }

    // As the README has it.
    for (key, id) in s3.kept("DeleteMarker").await {
        if key.contains("/nightly-") {
            let undone = s3.ask(Method::DELETE, &key, &[("versionId", &id)], &[], "").await;
            assert_eq!(undone.0, 204, "{undone:?}");
        }
    }
    let back = s3.store().list().await.unwrap();
    let back = back
        .iter()
        .find(|l| l.key.name().starts_with("nightly-"))
        .unwrap();
    assert_eq!(back.manifest.as_ref().unwrap(), manifest);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

/// No real S3 has locks without versions; Google's and Azure's retention is like that.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_forbids_a_deletion_is_called_one_and_waited_for() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (
        Etcd::start(&bin).await,
        ObjectServer::start_locked(&bin, false).await,
    );
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let (shutdown, running) = agent(&client, &etcd);
    for name in ["nightly", "later"] {
        api.put_backup(name, 60, &json!({ "node": NODE }));
        let status = api.end_of(name, Duration::from_secs(60)).await;
        assert_eq!(condition(&status, "Succeeded").0, "True", "{status:#}");
    }
    let told = api.store()["status"].clone();
    assert_eq!(condition(&told, "Available").0, "True", "{told:#}");

    api.mark_deleted("nightly");
    let status = deleted(&api, "nightly", "False").await;
    assert_eq!(condition(&status, "Deleted"), ("False", "Locked"), "{status:#}");
    let said = message(&status, "Deleted");
    for says in [
        "a lock, a retention or a legal hold in bucket backups",
        "wait until it ends",
        "lockkeeper.dev/retain",
    ] {
        assert!(said.contains(says), "{said}");
    }
    assert!(!said.contains("credentials"), "{said}");
    let own = |objects: Vec<String>| -> Vec<String> {
        let own = objects.into_iter();
        own.filter(|key| key.contains("/nightly-")).collect()
    };
    let objects = own(s3.objects());
    assert_eq!(objects.len(), 2, "{objects:?}");

    // The lock ends, as far as this server lets anybody end one.
    let bypass = [("x-amz-bypass-governance-retention", "true")];
    for key in objects {
        let gone = s3.ask(Method::DELETE, &key, &[], &bypass, "").await;
        assert_eq!(gone.0, 204, "{gone:?}");
    }
    let status = deleted(&api, "nightly", "True").await;
    assert_eq!(
        condition(&status, "Deleted"),
        ("True", "Deleted"),
        "{BUCKET}: {status:#}"
    );
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
