//! What green must have before any traffic goes there.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What green must have.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.namespaces) || size(self.namespaces) == 0 || !has(self.accepted) || self.accepted.all(a, !has(a.__namespace__) || a.__namespace__ == '' || a.__namespace__ in self.namespaces)").message("spec.parity.accepted names an object outside of spec.parity.namespaces: correct one of them"))]
pub struct CutoverParity {
    /// Only these, and what lies in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))
    )]
    pub namespaces: Vec<String>,
    /// Only these: `Deployment`, `deployments` or `deployments.apps`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 100),
        inner(
            regex(pattern = r"^[A-Za-z][A-Za-z0-9-]*(\.[a-z0-9.-]+)?$"),
            length(max = 253)
        )
    )]
    pub kinds: Vec<String>,
    /// Only what bears these labels, as `kubectl --selector` takes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub selector: Option<String>,
    /// Differences that are meant, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200))]
    pub accepted: Vec<AcceptedDifference>,
}

/// A difference that is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedDifference {
    /// As in `kinds`; `Image` for what the pods of an image run.
    #[schemars(
        regex(pattern = r"^[A-Za-z][A-Za-z0-9-]*(\.[a-z0-9.-]+)?$"),
        length(max = 253)
    )]
    pub kind: String,
    /// Absent for what lies in no namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Why it is fine.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
}

/// What the last comparison said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParityStatus {
    /// When it was made.
    pub compared_at: Time,
    /// What came of it.
    pub outcome: ParityOutcome,
    /// Objects of blue that were compared.
    pub blue: u64,
    /// And of green.
    pub green: u64,
    /// In blue alone.
    pub missing: u64,
    /// In both, and not the same.
    pub different: u64,
    /// In both, and not ready in green.
    pub not_ready: u64,
    /// In green alone. It hinders nothing.
    pub extra: u64,
    /// Differences that `spec.parity.accepted` names; not counted above.
    pub accepted: u64,
    /// Some of what is missing, different or not ready: the object, and the fields that differ. Never what stands in
    /// them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sample: Vec<String>,
    /// Some of what could not be told, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ParityOutcome {
    /// Green has all that blue has.
    Equal,
    /// Something is missing, different or not ready.
    Different,
    /// It could not be told.
    Unknown,
}
