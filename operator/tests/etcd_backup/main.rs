//! Backups with a real etcd and a real S3 server; the Kubernetes API is a stand-in.
//!
//! Needs `LOCKKEEPER_TEST_BIN`, a directory that holds `etcd`, `etcdutl` and `versitygw`.

// All of this is a test, its helpers too: what cannot go on says so at once.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod api;
mod cleansed;
mod clouds;
mod deleted;
mod figures;
mod locked;
mod relay;
mod servers;
mod stores;
mod world;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use api::{Api, NAMESPACE};
use lockkeeper::agent::backup::{self, Request, TakeError, take};
use lockkeeper::agent::etcd::EtcdMember;
use lockkeeper::store::Identities;
use lockkeeper_crds::Tristate;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use world::{BUCKET, Etcd, ObjectServer, binaries};

const NODE: &str = "cp-1";

/// Of 20 kB each. More than all buffers between etcd and the store's disk hold, so that there is a midway.
const MIDWAY_KEYS: usize = 6000;

fn request(deadline: u64) -> Request {
    Request {
        name: "nightly".to_owned(),
        uid: "0123456789".to_owned(),
        schedule: None,
        node: NODE.to_owned(),
        kubernetes_version: None,
        ended: Default::default(),
        deadline: Duration::from_secs(deadline),
        pki: false,
    }
}

fn agent(
    client: &kube::Client,
    etcd: &Etcd,
) -> (CancellationToken, JoinHandle<Result<(), backup::BackupError>>) {
    let shutdown = CancellationToken::new();
    let run = backup::run(
        client.clone(),
        NAMESPACE.to_owned(),
        NODE.to_owned(),
        etcd.member(),
        None,
        shutdown.clone(),
    );
    (shutdown, tokio::spawn(run))
}

