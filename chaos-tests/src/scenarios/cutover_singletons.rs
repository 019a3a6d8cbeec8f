//! A consumer of a queue and a `CronJob` go to green with the traffic and back again, and write who they are into one
//! ledger: never two at once, no work lost, though the operators are killed in between.
//!
//! Seen failing: where what was told to stop counts as stopped, "two worked at once" (once consumers take their time to end:
//! before that it passed all the same).

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{ClusterCutoverStatus, CutoverStage, CutoverState};
use serde_json::json;

use super::cutover_killed::kill;
use super::cutting_over::{LIMIT, plan};
use super::{Scenario, Suite};
use crate::edge::ledger::{self, CONSUMER, CRON_JOB, Ledger};
use crate::edge::{Pair, Plan, Watch};
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-singletons",
    about: "a CronJob and a consumer handed over and back, operators killed in between: never two, none lost",
    suite: Suite::Chaos,
    minutes: 10,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let ledger = Ledger::open(pair)?;
        ledger::deploy(pair).await?;
        pair.install_with(&["cutover.handOver.namespaces={shop}"]).await?;
        for worker in [CONSUMER, CRON_JOB] {
            writes(pair, &ledger, worker, "blue").await?;
        }
        let (clients, watch) = (pair.clients()?, Watch::start());
        let plan = Plan {
            window: 1800,
            more: json!({"singletons": ledger::singletons(), "handOverSeconds": 300}),
            ..plan(&[50, 100])
        };
        let cutover = pair.begin("shop", &plan).await?;
        let at = |stage: CutoverStage| {
            move |s: &ClusterCutoverStatus| s.memory.as_ref().is_some_and(|m| m.stage == stage)
        };
        cutover
            .reaches("the hand-over to begin", LIMIT, at(CutoverStage::HandingOver))
            .await?;
        tokio::time::sleep(Duration::from_millis(scene.below(8000))).await;
        kill(pair).await?;
        let there = |s: &ClusterCutoverStatus| s.state == CutoverState::RollbackWindow;
        let status = cutover.reaches("green to have all", LIMIT, there).await?;
        ensure!(
            status.singletons.len() == 2 && status.singletons.iter().all(|s| s.blue == "stopped"),
            "the status does not say where they are: {:?}",
            status.singletons
        );
        for worker in [CONSUMER, CRON_JOB] {
            writes(pair, &ledger, worker, "green").await?;
        }
        cutover.abort().await?;
        cutover
            .reaches("the way back to begin", LIMIT, at(CutoverStage::Back))
            .await?;
        tokio::time::sleep(Duration::from_millis(scene.below(8000))).await;
        kill(pair).await?;
        cutover.settles("RolledBack", LIMIT).await?;
        for worker in [CONSUMER, CRON_JOB] {
            writes(pair, &ledger, worker, "blue").await?;
            let runs = ledger.runs(worker);
            ensure!(
                runs == ["blue", "green", "blue"],
                "{worker}: two worked at once, or in another order: {runs:?}"
            );
        }
        let taken = ledger.taken();
        let all = || async {
            Ok(match ledger.undone(taken) {
                undone if undone.is_empty() => Look::Done(()),
                undone => Look::NotYet(format!("{undone:?} of {taken} are not done")),
            })
        };
        scene
            .wait_for("all work to be done", Duration::from_secs(60), all)
            .await?;
        watch.were(&[0, 50, 100, 0])?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!("{taken} pieces of work, all done; {count}"))
    })
    .await
}

/// Waits until a worker writes in a colour.
async fn writes(pair: &Pair<'_>, ledger: &Ledger, worker: &str, colour: &str) -> Result<()> {
    let what = format!("{worker} to work in {colour}");
    pair.scene
        .wait_for(&what, Duration::from_secs(150), || async {
            Ok(match ledger.last(worker) {
                Some(last) if last == colour => Look::Done(()),
                last => Look::NotYet(format!("{last:?} worked last")),
            })
        })
        .await
}
