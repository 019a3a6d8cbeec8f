//! The leading operator is killed at every step of an upgrade, a random moment after the step is first seen.
//!
//! Seen failing: an operator that forgets its ticket in hand ("two nodes had a ticket at once").

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{ClusterVersionStatus, Phase, State, Strategy};

use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, UPGRADE, Watcher, journal, runs};
use crate::progress::spoken;
use crate::recipes::TARGET;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "operator-killed",
    about: "the leading operator is killed at every step: upgraded all the same, one node at a time",
    suite: Suite::Chaos,
    minutes: 15,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// The kubelet starts what ends again after 10, 20, 40 s and so on: the whole takes that much longer.
const LIMIT: Duration = UPGRADE.saturating_mul(2);

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let watcher = Watcher::start(scene).await?;
    let load = scene.lab.load_start(None)?;
    let began = Instant::now();
    keeper.bump(TARGET).await?;
    let killed = kill_at_every_step(scene, &keeper, &watcher).await?;
    keeper.settles("Completed", LIMIT).await?;
    let took = began.elapsed();
    let report = load.stop()?;
    runs(scene, TARGET).await?;
    watcher.close()?;
    report.none_lost()?;
    ensure!(killed.len() >= 6, "killed only at {killed:?}: this proves little");
    let steps: Vec<String> = killed.into_iter().collect();
    Ok(format!(
        "upgraded in {}, killed at {}; {report}",
        spoken(took),
        steps.join(", ")
    ))
}

async fn kill_at_every_step(
    scene: &Scene,
    keeper: &Keeper<'_>,
    watcher: &Watcher,
) -> Result<BTreeSet<String>> {
    let mut killed = BTreeSet::new();
    let began = Instant::now();
    loop {
        crate::interrupt::check()?;
        watcher.check()?;
        ensure!(
            began.elapsed() < LIMIT,
            "not at an end after {}; killed at {killed:?}",
            spoken(LIMIT)
        );
        tokio::time::sleep(Duration::from_millis(150)).await;
        let Ok(object) = keeper.read().await else { continue };
        let generation = object.metadata.generation;
        let Some(status) = object.status else { continue };
        let rollout = status.rollout.as_ref().filter(|rollout| rollout.target == TARGET);
        if rollout.is_some_and(|r| r.phase == Phase::Completed) && status.observed_generation == generation {
            return Ok(killed);
        }
        ensure!(
            !matches!(status.state, State::RolledBack | State::Failed),
            "it ended as {:?}: {}",
            status.state,
            status.summary
        );
        let Some(step) = step(scene, &status) else {
            continue;
        };
        if killed.contains(&step) {
            continue;
        }
        tokio::time::sleep(Duration::from_millis(scene.below(1200))).await;
        let Ok(node) = keeper.leader_node().await else {
            continue;
        };
        // Dead since the last kill and not replaced yet: the next look finds another leader.
        if scene.lab.kill(&node, "operator").is_ok() {
            scene.say(format_args!("killed the leader on {node} at {step}"));
            killed.insert(step);
        }
    }
}

/// Where the rollout stands: its phase, and where the ticket in hand stands by the node's own journal.
fn step(scene: &Scene, status: &ClusterVersionStatus) -> Option<String> {
    let rollout = status
        .rollout
        .as_ref()
        .filter(|rollout| rollout.target == TARGET)?;
    let phase = format!("{:?}", rollout.phase);
    let Some(ticket) = &rollout.in_hand else {
        return Some(phase);
    };
    let journalled = journal::read(&scene.lab.node(&ticket.node).ok()?).ok()??;
    Some(if journalled.number == ticket.number {
        format!("{phase}/{:?}", journalled.state)
    } else {
        format!("{phase}/Reserved")
    })
}
