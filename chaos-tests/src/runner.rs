//! Runs scenarios one after another, each in a lab as it wants it, and prints a table at the end.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::install::Install;
use crate::lab::{Lab, Tie, down_by_name};
use crate::progress::{Progress, spoken};
use crate::scenarios::{self, Scenario, Suite};
use crate::scene::Scene;
use crate::state::Options;
use crate::{interrupt, remains};

/// What to run.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Names, as `lab scenarios` lists them.
    scenarios: Vec<String>,
    /// The scenarios that are part of `make test`.
    #[arg(long, conflicts_with_all = ["all", "scenarios"])]
    quick: bool,
    /// Every scenario.
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    /// Repeats a run's random choices.
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the lab of a scenario that failed, and stop there.
    #[arg(long)]
    keep: bool,
    /// The lab's name; one of its own for this run without it.
    #[arg(long)]
    name: Option<String>,
    /// Our binary, for scenarios that install Lockkeeper; `lockkeeper` beside this program without it.
    #[arg(long, value_name = "BINARY")]
    image_from: Option<PathBuf>,
    /// The chart; helm/lockkeeper of the checkout without it.
    #[arg(long)]
    chart: Option<PathBuf>,
    /// A value for helm; may be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What came of one scenario.
struct Outcome {
    name: &'static str,
    passed: bool,
    took: Duration,
    seen: String,
}

/// Runs them. The exit code tells whether all passed.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    let chosen = match (wanted.quick, wanted.all, wanted.scenarios.as_slice()) {
        (true, ..) => scenarios::of_suite(Suite::Quick),
        (_, true, _) => scenarios::of_suite(Suite::Chaos),
        (_, _, []) => bail!("name scenarios, or give --quick or --all; `lab scenarios` lists them"),
        (_, _, names) => scenarios::by_names(names)?,
    };
    // Three digits less than a u64, so that people can copy it.
    let seed = wanted
        .seed
        .unwrap_or_else(|| rand::random::<u64>() % 1_000_000_000);
    let name = wanted
        .name
        .clone()
        .unwrap_or_else(|| format!("run-{}", std::process::id()));
    let progress = Progress::start();
    let minutes: u32 = chosen.iter().map(|scenario| scenario.minutes).sum();
    progress.say(format_args!(
        "{} scenario(s), about {minutes} min, seed {seed}, lab `{name}`",
        chosen.len()
    ));
    let mut stage = Stage {
        name: &name,
        wanted,
        seed,
        progress,
        lab: None,
    };
    let mut outcomes = Vec::new();
    for scenario in &chosen {
        let outcome = stage.play(scenario);
        let passed = outcome.passed;
        outcomes.push(outcome);
        if interrupt::raised() || (!passed && wanted.keep) {
            break;
        }
    }
    let failed = outcomes.iter().any(|outcome| !outcome.passed) || outcomes.len() < chosen.len();
    if failed && wanted.keep {
        println!("The lab `{name}` was kept: `lab in --name {name} cp1 -- bash`, `lab down --name {name}`.");
        stage.untie()?;
    } else {
        stage.clear()?;
    }
    print!("{}", table(&outcomes, chosen.len()));
    println!("seed {seed}");
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Where scenarios play: at most one lab at a time, used again when the last scenario left it as if fresh.
struct Stage<'a> {
    name: &'a str,
    wanted: &'a Wanted,
    seed: u64,
    progress: Progress,
    lab: Option<(Lab, Options)>,
}

impl Stage<'_> {
    fn play(&mut self, scenario: &Scenario) -> Outcome {
        let began = Instant::now();
        self.progress
            .say(format_args!("{}: {}", scenario.name, scenario.about));
        let result = self.try_play(scenario);
        let passed = result.is_ok();
        let seen = match result {
            Ok(seen) => seen,
            Err(error) => {
                let kept = self
                    .lab
                    .as_ref()
                    .map(|(lab, _)| remains::collect(lab, scenario.name));
                let place = match kept {
                    Some(Ok(folder)) => format!("; logs: {}", folder.display()),
                    Some(Err(error)) => format!("; its logs could not be collected: {error:#}"),
                    None => String::new(),
                };
                format!("{error:#}{place}")
            }
        };
        self.progress
            .say(format_args!("{}: {} ({seen})", scenario.name, verdict(passed)));
        if !(passed && scenario.leaves_clean || self.wanted.keep && !passed)
            && let Err(error) = self.clear()
        {
            self.progress.say(format_args!("{error:#}"));
        }
        Outcome {
            name: scenario.name,
            passed,
            took: began.elapsed(),
            seen,
        }
    }

    fn try_play(&mut self, scenario: &Scenario) -> Result<String> {
        interrupt::check()?;
        let options = Options {
            name: self.name.to_owned(),
            ..(scenario.lab)()
        };
        if self.lab.as_ref().is_some_and(|(_, have)| *have != options) {
            self.clear()?;
        }
        let lab = match &self.lab {
            Some((lab, _)) => lab.clone(),
            None => {
                let lab = Lab::up(
                    options.clone(),
                    Tie::ToThisProcess,
                    self.wanted.keep,
                    &self.progress,
                )?;
                self.lab = Some((lab.clone(), options));
                lab
            }
        };
        let Wanted {
            image_from,
            chart,
            set,
            ..
        } = self.wanted;
        let install = Install {
            binary: image_from.clone(),
            chart: chart.clone(),
            set: set.clone(),
        }
        .or_beside();
        // Each scenario draws its own numbers: the order in which they run changes nothing.
        let seed =
            self.seed ^ u64::from_str_radix(&crate::cache::short_hash([scenario.name.as_bytes()]), 16)?;
        Scene::new(lab, install, seed, self.progress).play(scenario.play)
    }

    fn clear(&mut self) -> Result<()> {
        self.lab = None;
        down_by_name(self.name).context("taking the lab down").map(drop)
    }

    /// Leaves the lab behind when this process ends.
    fn untie(&self) -> Result<()> {
        match &self.lab {
            Some((lab, _)) => lab.home().change(|state| state.owner = None).map(drop),
            None => Ok(()),
        }
    }
}

fn verdict(passed: bool) -> &'static str {
    if passed { "passed" } else { "FAILED" }
}

fn table(outcomes: &[Outcome], wanted: usize) -> String {
    let mut text = format!(
        "\n{:<24} {:<7} {:>12}  {}\n",
        "scenario", "result", "time", "seen"
    );
    for outcome in outcomes {
        let first = outcome.seen.lines().next().unwrap_or_default();
        text.push_str(&format!(
            "{:<24} {:<7} {:>12}  {first}\n",
            outcome.name,
            verdict(outcome.passed),
            spoken(outcome.took)
        ));
    }
    if outcomes.len() < wanted {
        text.push_str(&format!("{} not run\n", wanted - outcomes.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_what_did_not_run() {
        let outcome = Outcome {
            name: "lab-smoke",
            passed: false,
            took: Duration::from_secs(65),
            seen: "x\ny".into(),
        };
        let text = table(&[outcome], 2);
        assert!(
            text.contains("lab-smoke                FAILED     1 min 5 s  x\n"),
            "{text}"
        );
        assert!(text.ends_with("1 not run\n"), "{text}");
    }
}
