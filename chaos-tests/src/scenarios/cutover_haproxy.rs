//! Traffic goes from blue to green behind an HAProxy, step by step.
//!
//! Seen failing: with a driver that sets 33 for 25 and reads 25 ("green's shares at the edge were [0, 1, 5, 33, 50, 100]").

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::cutting_over::{LIMIT, MARGIN, begin, plan, seen_by_clients};
use super::{Scenario, Suite};
use crate::edge::Pair;
use crate::progress::spoken;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-haproxy",
    about: "two clusters behind one HAProxy: 1, 5, 25, 50, 100 % with no request failed, seen by the clients",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const STEPS: [u8; 5] = [1, 5, 25, 50, 100];

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let began = Instant::now();
        let cutover = pair.begin("shop", &plan(&STEPS)).await?;
        let status = cutover.settles("Completed", LIMIT).await?;
        let took = began.elapsed();
        watch.were(&[0, 1, 5, 25, 50, 100])?;
        let widest = seen_by_clients(&clients, &watch, MARGIN)?;
        let seen = status.weights.seen.map(|weights| weights.green);
        ensure!(seen == Some(100), "the status says that green has {seen:?} %");
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "all green's after {}; clients saw each share within {widest:.1} points; {count}",
            spoken(took)
        ))
    })
    .await
}
