//! A deleted `EtcdBackup` takes what it stored along.

use std::time::{Duration, Instant};

use lockkeeper::agent::backup::{Request, take};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::world::{Etcd, ObjectServer, binaries};
use crate::{NODE, agent, condition, request};

/// Waits for the condition `Deleted` to be what is wanted.
pub(crate) async fn deleted(api: &Api, name: &str, wanted: &str) -> Value {
    let began = Instant::now();
    loop {
        let status = api.backup(name)["status"].clone();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        if all
            .iter()
            .any(|c| c["type"] == "Deleted" && c["status"] == wanted)
        {
            return status;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "not Deleted={wanted}: {status:#}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_backup_takes_what_it_stored_along_and_leaves_the_others() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let (shutdown, running) = agent(&client, &etcd);
    for name in ["older", "newer"] {
        api.put_backup(name, 60, &json!({ "node": NODE }));
        api.end_of(name, Duration::from_secs(60)).await;
    }
    assert_eq!(s3.objects().len(), 4);

    // The store means another place now: what is there is not looked for here.
    let mut elsewhere = s3.spec();
    elsewhere.s3.as_mut().unwrap().prefix = "another".to_owned();
    api.put_store(&elsewhere, "secret-key");
    api.mark_deleted("older");
    let status = deleted(&api, "older", "False").await;
    assert_eq!(condition(&status, "Deleted"), ("False", "Elsewhere"));
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("s3://") && message.contains("lockkeeper.dev/retain"),
        "{message}"
    );
    assert_eq!(s3.objects().len(), 4);

    api.put_store(&s3.spec(), "secret-key");
    let status = deleted(&api, "older", "True").await;
    assert_eq!(condition(&status, "Deleted"), ("True", "Deleted"));
    assert_eq!(s3.objects().len(), 2, "{:?}", s3.objects());
    assert!(
        s3.objects().iter().all(|o| o.starts_with("clusters/one/newer-")),
        "{:?}",
        s3.objects()
    );
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_lay_in_the_store_already_says_what_its_manifest_says_and_goes_by_it() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let before = Request {
        uid: "before-the-restore".to_owned(),
        ..request(60)
    };
    let never = CancellationToken::new();
    let artifact = take(&etcd.member(), &s3.store(), &before, &never, |_| ()).await;
    let (shutdown, running) = agent(&client, &etcd);
    api.put_adopting("of-before", "nightly-before-t");
    let status = api.end_of("of-before", Duration::from_secs(30)).await;
    assert_eq!(condition(&status, "Stored"), ("True", "ReadBack"));
    assert_eq!(status["artifact"], json!(artifact.unwrap()));
    let listed = s3.store().list().await.unwrap();
    let manifest = listed[0].manifest.as_ref().unwrap();
    assert_eq!(
        [&status["startedAt"], &status["completedAt"]],
        [&json!(manifest.started_at), &json!(manifest.completed_at)]
    );
    assert_eq!(s3.objects().len(), 2, "nothing was taken anew");

    api.put_adopting("never-was", "nightly-never");
    let status = api.end_of("never-was", Duration::from_secs(30)).await;
    assert_eq!(condition(&status, "Succeeded"), ("False", "Absent"));

    api.mark_deleted("of-before");
    deleted(&api, "of-before", "True").await;
    assert_eq!(s3.objects(), Vec::<String>::new());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_deleted_while_it_is_taken_ends_and_leaves_nothing() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(crate::MIDWAY_KEYS, 20_000).await;
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let (shutdown, running) = agent(&client, &etcd);
    api.put_backup("nightly", 60, &json!({ "node": NODE }));
    let began = Instant::now();
    while api.backup("nightly")["status"]["startedAt"].is_null() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api.mark_deleted("nightly");
    let status = deleted(&api, "nightly", "True").await;
    assert!(!status["completedAt"].is_null(), "{status:#}");
    assert_eq!((s3.objects(), s3.parts()), (vec![], vec![]));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_failed_for_want_of_its_store_goes_and_one_that_stored_something_says_what_is_missing() {
    let Some(bin) = binaries() else { return };
    let etcd = Etcd::start(&bin).await;
    let (api, client) = Api::start().await;
    let (shutdown, running) = agent(&client, &etcd);
    api.put_backup("typo", 60, &json!({ "node": NODE }));
    let status = api.end_of("typo", Duration::from_secs(60)).await;
    assert_eq!(condition(&status, "Succeeded").0, "False");
    api.mark_deleted("typo");
    deleted(&api, "typo", "True").await;

    let artifact = json!({
        "uri": "s3://b/x-12345678/snapshot.db", "manifestUri": "s3://b/x-12345678/manifest.json", "sizeBytes": 1,
        "sha256": "", "revision": 1, "etcdVersion": "3.6.6", "clusterId": "c", "memberId": "m",
    });
    let ended = json!({
        "node": NODE, "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:09Z", "artifact": artifact,
    });
    api.put_backup("stored", 60, &ended);
    api.mark_deleted("stored");
    let status = deleted(&api, "stored", "False").await;
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains("does not exist") && message.contains("lockkeeper.dev/retain"),
        "{message}"
    );
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
