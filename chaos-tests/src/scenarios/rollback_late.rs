//! The target is good on the first node and fails on the second: the first must be returned too.
//!
//! Seen failing: a planner that stops where it should turn round ("it settled as Failed, not RolledBack").

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::TicketState;

use super::{Scenario, Suite};
use crate::lockkeeper::{
    Keeper, UPGRADE, Watcher, as_before, break_target_on, impatient, manifests, mend_target_on, runs,
};
use crate::progress::spoken;
use crate::recipes::{START, TARGET};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "rollback-late",
    about: "the target fails on the second node: the first is returned too",
    suite: Suite::Chaos,
    minutes: 6,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, impatient()).await?;
    let before = manifests(&scene.lab)?;
    let watcher = Watcher::start(scene).await?;
    let load = scene.lab.load_start(None)?;
    let began = Instant::now();
    keeper.bump(TARGET).await?;
    // The order is fixed once checks begin; the image is looked up when the kubelet makes the container.
    let ordered = keeper
        .reaches("the order of the nodes", UPGRADE, |status| {
            status
                .rollout
                .as_ref()
                .is_some_and(|r| r.target == TARGET && r.order.len() == 3)
        })
        .await?;
    let order = ordered.rollout.context("no rollout")?.order;
    let (first, second) = (
        order.first().context("no first")?,
        order.get(1).context("no second")?,
    );
    break_target_on(scene, second)?;
    let ended = keeper.settles("RolledBack", UPGRADE).await;
    let took = began.elapsed();
    mend_target_on(scene, second)?;
    let status = ended?;
    let report = load.stop()?;
    scene.say(&status.summary);

    ensure!(
        status.summary.contains(second.as_str()),
        "the reason does not name {second}: {}",
        status.summary
    );
    as_before(&scene.lab, &before)?;
    runs(scene, START).await?;
    report.none_lost()?;
    let book = watcher.close()?;
    let ends = |node: &str, state: TicketState| {
        book.tickets
            .iter()
            .filter(|(name, _, s)| name == node && *s == state)
            .count()
    };
    // Up, and then back: two tickets kept on the first, one undone on the second.
    ensure!(
        ends(first, TicketState::Confirmed) == 2,
        "{first}: {:?}",
        book.tickets
    );
    ensure!(
        ends(second, TicketState::Undone) == 1,
        "{second}: {:?}",
        book.tickets
    );
    keeper.back_to_start().await?;
    Ok(format!(
        "{first} up and back, {second} undone, after {}; {report}",
        spoken(took)
    ))
}
