//! What must hold for a cutover to go on.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rounds of questions. Enough rounds in a row that fail take all traffic back; enough that pass let a step end.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.at.all(a, self.at.exists_one(b, b == a))").message("the gate's at names a moment twice"))]
pub struct CutoverGate {
    /// Short and stable; in the status, in events and in metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Requests that must be answered.
    pub http: HttpGate,
    /// When it counts.
    #[serde(default = "always")]
    #[schemars(length(min = 1, max = 3))]
    pub at: Vec<GateMoment>,
    /// Seconds from the beginning of one round to that of the next.
    #[serde(default = "interval")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: u32,
    /// Rounds in a row that must pass, once the weights are seen, before a step ends.
    #[serde(default = "passes")]
    #[schemars(range(min = 1, max = 1000))]
    pub passes: u32,
    /// Rounds in a row that must fail before all goes back.
    #[serde(default = "failures")]
    #[schemars(range(min = 1, max = 1000))]
    pub failures: u32,
}

/// When a gate counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateMoment {
    /// Before the first step: it must pass for the cutover to begin.
    Before,
    /// In each step.
    Steps,
    /// After the last step, as long as there is a way back.
    Window,
}

fn always() -> Vec<GateMoment> {
    vec![GateMoment::Before, GateMoment::Steps, GateMoment::Window]
}

const fn interval() -> u32 {
    // From a failing round to the way back in a few seconds, at a load that nobody notices.
    2
}

const fn passes() -> u32 {
    3
}

const fn failures() -> u32 {
    // One round may meet a server that is just being replaced.
    2
}

/// GET requests, some at a time. One passes when an answer with a wanted status, and with the wanted text where one is
/// given, comes in time; redirects are not followed. Through the edge a round sees both clusters by their weights;
/// green's own address tells of green alone.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGate {
    /// Where to.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^/\s]+"))]
    pub url: String,
    /// Sent with each request; `Host` to ask an address for a name. Not for secrets: anybody who may read the object
    /// reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 20))]
    pub headers: BTreeMap<String, String>,
    /// Requests in a round, each on a connection of its own.
    #[serde(default = "requests")]
    #[schemars(range(min = 1, max = 200))]
    pub requests: u32,
    /// So many percent of a round's requests may fail.
    #[serde(default)]
    #[schemars(range(min = 0, max = 99))]
    pub max_failed_percent: u8,
    /// Seconds for an answer.
    #[serde(default = "timeout")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: u32,
    /// The statuses that are wanted. Empty: 200 to 299.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(range(min = 100, max = 599)))]
    pub statuses: Vec<u16>,
    /// A text that the answer must have within its first 64 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub contains: Option<String>,
    /// Certificates (PEM) of the authorities that may have signed the server's. Absent: the image's own set of
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub ca_bundle: Option<String>,
}

const fn requests() -> u32 {
    // Ten requests see one failure in ten with 65 %, in three rounds with 96 %.
    10
}

const fn timeout() -> u32 {
    3
}
