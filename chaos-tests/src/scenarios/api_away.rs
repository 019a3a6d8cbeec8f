//! One node, a target that is never ready: no API at all while it lasts, so only the agent can bring it back.
//!
//! Seen failing: an agent that waits 120 s past the deadline ("no API for 3 min 17 s, more than 2 min").

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{Strategy, TicketState};

use super::{Scenario, Suite};
use crate::lockkeeper::{
    BAD_TARGET, Keeper, UPGRADE, Watcher, as_before, import_bad_target, manifests, runs,
};
use crate::progress::spoken;
use crate::recipes::START;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "api-away",
    about: "one node, a target that is never ready: the agent brings the old version back with no API at all",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::one_node,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const READY: u32 = 60;
/// What the kubelet and an API server need to end the one and start the other, on a busy machine.
const RETURN: Duration = Duration::from_secs(60);

async fn play(scene: &Scene) -> Result<String> {
    let strategy = Strategy {
        ready_seconds: READY,
        confirm_seconds: 60,
        ..Strategy::default()
    };
    let keeper = Keeper::at_start(scene, strategy).await?;
    import_bad_target(scene)?;
    let before = manifests(&scene.lab)?;
    let watcher = Watcher::start(scene).await?;
    let load = scene.lab.load_start(None)?;
    let began = Instant::now();
    keeper.bump(BAD_TARGET).await?;
    let status = keeper.settles("RolledBack", UPGRADE).await?;
    let took = began.elapsed();
    let report = load.stop()?;
    scene.say(&status.summary);

    as_before(&scene.lab, &before)?;
    runs(scene, START).await?;
    report.none_lost()?;
    let book = watcher.close()?;
    ensure!(
        book.states().contains(&TicketState::Undone),
        "nothing was undone: {:?}",
        book.tickets
    );
    let away = book.longest_without_api;
    ensure!(
        away > Duration::from_secs(5),
        "the API was never away: this proves nothing"
    );
    let limit = Duration::from_secs(READY.into()) + RETURN;
    ensure!(
        away <= limit,
        "no API for {}, more than {}",
        spoken(away),
        spoken(limit)
    );
    keeper.back_to_start().await?;
    Ok(format!(
        "no API for {}, settled after {}; {report}",
        spoken(away),
        spoken(took)
    ))
}
