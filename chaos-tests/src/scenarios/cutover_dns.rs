//! Traffic goes from blue to green by the addresses of a name. In the middle one of its two servers stops to answer.
//!
//! Seen failing: with the server that stopped woken again every 0.3 s (the cutover never held).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use rustix::process::Signal;

use super::cutting_over::{LIMIT, plan, seen_by_clients};
use super::{Scenario, Suite};
use crate::edge::dns::{CUTOVER_TTL, SERVERS, Server, TTL};
use crate::edge::{Colour, Cutover, Dns, Pair, Plan, Steers, Watch, application};
use crate::progress::spoken;
use crate::scene::{Look, Scene};

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-dns",
    about: "by a name's addresses, on two servers of which one stops for a while: every share seen, no request failed",
    suite: Suite::Chaos,
    minutes: 6,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

/// What two addresses each can make.
const STEPS: [u8; 4] = [33, 50, 67, 100];
/// In seconds: long enough to tell a share at 50 requests a second, less the time in which old answers are still kept.
const SOAK: u32 = 14;
/// A change is heeded when the TTL has run out; the secondary is told of it a second later.
const HEEDED: Duration = Duration::from_secs(CUTOVER_TTL as u64 + 2);

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let dns = Dns::start(pair).await?;
        pair.install_with_dns(&dns).await?;
        let clients = pair.clients_by_name()?;
        let shares = Watch::of(|| Server::Primary.green_share());
        let ttls = Watch::of(|| Server::Primary.ttl());
        let plan = Plan {
            steers: Steers::Dns,
            soak: SOAK,
            gate: format!("http://{}/", application(Colour::Green)),
            ..plan(&STEPS)
        };
        let began = Instant::now();
        let cutover = pair.begin("shop", &plan).await?;
        shares.until(pair, 50).await?;
        tokio::time::sleep(Duration::from_millis(1000 + scene.below(4000))).await;
        let held = without_the_secondary(&dns, &cutover, &shares).await?;
        cutover.settles("Completed", LIMIT).await?;
        let took = began.elapsed();
        restored(pair).await?;

        shares.were(&[0, 33, 50, 67, 100])?;
        ttls.were(&[TTL, CUTOVER_TTL, TTL])?;
        let [_, (lowered, _), _] = ttls.shares()[..] else {
            anyhow::bail!("three TTLs were seen before");
        };
        let (first, _) = *shares.shares().get(1).context("no share was seen")?;
        let waited = first.duration_since(lowered);
        // The watch looks 20 times a second.
        ensure!(
            waited + Duration::from_millis(100) >= Duration::from_secs(TTL.into()),
            "green got its first share {waited:?} after the TTL was lowered from {TTL} s"
        );
        let widest = seen_by_clients(&clients, &shares, HEEDED)?;
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "all green's after {}, first {} after the TTL was lowered; held while a server was away ({held}); clients \
             saw each share within {widest:.1} points; {count}",
            spoken(took),
            spoken(waited)
        ))
    })
    .await
}

/// Every authoritative server is asked: with one that does not answer nothing is known, and nothing moves.
async fn without_the_secondary(dns: &Dns, cutover: &Cutover<'_, '_>, shares: &Watch) -> Result<String> {
    dns.signal(Server::Secondary, Signal::STOP)?;
    let status = cutover.is_held("TrafficUnknown", Duration::from_secs(60)).await?;
    // Longer than the step would have lasted.
    tokio::time::sleep(Duration::from_secs(u64::from(SOAK) + 3)).await;
    let now = shares.shares().last().map(|(_, green)| *green);
    ensure!(
        now == Some(50),
        "green's share went on to {now:?} while a server did not answer"
    );
    let kept = cutover.status().await?.weights;
    ensure!(
        kept.seen.map(|weights| weights.green) == Some(50) && !kept.unknown.is_empty(),
        "what was seen is not kept as what it is: {kept:?}"
    );
    dns.signal(Server::Secondary, Signal::CONT)?;
    Ok(status.message)
}

/// The TTL is put back once the cutover has ended, at both servers.
async fn restored(pair: &Pair<'_>) -> Result<()> {
    let what = format!("a TTL of {TTL} s at both servers");
    pair.scene
        .wait_for(&what, Duration::from_secs(60), || async {
            for server in SERVERS {
                let (ttl, green) = (server.ttl().await?, server.green_share().await?);
                if (ttl, green) != (TTL, 100) {
                    return Ok(Look::NotYet(format!(
                        "{ttl} s, {green} % at {}",
                        server.address()
                    )));
                }
            }
            // The watch of the primary has seen it too.
            tokio::time::sleep(Duration::from_millis(500)).await;
            Ok(Look::Done(()))
        })
        .await
}
