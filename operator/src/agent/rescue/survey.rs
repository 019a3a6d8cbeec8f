//! What this node has: the member's data, its own word, and who else answers. Changes nothing.

use std::fs;
use std::path::PathBuf;

use lockkeeper_crds::Component;
use serde::Serialize;

use super::super::etcd::EtcdMember;
use super::super::etcd::members::{Listed, Standing};
use super::super::etcd::peers::{self, PeerFiles};
use super::super::etcd::wal::{self, LogEnd};
use super::super::flags::EtcdPod;
use super::super::host::{Host, read_limited};
use super::super::manifest;
use super::book::{Age, Book, Part};
use super::data;
use super::ground::knock;

/// Manifests are a few KiB.
const LARGEST: u64 = 10 * 1024 * 1024;

/// The cluster's name where no manifest tells one: kubeadm's default.
const CLUSTER: &str = "kubernetes";

/// etcd's manifest, wherever it lies now.
#[derive(Clone, Debug)]
pub(crate) struct EtcdManifest {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) pod: EtcdPod,
}

/// Finds it: in the manifest directory, or among the copies of a rescue that took it off.
///
/// # Errors
/// A sentence when there is none, or it cannot be understood.
pub(crate) fn etcd_manifest(host: &Host) -> Result<EtcdManifest, String> {
    let live = Part::Etcd.path(host);
    let book = Book::new(host.clone());
    let mut places = vec![live.clone()];
    if let Ok(Some(entry)) = book.load() {
        places.extend([Age::New, Age::Old].map(|age| book.copy(&entry.id, Part::Etcd, age)));
    }
    for path in places {
        let bytes = match read_limited(&path, LARGEST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        let pod = EtcdPod::parse(&path, &bytes).map_err(|e| e.to_string())?;
        return Ok(EtcdManifest { path, bytes, pod });
    }
    Err(format!(
        "there is no {}: this node runs no etcd member as kubeadm sets one up. Is this a control-plane node, and --manifest-directory the kubelet's staticPodPath?",
        live.display()
    ))
}

/// The cluster's name, as a person types it to confirm: the controller manager's `--cluster-name`.
pub(crate) fn cluster_name(host: &Host) -> String {
    let component = Component::KubeControllerManager;
    let path = host.manifest(component);
    fs::read(&path)
        .ok()
        .and_then(|bytes| manifest::parse(&path, component, &bytes).ok())
        .and_then(|manifest| manifest.flag("cluster-name").map(str::to_owned))
        .unwrap_or_else(|| CLUSTER.to_owned())
}

/// Another member.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) peer_url: String,
    /// It takes connections.
    pub(crate) alive: bool,
    /// It agrees with a quorum.
    pub(crate) quorum: bool,
    /// Why it does not.
    pub(crate) problem: String,
}

/// What this node has.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Survey {
    /// The cluster's name.
    pub(crate) cluster: String,
    /// The member's name.
    pub(crate) member: String,
    pub(crate) peer_url: String,
    /// By the member itself, else by its image's tag.
    pub(crate) version: Option<String>,
    pub(crate) data_directory: PathBuf,
    /// Bytes; none where there are no data.
    pub(crate) data_bytes: Option<u64>,
    /// The end of its log on disk.
    pub(crate) log: Option<LogEnd>,
    /// The running member's own word.
    pub(crate) standing: Option<Standing>,
    /// A linearizable read through it succeeds.
    pub(crate) quorum: bool,
    /// Why it could not be asked, or does not agree with a quorum.
    pub(crate) problem: String,
    /// Whom the running member lists; empty when it does not answer.
    pub(crate) members: Vec<Listed>,
    /// Every other member that it or its manifest knows of.
    pub(crate) peers: Vec<Peer>,
}

/// Looks.
///
/// # Errors
/// A sentence when this is no node with an etcd member.
pub(crate) async fn survey(host: &Host) -> Result<Survey, String> {
    let manifest = etcd_manifest(host)?;
    let pod = &manifest.pod;
    let member = EtcdMember::by_copy(host.root(), &manifest.path, None);
    let data_directory = pod.data_on_host();
    let here = host.reach(&data_directory);
    let (standing, agreed, members) = tokio::join!(member.standing(), member.agrees(), member.members());
    let mut problem = agreed.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let log = wal::read(&here).unwrap_or_else(|error| {
        problem = format!("the log in {} cannot be read: {error}", here.display());
        None
    });
    let own = own_peer_url(pod);
    let members = match members {
        Ok(members) => members,
        Err(_) => peers::members(&own, peer_files(host, pod).as_ref())
            .await
            .unwrap_or_default(),
    };
    let others = knock_all(host, &manifest, others(pod, &members, &own)).await;
    Ok(Survey {
        cluster: cluster_name(host),
        member: pod.name().to_owned(),
        peers: others,
        peer_url: own,
        version: standing
            .as_ref()
            .ok()
            .map(|s| s.version.clone())
            .filter(|v| !v.is_empty())
            .or_else(|| pod.version().map(|v| v.to_string())),
        data_bytes: data::is_there(&here).then(|| data::size(&here).unwrap_or(0)),
        data_directory,
        log,
        standing: standing.ok(),
        quorum: agreed.is_ok(),
        problem,
        members,
    })
}

