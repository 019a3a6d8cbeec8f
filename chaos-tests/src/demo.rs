//! `lab demo`: a real cluster upgraded on the screen, and what it cost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use lockkeeper_crds::{ClusterVersion, State, Strategy};

use crate::install::{Install, beside};
use crate::interrupt;
use crate::lab::{Lab, Tie, down_by_name};
use crate::load::Report;
use crate::lockkeeper::{CLUSTER, Keeper, spec};
use crate::network::{self, FABRIC};
use crate::progress::{Progress, spoken};
use crate::recipes::{START, TARGET};
use crate::scene::Scene;
use crate::state::{Home, Options};

/// What to show.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The version that the cluster begins with.
    #[arg(long, default_value = START)]
    from: String,
    /// The version that it goes to.
    #[arg(long, default_value = TARGET)]
    to: String,
    /// The lab's name. One of that name that is up is taken down first.
    #[arg(long, default_value = "lab")]
    name: String,
    /// How many control-plane nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Our binary; `lockkeeper` beside this program without it.
    #[arg(long, value_name = "BINARY")]
    image_from: Option<PathBuf>,
    /// The chart; helm/lockkeeper of the checkout without it.
    #[arg(long)]
    chart: Option<PathBuf>,
}

/// Runs it. The exit code tells whether the upgrade was completed.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    let Some(binary) = wanted.image_from.clone().or_else(beside) else {
        bail!("no `lockkeeper` lies beside this program: `make build`, or give --image-from BINARY");
    };
    let binary = binary
        .canonicalize()
        .with_context(|| format!("there is no lockkeeper at {}", binary.display()))?;
    let progress = Progress::start();
    if Home::of(&wanted.name)?.read()?.is_some() {
        progress.say(format_args!(
            "a lab `{}` is up already: taking it down",
            wanted.name
        ));
        down_by_name(&wanted.name)?;
    }
    let options = Options {
        name: wanted.name.clone(),
        nodes: wanted.nodes,
        kubernetes: wanted.from.clone(),
        also: vec![wanted.to.clone()],
        ..Options::default()
    };
    let lab = Lab::up(options, Tie::None, false, &progress)?;
    let install = Install {
        binary: Some(binary.clone()),
        chart: wanted.chart.clone(),
        set: Vec::new(),
    };
    lab.install(&install, &progress)?;
    let scene = Scene::new(lab, install, 0, progress);
    progress.say(format_args!(
        "a ClusterVersion at {}, which is what runs",
        wanted.from
    ));
    let from = wanted.from.clone();
    scene.play(|scene| {
        Box::pin(async move {
            let keeper = Keeper::installed(scene).await?;
            keeper.apply(&spec(&from, Strategy::default())).await?;
            keeper.idle_at(&from).await
        })
    })?;
    upgrade(&scene, &binary, wanted)
}

fn upgrade(scene: &Scene, binary: &Path, wanted: &Wanted) -> Result<ExitCode> {
    scene
        .progress
        .say("clients begin: reads on fresh and on kept connections, and writes, 20 a second each");
    let load = scene.lab.load_start(None)?;
    let to = wanted.to.clone();
    let began = Instant::now();
    scene.progress.say(format_args!(
        "kubectl patch clusterversion {CLUSTER} --type merge -p '{{\"spec\":{{\"version\":\"{to}\"}}}}'"
    ));
    scene.play(|scene| Box::pin(async move { Keeper::installed(scene).await?.bump(&to).await }))?;
    let followed = follow(&scene.lab, binary)?;
    let took = began.elapsed();
    if interrupt::raised() {
        println!("\nInterrupted. The cluster stays up; Lockkeeper goes on by itself.");
        around(&wanted.name);
        return Ok(ExitCode::FAILURE);
    }
    let report = load.stop()?;
    let object = scene.play(|scene| Box::pin(async move { Keeper::installed(scene).await?.read().await }))?;
    let done = followed && completed(&object, &wanted.to);
    tell(&object, wanted, done, took, &report);
    Ok(if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Shows `lockkeeper status --watch` in the nodes' network, on this very terminal, until it ends.
fn follow(lab: &Lab, binary: &Path) -> Result<bool> {
    let enter = network::enter(&lab.home().namespace(FABRIC));
    let (program, rest) = enter.split_first().context("an empty command")?;
    let mut child = std::process::Command::new(program)
        .args(rest)
        .arg(binary)
        .args(["status", "--watch", "--timeout", "3600"])
        .env("KUBECONFIG", lab.kubeconfig(None))
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if interrupt::raised() {
            let _ = child.kill();
            let _ = child.wait();
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn completed(object: &ClusterVersion, to: &str) -> bool {
    object
        .status
        .as_ref()
        .is_some_and(|status| status.state == State::Idle && status.version.as_deref() == Some(to))
}

fn tell(object: &ClusterVersion, wanted: &Wanted, done: bool, took: Duration, report: &Report) {
    let status = object.status.clone().unwrap_or_default();
    println!();
    if done {
        println!(
            "{} to {} on {} node(s) in {}.",
            wanted.from,
            wanted.to,
            wanted.nodes,
            spoken(took)
        );
    } else {
        println!(
            "The upgrade to {} was NOT completed after {}: {:?}. {}",
            wanted.to,
            spoken(took),
            status.state,
            status.summary
        );
    }
    println!(
        "Clients: {} of {} requests failed, {} after the retries that client-go makes by itself; longest time \
         without an answer {:.2} s; {} of {} acknowledged writes lost.",
        report.failed_raw(),
        report.requests(),
        report.failed_after_retry(),
        report.longest_gap().as_secs_f64(),
        report.lost_writes.len(),
        report.acknowledged_writes
    );
    match status
        .snapshot
        .as_ref()
        .and_then(|snapshot| snapshot.key.as_ref())
    {
        Some(key) => println!("Snapshot from before the first change: {key}"),
        None => println!("There is no snapshot."),
    }
    around(&wanted.name);
}

fn flag(name: &str) -> String {
    if name == "lab" {
        String::new()
    } else {
        format!(" --name {name}")
    }
}

fn around(name: &str) {
    let flag = flag(name);
    let lab = std::env::current_exe().map_or_else(|_| "lab".into(), |path| path.display().to_string());
    println!("\nThe cluster is up. Look around:");
    println!("  {lab} out{flag} -- kubectl get clusterversion,controlplanenodes");
    println!("  {lab} out{flag} -- kubectl get clusterversion {CLUSTER} -o yaml");
    println!("  {lab} out{flag} -- kubectl get nodes,pods -A -o wide");
    println!("  {lab} in{flag} cp1 -- bash");
    if name == "lab" {
        println!("Take it down: make down");
    } else {
        println!("Take it down: {lab} down{flag}");
    }
}
