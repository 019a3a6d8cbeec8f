//! Restores a snapshot with `etcdutl`, and boots an `etcd` on what comes of it: both from the node's own etcd image.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use lockkeeper_crds::{Component, Tristate};
use serde_yaml::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::place::Place;
use super::verdict::Read;
use super::{ProofConfig, ProofError};
use crate::agent::chore::{Chore, ChoreError, Mount, Standing};
use crate::agent::cri::Cri;
use crate::agent::directory;
use crate::agent::etcd::EtcdMember;
use crate::agent::host::{Host, read_limited};
use crate::agent::manifest;
use crate::store::Manifest;

/// A manifest is a few KiB; the kubelet's own limit is 10 MB.
const LARGEST: u64 = 10 * 1024 * 1024;

/// Where a chore finds the work directory.
const WORK: &str = "/lockkeeper-proof";

/// Until an etcd serves whose log is of one entry: it reads the whole file once, some 100 MB a second from a slow disk.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(500);

/// A proof's own deadline ends it sooner; this is for what has none.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The etcd of this node, as its manifest has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EtcdImage {
    image: String,
    /// As the host names it.
    pub(super) data_directory: PathBuf,
    /// Certificate, key, and the authority of its clients, as the host names them; none for an etcd without TLS.
    tls: Option<[PathBuf; 3]>,
}

impl EtcdImage {
    pub(super) fn of(host: &Host) -> Result<Self, ProofError> {
        let path = host.manifests().join("etcd.yaml");
        let none = |why: String| {
            ProofError::NoComponent(format!(
                "{} {why}: a backup is proven with this node's etcd image",
                path.display()
            ))
        };
        let bytes = read_limited(&path, LARGEST).map_err(|e| none(format!("cannot be read ({e})")))?;
        let (_, _, document) =
            manifest::parse_pod(&path, &bytes).map_err(|e| none(format!("is of no use ({e})")))?;
        Self::from_manifest(&document).ok_or_else(|| none("has no container etcd with an image".to_owned()))
    }

    fn from_manifest(document: &Value) -> Option<Self> {
        let container = manifest::container(document, "etcd")?;
        let mut words = manifest::strings(container.get("command"));
        words.extend(manifest::strings(container.get("args")));
        let file = |name: &str| manifest::flag(&words, name).map(PathBuf::from);
        let tls = match (file("cert-file"), file("key-file"), file("trusted-ca-file")) {
            (Some(certificate), Some(key), Some(authority)) => Some([certificate, key, authority]),
            _ => None,
        };
        Some(Self {
            image: container.get("image")?.as_str()?.to_owned(),
            data_directory: file("data-dir").unwrap_or_else(|| "/var/lib/etcd".into()),
            tls,
        })
    }

    /// `etcdutl` reads what its own minor wrote (facts.md 3.2).
    pub(super) fn fits(&self, backup: &Manifest) -> Result<(), ProofError> {
        let tag = self.image.rsplit_once(':').map_or("", |(_, tag)| tag);
        let minor = |text: &str| {
            let bare = text.trim_start_matches('v').split('-').next().unwrap_or_default();
            semver::Version::parse(bare).ok().map(|v| (v.major, v.minor))
        };
        let taken_of = minor(&backup.etcd_version);
        if taken_of.is_some() && minor(tag) == taken_of {
            return Ok(());
        }
        Err(ProofError::OtherMinor {
            component: "etcd",
            backup: backup.etcd_version.clone(),
            node: self.image.clone(),
        })
    }
}

/// What the programs of a proof have in common.
pub(super) struct Chores<'a> {
    pub(super) host: &'a Host,
    pub(super) cri: &'a Cri,
    pub(super) config: &'a ProofConfig,
    pub(super) place: &'a Place,
    pub(super) cancel: &'a CancellationToken,
}

