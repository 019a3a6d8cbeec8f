//! What must run in exactly one of the clusters, and the refusal of writes while it changes hands.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that must run in exactly one of the clusters: before the last step it is stopped in blue, proven stopped,
/// and then started in green. In green it must be there beforehand, stopped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Singleton {
    /// What it is.
    pub kind: SingletonKind,
    /// Its namespace, the same in both clusters.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: String,
    /// Its name, the same in both clusters.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl std::fmt::Display for Singleton {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// What can be handed over, and how it is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SingletonKind {
    /// By `spec.suspend`; Jobs of it that run are waited for.
    CronJob,
    /// By `spec.replicas: 0`; its pods are waited for. It gets its replicas back where it is started.
    Deployment,
    /// As a Deployment.
    StatefulSet,
}

impl std::fmt::Display for SingletonKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::CronJob => "CronJob",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
        })
    }
}

/// Writes to blue's API are refused while what runs once is handed over and until the last client heeds that green has
/// all traffic, so that nothing is written there that green does not get.
///
/// Refused are creations, changes and deletions of objects in these namespaces, by everybody but the cluster's own
/// components and Lockkeeper. What an application writes into its database is not: that is the application's own to
/// stop.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Freeze {
    /// The namespaces.
    #[schemars(
        length(min = 1, max = 50),
        inner(
            length(min = 1, max = 63),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
        )
    )]
    #[x_kube(validation = Rule::new("!self.exists(n, n.startsWith('kube-'))").message("spec.freeze.namespaces names one of Kubernetes' own: the control plane could not work in it"))]
    pub namespaces: Vec<String>,
    /// The longest that they are refused, in seconds: for the hand-over, the setting of 100 % and what that takes to
    /// settle (`settlesInSeconds`; for a DNS twice its `cutoverTtlSeconds`). The cluster itself ends it then, also when
    /// nobody comes back to lift it; what is not done by then goes back.
    #[serde(default = "longest")]
    #[schemars(range(min = 10, max = 3600))]
    pub longest_seconds: u32,
}

const fn longest() -> u32 {
    // A pod's default grace of 30 s to end, and as long again to come up, twice over.
    120
}

/// Where something that must run once was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SingletonStatus {
    /// `Deployment shop/consumer`.
    pub what: String,
    /// How it was found in blue.
    pub blue: String,
    /// How it was found in green.
    pub green: String,
}

/// A freeze as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FreezeStatus {
    /// Whether writes are refused; absent: that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// Since when, while they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Seconds in which they were, once they are no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}
