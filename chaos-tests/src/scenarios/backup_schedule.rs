//! A backup every minute by cron, each restored and booted, one of them with an API server on it every other minute,
//! the newest two kept: what the status says of them is so, the bucket holds exactly what it tells, and nothing of a
//! proof stays on the node. A backup whose object was replaced by another one's is found out; an agent that is killed in
//! the middle of a proof begins anew; an upgrade takes the newest verified one for its snapshot. On one node, with a
//! disk of its own for the proofs.
//!
//! Seen failing: an agent that does not compare sizes and hashes when it fetches ("the object of replaced is another
//! one's, and it is told: True/Restored"); no disk of its own for the proofs, by the chart's `agent.workDirectory`
//! (nothing is ever verified: "is on the same disk as etcd's data"); and, before the scenario gave a proof the time to
//! take its programs down again, "left on the node: proof, etcd --name=default --data-dir=/lockkeeper-proof/data".

pub(in crate::scenarios) mod stage;
pub(in crate::scenarios) mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, PostParams};
use lockkeeper_crds::{EtcdBackup, EtcdBackupScheduleStatus, Findings, Proof, Strategy};
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::json;

use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, UPGRADE, restored, runs, spec};
use crate::recipes::{START, TARGET};
use crate::scene::{Look, Scene};
use crate::state::Options;
use stage::Stage;
use watcher::{Watcher, consecutive};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "backup-schedule",
    about: "a backup every minute, verified, one in two drilled: what is told of each is so, the bucket holds it, a replaced one is found out",
    suite: Suite::Chaos,
    minutes: 8,
    lab,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

pub(in crate::scenarios) const NAME: &str = "every-minute";
pub(in crate::scenarios) const BY_HAND: &str = "by-hand";
pub(in crate::scenarios) const STRANGER: &str = "every-minute-20200101-0000-00000000/snapshot.db";
pub(in crate::scenarios) const MINUTE: Duration = Duration::from_secs(60);

/// Where the chart lets backups be restored, and how large that is: twice a small snapshot and 256 MiB.
const WORK: &str = "/var/lib/lockkeeper/work";
const WORK_MIB: u32 = 512;

pub(super) fn lab() -> Options {
    Options {
        small_disks: vec![(PathBuf::from(WORK), WORK_MIB)],
        ..super::one_node()
    }
}

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let secrets: Api<Secret> = Api::default_namespaced(keeper.client());
    let count = 5 + scene.below(20);
    for number in 0..count {
        let secret =
            json!({"metadata": {"name": format!("of-the-lab-{number}")}, "stringData": {"key": "value"}});
        secrets
            .create(&PostParams::default(), &serde_json::from_value(secret)?)
            .await?;
    }
    let stage = Stage::set(scene, &keeper).await?;
    stage
        .schedule(&json!({"proof": "Verified", "drill": {"schedule": "*/2 * * * *"}}))
        .await?;
    let watcher = Watcher::start(&stage);
    let told = proven(&stage, &watcher).await?;
    stage.suspend().await?;
    stage.bucket_is_as_told().await?;
    let slots = watcher.so_far()?;
    consecutive(&slots)?;
    watcher.close()?;
    let all: Api<Secret> = Api::all(keeper.client());
    let secrets_now = all.list(&ListParams::default()).await?.items.len();
    let said = true_of_each(&stage, secrets_now).await?;
    nothing_left(scene).await?;
    let replaced = replaced(&stage).await?;
    nothing_left(scene).await?;
    let accepted = accepted(&keeper, &stage).await?;
    stage.clear_all().await?;
    Ok(format!(
        "{} begun; {told}; {said}; {replaced}; {accepted}",
        slots.len()
    ))
}

/// An upgrade takes the newest verified one of the schedule for its snapshot, says so, and takes none of its own.
async fn accepted(keeper: &Keeper<'_>, stage: &Stage<'_>) -> Result<String> {
    let verified = |(name, b): (String, EtcdBackup)| (b.proven() >= Some(Proof::Verified)).then_some(name);
    let newest = stage.own().await?.into_iter().filter_map(verified).next_back();
    let newest = newest.context("no verified one is there")?;
    let mut wanted = spec(START, Strategy::default());
    wanted.backup.proof = Proof::Verified;
    wanted.backup.accept_within_minutes = Some(60);
    keeper.apply(&wanted).await?;
    keeper.bump(TARGET).await?;
    let status = keeper.settles("Completed", UPGRADE).await?;
    runs(stage.scene, TARGET).await?;
    let snapshot = status.snapshot.context("the status names no snapshot")?;
    ensure!(
        snapshot.accepted && snapshot.backup == newest && snapshot.proof >= Some(Proof::Verified),
        "{newest} was to be accepted, and the status says {snapshot:?}"
    );
    let own = keeper.backups().await?.into_iter();
    let own: Vec<String> = own
        .filter_map(|b| b.metadata.name)
        .filter(|n| n.starts_with("upgrade-"))
        .collect();
    ensure!(own.is_empty(), "a snapshot was taken all the same: {own:?}");
    Ok(format!("{newest} accepted for an upgrade to {TARGET}"))
}

