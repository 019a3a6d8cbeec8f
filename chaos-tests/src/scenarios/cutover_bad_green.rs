//! Green begins to fail one request in ten when it has a quarter of the traffic. Its health checks stay well. A gate of
//! requests to green sees it, or one that asks a Prometheus which counts at the edge.
//!
//! Seen failing: with gates whose failed rounds do not count ("waited 60 s for shop to end; seen last: Shifting: gate shop
//! has passed 0 of 2 times: 2 of 20 requests failed, one with: status 500"); with a query whose value may be out of its bounds
//! ("shop settled as Some("Completed"), not RolledBack").

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use serde_json::{Value, json};

use super::cutting_over::{begin, plan};
use super::{Scenario, Suite};
use crate::edge::{Colour, FAILURES, Pair, Plan, application, errors_of};
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-bad-green",
    about: "green fails one request in ten at 25 %: the gate sees it, traffic goes back, few requests failed",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene, Sees::Itself).boxed_local(),
};

/// The same, seen by others.
pub(super) const BY_METRICS: Scenario = Scenario {
    name: "cutover-bad-metrics",
    about: "the same, and the gate asks a Prometheus that counts at the edge",
    play: |scene| play(scene, Sees::Prometheus).boxed_local(),
    ..SCENARIO
};

/// How the gate sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sees {
    /// By requests of its own.
    Itself,
    /// By what clients were answered.
    Prometheus,
}

/// One request in so many.
const BAD: u32 = 10;
/// All-to-blue is looked at for a while before it is called an end.
const ENDED_WITHIN: Duration = Duration::from_secs(60);
/// From the first round that is told to have failed: the interval between the rounds that must fail, and a second.
const BACK_WITHIN: Duration = Duration::from_secs(FAILURES as u64 - 1 + 1);

impl Sees {
    /// The gate asks once a second. A round that is under way when green turns bad may pass; the rounds after it fail,
    /// and going back takes a second at most. What is counted first waits for a scrape, once a second too.
    const fn noticed_within(self) -> Duration {
        let late = match self {
            Self::Itself => 0,
            Self::Prometheus => 2,
        };
        Duration::from_secs(1 + FAILURES as u64 + 2 + late)
    }

    async fn gates(self, pair: &Pair<'_>) -> Result<Value> {
        if self == Self::Itself {
            return Ok(Value::Null);
        }
        let asks = json!({"url": pair.prometheus().await?, "query": errors_of(Colour::Green), "max": 0.01});
        let gate = json!({
            "name": "shop", "intervalSeconds": 1, "passes": 2, "failures": FAILURES,
            // Before green has any traffic nothing is known of it.
            "at": ["Steps", "Window"], "promQL": asks,
        });
        Ok(json!({"gates": [gate]}))
    }
}

async fn play(scene: &Scene, sees: Sees) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let plan = Plan {
            gate: format!("http://{}/", application(Colour::Green)),
            requests: 20,
            soak: 20,
            more: sees.gates(pair).await?,
            ..plan(&[25, 100])
        };
        let cutover = pair.begin("shop", &plan).await?;
        let failing = cutover.failures_of("shop");
        watch.until(pair, 25).await?;
        tokio::time::sleep(Duration::from_millis(1000 + scene.below(4000))).await;
        let bad = Instant::now();
        pair.fail_one_in(Colour::Green, BAD).await?;
        let status = cutover.settles("RolledBack", ENDED_WITHIN).await?;
        ensure!(
            status.message.contains("shop"),
            "it does not name its gate: {}",
            status.message
        );
        watch.were(&[0, 25, 0])?;
        let (back, _) = *watch.shares().last().context("no share was seen")?;
        let took = back.duration_since(bad);
        ensure!(
            took <= sees.noticed_within(),
            "traffic went back {took:?} after green turned bad"
        );
        // The row that led to it.
        let rows = failing.shares();
        let first = rows.iter().rev().skip_while(|(at, _)| *at > back).find(|(_, failed)| *failed == 1);
        let (first, _) = first.context("no round was told to have failed")?;
        let after = back.duration_since(*first);
        ensure!(
            after <= BACK_WITHIN,
            "traffic went back {after:?} after the first of {FAILURES} rounds that failed"
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
        Ok(format!(
            "back {after:?} after the first of {FAILURES} failed rounds, {took:?} after green turned bad ({}); {count}",
            status.message
        ))
    })
    .await
}
