//! `lockkeeper rescue pki`: what a node is made of, from beside a backup into its place.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use chrono::Utc;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::store::{BackupArgs, KeyArgs, StoreArgs, refused};
use super::{Output, RescueError, screen};
use crate::agent::rescue::Chosen;
use crate::store::PkiFile;
use crate::store::pki::{self, There};

/// kubeadm's, below the root.
const PKI: &str = "etc/kubernetes/pki";
const MANIFESTS: &str = "etc/kubernetes/manifests";

/// Certificates that kubeadm makes for one node from the CAs, below [`PKI`], without `.crt` and `.key`.
const OF_A_NODE: [&str; 7] = [
    "apiserver",
    "apiserver-etcd-client",
    "apiserver-kubelet-client",
    "front-proxy-client",
    "etcd/healthcheck-client",
    "etcd/peer",
    "etcd/server",
];

/// Of `lockkeeper rescue pki`.
#[derive(Debug, clap::Args)]
pub struct PkiArgs {
    /// Which.
    #[command(flatten)]
    backup: BackupArgs,
    /// The store.
    #[command(flatten)]
    store: StoreArgs,
    /// What opens it.
    #[command(flatten)]
    keys: KeyArgs,
    /// Shows what would be written, and writes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Writes over what is there and differs, after it was kept aside.
    #[arg(long)]
    force: bool,
    /// Also the certificates that are of the one node that the backup was taken on: for a machine with its name and
    /// addresses.
    #[arg(long)]
    node_files: bool,
    /// Where that node's static pod manifests go, for a person to compare. Not where the kubelet would start them.
    #[arg(long, value_name = "DIR")]
    manifests_to: Option<PathBuf>,
    /// Instead of / .
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where what is kept aside goes, in a directory of its own.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lockkeeper/rescue")]
    aside: PathBuf,
    /// How the result is written.
    #[arg(long, short, value_enum, default_value_t)]
    output: Output,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The cluster's: the same on every node.
    Cluster,
    /// One node's certificates.
    Node,
    /// One node's static pods.
    Manifest,
}

fn kind(path: &Path) -> Kind {
    if path.starts_with(MANIFESTS) {
        return Kind::Manifest;
    }
    let below = path.strip_prefix(PKI).map(|p| p.with_extension(""));
    match below {
        Ok(below) if OF_A_NODE.iter().any(|name| below == Path::new(name)) => Kind::Node,
        _ => Kind::Cluster,
    }
}

/// One file, as a machine reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    path: String,
    mode: String,
    owner: String,
    there: There,
}

pub(super) async fn run(args: PkiArgs, shutdown: &CancellationToken) -> Result<(), RescueError> {
    if !args.dry_run {
        screen::as_root()?;
    }
    let chosen = args.backup.choose(&args.store, &args.keys).await?;
    let files = chosen
        .store
        .fetch_pki(&chosen.manifest, &chosen.key, &chosen.keys, shutdown)
        .await
        .map_err(refused)?
        .ok_or_else(|| without(&chosen))?;
    let (here, manifests) = chosen_files(&args, files);
    manifests_are_not_started(&args)?;
    let mut places = vec![(&args.root, here)];
    if let Some(to) = &args.manifests_to {
        places.push((to, manifests));
    }
    let mut rows = vec![];
    for (root, files) in &places {
        rows.extend(looked_at(root, files)?);
    }
    let differ: Vec<&str> = rows
        .iter()
        .filter(|r| r.there == There::Differs)
        .map(|r| r.path.as_str())
        .collect();
    if !args.dry_run {
        if !differ.is_empty() && !args.force {
            return Err(refused(format_args!(
                "nothing was written: {} there and different: {}. See what it is (--dry-run shows all); --force writes over it, after it was kept aside",
                if differ.len() == 1 {
                    "one file is"
                } else {
                    "some files are"
                },
                differ.join(", ")
            )));
        }
        for (root, files) in &places {
            put(&args, root, files)?;
        }
    }
    show(&args, &chosen, &rows)
}

fn without(chosen: &Chosen) -> RescueError {
    refused(format_args!(
        "{} was taken without the PKI: `lockkeeper rescue list` shows which have one. Backups have it where their spec says include: [PKI]",
        chosen.key.name()
    ))
}

/// What goes below the root, and the manifests.
fn chosen_files(args: &PkiArgs, files: Vec<PkiFile>) -> (Vec<PkiFile>, Vec<PkiFile>) {
    let (manifests, here): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|f| kind(&f.path) == Kind::Manifest);
    let wanted = |f: &PkiFile| args.node_files || kind(&f.path) == Kind::Cluster;
    let named = manifests.into_iter().filter_map(|file| {
        let path = file.path.strip_prefix(MANIFESTS).ok()?.to_owned();
        Some(PkiFile { path, ..file })
    });
    (here.into_iter().filter(wanted).collect(), named.collect())
}

