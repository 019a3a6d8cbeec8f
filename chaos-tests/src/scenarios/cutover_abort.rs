//! A person gives the word to go back at 25 %.
//!
//! Seen failing: a driver that set blue's weight before green's on the way up ("green's shares at the edge were
//! [0, 5, 28, 25, 0]").

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::cutting_over::{LIMIT, begin, plan};
use super::{Scenario, Suite};
use crate::edge::{Colour, Pair};
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

/// From the word until no request is given to green any more.
const BACK_WITHIN: Duration = Duration::from_secs(2);

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let cutover = pair.begin("shop", &plan(&[5, 25, 100])).await?;
        watch.until(pair, 25).await?;
        tokio::time::sleep(Duration::from_millis(1000 + scene.below(4000))).await;
        let word = cutover.abort().await?;
        let status = cutover.settles("RolledBack", LIMIT).await?;
        // Whoever would still be sent to green has had the time to be.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let last = clients.last_by(Colour::Green, word);
        let back = last.map_or(Duration::ZERO, |last| last.duration_since(word));
        ensure!(
            back <= BACK_WITHIN,
            "green still answered {back:?} after the word"
        );
        watch.were(&[0, 5, 25, 0])?;
        let before = clients.between(word - Duration::from_secs(1), word);
        ensure!(before.green > 0, "green had no traffic to begin with: {before}");
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "all blue's again {back:?} after the word ({}); {count}",
            status.message
        ))
    })
    .await
}
