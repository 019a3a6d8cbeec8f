//! `lab bench`: Lockkeeper and kubeadm do the same upgrade in fresh labs of one shape, in turn; what each costs its
//! clients and how long it takes; and how much memory and how many requests Lockkeeper takes at rest.
//!
//! Out: one JSON object, and a table in BENCHMARKS.md. Only ratios of one run mean anything: machines differ.

mod at_rest;
mod peer;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use lockkeeper_crds::Strategy;
use serde::Serialize;

use crate::course::Course;
use crate::install::Install;
use crate::lab::{Lab, Tie, down_by_name};
use crate::load::{Load, Report};
use crate::lockkeeper::{Keeper, UPGRADE, runs};
use crate::progress::Progress;
use crate::scene::Scene;

pub use at_rest::{AtRest, DuringSnapshot};

/// Clients ask so long before and after: what the upgrade leaves behind counts too.
const AROUND: Duration = Duration::from_secs(5);

/// What to measure.
#[derive(Debug, Args)]
pub struct Wanted {
    #[command(flatten)]
    course: Course,
    /// How often each does it.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// MiB that etcd is filled with for the snapshot whose memory is measured; 0 leaves that out.
    #[arg(long, default_value_t = 1024)]
    snapshot_mib: u32,
    /// How long requests are counted with nothing to do.
    #[arg(long, default_value_t = 180)]
    rest_seconds: u32,
    /// Leave kubeadm out: only our own figures.
    #[arg(long)]
    only_ours: bool,
    /// The lab's name.
    #[arg(long, default_value = "bench")]
    name: String,
    /// Where the table goes; BENCHMARKS.md of the checkout without it.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
}

/// What one upgrade took, and what its clients saw.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    seconds: f64,
    requests: u64,
    failed_raw: u64,
    failed_after_retry: u64,
    longest_gap_seconds: f64,
    lost_writes: usize,
}

impl Upgrade {
    fn new(took: Duration, report: &Report) -> Self {
        Self {
            seconds: took.as_secs_f64(),
            requests: report.requests(),
            failed_raw: report.failed_raw(),
            failed_after_retry: report.failed_after_retry(),
            longest_gap_seconds: report.longest_gap().as_secs_f64(),
            lost_writes: report.lost_writes.len(),
        }
    }
}

/// Everything measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    from: String,
    to: String,
    nodes: u8,
    cores: usize,
    lockkeeper: Vec<Upgrade>,
    kubeadm: Vec<Upgrade>,
    /// Median of ours by median of kubeadm's.
    time_ratio: Option<f64>,
    at_rest: Option<AtRest>,
    during_snapshot: Option<DuringSnapshot>,
}

/// Measures, prints, writes the table.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    let install = Install {
        binary: Some(wanted.course.binary()?),
        ..Install::default()
    };
    ensure!(wanted.rounds > 0, "--rounds must be at least 1");
    let table = table::place(wanted.table.as_deref())?;
    let mut figures = Figures {
        from: wanted.course.from.clone(),
        to: wanted.course.to.clone(),
        nodes: wanted.course.nodes,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        lockkeeper: Vec::new(),
        kubeadm: Vec::new(),
        time_ratio: None,
        at_rest: None,
        during_snapshot: None,
    };
    let progress = Progress::start();
    for round in 0..wanted.rounds {
        // Who goes second meets warmer caches: they take turns.
        let ours_first = round % 2 == 0;
        for ours in [ours_first, !ours_first] {
            if !ours && wanted.only_ours {
                continue;
            }
            let who = if ours { "Lockkeeper" } else { "kubeadm" };
            progress.say(format_args!("round {} of {}: {who}", round + 1, wanted.rounds));
            let measured = measure(wanted, &install, ours, &mut figures, progress);
            down_by_name(&wanted.name)?;
            if let Err(error) = measured {
                // What was measured took a quarter of an hour: it is not thrown away.
                println!("{}", serde_json::to_string_pretty(&figures)?);
                return Err(error.context(format!("{who}, round {}; the figures are not whole", round + 1)));
            }
        }
    }
    figures.time_ratio = ratio(&figures);
    println!("{}", serde_json::to_string_pretty(&figures)?);
    table::write(&table, &figures)?;
    progress.say(format_args!("written to {}", table.display()));
    Ok(ExitCode::SUCCESS)
}