impl Chores<'_> {
    /// A program with the limits of a proof, and the work directory.
    pub(super) fn chore(&self, name: &str, image: &str, command: Vec<String>) -> Chore {
        let memory = self.config.proof_memory_mib.saturating_mul(1024 * 1024);
        Chore {
            name: name.to_owned(),
            image: image.to_owned(),
            command,
            // Go's collector works harder before the kernel kills.
            environment: vec![("GOMEMLIMIT".to_owned(), (memory / 10 * 9).to_string())],
            mounts: vec![Mount {
                host: self.place.on_host().to_owned(),
                inside: WORK.into(),
                read_only: false,
            }],
            host_network: true,
            memory_limit: Some(memory),
            cpu_limit: Some(self.config.proof_cpu_millis),
            ..Chore::default()
        }
    }

    pub(super) async fn restore(&self, image: &EtcdImage) -> Result<(), ProofError> {
        let command = [
            "etcdutl".to_owned(),
            "snapshot".to_owned(),
            "restore".to_owned(),
            format!("{WORK}/snapshot.db"),
            format!("--data-dir={WORK}/data"),
        ];
        let chore = self.chore("restore", &image.image, command.to_vec());
        chore
            .run(self.host, self.cri, LONGEST, self.cancel)
            .await
            .map(drop)
            .map_err(ProofError::Restore)
    }

    pub(super) async fn boot(&self, image: &EtcdImage) -> Result<Booted, ProofError> {
        let failed = |source| ProofError::Chore {
            doing: "no etcd can be booted on it",
            source,
        };
        let port = free_port().map_err(|source| ProofError::File {
            path: "127.0.0.1:0".into(),
            doing: "listened at",
            source,
        })?;
        let mut chore = self.chore("etcd", &image.image, words(image, port));
        if let Some(files) = &image.tls {
            chore
                .mounts
                .extend(files.iter().map(|file| Mount::same(file, true)));
        }
        let standing = chore
            .stand(self.host, self.cri, BOOT_LIMIT, self.cancel)
            .await
            .map_err(failed)?;
        let address = format!("127.0.0.1:{port}");
        let booted = Booted {
            member: EtcdMember::from_host(self.host.root(), Some(&address)),
            port,
            secure: image.tls.is_some(),
            prefix: prefix(self.host),
            standing,
        };
        let ready = tokio::select! {
            ready = booted.ready() => ready,
            () = self.cancel.cancelled() => Err(ProofError::Interrupted),
        };
        match ready {
            Ok(()) => Ok(booted),
            Err(error) => {
                // Why it failed says more than that it is slow to go.
                let _ = booted.dismiss().await;
                Err(error)
            }
        }
    }
}

/// The command of an etcd that nobody but this node's root can read: loopback, the node's own certificates, and a
/// peer address that is a socket in a closed directory.
fn words(image: &EtcdImage, port: u16) -> Vec<String> {
    let scheme = if image.tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{port}");
    let mut words = vec![
        "etcd".to_owned(),
        "--name=default".to_owned(),
        format!("--data-dir={WORK}/data"),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls=unix://{WORK}/peer.sock"),
        // The largest that etcd takes without a word, so that a full one can still be written to in a drill.
        format!("--quota-backend-bytes={}", 8_u64 * 1024 * 1024 * 1024),
        "--log-level=warn".to_owned(),
    ];
    if let Some([certificate, key, authority]) = &image.tls {
        words.extend([
            format!("--cert-file={}", certificate.display()),
            format!("--key-file={}", key.display()),
            format!("--trusted-ca-file={}", authority.display()),
            "--client-cert-auth=true".to_owned(),
        ]);
    }
    words
}

/// A port of loopback that nobody listens at now.
pub(super) fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Where the API server of this node keeps its objects.
fn prefix(host: &Host) -> String {
    let directory = directory::scan(host);
    let manifest = directory.manifest(Component::KubeApiserver);
    let flag = manifest.and_then(|m| m.flag("etcd-prefix"));
    format!("/{}/", flag.unwrap_or("registry").trim_matches('/'))
}

/// An etcd on the restored data.
pub(super) struct Booted {
    member: EtcdMember,
    pub(super) port: u16,
    pub(super) secure: bool,
    prefix: String,
    standing: Standing,
}

