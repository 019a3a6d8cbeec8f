//! A flag that the target does not know stands in one node's manifest. The running version takes it, so only
//! starting the target with it tells.
//!
//! Seen failing: an agent that takes every rehearsal for passed ("it settled as RolledBack, not Blocked").

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{CheckResult, ClusterVersionStatus, State, Strategy};

use super::{Scenario, Suite};
use crate::cache::write_whole;
use crate::lockkeeper::{Keeper, as_before, manifests};
use crate::recipes::TARGET;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "blocked-by-rehearsal",
    about: "a feature gate that the target does not know stands in a manifest: stopped before any change",
    suite: Suite::Quick,
    minutes: 4,
    lab: super::three_nodes,
    leaves_clean: true,
    play: |scene| play(scene).boxed_local(),
};

const NODE: &str = "cp2";
/// Locked on in v1.35, which takes `=true`; gone in v1.36, which does not know the name.
const GATE: &str = "HonorPVReclaimPolicy";
const MINUTE: Duration = Duration::from_secs(60);

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let fresh = manifests(&scene.lab)?;
    let before = write_flag(scene, true).await?;
    let touched = manifests(&scene.lab)?;

    keeper.bump(TARGET).await?;
    // The restart with the flag may have taken the scheduler's lease: that stops a round of checks too, and passes.
    let named = |s: &ClusterVersionStatus| s.state == State::Blocked && s.summary.contains(GATE);
    let status = keeper
        .reaches("a summary that names the gate", MINUTE * 4, named)
        .await?;
    let check = status
        .preflight
        .iter()
        .find(|check| check.name == "Rehearsal" && check.result == CheckResult::Block)
        .with_context(|| format!("no Rehearsal blocks: {:?}", status.preflight))?;
    ensure!(
        check.node.as_deref() == Some(NODE),
        "it names the node {:?}",
        check.node
    );
    ensure!(
        check.message.contains(GATE),
        "it does not name the gate: {}",
        check.message
    );
    let sentence = check.message.clone();
    ensure!(manifests(&scene.lab)? == touched, "a manifest was changed");
    scene.say(&sentence);

    write_whole(&path(scene)?, &before)?;
    let goes = |s: &ClusterVersionStatus| matches!(s.state, State::BackingUp | State::Rolling);
    keeper
        .reaches("the upgrade to start by itself", MINUTE * 5, goes)
        .await?;
    keeper.back_to_start().await?;
    as_before(&scene.lab, &fresh)?;
    Ok(sentence)
}

fn path(scene: &Scene) -> Result<PathBuf> {
    Ok(scene
        .lab
        .node(NODE)?
        .kubernetes_folder()
        .join("manifests/kube-apiserver.yaml"))
}

/// Adds the flag as an admin would, and waits until the API server runs with it. Returns the bytes before.
async fn write_flag(scene: &Scene, on: bool) -> Result<Vec<u8>> {
    let flag = format!("--feature-gates={GATE}={on}");
    let before = std::fs::read(path(scene)?)?;
    let text = String::from_utf8(before.clone())?;
    let changed = text.replacen(
        "    - kube-apiserver\n",
        &format!("    - kube-apiserver\n    - {flag}\n"),
        1,
    );
    ensure!(changed != text, "the manifest has no command `kube-apiserver`");
    write_whole(&path(scene)?, changed.as_bytes())?;
    let node = scene.lab.node(NODE)?;
    scene
        .wait_for(&format!("{NODE} to run with {flag}"), MINUTE * 3, || async {
            let processes = node.processes("kube-apiserver")?;
            let runs = processes
                .iter()
                .any(|process| process.arguments().contains(&flag));
            Ok(if runs {
                Look::Done(())
            } else {
                Look::NotYet(format!("{} processes without it", processes.len()))
            })
        })
        .await?;
    scene.wait_until_whole(MINUTE * 3).await?;
    Ok(before)
}
