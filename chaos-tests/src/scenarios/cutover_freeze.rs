//! Writes to blue are refused during the hand-over, in the frozen namespace and nowhere else, and no longer than was said:
//! blue itself lifts the freeze when the operators never come back.
//!
//! Seen failing: with an egg timer of ten times the longest time, "waited 180 s for blue to lift the freeze".

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use lockkeeper_crds::{ClusterCutoverStatus, CutoverState};
use serde_json::json;

use super::cutting_over::{LIMIT, plan};
use super::{Scenario, Suite};
use crate::edge::ledger::{self, Ledger};
use crate::edge::{Colour, Pair, Plan};
use crate::install::NAMESPACE as OURS;
use crate::progress::spoken;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-freeze",
    about: "writes to blue refused in the frozen namespace alone and for the time said, also with no operator left",
    suite: Suite::Chaos,
    minutes: 9,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const FROZEN: &str = "shop";
/// The longest freeze.
const LONGEST: u64 = 60;

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let _ledger = Ledger::open(pair)?;
        ledger::deploy(pair).await?;
        pair.install_with(&[
            "cutover.handOver.namespaces={shop}",
            "cutover.handOver.freeze=true",
        ])
        .await?;
        let client = pair.client(Colour::Blue).await?;
        let other = Namespace {
            metadata: named("elsewhere"),
            ..Namespace::default()
        };
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &other)
            .await?;
        write(&client, FROZEN, "before")
            .await
            .context("before the freeze")?;

        let plan = Plan {
            window: 5,
            more: json!({
                "singletons": ledger::singletons(), "handOverSeconds": 300,
                "freeze": {"namespaces": [FROZEN], "longestSeconds": LONGEST},
            }),
            ..plan(&[50, 100])
        };
        let cutover = pair.begin("shop", &plan).await?;
        let frozen = |s: &ClusterCutoverStatus| s.freeze.as_ref().is_some_and(|f| f.frozen == Some(true));
        cutover.reaches("the freeze", LIMIT, frozen).await?;
        let began = Instant::now();
        let refused = write(&client, FROZEN, "within").await;
        let why = format!("{:#}", refused.err().context("a write was let through")?);
        ensure!(
            why.contains("ClusterCutover shop"),
            "it is not said who refuses: {why}"
        );
        write(&client, "elsewhere", "within")
            .await
            .context("a namespace that is not frozen")?;
        scene.say(format_args!("refused: {why}"));

        // For good: they are killed, and what comes in their place has no time to get the lease.
        pair.scene.lab.kill("cp1", "operator")?;
        scale(pair, 0)?;
        let lifted = scene
            .wait_for(
                "blue to lift the freeze",
                Duration::from_secs(LONGEST * 3),
                || async {
                    match write(&client, FROZEN, "after").await {
                        Ok(()) => Ok(Look::Done(began.elapsed())),
                        Err(why) => Ok(Look::NotYet(format!("{why:#}"))),
                    }
                },
            )
            .await?;
        ensure!(
            lifted <= Duration::from_secs(LONGEST + 15),
            "it was lifted after {}",
            spoken(lifted)
        );

        // Whoever comes back finds a hand-over that is late, and goes back.
        scale(pair, 2)?;
        let back = |s: &ClusterCutoverStatus| s.state == CutoverState::RolledBack;
        let status = cutover.reaches("the way back", LIMIT, back).await?;
        ensure!(
            status.message.contains("freeze"),
            "it does not say why it went back: {}",
            status.message
        );
        write(&client, FROZEN, "at-the-end").await.context("at the end")?;
        Ok(format!(
            "lifted by blue itself after {} of at most {LONGEST} s; {}",
            spoken(lifted),
            status.message
        ))
    })
    .await
}

fn scale(pair: &Pair<'_>, replicas: u32) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    let words = ["kubectl", "-n", OURS, "scale", "deployment", "--all", &replicas];
    pair.scene.lab.out(&words)?.check().map(drop)
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        ..ObjectMeta::default()
    }
}

/// Makes a ConfigMap and deletes it.
async fn write(client: &kube::Client, namespace: &str, name: &str) -> Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = ConfigMap {
        metadata: named(name),
        ..ConfigMap::default()
    };
    api.create(&PostParams::default(), &map).await?;
    api.delete(name, &DeleteParams::default()).await?;
    Ok(())
}
