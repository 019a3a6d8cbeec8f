//! What a restore needs to see of its own node and of the others.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lockkeeper_crds::{Component, RestoreMember, Tristate};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::{Part, PartSeen, Side};

use super::journal::Entry;
use crate::agent::cri::{Container, Cri, EXITED, RUNNING};
use crate::agent::directory;
use crate::agent::host::{Host, read_limited};
use crate::agent::manifest::Manifest;
use crate::agent::probe::{Target, Trust};
use crate::agent::processes::Asker;

/// A kubelet that has just read a manifest may be about to start it: what is taken off counts as ended when nothing
/// of it was seen for so long.
const QUIET: Duration = Duration::from_secs(3);

/// A process that was told to end and closed its port has nothing left but watches.
const CLOSED: Duration = Duration::from_secs(2);

/// A kubelet looks every 20 s at the latest, and tells the process to end then.
const PATIENCE: Duration = Duration::from_secs(25);

/// The same where the kubelet has got nothing from an API since it started: it takes no pod away.
const PATIENCE_ALONE: Duration = Duration::from_secs(6);

/// Certificates are a few KiB.
const LARGEST: u64 = 1024 * 1024;

/// The eyes of one process. What it remembers is lost with it, and costs a few seconds then.
#[derive(Debug)]
pub(super) struct Eyes {
    host: Host,
    cri: Cri,
    asker: Asker,
    /// Since when a manifest was seen away, and since when nothing of it runs.
    away: BTreeMap<Part, Away>,
}

#[derive(Clone, Copy, Debug)]
struct Away {
    since: Instant,
    quiet: Option<Instant>,
}

impl Eyes {
    pub(super) fn new(host: Host, cri: Cri) -> Self {
        Self {
            asker: Asker::new(host.clone()),
            host,
            cri,
            away: BTreeMap::new(),
        }
    }

    /// The four static pods. `alone`: the kubelet has no API, so it takes no pod away. `kept`: the API server's
    /// manifest as it was before it was taken off.
    pub(super) async fn parts(&mut self, alone: bool, kept: Option<&Manifest>) -> BTreeMap<Part, PartSeen> {
        let containers = self.cri.containers().await;
        if let Err(error) = &containers {
            tracing::warn!(%error, "the container runtime cannot be asked");
        }
        let mut all = BTreeMap::new();
        for part in Part::ALL {
            let on = self.host.manifests().join(format!("{part}.yaml")).exists();
            let there: Option<Vec<&Container>> = containers
                .as_ref()
                .ok()
                .map(|all| all.iter().filter(|c| c.is_of_static_pod(part.name())).collect());
            let ready = on && part == Part::KubeApiserver && self.ready().await;
            let running = match &there {
                None => None,
                Some(there) if on => {
                    self.away.remove(&part);
                    Some(there.iter().any(|c| c.state == RUNNING))
                }
                Some(there) => self.ending(part, there, alone, kept).await,
            };
            all.insert(part, PartSeen { on, running, ready });
        }
        all
    }

    /// A pod whose manifest is away: whether it still runs; none while that cannot be said for sure. What is slow to
    /// end is ended.
    async fn ending(
        &mut self,
        part: Part,
        there: &[&Container],
        alone: bool,
        kept: Option<&Manifest>,
    ) -> Option<bool> {
        let now = Instant::now();
        let away = self.away.entry(part).or_insert(Away {
            since: now,
            quiet: None,
        });
        // One that is created is about to run.
        let living: Vec<&&Container> = there.iter().filter(|c| c.state != EXITED).collect();
        if living.is_empty() {
            let quiet = *away.quiet.get_or_insert(now);
            return (now - quiet >= QUIET).then_some(false);
        }
        away.quiet = None;
        let since = away.since;
        let closed = part == Part::KubeApiserver && now - since >= CLOSED && !self.listens(kept).await;
        let patience = if alone { PATIENCE_ALONE } else { PATIENCE };
        if closed || now - since >= patience {
            for container in living {
                match self.cri.kill(&container.id).await {
                    Ok(()) => tracing::info!(%part, container = container.id, "ended what was slow to end"),
                    Err(error) => tracing::warn!(%part, %error, "could not be ended"),
                }
            }
        }
        Some(true)
    }

