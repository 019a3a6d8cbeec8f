//! `ControlPlaneNode`: the contract between the operator and one node's agent.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster_version::DRAIN_SECONDS;
use crate::{Check, Component, LocalReference, RestoreOrder, RestoreProgress, Tristate};

/// What the operator wants of one node. Its name is the node's name.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lockkeeper.dev",
    version = "v1alpha1",
    kind = "ControlPlaneNode",
    plural = "controlplanenodes",
    shortname = "cpn",
    category = "lockkeeper",
    status = "ControlPlaneNodeStatus",
    derive = "PartialEq",
    doc = "The contract between the operator (spec) and the agent of one control-plane node (status). Not for people to edit.",
    printcolumn(name = "Address", type_ = "string", json_path = ".status.address"),
    printcolumn(
        name = "Apiserver",
        type_ = "string",
        json_path = ".status.components[?(@.component==\"kube-apiserver\")].version"
    ),
    printcolumn(name = "Etcd", type_ = "string", json_path = ".status.etcd.version"),
    printcolumn(name = "Ticket", type_ = "integer", json_path = ".spec.ticket.number"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.ticket.state"),
    printcolumn(name = "Seen", type_ = "date", json_path = ".status.observedAt"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.ticket.message")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.ticket) || !has(self.ticket) || self.ticket.number >= oldSelf.ticket.number").message("a ticket's number never falls"))]
pub struct ControlPlaneNodeSpec {
    /// True while something is being done: the agent then reports every few seconds, not every minute.
    #[serde(default)]
    pub attentive: bool,
    /// Checks to make on this node. A new `id` asks for a new round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<PreflightRequest>,
    /// Ticket numbers up to this one are used up, whether or not a ticket was made of them: a number that
    /// was reserved and given up must not be issued later by somebody who does not know of it.
    #[serde(default)]
    pub voided: i64,
    /// The one change in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
    /// The one restore in hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreOrder>,
}

/// Checks to make before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreflightRequest {
    /// Rises with every request of a rollout.
    pub id: i64,
    /// The rollout that asks. A request is known by both.
    #[serde(default)]
    pub rollout: String,
    /// The version whose images are looked for, pulled, and rehearsed.
    pub target: String,
    /// The store that must be reachable and writable from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_ref: Option<LocalReference>,
}

/// A numbered order to change components of one node, all at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// Rises with every ticket of this node, for ever.
    pub number: i64,
    /// The rollout it belongs to.
    pub rollout: String,
    /// What to change.
    pub changes: Vec<Change>,
    /// Seconds from the change until every changed component is ready, or it is undone.
    pub ready_seconds: u32,
    /// Seconds from ready until it is confirmed, or it is undone.
    pub confirm_seconds: u32,
    /// Seconds that an API server which is being replaced has for its requests in flight.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u32,
    /// What the agent does with a ready step that nobody confirms in time.
    #[serde(default)]
    pub unconfirmed: Unconfirmed,
    /// What the operator says of it by now.
    #[serde(default)]
    pub verdict: Verdict,
    /// Why it was withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

const fn drain_seconds() -> u32 {
    DRAIN_SECONDS
}

/// What becomes of a step that is ready and that nobody confirms in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Unconfirmed {
    /// Put the old manifests back: the new version has not been proven.
    #[default]
    Undo,
    /// Keep it: it is the way back, and what it leads to was running before.
    Keep,
}

/// The operator's word on a ticket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// None yet.
    #[default]
    Pending,
    /// The gates passed: keep it.
    Confirmed,
    /// Take it back, or never begin.
    Withdrawn,
}

/// One component's new image. Everything else in its manifest stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Which.
    pub component: Component,
    /// SHA-256 of the manifest it was planned against, lower-case hex. Another file: the ticket is refused.
    pub manifest_hash: String,
    /// The image to run.
    pub image: String,
    /// The version that the process must report.
    pub version: String,
}

