//! Two cutovers of one target: the second waits, and says for whom.
//!
//! Seen failing: with a preflight that overlooks the other cutover, "it does not name the first".

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::CutoverState;

use super::cutting_over::{LIMIT, begin, plan};
use super::{Scenario, Suite};
use crate::edge::Pair;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-two",
    about: "two cutovers of one target: the second is refused by name, the first goes on to its end",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let first = pair.begin("first", &plan(&[25, 100])).await?;
        watch.until(pair, 25).await?;
        let second = pair.begin("second", &plan(&[50, 100])).await?;
        let blocked = |status: &lockkeeper_crds::ClusterCutoverStatus| status.state == CutoverState::Blocked;
        let status = second.reaches("the second to be refused", LIMIT, blocked).await?;
        let named = |status: &lockkeeper_crds::ClusterCutoverStatus| {
            status
                .preflight
                .iter()
                .any(|check| check.name == "TargetFree" && check.message.contains("ClusterCutover first"))
        };
        ensure!(
            named(&status),
            "it does not name the first: {:?}",
            status.preflight
        );
        first.settles("Completed", LIMIT).await?;
        // The first's end does not let the second begin: green has all, and a cutover begins with nothing.
        let status = second.status().await?;
        ensure!(
            status.started_at.is_none(),
            "the second began: {}",
            status.message
        );
        watch.were(&[0, 25, 100])?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!("the second: {}; {count}", status.message))
    })
    .await
}
