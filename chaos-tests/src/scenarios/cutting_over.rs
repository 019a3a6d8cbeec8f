//! What the scenarios of cutovers have in common.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockkeeper_crds::{CheckResult, ClusterCutoverStatus, CutoverState};

use crate::edge::{Clients, Colour, Cutover, Pair, Plan, Steers, Watch};

/// The longest that a short cutover may take on a machine that does other work too.
pub(super) const LIMIT: Duration = Duration::from_secs(8 * 60);
/// What changed at the edge holds for the requests after it; those on their way are neither here nor there.
pub(super) const MARGIN: Duration = Duration::from_millis(500);
/// From the word to go back until no request is given to green any more.
const BACK_WITHIN: Duration = Duration::from_secs(2);
/// By how many points clients may see another share than the one asked for.
const POINTS: f64 = 3.0;
/// Standard deviations in as many points, where who answers is a matter of chance: one share in 100,000 is farther off.
const DEVIATIONS: f64 = 4.5;

/// Quick steps with a gate through the edge.
pub(super) fn plan(steps: &[u8]) -> Plan {
    Plan {
        home: Colour::Blue,
        secret: Colour::Green.name().to_owned(),
        steers: Steers::Haproxy,
        when_lost: None,
        steps: steps.to_vec(),
        soak: 8,
        window: 5,
        gate: format!("http://{}/", crate::edge::PROXY),
        requests: 10,
        more: serde_json::Value::Null,
    }
}

/// Lockkeeper in blue, clients at the edge, and an eye on its weights.
pub(super) async fn begin(pair: &Pair<'_>) -> Result<(Clients, Watch)> {
    pair.install().await?;
    Ok((pair.clients()?, Watch::start()))
}

/// Waits until it is blocked by this check, with these words in it.
pub(super) async fn named(cutover: &Cutover<'_, '_>, check: &str, words: &str) -> Result<String> {
    let is_named = |status: &ClusterCutoverStatus| {
        let mut checks = status.preflight.iter();
        status.state == CutoverState::Blocked
            && checks.any(|c| c.name == check && c.result == CheckResult::Block && c.message.contains(words))
    };
    let what = format!("{check}: {words}");
    let status = cutover.reaches(&what, Duration::from_secs(60), is_named).await?;
    let mut found = status.preflight.into_iter().filter(|c| c.name == check);
    Ok(found.next().context("the check is gone")?.message)
}

/// Gives the word to go back, some seconds after green was seen at a share, and waits until all is blue's. How long green
/// still answered after the word, at whomever it was asked, which may not be longer than promised.
pub(super) async fn abort(
    pair: &Pair<'_>,
    cutover: &Cutover<'_, '_>,
    clients: impl IntoIterator<Item = &Clients>,
) -> Result<Duration> {
    tokio::time::sleep(Duration::from_millis(1000 + pair.scene.below(4000))).await;
    let word = cutover.abort().await?;
    cutover.settles("RolledBack", LIMIT).await?;
    // Whoever would still be sent to green has had the time to be.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut longest = Duration::ZERO;
    for clients in clients {
        let last = clients.last_by(Colour::Green, word);
        let back = last.map_or(Duration::ZERO, |last| last.duration_since(word));
        ensure!(
            back <= BACK_WITHIN,
            "green still answered {back:?} after the word"
        );
        let before = clients.between(word - Duration::from_secs(1), word);
        ensure!(before.green > 0, "green had no traffic to begin with: {before}");
        longest = longest.max(back);
    }
    Ok(longest)
}

/// Fails unless the clients saw each share that was set, from `margin` after it was until so long before the next; the
/// widest difference in points.
pub(super) fn seen_by_clients(clients: &Clients, watch: &Watch, margin: Duration) -> Result<f64> {
    // Fewer are too few to tell: on the way back, or between two looks.
    let (widest, told) = seen_where(clients, watch, margin, |_| 200.0)?;
    ensure!(told.len() > 1, "no share was there for long enough to tell");
    Ok(widest)
}

/// The same where each answer is given by chance, as Envoy does it: among these shares, of which each must have been there
/// for long enough to tell.
pub(super) fn seen_by_chance(
    clients: &Clients,
    watch: &Watch,
    margin: Duration,
    shares: &[u8],
) -> Result<f64> {
    let enough = |green: u8| {
        let part = f64::from(green) / 100.0;
        (part * (1.0 - part) * (DEVIATIONS * 100.0 / POINTS).powi(2)).max(200.0)
    };
    let (widest, told) = seen_where(clients, watch, margin, enough)?;
    for share in shares {
        ensure!(
            told.contains(share),
            "3 points could not be told at {share} %, but at {told:?}"
        );
    }
    Ok(widest)
}

/// Looks at every share of which there are enough answers; those, and the widest difference.
fn seen_where(
    clients: &Clients,
    watch: &Watch,
    margin: Duration,
    enough: impl Fn(u8) -> f64,
) -> Result<(f64, Vec<u8>)> {
    let shares = watch.shares();
    let ends = shares.iter().skip(1).map(|(at, _)| *at).chain([Instant::now()]);
    let (mut widest, mut told) = (0.0_f64, Vec::new());
    for ((from, green), until) in shares.iter().zip(ends) {
        let count = clients.between(*from + margin, until.checked_sub(margin).unwrap_or(until));
        #[allow(clippy::cast_precision_loss)] // Some 100 a second.
        if (count.answered() as f64) < enough(*green) {
            continue;
        }
        let off = (count.green_share() - f64::from(*green)).abs();
        ensure!(
            off <= POINTS,
            "green was given {green} %, and clients saw {:.1} %: {count}",
            count.green_share()
        );
        widest = widest.max(off);
        told.push(*green);
    }
    Ok((widest, told))
}