/// What the agent sees from the host.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneNodeStatus {
    /// The `metadata.generation` that the agent has read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Rises with every report; a report is as old as the last rise.
    #[serde(default)]
    pub heartbeat: i64,
    /// The agent's clock at the report. For people; freshness is judged by `heartbeat`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
    /// The agent's own version.
    #[serde(default)]
    pub agent_version: String,
    /// Where this node's API server listens, `host:port` (of `--advertise-address` and `--secure-port`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What runs.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["component".into()]))]
    #[serde(default)]
    pub components: Vec<ComponentStatus>,
    /// The local etcd member and the cluster as it sees it; absent when this node has no etcd manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdStatus>,
    /// Certificates and kubeconfig client certificates on this node.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// What is wrong with the manifest directory: strays, doubles, files that do not parse.
    #[serde(default)]
    pub manifest_problems: Vec<String>,
    /// The last preflight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preflight: Option<PreflightReport>,
    /// The last ticket and where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<TicketStatus>,
    /// The last restore and where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreProgress>,
    /// The agent can put a guard beside what it changes (the chart's `agent.guard.enabled`): a static pod that undoes
    /// the change when the node boots into it. A restore in place is made on guarded nodes only.
    #[serde(default)]
    pub guard: Tristate,
    /// `Ready`: the agent sees its host.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One component, from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// Which.
    pub component: Component,
    /// SHA-256 of the manifest file, lower-case hex; absent when there is none or it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_hash: Option<String>,
    /// The image that the manifest asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_image: Option<String>,
    /// The image that the running container has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The running container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// When that container started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// How often the kubelet has started it anew in this pod.
    #[serde(default)]
    pub restarts: u32,
    /// The version that the process itself reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What its own readiness endpoint says, asked on this node.
    #[serde(default)]
    pub ready: Tristate,
    /// Why it is not ready, or could not be asked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The local etcd member, and the cluster as it sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdStatus {
    /// A linearizable read through this member succeeded.
    pub healthy: Tristate,
    /// Why it is not healthy, or could not be asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Server version, e.g. `3.6.6`.
    pub version: Option<String>,
    /// Hexadecimal, as etcdctl prints it.
    pub cluster_id: Option<String>,
    /// Hexadecimal, as etcdctl prints it.
    pub member_id: Option<String>,
    /// The member that it takes for the leader.
    pub leader_id: Option<String>,
    /// Raft term.
    pub raft_term: Option<i64>,
    /// Raft index.
    pub raft_index: Option<i64>,
    /// Applied raft index.
    pub raft_applied_index: Option<i64>,
    /// Size of the database file, bytes.
    pub db_size_bytes: Option<i64>,
    /// Members as it knows them.
    pub members: Vec<EtcdMember>,
    /// Alarms, e.g. `NOSPACE on 8e9e05c52164694d`.
    pub alarms: Vec<String>,
}

/// A member of the etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EtcdMember {
    /// Hexadecimal.
    pub id: String,
    /// Its name; empty while it has never started.
    pub name: String,
    /// A learner has no vote.
    pub learner: bool,
    /// Where its peers reach it.
    #[serde(default)]
    pub peer_urls: Vec<String>,
}

/// A certificate on the node's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// Path on the host.
    pub path: String,
    /// End of its validity.
    pub not_after: Time,
}

/// What the last preflight found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PreflightReport {
    /// The request's.
    pub id: i64,
    /// The request's.
    #[serde(default)]
    pub rollout: String,
    /// False while checks are still being made.
    pub done: bool,
    /// A verdict a check.
    pub checks: Vec<Check>,
}

/// Where a ticket stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketStatus {
    /// The ticket's.
    pub number: i64,
    /// Where it stands.
    pub state: TicketState,
    /// Since when.
    pub since: Time,
    /// When the agent acts by itself: puts the old manifests back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// A sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The life of a ticket on its node. Each is in the journal before it is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TicketState {
    /// The old manifests are in the journal; the new ones are being put in place.
    Applying,
    /// In place; the new processes are not all ready yet.
    Starting,
    /// Ready; waits for the operator's word until the deadline.
    Ready,
    /// Kept. An end.
    Confirmed,
    /// The old manifests are back; their processes are not all ready yet.
    Undoing,
    /// As before. An end.
    Undone,
    /// Its preconditions did not hold; nothing was touched. An end.
    Refused,
}

impl TicketState {
    /// True when the agent does nothing more about it.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Confirmed | Self::Undone | Self::Refused)
    }
}
