//! Something goes away in the middle: green's API, the edge, blue's API with Lockkeeper's memory in it, a DNS server;
//! and blue's API where Lockkeeper lives in green. It holds or goes back as the spec says, and goes on when it is back.
//!
//! Seen failing: where a lost cluster holds nothing, "green's share went from 25 % to Some(100)".

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use lockkeeper_crds::CutoverState;
use rustix::process::Signal;

use super::cutting_over::{LIMIT, plan};
use super::{Scenario, Suite};
use crate::edge::dns::Server;
use crate::edge::{Clients, Colour, Dns, Pair, Plan, Proxy, Steers, Watch, app, application};
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-away",
    about: "an API, the edge, a DNS server away in the middle: holds or goes back as the spec says, and goes on after it",
    suite: Suite::Chaos,
    minutes: 12,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// In seconds: a step must not end while something goes away in it, on a slow machine either.
const SOAK: u32 = 12;
/// How long something stays away once Lockkeeper has noticed: longer than a step would have lasted.
const AWAY: Duration = Duration::from_secs(SOAK as u64 + 4);
/// The longest until a loss is noticed: it counts after 6 s, is asked for every 3 s, and each question has its limit.
const NOTICED: Duration = Duration::from_secs(60);
/// Why it is held.
const CLUSTER: &str = "ClusterLost";
const TRAFFIC: &str = "TrafficUnknown";

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let dns = Dns::start(pair).await?;
        pair.install_with_dns(&dns).await?;
        let before = app::belongings(pair).await?;
        let held = holds(pair).await?;
        let green = goes_back_without_green(pair).await?;
        let named = holds_without_a_dns_server(pair, &dns).await?;
        let blue = goes_back_without_blue(pair).await?;
        // An API that was away is not back at once.
        let all_there = || async {
            let now = app::belongings(pair).await?;
            ensure!(now == before, "objects were touched: {before:?}, now {now:?}");
            Ok(Look::Done(()))
        };
        pair.scene
            .wait_for("the application's objects", NOTICED, all_there)
            .await?;
        Ok([held, green, named, blue].join("; "))
    })
    .await
}

/// With gates that ask green itself, so that none fails for what is away.
fn quick(steps: &[u8]) -> Plan {
    Plan {
        soak: SOAK,
        gate: format!("http://{}/", application(Colour::Green)),
        ..plan(steps)
    }
}

/// Green's API, the edge, and blue's API with it all: nothing moves meanwhile.
async fn holds(pair: &Pair<'_>) -> Result<String> {
    let (clients, watch) = (pair.clients()?, Watch::start());
    let plan = Plan {
        when_lost: Some(["Hold", "Hold"]),
        ..quick(&[25, 50, 75, 100])
    };
    let cutover = pair.begin("holds", &plan).await?;
    let began = Instant::now();

    reached(pair, &watch, 25).await?;
    pair.green.freeze("cp1", "kube-apiserver")?;
    let held = cutover.is_held(CLUSTER, NOTICED).await;
    stayed(&watch, 25).await?;
    pair.green.thaw("cp1", "kube-apiserver")?;
    held.context("green's API away")?;

    reached(pair, &watch, 50).await?;
    let without = Instant::now();
    ensure!(pair.proxy.process().signal(Signal::STOP), "no edge to stop");
    let held = cutover.is_held(TRAFFIC, NOTICED).await;
    tokio::time::sleep(AWAY).await;
    ensure!(pair.proxy.process().signal(Signal::CONT), "the edge is gone");
    let again = Instant::now();
    let seen = held.context("the edge away")?.weights;
    ensure!(
        seen.seen.map(|weights| weights.green) == Some(50) && !seen.unknown.is_empty(),
        "what cannot be read is not told as unknown: {seen:?}"
    );

    reached(pair, &watch, 75).await?;
    pair.scene.lab.freeze("cp1", "kube-apiserver")?;
    stayed(&watch, 75).await?;
    tokio::time::sleep(AWAY).await;
    pair.scene.lab.thaw("cp1", "kube-apiserver")?;

    cutover.settles("Completed", LIMIT).await?;
    watch.were(&[0, 25, 50, 75, 100])?;
    // Whoever asked while the edge stood still, or just before, is another matter.
    let second = Duration::from_secs(1);
    let others = [
        clients.between(began, without.checked_sub(second).unwrap_or(without)),
        clients.between(again + second, Instant::now()),
    ];
    for count in &others {
        count.none_failed()?;
    }
    clients.stop()?;
    Ok("held without green's API, the edge, blue's API, and went on to 100 %".to_owned())
}

