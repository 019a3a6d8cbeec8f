//! `lockkeeper rescue verify`: whether a backup is what was taken, and whether etcd takes it.

use std::io::Write as _;
use std::path::PathBuf;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::store::{BackupArgs, KeyArgs, StoreArgs, refused};
use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::remove_tree;
use crate::agent::rescue::check::{self, Verified};
use crate::store::Manifest;

/// Of `lockkeeper rescue verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// Which.
    #[command(flatten)]
    backup: BackupArgs,
    /// The store.
    #[command(flatten)]
    store: StoreArgs,
    /// What opens it.
    #[command(flatten)]
    keys: KeyArgs,
    /// Compares sizes and hashes alone; without it, etcdutl of this node's etcd image restores it into a directory of
    /// its own and counts its keys.
    #[arg(long)]
    no_boot: bool,
    /// Where the snapshot is unpacked; room for twice its size. Removed afterwards [default: below the state directory].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
    /// Where things lie on this node.
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) async fn run(args: VerifyArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    if !args.no_boot {
        screen::as_root()?;
    }
    let chosen = args.backup.choose(&args.store, &args.keys).await?;
    let (name, manifest) = (chosen.key.name(), &chosen.manifest);
    let scratch = args.scratch.clone();
    let scratch = scratch.unwrap_or_else(|| args.node.state_directory.join("rescue/verify"));
    check::room(&scratch, manifest.size_bytes).map_err(refused)?;
    screen::tell(&format!("{name} ({} MiB) is fetched", manifest.size_bytes >> 20));
    // A directory of its own, so that whatever comes of it goes with it; a killed run's goes first.
    let own = scratch.join("lockkeeper-verify");
    remove_tree(&own)?;
    std::fs::create_dir_all(&own)?;
    let file = own.join("snapshot.db");
    let work = async {
        chosen
            .store
            .fetch(manifest, &chosen.key, &chosen.keys, &file, shutdown)
            .await
            .map_err(refused)?;
        screen::tell("sizes and hashes are those of its manifest");
        if args.no_boot {
            return Ok(None);
        }
        let (host, cri) = (screen::host(&args.node), screen::cri(&args.node)?);
        let verified = check::verify(&host, &cri, &file, &screen::tell, shutdown).await;
        verified
            .map(Some)
            .map_err(|why| refused(format_args!("{name}: {why}")))
    };
    let verified = work.await;
    remove_tree(&own)?;
    // It stays where something of somebody else's lies in it.
    let _ = std::fs::remove_dir(&scratch);
    report(&args, name, manifest, verified?.as_ref())
}

fn report(
    args: &VerifyArgs,
    backup: &str,
    manifest: &Manifest,
    restored: Option<&Verified>,
) -> Result<(), RescueError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report<'a> {
        backup: &'a str,
        manifest: &'a Manifest,
        restored: Option<&'a Verified>,
    }
    let mut out = std::io::stdout();
    match (args.output, restored) {
        (Output::Json, restored) => {
            let report = Report {
                backup,
                manifest,
                restored,
            };
            let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
            writeln!(out, "{json}")?;
        }
        (Output::Text, None) => writeln!(
            out,
            "{backup}: what is stored is what was taken (sizes and SHA-256). Whether etcd takes it is not known: leave --no-boot out."
        )?,
        (Output::Text, Some(seen)) => writeln!(
            out,
            "{backup}: etcdutl restored it: {} keys up to revision {}, taken from etcd {} on {}.",
            seen.keys, seen.revision, manifest.etcd_version, manifest.node
        )?,
    }
    Ok(())
}
