//! `lockkeeper rescue`: from a shell on the nodes, as root, with no API server anywhere.
//!
//! | | |
//! | --- | --- |
//! | comes in | flags, and what this node and its etcd members show |
//! | goes out | text on the screen, JSON with `-o json`; progress on standard error |
//! | may touch | nothing itself: the engine is the agent's (`agent/rescue`), the store's is `store` |
//!
//! One file a subcommand. Exit codes: 0 done, 1 an error whose sentence names the flag or the way out.

mod course;
mod journal;
mod pki;
mod recover_quorum;
mod rejoin;
mod restore;
mod screen;
mod store;
mod verify;

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
  3. on the survivor:         lockkeeper rescue recover-quorum --only-copy --confirm kubernetes
  4. on each lost node, one after another:
                              lockkeeper rescue rejoin --via SURVIVOR --confirm kubernetes

All members' data are lost, and there is a backup:
  1. on each other node that is on:  lockkeeper rescue fence --confirm kubernetes
  2. on one node:             lockkeeper rescue restore BACKUP --store store.yaml --credentials s3.env --confirm kubernetes
  3. on each other node:      lockkeeper rescue rejoin --via NODE --confirm kubernetes

The machines are lost too: `lockkeeper rescue pki` first, and kubeadm; see its help.

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
  lockkeeper rescue list --bucket my-bucket --prefix clusters/one --endpoint https://s3.example.org --ca-file ca.pem
  lockkeeper rescue list --directory /mnt/backups
  lockkeeper rescue list --store store.yaml --credentials s3.env -o json | jq -r '.[0].backup'")]
    List(store::ListArgs),
    /// Fetches a backup, compares its hashes, and sees whether etcd takes it.
    #[command(after_help = "\
Examples:
  lockkeeper rescue verify nightly-01234567 --store store.yaml --credentials s3.env
  lockkeeper rescue verify nightly-01234567 --store store.yaml --credentials s3.env --no-boot --scratch /mnt/tmp
  lockkeeper rescue verify nightly-01234567 --directory /mnt/backups --identity key.txt")]
    Verify(verify::VerifyArgs),
    /// Takes the PKI and the encryption configuration that stand beside a backup, and puts them into place.
    #[command(after_help = "\
What is put into place: the CAs, the ServiceAccounts' key pair, and the API server's encryption configuration; with
--node-files also the certificates of the node that the backup was taken on. kubeadm makes a node's own from the CAs.
What is there and differs is an error, or with --force kept aside first.

Examples:
  lockkeeper rescue pki nightly-01234567 --store store.yaml --credentials s3.env --identity key.txt --dry-run
  lockkeeper rescue pki nightly-01234567 --store store.yaml --credentials s3.env --identity key.txt

New machines, with kubelet, container runtime, kubeadm, and the cluster's old names and addresses:
  1. on the first:     lockkeeper rescue pki BACKUP --identity key.txt --store ...
                       kubeadm init --config kubeadm.yaml --skip-phases=control-plane,wait-control-plane,upload-config,\
upload-certs,mark-control-plane,bootstrap-token,kubelet-finalize,addon,show-join-command
                       lockkeeper rescue restore BACKUP --identity key.txt --store ... --confirm kubernetes
                       kubeadm init phase control-plane all --config kubeadm.yaml
  2. on each other:    lockkeeper rescue pki BACKUP --identity key.txt --store ...
                       kubeadm join ... --control-plane")]
    Pki(pki::PkiArgs),
    /// Restores etcd's data of this node from a backup, as the only member of its cluster.
    #[command(after_help = "\
What it does: the backup fetched, checked and restored beside the data in use; then API server off, etcd off, the data
exchanged by renames (the old ones go aside), etcd and the API server back. The revision is raised and everything before
it marked compacted, so that every client begins anew. A failure on the way puts data and manifests back as they were.
It needs etcd.yaml: on a new machine see `lockkeeper rescue pki --help`.

Examples:
  lockkeeper rescue restore nightly-01234567 --store store.yaml --credentials s3.env
                                                     shows what would be lost, and what to type
  lockkeeper rescue restore nightly-01234567 --store store.yaml --credentials s3.env --confirm kubernetes
  lockkeeper rescue restore clusters/one/nightly-01234567 --bucket my-bucket --identity key.txt --confirm kubernetes
  lockkeeper rescue restore --resume                 goes on with what is in hand
  lockkeeper rescue restore --put-back               what is in hand is taken back")]
    Restore(restore::RestoreArgs),
    /// Makes the one surviving member a cluster of its own again, with all its data, after a safety copy.
    #[command(after_help = "\
What it does: API server off, etcd off, the data directory copied, etcd started once with --force-new-cluster, the
flag taken out again, etcd and the API server back. No data are lost and no revision goes back. A failure on the way
puts data and manifests back as they were.

Where other nodes have data too, the newest must survive: what `journal` shows there is given by --beside.

Examples:
  lockkeeper rescue recover-quorum --confirm kubernetes --only-copy
  lockkeeper rescue recover-quorum --confirm kubernetes --beside 7/123456
  lockkeeper rescue recover-quorum --confirm kubernetes --only-copy --copy-to /mnt/large-disk
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
        RescueCommand::Verify(args) => verify::run(args, &shutdown).await?,
        RescueCommand::Pki(args) => pki::run(args, &shutdown).await?,
        RescueCommand::Restore(args) => restore::run(args, &shutdown).await?,
        RescueCommand::RecoverQuorum(args) => recover_quorum::run(args, &shutdown).await?,
        RescueCommand::Fence(args) => rejoin::fence(args, &shutdown).await?,
        RescueCommand::Rejoin(args) => rejoin::run(args, &shutdown).await?,
    }
    Ok(0)
}
