//! `ClusterCutover`: traffic and duty go from one cluster to another in weighted steps, and back.

mod capacity;
mod duty;
mod gates;
mod parity;
mod status;
mod traffic;

pub use capacity::*;
pub use duty::*;
pub use gates::*;
pub use parity::*;
pub use status::*;
pub use traffic::*;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What goes from where to where, and how carefully.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "ClusterCutover",
    plural = "clustercutovers",
    shortname = "cutover",
    category = "lockkeeper",
    status = "ClusterCutoverStatus",
    derive = "PartialEq",
    doc = "Moves traffic from one cluster (blue) to another (green) in weighted steps with gates, and back when one fails. Immutable but for promote, paused and abort.",
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.active",
        description = "the cluster that has most of the traffic, as it was seen"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "Green",
        type_ = "integer",
        json_path = ".status.weights.seen.green",
        description = "percent of the traffic, as it was seen"
    ),
    printcolumn(
        name = "Wanted",
        type_ = "integer",
        json_path = ".status.weights.wanted.green"
    ),
    printcolumn(
        name = "Rollback",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"RollbackPossible\")].status"
    ),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(
        name = "Failed",
        type_ = "integer",
        json_path = ".status.spent.failedRequests",
        description = "requests of gates",
        priority = 1
    ),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused", priority = 1),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.blue == oldSelf.blue && self.green == oldSelf.green && self.traffic == oldSelf.traffic && self.steps == oldSelf.steps && self.gates == oldSelf.gates && has(self.budget) == has(oldSelf.budget) && (!has(self.budget) || self.budget == oldSelf.budget) && self.rollbackWindowSeconds == oldSelf.rollbackWindowSeconds && self.whenLost == oldSelf.whenLost && self.singletons == oldSelf.singletons && self.handOverSeconds == oldSelf.handOverSeconds && has(self.freeze) == has(oldSelf.freeze) && (!has(self.freeze) || self.freeze == oldSelf.freeze)").message("a ClusterCutover cannot be changed but for spec.promote, spec.paused and spec.abort: make a new one"),
    validation = Rule::new("has(self.parity) == has(oldSelf.parity) && (!has(self.parity) || self.parity == oldSelf.parity)").message("spec.parity cannot be changed: make a new ClusterCutover"),
    validation = Rule::new("self.capacity == oldSelf.capacity && self.acceptedControllers == oldSelf.acceptedControllers").message("spec.capacity and spec.acceptedControllers cannot be changed: make a new ClusterCutover"),
    validation = Rule::new("!oldSelf.abort || self.abort").message("spec.abort was given and cannot be taken back: make a new ClusterCutover to begin again"),
    validation = Rule::new("self.promote >= oldSelf.promote").message("spec.promote can only be raised: set spec.abort to go back"),
    validation = Rule::new("!(self.blue.thisCluster && self.green.thisCluster)").message("spec.blue and spec.green are both this cluster: a cutover goes from one cluster to another").field_path(".green"),
    validation = Rule::new("!has(self.blue.kubeconfigSecret) || !has(self.green.kubeconfigSecret) || self.blue.kubeconfigSecret.name != self.green.kubeconfigSecret.name || self.blue.kubeconfigSecret.key != self.green.kubeconfigSecret.key").message("spec.blue and spec.green name the same kubeconfig: a cutover goes from one cluster to another").field_path(".green")
)]
pub struct ClusterCutoverSpec {
    /// Where everything is now.
    pub blue: ClusterAccess,

    /// Where it goes.
    pub green: ClusterAccess,

    /// What moves the traffic.
    pub traffic: Traffic,

    /// Green's shares of the traffic, one after the other, up to 100.
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self[size(self) - 1].green == 100").message("spec.steps do not end at 100: the last step gives green all traffic"))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.green == a.green)) && self.map(s, s.green).isSorted()").message("spec.steps do not rise: each step's green must be more than the one before"))]
    pub steps: Vec<CutoverStep>,

    /// What must run in exactly one of the clusters: handed over from blue to green before the last step, one stopped
    /// before the other is started, and back the same way.
    #[serde(default)]
    #[schemars(length(max = 50))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b == a))").message("spec.singletons names something twice"))]
    pub singletons: Vec<Singleton>,

    /// Seconds that the hand-over of the singletons may take; then all goes back.
    #[serde(default = "hand_over")]
    #[schemars(range(min = 10, max = 7200))]
    pub hand_over_seconds: u32,

    /// Writes that blue refuses during the hand-over. Absent: none. Once they are let through again with green at work,
    /// going back loses what green has taken: from then on only a person (`spec.abort`) does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// What green must have before the first step. Objects are compared without what a cluster makes by itself (status,
    /// addresses, node names, tokens), and must be ready in green. `{}`: everything that can be listed but events,
    /// leases, nodes and their like, in every namespace but `kube-*`. Absent: nothing is compared.
    /// `lockkeeper parity` shows the same from a desk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<CutoverParity>,

    /// How much green must have of what blue has before the first step: the CPU, the memory and the pods that the Ready
    /// and schedulable nodes of each offer (`status.allocatable`). Not counted are nodes with a taint that keeps pods
    /// out, unless all of blue's have one.
    #[serde(default)]
    pub capacity: CutoverCapacity,

    /// Controllers that may undo what this cutover does to one of `singletons`, and that are known to be no trouble.
    /// Nothing begins while an Argo CD, a Flux or a KEDA is found to manage what is to be stopped and started
    /// (`spec.replicas`, `spec.suspend`) and is neither suspended nor named here.
    #[serde(default)]
    #[schemars(length(max = 50))]
    pub accepted_controllers: Vec<AcceptedController>,

    /// What must hold before the first step, in each one, and as long as there is a way back.
    #[serde(default)]
    #[schemars(length(max = 20))]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, b.name == a.name))").message("two of spec.gates have the same name"))]
    pub gates: Vec<CutoverGate>,

    /// What may fail altogether before all goes back. Absent: gates alone decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<CutoverBudget>,

    /// Seconds after the last step in which blue is kept as it is and all may still go back, by a gate or by
    /// `spec.abort`. Afterwards the cutover has ended.
    #[serde(default = "rollback_window")]
    #[schemars(range(min = 0, max = 2_592_000))]
    pub rollback_window_seconds: u32,

    /// What happens when the API of a cluster does not answer.
    #[serde(default)]
    pub when_lost: WhenLost,

    /// Steps with `approval` up to this share may begin.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub promote: u8,

    /// True: no step begins. Gates go on, and the way back stays open.
    #[serde(default)]
    pub paused: bool,

    /// True: all traffic goes back to blue, and the cutover ends. It cannot be taken back.
    #[serde(default)]
    pub abort: bool,
}

