//! All operators are killed in the middle of every step.
//!
//! Seen failing: with an engine that gives green 20 points too many in its first act after it was killed ("green's shares
//! at the edge were [0, 10, 70, 50, 100], not [0, 10, 50, 100]").

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};

use super::cutting_over::{LIMIT, MARGIN, begin, plan, seen_by_clients};
use super::{Scenario, Suite};
use crate::edge::{Colour, Pair, Plan};
use crate::install::NAMESPACE;
use crate::progress::spoken;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-killed",
    about: "the operators are killed in every step: same end, weights never outside the plan, no request failed",
    suite: Suite::Chaos,
    minutes: 8,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const STEPS: [u8; 3] = [10, 50, 100];

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let plan = Plan {
            window: 15,
            ..plan(&STEPS)
        };
        let began = Instant::now();
        let cutover = pair.begin("shop", &plan).await?;
        // Preflight; then each step at a moment that the seed chooses, its very beginning among them.
        kill(pair).await?;
        for green in STEPS {
            watch.until(pair, green).await?;
            tokio::time::sleep(Duration::from_millis(scene.below(6000))).await;
            kill(pair).await?;
        }
        cutover.settles("Completed", LIMIT * 2).await?;
        let took = began.elapsed();
        watch.were(&[0, 10, 50, 100])?;
        let widest = seen_by_clients(&clients, &watch, MARGIN)?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "killed {} times, all green's after {}; clients saw each share within {widest:.1} points; {count}",
            STEPS.len() + 1,
            spoken(took)
        ))
    })
    .await
}

/// Kills the processes, and has their pods replaced at once: the kubelet's growing pauses are not what is shown here.
pub(super) async fn kill(pair: &Pair<'_>) -> Result<()> {
    let node = pair.scene.lab.node("cp1")?;
    // The one that leads, and the one that waits for its end: killing nobody is an error.
    let hit = pair.scene.lab.kill(node.name(), "operator")?;
    pair.scene.say(format_args!("killed {hit} operator(s)"));
    let pods: Api<Pod> = Api::namespaced(pair.client(Colour::Blue).await?, NAMESPACE);
    let now = DeleteParams::default().grace_period(0);
    for pod in pods.list(&ListParams::default()).await? {
        let name = pod.metadata.name.unwrap_or_default();
        if name.starts_with("lockkeeper-operator-") {
            pods.delete(&name, &now).await?;
        }
    }
    Ok(())
}
