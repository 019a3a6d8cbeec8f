//! The main road: three nodes, one field changed, clients at work all the while.
//!
//! Seen failing: a planner that leaves the ConfigMap alone ("kubeadm-config says v1.35.4").

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{Strategy, TicketState};

use super::{Scenario, Suite};
use crate::lockkeeper::{Keeper, UPGRADE, Watcher, check_snapshot, published_backups, runs};
use crate::progress::spoken;
use crate::recipes::TARGET;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "upgrade-ha",
    about: "three nodes go up a minor under clients: every component, no write lost, a snapshot that restores",
    suite: Suite::Quick,
    minutes: 6,
    lab: super::three_nodes,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    let keeper = Keeper::at_start(scene, Strategy::default()).await?;
    let restarts = keeper.restarts().await?;
    let watcher = Watcher::start(scene).await?;
    let load = scene.lab.load_start(None)?;
    let began = Instant::now();
    keeper.bump(TARGET).await?;
    let status = keeper.settles("Completed", UPGRADE).await?;
    let took = began.elapsed();
    let report = load.stop()?;
    scene.say(format_args!(
        "upgraded in {}: {report}\n{}",
        spoken(took),
        report.details()
    ));

    runs(scene, TARGET).await?;
    report.none_lost()?;
    ensure!(
        report.acknowledged_writes > 200,
        "the clients wrote only {} times: they prove nothing",
        report.acknowledged_writes
    );
    let book = watcher.close()?;
    ensure!(
        book.states().contains(&TicketState::Starting),
        "the watcher saw no ticket: it proves nothing"
    );
    keeper.not_restarted_since(&restarts).await?;
    let key = status
        .snapshot
        .and_then(|snapshot| snapshot.key)
        .context("the status names no snapshot")?;
    let snapshot = check_snapshot(scene, &key).await?;
    ensure!(
        !published_backups(scene).await?.is_empty(),
        "no manifest lies in the bucket"
    );
    others_agree(scene, &keeper).await?;
    Ok(format!("{}; {report}; {snapshot}", spoken(took)))
}

/// kubeadm and kubectl, which know nothing of us.
async fn others_agree(scene: &Scene, keeper: &Keeper<'_>) -> Result<()> {
    let version = keeper.kubeadm_version().await?;
    ensure!(
        version == TARGET,
        "kubeadm-config says {version}: `kubeadm join` would bring that"
    );
    let said = scene.lab.kubectl(&["version", "-o", "json"])?;
    let parsed: serde_json::Value = serde_json::from_str(&said.stdout)?;
    let server = parsed
        .pointer("/serverVersion/gitVersion")
        .and_then(serde_json::Value::as_str);
    ensure!(server == Some(TARGET), "kubectl sees {server:?}");
    let node = scene
        .lab
        .nodes()
        .into_iter()
        .next()
        .context("a lab without nodes")?;
    let plan = node
        .run(&[
            &format!("kubeadm-{TARGET}"),
            "upgrade",
            "plan",
            TARGET,
            "--ignore-preflight-errors=all",
        ])?
        .env("KUBECONFIG", "/etc/kubernetes/admin.conf")
        .limit(std::time::Duration::from_secs(150))
        .output()?;
    let said = format!("{}{}", plan.stdout, plan.stderr);
    ensure!(
        plan.success() && said.contains(&format!("Cluster version: {}", TARGET.trim_start_matches('v'))),
        "kubeadm upgrade plan does not see {TARGET}: {said}"
    );
    Ok(())
}
