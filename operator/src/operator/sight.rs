//! From reports to what the planner is told. Pure; what is not known stays unknown.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::ResourceExt as _;
use lockkeeper_crds as crds;
use lockkeeper_policies::model::CheckVerdict;
use lockkeeper_policies::{
    Backup, Check, Component, Etcd, KubernetesVersion, Member, Node, NodeName, PreflightView, Running, Seen,
    TicketState, TicketView, Verdict,
};

/// The label that kubeadm gives to control-plane nodes.
pub(super) const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// Control-plane nodes with what their agents report. `stale` says why a report cannot be relied on;
/// checks that were made for another rollout than this one are left out.
pub(super) fn nodes(
    kube: &[impl AsRef<KubeNode>],
    reports: &BTreeMap<String, crds::ControlPlaneNode>,
    rollout: Option<&str>,
    stale: impl Fn(&crds::ControlPlaneNode) -> Option<String>,
) -> BTreeMap<NodeName, Node> {
    kube.iter()
        .map(AsRef::as_ref)
        .filter(|n| n.labels().contains_key(CONTROL_PLANE))
        .map(|n| {
            let name = n.name_any();
            let node = reports.get(&name).map_or_else(
                || unreported("no agent has reported from it yet"),
                |report| node(report, rollout, stale(report)),
            );
            (NodeName::from(name.as_str()), node)
        })
        .collect()
}

/// Kubelets of all nodes.
pub(super) fn kubelets(kube: &[impl AsRef<KubeNode>]) -> BTreeMap<NodeName, Seen<KubernetesVersion>> {
    kube.iter()
        .map(AsRef::as_ref)
        .map(|n| {
            let info = n.status.as_ref().and_then(|s| s.node_info.as_ref());
            let seen = match info.map(|i| i.kubelet_version.parse::<KubernetesVersion>()) {
                Some(Ok(version)) => Seen::Known(version),
                Some(Err(why)) => Seen::Unknown(why.to_string()),
                None => Seen::Unknown("it has not reported one".to_owned()),
            };
            (NodeName::from(n.name_any().as_str()), seen)
        })
        .collect()
}

