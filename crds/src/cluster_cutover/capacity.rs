//! What green must be able to carry, and whose work on it is accepted.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SingletonKind;

/// How much green must have of what blue has.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.atLeastPercent >= 100 || has(self.reason)").message("spec.capacity.atLeastPercent is below 100: say in spec.capacity.reason why less is enough"))]
pub struct CutoverCapacity {
    /// Percent of blue's CPU, memory and pods. 0: it is not looked at.
    #[serde(default = "all_of_it")]
    #[schemars(range(min = 0, max = 1000))]
    pub at_least_percent: u32,
    /// Why less than all of it is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub reason: Option<String>,
}

impl Default for CutoverCapacity {
    fn default() -> Self {
        Self {
            at_least_percent: all_of_it(),
            reason: None,
        }
    }
}

const fn all_of_it() -> u32 {
    // facts.md 7.4: green has 100 % before it takes more than half.
    100
}

/// A controller that may be in the way, and is known not to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedController {
    /// As in `singletons`.
    pub kind: SingletonKind,
    /// As in `singletons`.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// As in `singletons`.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Why it is fine.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
}
