//! What became of a cutover.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FreezeStatus, ParityStatus, SingletonStatus, Weights};
use crate::{Check, Held};

/// Where a cutover stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum CutoverState {
    /// What must hold before the first step is looked at.
    #[default]
    Preflight,
    /// Something stands in the way of a beginning; nothing was touched.
    Blocked,
    /// A step waits for `spec.promote`.
    AwaitingApproval,
    /// `spec.paused`.
    Paused,
    /// Weights are being set, or looked at.
    Shifting,
    /// It cannot go on, nor was it sent back: see `held`.
    Held,
    /// Green has all traffic; blue is kept as it is.
    RollbackWindow,
    /// All traffic goes back to blue.
    RollingBack,
    /// An end: green has all traffic.
    Completed,
    /// An end: blue has all traffic.
    RolledBack,
}

impl CutoverState {
    /// True when nothing more will happen.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::RolledBack)
    }
}

/// One of the two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Colour {
    /// Where everything was.
    Blue,
    /// Where it goes.
    Green,
}

/// What became of a cutover.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCutoverStatus {
    /// The `metadata.generation` that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands.
    #[serde(default)]
    pub state: CutoverState,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// A sentence.
    #[serde(default)]
    pub message: String,
    /// The cluster that has most of the traffic, as it was last seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Colour>,
    /// The weights.
    #[serde(default)]
    pub weights: WeightsStatus,
    /// What it moves. Another cutover that moves any of it waits until this one has ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// From when on a change of the weights is heeded in time: a longer TTL was lowered before the first step, and has
    /// run out then. It is put back at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared_until: Option<Time>,
    /// The step in hand, from 1; absent before the first and on the way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// `spec.steps`, counted.
    #[serde(default)]
    pub steps: u32,
    /// The last rounds of the gates.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default)]
    pub gates: Vec<GateStatus>,
    /// What was lost from the first step on.
    #[serde(default)]
    pub spent: CutoverSpent,
    /// What was looked at before the first step.
    #[serde(default)]
    pub preflight: Vec<Check>,
    /// Whether green has what blue has, as it was last compared before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<ParityStatus>,
    /// The two clusters.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["colour".into()]))]
    #[serde(default)]
    pub clusters: Vec<CutoverCluster>,
    /// What must run once, and where it was seen; absent where nothing does.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["what".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub singletons: Vec<SingletonStatus>,
    /// Writes that blue refuses; absent where `spec.freeze` is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<FreezeStatus>,
    /// Whether all could still go back.
    #[serde(default)]
    pub rollback: RollbackStatus,
    /// Why nothing moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// The operator's memory. Everything else is seen anew each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<CutoverMemory>,
    /// The stages that it went through, the newest last.
    #[serde(default)]
    pub history: Vec<CutoverEntry>,
    /// When the first weight was to be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// `Preflighted`, `RollbackPossible`; and `Ready`, `Reconciling`, `Stalled`, `Settled` as for a `ClusterVersion`.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// The weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WeightsStatus {
    /// As this stage has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Weights>,
    /// As they were last read where they are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Weights>,
    /// Where they were read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Why they cannot be read now; empty when they can.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unknown: String,
}

/// A gate's last round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GateStatus {
    /// As in `spec.gates`.
    pub name: String,
    /// Whether the last round passed.
    pub passed: bool,
    /// Rounds like the last one in a row, as far as this stage counts them.
    pub in_a_row: u32,
    /// What it found.
    pub message: String,
}

/// What was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CutoverSpent {
    /// Requests of gates that failed.
    pub failed_requests: u64,
    /// Seconds in which a gate was failing.
    pub failing_seconds: u64,
}

/// A cluster as it was last seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverCluster {
    /// Which.
    pub colour: Colour,
    /// The UID of its namespace `kube-system`, which tells clusters apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// What its API server runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whether its API answers.
    pub answers: bool,
    /// Why not, or what is wrong with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Whether all could still go back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackStatus {
    /// True: `spec.abort` sends all traffic back to blue.
    pub possible: bool,
    /// Until when, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// A sentence.
    pub message: String,
}

/// What the operator must not forget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverMemory {
    /// Where it stands.
    pub stage: CutoverStage,
    /// The step, from 0, where the stage is one.
    #[serde(default)]
    pub step: u32,
    /// Since when.
    pub since: Time,
    /// When its weights were first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reached: Option<Time>,
    /// The longest end of a freeze that may be in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_until: Option<Time>,
    /// The hand-over has begun: what runs once may be anywhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed: bool,
    /// The freeze was lifted after the hand-over: green may hold writes that blue has not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub diverged: bool,
    /// Why it goes back, or how it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Where a cutover stands, as the protocol knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CutoverStage {
    /// Nothing was touched.
    Checking,
    /// In a step.
    Step,
    /// What runs once is stopped in blue and started in green.
    HandingOver,
    /// Green has all; blue is kept.
    Window,
    /// All goes back.
    Back,
    /// An end.
    Completed,
    /// An end.
    RolledBack,
}

/// A stage that began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutoverEntry {
    /// When.
    pub at: Time,
    /// What began.
    pub stage: CutoverStage,
    /// Green's share.
    pub green: u8,
    /// Why, on the way back and at the end.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}
