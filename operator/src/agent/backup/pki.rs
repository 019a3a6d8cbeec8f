//! What a node needs to be built again as itself: its PKI, the API server's encryption configuration, the static pod
//! manifests. Read from the host, for a backup that includes it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::store::{PkiError, PkiFile, pki};

/// kubeadm's, below the host's root.
const PKI: &str = "etc/kubernetes/pki";
const MANIFESTS: &str = "etc/kubernetes/manifests";
const API_SERVER: &str = "etc/kubernetes/manifests/kube-apiserver.yaml";

/// Of the API server: the file with the keys that Secrets are encrypted with.
const ENCRYPTION: &str = "--encryption-provider-config";

/// Why the PKI cannot go with a backup.
#[derive(Debug, thiserror::Error)]
pub enum PkiUnreadable {
    /// A file or a directory.
    #[error("the PKI cannot go with the backup: {path} cannot be read: {problem}")]
    File {
        /// On this machine.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// Too much of it.
    #[error("the PKI cannot go with the backup: {0}")]
    Archive(#[from] PkiError),
    /// The reader ended.
    #[error("the PKI cannot go with the backup: {0}")]
    Reader(String),
}

/// A tar of the node's PKI.
pub(super) async fn collect(root: &Path) -> Result<Vec<u8>, PkiUnreadable> {
    let root = root.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let files = files(&root)?;
        Ok(pki::archive(&files)?)
    });
    read.await
        .unwrap_or_else(|e| Err(PkiUnreadable::Reader(e.to_string())))
}

fn files(root: &Path) -> Result<Vec<PkiFile>, PkiUnreadable> {
    let mut files = vec![];
    walk(root, Path::new(PKI), &|_| true, &mut files)?;
    let manifest = |name: &str| name.ends_with(".yaml") && !name.starts_with('.');
    walk(root, Path::new(MANIFESTS), &manifest, &mut files)?;
    if let Some(path) = encryption(root)? {
        let already = files.iter().any(|file| file.path == path);
        if !already {
            files.push(read(root, path, " (the agent sees /etc/kubernetes only: keep the file that --encryption-provider-config names there, or mount its directory into the agents)")?);
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(
    root: &Path,
    below: &Path,
    wanted: &dyn Fn(&str) -> bool,
    into: &mut Vec<PkiFile>,
) -> Result<(), PkiUnreadable> {
    let failed = |e: std::io::Error| PkiUnreadable::File {
        path: root.join(below),
        problem: e.to_string(),
    };
    for entry in std::fs::read_dir(root.join(below)).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = below.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            walk(root, &path, wanted, into)?;
        } else if kind.is_file() && wanted(&name) {
            if into.len() >= pki::MOST_FILES {
                return Err(
                    PkiError::Archive(format!("would hold more than {} files", pki::MOST_FILES)).into(),
                );
            }
            into.push(read(root, path, "")?);
        }
    }
    Ok(())
}

fn read(root: &Path, path: PathBuf, hint: &str) -> Result<PkiFile, PkiUnreadable> {
    let at = root.join(&path);
    let failed = |problem: String| PkiUnreadable::File {
        path: at.clone(),
        problem: format!("{problem}{hint}"),
    };
    let meta = std::fs::metadata(&at).map_err(|e| failed(e.to_string()))?;
    if meta.len() > pki::MOST_BYTES {
        return Err(failed(format!("its {} bytes are too many", meta.len())));
    }
    Ok(PkiFile {
        mode: meta.mode() & 0o777,
        owner: meta.uid(),
        group: meta.gid(),
        content: std::fs::read(&at).map_err(|e| failed(e.to_string()))?,
        path,
    })
}

/// The file that the API server's manifest names, below the root.
fn encryption(root: &Path) -> Result<Option<PathBuf>, PkiUnreadable> {
    let path = root.join(API_SERVER);
    let failed = |problem: String| PkiUnreadable::File {
        path: path.clone(),
        problem,
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        // A node of etcd alone.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e.to_string())),
    };
    let pod: Pod = serde_yaml::from_str(&text).map_err(|e| failed(e.to_string()))?;
    let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
    let words: Vec<&String> = containers
        .iter()
        .flat_map(|c| c.command.iter().chain(&c.args))
        .flatten()
        .collect();
    let named = words.iter().enumerate().find_map(|(at, word)| {
        let rest = word.strip_prefix(ENCRYPTION)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value.to_owned()),
            None if rest.is_empty() => words.get(at + 1).map(|next| (*next).clone()),
            None => None,
        }
    });
    Ok(named.map(|path| PathBuf::from(path.trim_start_matches('/'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(flag: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let at = root.path().join(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, content).unwrap();
        };
        write("etc/kubernetes/pki/sa.key", "key");
        write("etc/kubernetes/pki/etcd/ca.key", "etcd's");
        write("etc/kubernetes/encryption.yaml", "keys of Secrets");
        write("etc/kubernetes/manifests/etcd.yaml", "spec: {}");
        write("etc/kubernetes/manifests/.half.yaml", "half");
        write("etc/kubernetes/admin.conf", "an admin's");
        write(
            API_SERVER,
            &format!("spec: {{containers: [{{name: kube-apiserver, command: [kube-apiserver, {flag}]}}]}}"),
        );
        root
    }

    #[test]
    fn what_a_node_is_made_of_is_collected() {
        for flag in [
            "--encryption-provider-config=/etc/kubernetes/encryption.yaml",
            "--encryption-provider-config, /etc/kubernetes/encryption.yaml",
        ] {
            let root = node(flag);
            let found = files(root.path()).unwrap();
            let names: Vec<_> = found.iter().map(|f| f.path.display().to_string()).collect();
            assert_eq!(
                names,
                [
                    "etc/kubernetes/encryption.yaml",
                    "etc/kubernetes/manifests/etcd.yaml",
                    "etc/kubernetes/manifests/kube-apiserver.yaml",
                    "etc/kubernetes/pki/etcd/ca.key",
                    "etc/kubernetes/pki/sa.key",
                ]
            );
        }
        assert_eq!(files(node("--other=1").path()).unwrap().len(), 4);
    }

    #[test]
    fn a_key_of_secrets_that_cannot_be_seen_is_not_left_out_in_silence() {
        let root = node("--encryption-provider-config=/elsewhere/encryption.yaml");
        let told = files(root.path()).unwrap_err().to_string();
        assert!(
            told.contains("elsewhere/encryption.yaml")
                && told.contains("mount its directory into the agents"),
            "{told}"
        );
    }
}
