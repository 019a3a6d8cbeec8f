//! `lockkeeper rescue restore`.

use tokio_util::sync::CancellationToken;

use super::RescueError;
use super::course::CourseArgs;
use super::store::{BackupArgs, KeyArgs, StoreArgs};
use crate::agent::rescue::{self, Begin, Kind};

/// Of `lockkeeper rescue restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// Which.
    #[command(flatten)]
    backup: BackupArgs,
    /// The store.
    #[command(flatten)]
    store: StoreArgs,
    /// What opens it.
    #[command(flatten)]
    keys: KeyArgs,
    /// What may be interrupted.
    #[command(flatten)]
    course: CourseArgs,
}

pub(super) async fn run(args: RestoreArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    let kind = Kind::Restore;
    let (host, is_in_hand) = args.course.begin(kind)?;
    // What is in hand has its data beside etcd's already.
    let backup = if is_in_hand || args.course.put_back {
        None
    } else {
        Some(args.backup.choose(&args.store, &args.keys).await?)
    };
    let asked = Begin {
        backup,
        ..Begin::of(kind, args.course.confirm.clone())
    };
    let entry = args.course.go(&host, &asked, shutdown).await?;
    let api = if entry.api.is_some() {
        "its API server is ready"
    } else {
        "this node has no API server yet (`kubeadm init phase control-plane all` makes one)"
    };
    let done = format!(
        "etcd of {} serves the backup, as the only member, and {api}. Bring the other nodes back one after another: one with its manifests by `lockkeeper rescue rejoin --confirm NAME --via {}`, a new one by `kubeadm join --control-plane`. What was in the data directory before, if anything, lies in {}; remove it once all is well.",
        entry.name,
        rescue::host_of(&entry.peer_url),
        entry.aside.display()
    );
    args.course.end(&entry, &done, "All is as it was before.")
}
