//! What a store's spec says of its server, against a real one: its clock, its CA, its own encryption, who we are.

use std::process::Command;
use std::time::Duration;

use chrono::TimeDelta;
use lockkeeper::agent::backup::take;
use lockkeeper::store::Store;
use lockkeeper_crds::{EtcdBackupStore, ServerSideEncryption, ServerSideKind};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::api::Api;
use super::relay::Relay;
use super::world::{Etcd, ObjectServer, binaries};
use super::{NODE, agent, condition, request};

/// One whose server is two minutes ahead takes a backup, and says so beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_clock_is_off_is_told_with_both_clocks() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let (api, client) = Api::start().await;
    let (shutdown, running) = agent(&client, &etcd);
    for (ahead, clock) in [
        (TimeDelta::zero(), ("True", "Tried")),
        (TimeDelta::minutes(2), ("False", "ClockSkew")),
        (TimeDelta::minutes(-20), ("False", "ClockSkew")),
    ] {
        let relay = Relay::start(s3.port, ahead).await;
        let mut spec = s3.spec();
        spec.s3.as_mut().unwrap().endpoint = Some(relay.endpoint.clone());
        api.put_store(&spec, "secret-key");
        let name = format!("at{}", ahead.num_minutes());
        api.put_backup(&name, 60, &json!({ "node": NODE }));
        let status = api.end_of(&name, Duration::from_secs(60)).await;
        assert_eq!(condition(&status, "Succeeded").0, "True", "{status:#}");
        let told = api.store()["status"].clone();
        assert_eq!(condition(&told, "Available").0, "True");
        assert_eq!(condition(&told, "ClockInSync"), clock, "{told:#}");
        if clock.0 == "False" {
            let all = told["conditions"].as_array().unwrap();
            let message = all.iter().find(|c| c["type"] == "ClockInSync").unwrap()["message"].clone();
            let message = message.as_str().unwrap();
            for says in [NODE, &relay.endpoint, "s apart", "NTP"] {
                assert!(message.contains(says), "{message}");
            }
        }
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_ones_own_ca_is_trusted_by_its_bundle_alone() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start_with_tls(&bin).await);
    let mut spec = s3.spec();
    let store = |spec: &_| Store::from_spec("main", spec, ObjectServer::credentials()).unwrap();
    let bundle = std::fs::read_to_string("tests/etcd_backup/pki/ca.crt").unwrap();
    spec.s3.as_mut().unwrap().ca_bundle = Some(bundle);
    let trusting = store(&spec);
    let (member, never) = (etcd.member(), CancellationToken::new());
    take(&member, &trusting, &request(60), &never, |_| ())
        .await
        .unwrap();
    assert_eq!(trusting.list().await.unwrap().len(), 1);
    // The list of unfinished uploads is asked for by a client of its own.
    assert_eq!(trusting.sweep(&Default::default()).await.unwrap(), 0);
    assert!(!trusting.clock().unwrap().is_off());

    spec.s3.as_mut().unwrap().ca_bundle = None;
    let told = store(&spec).probe().await.unwrap_err();
    assert_eq!(told.reason(), "CertificateUntrusted");
    let text = told.to_string();
    assert!(
        text.contains("spec.s3.caBundle") && text.contains("certificate"),
        "{text}"
    );
    assert!(store(&spec).sweep(&Default::default()).await.is_err());
}

/// versitygw takes the header and does nothing of it: Amazon's answers name the encryption.
#[tokio::test(flavor = "multi_thread")]
async fn encryption_by_the_server_is_asked_for_with_every_object() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let relay = Relay::start(s3.port, TimeDelta::zero()).await;
    for (kind, key, header) in [
        (ServerSideKind::S3, None, "x-amz-server-side-encryption: aes256"),
        (
            ServerSideKind::Kms,
            Some("a-key"),
            "x-amz-server-side-encryption: aws:kms",
        ),
    ] {
        let mut spec = s3.spec();
        let bucket = spec.s3.as_mut().unwrap();
        bucket.endpoint = Some(relay.endpoint.clone());
        bucket.server_side_encryption = Some(ServerSideEncryption {
            kind,
            kms_key_id: key.map(str::to_owned),
        });
        let store = Store::from_spec("main", &spec, ObjectServer::credentials()).unwrap();
        let (member, never) = (etcd.member(), CancellationToken::new());
        let request = lockkeeper::agent::backup::Request {
            name: format!("{kind:?}").to_lowercase(),
            ..request(60)
        };
        take(&member, &store, &request, &never, |_| ()).await.unwrap();
        // The probe and its repetition, the upload, and the manifest.
        assert_eq!(relay.heard(header).len(), 4, "{kind:?}");
    }
    let id = "x-amz-server-side-encryption-aws-kms-key-id: a-key";
    assert_eq!(relay.heard(id).len(), 4);
    assert_eq!(relay.answered("x-amz-server-side"), [""; 0]);
}

/// With `rescue list`, a process of its own: its environment says who it is.
#[tokio::test(flavor = "multi_thread")]
async fn who_we_are_may_stand_in_the_environment() {
    let Some(bin) = binaries() else { return };
    let (etcd, s3) = (Etcd::start(&bin).await, ObjectServer::start(&bin).await);
    let (member, never) = (etcd.member(), CancellationToken::new());
    take(&member, &s3.store(), &request(60), &never, |_| ())
        .await
        .unwrap();
    let mut spec = s3.spec();
    spec.s3.as_mut().unwrap().credentials_secret = None;
    let file = s3.root.path().join("store.yaml");
    let object = serde_json::to_vec(&EtcdBackupStore::new("main", spec)).unwrap();
    std::fs::write(&file, object).unwrap();
    let list = |secret: &str| {
        let out = Command::new(env!("CARGO_BIN_EXE_lockkeeper"))
            .args(["rescue", "list", "--store"])
            .arg(&file)
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", "identifier")
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .output()
            .unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8(text).unwrap())
    };
    let (found, text) = list("secret-key");
    assert!(found && text.contains("nightly"), "{text}");
    let (found, text) = list("another-key");
    assert!(!found && !text.contains("another-key"), "{text}");
    assert!(text.contains("does not accept the credentials"), "{text}");
}
