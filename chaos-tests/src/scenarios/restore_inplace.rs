//! Write, back up, write more, restore on all three nodes: every member holds exactly what etcd held at the backup, key
//! by key, at a higher revision; what tells of processes of that time is out again; a client that watched from before
//! learns the truth; nodes and workloads go on.
//!
//! Before that: a trial by the backup's key, a restore into a new directory by its URI, and nothing in place while the
//! agents have no guard.
//!
//! Afterwards the bucket and the objects agree: a backup taken since and the safety backup have an object again, and one that
//! was removed since says so.
//!
//! Seen failing: with a restore that raises the revision by 1 instead of 10^9 ("waiting for the informer to learn the
//! truth: it knows {"changes": "after", "comes": "after", ...}", for ever); with one value changed in what etcdutl had
//! made, on each node ("1 of 420 keys differ: /registry/configmaps/kube-system/kubeadm-config has another value"); with
//! API servers' entries left in ("/registry/masterleases/10.77.0.11 is of the backup's time and was left"); with an operator
//! that gives no object back ("waited 120 s for taken-since to have an object again; seen last: it has none"); with agents
//! that miss nothing ("waited 120 s for removed-since to say that it is gone; seen last: Some(("True", "ReadBack"))").

mod contents;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, ListParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use lockkeeper_crds::{RESTORED_ANNOTATION, RestoreReport, RestoreState, Strategy};
use serde_json::json;

use contents::{Contents, compacted};

use super::restoring::{LABEL, Notes, Stage};
use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, as_before, manifests, runs};
use crate::progress::spoken;
use crate::recipes::START;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "restore-inplace",
    about: "write, back up, write more, restore on three nodes: as at the backup, and watchers learn it",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const BACKUP: &str = "restore-point";
/// Removed after the backup, object and data: the restore brings the object back.
const REMOVED: &str = "removed-since";
/// Taken after the backup: the restore takes the object away.
const SINCE: &str = "taken-since";
const NAME: &str = "back-to-the-point";
const MINUTE: Duration = Duration::from_secs(60);
/// How far a restore raises the revision where nobody says otherwise.
const BUMP: i64 = 1_000_000_000;
/// Where API servers and whoever elects a leader say that they live.
const STALE: [&str; 2] = ["/registry/masterleases/", "/registry/leases/"];
/// Where the nodes agree about a restore, in the restored etcd.
const REGISTER: &str = "/lockkeeper.dev/restore/";

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let stage = Stage::new(scene, &keeper);
    stage.back_up(REMOVED).await?;
    let (then, now) = stage.write(BACKUP).await?;
    stage.remove(REMOVED).await?;
    stage.back_up(SINCE).await?;
    let since = lockkeeper::store::folder(&stage.backups.get(SINCE).await?);
    let before = manifests(&scene.lab)?;
    let workloads = workloads(&keeper).await?;
    let (informer, task) = inform(&stage).await?;
    scene
        .wait_for("the informer to know what is", MINUTE, || async {
            Ok(knows(&informer, &now))
        })
        .await?;

    try_it(&stage).await?;
    let point = new_directory(&stage).await?;
    let held = Contents::of(&scene.lab.node("cp1")?, point)?;
    stage.tells(&now).await?;

    guard(scene, false)?;
    stage
        .begin(
            NAME,
            json!({"from": {"backupRef": {"name": BACKUP}}, "mode": "InPlace"}),
        )
        .await?;
    says(&stage, "agent.guard.enabled").await?;
    guard(scene, true)?;
    let shown = stage
        .reaches(NAME, RestoreState::AwaitingConfirmation, MINUTE * 5)
        .await?;
    let loss = shown.loss.context("no loss is shown before the confirmation")?;
    ensure!(
        loss.created > Some(0) && loss.changed > Some(0),
        "the loss is not counted: {loss:?}"
    );
    let with = shown.confirm_with.context("it does not say what to type")?;
    let (_, revision_before) = stage.notes().await?;
    ensure!(
        stage.confirm(NAME, "another-cluster").await.is_err(),
        "another cluster's name was taken for the confirmation"
    );
    stage.confirm(NAME, &with).await?;
    let began = Instant::now();
    let end = stage.reaches(NAME, RestoreState::Completed, MINUTE * 8).await?;
    let took = began.elapsed();

    let report = end.report.context("there is no report")?;
    cleansed(scene, &held, &report)?;
    as_it_was(scene, &held, point)?;
    let revision = stage.tells(&then).await?;
    ensure!(
        revision > revision_before,
        "the revision fell from {revision_before} to {revision}"
    );
    scene
        .wait_for("the informer to learn the truth", MINUTE * 2, || async {
            Ok(knows(&informer, &then))
        })
        .await?;
    task.abort();
    let object = stage.restores.get(NAME).await?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    ensure!(
        annotations.contains_key(RESTORED_ANNOTATION) && object.spec.confirm.is_none(),
        "the object that tells of it could begin again"
    );
    ensure!(
        report.gone > 0 && report.came_back > 0,
        "the report tells nothing: {report:?}"
    );
    stage.stands_for(SINCE, Some(&since)).await?;
    let safety = end.safety_backup.context("no safety backup is named")?;
    stage.stands_for(&safety, None).await?;
    stage.says_gone(REMOVED).await?;
    scene.wait_until_whole(MINUTE * 4).await?;
    runs(scene, START).await?;
    as_before(&scene.lab, &before)?;
    go_on(scene, &keeper, &workloads).await?;
    stage.note("later", "written after the restore").await?;
    Ok(format!(
        "{} from the confirmation; {} keys as at the backup, {} gone, {} came back, revision {revision_before} to {revision}",
        spoken(took),
        held.len(),
        report.gone,
        report.came_back
    ))
}