fn condition<'a>(status: &'a Value, type_: &str) -> (&'a str, &'a str) {
    let all = status["conditions"].as_array().unwrap();
    let found = all
        .iter()
        .find(|c| c["type"] == type_)
        .unwrap_or_else(|| panic!("no {type_} in {status:#}"));
    (
        found["status"].as_str().unwrap(),
        found["reason"].as_str().unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assigned_backup_is_taken_and_can_be_restored() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(3000, 4096).await;
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    api.put_backup("another-nodes", 60, &json!({ "node": "cp-2" }));
    let (shutdown, running) = agent(&client, &etcd);
    api.put_backup("nightly", 60, &json!({}));
    api.put_backup("nightly", 60, &json!({ "node": NODE }));

    let status = api.end_of("nightly", Duration::from_secs(60)).await;
    assert_eq!(condition(&status, "Succeeded"), ("True", "Stored"), "{status:#}");
    assert_eq!(condition(&status, "Stored"), ("True", "ReadBack"));
    assert_eq!(
        condition(&api.store()["status"], "Available"),
        ("True", "Writable")
    );
    let objects = s3.objects();
    let snapshot = "clusters/one/nightly-nightly-/snapshot.db.zst";
    assert_eq!(objects, ["clusters/one/nightly-nightly-/manifest.json", snapshot]);
    assert_eq!(s3.parts(), [""; 0]);
    let artifact = &status["artifact"];
    assert_eq!(artifact["uri"], format!("s3://{BUCKET}/{snapshot}"));
    assert_eq!(artifact["etcdVersion"].as_str().unwrap().split('.').count(), 3);

    let key = s3.store().key("nightly", "nightly-0123456789");
    let manifest = s3.store().manifest(&key).await.unwrap().unwrap();
    assert_eq!(manifest.kubernetes_version.as_deref(), Some("v1.35.4"));
    assert_eq!(manifest.node, NODE);
    assert_eq!(json!(manifest.sha256), artifact["sha256"]);
    assert_eq!(json!(manifest.revision), artifact["revision"]);
    assert_eq!(json!(manifest.keys), artifact["keys"]);
    assert!(manifest.keys.unwrap() >= 3000);
    let hash = manifest.hash_kv.unwrap();
    // -1: nothing was compacted.
    assert_eq!((hash.revision, hash.compact_revision), (manifest.revision, -1));
    assert_eq!(etcd.member().hash_kv(manifest.revision).await.unwrap(), hash);
    let stored = s3.root.path().join(BUCKET).join(snapshot);
    let stored = i64::try_from(std::fs::metadata(&stored).unwrap().len()).unwrap();
    assert_eq!(artifact["storedBytes"], json!(stored));

    // What comes back is what etcd itself takes for a snapshot.
    let file = s3.root.path().join("fetched.db");
    let (never, none) = (CancellationToken::new(), Identities::none());
    s3.store()
        .fetch(&manifest, &key, &none, &file, &never)
        .await
        .unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), manifest.size_bytes);
    let listed = s3.store().list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].manifest.as_ref().unwrap(), &manifest);

    let etcdutl = |args: &[&str], target: &Path| {
        let scratch = tempfile::tempdir().unwrap();
        let data = scratch.path().join("data");
        let mut command = Command::new(bin.join("etcdutl"));
        command.args(["snapshot"]).args(args).arg(target);
        if args.contains(&"restore") {
            command.arg("--data-dir").arg(&data);
        }
        command.output().unwrap()
    };
    let told = etcdutl(&["status", "--write-out", "json"], &file);
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert!(told["revision"].as_i64().unwrap() >= manifest.revision, "{told}");
    assert!(told["totalKey"].as_i64().unwrap() >= 3000, "{told}");
    let restored = etcdutl(&["restore"], &file);
    assert!(restored.status.success(), "{restored:?}");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = s3.root.path().join("damaged.db");
    std::fs::write(&damaged, bytes).unwrap();
    let restored = etcdutl(&["restore"], &damaged);
    assert!(!restored.status.success(), "a flipped byte was accepted");

    // What is settled is left alone, and an idle agent asks for nothing.
    let so_far = api.requests().len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(api.requests().len(), so_far, "{:?}", api.requests());
    assert!(api.backup("another-nodes")["status"]["startedAt"].is_null());
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_right_is_told_before_anything_is_streamed() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let (api, client) = Api::start().await;
    let (shutdown, running) = agent(&client, &etcd);
    let mut elsewhere = s3.spec();
    elsewhere.s3.as_mut().unwrap().bucket = "another".to_owned();
    for (name, spec, secret, reason, says) in [
        (
            "wrong-secret",
            s3.spec(),
            "wrong",
            "BadCredentials",
            "Secret s3-key",
        ),
        (
            "wrong-bucket",
            elsewhere,
            "secret-key",
            "NoSuchBucket",
            "spec.s3.bucket",
        ),
    ] {
        api.put_store(&spec, secret);
        api.put_backup(name, 60, &json!({ "node": NODE }));
        let status = api.end_of(name, Duration::from_secs(30)).await;
        assert_eq!(
            condition(&status, "Succeeded"),
            ("False", "StoreUnavailable"),
            "{status:#}"
        );
        assert!(status["message"].as_str().unwrap().contains(says), "{status:#}");
        assert_eq!(condition(&api.store()["status"], "Available"), ("False", reason));
        assert!(status["artifact"].is_null());
    }
    api.put_backup("no-store", 60, &json!({ "node": NODE }));
    assert_eq!(s3.objects(), [""; 0]);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_of_an_agent_that_is_no_more_is_interrupted_or_adopted() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(100, 4096).await;
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let begun = json!({ "node": NODE, "startedAt": "2025-07-01T00:00:00Z" });
    // One came as far as its manifest, one as far as its snapshot.
    let finished = Request {
        name: "finished".to_owned(),
        uid: "finished-0123456789".to_owned(),
        ..request(60)
    };
    take(
        &etcd.member(),
        &s3.store(),
        &finished,
        &CancellationToken::new(),
        |_| (),
    )
    .await
    .unwrap();
    let orphan = s3.root.path().join(BUCKET).join("clusters/one/killed-killed-0");
    std::fs::create_dir(&orphan).unwrap();
    std::fs::write(orphan.join("snapshot.db"), "half").unwrap();
    api.put_backup("killed", 60, &begun);
    api.put_backup("finished", 60, &begun);

    let (shutdown, running) = agent(&client, &etcd);
    let status = api.end_of("killed", Duration::from_secs(30)).await;
    assert_eq!(condition(&status, "Succeeded"), ("False", "Interrupted"));
    let status = api.end_of("finished", Duration::from_secs(30)).await;
    assert_eq!(condition(&status, "Succeeded"), ("True", "Stored"));
    assert!(
        s3.objects().iter().all(|o| o.contains("finished-")),
        "{:?}",
        s3.objects()
    );
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_and_deletion_abort_what_is_in_hand() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(MIDWAY_KEYS, 20_000).await;
    let (api, client) = Api::start().await;
    api.put_store(&s3.spec(), "secret-key");
    let (shutdown, running) = agent(&client, &etcd);

    api.put_backup("deleted", 600, &json!({ "node": NODE }));
    freeze_at_parts(&etcd, &s3).await;
    api.delete_backup("deleted");
    until("its parts are gone", || s3.parts().is_empty()).await;
    etcd.process.signal(Signal::CONT);

    api.put_backup("stopped", 600, &json!({ "node": NODE }));
    freeze_at_parts(&etcd, &s3).await;
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(35), running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let status = api.end_of("stopped", Duration::from_secs(1)).await;
    assert_eq!(condition(&status, "Succeeded"), ("False", "Interrupted"));
    assert_eq!((s3.objects(), s3.parts()), (vec![], vec![]));
    etcd.process.signal(Signal::CONT);
}

