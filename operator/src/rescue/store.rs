//! `lockkeeper rescue list` and `lockkeeper rescue verify`: the backups of a store, with no API to ask.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{NodeArgs, Output, RescueError, screen};
use crate::agent::rescue::check::{self, Verified};
use crate::store::{Identities, Listed, Manifest, Store, StoreError};

/// The store and its keys, from files.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct StoreArgs {
    /// A file with the EtcdBackupStore, as `kubectl get etcdbackupstore -o yaml` prints it (apiVersion, kind, metadata
    /// and spec are enough; it is worth keeping one outside the cluster).
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// A file with its credentials: the Secret as YAML, or lines AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=...
    /// Without it the environment's, of a bucket; a directory needs none.
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
}

impl StoreArgs {
    fn open(&self) -> Result<Store, RescueError> {
        Store::from_files(&self.store, self.credentials.as_deref()).map_err(refused)
    }
}

/// Of `lockkeeper rescue list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The store.
    #[command(flatten)]
    store: StoreArgs,
    /// How it is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

/// Of `lockkeeper rescue verify`.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The backup's name as `list` shows it.
    #[arg(value_name = "BACKUP")]
    backup: String,
    /// The store.
    #[command(flatten)]
    store: StoreArgs,
    /// A file of secret keys that open an encrypted backup, as age-keygen writes it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
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

fn identities(file: Option<&Path>) -> Result<Identities, RescueError> {
    let Some(file) = file else {
        return Ok(Identities::none());
    };
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file)
        .map_err(|e| RescueError::Refused(format!("--identity {shown} cannot be read: {e}")))?;
    Identities::parse(&text, &shown).map_err(|failure| refused(StoreError::new(&shown, failure)))
}

fn refused(error: impl std::fmt::Display) -> RescueError {
    RescueError::Refused(error.to_string())
}

/// One backup as a machine reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    backup: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifest: Option<&'a Manifest>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub(super) async fn list(args: &ListArgs) -> Result<(), RescueError> {
    let mut listed = args.store.open()?.list().await.map_err(refused)?;
    newest_first(&mut listed);
    let text = match args.output {
        Output::Text => table(&listed),
        Output::Json => {
            let rows: Vec<Row<'_>> = listed.iter().map(row).collect();
            serde_json::to_string_pretty(&rows).map_err(std::io::Error::from)?
        }
    };
    Ok(writeln!(std::io::stdout(), "{}", text.trim_end())?)
}

/// What cannot be understood last, whatever its age.
fn newest_first(listed: &mut [Listed]) {
    let age = |l: &Listed| l.manifest.as_ref().ok().map(|m| m.started_at.0);
    listed.sort_by_key(|l| std::cmp::Reverse(age(l)));
}

fn row(listed: &Listed) -> Row<'_> {
    Row {
        backup: listed.key.name(),
        manifest: listed.manifest.as_ref().ok(),
        problem: listed.manifest.as_ref().err().map(ToString::to_string),
    }
}

fn table(listed: &[Listed]) -> String {
    if listed.is_empty() {
        return "There is no backup under this prefix: is spec.s3.prefix that of the cluster?".to_owned();
    }
    let widest = listed
        .iter()
        .map(|l| l.key.name().len())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut out = format!(
        "{:widest$}  {:<20}  {:>9}  {:>12}  {:<8}  ETCD CLUSTER\n",
        "BACKUP", "TAKEN", "SIZE", "REVISION", "ETCD"
    );
    for listed in listed {
        let name = listed.key.name();
        let line = match &listed.manifest {
            Ok(m) => format!(
                "{name:widest$}  {:<20}  {:>5} MiB  {:>12}  {:<8}  {}",
                m.started_at.0.strftime("%F %T UTC").to_string(),
                m.size_bytes >> 20,
                m.revision,
                m.etcd_version,
                m.cluster_id
            ),
            Err(why) => format!("{name:widest$}  cannot be used: {why}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

pub(super) async fn verify(args: VerifyArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    if !args.no_boot {
        screen::as_root()?;
    }
    let store = args.store.open()?;
    let listed = store.list().await.map_err(refused)?;
    let Some(found) = listed.iter().find(|l| l.key.name() == args.backup) else {
        return Err(RescueError::Refused(format!(
            "there is no backup {:?} in this store: `lockkeeper rescue list` shows what there is",
            args.backup
        )));
    };
    let manifest = found
        .manifest
        .as_ref()
        .map_err(|why| refused(format_args!("{}: {why}", args.backup)))?;
    let host = screen::host(&args.node);
    let scratch = args
        .scratch
        .clone()
        .unwrap_or_else(|| args.node.state_directory.join("rescue/verify"));
    check::room(&scratch, manifest.size_bytes).map_err(refused)?;
    screen::tell(&format!(
        "{} ({} MiB) is fetched",
        args.backup,
        manifest.size_bytes >> 20
    ));
    let file = scratch.join("snapshot.db");
    let work = async {
        std::fs::create_dir_all(&scratch)?;
        let keys = identities(args.identity.as_deref())?;
        store
            .fetch(manifest, &found.key, &keys, &file, shutdown)
            .await
            .map_err(refused)?;
        screen::tell("sizes and hashes are those of its manifest");
        if args.no_boot {
            return Ok(None);
        }
        let cri = screen::cri(&args.node)?;
        let verified = check::verify(&host, &cri, &file, &screen::tell, shutdown).await;
        verified
            .map(Some)
            .map_err(|why| refused(format_args!("{}: {why}", args.backup)))
    };
    let verified = work.await;
    remove(&scratch, &file)?;
    report(&args, manifest, verified?.as_ref())
}

fn remove(scratch: &Path, file: &Path) -> Result<(), RescueError> {
    for path in [file, &scratch.join(".snapshot.db.part")] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    // It stays where something of somebody else's lies in it.
    let _ = std::fs::remove_dir(scratch);
    Ok(())
}

fn report(args: &VerifyArgs, manifest: &Manifest, verified: Option<&Verified>) -> Result<(), RescueError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report<'a> {
        backup: &'a str,
        manifest: &'a Manifest,
        restored: Option<&'a Verified>,
    }
    let mut out = std::io::stdout();
    match (args.output, verified) {
        (Output::Json, restored) => {
            let report = Report {
                backup: &args.backup,
                manifest,
                restored,
            };
            let json = serde_json::to_string_pretty(&report).map_err(std::io::Error::from)?;
            writeln!(out, "{json}")?;
        }
        (Output::Text, None) => writeln!(
            out,
            "{}: what is stored is what was taken (sizes and SHA-256). Whether etcd takes it is not known: leave --no-boot out.",
            args.backup
        )?,
        (Output::Text, Some(seen)) => writeln!(
            out,
            "{}: etcdutl restored it: {} keys up to revision {}, taken from etcd {} on {}.",
            args.backup, seen.keys, seen.revision, manifest.etcd_version, manifest.node
        )?,
    }
    Ok(())
}
