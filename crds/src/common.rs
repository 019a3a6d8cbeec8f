//! What more than one kind uses.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A control-plane component that runs as a static pod and that Lockkeeper changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// `kube-apiserver`.
    KubeApiserver,
    /// `kube-controller-manager`.
    KubeControllerManager,
    /// `kube-scheduler`.
    KubeScheduler,
}

impl Component {
    /// Every component, API server first.
    pub const ALL: [Self; 3] = [
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::KubeScheduler,
    ];

    /// The name as kubeadm writes it: of the manifest, of the container and of the image.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::KubeScheduler => "kube-scheduler",
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Names an object of this group in the operator's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalReference {
    /// The object's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The verdict of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CheckResult {
    /// Looked at, and good.
    Pass,
    /// Worth a person's eye; stops nothing.
    Warn,
    /// Could not be seen. Stops an upgrade like [`CheckResult::Block`]: unknown is not healthy.
    Unknown,
    /// Stops an upgrade.
    Block,
}

/// One preflight check and what it found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Short and stable, e.g. `Rehearsal`.
    pub name: String,
    /// The verdict.
    pub result: CheckResult,
    /// A sentence for a person: what was found, and the way out.
    pub message: String,
    /// The node it was made on; absent for a check of the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// `True`, `False` or `Unknown`, as in a condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Tristate {
    /// Seen, and so.
    True,
    /// Seen, and not so.
    False,
    /// Not seen.
    #[default]
    Unknown,
}

/// Sets a condition, keeping the transition time while the status stays the same.
///
/// Returns true when the status changed or the condition is new: the moment for an event.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    if let Some(old) = conditions.iter_mut().find(|c| c.type_ == new.type_) {
        let changed = old.status != new.status;
        if !changed {
            new.last_transition_time = old.last_transition_time.clone();
        }
        *old = new;
        changed
    } else {
        conditions.push(new);
        true
    }
}

/// A condition by the API conventions.
#[must_use]
pub fn condition(
    type_: &str,
    status: Tristate,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: type_.to_owned(),
        status: match status {
            Tristate::True => "True",
            Tristate::False => "False",
            Tristate::Unknown => "Unknown",
        }
        .to_owned(),
        reason: reason.to_owned(),
        // The API accepts 32768 characters; what is longer than this helps nobody.
        message: message.chars().take(1024).collect(),
        observed_generation: generation,
        last_transition_time: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn a_condition_keeps_its_transition_time_while_its_status_stays() {
        let at = |s| Time(Timestamp::from_second(s).unwrap());
        let mut all = vec![];
        assert!(set_condition(
            &mut all,
            condition("Ready", Tristate::False, "A", "a", Some(1), at(1))
        ));
        assert!(!set_condition(
            &mut all,
            condition("Ready", Tristate::False, "B", "b", Some(2), at(2))
        ));
        assert_eq!(all[0].last_transition_time, at(1));
        assert_eq!(all[0].reason, "B");
        assert!(set_condition(
            &mut all,
            condition("Ready", Tristate::True, "C", "c", Some(2), at(3))
        ));
        assert_eq!(all[0].last_transition_time, at(3));
        assert_eq!(all.len(), 1);
    }
}
