//! Which versions may run side by side (kubernetes.io/releases/version-skew-policy; facts as data in
//! the table of [`violations`]).

use std::collections::BTreeSet;

use crate::model::{Cluster, Component, NodeName};
use crate::version::KubernetesVersion;

/// A breach of the skew policy, as a sentence.
pub type Violation = String;

/// Everything that runs, each with the node it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunningVersions {
    /// API servers.
    pub apiservers: Vec<(NodeName, KubernetesVersion)>,
    /// Controller managers and schedulers: the policy is the same for both.
    pub controllers: Vec<(NodeName, Component, KubernetesVersion)>,
    /// Kubelets of all nodes, workers too.
    pub kubelets: Vec<(NodeName, KubernetesVersion)>,
}

impl RunningVersions {
    /// What is known to run. What is unknown is left out here; the planner does not move while anything
    /// is unknown.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let mut all = Self::default();
        for (name, node) in &cluster.nodes {
            for (component, running) in &node.components {
                let Some(version) = running.version else { continue };
                match component {
                    Component::KubeApiserver => all.apiservers.push((name.clone(), version)),
                    _ => all.controllers.push((name.clone(), *component, version)),
                }
            }
        }
        all.kubelets = cluster
            .kubelets
            .iter()
            .filter_map(|(name, v)| Some((name.clone(), (*v.known()?))))
            .collect();
        all
    }

    /// The same after `component` on `node` runs `version`.
    #[must_use]
    pub fn with(mut self, node: &NodeName, component: Component, version: KubernetesVersion) -> Self {
        if component == Component::KubeApiserver {
            self.apiservers.retain(|(n, _)| n != node);
            self.apiservers.push((node.clone(), version));
        } else {
            self.controllers.retain(|(n, c, _)| n != node || *c != component);
            self.controllers.push((node.clone(), component, version));
        }
        self
    }
}

/// Every breach, each a sentence that stays the same while the breach does.
///
/// | component | at least | at most |
/// | --- | --- | --- |
/// | API servers among one another | newest - 1 | |
/// | controller manager, scheduler | newest API server - 1 | oldest API server |
/// | kubelet | newest API server - 3 | oldest API server |
#[must_use]
pub fn violations(running: &RunningVersions) -> BTreeSet<Violation> {
    let mut found = BTreeSet::new();
    let minors = || running.apiservers.iter().map(|(_, v)| v.minor);
    let (Some(oldest), Some(newest)) = (minors().min(), minors().max()) else {
        return found;
    };
    if newest - oldest > 1 {
        found.insert(format!(
            "API servers run v1.{oldest} and v1.{newest}: they may differ by one minor at most"
        ));
    }
    for (node, component, version) in &running.controllers {
        if version.minor > oldest {
            found.insert(format!(
                "{component} on {node} runs {version}, newer than an API server (v1.{oldest})"
            ));
        }
        if version.minor + 1 < newest {
            found.insert(format!(
                "{component} on {node} runs {version}, more than one minor older than an API server (v1.{newest})"
            ));
        }
    }
    for (node, version) in &running.kubelets {
        if version.minor > oldest {
            found.insert(format!(
                "the kubelet of {node} runs {version}, newer than an API server (v1.{oldest})"
            ));
        }
        if version.minor + 3 < newest {
            found.insert(format!(
                "the kubelet of {node} runs {version}, more than three minors older than an API server (v1.{newest}): upgrade it first"
            ));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(minor: u32) -> KubernetesVersion {
        KubernetesVersion { minor, patch: 1 }
    }

    fn running(apiservers: &[u32], controllers: &[u32], kubelets: &[u32]) -> RunningVersions {
        let name = |i: usize| NodeName::from(format!("cp{i}").as_str());
        RunningVersions {
            apiservers: apiservers
                .iter()
                .enumerate()
                .map(|(i, m)| (name(i), v(*m)))
                .collect(),
            controllers: controllers
                .iter()
                .enumerate()
                .map(|(i, m)| (name(i), Component::KubeScheduler, v(*m)))
                .collect(),
            kubelets: kubelets
                .iter()
                .enumerate()
                .map(|(i, m)| (name(i), v(*m)))
                .collect(),
        }
    }

    #[test]
    fn the_policy_as_a_table() {
        type Row = (&'static [u32], &'static [u32], &'static [u32], usize);
        let table: &[Row] = &[
            (&[35, 35, 35], &[35, 35, 35], &[35, 35, 35], 0),
            (&[36, 35, 35], &[35, 35, 35], &[35, 35, 35], 0),
            (&[36, 35, 35], &[36, 35, 35], &[35, 35, 35], 1),
            (&[36, 36, 36], &[36, 35, 35], &[35, 35, 35], 0),
            (&[36, 36, 34], &[34, 34, 34], &[34], 1 + 3),
            (&[37, 37, 37], &[36, 36, 35], &[34], 1),
            (&[37], &[37], &[33], 1),
            (&[35, 36], &[35], &[36], 1),
        ];
        for (apiservers, controllers, kubelets, want) in table {
            let found = violations(&running(apiservers, controllers, kubelets));
            assert_eq!(
                found.len(),
                *want,
                "{apiservers:?} {controllers:?} {kubelets:?}: {found:?}"
            );
        }
    }

    #[test]
    fn nothing_is_known_of_a_cluster_without_api_servers() {
        assert!(violations(&running(&[], &[35], &[35])).is_empty());
    }
}
