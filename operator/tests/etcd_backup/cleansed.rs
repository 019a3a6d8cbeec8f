//! What tells of the backup's time, in an etcd that was restored from a snapshot with an alarm on.

use std::path::Path;
use std::process::Command;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client};
use lockkeeper::agent::etcd::Cleansed;

use crate::world::{Etcd, binaries};

/// This restore.
const ID: &str = "this";

const STALE: [&str; 4] = [
    "/registry/masterleases/10.0.0.1",
    "/registry/masterleases/10.0.0.2",
    "/registry/leases/kube-node-lease/cp1",
    "/registry/leases/kube-system/kube-scheduler",
];

/// What another restore left.
const EARLIER: &str = "/lockkeeper.dev/restore/earlier/decision";

/// Not ours to take out.
const KEPT: [&str; 3] = [
    "/registry/configmaps/default/kept",
    "/registry/leases.example.com/kept",
    "/lockkeeper.dev/kept",
];

/// An etcd restored from a snapshot of another that had these keys and this alarm; the member that raised it.
async fn restored(bin: &Path, alarm: AlarmType) -> (Etcd, u64) {
    let old = Etcd::start(bin).await;
    let mut client = Client::connect([&old.endpoint], None).await.unwrap();
    for key in STALE.iter().chain([&EARLIER]).chain(&KEPT) {
        client.put(*key, "then", None).await.unwrap();
    }
    let id = client.status().await.unwrap().header().unwrap().member_id();
    let mut options = AlarmOptions::new();
    options.with_member(id);
    client
        .alarm(AlarmAction::Activate, alarm, Some(options))
        .await
        .unwrap();
    let mut stream = client.snapshot().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        bytes.extend_from_slice(message.blob());
    }
    let (scratch, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = scratch.path().join("snapshot.db");
    std::fs::write(&file, bytes).unwrap();
    let done = Command::new(bin.join("etcdutl"))
        .args(["snapshot", "restore"])
        .arg(&file)
        .arg("--data-dir")
        .arg(data.path())
        .args(["--bump-revision", "1000000", "--mark-compacted"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    (Etcd::start_on(bin, data, "http", &[]).await, id)
}

/// How many keys of these there are.
async fn there(etcd: &Etcd, keys: &[&str]) -> i64 {
    let mut there = 0;
    for key in keys {
        there += etcd.member().count(key, 0).await.unwrap();
    }
    there
}

async fn write(etcd: &Etcd) -> Result<(), etcd_client::Error> {
    let mut client = Client::connect([&etcd.endpoint], None).await?;
    client
        .put("/registry/configmaps/default/new", "now", None)
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_entries_and_nospace_are_taken_out_and_nothing_else() {
    let Some(bin) = binaries() else { return };
    let (etcd, raised_by) = restored(&bin, AlarmType::Nospace).await;
    let (member, alarm) = (etcd.member(), format!("NOSPACE on {raised_by:x}"));
    assert_eq!(
        member.observe().await.unwrap().alarms,
        std::slice::from_ref(&alarm)
    );
    let refused = write(&etcd).await.unwrap_err().to_string();
    assert!(refused.contains("database space exceeded"), "{refused}");
    assert_eq!(there(&etcd, &STALE).await, 4);

    let done = member.cleanse(ID).await.unwrap();
    let wanted = Cleansed {
        keys: 4,
        alarms: vec![alarm],
    };
    assert_eq!(done, wanted);
    assert_eq!(there(&etcd, &STALE).await, 0);
    assert_eq!(there(&etcd, &[EARLIER]).await, 0);
    assert_eq!(there(&etcd, &KEPT).await, 3);
    assert_eq!(member.observe().await.unwrap().alarms, [""; 0]);
    write(&etcd).await.unwrap();
    // After a crash it is done again.
    assert_eq!(member.cleanse(ID).await.unwrap(), Cleansed::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_etcd_is_refused_and_left_as_it_is() {
    let Some(bin) = binaries() else { return };
    let (etcd, raised_by) = restored(&bin, AlarmType::Corrupt).await;
    let member = etcd.member();
    let refused = member.cleanse(ID).await.unwrap_err().to_string();
    assert!(refused.contains("corrupt"), "{refused}");
    assert_eq!(there(&etcd, &STALE).await, 4);
    let alarm = format!("CORRUPT on {raised_by:x}");
    assert_eq!(
        member.observe().await.unwrap().alarms,
        [alarm],
        "the alarm was disarmed"
    );
}