/// Each member by itself, as it was before anything was written to the restored etcd: up to there all is compacted, and
/// that revision itself is served.
fn as_it_was(scene: &Scene, held: &Contents, point: i64) -> Result<()> {
    for node in scene.lab.nodes() {
        let at = compacted(&node)?;
        ensure!(
            at == point + BUMP,
            "etcd of {} is compacted up to {at}, and the backup of revision {point} was to be raised by {BUMP}",
            node.name()
        );
        held.is_all_of(&Contents::of(&node, at)?)
            .with_context(|| format!("the restored etcd of {} is not as at the backup", node.name()))?;
    }
    scene.say(format_args!("{} keys as at revision {point}", held.len()));
    Ok(())
}

/// What the backup said of processes of its time was taken out, all at one revision, and counted.
fn cleansed(scene: &Scene, held: &Contents, report: &RestoreReport) -> Result<()> {
    let node = scene.lab.node("cp1")?;
    let now = Contents::of(&node, 0)?;
    let mut noted = now.below(REGISTER).filter(|(key, _)| key.ends_with("/cleansed"));
    let (_, at) = noted.next().context("nobody has noted that it was cleansed")?;
    let clean = Contents::of(&node, at)?;
    let mut stale = 0;
    for prefix in STALE {
        let were = held.below(prefix).count();
        ensure!(were > 0, "the backup has nothing below {prefix}");
        stale += were;
        if let Some((key, _)) = clean.below(prefix).next() {
            bail!("{key} is of the backup's time and was left");
        }
    }
    ensure!(
        usize::try_from(report.cleansed)? == stale,
        "{stale} entries of the backup's time were there, and the report says {}",
        report.cleansed
    );
    ensure!(
        report.disarmed.is_empty(),
        "no alarm was on, and the report says {:?}",
        report.disarmed
    );
    Ok(())
}

/// On one node and beside its data; found in the bucket by its key.
async fn try_it(stage: &Stage<'_>) -> Result<()> {
    let key = stage.key(BACKUP).await?;
    let (folder, _) = key.rsplit_once('/').context("its key has no folder")?;
    let spec = json!({"from": {"key": folder}, "storeRef": {"name": "default"}, "mode": "DryRun"});
    stage.begin("trial", spec).await?;
    let done = stage
        .reaches("trial", RestoreState::Completed, MINUTE * 4)
        .await?;
    ensure!(
        done.loss.is_some(),
        "the trial does not tell what would be lost: {done:?}"
    );
    Ok(())
}