/// An etcd that starts on an empty directory makes a new cluster, and an API server serves it.
fn manifests_are_not_started(args: &PkiArgs) -> Result<(), RescueError> {
    let kubelets = args.root.join(MANIFESTS);
    match &args.manifests_to {
        Some(to) if std::path::absolute(to)? == std::path::absolute(&kubelets)? => {
            Err(refused(format_args!(
                "--manifests-to {}: the kubelet would start them at once, and etcd without its data makes a new, empty cluster. Name another directory",
                to.display()
            )))
        }
        _ => Ok(()),
    }
}

fn looked_at(root: &Path, files: &[PkiFile]) -> Result<Vec<Row>, RescueError> {
    let row = |file: &PkiFile| {
        let at = root.join(&file.path);
        let there = pki::compare(file, root)
            .map_err(|e| refused(format_args!("{} cannot be read: {e}", at.display())))?;
        Ok(Row {
            path: at.display().to_string(),
            mode: format!("{:04o}", file.mode),
            owner: format!("{}:{}", file.owner, file.group),
            there,
        })
    };
    files.iter().map(row).collect()
}

/// Keeps aside what differs, then writes what is not there as it should be.
fn put(args: &PkiArgs, root: &Path, files: &[PkiFile]) -> Result<(), RescueError> {
    let aside = args
        .aside
        .join(format!("pki-{}", Utc::now().format("%Y%m%dT%H%M%SZ")));
    let mut writes = vec![];
    for file in files {
        match pki::compare(file, root)? {
            There::Same => continue,
            There::Differs => {
                pki::keep_aside(file, root, &aside).map_err(refused)?;
                screen::tell(&format!(
                    "{} as it was lies in {}",
                    root.join(&file.path).display(),
                    aside.display()
                ));
            }
            There::Absent | There::OtherMode => {}
        }
        writes.push(file.clone());
    }
    pki::place(&writes, root).map_err(refused)
}

fn show(args: &PkiArgs, chosen: &Chosen, rows: &[Row]) -> Result<(), RescueError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report<'a> {
        backup: &'a str,
        node: &'a str,
        written: bool,
        files: &'a [Row],
    }
    let node = chosen.manifest.node.as_str();
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&Report {
            backup: chosen.key.name(),
            node,
            written: !args.dry_run,
            files: rows,
        })
        .map_err(std::io::Error::from)?,
        Output::Text => table(args, node, rows),
    };
    Ok(writeln!(std::io::stdout(), "{}", text.trim_end())?)
}

fn table(args: &PkiArgs, node: &str, rows: &[Row]) -> String {
    let widest = rows.iter().map(|r| r.path.len()).max().unwrap_or(0).max(4);
    let mut out = format!("{:widest$}  MODE  {:<7}  STATE\n", "FILE", "OWNER");
    for row in rows {
        let state = match (row.there, args.dry_run) {
            (There::Same, _) => "as it is there",
            (There::Absent, true) => "would be written",
            (There::Absent, false) => "written",
            (There::OtherMode, true) => "same content, would get mode and owner",
            (There::OtherMode, false) => "same content, has mode and owner now",
            (There::Differs, true) => {
                "DIFFERS: would be refused, or with --force kept aside and written over"
            }
            (There::Differs, false) => "kept aside and written over",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{:widest$}  {}  {:<7}  {state}",
            row.path, row.mode, row.owner
        );
    }
    let _ = writeln!(
        out,
        "{}",
        if args.node_files {
            format!(
                "The certificates are those of {node}: another machine needs its own (leave --node-files out)."
            )
        } else {
            "A machine's own certificates are made from these: `kubeadm init phase certs all`, or `kubeadm join`.".to_owned()
        }
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_clusters_and_what_is_one_nodes_is_told_apart() {
        for (path, is) in [
            ("etc/kubernetes/pki/ca.key", Kind::Cluster),
            ("etc/kubernetes/pki/sa.pub", Kind::Cluster),
            ("etc/kubernetes/pki/etcd/ca.crt", Kind::Cluster),
            ("etc/kubernetes/pki/front-proxy-ca.key", Kind::Cluster),
            ("etc/kubernetes/enc/config.yaml", Kind::Cluster),
            ("etc/kubernetes/pki/apiserver.crt", Kind::Node),
            ("etc/kubernetes/pki/apiserver-etcd-client.key", Kind::Node),
            ("etc/kubernetes/pki/etcd/peer.key", Kind::Node),
            ("etc/kubernetes/manifests/etcd.yaml", Kind::Manifest),
        ] {
            assert_eq!(kind(Path::new(path)), is, "{path}");
        }
    }
}