impl Booted {
    async fn ready(&self) -> Result<(), ProofError> {
        let begun = Instant::now();
        loop {
            let said = match self.member.observe().await {
                Some(seen) if seen.healthy == Tristate::True => return Ok(()),
                seen => seen.map(|s| s.message).unwrap_or_default(),
            };
            match self.standing.check().await {
                Ok(()) | Err(ChoreError::Runtime(_)) if begun.elapsed() < BOOT_LIMIT => {}
                Ok(()) | Err(ChoreError::Runtime(_)) => {
                    return Err(ProofError::Boot {
                        seconds: BOOT_LIMIT.as_secs(),
                        said,
                    });
                }
                Err(source) => {
                    return Err(ProofError::Chore {
                        doing: "the etcd that was booted on it ended",
                        source,
                    });
                }
            }
            sleep(PAUSE).await;
        }
    }

    /// Everything that a verdict is made of.
    pub(super) async fn read(&self, manifest: &Manifest) -> Result<Read, ProofError> {
        let seen = self.member.observe().await.unwrap_or_default();
        // As it was when the manifest was written; compacted since, it cannot be compared.
        let then = manifest.revision;
        Ok(Read {
            keys_then: self.member.count("", then).await.ok(),
            hash_then: match manifest.hash_kv {
                Some(told) => self.member.hash_kv(told.revision).await.ok(),
                None => None,
            },
            revision: self.member.revision().await?,
            keys: self.member.count("", 0).await?,
            objects: self.member.count(&self.prefix, 0).await?,
            prefix: self.prefix.clone(),
            alarms: seen.alarms,
            version: seen.version.unwrap_or_default(),
        })
    }

    /// How many Secrets the API server keeps in it.
    pub(super) async fn secrets(&self) -> Result<i64, ProofError> {
        Ok(self.member.count(&format!("{}secrets/", self.prefix), 0).await?)
    }

    /// An etcd with an alarm takes no write, and an API server is not ready without any.
    pub(super) async fn disarm(&self) -> Result<(), ProofError> {
        Ok(self.member.disarm().await?)
    }

    pub(super) async fn dismiss(self) -> Result<(), ProofError> {
        self.standing.dismiss().await.map_err(|source| ProofError::Chore {
            doing: "the etcd that was booted on it",
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: etcd, namespace: kube-system}
spec:
  containers:
  - name: etcd
    image: registry.k8s.io/etcd:3.6.6-0
    command:
    - etcd
    - --cert-file=/etc/kubernetes/pki/etcd/server.crt
    - --data-dir=/data/etcd
    - --key-file=/etc/kubernetes/pki/etcd/server.key
    - --listen-client-urls=https://127.0.0.1:2379,https://10.77.0.11:2379
    - --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt
";

    fn image(text: &str) -> EtcdImage {
        EtcdImage::from_manifest(&serde_yaml::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn the_etcd_of_a_proof_shares_nothing_with_the_nodes_own_but_its_certificates() {
        let image = image(MANIFEST);
        assert_eq!(image.data_directory, Path::new("/data/etcd"));
        let words = words(&image, 40_000);
        let line = words.join(" ");
        assert!(
            line.contains("--listen-client-urls=https://127.0.0.1:40000 "),
            "{line}"
        );
        assert!(line.contains("--client-cert-auth=true"), "{line}");
        assert!(
            !line.contains("/data/etcd") && !line.contains("10.77") && !line.contains("2379"),
            "{line}"
        );
        for word in words.iter().filter(|w| w.contains("listen-peer")) {
            assert!(word.starts_with("--listen-peer-urls=unix://"), "{word}");
        }
    }

    #[test]
    fn only_the_minor_that_wrote_a_backup_reads_it() {
        let image = image(MANIFEST);
        let backup = |version: &str| {
            serde_json::from_value(serde_json::json!({
                "format": 1, "id": "i", "name": "n", "uid": "u", "node": "n", "clusterId": "c", "memberId": "m",
                "etcdVersion": version, "revision": 1, "sizeBytes": 1, "sha256": "s", "partSizeBytes": 1,
                "startedAt": "2026-11-21T15:00:00Z", "completedAt": "2026-11-21T15:00:01Z",
            }))
            .unwrap()
        };
        image.fits(&backup("3.6.2")).unwrap();
        for other in ["3.5.21", "3.7.0", ""] {
            let error = image.fits(&backup(other)).unwrap_err();
            assert_eq!(
                (error.reason(), error.is_verdict()),
                ("OtherMinor", false),
                "{other}"
            );
        }
    }
}
