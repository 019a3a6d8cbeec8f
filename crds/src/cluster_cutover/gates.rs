//! What must hold for a cutover to go on.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::OnLoss;
use crate::LocalReference;

/// Rounds of questions: http, promQL, cel or a job, exactly one of them. A round passes, fails, or its answer is not
/// known. Enough rounds in a row that fail take all traffic back; enough that pass let a step end. One that is not known
/// has not passed, and begins the row of passes anew; it is no failure either, unless `whenUnknown` says so.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.http), has(self.promQL), has(self.cel), has(self.job)].filter(there, there).size() == 1").message("a gate asks one thing, http, promQL, cel or job: give exactly one, and make a gate of its own for each other"))]
#[x_kube(validation = Rule::new("!has(self.job) || self.intervalSeconds >= 10").message("a gate with a job needs an intervalSeconds of 10 or more: each round makes a Job"))]
#[x_kube(validation = Rule::new("self.at.all(a, self.at.exists_one(b, b == a))").message("the gate's at names a moment twice"))]
pub struct CutoverGate {
    /// Short and stable; in the status, in events and in metrics.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Requests that must be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpGate>,
    /// A query that must give values within bounds.
    #[serde(rename = "promQL", default, skip_serializing_if = "Option::is_none")]
    pub prom_ql: Option<PromQlGate>,
    /// An expression over objects of a cluster that must be true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cel: Option<CelGate>,
    /// A Job that must complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobGate>,
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
    /// What a round means whose answer is not known: `Hold`, nothing moves until it is known again; `GoBack`, it
    /// counts as failed. To http no answer is a failure, whatever is set here.
    #[serde(default = "hold")]
    pub when_unknown: OnLoss,
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

const fn hold() -> OnLoss {
    // Monitoring that is away says nothing about green.
    OnLoss::Hold
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

/// An instant query to a Prometheus, or to whatever has its HTTP API. A round passes when every value of the answer is
/// within the bounds, and fails when one is not. It is not known: without an answer or with an error, with no value, with
/// a value that is no finite number (`NaN`: nothing divided by nothing), with a warning (the answer may be a part), with
/// a time that is not now (a cache), or with anything but a scalar or an instant vector.
///
/// A query that is written like an alert, which gives nothing when all is well, never passes: compare by `min` and `max`
/// instead, or end it with `or vector(0)`. What a server no longer gets is gone from its answers at once where a scrape
/// fails, and after five minutes where none is tried.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.min) || has(self.max)").message("a promQL gate has no bound: set min, max or both"))]
#[x_kube(validation = Rule::new("!has(self.min) || !has(self.max) || self.min <= self.max").message("a promQL gate's min is above its max: nothing is within them"))]
#[x_kube(validation = Rule::new("!has(self.tokenSecret) || self.url.startsWith('https://')").message("a promQL gate's url must begin with https:// where a tokenSecret is named: anything else sends the token in the clear"))]
pub struct PromQlGate {
    /// Where the server is; `/api/v1/query` is put after it.
    #[schemars(
        length(min = 8, max = 2048),
        regex(pattern = r"^https?://[^/\s?#@]+[^\s?#]*$")
    )]
    pub url: String,
    /// In PromQL.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,
    /// No value may be below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// No value may be above it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Seconds for an answer.
    #[serde(default = "query_timeout")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: u32,
    /// Sent along: `X-Scope-OrgID` to ask for a tenant. Not for secrets: anybody who may read the object reads them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 20))]
    pub headers: BTreeMap<String, String>,
    /// A Secret in the operator's namespace whose key `token` goes along as `Authorization: Bearer …`. The chart's
    /// `cutover.secretNames` must name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret: Option<LocalReference>,
    /// Certificates (PEM) of the authorities that may have signed the server's. Absent: the image's own set of
    /// public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub ca_bundle: Option<String>,
}

const fn query_timeout() -> u32 {
    5
}

/// In which cluster a gate looks or works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GateCluster {
    /// Blue.
    Blue,
    /// Green.
    Green,
    /// That in which this object lies.
    This,
}

impl std::fmt::Display for GateCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Blue => "blue",
            Self::Green => "green",
            Self::This => "the operator's own cluster",
        })
    }
}

/// An expression in the Common Expression Language over objects of one kind. With `name` it sees `object`, else
/// `objects`, a list. A round passes when it is true, and fails when it is false, when the named object is not there, or
/// when there is no object at all: `objects.all(…)` of nothing is true. It is not known while the cluster does not
/// answer, while a field is not there that the expression takes for granted (ask `has()` first), or when it gives
/// anything but true or false.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.name) || !has(self.labelSelector)").message("a cel gate has a name and a labelSelector: give one of them, or neither for all objects"))]
#[x_kube(validation = Rule::new("!has(self.name) || !self.mayBeEmpty").message("a cel gate's mayBeEmpty is for lists: a named object must be there"))]
pub struct CelGate {
    /// Whose objects.
    pub cluster: GateCluster,
    /// As in a manifest: `v1`, `apps/v1`.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?v[a-z0-9]+$")
    )]
    pub api_version: String,
    /// As in a manifest: `Deployment`.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Z][A-Za-z0-9]*$"))]
    pub kind: String,
    /// Absent: of every namespace, or of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
    /// One object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Only what bears these labels, as `kubectl --selector` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub label_selector: Option<String>,
    /// At most 1000 objects and 16 MiB of them are looked at; more, and nothing is known.
    #[schemars(length(min = 1, max = 2048))]
    pub expression: String,
    /// True: where there is no object the expression decides, `size(objects) == 0`.
    #[serde(default)]
    pub may_be_empty: bool,
}

/// A Job a round, made in a namespace that is there. A round passes when it completes, and fails when it fails or takes
/// too long. One runs at a time; an operator that is restarted finds it again. The last one is kept for its logs, for
/// `ttlSecondsAfterFinished` (an hour unless the template says otherwise).
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobGate {
    /// Where it runs.
    pub cluster: GateCluster,
    /// In which namespace.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub namespace: String,
    /// Seconds that it may take altogether (`activeDeadlineSeconds`).
    #[serde(default = "job_timeout")]
    #[schemars(range(min = 1, max = 86400))]
    pub timeout_seconds: u32,
    /// The Job, as in a `CronJob`'s `jobTemplate`: `metadata` with labels and annotations, and `spec`. Mind that a Job is
    /// tried seven times unless its `backoffLimit` says otherwise.
    #[schemars(schema_with = "super::job_template")]
    pub template: serde_json::Value,
}

const fn job_timeout() -> u32 {
    300
}