/// Waits until three were begun, one was let go, and the status says when one was verified and one drilled.
async fn proven(stage: &Stage<'_>, watcher: &Watcher) -> Result<String> {
    let enough =
        |s: &EtcdBackupScheduleStatus| s.last_verified_time.is_some() && s.last_drilled_time.is_some();
    let status = stage
        .status("one verified and one drilled", MINUTE * 8, enough)
        .await?;
    stage
        .scene
        .wait_for("three begun, and one let go", MINUTE * 5, || async {
            let begun = watcher.so_far()?;
            let there = stage.own().await?;
            let gone = begun.iter().filter(|name| !there.contains_key(*name)).count();
            Ok(if begun.len() >= 3 && gone >= 1 {
                Look::Done(())
            } else {
                Look::NotYet(format!("{} begun, {gone} of them gone", begun.len()))
            })
        })
        .await?;
    ensure!(status.next_drill_time.is_some(), "no next drill is told");
    let kept = stage.own().await?;
    let drilled = kept.values().any(|b| b.proven() == Some(Proof::Drilled));
    ensure!(drilled, "the newest drilled one was let go: {:?}", levels(&kept));
    Ok(format!("kept {:?}", levels(&kept)))
}

fn levels(all: &BTreeMap<String, EtcdBackup>) -> Vec<String> {
    let level = |b: &EtcdBackup| b.proven().map_or("not stored", Proof::name);
    all.iter()
        .map(|(name, b)| format!("{name} {}", level(b)))
        .collect()
}

/// What is told of every proven backup is compared with the object in the bucket, restored by the lab itself.
async fn true_of_each(stage: &Stage<'_>, secrets: usize) -> Result<String> {
    let mut said = Vec::new();
    for (name, backup) in stage.own().await? {
        let level = backup.proven().with_context(|| format!("{name} is not stored"))?;
        ensure!(
            level >= Proof::Verified,
            "{name} was asked to be verified, and is {level}"
        );
        let status = backup.status.unwrap_or_default();
        let found = status
            .findings
            .with_context(|| format!("{name} is {level}, and nothing was found"))?;
        let artifact = status
            .artifact
            .with_context(|| format!("{name} has no artifact"))?;
        let (keys, _) = restored(stage.scene, &artifact.uri).await?;
        compare(&name, level, &found, keys, secrets)?;
        said.push(format!("{name} {level} with {} keys", found.keys));
    }
    ensure!(!said.is_empty(), "nothing is there to compare");
    Ok(said.join(", "))
}

fn compare(name: &str, level: Proof, found: &Findings, keys: u64, secrets: usize) -> Result<()> {
    ensure!(
        u64::try_from(found.keys).ok() == Some(keys),
        "{name} has {keys} keys, and {} were found",
        found.keys
    );
    let listed = found.secrets.and_then(|n| usize::try_from(n).ok());
    let expected = (level == Proof::Drilled).then_some(secrets);
    ensure!(
        listed == expected,
        "{name} is {level}: {expected:?} Secrets were expected, and {listed:?} read"
    );
    Ok(())
}

/// No file of a proof, no manifest, no process, once what was in hand has been seen off.
pub(super) async fn nothing_left(scene: &Scene) -> Result<()> {
    let node = scene.lab.node("cp1")?;
    let script = format!(
        "ls {WORK} | grep -v lost+found; ls /etc/kubernetes/manifests | grep chore; ps ax -o args | grep -e '^etcdutl ' -e '^etcd .*lockkeeper' -e '^kube-apiserver .*lockkeeper'; true"
    );
    scene
        .wait_for("nothing of a proof to be left", MINUTE, || async {
            let left = node.run(&["sh", "-c", &script])?.check()?;
            Ok(if left.trim().is_empty() {
                Look::Done(())
            } else {
                Look::NotYet(left)
            })
        })
        .await
}

/// The object of one backup becomes that of another, whole and by itself fit to be restored: it is not what its own
/// manifest says, and that is told. One that is sound is verified, though the agent is killed meanwhile.
async fn replaced(stage: &Stage<'_>) -> Result<String> {
    const NAMES: [&str; 2] = ["replaced", "another"];
    for name in NAMES {
        stage.make(name, json!({})).await?;
    }
    let [replaced, another] = NAMES;
    let store = stage.scene.store()?;
    let key = |backup: EtcdBackup| -> Result<String> {
        let uri = backup.status.and_then(|s| s.artifact).context("no artifact")?.uri;
        let key = uri.strip_prefix("s3://").and_then(|k| k.split_once('/'));
        Ok(key.context("no address")?.1.to_owned())
    };
    let from = key(stage.backups.get(another).await?)?;
    let to = key(stage.backups.get(replaced).await?)?;
    let bytes = store.get(&from.into()).await?.bytes().await?;
    store.put(&to.into(), PutPayload::from(bytes)).await?;
    stage.ask_for(replaced, Proof::Verified).await?;
    let bad = stage.verdict(replaced).await?;
    ensure!(
        bad.starts_with("False/Damaged"),
        "the object of {replaced} is another one's, and it is told: {bad}"
    );
    stage.ask_for(another, Proof::Verified).await?;
    // Killed on the way, the agent begins anew and finds nothing of before in its way.
    stage.being_verified(another).await?;
    tokio::time::sleep(Duration::from_millis(stage.scene.below(2000))).await;
    stage.scene.lab.kill("cp1", "agent")?;
    let good = stage.verdict(another).await?;
    ensure!(
        good.starts_with("True/"),
        "{another} is sound, and it is told: {good}"
    );
    let lowered = stage.ask_for(another, Proof::Stored).await;
    let said = lowered.err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(
        said.contains("can only be raised"),
        "spec.proof was lowered: {said}"
    );
    for name in NAMES {
        stage.remove(name).await?;
    }
    Ok(format!("the replaced one: {bad}"))
}
