//! Where the local member listens and with which files it is asked, from its static-pod manifest.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::Uri;
use k8s_openapi::api::core::v1::Pod;

use super::EtcdError;
use crate::agent::host::under;

/// Relative to the host's root.
const MANIFEST: &str = "etc/kubernetes/manifests/etcd.yaml";

/// kubeadm's, where the manifest names none.
const DEFAULT_CA: &str = "/etc/kubernetes/pki/etcd/ca.crt";

/// A file as it was when it was read: another stamp, another content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

impl Stamp {
    /// None when there is no such file.
    pub(super) async fn of(path: &Path) -> std::io::Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        match tokio::fs::metadata(path).await {
            Ok(meta) => Ok(Some(Self {
                modified: meta.modified().ok(),
                length: meta.len(),
                inode: meta.ino(),
            })),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// How the local member is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `https://127.0.0.1:2379`.
    pub(super) endpoint: String,
    /// For `https`.
    pub(super) files: Option<TlsFiles>,
}

/// On this machine's paths, the host's root included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsFiles {
    pub(super) ca: PathBuf,
    /// Certificate and key; the first pair of which both files exist.
    pub(super) pairs: Vec<(PathBuf, PathBuf)>,
}

pub(super) fn manifest_path(root: &Path) -> PathBuf {
    root.join(MANIFEST)
}

/// Reads the manifest's text. `address` wins over what it says.
pub(super) fn target(text: &str, root: &Path, address: Option<&str>) -> Result<Target, EtcdError> {
    let invalid = |problem: String| EtcdError::Manifest {
        path: manifest_path(root),
        problem,
    };
    let pod: Pod = serde_yaml::from_str(text).map_err(|e| invalid(format!("does not parse: {e}")))?;
    let containers = pod.spec.map(|s| s.containers).unwrap_or_default();
    let container = containers
        .iter()
        .find(|c| c.name == "etcd")
        .or(containers.first())
        .ok_or_else(|| invalid("has no container".to_owned()))?;
    let words: Vec<&str> = container
        .command
        .iter()
        .chain(&container.args)
        .flatten()
        .map(String::as_str)
        .collect();
    let secure = flag(&words, "cert-file").is_some();
    let urls = flag(&words, "listen-client-urls").or_else(|| flag(&words, "advertise-client-urls"));
    let endpoint = match (address, urls) {
        (Some(address), _) if address.contains("://") => address.to_owned(),
        (Some(address), _) if secure => format!("https://{address}"),
        (Some(address), _) => format!("http://{address}"),
        (None, Some(urls)) => closest(urls)
            .ok_or_else(|| invalid(format!("has no usable URL in --listen-client-urls={urls}")))?,
        (None, None) if secure => "https://127.0.0.1:2379".to_owned(),
        (None, None) => "http://127.0.0.1:2379".to_owned(),
    };
    let files = endpoint.starts_with("https://").then(|| {
        let ca = flag(&words, "trusted-ca-file").unwrap_or(DEFAULT_CA);
        tls_files(root, Path::new(ca))
    });
    Ok(Target { endpoint, files })
}

/// kubeadm keeps the client pairs beside the CA, also under another `certificatesDir`.
fn tls_files(root: &Path, ca: &Path) -> TlsFiles {
    let host = |path: &Path| under(root, path);
    let etcd = ca.parent().unwrap_or(Path::new("/etc/kubernetes/pki/etcd"));
    let pki = etcd.parent().unwrap_or(Path::new("/etc/kubernetes/pki"));
    let pair = |directory: &Path, name: &str| {
        (
            host(&directory.join(format!("{name}.crt"))),
            host(&directory.join(format!("{name}.key"))),
        )
    };
    TlsFiles {
        ca: host(ca),
        pairs: vec![
            pair(etcd, "healthcheck-client"),
            pair(pki, "apiserver-etcd-client"),
        ],
    }
}

