//! Green begins to fail one request in ten when it has a quarter of the traffic. Its health checks stay well.
//!
//! Not yet seen failing on purpose.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;

use super::cutting_over::{LIMIT, begin, plan};
use super::{Scenario, Suite};
use crate::edge::{Colour, FAILURES, Pair, Plan, application};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-bad-green",
    about: "green fails one request in ten at 25 %: the gate sees it, traffic goes back, few requests failed",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// One request in so many.
const BAD: u32 = 10;
/// The gate asks once a second. A round that is under way when green turns bad may pass; the rounds after it fail,
/// and going back takes a second at most.
const NOTICED_WITHIN: Duration = Duration::from_secs(1 + FAILURES as u64 + 2);

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let plan = Plan {
            gate: format!("http://{}/", application(Colour::Green)),
            requests: 20,
            soak: 20,
            ..plan(&[25, 100])
        };
        let cutover = pair.begin("shop", &plan).await?;
        watch.until(pair, 25).await?;
        tokio::time::sleep(Duration::from_millis(1000 + scene.below(4000))).await;
        let bad = Instant::now();
        pair.fail_one_in(Colour::Green, BAD).await?;
        let status = cutover.settles("RolledBack", LIMIT).await?;
        ensure!(
            status.message.contains("shop"),
            "it does not name its gate: {}",
            status.message
        );
        watch.were(&[0, 25, 0])?;
        let (back, _) = *watch.shares().last().context("no share was seen")?;
        let took = back.duration_since(bad);
        ensure!(
            took <= NOTICED_WITHIN,
            "traffic went back {took:?} after green turned bad"
        );
        let since = clients.between(back + Duration::from_millis(500), Instant::now());
        ensure!(
            since.failures() == 0 && since.green == 0,
            "after the way back: {since}"
        );
        let count = clients.stop()?;
        // A quarter of 100 requests a second, one in ten of them, for as long as it lasted; and one at each end.
        let share = took.as_secs_f64() * 100.0 * 0.25 / f64::from(BAD) + 2.0;
        #[allow(clippy::cast_precision_loss)] // A few dozen.
        let failures = count.failures() as f64;
        ensure!(failures > 0.0, "green never failed: this shows nothing");
        ensure!(
            failures <= share,
            "{failures} requests failed, {share:.1} were green's share"
        );
        Ok(format!("back after {took:?} ({}); {count}", status.message))
    })
    .await
}
