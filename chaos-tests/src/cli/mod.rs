//! The command line.

mod fault;
mod paths;

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::cache::Cache;
use crate::install::Install;
use crate::lab::{Lab, Tie};
use crate::load::LoadOptions;
use crate::network::{self, FABRIC};
use crate::progress::{Progress, spoken};
use crate::recipes::{self, RECIPES};
use crate::state::{Home, Options};
use crate::{build, interrupt, lab};

const EXAMPLES: &str = "\
Examples:
  lab up --nodes 3 --kubernetes v1.35.4 --also v1.36.3
  lab in cp1 -- bash                    inside a node; every built program is on the PATH
  lab out -- kubectl get nodes          in the nodes' network, as the cluster's admin
  lab install --image-from target/release/lockkeeper
  lab load --seconds 30                 what clients see
  lab fault power-cut cp2
  lab run lab-smoke
  lab demo --cutover                    two clusters, and traffic that goes from one to the other
  lab down                              with green, where a demo or a scenario made one beside it

Everything is built once and kept under LOCKKEEPER_CACHE (/var/cache/lockkeeper); labs live under
LOCKKEEPER_LAB (/var/lib/lockkeeper-lab).";

/// Real Kubernetes clusters on one machine: nodes, load balancer, S3 server, faults, load and scenarios.
#[derive(Debug, Parser)]
#[command(name = "lab", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Which lab.
#[derive(Debug, Args)]
struct Name {
    /// The lab's name; several labs can be up at a time.
    #[arg(long, default_value = "lab")]
    name: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build all binaries that are missing.
    Build,
    /// Print where built programs lie, as lines for a shell: ETCD, KUBE_APISERVER, KUBECTL, HELM.
    Env {
        /// Also what only the tests with real parts need: EXTERNAL_DNS.
        #[arg(long)]
        real: bool,
    },
    /// Print a folder that holds etcd, etcdctl, etcdutl and versitygw.
    BinDir,
    /// Bring up a cluster, install Lockkeeper, upgrade it on the screen, and leave it up; with --cutover, traffic that
    /// goes from one cluster to another.
    Demo(crate::demo::Wanted),
    /// Measure Lockkeeper against kubeadm; one JSON object, and a table in BENCHMARKS.md.
    Bench(crate::bench::Wanted),
    /// Bring a lab up.
    Up(Up),
    /// Take a lab down, whatever state it is in.
    Down {
        #[command(flatten)]
        name: Name,
        /// Every lab of the machine.
        #[arg(long)]
        all: bool,
    },
    /// Run a command inside a node.
    In {
        #[command(flatten)]
        name: Name,
        /// The node, for example cp1.
        node: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run a command in the network that the nodes hang on.
    Out {
        #[command(flatten)]
        name: Name,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print the path of the admin's kubeconfig. It works in the nodes' network: `lab out`.
    Kubeconfig {
        #[command(flatten)]
        name: Name,
        /// Straight at this node's API server; through the load balancer without it.
        node: Option<String>,
    },
    /// Say what is up.
    Status,
    /// Install Lockkeeper by helm, with its image on every node and the S3 server's keys in a Secret.
    Install {
        #[command(flatten)]
        name: Name,
        /// Our binary, to be made into the image; without it the image must be on the nodes already.
        #[arg(long, value_name = "BINARY")]
        image_from: Option<PathBuf>,
        /// The chart; helm/lockkeeper of the checkout without it.
        #[arg(long)]
        chart: Option<PathBuf>,
        /// A value for helm; may be given again.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Import an image archive into every node.
    Import {
        #[command(flatten)]
        name: Name,
        /// The archive, as `docker save` writes it.
        tar: PathBuf,
    },
    /// Let clients ask for a while and print what they saw, as JSON.
    Load {
        #[command(flatten)]
        name: Name,
        /// How long; until Ctrl-C without it.
        #[arg(long)]
        seconds: Option<u64>,
        /// Straight at this node's API server instead of through the load balancer.
        #[arg(long, value_name = "NODE")]
        straight_at: Option<String>,
    },
    /// Cause a fault, or end it.
    Fault {
        #[command(flatten)]
        name: Name,
        #[command(subcommand)]
        fault: fault::Fault,
    },
    /// List the scenarios.
    Scenarios,
    /// Run scenarios, each on a lab of its own or on one left clean by the last.
    Run(crate::runner::Wanted),
    #[command(hide = true)]
    Client {
        #[arg(long)]
        server: SocketAddr,
        #[arg(long)]
        rate: u32,
        #[arg(long)]
        kubeconfig: PathBuf,
        #[arg(long)]
        out: PathBuf,
    },
    #[command(hide = true)]
    Probe,
    #[command(hide = true)]
    Colour {
        #[arg(long)]
        colour: String,
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long, env = "LAB_CERTIFICATE", hide_env_values = true)]
        certificate: String,
    },
    #[command(hide = true)]
    Work {
        #[arg(long)]
        colour: String,
        #[arg(long)]
        job: bool,
    },
    #[command(hide = true)]
    Steer,
    #[command(hide = true)]
    NodeLaunch { spec: PathBuf },
    #[command(hide = true)]
    NodeInit { spec: PathBuf },
    #[command(hide = true)]
    S3Proxy {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        control: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    name: Name,
    /// How many control-plane nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// The version that kubeadm makes.
    #[arg(long, default_value = recipes::START)]
    kubernetes: String,
    /// The version of etcd.
    #[arg(long, default_value = recipes::ETCD)]
    etcd: String,
    /// A version whose control-plane images every node shall have too; may be given again.
    #[arg(long, value_name = "VERSION")]
    also: Vec<String>,
    /// A small disk of its own for a path inside the nodes, so that it can be filled.
    #[arg(long, value_name = "PATH=MIB", value_parser = small_disk)]
    small_disk: Vec<(PathBuf, u32)>,
    /// Leave what was made when a step fails.
    #[arg(long)]
    keep: bool,
}

fn small_disk(text: &str) -> Result<(PathBuf, u32), String> {
    let (path, size) = text.split_once('=').ok_or("it must look like /var/lib/etcd=64")?;
    let size = size
        .parse()
        .map_err(|_| format!("`{size}` is not a number of MiB"))?;
    Ok((path.into(), size))
}

/// Runs a command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::NodeLaunch { spec } => crate::node::init::launch(&spec)?,
        Command::NodeInit { spec } => crate::node::init::run(&spec)?,
        Command::S3Proxy { listen, to, control } => {
            on_this_thread(crate::s3_proxy::serve(listen, to, control))?;
        }
        Command::Build => build_all()?,
        Command::Env { real } => print!("{}", paths::env(real)?),
        Command::BinDir => println!("{}", paths::bin_dir()?.display()),
        Command::Demo(wanted) => {
            interrupt::listen()?;
            return crate::demo::run(&wanted);
        }
        Command::Bench(wanted) => {
            interrupt::listen()?;
            return crate::bench::run(&wanted);
        }
        Command::Up(up) => bring_up(up)?,
        Command::Down { name, all } => take_down(&name.name, all)?,
        Command::In { name, node, command } => {
            let lab = Lab::find(&name.name)?;
            return replace(&lab.node(&node)?.enter()?, &command, &[("HOME", "/root".into())]);
        }
        Command::Out { name, command } => {
            let lab = Lab::find(&name.name)?;
            let env = [
                ("PATH", lab.path_variable()?),
                ("KUBECONFIG", lab.kubeconfig(None).to_string_lossy().into_owned()),
            ];
            return replace(&network::enter(&lab.home().namespace(FABRIC)), &command, &env);
        }
        Command::Kubeconfig { name, node } => {
            let lab = Lab::find(&name.name)?;
            if let Some(node) = &node {
                lab.node(node)?;
            }
            println!("{}", lab.kubeconfig(node.as_deref()).display());
        }
        Command::Status => status()?,
        Command::Install {
            name,
            image_from,
            chart,
            set,
        } => {
            interrupt::listen()?;
            Lab::find(&name.name)?.install(
                &Install {
                    binary: image_from,
                    chart,
                    set,
                },
                &Progress::start(),
            )?;
        }
        Command::Import { name, tar } => Lab::find(&name.name)?.import(&tar)?,
        Command::Load {
            name,
            seconds,
            straight_at,
        } => watch(&Lab::find(&name.name)?, seconds, straight_at.as_deref())?,
        Command::Fault { name, fault } => fault::run(&Lab::find(&name.name)?, fault)?,
        Command::Scenarios => print!("{}", crate::scenarios::list()),
        Command::Run(wanted) => {
            interrupt::listen()?;
            return crate::runner::run(&wanted);
        }
        Command::Client {
            server,
            rate,
            kubeconfig,
            out,
        } => {
            interrupt::listen()?;
            on_this_thread(crate::load::run(LoadOptions {
                server,
                kubeconfig,
                rate,
                out,
            }))?;
        }
        Command::Colour {
            colour,
            listen,
            certificate,
        } => on_this_thread(crate::edge::app::serve(colour, listen, certificate))?,
        Command::Work { colour, job } => {
            on_this_thread(crate::edge::ledger::work(colour, job))?;
        }
        Command::Steer => on_this_thread(crate::edge::steer::run())?,
        Command::Probe => crate::scenarios::probe()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn on_this_thread(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// Becomes the command: terminal, signals and exit status are its own.
fn replace(enter: &[String], command: &[String], env: &[(&str, String)]) -> Result<ExitCode> {
    let (program, rest) = enter.split_first().context("an empty command")?;
    let error = std::process::Command::new(program)
        .args(rest)
        .args(command)
        .envs(env.iter().map(|(key, value)| (key, value)))
        .exec();
    Err(error).with_context(|| format!("cannot start {program}"))
}

fn build_all() -> Result<()> {
    interrupt::listen()?;
    let progress = Progress::start();
    let all: Vec<_> = RECIPES.iter().collect();
    let done = build::all(&Cache::open()?, &all, &progress)?;
    for built in done {
        println!(
            "{:<22} {}",
            built.what,
            built.took.map_or_else(|| "was there".into(), spoken)
        );
    }
    Ok(())
}

fn bring_up(up: Up) -> Result<()> {
    interrupt::listen()?;
    let progress = Progress::start();
    let options = Options {
        name: up.name.name,
        nodes: up.nodes,
        kubernetes: up.kubernetes,
        etcd: up.etcd,
        also: up.also,
        small_disks: up.small_disk,
    };
    let lab = Lab::up(options, Tie::None, up.keep, &progress)?;
    let name = lab.home().name();
    let flag = if name == "lab" {
        String::new()
    } else {
        format!(" --name {name}")
    };
    println!("The lab `{name}` is up after {}.", spoken(progress.elapsed()));
    println!("  lab out{flag} -- kubectl get nodes -o wide");
    println!("  lab in{flag} cp1 -- bash");
    println!("  lab down{flag}");
    Ok(())
}

fn watch(lab: &Lab, seconds: Option<u64>, straight_at: Option<&str>) -> Result<()> {
    interrupt::listen()?;
    let load = lab.load_start(straight_at)?;
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    while !interrupt::raised() && until.is_none_or(|until| Instant::now() < until) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = load.stop()?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    eprintln!("{report}");
    Ok(())
}

fn take_down(name: &str, all: bool) -> Result<()> {
    let names: Vec<String> = if all {
        Home::all()?.iter().map(|home| home.name().to_owned()).collect()
    } else {
        let green = crate::edge::green_of(name);
        let there = Home::of(&green).is_ok_and(|home| home.root().exists());
        let green = there.then_some(green);
        [name.to_owned()].into_iter().chain(green).collect()
    };
    for name in names {
        if lab::down_by_name(&name)? {
            println!("The lab `{name}` is gone.");
        } else if !all {
            println!("There was no lab `{name}`.");
        }
    }
    Ok(())
}

fn status() -> Result<()> {
    let homes = Home::all()?;
    if homes.is_empty() {
        println!("No lab is up.");
    }
    for home in homes {
        let Some(state) = home.read()? else {
            println!("{}: half made; `lab down --name {0}`", home.name());
            continue;
        };
        let what = if state.stale() { "stale" } else { "up" };
        println!(
            "{}: {what}, {:?}, {}",
            home.name(),
            state.phase,
            state.options.kubernetes
        );
        let found = Lab::find(home.name())?;
        for node in found.nodes() {
            println!(
                "  {} {} {}",
                node.name(),
                node.address(),
                if node.on() { "on" } else { "off" }
            );
        }
        for what in ["haproxy", "s3", "s3-proxy"] {
            let alive = state.process(what).is_some_and(|id| id.alive());
            println!("  {what} {}", if alive { "runs" } else { "does not run" });
        }
    }
    Ok(())
}