/// `--name=value` or `--name value`.
fn flag<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(rest) = word.strip_prefix("--").and_then(|w| w.strip_prefix(name)) else {
            continue;
        };
        if rest.is_empty() {
            return words.next().copied();
        }
        if let Some(value) = rest.strip_prefix('=') {
            return Some(value);
        }
    }
    None
}

/// The URL that is surely this member: loopback, then any address (asked at loopback), then the first.
fn closest(urls: &str) -> Option<String> {
    let urls: Vec<Uri> = urls
        .split(',')
        .filter_map(|url| url.trim().parse().ok())
        .collect();
    let host = |uri: &Uri| uri.host().map(str::to_owned).unwrap_or_default();
    let loopback = |uri: &&Uri| matches!(host(uri).as_str(), "127.0.0.1" | "[::1]" | "localhost");
    let at = |uri: &Uri, host: &str| {
        Some(format!(
            "{}://{host}:{}",
            uri.scheme_str()?,
            uri.port_u16().unwrap_or(2379)
        ))
    };
    if let Some(uri) = urls.iter().find(loopback) {
        return at(uri, &host(uri));
    }
    for (any, local) in [("0.0.0.0", "127.0.0.1"), ("[::]", "[::1]")] {
        if let Some(uri) = urls.iter().find(|uri| host(uri) == any) {
            return at(uri, local);
        }
    }
    urls.iter().find_map(|uri| at(uri, &host(uri)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(flags: &[&str]) -> String {
        let flags: String = flags.iter().map(|f| format!("    - {f}\n")).collect();
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: etcd\nspec:\n  containers:\n  - name: etcd\n    command:\n    - etcd\n{flags}"
        )
    }

    #[test]
    fn the_endpoint_is_this_members_own() {
        for (flags, address, endpoint) in [
            (
                vec![
                    "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379",
                    "--cert-file=/c",
                ],
                None,
                "https://127.0.0.1:2379",
            ),
            (
                vec!["--listen-client-urls=https://10.0.0.1:2379,https://127.0.0.1:3379"],
                None,
                "https://127.0.0.1:3379",
            ),
            (
                vec!["--listen-client-urls", "https://0.0.0.0:2379"],
                None,
                "https://127.0.0.1:2379",
            ),
            (
                vec!["--listen-client-urls=https://[::]:2379"],
                None,
                "https://[::1]:2379",
            ),
            (
                vec!["--advertise-client-urls=https://10.0.0.1:2379"],
                None,
                "https://10.0.0.1:2379",
            ),
            (vec!["--cert-file=/c"], None, "https://127.0.0.1:2379"),
            (vec![], None, "http://127.0.0.1:2379"),
            (
                vec!["--cert-file=/c"],
                Some("10.0.0.7:2379"),
                "https://10.0.0.7:2379",
            ),
            (
                vec!["--cert-file=/c"],
                Some("http://10.0.0.7:1"),
                "http://10.0.0.7:1",
            ),
        ] {
            let found = target(&manifest(&flags), Path::new("/"), address).unwrap();
            assert_eq!(found.endpoint, endpoint, "{flags:?}");
        }
    }

    #[test]
    fn the_client_pairs_lie_beside_the_ca() {
        let text = manifest(&[
            "--cert-file=/pki/etcd/server.crt",
            "--trusted-ca-file=/pki/etcd/ca.crt",
        ]);
        let files = target(&text, Path::new("/host"), None).unwrap().files.unwrap();
        assert_eq!(files.ca, Path::new("/host/pki/etcd/ca.crt"));
        assert_eq!(
            files.pairs[0].0,
            Path::new("/host/pki/etcd/healthcheck-client.crt")
        );
        assert_eq!(files.pairs[1].1, Path::new("/host/pki/apiserver-etcd-client.key"));
    }

    #[test]
    fn a_manifest_that_is_none_is_named() {
        for text in ["{", "kind: Pod", "[]"] {
            let error = target(text, Path::new("/"), None).unwrap_err().to_string();
            assert!(error.contains("/etc/kubernetes/manifests/etcd.yaml"), "{error}");
        }
    }
}
