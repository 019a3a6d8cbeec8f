//! Where backups lie, by flags or by files, which one, and what opens it; and `lockkeeper rescue list`. No API is asked.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use lockkeeper_crds::EtcdBackupStoreSpec;
use serde::Serialize;
use serde_json::json;

use super::{Output, RescueError};
use crate::agent::rescue::Chosen;
use crate::store::{BackupKey, Identities, Listed, Manifest, Secrets, Store};

/// Where the backups lie: in a file, or by flags.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct StoreArgs {
    /// A file with the EtcdBackupStore, as `kubectl get etcdbackupstore -o yaml` prints it (apiVersion, kind, metadata
    /// and spec are enough; it is worth keeping one outside the cluster). Or say it by the flags that follow.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["directory", "bucket"])]
    store: Option<PathBuf>,
    /// A directory of backups.
    #[arg(long, value_name = "DIR", conflicts_with = "bucket")]
    directory: Option<PathBuf>,
    /// An S3 bucket.
    #[arg(long, value_name = "NAME")]
    bucket: Option<String>,
    /// What goes before every key in the bucket.
    #[arg(long, value_name = "PATH", requires = "bucket")]
    prefix: Option<String>,
    /// The S3 server, https://HOST:PORT [default: Amazon's].
    #[arg(long, value_name = "URL", requires = "bucket")]
    endpoint: Option<String>,
    /// Its region [default: us-east-1].
    #[arg(long, value_name = "NAME", requires = "bucket")]
    region: Option<String>,
    /// `--path-style=false`: https://BUCKET.HOST/KEY instead of https://HOST/BUCKET/KEY.
    #[arg(long, value_name = "BOOL", requires = "bucket", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    path_style: Option<bool>,
    /// A file with the certificates, in PEM, that the server's is signed with.
    #[arg(long, value_name = "FILE", requires = "bucket")]
    ca_file: Option<PathBuf>,
    /// A file with the bucket's credentials: the Secret as YAML, its keys as lines (AWS_ACCESS_KEY_ID=... and
    /// AWS_SECRET_ACCESS_KEY=...), or a service account's key of Google's. Without it the environment's.
    #[arg(long, value_name = "FILE", conflicts_with = "directory")]
    credentials: Option<PathBuf>,
}

/// The name of a store that flags describe.
const NAME: &str = "flags";

/// What the sentences of a store call a field, and which flag says it here.
const FLAGS: [(&str, &str); 8] = [
    ("spec.s3.credentialsSecret", "--credentials"),
    ("spec.s3.caBundle", "--ca-file"),
    ("spec.s3.endpoint", "--endpoint"),
    ("spec.s3.region", "--region"),
    ("spec.s3.bucket", "--bucket"),
    ("spec.s3.prefix", "--prefix"),
    ("spec.s3.virtualHostedStyle", "--path-style"),
    ("spec.directory.path", "--directory"),
];

impl StoreArgs {
    fn open(&self) -> Result<Store, RescueError> {
        if let Some(file) = &self.store {
            return Store::from_files(file, self.credentials.as_deref()).map_err(refused);
        }
        let spec = match (&self.directory, &self.bucket) {
            (Some(at), _) => {
                let path = std::path::absolute(at)?;
                if !path.is_dir() {
                    return Err(refused(format_args!(
                        "--directory {} is no directory",
                        path.display()
                    )));
                }
                json!({"directory": {"path": path}})
            }
            (None, Some(bucket)) => self.bucket(bucket)?,
            (None, None) => {
                return Err(refused(
                    "where do the backups lie? --store FILE (the EtcdBackupStore), or --bucket NAME with --endpoint URL, or --directory DIR",
                ));
            }
        };
        let spec: EtcdBackupStoreSpec =
            serde_json::from_value(spec).map_err(|e| refused(format_args!("the store's flags: {e}")))?;
        let credentials = self.credentials.as_deref();
        let secrets = credentials.map(|file| Secrets::of_file(&spec, file));
        let secrets = secrets
            .transpose()
            .map_err(|why| refused(format_args!("--credentials: {}", self.said(&why.to_string()))))?;
        let secrets = secrets.unwrap_or_default();
        Store::from_spec(NAME, &spec, secrets).map_err(|e| self.refused(e))
    }

    fn bucket(&self, bucket: &str) -> Result<serde_json::Value, RescueError> {
        let mut s3 = json!({"bucket": bucket, "virtualHostedStyle": self.path_style == Some(false)});
        let ca = self
            .ca_file
            .as_deref()
            .map(|file| read("--ca-file", file))
            .transpose()?;
        let given = [
            (
                "prefix",
                self.prefix.clone().map(|p| p.trim_matches('/').to_owned()),
            ),
            ("endpoint", self.endpoint.clone()),
            ("region", self.region.clone()),
            ("caBundle", ca),
        ];
        if let Some(s3) = s3.as_object_mut() {
            s3.extend(
                given
                    .into_iter()
                    .filter_map(|(name, value)| Some((name.to_owned(), value?.into()))),
            );
        }
        Ok(json!({"s3": s3}))
    }

    /// A store's sentence, in the words that were used here.
    fn refused(&self, error: impl std::fmt::Display) -> RescueError {
        RescueError::Refused(self.said(&error.to_string()))
    }

