//! Traffic goes from blue to green by one route of each kind, all four together, which lie in another cluster than Lockkeeper:
//! a kubeconfig leads there, with the rights that the README names and no other. At first one of these rights lacks, and one
//! route has a backend of neither colour. Once it is called back at 25 %; then it goes all the way.
//!
//! Seen failing: with a driver that sets and believes the first route alone ("waited 5 s for 25 % for green by all kinds of
//! routes; seen last: Some(0) by GRPCRoute edge/orders").

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::cutting_over::{LIMIT, MARGIN, abort, named, plan, seen_by_chance};
use super::{Scenario, Suite};
use crate::edge::gateway::{self, rules};
use crate::edge::{Clients, Colour, Gateway, Kind, Pair, Plan, Steers, Watch};
use crate::progress::spoken;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-routes",
    about: "by routes of all four kinds in a cluster that a kubeconfig leads to: what lacks named, back within 2 s, each share seen in each",
    suite: Suite::Chaos,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// The ServiceAccount in green's cluster, where the routes lie.
const ACCOUNT: &str = "edge";

/// Green's shares all the way, and the seconds of each. Envoy gives each connection away by chance, and clients open 50 a
/// second of a kind: of 1,100 at 5 % and of 4,300 at 25 % the standard deviation is two thirds of a point, so that one share
/// in 100,000 lies three points off, and less than one run in 10,000 fails by chance.
const STEPS: [(u8, u32); 3] = [(5, 25), (25, 92), (100, 3)];

/// A kind of routes, who asks there, and what Envoy does.
struct Stream<'c> {
    kind: Kind,
    clients: &'c Clients,
    watch: Watch,
}

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let gateway = Gateway::start(pair, Colour::Green).await?;
        let kubeconfig = pair.account(Colour::Green, ACCOUNT).await?;
        pair.install_in(Colour::Blue, &[(gateway::SECRET, "kubeconfig", &kubeconfig)])
            .await?;
        let clients = Kind::ALL.map(|kind| pair.clients_of_the_gateway(kind));
        let clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
        let came = back(pair, &gateway, &clients).await?;
        let (took, widest) = all_the_way(pair, &gateway, &clients).await?;
        let mut counts = Vec::new();
        for (kind, clients) in Kind::ALL.into_iter().zip(clients) {
            let count = clients.stop()?;
            count.none_failed().with_context(|| kind.route())?;
            counts.push(format!("{}: {count}", kind.route()));
        }
        Ok(format!(
            "{came}; all green's after {}; clients of each saw each share within {widest:.1} points; {}",
            spoken(took),
            counts.join(", ")
        ))
    })
    .await
}

fn by_routes(steps: &[u8], more: Value) -> Plan {
    Plan {
        steers: Steers::Routes,
        gate: format!("http://{}/", Kind::Http.listener()),
        more,
        ..plan(steps)
    }
}

fn streams<'c>(gateway: &Gateway, clients: &'c [Clients]) -> Vec<Stream<'c>> {
    let both = Kind::ALL.into_iter().zip(clients);
    let stream = |(kind, clients)| Stream {
        kind,
        clients,
        watch: Watch::of(gateway.look(kind)),
    };
    both.map(stream).collect()
}

