//! A person gives the word to go back at 25 %.
//!
//! Seen failing: a driver that set blue's weight before green's on the way up ("green's shares at the edge were
//! [0, 5, 28, 25, 0]").

use anyhow::Result;
use futures::FutureExt;

use super::cutting_over::{abort, begin, plan};
use super::{Scenario, Suite};
use crate::edge::Pair;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-abort",
    about: "aborted at 25 %: blue has all traffic again within 2 s of the word, no request failed",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let cutover = pair.begin("shop", &plan(&[5, 25, 100])).await?;
        watch.until(pair, 25).await?;
        let back = abort(pair, &cutover, [&clients]).await?;
        watch.were(&[0, 5, 25, 0])?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!("all blue's again {back:?} after the word; {count}"))
    })
    .await
}
