//! One etcd member of three is down before the upgrade: a step on either other node would cost the quorum.
//!
//! Seen failing: with agents that wait for a silent server, and with an old etcd report taken for a fresh one.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{CheckResult, Strategy};

use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, manifests, runs};
use crate::recipes::{START, TARGET};
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "quorum-at-risk",
    about: "one etcd member is down beforehand: nothing is touched",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const NODE: &str = "cp3";
const MINUTE: Duration = Duration::from_secs(60);

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let before = manifests(&scene.lab)?;
    let numbers = keeper.ticket_numbers().await?;
    let node = scene.lab.node(NODE)?;
    let manifest = node.kubernetes_folder().join("manifests/etcd.yaml");
    let aside = node.kubernetes_folder().join("etcd.yaml.aside");
    std::fs::rename(&manifest, &aside)?;
    scene
        .wait_for(&format!("etcd of {NODE} to end"), MINUTE, || async {
            Ok(match node.processes("etcd")?.len() {
                0 => Look::Done(()),
                count => Look::NotYet(format!("{count} processes")),
            })
        })
        .await?;
    keeper.bump(TARGET).await?;
    let blocked = keeper.settles("Blocked", MINUTE * 5).await;
    // The wish goes first, or the upgrade would begin once etcd is whole.
    let numbers_after = keeper.ticket_numbers().await?;
    keeper.bump(START).await?;
    std::fs::rename(&aside, &manifest)?;
    let status = blocked?;
    let etcd = status
        .preflight
        .iter()
        .find(|check| check.name == "Etcd" && check.result >= CheckResult::Unknown);
    ensure!(etcd.is_some(), "no check Etcd stops it: {:?}", status.preflight);
    ensure!(
        numbers == numbers_after,
        "a ticket was issued: {numbers:?}, then {numbers_after:?}"
    );
    scene.wait_until_whole(MINUTE * 3).await?;
    keeper.idle_at(START).await?;
    ensure!(manifests(&scene.lab)? == before, "a manifest was changed");
    runs(scene, START).await?;
    Ok(etcd.map(|check| check.message.clone()).unwrap_or_default())
}