/// Nothing is touched while anything is wrong with one of the four. Then the cutover begins by itself, and is called back.
async fn back(pair: &Pair<'_>, gateway: &Gateway, clients: &[Clients]) -> Result<String> {
    let at = usize::try_from(pair.scene.below(4))?;
    let wrong = *Kind::ALL.get(at).context("there are four kinds")?;
    gateway.allow(pair, ACCOUNT, Some(wrong)).await?;
    let stranger = rules(wrong, 0, Some("canary"));
    gateway.patch_rules(wrong, &stranger).await?;
    let before = generations(gateway).await?;
    let streams = streams(gateway, clients);
    let plan = by_routes(&[5, 25, 100], Value::Null);
    let cutover = pair.begin("back", &plan).await?;
    let lacks = format!(
        "the credentials for the edge may not patch {} of gateway",
        wrong.resource()
    );
    let lacking = named(&cutover, "EdgePermissions", &lacks).await?;
    let third = format!("{}, rule 0 has the backend canary", wrong.route());
    let third = named(&cutover, "Traffic", &third).await?;
    // It is asked again and again meanwhile.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let now = generations(gateway).await?;
    ensure!(now == before, "routes were touched: {before:?}, now {now:?}");
    for Stream { watch, .. } in &streams {
        watch.were(&[0])?;
    }

    gateway.patch_rules(wrong, &rules(wrong, 0, None)).await?;
    gateway.allow(pair, ACCOUNT, None).await?;
    all_at(pair, &streams, 25).await?;
    let took = abort(pair, &cutover, clients).await?;
    for Stream { watch, .. } in &streams {
        watch.were(&[0, 5, 25, 0])?;
    }
    Ok(format!(
        "{lacking}; {third}; all blue's again {took:?} after the word"
    ))
}

async fn all_the_way(pair: &Pair<'_>, gateway: &Gateway, clients: &[Clients]) -> Result<(Duration, f64)> {
    let streams = streams(gateway, clients);
    let shares = STEPS.map(|(green, _)| green);
    let steps = STEPS.map(|(green, seconds)| json!({"green": green, "soakSeconds": seconds}));
    let began = Instant::now();
    let plan = by_routes(&shares, json!({"steps": steps}));
    let cutover = pair.begin("shop", &plan).await?;
    for share in shares {
        all_at(pair, &streams, share).await?;
    }
    cutover.settles("Completed", LIMIT).await?;
    let took = began.elapsed();
    together(&streams)?;
    let mut widest = 0.0_f64;
    for Stream { kind, clients, watch } in &streams {
        watch.were(&[0, 5, 25, 100]).with_context(|| kind.route())?;
        let seen = seen_by_chance(clients, watch, MARGIN, &shares);
        widest = widest.max(seen.with_context(|| kind.route())?);
        gateway.kept(*kind).await?;
    }
    Ok((took, widest))
}

/// Waits until green has a share by the first, and by all others a moment later.
async fn all_at(pair: &Pair<'_>, streams: &[Stream<'_>], green: u8) -> Result<()> {
    let first = streams.first().context("there are four kinds")?;
    first.watch.until(pair, green).await?;
    let what = format!("{green} % for green by all kinds of routes");
    pair.scene
        .wait_for(&what, Duration::from_secs(5), || async {
            let others = streams
                .iter()
                .map(|stream| (stream.kind, stream.watch.shares().last().map(|(_, now)| *now)));
            Ok(match others.into_iter().find(|(_, now)| *now != Some(green)) {
                None => Look::Done(()),
                Some((kind, now)) => Look::NotYet(format!("{now:?} by {}", kind.route())),
            })
        })
        .await
}

/// Each step began after Envoy gave the one before by all kinds of routes.
fn together(streams: &[Stream<'_>]) -> Result<()> {
    let shares = streams.iter().map(|stream| stream.watch.shares());
    let shares: Vec<_> = shares.collect();
    let when = |at: usize| {
        let all = shares.iter().filter_map(move |shares| shares.get(at));
        all.map(|(moment, _)| *moment)
    };
    for at in 1..STEPS.len() {
        let (last, next) = (when(at).max(), when(at + 1).min());
        ensure!(
            last < next,
            "step {} began before Envoy gave the one before by all kinds of routes",
            at + 1
        );
    }
    Ok(())
}

/// Of each route: it rises with every change of what it asks for.
async fn generations(gateway: &Gateway) -> Result<Vec<Option<i64>>> {
    try_join_all(Kind::ALL.map(async |kind| {
        let route = gateway.route(kind).await?;
        anyhow::Ok(route.metadata.generation)
    }))
    .await
}