/// Waits for a share, and a while that the seed chooses: long enough to be seen, shorter than the step.
async fn reached(pair: &Pair<'_>, watch: &Watch, green: u8) -> Result<()> {
    watch.until(pair, green).await?;
    tokio::time::sleep(Duration::from_millis(1500 + pair.scene.below(3000))).await;
    Ok(())
}

/// Nothing moves for longer than the step would have lasted.
async fn stayed(watch: &Watch, green: u8) -> Result<()> {
    tokio::time::sleep(AWAY).await;
    let now = watch.shares().last().map(|(_, green)| *green);
    ensure!(now == Some(green), "green's share went from {green} % to {now:?}");
    Ok(())
}

/// Both ways by hand, as a person would begin anew.
async fn all_to_blue(pair: &Pair<'_>) -> Result<(Clients, Watch)> {
    for (colour, weight) in [(Colour::Blue, 100), (Colour::Green, 0)] {
        Proxy::say(&format!("set server shop/{} weight {weight}", colour.name())).await?;
    }
    ensure!(
        Proxy::green_share().await? == 0,
        "the edge does not do as it is told"
    );
    Ok((pair.clients()?, Watch::start()))
}

async fn goes_back_without_green(pair: &Pair<'_>) -> Result<String> {
    let plan = Plan {
        when_lost: Some(["Hold", "GoBack"]),
        ..quick(&[25, 100])
    };
    goes_back(pair, "back-without-green", &plan, Colour::Green).await
}

/// Lockkeeper lives in green here: only there it can do anything without blue's API.
async fn goes_back_without_blue(pair: &Pair<'_>) -> Result<String> {
    pair.install_in(Colour::Green, &[]).await?;
    let plan = Plan {
        home: Colour::Green,
        secret: Colour::Blue.name().to_owned(),
        when_lost: Some(["GoBack", "Hold"]),
        soak: SOAK,
        // By the edge: nobody in green sees green's application as others do.
        ..plan(&[25, 100])
    };
    goes_back(pair, "back-without-blue", &plan, Colour::Blue).await
}

/// An API away at 25 %: all goes back, and the reason names it.
async fn goes_back(pair: &Pair<'_>, name: &str, plan: &Plan, lost: Colour) -> Result<String> {
    let (clients, watch) = all_to_blue(pair).await?;
    let cutover = pair.begin(name, plan).await?;
    reached(pair, &watch, 25).await?;
    let gone = Instant::now();
    pair.lab(lost).freeze("cp1", "kube-apiserver")?;
    let ended = cutover.settles("RolledBack", NOTICED).await;
    pair.lab(lost).thaw("cp1", "kube-apiserver")?;
    let status = ended?;
    let words = format!("the API of {} has not answered", lost.name());
    ensure!(
        status.message.contains(&words),
        "the reason is not named: {}",
        status.message
    );
    watch.were(&[0, 25, 0])?;
    let (back, _) = *watch.shares().last().context("no share was seen")?;
    clients.stop()?.none_failed()?;
    Ok(format!(
        "went back {:.1} s after {}'s API was away",
        back.duration_since(gone).as_secs_f64(),
        lost.name()
    ))
}

/// The primary is killed: the secondary goes on to answer, and Lockkeeper neither moves on nor takes it for empty.
async fn holds_without_a_dns_server(pair: &Pair<'_>, dns: &Dns) -> Result<String> {
    let clients = pair.clients_by_name()?;
    let watch = Watch::of(|| Server::Secondary.green_share());
    let plan = Plan {
        steers: Steers::Dns,
        ..quick(&[50, 100])
    };
    let cutover = pair.begin("by-name", &plan).await?;
    reached(pair, &watch, 50).await?;
    let killed = dns.signal(Server::Primary, Signal::KILL)?;
    ensure!(
        killed.gone_within(Duration::from_secs(5)),
        "the server does not end"
    );
    let held = cutover.is_held(TRAFFIC, NOTICED).await;
    stayed(&watch, 50).await?;
    let status = cutover.status().await?;
    ensure!(
        status.state == CutoverState::Held && status.weights.seen.map(|weights| weights.green) == Some(50),
        "{:?}: {:?}",
        status.state,
        status.weights
    );
    dns.run(Server::Primary)?;
    held.context("a DNS server away")?;
    cutover.settles("Completed", LIMIT).await?;
    let all = || async {
        Ok(match Server::Primary.green_share().await? {
            100 => Look::Done(()),
            green => Look::NotYet(format!("{green} %")),
        })
    };
    pair.scene
        .wait_for("all green's at the primary", NOTICED, all)
        .await?;
    watch.were(&[0, 50, 100])?;
    let count = clients.stop()?;
    count.none_failed()?;
    Ok(format!("held without a DNS server and went on; {count}"))
}
