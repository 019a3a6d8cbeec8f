//! One cutover with two that move the traffic: the edge's HAProxy, and a Job that steers a backend beside it. Once it is called
//! back while the Job is setting; then it goes all the way.
//!
//! Seen failing: where a `set` is not waited for that was told to end ("green's shares beside the edge were [0, 25, 0, 100, 0]").

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ListParams};

use super::cutting_over::{LIMIT, MARGIN, plan, seen_by_clients};
use super::{Scenario, Suite};
use crate::edge::{BESIDE, Clients, Colour, Pair, Plan, Proxy, Steers, Watch, app};
use crate::progress::spoken;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-several",
    about: "by an HAProxy and by Jobs together: called back while a Job sets, then all the way; both seen at every step",
    suite: Suite::Chaos,
    minutes: 3,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const STEPS: [u8; 2] = [25, 100];

/// What is set at both, and who asks there.
struct Both {
    watches: [Watch; 2],
    clients: [Clients; 2],
}

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let value = format!("cutover.trafficJobs.namespaces={{{}}}", app::NAMESPACE);
        pair.install_with(&[&value]).await?;
        let both = Both {
            watches: [Watch::start(), Watch::of(|| Proxy::green_share_of(BESIDE))],
            clients: [pair.clients()?, pair.clients_beside()?],
        };
        let came = back(pair, &both).await?;
        let (took, widest) = all_the_way(pair, &both).await?;
        let mut counts = Vec::new();
        for clients in both.clients {
            let count = clients.stop()?;
            count.none_failed()?;
            counts.push(count.to_string());
        }
        Ok(format!(
            "{came}; all green's after {}; clients saw each share within {widest:.1} points; {}",
            spoken(took),
            counts.join(", and beside it ")
        ))
    })
    .await
}

fn by_both() -> Plan {
    Plan {
        steers: Steers::HaproxyAndJob,
        ..plan(&STEPS)
    }
}

/// The word to go back comes while a Job is to set green's 100 %, and does not heed it: what it sets is set before blue has
/// all again, or never.
async fn back(pair: &Pair<'_>, both: &Both) -> Result<String> {
    let [edge, beside] = &both.watches;
    let cutover = pair.begin("back", &by_both()).await?;
    edge.until(pair, 100).await?;
    tokio::time::sleep(Duration::from_millis(1500 + pair.scene.below(3000))).await;
    let word = cutover.abort().await?;
    cutover.settles("RolledBack", LIMIT).await?;
    let took = word.elapsed();
    // Whatever is still about to set something has the time to.
    tokio::time::sleep(Duration::from_secs(15)).await;
    edge.were(&[0, 25, 100, 0])?;
    let shares: Vec<u8> = beside.shares().iter().map(|(_, green)| *green).collect();
    ensure!(
        beside.were(&[0, 25, 100, 0]).is_ok() || beside.were(&[0, 25, 0]).is_ok(),
        "green's shares beside the edge were {shares:?}"
    );
    let at_once = edge.shares().last().map(|(at, _)| at.duration_since(word));
    Ok(format!(
        "called back while a Job set: blue's again at the edge after {:?}, at both after {}, by way of {shares:?} there",
        at_once.unwrap_or_default(),
        spoken(took)
    ))
}

async fn all_the_way(pair: &Pair<'_>, both: &Both) -> Result<(Duration, f64)> {
    let began = Instant::now();
    let watches = [Watch::start(), Watch::of(|| Proxy::green_share_of(BESIDE))];
    let cutover = pair.begin("shop", &by_both()).await?;
    let status = cutover.settles("Completed", LIMIT).await?;
    let took = began.elapsed();
    let [edge, beside] = &watches;
    for watch in &watches {
        watch.were(&[0, 25, 100])?;
    }
    let when = |watch: &Watch, green: u8| {
        let shares = watch.shares();
        let found = shares.iter().find(|(_, share)| *share == green);
        found.map(|(at, _)| *at).context("it was seen a moment ago")
    };
    ensure!(
        when(beside, 25)? < when(edge, 100)?,
        "the next step began before the Job had set the one before"
    );
    ensure!(
        status.weights.from.contains("HAProxy") && status.weights.from.contains("job shop/beside"),
        "not both were seen: {}",
        status.weights.from
    );
    let mut widest = 0.0_f64;
    for (clients, watch) in both.clients.iter().zip(&watches) {
        widest = widest.max(seen_by_clients(clients, watch, MARGIN)?);
    }
    let jobs: Api<Job> = Api::namespaced(pair.client(Colour::Blue).await?, app::NAMESPACE);
    let jobs = jobs.list(&ListParams::default()).await?.items;
    ensure!(jobs.len() <= 3, "{} Jobs were left", jobs.len());
    Ok((took, widest))
}
