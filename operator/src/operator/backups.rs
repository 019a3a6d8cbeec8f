//! Who takes a backup: the choice of a node, and the end of one whose agent is lost. Pure.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockkeeper_crds as crds;
use lockkeeper_policies::accept::{Acceptance, Candidate, accept};
use lockkeeper_policies::retention::Level;
use lockkeeper_policies::{Cluster, Etcd, Member, Node, NodeName, Seen};

use super::wanted::chrono_time;

/// On the backup of an upgrade: the `ClusterVersion` that it is the way back of.
pub(super) const ROLLBACK_FOR: &str = "lockkeeper.dev/rollback-for";

/// Entries that a member may have in its log and not yet in its data, when it was last seen. A healthy one has a
/// handful; `etcd` itself refuses writes at 5000.
const LAG: i64 = 1000;

/// The node whose agent shall take the next backup: one that is heard and was not tried for it, whose member is
/// healthy, votes and has no alarm of corruption, does not lag, a follower rather than the leader, and of these the
/// one that is furthest. It reads linearizably before it streams: what lags all the same is found out there.
pub(super) fn choose(
    nodes: &BTreeMap<NodeName, Node>,
    reports: &BTreeMap<String, crds::ControlPlaneNode>,
    tried: &[crds::Tried],
) -> Option<NodeName> {
    let seen = |name: &NodeName| reports.get(name.as_ref())?.status.as_ref()?.etcd.as_ref();
    let applied = |name: &NodeName| seen(name)?.raft_applied_index;
    let lags = |name: &NodeName| {
        let of = |etcd: &crds::EtcdStatus| Some(etcd.raft_index? - etcd.raft_applied_index?);
        seen(name).and_then(of).is_some_and(|lag| lag > LAG)
    };
    nodes
        .iter()
        .filter(|(_, node)| node.stale.is_none())
        .filter(|(name, _)| !tried.iter().any(|t| t.node == name.as_ref()))
        .filter_map(|(name, node)| match &node.etcd {
            Seen::Known(etcd) if etcd.unhealthy.is_none() && !spoilt(etcd) => Some((
                (!lags(name), etcd.member_id != etcd.leader_id),
                applied(name),
                name,
            )),
            _ => None,
        })
        .max_by(|a, b| (a.0, a.1, b.2).cmp(&(b.0, b.1, a.2)))
        .map(|(_, _, name)| name.clone())
}

/// True for a member whose data is no backup: a learner's may be half of it, a corrupt one's is wrong.
fn spoilt(etcd: &Etcd) -> bool {
    let learner = |m: &Member| m.learner && m.id == etcd.member_id;
    let corrupt = |alarm: &String| alarm.contains("CORRUPT") && alarm.contains(&etcd.member_id);
    etcd.members.iter().any(learner) || etcd.alarms.iter().any(corrupt)
}

/// Seconds that a node which is not heard is waited for, once another one was tried: twice what it takes to call it so.
const PATIENCE: i64 = 300;

/// The end of a backup for which every member that could be asked was tried; none when none was, or while one that is not
/// heard may be yet: the API server by which the operator sees may hang with the very member that was tried.
pub(super) fn exhausted(
    mut status: crds::EtcdBackupStatus,
    nodes: &BTreeMap<NodeName, Node>,
    now: Time,
) -> Option<crds::EtcdBackupStatus> {
    let last = status.tried.last()?;
    let tried = |name: &NodeName| status.tried.iter().any(|t| t.node == name.as_ref());
    let silent = nodes
        .iter()
        .any(|(name, node)| node.stale.is_some() && !tried(name));
    let since = status.assigned_at.as_ref().map(|at| at.0.as_second());
    if silent && since.is_some_and(|since| now.0.as_second() - since < PATIENCE) {
        return None;
    }
    let nodes: Vec<&str> = status.tried.iter().map(|t| t.node.as_str()).collect();
    let message = format!("{} (tried: {})", last.message, nodes.join(", "));
    let reason = last.reason.clone();
    let ended = crds::condition(
        "Succeeded",
        crds::Tristate::False,
        &reason,
        &message,
        None,
        now.clone(),
    );
    crds::set_condition(&mut status.conditions, ended);
    status.message = message;
    status.completed_at = Some(now);
    Some(status)
}

