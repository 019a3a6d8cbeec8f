//! `lab demo`: a real cluster upgraded on the screen, and what it cost. With `--cutover`: traffic that goes from one
//! cluster to another.

mod cutover;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use lockkeeper_crds::{ClusterVersion, State, Strategy};

use crate::course::Course;
use crate::install::Install;
use crate::interrupt;
use crate::lab::{Lab, Tie, down_by_name};
use crate::load::Report;
use crate::lockkeeper::{CLUSTER, Keeper};
use crate::network::{self, FABRIC};
use crate::progress::{Progress, spoken};
use crate::scene::Scene;
use crate::state::Home;

/// What to show.
#[derive(Debug, Args)]
pub struct Wanted {
    #[command(flatten)]
    course: Course,
    /// Traffic that goes from one single-node cluster to another, instead of an upgrade.
    #[arg(long)]
    cutover: bool,
    /// The lab's name. One of that name that is up is taken down first.
    #[arg(long, default_value = "lab")]
    name: String,
    /// The chart; helm/lockkeeper of the checkout without it.
    #[arg(long)]
    chart: Option<PathBuf>,
}

impl Wanted {
    /// How to install Lockkeeper.
    fn install(&self) -> Result<Install> {
        let binary = self.course.binary()?;
        let binary = binary
            .canonicalize()
            .with_context(|| format!("there is no lockkeeper at {}", binary.display()))?;
        Ok(Install {
            binary: Some(binary),
            chart: self.chart.clone(),
            set: Vec::new(),
        })
    }
}

/// Runs it. The exit code tells whether it was completed.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    if wanted.cutover {
        return cutover::run(wanted);
    }
    let install = wanted.install()?;
    let progress = Progress::start();
    clear(&wanted.name, &progress)?;
    let lab = Lab::up(wanted.course.options(&wanted.name), Tie::None, false, &progress)?;
    lab.install(&install, &progress)?;
    let scene = Scene::new(lab, install, 0, progress);
    progress.say(format_args!(
        "a ClusterVersion at {}, which is what runs",
        wanted.course.from
    ));
    let from = wanted.course.from.clone();
    scene.play(|scene| {
        Box::pin(async move { Keeper::at_rest(scene, &from, Strategy::default()).await.map(drop) })
    })?;
    upgrade(&scene, wanted)
}

/// A lab of this name that is up goes first.
fn clear(name: &str, progress: &Progress) -> Result<()> {
    if Home::of(name)?.read()?.is_some() {
        progress.say(format_args!("a lab `{name}` is up already: taking it down"));
        down_by_name(name)?;
    }
    Ok(())
}

fn upgrade(scene: &Scene, wanted: &Wanted) -> Result<ExitCode> {
    let binary = scene.install.binary.as_deref().context("no binary")?;
    scene
        .progress
        .say("clients begin: reads on fresh and on kept connections, and writes, 20 a second each");
    let load = scene.lab.load_start(None)?;
    let to = wanted.course.to.clone();
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
    let done = followed && completed(&object, &wanted.course.to);
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
            wanted.course.from,
            wanted.course.to,
            wanted.course.nodes,
            spoken(took)
        );
    } else {
        println!(
            "The upgrade to {} was NOT completed after {}: {:?}. {}",
            wanted.course.to,
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

/// This program, and the words that name the lab.
fn lab_command(name: &str) -> (String, String) {
    let lab = std::env::current_exe().map_or_else(|_| "lab".into(), |path| path.display().to_string());
    let flag = if name == "lab" {
        String::new()
    } else {
        format!(" --name {name}")
    };
    (lab, flag)
}

fn around(name: &str) {
    let (lab, flag) = lab_command(name);
    println!("\nThe cluster is up. Look around:");
    println!("  {lab} out{flag} -- kubectl get clusterversion,controlplanenodes");
    println!("  {lab} out{flag} -- kubectl get clusterversion {CLUSTER} -o yaml");
    println!("  {lab} out{flag} -- kubectl get nodes,pods -A -o wide");
    println!("  {lab} in{flag} cp1 -- bash");
    how_to_take_down(name);
}

fn how_to_take_down(name: &str) {
    let (lab, flag) = lab_command(name);
    if name == "lab" {
        println!("Take it down: make down");
    } else {
        println!("Take it down: {lab} down{flag}");
    }
}