const fn hand_over() -> u32 {
    // Jobs that run are waited for.
    600
}

const fn rollback_window() -> u32 {
    // A day: the shortest soak with blue warm that the write-ups advise (facts.md 7.4).
    86_400
}

/// How a cluster is reached: one of the two.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.thisCluster != has(self.kubeconfigSecret)").message("a cluster is either thisCluster: true or a kubeconfigSecret: give exactly one"))]
pub struct ClusterAccess {
    /// The cluster in which this object lies.
    #[serde(default)]
    pub this_cluster: bool,
    /// A Secret in the operator's namespace that holds a kubeconfig. The chart's `cutover.secretNames` must name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret: Option<KubeconfigSecret>,
}

impl ClusterAccess {
    /// The Secret in the operator's namespace that it names.
    #[must_use]
    pub fn secret_name(&self) -> Option<&str> {
        self.kubeconfig_secret.as_ref().map(|secret| secret.name.as_str())
    }
}

impl ClusterCutoverSpec {
    /// The Secrets in the operator's namespace that it names.
    #[must_use]
    pub fn secret_names(&self) -> Vec<&str> {
        let clusters = [&self.blue, &self.green].into_iter();
        let kubeconfigs = clusters.filter_map(ClusterAccess::secret_name);
        let tokens = self.gates.iter().filter_map(|gate| gate.prom_ql.as_ref());
        let tokens = tokens.filter_map(|asks| Some(asks.token_secret.as_ref()?.name.as_str()));
        kubeconfigs
            .chain(self.traffic.secret_names())
            .chain(tokens)
            .collect()
    }
}

/// Of a Job. The server that makes it knows its schema, and is asked before anything begins.
fn job_template(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "required": ["spec"],
        "maxProperties": 2,
        "properties": {
            "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
        }
    })
}

/// Where a kubeconfig lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubeconfigSecret {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which of its keys. The kubeconfig must hold its certificates and credentials itself: neither files nor
    /// programs are taken.
    #[serde(default = "kubeconfig_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

fn kubeconfig_key() -> String {
    "kubeconfig".to_owned()
}

/// A share of the traffic, and how long it is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverStep {
    /// Green's share in percent; the rest is blue's.
    #[schemars(range(min = 1, max = 100))]
    pub green: u8,
    /// Seconds from when the weights are seen where they were set until the next step. At least twice the TTL where
    /// the traffic is moved by a DNS.
    #[serde(default = "soak")]
    #[schemars(range(min = 0, max = 604_800))]
    pub soak_seconds: u32,
    /// True: the step begins when `spec.promote` has reached its share.
    #[serde(default)]
    pub approval: bool,
}

const fn soak() -> u32 {
    // facts.md 7.4: at least ten minutes a step.
    600
}

/// What may fail altogether.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.failedRequests) || has(self.failingSeconds)").message("spec.budget sets nothing: set failedRequests or failingSeconds, or leave it out"))]
pub struct CutoverBudget {
    /// More failed requests than these, over all gates and from the first step on, and all goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub failed_requests: Option<u32>,
    /// More seconds than these in which a gate was failing, from the first step on, and all goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 86_400))]
    pub failing_seconds: Option<u32>,
}

/// What happens when the API of a cluster does not answer. No step begins meanwhile, whatever is set here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WhenLost {
    /// Seconds without an answer until a cluster counts as lost.
    #[serde(default = "lost_after")]
    #[schemars(range(min = 5, max = 3600))]
    pub after_seconds: u32,
    /// Blue is lost. It may be the worse place to send traffic to: by default nothing moves.
    #[serde(default = "hold")]
    pub blue: OnLoss,
    /// Green is lost.
    #[serde(default = "go_back")]
    pub green: OnLoss,
}

impl Default for WhenLost {
    fn default() -> Self {
        Self {
            after_seconds: lost_after(),
            blue: hold(),
            green: go_back(),
        }
    }
}

const fn lost_after() -> u32 {
    // Longer than an API server's restart, which a single-node control plane shows as silence.
    60
}

const fn hold() -> OnLoss {
    OnLoss::Hold
}

const fn go_back() -> OnLoss {
    OnLoss::GoBack
}

/// What a loss leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnLoss {
    /// Nothing moves until it answers again.
    Hold,
    /// All traffic goes back to blue.
    GoBack,
}
