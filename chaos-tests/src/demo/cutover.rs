//! `lab demo --cutover`: an application's traffic goes from one cluster to another on the screen.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use lockkeeper_crds::{ClusterCutoverStatus, CutoverState};

use super::{Wanted, lab_command};
use crate::edge::{Clients, Colour, Cutover, PROXY, Pair, Plan, RUNTIME_API, Steers, green_of};
use crate::interrupt;
use crate::lab::{Lab, Tie};
use crate::progress::Progress;
use crate::scene::Scene;
use crate::state::Options;

const STEPS: [u8; 4] = [5, 25, 50, 100];
/// Seconds of a step: long enough to see what clients see.
const SOAK: u32 = 12;
/// Seconds in which there is a way back for whoever looks around.
const WINDOW: u32 = 24 * 3600;
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// Between two lines.
const EVERY: Duration = Duration::from_secs(2);

/// Brings two clusters and the edge up, moves the traffic, and leaves everything up. The exit code tells whether all
/// went over with no request failed.
pub(super) fn run(wanted: &Wanted) -> Result<ExitCode> {
    let install = wanted.install()?;
    let progress = Progress::start();
    for name in [green_of(&wanted.name), wanted.name.clone()] {
        super::clear(&name, &progress)?;
    }
    let options = Options {
        name: wanted.name.clone(),
        nodes: 1,
        kubernetes: wanted.course.from.clone(),
        ..Options::default()
    };
    progress.say("blue: a cluster of its own");
    let lab = Lab::up(options, Tie::None, false, &progress)?;
    let scene = Scene::new(lab, install, 0, progress);
    let shown = scene.play(|scene| Box::pin(Pair::stay(scene, show)));
    let interrupted = interrupt::raised();
    match shown {
        Ok(told) => println!("\n{told}"),
        Err(_) if interrupted => println!("\nInterrupted. Lockkeeper goes on by itself."),
        Err(error) => {
            around(&wanted.name);
            return Err(error);
        }
    }
    around(&wanted.name);
    Ok(if interrupted {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

async fn show(pair: &Pair<'_>) -> Result<String> {
    pair.install().await?;
    pair.scene.progress.say(
        "clients begin: 50 requests a second through the edge on fresh connections, and 50 on kept ones",
    );
    let clients = pair.clients()?;
    let plan = Plan {
        home: Colour::Blue,
        secret: Colour::Green.name().to_owned(),
        steers: Steers::Haproxy,
        when_lost: None,
        steps: STEPS.to_vec(),
        soak: SOAK,
        window: WINDOW,
        gate: format!("http://{PROXY}/"),
        requests: 10,
        more: serde_json::Value::Null,
    };
    let cutover = pair.begin("shop", &plan).await?;
    let status = follow(&cutover, &clients).await?;
    let count = clients.stop()?;
    count.none_failed()?;
    anyhow::ensure!(
        status.state == CutoverState::RollbackWindow,
        "the traffic did not go over: {:?}, {}",
        status.state,
        status.message
    );
    Ok(format!("All traffic is green's. Clients: {count}."))
}

/// A line every two seconds, until it has gone over or back.
async fn follow(cutover: &Cutover<'_, '_>, clients: &Clients) -> Result<ClusterCutoverStatus> {
    println!(
        "\n   time  green wanted   set  clients saw                              requests  failed  what"
    );
    let began = Instant::now();
    loop {
        interrupt::check()?;
        tokio::time::sleep(EVERY).await;
        let now = Instant::now();
        // An API that is just away is asked again.
        let Ok(status) = cutover.status().await else {
            continue;
        };
        let last = clients.between(now.checked_sub(EVERY).unwrap_or(began), now);
        let all = clients.between(began, now);
        let percent = |weights: Option<lockkeeper_crds::Weights>| {
            weights.map_or_else(|| "?".to_owned(), |weights| format!("{} %", weights.green))
        };
        println!(
            "{:>5} s  {:>12}  {:>4}  {} {:>5.1} %  {:>8}  {:>6}  {}",
            began.elapsed().as_secs(),
            percent(status.weights.wanted),
            percent(status.weights.seen),
            bar(last.green_share()),
            last.green_share(),
            all.answered() + all.failures(),
            all.failures(),
            status.message
        );
        if status.state.is_end() || status.state == CutoverState::RollbackWindow || began.elapsed() > LIMIT {
            return Ok(status);
        }
    }
}

/// Twenty-five signs for a hundred.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 25.
fn bar(percent: f64) -> String {
    let green = (percent / 4.0).round().clamp(0.0, 25.0) as usize;
    format!("[{}{}]", "#".repeat(green), ".".repeat(25 - green))
}

fn around(name: &str) {
    let (lab, flag) = lab_command(name);
    let green = green_of(name);
    println!("\nBoth clusters, the edge and the application are up. Look around:");
    println!("  {lab} out{flag} -- kubectl get clustercutovers");
    println!("  {lab} out{flag} -- kubectl describe clustercutover shop");
    println!("  {lab} out{flag} -- kubectl get pods -A                      blue, where Lockkeeper lives");
    println!("  {lab} out --name {green} -- kubectl get pods -A   green");
    println!(
        "  {lab} out{flag} -- bash -c 'echo \"show servers state shop\" | socat - TCP:{}:{}'   the edge's own weights",
        RUNTIME_API.0, RUNTIME_API.1
    );
    println!("There is a way back for a day:");
    println!(
        "  {lab} out{flag} -- kubectl patch clustercutover shop --type merge -p '{{\"spec\":{{\"abort\":true}}}}'"
    );
    super::how_to_take_down(name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_as_long_as_the_share() {
        assert_eq!(bar(0.0), format!("[{}]", ".".repeat(25)));
        assert_eq!(bar(25.0).matches('#').count(), 6);
        assert_eq!(bar(100.0), format!("[{}]", "#".repeat(25)));
    }
}
