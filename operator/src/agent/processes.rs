//! The processes' own word: where each listens, whether it is ready, and which version it is.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use lockkeeper_crds::{Component, Tristate};

use super::host::{Host, read_limited};
use super::manifest::Manifest;
use super::probe::{ProbeError, Target, Trust, build_version, git_version};

/// The agent's own token, where it is mounted.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Certificates are a few KiB.
const LARGEST_CERTIFICATE: u64 = 1024 * 1024;

/// What a process says of its readiness.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) ready: Tristate,
    /// Why it is not ready or could not be asked.
    pub(crate) message: String,
    /// Whether it takes connections.
    pub(crate) listens: bool,
}

/// Asks the processes of this node.
#[derive(Debug)]
pub(crate) struct Asker {
    host: Host,
    token: PathBuf,
}

impl Asker {
    pub(crate) fn new(host: Host) -> Self {
        Self {
            host,
            token: PathBuf::from(TOKEN),
        }
    }

    /// Where the process listens, by its own flags.
    pub(crate) fn target(&self, component: Component, manifest: &Manifest) -> Result<Target, ProbeError> {
        let (address_flag, usual_port) = match component {
            Component::KubeApiserver => ("advertise-address", 6443),
            Component::KubeControllerManager => ("bind-address", 10257),
            Component::KubeScheduler => ("bind-address", 10259),
        };
        let address = manifest
            .flag(address_flag)
            .and_then(|text| text.parse::<IpAddr>().ok())
            .filter(|address| !address.is_unspecified())
            .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let port = manifest
            .flag("secure-port")
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual_port);
        Target::new(address, port, || {
            let ca = read_limited(&self.host.kubernetes().join("pki/ca.crt"), LARGEST_CERTIFICATE).ok();
            let leaf = manifest
                .flag("tls-cert-file")
                .and_then(|path| read_limited(&self.host.reach(Path::new(path)), LARGEST_CERTIFICATE).ok());
            Trust::node(ca.as_deref(), leaf.as_deref())
        })
    }

    fn token(&self) -> Option<String> {
        // Read anew each time: the kubelet renews it.
        std::fs::read_to_string(&self.token)
            .ok()
            .map(|t| t.trim().to_owned())
    }

    pub(crate) async fn readiness(&self, component: Component, target: &Target) -> Readiness {
        let mut answer = target.get("/readyz", None).await;
        if let Ok((status, _)) = &answer {
            answer = match status {
                // Anonymous questions may be forbidden.
                401 | 403 => target.get("/readyz", self.token().as_deref()).await,
                // Controller managers know /healthz only.
                404 if component != Component::KubeApiserver => target.get("/healthz", None).await,
                _ => answer,
            };
        }
        let listens = !matches!(answer, Err(ProbeError::Refused));
        let (ready, message) = match answer {
            Ok((200, _)) => (Tristate::True, String::new()),
            Ok((401 | 403, _)) => (
                Tristate::Unknown,
                format!("{target} does not let the agent ask /readyz"),
            ),
            Ok((status, body)) => (
                Tristate::False,
                format!("{target} answers {status} {}", failing(&body)),
            ),
            Err(error @ (ProbeError::Connect(_) | ProbeError::Refused)) => {
                (Tristate::False, format!("{target}: {error}"))
            }
            Err(error) => (Tristate::Unknown, format!("{target}: {error}")),
        };
        Readiness {
            ready,
            message,
            listens,
        }
    }

    pub(crate) async fn version(&self, component: Component, target: &Target) -> Result<String, String> {
        let token = self.token();
        if component == Component::KubeApiserver {
            let mut answer = target.get("/version", None).await;
            if matches!(answer, Ok((401 | 403, _))) {
                answer = target.get("/version", token.as_deref()).await;
            }
            return match answer {
                Ok((200, body)) => {
                    git_version(&body).ok_or_else(|| format!("{target} gives no gitVersion at /version"))
                }
                Ok((status, _)) => Err(format!("{target} answers {status} at /version")),
                Err(error) => Err(format!("{target}: {error}")),
            };
        }
        match target.find("/metrics", token.as_deref(), build_version).await {
            Ok((200, Some(version))) => Ok(version),
            Ok((200, None)) => Err(format!("{target} gives no kubernetes_build_info at /metrics")),
            Ok((status, _)) => Err(format!(
                "{target} answers {status} at /metrics, where its version stands"
            )),
            Err(error) => Err(format!("{target}: {error}")),
        }
    }
}

/// The failing checks in an answer of /readyz, or its first words.
fn failing(body: &str) -> String {
    let failed: Vec<_> = body
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .map(|line| {
            line.split_once(" failed")
                .map_or(line, |(name, _)| name)
                .to_owned()
        })
        .collect();
    if failed.is_empty() {
        body.split_whitespace().take(12).collect::<Vec<_>>().join(" ")
    } else {
        format!("(failing: {})", failed.join(", "))
    }
}

/// `--advertise-address` and `--secure-port`.
pub(crate) fn api_address(manifest: &Manifest) -> Option<String> {
    let address: IpAddr = manifest.flag("advertise-address")?.parse().ok()?;
    let port = manifest.flag("secure-port").unwrap_or("6443").parse().ok()?;
    Some(std::net::SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_checks_are_named() {
        assert_eq!(
            failing(
                "[+]ping ok\n[-]etcd failed: reason withheld\n[-]informer-sync failed: x\nreadyz check failed"
            ),
            "(failing: etcd, informer-sync)"
        );
    }
}
