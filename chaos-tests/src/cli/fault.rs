//! `lab fault …`

use anyhow::{Result, bail};
use clap::Subcommand;
use rustix::process::Signal;

use crate::faults::Peer;
use crate::lab::Lab;
use crate::s3_proxy::Mode;

const EXAMPLES: &str = "\
Examples:
  lab fault power-cut cp2; lab fault power-on cp2
  lab fault kill cp1 kube-apiserver
  lab fault freeze cp1 etcd; lab fault thaw cp1 etcd
  lab fault partition cp1 --from cp2 --from s3; lab fault heal cp1
  lab fault s3 hang; lab fault s3 cut 1000000; lab fault s3 up
  lab fault fill-disk cp1 /var/lib/lockkeeper     (after `lab up --small-disk /var/lib/lockkeeper=64`)";

/// Which fault.
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub(super) enum Fault {
    /// End every process of a node at once; its disk stays.
    PowerCut {
        /// The node.
        node: String,
    },
    /// Start a node again after a power cut.
    PowerOn {
        /// The node.
        node: String,
    },
    /// Stop a component's processes where they stand.
    Freeze {
        /// The node.
        node: String,
        /// kube-apiserver, kube-controller-manager, kube-scheduler, etcd, kubelet, containerd, operator, agent.
        component: String,
    },
    /// Let frozen processes go on.
    Thaw {
        /// The node.
        node: String,
        /// The component.
        component: String,
    },
    /// Kill a component's processes.
    Kill {
        /// The node.
        node: String,
        /// The component.
        component: String,
        /// KILL or TERM.
        #[arg(long, default_value = "KILL")]
        signal: String,
    },
    /// Drop all packets between a node and others.
    Partition {
        /// The node.
        node: String,
        /// A node, `s3`, `lb`, `members` (of etcd, on their own port), or `all`; may be given again.
        #[arg(long, default_value = "all")]
        from: Vec<String>,
    },
    /// Mend all cut lines of a node.
    Heal {
        /// The node.
        node: String,
    },
    /// Make the S3 server misbehave, or behave again.
    #[command(subcommand)]
    S3(S3),
    /// Fill the small disk at a path of a node.
    FillDisk {
        /// The node.
        node: String,
        /// The path.
        path: String,
    },
    /// Free it again.
    FreeDisk {
        /// The node.
        node: String,
        /// The path.
        path: String,
    },
}

/// How the S3 server behaves.
#[derive(Debug, Subcommand)]
pub(super) enum S3 {
    /// As it should.
    Up,
    /// Connections are refused.
    Down,
    /// Connections are taken and nothing comes back.
    Hang,
    /// A connection ends after this many bytes to the server.
    Cut {
        /// How many.
        bytes: u64,
    },
    /// Every request is answered with this HTTP status.
    Fail {
        /// E.g. 503.
        status: u16,
    },
    /// A connection sends no more than this in a second.
    Slow {
        /// How much.
        bytes_per_second: u64,
    },
}

/// Causes it.
pub(super) fn run(lab: &Lab, fault: Fault) -> Result<()> {
    let hit = |count: usize| println!("{count} process(es)");
    match fault {
        Fault::PowerCut { node } => lab.power_cut(&node)?,
        Fault::PowerOn { node } => lab.power_on(&node)?,
        Fault::Freeze { node, component } => hit(lab.freeze(&node, &component)?),
        Fault::Thaw { node, component } => hit(lab.thaw(&node, &component)?),
        Fault::Kill {
            node,
            component,
            signal,
        } => {
            let signal = match signal.trim_start_matches("SIG") {
                "KILL" => Signal::KILL,
                "TERM" => Signal::TERM,
                other => bail!("--signal must be KILL or TERM, not {other}"),
            };
            hit(lab.signal(&node, &component, signal)?);
        }
        Fault::Partition { node, from } => {
            for peer in from {
                let Ok(peer) = peer.parse::<Peer>();
                lab.partition(&node, &peer)?;
            }
        }
        Fault::Heal { node } => lab.heal(&node)?,
        Fault::S3(how) => lab.s3(match how {
            S3::Up => Mode::Pass,
            S3::Down => Mode::Refuse,
            S3::Hang => Mode::Hang,
            S3::Cut { bytes } => Mode::CutAfter { bytes },
            S3::Fail { status } => Mode::Fail { status },
            S3::Slow { bytes_per_second } => Mode::Slow { bytes_per_second },
        })?,
        Fault::FillDisk { node, path } => lab.fill_disk(&node, &path)?,
        Fault::FreeDisk { node, path } => lab.free_disk(&node, &path)?,
    }
    Ok(())
}
