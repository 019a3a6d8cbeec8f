//! Whether etcd bears a node's absence.

use std::collections::BTreeSet;

use crate::model::{Cluster, NodeName, Seen};

/// Why no node may be disturbed now, as a sentence with the way out. `Ok` when one may.
///
/// All members must be healthy before, not only a quorum, and the members that are left when `node` is
/// counted as down must still be one. With one or two members no node can be spared: then a change that
/// does not touch etcd itself goes ahead all the same (there is no quorum margin to keep), which
/// [`has_margin`] tells.
///
/// # Errors
/// The reason.
pub fn may_disturb(cluster: &Cluster, node: &NodeName) -> Result<(), String> {
    let members = observed_members(cluster)?;
    if members.is_empty() {
        // External etcd: there is no member on any control-plane node that a change here could touch.
        return Ok(());
    }
    let total = members.len();
    let quorum = total / 2 + 1;
    let left = members.iter().filter(|(on, _)| on != node).count();
    if total > 2 && left < quorum {
        return Err(format!(
            "with {node} away {left} of {total} etcd members would be left, and {quorum} are needed"
        ));
    }
    Ok(())
}

/// True when etcd has three members or more, so that one may be away.
#[must_use]
pub fn has_margin(cluster: &Cluster) -> bool {
    cluster
        .nodes
        .values()
        .filter(|n| matches!(n.etcd, Seen::Known(_)))
        .count()
        > 2
}

/// Every member with the node it runs on, all of them seen and healthy.
fn observed_members(cluster: &Cluster) -> Result<Vec<(NodeName, String)>, String> {
    let mut seen = Vec::new();
    let mut terms = BTreeSet::new();
    let mut leaders = BTreeSet::new();
    let mut clusters = BTreeSet::new();
    let mut named: BTreeSet<String> = BTreeSet::new();
    for (name, node) in &cluster.nodes {
        let etcd = match &node.etcd {
            Seen::Absent => continue,
            Seen::Unknown(why) => return Err(format!("the etcd member on {name} cannot be seen: {why}")),
            Seen::Known(etcd) => etcd,
        };
        if let Some(why) = &node.stale {
            return Err(format!(
                "what is known of the etcd member on {name} is old: {why}"
            ));
        }
        if let Some(why) = &etcd.unhealthy {
            return Err(format!("the etcd member on {name} is not healthy: {why}"));
        }
        if let Some(alarm) = etcd.alarms.first() {
            return Err(format!(
                "etcd has an alarm: {alarm}; clear its cause, then `etcdctl alarm disarm`"
            ));
        }
        if let Some(learner) = etcd.members.iter().find(|m| m.learner) {
            return Err(format!(
                "etcd member {} ({}) is a learner: promote or remove it first",
                learner.name, learner.id
            ));
        }
        seen.push((name.clone(), etcd.member_id.clone()));
        terms.insert(etcd.raft_term);
        leaders.insert(etcd.leader_id.clone());
        clusters.insert(etcd.cluster_id.clone());
        named.extend(etcd.members.iter().map(|m| m.id.clone()));
    }
    let here: BTreeSet<String> = seen.iter().map(|(_, id)| id.clone()).collect();
    if let Some(missing) = named.difference(&here).next() {
        return Err(format!(
            "etcd member {missing} is in the member list, and no control-plane node reports it: start it again; only when its node is gone for good, `etcdctl member remove {missing}`"
        ));
    }
    if clusters.len() > 1 {
        return Err("the control-plane nodes' etcd members belong to different etcd clusters".to_owned());
    }
    if !seen.is_empty() && (leaders.len() != 1 || leaders.iter().any(|l| l.is_empty() || l == "0")) {
        return Err("the etcd members do not agree on one leader".to_owned());
    }
    if terms.len() > 1 {
        return Err("the etcd members are not in one raft term: an election is going on".to_owned());
    }
    Ok(seen)
}

/// Whether every member is as it should be, for a preflight check and for a gate.
///
/// # Errors
/// The reason, with the way out.
pub fn healthy(cluster: &Cluster) -> Result<usize, String> {
    observed_members(cluster).map(|members| members.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::cluster;

    #[test]
    fn three_healthy_members_bear_one_absence() {
        let cluster = cluster(3, 35);
        assert_eq!(may_disturb(&cluster, &"cp1".into()), Ok(()));
        assert!(has_margin(&cluster));
    }

    #[test]
    fn all_members_must_be_healthy_not_only_a_quorum() {
        let mut cluster = cluster(3, 35);
        cluster.etcd_mut("cp3").unhealthy = Some("no answer in 3 s".into());
        assert!(may_disturb(&cluster, &"cp1".into()).unwrap_err().contains("cp3"));
        assert!(
            may_disturb(&cluster, &"cp3".into()).is_err(),
            "not even the broken one itself"
        );
    }

    #[test]
    fn alarms_learners_ghosts_elections_and_unseen_members_forbid_it() {
        type Break = fn(&mut Cluster);
        let cases: [(&str, Break); 7] = [
            ("is old", |c| c.node_mut("cp2").stale = Some("silent".into())),
            ("alarm", |c| c.etcd_mut("cp1").alarms.push("NOSPACE on 1".into())),
            ("learner", |c| c.etcd_mut("cp2").members[0].learner = true),
            ("member list", |c| {
                let ghost = crate::model::Member {
                    id: "ff".into(),
                    name: "old".into(),
                    learner: false,
                };
                c.etcd_mut("cp2").members.push(ghost);
            }),
            ("term", |c| c.etcd_mut("cp2").raft_term += 1),
            ("leader", |c| c.etcd_mut("cp2").leader_id = "0".into()),
            ("cannot be seen", |c| {
                c.node_mut("cp2").etcd = Seen::Unknown("agent is silent".into())
            }),
        ];
        for (word, break_it) in cases {
            let mut cluster = cluster(3, 35);
            break_it(&mut cluster);
            let error = may_disturb(&cluster, &"cp1".into()).unwrap_err();
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn external_etcd_has_no_member_here_to_lose() {
        let mut cluster = cluster(3, 35);
        for node in cluster.nodes.values_mut() {
            node.etcd = Seen::Absent;
        }
        assert_eq!(may_disturb(&cluster, &"cp1".into()), Ok(()));
    }

    #[test]
    fn one_and_two_members_have_no_margin_to_keep() {
        for n in [1, 2] {
            let cluster = cluster(n, 35);
            assert_eq!(may_disturb(&cluster, &"cp1".into()), Ok(()));
            assert!(!has_margin(&cluster));
        }
    }
}
