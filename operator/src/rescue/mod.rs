//! `lockkeeper rescue`: from a shell on the nodes, as root, with no API server anywhere.
//!
//! | | |
//! | --- | --- |
//! | comes in | flags, and what this node and its etcd members show |
//! | goes out | text on the screen, JSON with `-o json`; progress on standard error |
//! | may touch | nothing itself: the engine is the agent's (`agent/rescue`), the store's is `store` |
//!
//! One file a subcommand. Exit codes: 0 done, 1 an error whose sentence names the flag or the way out.

mod journal;
mod recover_quorum;
mod rejoin;
mod screen;
mod store;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use crate::agent::rescue::{BookError, StartError};

/// A control plane without any API server: run on its nodes, as root.
#[derive(Debug, Args)]
#[command(after_help = "\
Run as root on a control-plane node. No API server is asked; agent and guard of the node keep still meanwhile.

A quorum is lost (two of three etcd members are gone), one member's data are left:
  1. on every node:           lockkeeper rescue journal
  2. on each lost node that is on:  lockkeeper rescue fence --confirm kubernetes
  3. on the survivor:         lockkeeper rescue recover-quorum --confirm kubernetes
  4. on each lost node, one after another:
                              lockkeeper rescue rejoin --via SURVIVOR --confirm kubernetes

Every command may be killed and run again: it goes on where the journal in /var/lib/lockkeeper/rescue says.")]
pub struct RescueArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: RescueCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum RescueCommand {
    /// Shows what this node has, what is in hand on it, and what is next. Changes nothing.
    #[command(after_help = "\
Examples:
  lockkeeper rescue journal
  lockkeeper rescue journal -o json | jq .etcd.log")]
    Journal(journal::JournalArgs),
    /// Lists the backups of a store, the newest first, and names what cannot be used. Needs no cluster.
    #[command(after_help = "\
Examples:
  lockkeeper rescue list --store store.yaml --credentials s3.env
  lockkeeper rescue list --store store.yaml --credentials s3.env -o json | jq -r '.[0].backup'")]
    List(store::ListArgs),
    /// Fetches a backup, compares its hashes, and sees whether etcd takes it.
    #[command(after_help = "\
Examples:
  lockkeeper rescue verify nightly-01234567 --store store.yaml --credentials s3.env
  lockkeeper rescue verify nightly-01234567 --store store.yaml --credentials s3.env --no-boot --scratch /mnt/tmp")]
    Verify(store::VerifyArgs),
    /// Makes the one surviving member a cluster of its own again, with all its data, after a safety copy.
    #[command(after_help = "\
What it does: API server off, etcd off, the data directory copied, etcd started once with --force-new-cluster, the
flag taken out again, etcd and the API server back. No data are lost and no revision goes back. A failure on the way
puts data and manifests back as they were.

Examples:
  lockkeeper rescue recover-quorum --confirm kubernetes
  lockkeeper rescue recover-quorum --confirm kubernetes --copy-to /mnt/large-disk
  lockkeeper rescue recover-quorum --put-back        what is in hand is taken back")]
    RecoverQuorum(recover_quorum::RecoverQuorumArgs),
    /// Takes etcd and the API server of a lost node off, so that it cannot disturb a recovery. `rejoin` goes on.
    #[command(after_help = "\
Examples:
  lockkeeper rescue fence --confirm kubernetes
  lockkeeper rescue rejoin --put-back                takes it back")]
    Fence(rejoin::FenceArgs),
    /// Brings a node that lost its data back: as a learner first, then as a voting member. One node at a time.
    #[command(after_help = "\
What it does: API server and etcd off, the old member of this name removed from the list, old data moved aside, this
node added as a learner, etcd started and waited for until it is in sync, promoted, API server back.

Examples:
  lockkeeper rescue rejoin --confirm kubernetes --via 10.0.0.11
  lockkeeper rescue rejoin --confirm kubernetes      the survivor is looked for in etcd.yaml's --initial-cluster
  lockkeeper rescue rejoin --put-back                what is in hand is taken back")]
    Rejoin(rejoin::RejoinArgs),
}

/// How something is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For a person.
    #[default]
    Text,
    /// For a machine.
    Json,
}

/// Where things lie on this node.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// The kubelet's static pod directory (staticPodPath).
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/manifests")]
    pub manifest_directory: PathBuf,
    /// Lockkeeper's own directory on this node.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lockkeeper")]
    pub state_directory: PathBuf,
    /// The container runtime's socket.
    #[arg(
        long,
        value_name = "URL",
        env = "CRI_SOCKET",
        default_value = "unix:///run/containerd/containerd.sock"
    )]
    pub cri_socket: String,
}

/// Why a rescue did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// It was refused or stopped; the sentence says what to do.
    #[error("{0}")]
    Refused(String),
    /// The screen.
    #[error("cannot write to the screen: {0}")]
    Screen(#[from] std::io::Error),
}

impl From<StartError> for RescueError {
    fn from(error: StartError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<BookError> for RescueError {
    fn from(error: BookError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// Does what the command says, until it is done or `shutdown`. Returns the exit code.
///
/// # Errors
/// A sentence for a person.
pub async fn run(args: RescueArgs, shutdown: CancellationToken) -> Result<u8, RescueError> {
    match args.command {
        RescueCommand::Journal(args) => journal::run(&args).await?,
        RescueCommand::List(args) => store::list(&args).await?,
        RescueCommand::Verify(args) => store::verify(args, &shutdown).await?,
        RescueCommand::RecoverQuorum(args) => recover_quorum::run(args, &shutdown).await?,
        RescueCommand::Fence(args) => rejoin::fence(args, &shutdown).await?,
        RescueCommand::Rejoin(args) => rejoin::run(args, &shutdown).await?,
    }
    Ok(0)
}
