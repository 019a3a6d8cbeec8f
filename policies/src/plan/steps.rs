//! The steps that are left, their order, and whether one may be taken.

use strum::IntoEnumIterator as _;

use crate::model::{Cluster, Component, Node, NodeName, Phase, Rollout, Running, Seen};
use crate::quorum;
use crate::report::Step;
use crate::skew::{self, RunningVersions};
use crate::version::KubernetesVersion;

/// Components that go together on one node: the API server alone, then the two that follow it. They
/// disturb one node either way, and together they cost half the time.
const FOLLOWERS: [Component; 2] = [Component::KubeControllerManager, Component::KubeScheduler];

/// The order in which nodes are changed: the one whose etcd member leads comes last, so that its API
/// server, the best connected one, serves the longest.
pub(super) fn order(cluster: &Cluster) -> Vec<NodeName> {
    let leads = |node: &Node| node.etcd.known().is_some_and(|e| e.member_id == e.leader_id);
    let mut names: Vec<(bool, NodeName)> = cluster
        .nodes
        .iter()
        .map(|(name, node)| (leads(node), name.clone()))
        .collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

/// Every step until all nodes run `version`, in order.
///
/// Upwards: API servers of all nodes first, then controller managers and schedulers, since these may
/// not be newer than any API server (facts: version skew policy). Downwards the other way round, and
/// the nodes in reverse, so that what was changed last returns first.
pub(super) fn remaining(cluster: &Cluster, order: &[NodeName], version: KubernetesVersion) -> Vec<Step> {
    let mut nodes: Vec<&NodeName> = order.iter().filter(|n| cluster.nodes.contains_key(*n)).collect();
    nodes.extend(cluster.nodes.keys().filter(|n| !order.contains(n)));
    let downwards = cluster
        .nodes
        .values()
        .flat_map(|n| n.components.values())
        .any(|c| c.version.max(c.manifest_version).is_some_and(|v| v > version));
    if downwards {
        nodes.reverse();
    }
    let pick = |wave: &[Component]| -> Vec<Step> {
        nodes
            .iter()
            .filter_map(|name| {
                let node = cluster.nodes.get(*name)?;
                let components: Vec<Component> = wave
                    .iter()
                    .copied()
                    .filter(|c| node.components.get(c).is_none_or(|r| !r.is_at(version)))
                    .collect();
                (!components.is_empty()).then(|| Step {
                    node: (*name).clone(),
                    components,
                    version,
                })
            })
            .collect()
    };
    let servers = pick(&[Component::KubeApiserver]);
    let followers = pick(&FOLLOWERS);
    if downwards {
        [followers, servers].concat()
    } else {
        [servers, followers].concat()
    }
}

/// Why a step may not be taken now.
///
/// # Errors
/// A short reason and a sentence.
pub(super) fn may_take(
    cluster: &Cluster,
    rollout: &Rollout,
    step: &Step,
) -> Result<(), (&'static str, String)> {
    for (name, node) in &cluster.nodes {
        if let Some(why) = &node.stale {
            return Err((
                "AgentLost",
                format!("{name}: {why}; nothing moves until its agent reports again"),
            ));
        }
        if let Some(missing) = Component::iter().find(|c| !node.components.contains_key(c)) {
            return Err((
                "ComponentUnknown",
                format!("{missing} on {name} cannot be seen: is its manifest there?"),
            ));
        }
        let live = node
            .ticket
            .as_ref()
            .filter(|t| t.state.is_some_and(|s| !s.is_end()));
        if let Some(ticket) = live {
            return Err((
                "TicketOut",
                format!(
                    "ticket {} on {name} has not ended: {}",
                    ticket.number, ticket.message
                ),
            ));
        }
        if *name != step.node
            && let Some(component) = unready(node, rollout)
        {
            return Err((
                "NodeDisturbed",
                format!("{component} on {name} is not ready, and one node at a time may be disturbed"),
            ));
        }
    }
    quorum::may_disturb(cluster, &step.node).map_err(|why| ("QuorumAtRisk", why))?;
    let now = RunningVersions::of(cluster);
    let before = skew::violations(&now);
    let after = step
        .components
        .iter()
        .fold(now, |v, c| v.with(&step.node, *c, step.version));
    if let Some(violation) = skew::violations(&after).difference(&before).next() {
        return Err(("VersionSkew", format!("after {step}: {violation}")));
    }
    Ok(())
}

/// A component that keeps its node disturbed. On the way back one that is still to be returned does not
/// count: it may well be broken by the very version that is being taken away.
fn unready(node: &Node, rollout: &Rollout) -> Option<Component> {
    let matters = |r: &Running| rollout.phase != Phase::Back || r.is_at(rollout.source);
    node.components
        .iter()
        .find(|(_, r)| !r.ready && matters(r))
        .map(|(c, _)| *c)
}

/// The lowest version that any component runs or is asked to run; `None` while one is unknown.
pub(super) fn lowest(cluster: &Cluster) -> Option<KubernetesVersion> {
    let mut lowest = None;
    for node in cluster.nodes.values() {
        for component in Component::iter() {
            let running = node.components.get(&component)?;
            let version = running.version?.min(running.manifest_version?);
            lowest = Some(lowest.map_or(version, |l: KubernetesVersion| l.min(version)));
        }
    }
    lowest
}

/// True when the ConfigMap names another version, so that a later `kubeadm join` would bring it in.
pub(super) fn kubeadm_config_is_behind(cluster: &Cluster, version: KubernetesVersion) -> bool {
    matches!(&cluster.kubeadm_config, Seen::Known(v) if *v != version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{cluster, version};

    fn text(steps: &[Step]) -> Vec<String> {
        steps.iter().map(ToString::to_string).collect()
    }

    fn set(cluster: &mut Cluster, node: &str, component: Component, minor: u32) {
        let running = cluster.node_mut(node).components.get_mut(&component).unwrap();
        running.version = Some(version(minor));
        running.manifest_version = Some(version(minor));
    }

    #[test]
    fn upwards_all_api_servers_come_before_any_follower_and_the_etcd_leader_last() {
        let cluster = cluster(3, 35);
        let steps = remaining(&cluster, &order(&cluster), version(36));
        insta::assert_snapshot!(text(&steps).join("\n"), @r"
        kube-apiserver to v1.36.0 on cp2
        kube-apiserver to v1.36.0 on cp3
        kube-apiserver to v1.36.0 on cp1
        kube-controller-manager and kube-scheduler to v1.36.0 on cp2
        kube-controller-manager and kube-scheduler to v1.36.0 on cp3
        kube-controller-manager and kube-scheduler to v1.36.0 on cp1
        ");
    }

    #[test]
    fn downwards_followers_come_first_and_nodes_in_reverse() {
        let mut cluster = cluster(3, 36);
        set(&mut cluster, "cp1", Component::KubeScheduler, 35);
        let steps = remaining(&cluster, &["cp2".into(), "cp3".into(), "cp1".into()], version(35));
        insta::assert_snapshot!(text(&steps).join("\n"), @r"
        kube-controller-manager to v1.35.0 on cp1
        kube-controller-manager and kube-scheduler to v1.35.0 on cp3
        kube-controller-manager and kube-scheduler to v1.35.0 on cp2
        kube-apiserver to v1.35.0 on cp1
        kube-apiserver to v1.35.0 on cp3
        kube-apiserver to v1.35.0 on cp2
        ");
    }

    #[test]
    fn a_node_that_joined_later_is_not_forgotten() {
        let cluster = cluster(3, 35);
        let steps = remaining(&cluster, &["cp1".into(), "cp2".into()], version(36));
        assert_eq!(steps.len(), 6);
    }
}