pub(crate) fn own_peer_url(pod: &EtcdPod) -> String {
    let urls = pod
        .flag("initial-advertise-peer-urls")
        .or_else(|| pod.flag("listen-peer-urls"))
        .unwrap_or("http://localhost:2380");
    urls.split(',').next().unwrap_or(urls).trim().to_owned()
}

/// Name and peer URL of every other member: of the list, and of the manifest where the list has none of that URL.
fn others(pod: &EtcdPod, members: &[Listed], own: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = members
        .iter()
        .flat_map(|m| m.peer_urls.iter().map(move |url| (m.name.clone(), url.clone())))
        .collect();
    // A list that was read is newer than what the manifest began with.
    if members.is_empty() {
        found.extend(initial_cluster(pod));
    }
    found.retain(|(name, url)| url != own && name != pod.name());
    found
}

/// Name and peer URL of each member in `--initial-cluster`.
pub(crate) fn initial_cluster(pod: &EtcdPod) -> Vec<(String, String)> {
    pod.flag("initial-cluster")
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| pair.trim().split_once('='))
        .map(|(name, url)| (name.to_owned(), url.to_owned()))
        .collect()
}

async fn knock_all(host: &Host, manifest: &EtcdManifest, peers: Vec<(String, String)>) -> Vec<Peer> {
    let knocks = peers.into_iter().map(|(name, peer_url)| async move {
        let answer = knock(&peer_url).await;
        let quorum = match client_url(&manifest.pod, &peer_url) {
            Some(url) if answer.is_ok() => {
                let member = EtcdMember::by_copy(host.root(), &manifest.path, Some(&url));
                member.agrees().await.is_ok()
            }
            _ => false,
        };
        Peer {
            name,
            peer_url,
            alive: answer.is_ok(),
            quorum,
            problem: answer.err().unwrap_or_default(),
        }
    });
    futures::future::join_all(knocks).await
}

/// The files with which a member asks its peers; none without TLS.
fn peer_files(host: &Host, pod: &EtcdPod) -> Option<PeerFiles> {
    let file = |name: &str| pod.flag(name).map(|path| host.reach(std::path::Path::new(path)));
    Some(PeerFiles {
        ca: file("peer-trusted-ca-file")?,
        certificate: file("peer-cert-file")?,
        key: file("peer-key-file")?,
    })
}

/// The client URL of a member at a peer URL: the same host, this node's own client port.
pub(crate) fn client_url(pod: &EtcdPod, peer: &str) -> Option<String> {
    let peer: http::Uri = peer.parse().ok()?;
    let own = pod
        .flag("advertise-client-urls")
        .or_else(|| pod.flag("listen-client-urls"));
    let own: Option<http::Uri> = own.and_then(|urls| urls.split(',').next_back()?.trim().parse().ok());
    let port = own.as_ref().and_then(http::Uri::port_u16).unwrap_or(2379);
    let scheme = own.as_ref().and_then(http::Uri::scheme_str).unwrap_or("https");
    Some(format!("{scheme}://{}:{port}", peer.host()?))
}

/// The copy to choose where several are left, as a sentence.
pub(crate) const CHOICE: &str = "Where several data directories are left, recover from the one whose log ends with the highest term, and of those the highest index: run `lockkeeper rescue journal` on each node, and there give what it shows on the others, --beside TERM/INDEX.";

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn pod(flags: &[&str]) -> EtcdPod {
        let flags: String = flags.iter().map(|f| format!("    - {f}\n")).collect();
        let text = format!(
            "kind: Pod\nmetadata: {{name: etcd, namespace: kube-system}}\nspec:\n  containers:\n  - name: etcd\n    image: r/etcd:3.6.6-0\n    command:\n    - etcd\n{flags}"
        );
        EtcdPod::parse(Path::new("etcd.yaml"), text.as_bytes()).unwrap()
    }

    #[test]
    fn the_survivors_client_url_has_this_nodes_port() {
        let plain = pod(&["--advertise-client-urls=https://10.0.0.2:3379"]);
        assert_eq!(
            client_url(&plain, "https://10.0.0.1:2380").as_deref(),
            Some("https://10.0.0.1:3379")
        );
        assert_eq!(
            client_url(&pod(&["--name=a"]), "https://[fd00::1]:2380").as_deref(),
            Some("https://[fd00::1]:2379")
        );
    }

    #[test]
    fn the_others_are_those_of_the_list_and_else_of_the_manifest() {
        let pod = pod(&[
            "--name=b",
            "--initial-cluster=a=https://10.0.0.1:2380,b=https://10.0.0.2:2380",
        ]);
        let own = "https://10.0.0.2:2380";
        assert_eq!(
            others(&pod, &[], own),
            [("a".into(), "https://10.0.0.1:2380".into())]
        );
        let listed = |name: &str, url: &str| Listed {
            id: 1,
            name: name.into(),
            peer_urls: vec![url.into()],
            client_urls: vec![],
            learner: false,
        };
        let members = [listed("b", own), listed("c", "https://10.0.0.3:2380")];
        assert_eq!(
            others(&pod, &members, own),
            [("c".into(), "https://10.0.0.3:2380".into())]
        );
    }
}
