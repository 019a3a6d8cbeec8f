//! A restore that is broken in the middle. A bad file on the second node: nothing is touched anywhere. A node that
//! loses its power after the word to begin and stays dark: the others go back by themselves, and so does it when it
//! boots, with no API server on it and nobody to tell it. A node that loses its power when it has signed that it is
//! ready, while another is not yet, and stays dark until its time is over: all nodes keep the restored data, it too.
//!
//! Seen failing: (by hand, on one node) with `agent.guard.enabled=false` the node that boots stays `Going` long after
//! its deadline, with etcd's manifest and no other; with an agent that goes back at its deadline though it has signed,
//! "the nodes are on different data: [Undoing, Done, Done]".

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use futures::FutureExt;
use lockkeeper_crds::{RestoreStage, RestoreState, Strategy};
use object_store::{ObjectStoreExt, PutPayload};
use serde_json::json;

use super::restoring::{self, Notes, Stage};
use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, as_before, manifests, runs};
use crate::node::Node;
use crate::progress::spoken;
use crate::recipes::START;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "restore-fails",
    about: "a bad file on one node, a power cut after the word to begin: as before the restore; one once it has signed: all nodes on the restored data",
    suite: Suite::Chaos,
    minutes: 15,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const BACKUP: &str = "restore-point";
const MINUTE: Duration = Duration::from_secs(60);
const API_SERVER: &str = "kube-apiserver";

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let stage = Stage::new(scene, &keeper);
    let (then, now) = stage.write(BACKUP).await?;
    let before = manifests(&scene.lab)?;
    let refused = bad_file(&stage).await?;
    stage.tells(&now).await?;
    as_before(&scene.lab, &before)?;
    for node in scene.lab.nodes() {
        ensure!(
            !node.var_lib("etcd/.lockkeeper/restored").exists(),
            "restored data is left on {}",
            node.name()
        );
    }
    let cut = power_cut(&stage, &now).await?;
    scene.wait_until_whole(MINUTE * 5).await?;
    as_before(&scene.lab, &before)?;
    runs(scene, START).await?;
    stage.tells(&now).await?;
    let agreed = cut_when_signed(&stage, &then).await?;
    scene.wait_until_whole(MINUTE * 5).await?;
    as_before(&scene.lab, &before)?;
    stage.note("later", "written after it").await?;
    Ok(format!("{refused}; {cut}; {agreed}"))
}

/// The second node's agent stands still until the others have the backup, and then fetches another file.
async fn bad_file(stage: &Stage<'_>) -> Result<String> {
    let nodes = stage.scene.lab.nodes();
    let second = nodes.get(1).context("there is no second node")?.name().to_owned();
    stage.scene.lab.freeze(&second, "agent")?;
    let spec = json!({"from": {"backupRef": {"name": BACKUP}}, "mode": "InPlace"});
    stage.begin("bad-file", spec).await?;
    let others: Vec<&Node> = nodes.iter().filter(|n| n.name() != second).collect();
    let ready = stage
        .scene
        .wait_for("the other nodes to have prepared", MINUTE * 5, || async {
            for node in &others {
                let stage = restoring::stage(node)?.map(|(stage, _)| stage);
                if stage != Some(RestoreStage::Prepared) {
                    return Ok(Look::NotYet(format!("{} is {stage:?}", node.name())));
                }
            }
            Ok(Look::Done(()))
        })
        .await;
    let key = stage.key(BACKUP).await?;
    let store = stage.scene.store()?;
    let good = store.get(&key.clone().into()).await?.bytes().await?;
    let mut bad = good.to_vec();
    let middle = bad.len() / 2;
    if let Some(byte) = bad.get_mut(middle) {
        *byte ^= 1;
    }
    store.put(&key.clone().into(), PutPayload::from(bad)).await?;
    stage.scene.lab.thaw(&second, "agent")?;
    ready?;
    let ended = stage.reaches("bad-file", RestoreState::Failed, MINUTE * 5).await;
    store.put(&key.into(), PutPayload::from(good)).await?;
    let ended = ended?;
    ensure!(
        ended.message.contains(&second) && ended.message.contains("SHA-256"),
        "the reason is not told: {}",
        ended.message
    );
    Ok(format!("bad file: {}", ended.message))
}