    /// Whether this node's API server is ready, by the manifest that is on.
    async fn ready(&self) -> bool {
        let file = directory::read_component(&self.host, Component::KubeApiserver);
        let directory::ManifestFile::Known {
            manifest: Ok(manifest),
            ..
        } = file
        else {
            return false;
        };
        let Ok(target) = self.asker.target(Component::KubeApiserver, &manifest) else {
            return false;
        };
        let said = self.asker.readiness(Component::KubeApiserver, &target).await;
        said.ready == Tristate::True
    }

    /// Whether anybody listens where the API server that was taken off did, by the copy of its manifest. Where that is
    /// not known, somebody may: it has the time to end by itself that any other process has.
    async fn listens(&self, kept: Option<&Manifest>) -> bool {
        let target = kept.and_then(|manifest| self.asker.target(Component::KubeApiserver, manifest).ok());
        match target {
            Some(target) => {
                let said = self.asker.readiness(Component::KubeApiserver, &target).await;
                said.listens
            }
            None => true,
        }
    }

    /// To which cluster the other nodes' members belong, as their peer ports say. These answer without a quorum.
    pub(super) async fn peers(&self, entry: &Entry) -> BTreeMap<NodeName, Side> {
        let others: Vec<&RestoreMember> = entry
            .order
            .members
            .iter()
            .filter(|m| m.node != entry.node.as_ref())
            .collect();
        if others.is_empty() {
            return BTreeMap::new();
        }
        let read = |path: &std::path::Path| read_limited(&self.host.reach(path), LARGEST);
        let [ca, certificate, key] = &entry.place.peer_files;
        let trust = match (read(ca), read(certificate), read(key)) {
            (Ok(ca), Ok(certificate), Ok(key)) => Trust::peer(&ca, &certificate, &key),
            _ => {
                tracing::warn!("etcd's peer certificates cannot be read, so no other member is asked");
                return BTreeMap::new();
            }
        };
        let trust = match trust {
            Ok(trust) => trust,
            Err(error) => {
                tracing::warn!(%error, "etcd's peer certificates are of no use, so no other member is asked");
                return BTreeMap::new();
            }
        };
        let asked = others.into_iter().map(|member| {
            let trust = trust.clone();
            async move {
                let address = peer_address(&member.peer_urls)?;
                let target = Target::at(address, trust);
                let id = match target.header("/members", "x-etcd-cluster-id").await {
                    Ok(id) => id?,
                    Err(error) => {
                        tracing::debug!(node = member.node, %error, "no answer of its member");
                        return None;
                    }
                };
                let side = if id == entry.order.cluster_id {
                    Side::Old
                } else {
                    Side::New
                };
                Some((NodeName::from(member.node.as_str()), side))
            }
        });
        futures::future::join_all(asked)
            .await
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The first of a member's peer URLs, where it is `https://<address>:<port>`.
pub(super) fn peer_address(urls: &str) -> Option<SocketAddr> {
    let first = urls.split(',').next()?;
    first.strip_prefix("https://")?.trim_end_matches('/').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::manifest;

    #[tokio::test]
    async fn whether_anybody_listens_is_asked_where_the_manifest_said() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(
            root.path(),
            std::path::Path::new("/manifests"),
            std::path::Path::new("/state"),
        );
        let eyes = Eyes::new(host, Cri::new("unix:///nowhere").unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: kube-apiserver, namespace: kube-system}}\nspec:\n  containers:\n  - name: kube-apiserver\n    image: registry.k8s.io/kube-apiserver:v1.35.4\n    command: [kube-apiserver, --advertise-address=127.0.0.1, --secure-port={port}]\n"
        );
        let path = std::path::Path::new("kube-apiserver.yaml");
        let kept = manifest::parse(path, Component::KubeApiserver, yaml.as_bytes()).unwrap();
        assert!(eyes.listens(Some(&kept)).await);
        drop(listener);
        assert!(!eyes.listens(Some(&kept)).await);
        assert!(eyes.listens(None).await, "what is not known is not closed");
    }

    #[test]
    fn a_peer_is_asked_at_its_address_and_never_without_tls() {
        assert_eq!(
            peer_address("https://10.0.0.1:2380"),
            Some(([10, 0, 0, 1], 2380).into())
        );
        assert_eq!(
            peer_address("https://[fd00::1]:2380,https://x").map(|a| a.port()),
            Some(2380)
        );
        assert_eq!(peer_address("http://10.0.0.1:2380"), None);
        assert_eq!(peer_address("https://name:2380"), None);
    }
}