/// Stops etcd as soon as a part has arrived.
async fn freeze_at_parts(etcd: &Etcd, s3: &ObjectServer) {
    until("a part arrives", || !s3.parts().is_empty()).await;
    etcd.process.signal(Signal::STOP);
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_freezes_ends_in_an_error_by_the_deadline() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(MIDWAY_KEYS, 20_000).await;
    let (member, store, request, never) = (etcd.member(), s3.store(), request(8), CancellationToken::new());
    let began = Instant::now();
    let taking = take(&member, &store, &request, &never, |_| ());
    let (taken, ()) = tokio::join!(taking, freeze_at_parts(&etcd, &s3));
    assert_eq!(taken.unwrap_err().reason(), "DeadlineExceeded");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!((s3.objects(), s3.parts()), (vec![], vec![]));
    etcd.process.signal(Signal::CONT);
    // And the next one finds nothing in its way.
    take(
        &member,
        &store,
        &Request {
            deadline: Duration::from_secs(60),
            ..request
        },
        &never,
        |_| (),
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_or_freezes_midway_leaves_no_backup() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(MIDWAY_KEYS, 20_000).await;
    let (member, store, never) = (etcd.member(), s3.store(), CancellationToken::new());
    let key = store.key(&request(1).name, &request(1).uid);

    // Frozen: the deadline ends it.
    let frozen = request(8);
    let taking = take(&member, &store, &frozen, &never, |_| ());
    let freezing = async {
        until("a part arrives", || !s3.parts().is_empty()).await;
        s3.process.as_ref().unwrap().signal(Signal::STOP);
    };
    let began = Instant::now();
    let (taken, ()) = tokio::join!(taking, freezing);
    assert_eq!(taken.unwrap_err().reason(), "DeadlineExceeded");
    assert!(
        began.elapsed() < Duration::from_secs(8 + 27),
        "{:?}",
        began.elapsed()
    );

    // Before it began: the probe ends it.
    let began = Instant::now();
    let error = take(&member, &store, &request(60), &never, |_| ())
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "StoreUnavailable");
    assert!(error.to_string().contains("did not answer in time"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(18), "{:?}", began.elapsed());

    // Killed, and not coming back.
    let mut s3 = ObjectServer::start(&bin).await;
    let store = s3.store();
    let patient = request(300);
    let taking = tokio::spawn({
        let (member, store) = (member.clone(), store.clone());
        async move { take(&member, &store, &patient, &CancellationToken::new(), |_| ()).await }
    });
    until("a part arrives", || !s3.parts().is_empty()).await;
    s3.down();
    let error = taking.await.unwrap().unwrap_err();
    assert!(matches!(error, TakeError::Store(_)), "{error}");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    s3.up().await;
    assert_eq!(s3.objects(), [""; 0]);
    assert_eq!(store.manifest(&key).await.unwrap(), None);

    // Back again: it works by itself.
    take(&member, &store, &request(60), &never, |_| ()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_restarts_midway_costs_nothing() {
    let Some(bin) = binaries() else { return };
    let (etcd, mut s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    etcd.fill(MIDWAY_KEYS, 20_000).await;
    let (member, store) = (etcd.member(), s3.store());
    let taking =
        tokio::spawn(
            async move { take(&member, &store, &request(120), &CancellationToken::new(), |_| ()).await },
        );
    until("a part arrives", || !s3.parts().is_empty()).await;
    s3.down();
    tokio::time::sleep(Duration::from_secs(3)).await;
    s3.up().await;
    taking.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_observed_over_its_certificates() {
    let Some(bin) = binaries() else { return };
    // A CA whose key was thrown away, and a pair of it for both sides, good for loopback only.
    let pki = Path::new("tests/etcd_backup/pki");
    let [ca, cert, key] = ["ca.crt", "both.crt", "both.key"].map(|name| pki.join(name));
    let flags = [
        format!("--cert-file={}", cert.display()),
        format!("--key-file={}", key.display()),
        format!("--trusted-ca-file={}", ca.display()),
        "--client-cert-auth".to_owned(),
    ];
    let etcd = Etcd::start_with(&bin, "https", &flags).await;
    let there = etcd.root.path().join("etc/kubernetes/pki");
    std::fs::create_dir_all(there.join("etcd")).unwrap();
    std::fs::copy(&ca, there.join("etcd/ca.crt")).unwrap();
    let member = EtcdMember::from_host(etcd.root.path(), None);

    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::Unknown);
    assert!(
        seen.message.contains("healthcheck-client.crt"),
        "{}",
        seen.message
    );

    std::fs::copy(&cert, there.join("apiserver-etcd-client.crt")).unwrap();
    std::fs::copy(&key, there.join("apiserver-etcd-client.key")).unwrap();
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::True, "{}", seen.message);
    assert_eq!(seen.message, "");
    assert_eq!(seen.members.len(), 1);
    assert_eq!(Some(&seen.members[0].id), seen.member_id.as_ref());
    assert_eq!(seen.leader_id, seen.member_id);
    assert_eq!(seen.members[0].name, "one");
    assert!(seen.raft_index.unwrap() >= seen.raft_applied_index.unwrap());
    assert!(seen.db_size_bytes.unwrap() > 0 && seen.raft_term.unwrap() > 0);
    assert_eq!(seen.alarms, [""; 0]);
    let hash = member.hash_kv(0).await.unwrap();
    assert!(hash.revision >= 1, "{hash:?}");

    // Frozen, and thawed.
    etcd.process.signal(Signal::STOP);
    let began = Instant::now();
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::False);
    assert!(
        seen.message.contains("did not read linearizably within 2.5 s"),
        "{}",
        seen.message
    );
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    etcd.process.signal(Signal::CONT);
    etcd.healthy().await;
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::True, "{}", seen.message);

    // Another certificate is taken up without a restart.
    std::fs::write(there.join("apiserver-etcd-client.crt"), "nonsense").unwrap();
    let seen = member.observe().await.unwrap();
    assert_ne!(seen.healthy, Tristate::True);
    std::fs::copy(&cert, there.join("etcd/healthcheck-client.crt")).unwrap();
    std::fs::copy(&key, there.join("etcd/healthcheck-client.key")).unwrap();
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::True, "{}", seen.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_is_seen() {
    let Some(bin) = binaries() else { return };
    let etcd = Etcd::start(&bin).await;
    let mut client = etcd_client::Client::connect([&etcd.endpoint], None)
        .await
        .unwrap();
    let id = client.status().await.unwrap().header().unwrap().member_id();
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(id);
    let (activate, nospace) = (
        etcd_client::AlarmAction::Activate,
        etcd_client::AlarmType::Nospace,
    );
    client.alarm(activate, nospace, Some(options)).await.unwrap();
    let seen = etcd.member().observe().await.unwrap();
    assert_eq!(seen.alarms, [format!("NOSPACE on {id:x}")]);
    assert_eq!(
        seen.healthy,
        Tristate::True,
        "reads are still answered; the alarm is a verdict of its own"
    );
}
