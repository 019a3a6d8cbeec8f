//! Traffic goes from blue to green by the weights of routes, behind Contour and Envoy. Once it is called back at 25 %; then
//! it goes all the way, though somebody else sets other weights at 25 % for a while, and Contour is frozen at 50 %.
//!
//! Seen failing: with the routes' status written in the name of the frozen Contour ("what no gateway has taken counts as set:
//! green has all traffic").

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::{ClusterCutoverStatus, CutoverState};
use rustix::process::Signal;
use serde_json::Value;

use super::cutting_over::{LIMIT, MARGIN, abort, plan, seen_by_chance};
use super::{Scenario, Suite};
use crate::edge::gateway::{NAMESPACE, rules};
use crate::edge::{Clients, Colour, Cutover, Gateway, Kind, Pair, Plan, Steers, Watch};
use crate::progress::spoken;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-gateway",
    about: "by routes, behind Contour and Envoy: a stranger's backend named, back within 2 s, every share seen by clients",
    suite: Suite::Chaos,
    minutes: 8,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let gateway = Gateway::start(pair, Colour::Blue).await?;
        pair.install_with(&[&format!("cutover.gatewayAPI.namespaces={{{NAMESPACE}}}")])
            .await?;
        let clients = pair.clients_of_the_gateway(Kind::Http)?;
        let named = refused_for_a_stranger(pair, &gateway, &clients).await?;
        let (came, took, widest) = all_the_way(pair, &gateway, &clients).await?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "{named}; {came}; all green's after {}; clients saw each share within {widest:.1} points; {count}",
            spoken(took)
        ))
    })
    .await
}

fn by_routes(steps: &[u8]) -> Plan {
    Plan {
        steers: Steers::GatewayApi,
        // Envoy gives each request away by chance: fewer do not tell 5 %.
        soak: 13,
        gate: format!("http://{}/", Kind::Http.listener()),
        ..plan(steps)
    }
}

/// A route with a backend of neither colour is left alone. Without it the cutover begins by itself, and is called back.
async fn refused_for_a_stranger(pair: &Pair<'_>, gateway: &Gateway, clients: &Clients) -> Result<String> {
    gateway
        .patch_rules(Kind::Http, &rules(Kind::Http, 0, Some("canary")))
        .await?;
    let before = gateway.route(Kind::Http).await?;
    let watch = Watch::of(gateway.look(Kind::Http));
    let cutover = pair.begin("back", &by_routes(&[5, 25, 100])).await?;
    let blocked = |status: &ClusterCutoverStatus| {
        status.state == CutoverState::Blocked && status.message.contains("the backend canary")
    };
    let status = cutover
        .reaches("the stranger to be named", LIMIT, blocked)
        .await?;
    let generation = gateway.route(Kind::Http).await?.metadata.generation;
    ensure!(
        generation == before.metadata.generation,
        "a route with a backend of neither was touched"
    );
    gateway
        .patch_rules(Kind::Http, &rules(Kind::Http, 0, None))
        .await?;
    watch.until(pair, 25).await?;
    let back = abort(pair, &cutover, [clients]).await?;
    watch.were(&[0, 5, 25, 0])?;
    Ok(format!(
        "{}; all blue's again {back:?} after the word",
        status.message
    ))
}

async fn all_the_way(
    pair: &Pair<'_>,
    gateway: &Gateway,
    clients: &Clients,
) -> Result<(String, Duration, f64)> {
    let watch = Watch::of(gateway.look(Kind::Http));
    let began = Instant::now();
    let cutover = pair.begin("shop", &by_routes(&[1, 5, 25, 50, 100])).await?;
    watch.until(pair, 25).await?;
    // As a controller does that applies what lies in Git.
    gateway
        .patch_rules(Kind::Http, &rules(Kind::Http, 40, None))
        .await?;
    let held = cutover.is_held("WeightsChanged", LIMIT).await?;
    ensure!(
        held.message.contains("is 40 and 25, not 25"),
        "it does not say what is set instead: {}",
        held.message
    );
    gateway
        .patch_rules(Kind::Http, &rules(Kind::Http, 25, None))
        .await?;
    watch.until(pair, 50).await?;
    let untaken = while_contour_is_frozen(pair, gateway, &cutover, &watch).await?;
    cutover.settles("Completed", LIMIT).await?;
    let took = began.elapsed();
    watch.were(&[0, 1, 5, 25, 40, 25, 50, 100])?;
    let widest = seen_by_chance(clients, &watch, MARGIN, &[1, 5, 100])?;
    gateway.kept(Kind::Http).await?;
    let beside = gateway.route(Kind::Tcp).await?;
    let weights = [0, 1].map(|at| {
        let weight = format!("/spec/rules/0/backendRefs/{at}/weight");
        beside.data.pointer(&weight).and_then(Value::as_u64)
    });
    ensure!(weights == [Some(0), Some(100)], "the TCPRoute has {weights:?}");
    Ok((format!("{}; {untaken}", held.message), took, widest))
}

/// A weight that stands in a route and that no gateway has taken is not set: nothing goes on.
async fn while_contour_is_frozen(
    pair: &Pair<'_>,
    gateway: &Gateway,
    cutover: &Cutover<'_, '_>,
    watch: &Watch,
) -> Result<String> {
    tokio::time::sleep(Duration::from_millis(1000 + pair.scene.below(4000))).await;
    gateway.signal(Signal::STOP)?;
    let held = cutover.is_held("TrafficUnknown", LIMIT).await?;
    // Longer than the step and the window would last.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let route = gateway.route(Kind::Http).await?;
    let weight = route.data.pointer("/spec/rules/0/backendRefs/1/weight");
    ensure!(
        weight.and_then(Value::as_u64) == Some(100),
        "the next weight was not even asked for: {weight:?}"
    );
    let (now, status) = (
        watch.shares().last().map(|(_, green)| *green),
        cutover.status().await?,
    );
    ensure!(
        now == Some(50),
        "Envoy gives green {now:?} % while Contour is frozen"
    );
    ensure!(
        status.state == CutoverState::Held,
        "what no gateway has taken counts as set: {}",
        status.message
    );
    gateway.signal(Signal::CONT)?;
    Ok(held.message)
}