/// A node goes dark once it has begun; the others must come back without it, and it without anybody.
async fn power_cut(stage: &Stage<'_>, now: &Notes) -> Result<String> {
    let scene = stage.scene;
    let nodes = scene.lab.nodes();
    let chosen = usize::try_from(scene.below(3)).unwrap_or(0);
    let victim = nodes.get(chosen).context("no such node")?;
    let spec = json!({
        "from": {"backupRef": {"name": BACKUP}}, "mode": "InPlace", "deadlines": {"readySeconds": 150},
    });
    begin_confirmed(stage, "cut", spec).await?;
    scene
        .wait_for(&format!("{} to begin", victim.name()), MINUTE * 5, || async {
            Ok(match restoring::stage(victim)? {
                Some((RestoreStage::Going, _)) => Look::Done(()),
                other => Look::NotYet(format!("{other:?}")),
            })
        })
        .await?;
    // Anywhere between the first manifest and the new data coming up.
    let wait = scene.below(15_000);
    tokio::time::sleep(Duration::from_millis(wait)).await;
    scene.lab.power_cut(victim.name())?;
    let struck = restoring::stage(victim)?.context("no journal")?.0;
    scene.say(format_args!(
        "{} went dark as {struck:?}, {} ms after it began",
        victim.name(),
        wait
    ));
    let dark = Instant::now();
    // Two nodes of three are enough for the etcd of before: it must answer while the third is dark.
    scene
        .wait_for("the other two to be back", MINUTE * 8, || async {
            let (notes, _) = stage.notes().await?;
            Ok(if notes == *now {
                Look::Done(())
            } else {
                Look::NotYet(format!("{notes:?}"))
            })
        })
        .await?;
    for node in nodes.iter().filter(|n| n.name() != victim.name()) {
        ends_undone(scene, node).await?;
    }
    let back = dark.elapsed();
    scene.lab.power_on(victim.name())?;
    ends_undone(scene, victim).await?;
    let ended = stage.reaches("cut", RestoreState::Undone, MINUTE * 5).await?;
    Ok(format!(
        "power cut on {} as {struck:?}: two nodes back after {}, {}",
        victim.name(),
        spoken(back),
        ended.message
    ))
}

/// Begins it, and confirms it once it asks.
async fn begin_confirmed(stage: &Stage<'_>, name: &str, spec: serde_json::Value) -> Result<()> {
    stage.begin(name, spec).await?;
    let asks = RestoreState::AwaitingConfirmation;
    let shown = stage.reaches(name, asks, MINUTE * 5).await?;
    let with = shown.confirm_with.context("it does not say what to type")?;
    stage.confirm(name, &with).await
}