/// True for a backup that no agent has been given yet, or whose agent has handed it back.
fn unassigned(backup: &crds::EtcdBackup) -> bool {
    let given = |s: &crds::EtcdBackupStatus| s.node.is_some() && !backup.is_handed_back();
    backup.metadata.deletion_timestamp.is_none()
        && backup
            .status
            .as_ref()
            .is_none_or(|s| !given(s) && s.completed_at.is_none())
}

/// The backup that is given to an agent next: that of an upgrade, which waits for it, before any other; then the
/// oldest.
pub(super) fn first_waiting<'a>(
    all: impl Iterator<Item = &'a crds::EtcdBackup>,
) -> Option<&'a crds::EtcdBackup> {
    all.filter(|b| unassigned(b)).min_by_key(|b| {
        let labels = b.metadata.labels.as_ref();
        let of_upgrade = labels.is_some_and(|l| l.contains_key(ROLLBACK_FOR));
        let created = b.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (!of_upgrade, created, b.metadata.name.clone())
    })
}

/// The finalizers that a backup is to have before anything is stored for it, so that what it stores goes when it does;
/// none when they are right, or when a person wants what it stores kept.
pub(super) fn held(backup: &crds::EtcdBackup) -> Option<Vec<String>> {
    let mut finalizers = backup.metadata.finalizers.clone().unwrap_or_default();
    let ours = crds::STORED_FINALIZER;
    if backup.is_retained() || finalizers.iter().any(|f| f == ours) {
        return None;
    }
    finalizers.push(ours.to_owned());
    Some(finalizers)
}

/// The name of the backup that may stand for an upgrade's own snapshot, by `spec.backup.acceptWithinMinutes`.
pub(super) fn acceptable<'a>(
    object: &crds::ClusterVersion,
    all: impl Iterator<Item = &'a crds::EtcdBackup>,
    cluster: &Cluster,
    now: DateTime<Utc>,
) -> Option<String> {
    let policy = &object.spec.backup;
    let etcd = |node: &Node| Some(node.etcd.known()?.cluster_id.clone());
    let ended = object.status.as_ref().and_then(|s| s.history.first());
    let acceptance = Acceptance {
        store: policy.store_ref.as_ref()?.name.clone(),
        cluster_id: cluster.nodes.values().find_map(etcd)?,
        within: TimeDelta::minutes(policy.accept_within_minutes?.into()),
        level: level(policy.proof),
        not_before: ended.and_then(|entry| chrono_time(&entry.ended_at)),
    };
    let candidates: Vec<Candidate> = all.filter_map(candidate).collect();
    Some(accept(&candidates, &acceptance, now)?.name.clone())
}

fn candidate(backup: &crds::EtcdBackup) -> Option<Candidate> {
    let status = backup.status.as_ref()?;
    Some(Candidate {
        name: backup.metadata.name.clone()?,
        store: backup.spec.store_ref.name.clone(),
        cluster_id: status.artifact.as_ref()?.cluster_id.clone(),
        begun: chrono_time(status.started_at.as_ref()?)?,
        level: level(backup.proven()?),
    })
}

/// The rules' level.
pub(super) const fn level(proof: crds::Proof) -> Level {
    match proof {
        crds::Proof::Stored => Level::Stored,
        crds::Proof::Verified => Level::Verified,
        crds::Proof::Drilled => Level::Drilled,
    }
}

/// True for a backup that is being taken now. One that was deleted meanwhile is its agent's to end.
pub(super) fn running(backup: &crds::EtcdBackup) -> bool {
    backup.metadata.deletion_timestamp.is_none()
        && !backup.is_handed_back()
        && backup
            .status
            .as_ref()
            .is_some_and(|s| s.node.is_some() && s.completed_at.is_none())
}

