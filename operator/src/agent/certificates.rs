//! Certificates on the node's disk and when they end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use lockkeeper_crds::CertificateStatus;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::host::{Host, read_limited};
use super::time::{from_seconds, to_api};

/// A PEM file or a kubeconfig is a few KiB; a bundle of authorities some hundred.
const LARGEST: u64 = 1024 * 1024;

/// A certificate file, or what it could not be read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificates {
    /// The earliest end in each file.
    pub(crate) ends: BTreeMap<PathBuf, DateTime<Utc>>,
    pub(crate) unreadable: Vec<String>,
}

impl Certificates {
    /// As the API tells it.
    pub(crate) fn status(&self) -> Vec<CertificateStatus> {
        self.ends
            .iter()
            .map(|(path, end)| CertificateStatus {
                path: path.display().to_string(),
                not_after: to_api(*end),
            })
            .collect()
    }
}

/// Reads `pki/*.crt`, `pki/etcd/*.crt`, and the client certificates inside `*.conf`.
pub(crate) fn read(host: &Host) -> Certificates {
    let base = host.kubernetes();
    let mut found = Certificates {
        ends: BTreeMap::new(),
        unreadable: Vec::new(),
    };
    for directory in [base.join("pki"), base.join("pki/etcd")] {
        for path in files(&directory, "crt") {
            let pem = read_limited(&path, LARGEST).map_err(|e| e.to_string());
            keep(host, &mut found, &path, pem);
        }
    }
    for path in files(&base, "conf") {
        match read_limited(&path, LARGEST)
            .map_err(|e| e.to_string())
            .and_then(|b| embedded(&b))
        {
            Ok(pems) => {
                for pem in pems {
                    keep(host, &mut found, &path, Ok(pem));
                }
            }
            Err(why) => keep(host, &mut found, &path, Err(why)),
        }
    }
    found
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    all.retain(|path: &PathBuf| path.extension().is_some_and(|e| e == extension));
    all.sort();
    all
}

fn keep(host: &Host, found: &mut Certificates, path: &Path, pem: Result<Vec<u8>, String>) {
    // As the host names it.
    let shown = host.on_host(path);
    match pem.and_then(|pem| earliest_end(&pem)) {
        Ok(end) => {
            let kept = found.ends.entry(shown).or_insert(end);
            *kept = end.min(*kept);
        }
        Err(why) => found.unreadable.push(format!("{}: {why}", shown.display())),
    }
}

fn earliest_end(pem: &[u8]) -> Result<DateTime<Utc>, String> {
    let mut earliest: Option<DateTime<Utc>> = None;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let der = certificate.map_err(|e| e.to_string())?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|e| e.to_string())?;
        let end = from_seconds(parsed.validity().not_after.timestamp());
        earliest = Some(earliest.map_or(end, |known| known.min(end)));
    }
    earliest.ok_or_else(|| "no certificate in it".to_owned())
}

/// The certificates inside a kubeconfig; none when it uses tokens or names files (those are read where they lie).
fn embedded(kubeconfig: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let value: serde_yaml::Value = serde_yaml::from_slice(kubeconfig).map_err(|e| e.to_string())?;
    let users = value.get("users").and_then(serde_yaml::Value::as_sequence);
    users
        .into_iter()
        .flatten()
        .filter_map(|user| user.get("user")?.get("client-certificate-data")?.as_str())
        .map(decode_base64)
        .collect()
}

fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    // k8s-openapi's ByteString is base64 in JSON; it spares a dependency.
    let text = text.split_whitespace().collect::<String>();
    serde_json::from_value::<k8s_openapi::ByteString>(serde_json::Value::String(text))
        .map(|bytes| bytes.0)
        .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_is_named_not_dropped() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(
            root.path(),
            Path::new("/etc/kubernetes/manifests"),
            Path::new("/s"),
        );
        fs::create_dir_all(host.kubernetes().join("pki")).unwrap();
        fs::write(host.kubernetes().join("pki/ca.crt"), "nothing").unwrap();
        fs::write(
            host.kubernetes().join("admin.conf"),
            "users: [{name: a, user: {token: t}}]",
        )
        .unwrap();
        let found = read(&host);
        assert!(found.ends.is_empty());
        assert_eq!(
            found.unreadable,
            ["/etc/kubernetes/pki/ca.crt: no certificate in it"]
        );
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode_base64("aGVs\nbG8=").unwrap(), b"hello");
        assert!(decode_base64("???").is_err());
    }
}