/// A node goes dark once it has signed that it is ready, and before all have; it stays so until its time is over. The
/// others need nobody to keep the restored data, and it must not go back alone.
async fn cut_when_signed(stage: &Stage<'_>, then: &Notes) -> Result<String> {
    let scene = stage.scene;
    let nodes = scene.lab.nodes();
    let chosen = usize::try_from(scene.below(3)).unwrap_or(0);
    let victim = nodes.get(chosen).context("no such node")?;
    let slow = nodes.get((chosen + 1) % nodes.len()).context("no such node")?;
    let spec = json!({
        "from": {"backupRef": {"name": BACKUP}}, "mode": "InPlace", "deadlines": {"readySeconds": 200},
    });
    begin_confirmed(stage, "cut-when-signed", spec).await?;
    frozen_at_start(scene, slow).await?;
    let signed = signed_ready(scene, victim).await;
    if signed.is_ok() {
        scene.lab.power_cut(victim.name())?;
    }
    scene.lab.thaw(slow.name(), API_SERVER)?;
    signed?;
    let dark = Instant::now();
    let (struck, _) = restoring::stage(victim)?.context("no journal")?;
    ensure!(struck == RestoreStage::Ready, "it went dark as {struck:?}");
    let over = restoring::deadline(victim)? - Utc::now();
    scene.say(format_args!(
        "{} went dark as {struck:?}, its time is over in {} s",
        victim.name(),
        over.num_seconds()
    ));
    // To the clock: a deadline is what must not make it go back.
    tokio::time::sleep(over.to_std().unwrap_or_default()).await;
    scene.lab.power_on(victim.name())?;
    let mut ends = vec![];
    for node in &nodes {
        let what = format!("{} to end", node.name());
        let ended = scene.wait_for(&what, MINUTE * 4, || async {
            Ok(match restoring::stage(node)? {
                Some((at @ (RestoreStage::Done | RestoreStage::Undone | RestoreStage::Undoing), _)) => {
                    Look::Done(at)
                }
                other => Look::NotYet(format!("{other:?}")),
            })
        });
        ends.push(ended.await?);
    }
    ensure!(
        ends.iter().all(|end| *end == RestoreStage::Done),
        "the nodes are on different data: {ends:?}"
    );
    stage.tells(then).await?;
    stage
        .reaches("cut-when-signed", RestoreState::Completed, MINUTE * 5)
        .await?;
    Ok(format!(
        "power cut on {} as {struck:?} for {}, past its time: all Done",
        victim.name(),
        spoken(dark.elapsed())
    ))
}

/// Stops a node's API server where it stands when it starts on the restored data.
async fn frozen_at_start(scene: &Scene, node: &Node) -> Result<()> {
    let runs = || anyhow::Ok(!node.processes(API_SERVER)?.is_empty());
    let what = format!("{} to be without an API server on its way", node.name());
    let down = scene.wait_for(&what, MINUTE * 5, || async {
        let (stage, runs) = (restoring::stage(node)?.map(|(stage, _)| stage), runs()?);
        Ok(if stage == Some(RestoreStage::Going) && !runs {
            Look::Done(())
        } else {
            Look::NotYet(format!("{stage:?}, an API server runs: {runs}"))
        })
    });
    down.await?;
    let what = format!("the API server of {} to start on the restored data", node.name());
    let started = scene.wait_for(&what, MINUTE * 5, || async {
        Ok(if runs()? {
            Look::Done(())
        } else {
            Look::NotYet("none runs".to_owned())
        })
    });
    started.await?;
    scene.lab.freeze(node.name(), API_SERVER).map(drop)
}

/// Waits until the restored etcd holds a node's signature that it is ready.
async fn signed_ready(scene: &Scene, node: &Node) -> Result<()> {
    let all = ["get", "--prefix", "--keys-only", "/lockkeeper.dev/restore/"];
    let signature = format!("/ready/{}", node.name());
    scene
        .wait_for(
            &format!("{} to sign that it is ready", node.name()),
            MINUTE * 3,
            || async {
                let asked = node.etcdctl(&all)?.output()?;
                Ok(if asked.stdout.lines().any(|key| key.ends_with(&signature)) {
                    Look::Done(())
                } else {
                    Look::NotYet(format!("{} {}", asked.stdout.replace('\n', " "), asked.stderr))
                })
            },
        )
        .await
}

async fn ends_undone(scene: &Scene, node: &Node) -> Result<()> {
    scene
        .wait_for(
            &format!("{} to have gone back", node.name()),
            MINUTE * 6,
            || async {
                Ok(match restoring::stage(node)? {
                    Some((RestoreStage::Undone, _)) => Look::Done(()),
                    Some((RestoreStage::Done, why)) => bail!("it kept the restored data: {why}"),
                    other => Look::NotYet(format!("{other:?}")),
                })
            },
        )
        .await
}
