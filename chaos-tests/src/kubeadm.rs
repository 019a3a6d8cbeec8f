//! Makes the cluster as a person would: `kubeadm init` on the first node, `kubeadm join` on each other one.
//!
//! Everything is kubeadm's default but what the machine forces: images are never pulled, conntrack limits are
//! left alone (they belong to the machine), nodes are not evicted for the machine's disk, and preflight errors
//! about the missing systemd are ignored.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;

use crate::address;
use crate::node::Node;

/// The longest that `kubeadm init` or `join` may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The secrets with which nodes join, made afresh for each lab.
#[derive(Debug, Clone)]
pub struct Secrets {
    token: String,
    certificate_key: String,
}

impl Secrets {
    /// New ones.
    #[must_use]
    pub fn random() -> Self {
        let mut random = rand::rng();
        let mut word = |length: usize| -> String {
            (0..length)
                .map(|_| char::from_digit(random.random_range(0..36), 36).unwrap_or('0'))
                .collect()
        };
        let token = format!("{}.{}", word(6), word(16));
        Self {
            token,
            certificate_key: crate::cache::hex(&rand::random::<[u8; 32]>()),
        }
    }
}

fn registration(node: &Node) -> serde_json::Value {
    serde_json::json!({
        "criSocket": "unix:///run/containerd/containerd.sock",
        "imagePullPolicy": "Never",
        "kubeletExtraArgs": [{"name": "node-ip", "value": node.address()}],
    })
}

fn endpoint() -> String {
    format!("{}:{}", address::LOAD_BALANCER, address::API_PORT)
}

fn init_config(
    node: &Node,
    secrets: &Secrets,
    kubernetes: &str,
    api_server: &serde_json::Value,
) -> Result<String> {
    documents(&[
        serde_json::json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "bootstrapTokens": [{"token": secrets.token, "ttl": "0s"}],
            "certificateKey": secrets.certificate_key,
            "localAPIEndpoint": {"advertiseAddress": node.address(), "bindPort": address::API_PORT},
            "nodeRegistration": registration(node),
        }),
        serde_json::json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "kubernetesVersion": kubernetes,
            "controlPlaneEndpoint": endpoint(),
            "apiServer": api_server,
            "networking": {"podSubnet": address::PODS, "serviceSubnet": address::SERVICES},
        }),
        serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "failSwapOn": false,
            "failCgroupV1": false,
            "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%", "memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "fileCheckFrequency": "5s",
        }),
        serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "conntrack": {"maxPerCore": 0, "min": 0},
        }),
    ])
}

fn join_config(node: &Node, secrets: &Secrets, ca_hash: &str) -> Result<String> {
    documents(&[serde_json::json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "token": secrets.token, "apiServerEndpoint": endpoint(), "caCertHashes": [ca_hash],
        }},
        "controlPlane": {
            "certificateKey": secrets.certificate_key,
            "localAPIEndpoint": {"advertiseAddress": node.address(), "bindPort": address::API_PORT},
        },
        "nodeRegistration": registration(node),
    })])
}

fn documents(all: &[serde_json::Value]) -> Result<String> {
    let parts: Vec<String> = all.iter().map(serde_yaml::to_string).collect::<Result<_, _>>()?;
    Ok(parts.join("---\n"))
}

fn run(node: &Node, words: &[&str], config: &str) -> Result<String> {
    let log = node.folder().join("kubeadm.log");
    let mut argv = vec!["kubeadm"];
    argv.extend(words);
    argv.extend(["--config", "/dev/stdin"]);
    // Single phases know no such flag.
    if words.get(1) != Some(&"phase") {
        argv.push("--ignore-preflight-errors=all");
    }
    node.run(&argv)?
        .input(config)
        .log(&log)
        .limit(LIMIT)
        .check()
        .with_context(|| format!("kubeadm on {}", node.name()))?;
    std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
}

/// Makes the cluster on its first node. Returns the hash of the cluster's CA, which joining nodes ask for.
/// DNS is left out: nothing here asks for names yet.
pub fn init(node: &Node, secrets: &Secrets, kubernetes: &str) -> Result<String> {
    let config = init_config(node, secrets, kubernetes, &serde_json::json!({}))?;
    let said = run(
        node,
        &["init", "--upload-certs", "--skip-phases=addon/coredns"],
        &config,
    )?;
    ca_hash(&said).context("kubeadm init did not print the hash of the CA")
}

/// Joins a control-plane node.
pub fn join(node: &Node, secrets: &Secrets, ca_hash: &str) -> Result<()> {
    run(node, &["join"], &join_config(node, secrets, ca_hash)?).map(drop)
}

/// The configuration that a person keeps: as at the first `kubeadm init`, with more of the API server's settings.
pub fn kept_config(node: &Node, kubernetes: &str, api_server: &serde_json::Value) -> Result<String> {
    init_config(node, &Secrets::random(), kubernetes, api_server)
}

/// kubeadm by these words, with a configuration. Returns what it has said on this node so far.
pub fn by_words(node: &Node, words: &[&str], config: &str) -> Result<String> {
    run(node, words, config)
}

/// Joins a control-plane node whose CAs are on its disk already, as `kubeadm token create --print-join-command` on
/// another one says.
pub fn join_with_own_pki(node: &Node, said: &str) -> Result<()> {
    let token = said
        .split_whitespace()
        .skip_while(|word| *word != "--token")
        .nth(1);
    let token = token.with_context(|| format!("kubeadm printed no token: {said}"))?;
    let ca_hash = ca_hash(said).with_context(|| format!("kubeadm printed no hash of the CA: {said}"))?;
    let config = documents(&[serde_json::json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "token": token, "apiServerEndpoint": endpoint(), "caCertHashes": [ca_hash],
        }},
        "controlPlane": {
            "localAPIEndpoint": {"advertiseAddress": node.address(), "bindPort": address::API_PORT},
        },
        "nodeRegistration": registration(node),
    })])?;
    run(node, &["join"], &config).map(drop)
}

fn ca_hash(said: &str) -> Option<String> {
    let (_, after) = said.split_once("sha256:")?;
    let hash: String = after.chars().take_while(char::is_ascii_hexdigit).collect();
    (hash.len() == 64).then(|| format!("sha256:{hash}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_found_in_the_join_command() {
        let hash = "0123456789abcdef".repeat(4);
        let said = format!("  --discovery-token-ca-cert-hash sha256:{hash} \\\n  --control-plane");
        assert_eq!(ca_hash(&said), Some(format!("sha256:{hash}")));
        assert_eq!(ca_hash("sha256:12"), None);
    }

    #[test]
    fn secrets_have_kubeadms_form() {
        let secrets = Secrets::random();
        let (id, secret) = secrets.token.split_once('.').unwrap();
        assert_eq!(
            (id.len(), secret.len(), secrets.certificate_key.len()),
            (6, 16, 64)
        );
    }
}