/// How many nodes are ready.
pub(super) fn ready_nodes(kube: &[impl AsRef<KubeNode>]) -> usize {
    let ready = |n: &KubeNode| {
        let conditions = n.status.as_ref().and_then(|s| s.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    kube.iter().filter(|n| ready(n.as_ref())).count()
}

fn unreported(why: &str) -> Node {
    Node {
        stale: Some(why.to_owned()),
        components: BTreeMap::new(),
        etcd: Seen::Unknown(why.to_owned()),
        manifest_problems: vec![],
        last_number: 0,
        ticket: None,
        preflight: None,
    }
}

fn node(object: &crds::ControlPlaneNode, rollout: Option<&str>, stale: Option<String>) -> Node {
    let Some(status) = &object.status else {
        return unreported("its agent has not reported yet");
    };
    let given = object.spec.ticket.as_ref();
    let told = status.ticket.as_ref();
    Node {
        stale,
        components: status
            .components
            .iter()
            .map(|c| (component_in(c.component), running(c)))
            .collect(),
        etcd: status.etcd.as_ref().map_or(Seen::Absent, etcd),
        manifest_problems: status.manifest_problems.clone(),
        // Whatever became of our side of it: a number that the agent has seen is never given out again.
        last_number: given
            .map_or(0, |t| t.number)
            .max(told.map_or(0, |t| t.number))
            .max(object.spec.voided),
        ticket: ticket(given, told),
        preflight: status
            .preflight
            .as_ref()
            .filter(|p| rollout == Some(p.rollout.as_str()))
            .map(|p| PreflightView {
                id: p.id,
                done: p.done,
                checks: p.checks.iter().map(check).collect(),
            }),
    }
}

fn ticket(given: Option<&crds::Ticket>, told: Option<&crds::TicketStatus>) -> Option<TicketView> {
    let number = given.map_or(0, |t| t.number).max(told.map_or(0, |t| t.number));
    if number == 0 {
        return None;
    }
    let told = told.filter(|t| t.number == number);
    Some(TicketView {
        number,
        verdict: match given.filter(|t| t.number == number).map(|t| t.verdict) {
            Some(crds::Verdict::Confirmed) => Verdict::Confirmed,
            Some(crds::Verdict::Pending) => Verdict::Pending,
            // Gone from the object: it cannot be confirmed any more, and the agent will undo it.
            Some(crds::Verdict::Withdrawn) | None => Verdict::Withdrawn,
        },
        state: told.map(|t| match t.state {
            crds::TicketState::Applying => TicketState::Applying,
            crds::TicketState::Starting => TicketState::Starting,
            crds::TicketState::Ready => TicketState::Ready,
            crds::TicketState::Confirmed => TicketState::Confirmed,
            crds::TicketState::Undoing => TicketState::Undoing,
            crds::TicketState::Undone => TicketState::Undone,
            crds::TicketState::Refused => TicketState::Refused,
        }),
        message: told.map(|t| t.message.clone()).unwrap_or_default(),
    })
}

fn running(seen: &crds::ComponentStatus) -> Running {
    let reported = seen.version.as_deref().and_then(|v| v.parse().ok());
    Running {
        version: reported.or_else(|| image_version(seen.image.as_deref()?)),
        manifest_version: seen.manifest_image.as_deref().and_then(image_version),
        ready: seen.ready == crds::Tristate::True,
    }
}

/// The version that an image's tag names.
pub(super) fn image_version(image: &str) -> Option<KubernetesVersion> {
    let (_, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    tag.parse().ok()
}

/// The same repository at another version; `None` for an image without a tag, or pinned by a digest.
pub(super) fn image_at(image: &str, version: KubernetesVersion) -> Option<String> {
    let (repository, tag) = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    (!tag.is_empty() && !repository.contains('@')).then(|| format!("{repository}:{version}"))
}

fn etcd(seen: &crds::EtcdStatus) -> Seen<Etcd> {
    let (Some(member_id), Some(leader_id), Some(cluster_id), Some(raft_term)) =
        (&seen.member_id, &seen.leader_id, &seen.cluster_id, seen.raft_term)
    else {
        let why = if seen.message.is_empty() {
            "it does not answer"
        } else {
            &seen.message
        };
        return Seen::Unknown(why.to_owned());
    };
    let why = || {
        if seen.message.is_empty() {
            "no linearizable read".to_owned()
        } else {
            seen.message.clone()
        }
    };
    Seen::Known(Etcd {
        unhealthy: (seen.healthy != crds::Tristate::True).then(why),
        version: seen.version.as_deref().and_then(|v| v.parse().ok()),
        member_id: member_id.clone(),
        leader_id: leader_id.clone(),
        cluster_id: cluster_id.clone(),
        raft_term,
        members: seen
            .members
            .iter()
            .map(|m| Member {
                id: m.id.clone(),
                name: m.name.clone(),
                learner: m.learner,
            })
            .collect(),
        alarms: seen.alarms.clone(),
    })
}

fn check(seen: &crds::Check) -> Check {
    Check {
        name: seen.name.clone(),
        node: seen.node.as_deref().map(NodeName::from),
        verdict: match seen.result {
            crds::CheckResult::Pass => CheckVerdict::Pass,
            crds::CheckResult::Warn => CheckVerdict::Warn,
            crds::CheckResult::Unknown => CheckVerdict::Unknown,
            crds::CheckResult::Block => CheckVerdict::Block,
        },
        message: seen.message.clone(),
    }
}

/// The snapshot of a rollout. `wanted`: how far it is to be proven. `late`: it has been running for longer than it
/// may.
pub(super) fn backup(object: Option<&crds::EtcdBackup>, wanted: crds::Proof, late: bool) -> Backup {
    let Some(object) = object else {
        return Backup::Absent;
    };
    let Some(status) = &object.status else {
        return Backup::Running("waiting for a node to take it".to_owned());
    };
    let is = |type_: &str, value: &str| {
        status
            .conditions
            .iter()
            .any(|c| c.type_ == type_ && c.status == value)
    };
    if is("Stored", "True") && is("Succeeded", "True") {
        if object.metadata.deletion_timestamp.is_some() {
            return Backup::Unknown("it was deleted, and goes with what it stored".to_owned());
        }
        return proven(object, wanted);
    }
    if is("Succeeded", "False") || status.completed_at.is_some() {
        return Backup::Failed(status.message.clone());
    }
    if late {
        return Backup::Failed(format!("not done in {} s", object.spec.deadline_seconds));
    }
    let on = status.node.as_deref().unwrap_or("no node yet");
    let streamed = status.streamed_bytes.unwrap_or(0) / 1_000_000;
    Backup::Running(format!("{streamed} MB streamed from {on}"))
}

/// How far a snapshot is proven that is stored.
fn proven(object: &crds::EtcdBackup, wanted: crds::Proof) -> Backup {
    let reached = object.proven().unwrap_or_default();
    if reached >= wanted {
        return Backup::Stored;
    }
    let levels = crds::Proof::ALL.into_iter().filter(|level| *level <= wanted);
    let failed = levels
        .filter_map(|level| object.condition(level.name()))
        .find(|c| c.status == "False");
    match failed {
        Some(bad) if crds::VERDICTS.contains(&bad.reason.as_str()) => Backup::Failed(bad.message.clone()),
        Some(failed) => Backup::Running(format!(
            "stored, and not {wanted} yet: {}; or lower spec.backup.proof",
            failed.message
        )),
        None if object.spec.proof < wanted => Backup::Running(format!(
            "stored, and spec.backup.proof asks for {wanted} since: raise spec.proof of the EtcdBackup too, or lower spec.backup.proof"
        )),
        None => Backup::Running(format!("stored, and being proven: {wanted}")),
    }
}

/// The planner's component as the API's.
pub(super) const fn component_out(component: Component) -> crds::Component {
    match component {
        Component::KubeApiserver => crds::Component::KubeApiserver,
        Component::KubeControllerManager => crds::Component::KubeControllerManager,
        Component::KubeScheduler => crds::Component::KubeScheduler,
    }
}

const fn component_in(component: crds::Component) -> Component {
    match component {
        crds::Component::KubeApiserver => Component::KubeApiserver,
        crds::Component::KubeControllerManager => Component::KubeControllerManager,
        crds::Component::KubeScheduler => Component::KubeScheduler,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_its_repository_and_a_digest_or_a_bare_port_is_no_tag() {
        let v = KubernetesVersion { minor: 36, patch: 3 };
        let at = |image| image_at(image, v);
        assert_eq!(
            at("registry.k8s.io/kube-apiserver:v1.35.4").as_deref(),
            Some("registry.k8s.io/kube-apiserver:v1.36.3")
        );
        assert_eq!(
            at("r.example:5000/k/kube-apiserver:v1.35.4").as_deref(),
            Some("r.example:5000/k/kube-apiserver:v1.36.3")
        );
        assert_eq!(at("r.example:5000/k/kube-apiserver"), None);
        assert_eq!(at("r.example/kube-apiserver@sha256:abc"), None);
        assert_eq!(image_version("registry.k8s.io/kube-apiserver:v1.36.3"), Some(v));
        assert_eq!(image_version("registry.k8s.io/kube-apiserver:latest"), None);
    }

    #[test]
    fn a_ticket_that_vanished_from_the_object_counts_as_withdrawn() {
        let told = crds::TicketStatus {
            number: 4,
            state: crds::TicketState::Ready,
            since: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ),
            deadline: None,
            message: String::new(),
        };
        let view = ticket(None, Some(&told)).unwrap();
        assert_eq!(
            (view.number, view.verdict, view.state),
            (4, Verdict::Withdrawn, Some(TicketState::Ready))
        );
        assert_eq!(ticket(None, None), None);
    }

    #[test]
    fn a_snapshot_counts_once_it_is_proven_as_far_as_the_wish_asks() {
        let condition = |type_: &str, status: &str, reason: &str| serde_json::json!({"type": type_, "status": status, "reason": reason, "message": "so", "lastTransitionTime": "2026-11-01T00:00:00Z"});
        let with = |more: Option<serde_json::Value>| -> crds::EtcdBackup {
            let mut conditions = vec![
                condition("Succeeded", "True", "Stored"),
                condition("Stored", "True", "ReadBack"),
            ];
            conditions.extend(more);
            serde_json::from_value(serde_json::json!({
                "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": "upgrade-1"},
                "spec": {"storeRef": {"name": "default"}, "proof": "Verified"},
                "status": {"node": "cp1", "completedAt": "2026-11-01T00:00:00Z", "conditions": conditions},
            }))
            .unwrap()
        };
        let seen = |more, wanted| backup(Some(&with(more)), wanted, true);
        let verified = crds::Proof::Verified;
        assert_eq!(seen(None, crds::Proof::Stored), Backup::Stored);
        let mut leaving = with(None);
        leaving.metadata.deletion_timestamp = leaving.status.as_ref().unwrap().completed_at.clone();
        assert!(matches!(
            backup(Some(&leaving), crds::Proof::Stored, false),
            Backup::Unknown(why) if why.contains("deleted")
        ));
        assert!(matches!(seen(None, verified), Backup::Running(_)));
        let yes = condition("Verified", "True", "Restored");
        assert_eq!(seen(Some(yes.clone()), verified), Backup::Stored);
        assert!(
            matches!(seen(Some(yes), crds::Proof::Drilled), Backup::Running(how) if how.contains("raise spec.proof"))
        );
        let away = condition("Verified", "False", "SameDisk");
        assert!(
            matches!(seen(Some(away), verified), Backup::Running(how) if how.contains("lower spec.backup.proof"))
        );
        let bad = condition("Verified", "False", "Damaged");
        assert_eq!(seen(Some(bad), verified), Backup::Failed("so".to_owned()));
    }

    #[test]
    fn an_etcd_that_does_not_answer_is_unknown_not_healthy() {
        let silent = crds::EtcdStatus {
            healthy: crds::Tristate::Unknown,
            ..Default::default()
        };
        assert!(matches!(etcd(&silent), Seen::Unknown(_)));
    }
}