    fn said(&self, sentence: &str) -> String {
        let mut said = sentence.to_owned();
        if self.store.is_none() {
            said = said.replace(&format!("EtcdBackupStore {NAME}: "), "");
            for (field, flag) in FLAGS {
                said = said.replace(field, flag);
            }
        }
        said
    }

    async fn listed(&self) -> Result<(Store, Vec<Listed>), RescueError> {
        let store = self.open()?;
        let listed = store.list().await.map_err(|e| self.refused(e))?;
        Ok((store, listed))
    }
}

/// What opens an encrypted backup.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct KeyArgs {
    /// A file of secret keys that open an encrypted backup, as age-keygen writes it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// A file with the passphrase, for one that was encrypted with a passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl KeyArgs {
    pub(super) fn identities(&self) -> Result<Identities, RescueError> {
        let mut keys = match &self.identity {
            None => Identities::none(),
            Some(file) => {
                let shown = format!("--identity {}", file.display());
                Identities::parse(&read("--identity", file)?, &shown).map_err(refused)?
            }
        };
        if let Some(file) = &self.passphrase_file {
            keys = keys.with_passphrase(&read("--passphrase-file", file)?);
        }
        Ok(keys)
    }
}

/// Which backup.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct BackupArgs {
    /// The backup: its name as `list` shows it, the EtcdBackup's own name, or its key or URI in the store.
    #[arg(value_name = "BACKUP")]
    backup: Option<String>,
}

impl BackupArgs {
    /// Finds it, opens nothing yet.
    pub(super) async fn choose(&self, store: &StoreArgs, keys: &KeyArgs) -> Result<Chosen, RescueError> {
        let Some(wanted) = self.backup.as_deref() else {
            return Err(refused(
                "which BACKUP? `lockkeeper rescue list` shows what there is",
            ));
        };
        let keys = keys.identities()?;
        let (opened, key, manifest) = if wanted.contains('/') {
            by_key(store, wanted).await?
        } else {
            let (opened, listed) = store.listed().await?;
            let found = by_name(&listed, wanted)?;
            let manifest = found.manifest.as_ref();
            let manifest = manifest.map_err(|why| store.refused(format_args!("{wanted}: {why}")))?;
            (opened, found.key.clone(), manifest.clone())
        };
        Ok(Chosen {
            store: opened,
            key,
            manifest,
            keys,
        })
    }
}

async fn by_key(args: &StoreArgs, wanted: &str) -> Result<(Store, BackupKey, Manifest), RescueError> {
    let store = args.open()?;
    let key = store.locate(wanted).map_err(refused)?;
    let manifest = store.manifest(&key).await.map_err(|e| args.refused(e))?;
    let manifest = manifest.ok_or_else(|| {
        refused(format_args!(
            "there is no backup at {}: one without its manifest does not exist. `lockkeeper rescue list` shows what there is",
            store.uri(&key.manifest)
        ))
    })?;
    Ok((store, key, manifest))
}

fn by_name<'a>(listed: &'a [Listed], wanted: &str) -> Result<&'a Listed, RescueError> {
    if let Some(found) = listed.iter().find(|l| l.key.name() == wanted) {
        return Ok(found);
    }
    let of_name = |l: &&Listed| l.manifest.as_ref().is_ok_and(|m| m.name == wanted);
    let all: Vec<&Listed> = listed.iter().filter(of_name).collect();
    match all.as_slice() {
        [one] => Ok(one),
        [] => Err(refused(format_args!(
            "there is no backup {wanted:?} in this store: `lockkeeper rescue list` shows what there is"
        ))),
        several => {
            let names: Vec<&str> = several.iter().map(|l| l.key.name()).collect();
            Err(refused(format_args!(
                "{wanted:?} may be {}: say which",
                names.join(" or ")
            )))
        }
    }
}

fn read(flag: &str, file: &Path) -> Result<String, RescueError> {
    std::fs::read_to_string(file)
        .map_err(|e| refused(format_args!("{flag} {} cannot be read: {e}", file.display())))
}

pub(super) fn refused(error: impl std::fmt::Display) -> RescueError {
    RescueError::Refused(error.to_string())
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
    let (store, mut listed) = args.store.listed().await?;
    newest_first(&mut listed);
    let text = match args.output {
        Output::Text => table(&listed, &args.store.said(store.prefix_field())),
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

/// `field`: where the spec says below what they lie.
fn table(listed: &[Listed], field: &str) -> String {
    if listed.is_empty() {
        return format!("There is no backup here: is {field} that of the cluster?");
    }
    let widest = listed
        .iter()
        .map(|l| l.key.name().len())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut out = format!(
        "{:widest$}  {:<20}  {:>9}  {:>12}  {:<8}  {:<9}  {:<3}  ETCD CLUSTER\n",
        "BACKUP", "TAKEN", "SIZE", "REVISION", "ETCD", "ENCRYPTED", "PKI"
    );
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    for listed in listed {
        let name = listed.key.name();
        let line = match &listed.manifest {
            Ok(m) => format!(
                "{name:widest$}  {:<20}  {:>5} MiB  {:>12}  {:<8}  {:<9}  {:<3}  {}",
                m.started_at.0.strftime("%F %T UTC").to_string(),
                m.size_bytes >> 20,
                m.revision,
                m.etcd_version,
                yes(m.snapshot().encrypted.is_some()),
                yes(m.pki.is_some()),
                m.cluster_id
            ),
            Err(why) => format!("{name:widest$}  cannot be used: {why}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
