//! The target's API server starts and is never ready. The rehearsal cannot tell: it only sees who dies at once.
//!
//! Seen failing: an agent that puts back one byte too many ("it settled as Failed, not RolledBack").

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::TicketState;

use super::{Scenario, Suite};
use crate::lockkeeper::{
    BAD_TARGET, Keeper, UPGRADE, Watcher, as_before, impatient, import_bad_target, manifests, runs,
};
use crate::progress::spoken;
use crate::recipes::START;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "rollback-ha",
    about: "the target's API server never becomes ready: the first node is undone, all is as before",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, impatient()).await?;
    import_bad_target(scene)?;
    let before = manifests(&scene.lab)?;
    let restarts = keeper.restarts().await?;
    let watcher = Watcher::start(scene).await?;
    let load = scene.lab.load_start(None)?;
    let began = Instant::now();
    keeper.bump(BAD_TARGET).await?;
    let status = keeper.settles("RolledBack", UPGRADE).await?;
    let took = began.elapsed();
    let report = load.stop()?;
    scene.say(&status.summary);

    ensure!(
        status.summary.contains("kube-apiserver"),
        "the reason does not name the component: {}",
        status.summary
    );
    as_before(&scene.lab, &before)?;
    runs(scene, START).await?;
    report.none_lost()?;
    let book = watcher.close()?;
    let applied = book
        .states()
        .iter()
        .filter(|s| **s == TicketState::Starting)
        .count();
    ensure!(
        applied == 1,
        "{applied} nodes were touched, not only the first: {:?}",
        book.tickets
    );
    ensure!(
        book.states().contains(&TicketState::Undone),
        "no agent undid its step: {:?}",
        book.tickets
    );
    keeper.not_restarted_since(&restarts).await?;
    not_tried_again(&keeper).await?;
    keeper.back_to_start().await?;
    Ok(format!("back after {}; {report}", spoken(took)))
}

/// Twenty seconds are many of the operator's rounds.
async fn not_tried_again(keeper: &Keeper<'_>) -> Result<()> {
    let before = keeper.ticket_numbers().await?;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let after = keeper.ticket_numbers().await?;
    ensure!(
        before == after,
        "it was tried again: tickets {before:?}, then {after:?}"
    );
    let (reason, status) = keeper.settled(Duration::from_secs(10)).await?;
    ensure!(
        reason == "RolledBack",
        "it went on to {reason}: {}",
        status.summary
    );
    Ok(())
}