/// On one node, for a person who wants to look into it; found by its URI. Returns the revision of what was stored, which
/// may be newer than what was read right before.
async fn new_directory(stage: &Stage<'_>) -> Result<i64> {
    let artifact = stage.backups.get(BACKUP).await?.status.and_then(|s| s.artifact);
    let artifact = artifact.context("it has no artifact")?;
    let spec = json!({
        "from": {"uri": artifact.uri}, "storeRef": {"name": "default"}, "mode": "NewDirectory", "node": "cp2",
        "directory": "/var/lib/etcd/looked-at",
    });
    stage.begin("looked-at", spec).await?;
    stage
        .reaches("looked-at", RestoreState::Completed, MINUTE * 4)
        .await?;
    let node = stage.scene.lab.node("cp2")?;
    let directory = node.var_lib("etcd/looked-at");
    let data = std::fs::read(directory.join("member/snap/db")).context("no etcd lies there")?;
    let holds = |key: &[u8]| data.windows(key.len()).any(|w| w == key);
    ensure!(
        holds(b"/registry/configmaps/default/goes") && !holds(b"/registry/configmaps/default/comes"),
        "what lies in the new directory is not the backup"
    );
    let file = "/var/lib/etcd/looked-at/member/snap/db";
    let said = node
        .run(&["etcdutl", "snapshot", "status", file, "-w", "json"])?
        .check()?;
    let status: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    let raised = status.get("revision").and_then(serde_json::Value::as_i64);
    let point = raised.context("etcdutl tells no revision")? - BUMP;
    ensure!(
        point >= artifact.revision,
        "the snapshot is of revision {point}, older than {} of a read before it",
        artifact.revision
    );
    std::fs::remove_dir_all(directory)?;
    Ok(point)
}

/// The chart anew, as a person would, with the agents' guard or without it.
fn guard(scene: &Scene, enabled: bool) -> Result<()> {
    scene.set(vec![format!("agent.guard.enabled={enabled}")])
}

/// Waits until the restore tells why it does not go on; it must not have gone on.
async fn says(stage: &Stage<'_>, wanted: &str) -> Result<()> {
    stage
        .scene
        .wait_for(&format!("{NAME} to say {wanted}"), MINUTE * 2, || async {
            let status = stage.restores.get(NAME).await?.status.context("no status yet")?;
            ensure!(
                status.state == RestoreState::Validating,
                "{NAME} went on: {:?}: {}",
                status.state,
                status.message
            );
            Ok(if status.message.contains(wanted) {
                Look::Done(())
            } else {
                Look::NotYet(status.message)
            })
        })
        .await
}

/// A client that watches from now on, as controllers do.
async fn inform(stage: &Stage<'_>) -> Result<(Store<ConfigMap>, tokio::task::JoinHandle<()>)> {
    let (reader, writer) = reflector::store();
    let stream = watcher(stage.maps.clone(), watcher::Config::default().labels(LABEL))
        .default_backoff()
        .reflect(writer);
    let task = tokio::spawn(stream.for_each(|_| futures::future::ready(())));
    Ok((reader, task))
}

fn knows(informer: &Store<ConfigMap>, wanted: &Notes) -> Look<()> {
    let known = informer.state().into_iter().filter_map(|map| {
        let says = map.data.as_ref()?.get("says")?.clone();
        Some((map.metadata.name.clone()?, says))
    });
    let known: Notes = known.collect();
    if known == *wanted {
        Look::Done(())
    } else {
        Look::NotYet(format!("it knows {known:?}"))
    }
}

/// Pods of the cluster that are no static pods, by UID, and how often their containers were restarted.
type Workloads = BTreeMap<String, (String, i32)>;

async fn workloads(keeper: &Keeper<'_>) -> Result<Workloads> {
    let pods: Api<Pod> = Api::all(keeper.client());
    let mut all = Workloads::new();
    for pod in pods.list(&ListParams::default()).await? {
        let is_static = pod
            .metadata
            .annotations
            .as_ref()
            .is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
        if is_static {
            continue;
        }
        let name = pod.metadata.name.unwrap_or_default();
        let containers = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        let restarts = containers.iter().map(|c| c.restart_count).sum();
        all.insert(pod.metadata.uid.unwrap_or_default(), (name, restarts));
    }
    ensure!(!all.is_empty(), "no workload is there");
    Ok(all)
}

/// The same pods, none of their containers started anew but Lockkeeper's own, which lose their lease with the API.
async fn go_on(scene: &Scene, keeper: &Keeper<'_>, before: &Workloads) -> Result<()> {
    scene
        .wait_for("the workloads to be as before", MINUTE * 2, || async {
            let now = workloads(keeper).await?;
            let differs = before.iter().find(|(uid, (name, restarts))| {
                let own = name.starts_with("lockkeeper-operator");
                now.get(*uid).is_none_or(|(_, n)| !own && n > restarts)
            });
            Ok(match differs {
                None => Look::Done(()),
                Some((_, (name, _))) => Look::NotYet(format!("{name} was replaced or restarted: {now:?}")),
            })
        })
        .await
}
