//! Whether the edge itself is sound.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::FutureExt;

use super::{Scenario, Suite};
use crate::edge::{Colour, Pair};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-haproxy",
    about: "two clusters behind one HAProxy",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_node,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let clients = pair.clients()?;
        for weight in [0_u8, 25, 100, 0] {
            pair.proxy
                .say(&format!(
                    "set weight shop/green {weight};set weight shop/blue {}",
                    100 - weight
                ))
                .await?;
            let from = Instant::now();
            tokio::time::sleep(Duration::from_secs(5)).await;
            let count = clients.between(from, Instant::now());
            scene.say(format_args!("{weight}: {count}"));
            ensure!((count.green_share() - f64::from(weight)).abs() < 3.0);
            count.none_failed()?;
        }
        pair.client(Colour::Blue).await?.apiserver_version().await?;
        pair.client(Colour::Green).await?.apiserver_version().await?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(count.to_string())
    })
    .await
}