/// The end of a backup whose agent is lost.
pub(super) fn abandoned(mut status: crds::EtcdBackupStatus, why: &str, now: Time) -> crds::EtcdBackupStatus {
    let message = format!("the agent that was taking it is lost: {why}");
    let ended = crds::condition(
        "Succeeded",
        crds::Tristate::False,
        "AgentLost",
        &message,
        None,
        now.clone(),
    );
    crds::set_condition(&mut status.conditions, ended);
    status.message = message;
    status.completed_at = Some(now);
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(member: &str, leader: &str, healthy: bool, stale: bool) -> Node {
        Node {
            stale: stale.then(|| "silent".to_owned()),
            components: BTreeMap::new(),
            etcd: Seen::Known(Etcd {
                unhealthy: (!healthy).then(|| "no".to_owned()),
                version: None,
                member_id: member.into(),
                leader_id: leader.into(),
                cluster_id: "c".into(),
                raft_term: 1,
                members: vec![],
                alarms: vec![],
            }),
            manifest_problems: vec![],
            last_number: 0,
            ticket: None,
            preflight: None,
        }
    }

    fn report(applied: i64) -> crds::ControlPlaneNode {
        let mut node = crds::ControlPlaneNode::new("x", Default::default());
        let etcd = crds::EtcdStatus {
            raft_applied_index: Some(applied),
            ..Default::default()
        };
        node.status = Some(crds::ControlPlaneNodeStatus {
            etcd: Some(etcd),
            ..Default::default()
        });
        node
    }

    #[test]
    fn a_healthy_follower_that_lags_least_is_chosen_and_the_leader_only_when_alone() {
        let mut nodes: BTreeMap<NodeName, Node> = [
            ("cp1".into(), node("1", "1", true, false)),
            ("cp2".into(), node("2", "1", true, false)),
            ("cp3".into(), node("3", "1", true, false)),
        ]
        .into();
        let reports: BTreeMap<String, _> = [
            ("cp1".into(), report(99)),
            ("cp2".into(), report(90)),
            ("cp3".into(), report(95)),
        ]
        .into();
        assert_eq!(choose(&nodes, &reports, &[]), Some("cp3".into()));
        let tried = |name: &str| crds::Tried {
            node: name.to_owned(),
            reason: "EtcdUnavailable".to_owned(),
            message: "gone".to_owned(),
        };
        let all = [tried("cp3"), tried("cp2"), tried("cp1")];
        assert_eq!(choose(&nodes, &reports, &all[..1]), Some("cp2".into()));
        assert_eq!(choose(&nodes, &reports, &all[..2]), Some("cp1".into()));
        assert_eq!(choose(&nodes, &reports, &all), None);
        nodes.insert("cp3".into(), node("3", "1", true, true));
        assert_eq!(choose(&nodes, &reports, &[]), Some("cp2".into()));
        nodes.insert("cp2".into(), node("2", "1", false, false));
        assert_eq!(choose(&nodes, &reports, &[]), Some("cp1".into()));
        nodes.insert("cp1".into(), node("1", "1", false, false));
        assert_eq!(choose(&nodes, &reports, &[]), None);
    }

    #[test]
    fn what_lags_comes_after_the_leader_and_what_is_spoilt_never() {
        let mut nodes: BTreeMap<NodeName, Node> = [
            ("cp1".into(), node("1", "1", true, false)),
            ("cp2".into(), node("2", "1", true, false)),
        ]
        .into();
        let mut reports: BTreeMap<String, _> =
            [("cp1".into(), report(9000)), ("cp2".into(), report(8999))].into();
        assert_eq!(choose(&nodes, &reports, &[]), Some("cp2".into()));
        let status = reports.get_mut("cp2").and_then(|r| r.status.as_mut()).unwrap();
        status.etcd.as_mut().unwrap().raft_index = Some(8999 + LAG + 1);
        assert_eq!(choose(&nodes, &reports, &[]), Some("cp1".into()));
        for spoil in [
            |etcd: &mut Etcd| etcd.alarms.push("CORRUPT on 1".to_owned()),
            |etcd: &mut Etcd| {
                etcd.members.push(Member {
                    id: "1".to_owned(),
                    name: "cp1".to_owned(),
                    learner: true,
                });
            },
        ] {
            let mut spoilt = node("1", "1", true, false);
            if let Seen::Known(etcd) = &mut spoilt.etcd {
                spoil(etcd);
            }
            nodes.insert("cp1".into(), spoilt);
            assert_eq!(choose(&nodes, &reports, &[]), Some("cp2".into()));
        }
    }

    #[test]
    fn one_that_was_handed_back_waits_for_another_node() {
        let status = serde_json::json!({"node": "cp1", "assignedAt": "2026-11-01T00:00:00Z"});
        let mut backup: crds::EtcdBackup = serde_json::from_value(serde_json::json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": "x"},
            "spec": {"storeRef": {"name": "default"}}, "status": status,
        }))
        .unwrap();
        assert!(running(&backup) && !unassigned(&backup));
        let tried = crds::Tried {
            node: "cp1".to_owned(),
            reason: "EtcdUnavailable".to_owned(),
            message: "gone".to_owned(),
        };
        backup.status.as_mut().unwrap().tried.push(tried);
        assert!(!running(&backup) && unassigned(&backup));
        backup.status.as_mut().unwrap().node = Some("cp2".to_owned());
        assert!(running(&backup) && !unassigned(&backup));
    }

    #[test]
    fn a_backup_that_every_member_failed_says_who_and_why() {
        let now = || Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let nodes = BTreeMap::new();
        assert_eq!(exhausted(crds::EtcdBackupStatus::default(), &nodes, now()), None);
        let tried = ["cp2", "cp1"].map(|node| crds::Tried {
            node: node.to_owned(),
            reason: "EtcdUnavailable".to_owned(),
            message: format!("etcd of {node} is gone"),
        });
        let status = crds::EtcdBackupStatus {
            tried: tried.to_vec(),
            ..Default::default()
        };
        let silent = BTreeMap::from([("cp3".into(), node("3", "1", true, true))]);
        let given = |ago: i64| crds::EtcdBackupStatus {
            assigned_at: Some(Time(now().0 - k8s_openapi::jiff::SignedDuration::from_secs(ago))),
            ..status.clone()
        };
        assert_eq!(
            exhausted(given(299), &silent, now()),
            None,
            "cp3 may be heard yet"
        );
        assert!(exhausted(given(301), &silent, now()).is_some());
        let heard = BTreeMap::from([("cp3".into(), node("3", "1", false, false))]);
        assert!(exhausted(given(1), &heard, now()).is_some(), "and is no good");
        let ended = exhausted(status, &nodes, now()).unwrap();
        assert_eq!(ended.message, "etcd of cp1 is gone (tried: cp2, cp1)");
        assert_eq!(ended.conditions[0].reason, "EtcdUnavailable");
        assert!(ended.completed_at.is_some());
    }

    #[test]
    fn a_verified_backup_of_this_etcd_since_the_last_upgrade_is_acceptable_where_the_spec_says_so() {
        let backup: crds::EtcdBackup = serde_json::from_value(serde_json::json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": "nightly"},
            "spec": {"storeRef": {"name": "default"}, "proof": "Verified"},
            "status": {"node": "cp1", "startedAt": "2026-11-21T03:00:00Z", "completedAt": "2026-11-21T03:00:09Z",
                "artifact": {"uri": "", "manifestUri": "", "sizeBytes": 1, "sha256": "", "revision": 1,
                    "etcdVersion": "3.6.6", "clusterId": "c", "memberId": "m"},
                "conditions": (["Succeeded", "Stored", "Verified"].map(|type_| serde_json::json!({"type": type_,
                    "status": "True", "reason": "So", "message": "", "lastTransitionTime": "2026-11-21T03:00:09Z"})))},
        }))
        .unwrap();
        let object = |policy: serde_json::Value| -> crds::ClusterVersion {
            let mut backup = serde_json::json!({"storeRef": {"name": "default"}});
            for (field, value) in policy.as_object().unwrap() {
                backup[field] = value.clone();
            }
            let spec = serde_json::json!({"version": "v1.36.3", "backup": backup});
            crds::ClusterVersion::new("cluster", serde_json::from_value(spec).unwrap())
        };
        let cluster = Cluster {
            nodes: [("cp1".into(), node("1", "1", true, false))].into(),
            kubelets: BTreeMap::new(),
            gates: Default::default(),
            node_gates: BTreeMap::new(),
            backup: lockkeeper_policies::Backup::Absent,
            acceptable: None,
            kubeadm_config: Seen::Absent,
            restoring: None,
            warnings: vec![],
        };
        let now = "2026-11-21T03:20:00Z".parse().unwrap();
        let found = |policy| acceptable(&object(policy), std::iter::once(&backup), &cluster, now);
        let nightly = Some("nightly".to_owned());
        assert_eq!(found(serde_json::json!({})), None);
        assert_eq!(found(serde_json::json!({"acceptWithinMinutes": 30})), nightly);
        assert_eq!(
            found(serde_json::json!({"acceptWithinMinutes": 30, "proof": "Verified"})),
            nightly
        );
        assert_eq!(
            found(serde_json::json!({"acceptWithinMinutes": 30, "proof": "Drilled"})),
            None
        );
        assert_eq!(found(serde_json::json!({"acceptWithinMinutes": 15})), None);
        assert_eq!(
            found(serde_json::json!({"acceptWithinMinutes": 30, "storeRef": {"name": "other"}})),
            None
        );
    }

    #[test]
    fn what_any_backup_stores_goes_with_it_unless_a_person_wants_it_kept() {
        let spec = serde_json::from_value(serde_json::json!({"storeRef": {"name": "default"}})).unwrap();
        let mut backup = crds::EtcdBackup::new("by-hand", spec);
        assert_eq!(held(&backup), Some(vec![crds::STORED_FINALIZER.to_owned()]));
        backup.metadata.finalizers = Some(vec!["example.org/other".to_owned()]);
        let both = held(&backup);
        assert_eq!(
            both.as_ref().map(Vec::len),
            Some(2),
            "another's is not ours to take off"
        );
        let mut retained = backup.clone();
        retained.metadata.annotations = Some([(crds::RETAIN_ANNOTATION.to_owned(), String::new())].into());
        assert_eq!(held(&retained), None);
        backup.metadata.finalizers = both;
        assert_eq!(held(&backup), None);
    }

    #[test]
    fn an_upgrade_does_not_wait_behind_backups_that_are_not_its_own() {
        let backup = |name: &str, created: i64, upgrade: bool| {
            let spec = serde_json::from_value(serde_json::json!({"storeRef": {"name": "default"}})).unwrap();
            let mut backup = crds::EtcdBackup::new(name, spec);
            let at = k8s_openapi::jiff::Timestamp::from_second(created).unwrap();
            backup.metadata.creation_timestamp = Some(Time(at));
            backup.metadata.labels =
                upgrade.then(|| [(ROLLBACK_FOR.to_owned(), "cluster".to_owned())].into());
            backup
        };
        let mut all = vec![
            backup("younger", 2, false),
            backup("older", 1, false),
            backup("upgrade", 3, true),
        ];
        let first =
            |all: &[crds::EtcdBackup]| first_waiting(all.iter()).and_then(|b| b.metadata.name.clone());
        assert_eq!(first(&all).as_deref(), Some("upgrade"));
        all.pop();
        assert_eq!(first(&all).as_deref(), Some("older"));
        all[1].metadata.deletion_timestamp = all[1].metadata.creation_timestamp.clone();
        assert_eq!(first(&all).as_deref(), Some("younger"));
    }
}