fn measure(
    wanted: &Wanted,
    install: &Install,
    ours: bool,
    figures: &mut Figures,
    progress: Progress,
) -> Result<()> {
    let lab = Lab::up(
        wanted.course.options(&wanted.name),
        Tie::ToThisProcess,
        false,
        &progress,
    )?;
    let scene = Scene::new(lab, install.clone(), 0, progress);
    if !ours {
        let load = clients(&scene)?;
        let began = Instant::now();
        peer::upgrade(&scene, &wanted.course.to)?;
        let took = began.elapsed();
        figures.kubeadm.push(ended(&scene, load, took)?);
        return check(&scene, &wanted.course.to);
    }
    scene.lab.install(install, &progress)?;
    let from = wanted.course.from.clone();
    scene.play(|scene| {
        Box::pin(async move { Keeper::at_rest(scene, &from, Strategy::default()).await.map(drop) })
    })?;
    if figures.at_rest.is_none() {
        let count = Duration::from_secs(wanted.rest_seconds.max(1).into());
        figures.at_rest = Some(scene.play(|scene| Box::pin(at_rest::measure(scene, count)))?);
    }
    let load = clients(&scene)?;
    let began = Instant::now();
    let to = wanted.course.to.clone();
    scene.play(|scene| {
        Box::pin(async move {
            let keeper = Keeper::installed(scene).await?;
            keeper.bump(&to).await?;
            keeper.settles("Completed", UPGRADE).await.map(drop)
        })
    })?;
    let took = began.elapsed();
    figures.lockkeeper.push(ended(&scene, load, took)?);
    check(&scene, &wanted.course.to)?;
    if figures.during_snapshot.is_none() && wanted.snapshot_mib > 0 {
        at_rest::fill(&scene, wanted.snapshot_mib)?;
        let mib = wanted.snapshot_mib;
        figures.during_snapshot = Some(scene.play(|scene| Box::pin(at_rest::during_snapshot(scene, mib)))?);
    }
    Ok(())
}

/// Both must have done the same work.
fn check(scene: &Scene, to: &str) -> Result<()> {
    let to = to.to_owned();
    scene.play(|scene| Box::pin(async move { runs(scene, &to).await }))
}

fn clients(scene: &Scene) -> Result<Load> {
    let load = scene.lab.load_start(None)?;
    std::thread::sleep(AROUND);
    Ok(load)
}

fn ended(scene: &Scene, load: Load, took: Duration) -> Result<Upgrade> {
    std::thread::sleep(AROUND);
    let report = load.stop()?;
    scene.say(format_args!(
        "{:.0} s; {report}\n{}",
        took.as_secs_f64(),
        report.details()
    ));
    Ok(Upgrade::new(took, &report))
}

fn ratio(figures: &Figures) -> Option<f64> {
    Some(median(&figures.lockkeeper)? / median(&figures.kubeadm)?)
}

/// Of the times; the upper one of two.
fn median(all: &[Upgrade]) -> Option<f64> {
    let mut seconds: Vec<f64> = all.iter().map(|upgrade| upgrade.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_and_absent_where_nothing_ran() {
        let upgrade = |seconds| Upgrade {
            seconds,
            requests: 0,
            failed_raw: 0,
            failed_after_retry: 0,
            longest_gap_seconds: 0.0,
            lost_writes: 0,
        };
        let all = |seconds: &[f64]| seconds.iter().map(|s| upgrade(*s)).collect::<Vec<_>>();
        assert_eq!(median(&all(&[30.0, 10.0, 20.0])), Some(20.0));
        assert_eq!(median(&[]), None);
    }
}
