//! From the planner's report to the status that people and tools read. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockkeeper_crds::{self as crds, Tristate, condition, set_condition};
use lockkeeper_policies::model::CheckVerdict;
use lockkeeper_policies::{
    Cluster, Component, KubernetesVersion, NodeName, Phase, Report, Rollout, Seen, State,
};

use super::wanted;

/// All that a status is made of.
pub(super) struct Facts<'a> {
    pub(super) object: &'a crds::ClusterVersion,
    pub(super) report: &'a Report,
    pub(super) rollout: Option<&'a Rollout>,
    pub(super) cluster: &'a Cluster,
    pub(super) nodes: &'a std::collections::BTreeMap<String, crds::ControlPlaneNode>,
    pub(super) backup: Option<&'a crds::EtcdBackup>,
    pub(super) ready_nodes: u32,
    pub(super) outage_seconds: Option<i64>,
    pub(super) now: Time,
}

/// The status to write.
pub(super) fn build(facts: &Facts<'_>) -> crds::ClusterVersionStatus {
    let before = facts.object.status.clone().unwrap_or_default();
    let state = state_out(facts.report.state);
    let kept = facts
        .rollout
        .map(|r| wanted::kept(r, before.rollout.as_ref(), &facts.now, facts.ready_nodes));
    let active = facts.rollout.is_some_and(|r| !r.phase.is_end());
    let begun = kept
        .as_ref()
        .is_some_and(|k| before.rollout.as_ref().is_none_or(|b| b.id != k.id));
    let outage = facts
        .outage_seconds
        .max(before.longest_outage_seconds.filter(|_| !begun));
    let mut status = crds::ClusterVersionStatus {
        observed_generation: facts.object.metadata.generation,
        version: lowest(facts.cluster).map(|v| v.to_string()),
        target: facts.rollout.filter(|_| active).map(|r| {
            if r.phase == Phase::Back {
                r.source
            } else {
                r.target
            }
            .to_string()
        }),
        state,
        since: Some(
            before
                .since
                .clone()
                .filter(|_| before.state == state)
                .unwrap_or_else(|| facts.now.clone()),
        ),
        summary: summary(facts),
        progress: progress(facts),
        step: step(facts),
        plan: facts.report.remaining.iter().map(ToString::to_string).collect(),
        preflight: preflight(facts, &before),
        nodes: facts.cluster.nodes.keys().map(|name| row(facts, name)).collect(),
        snapshot: snapshot(facts, &before),
        ways_back: facts
            .report
            .ways_back
            .iter()
            .map(|w| crds::WayBack {
                kind: w.kind.to_owned(),
                message: w.message.clone(),
            })
            .collect(),
        held: held(facts, &before),
        history: before.history.clone(),
        longest_outage_seconds: if begun { None } else { outage },
        conditions: before.conditions.clone(),
        rollout: kept,
    };
    remember(&mut status, &before, facts);
    conditions(&mut status, facts);
    status
}

fn summary(facts: &Facts<'_>) -> String {
    let report = facts.report;
    match report.state {
        State::Rolling | State::RollingBack => {
            let (done, total) = (report.done, facts.cluster.nodes.len());
            format!("{}; {done} of {total} nodes done", report.summary)
        }
        _ => report.summary.clone(),
    }
}

fn progress(facts: &Facts<'_>) -> crds::Progress {
    let (done, total) = (facts.report.done, facts.cluster.nodes.len());
    crds::Progress {
        done: u32::try_from(done).unwrap_or(u32::MAX),
        total: u32::try_from(total).unwrap_or(u32::MAX),
        text: format!("{done}/{total}"),
    }
}

fn step(facts: &Facts<'_>) -> Option<crds::StepStatus> {
    let ticket = facts.rollout?.in_hand.as_ref()?;
    let node = facts.nodes.get(ticket.node.as_ref())?;
    let given = node.spec.ticket.as_ref().filter(|t| t.number == ticket.number);
    let told = node
        .status
        .as_ref()
        .and_then(|s| s.ticket.as_ref())
        .filter(|t| t.number == ticket.number);
    let name = given.map_or_else(String::new, |t| {
        let names: Vec<String> = t
            .changes
            .iter()
            .map(|c| format!("{} to {}", c.component, c.version))
            .collect();
        names.join(", ")
    });
    Some(crds::StepStatus {
        name,
        node: ticket.node.to_string(),
        state: told.map_or_else(|| "Issued".to_owned(), |t| format!("{:?}", t.state)),
        since: told.map(|t| t.since.clone()),
        deadline: told.and_then(|t| t.deadline.clone()),
    })
}

fn preflight(facts: &Facts<'_>, before: &crds::ClusterVersionStatus) -> Vec<crds::Check> {
    if facts.report.checks.is_empty() && facts.rollout.is_some_and(|r| r.phase != Phase::Preflight) {
        return before.preflight.clone();
    }
    let result = |verdict| match verdict {
        CheckVerdict::Pass => crds::CheckResult::Pass,
        CheckVerdict::Warn => crds::CheckResult::Warn,
        CheckVerdict::Unknown => crds::CheckResult::Unknown,
        CheckVerdict::Block => crds::CheckResult::Block,
    };
    facts
        .report
        .checks
        .iter()
        .map(|c| crds::Check {
            name: c.name.clone(),
            result: result(c.verdict),
            message: c.message.clone(),
            node: c.node.as_ref().map(ToString::to_string),
        })
        .collect()
}

fn row(facts: &Facts<'_>, name: &NodeName) -> crds::NodeRow {
    let cluster = facts.cluster;
    let node = cluster.nodes.get(name);
    let runs = |c: Component| Some(node?.components.get(&c)?.version?.to_string());
    let kubelet = cluster.kubelets.get(name).and_then(Seen::known);
    let etcd = node.and_then(|n| n.etcd.known()).and_then(|e| e.version.as_ref());
    let in_hand = facts
        .rollout
        .and_then(|r| r.in_hand.as_ref())
        .filter(|t| t.node == *name);
    let goal = facts.rollout.filter(|r| !r.phase.is_end());
    let goal = goal.map(|r| {
        if r.phase == Phase::Back {
            r.source
        } else {
            r.target
        }
    });
    let stale = node.and_then(|n| n.stale.clone());
    let state = match (&stale, in_hand, goal) {
        (Some(_), _, _) => "Unknown",
        (None, Some(t), _) if t.forward => "Upgrading",
        (None, Some(_), _) => "RollingBack",
        (None, None, Some(v)) if node.is_some_and(|n| n.runs(v)) => "Done",
        (None, None, Some(_)) => "Pending",
        (None, None, None) => "Idle",
    };
    let ticket = in_hand
        .and_then(|_| node?.ticket.as_ref())
        .map(|t| t.message.clone());
    let unready = node
        .and_then(|n| n.components.iter().find(|(_, r)| !r.ready))
        .map(|(c, _)| format!("{c} is not ready"));
    crds::NodeRow {
        name: name.to_string(),
        state: state.to_owned(),
        apiserver: runs(Component::KubeApiserver),
        controller_manager: runs(Component::KubeControllerManager),
        scheduler: runs(Component::KubeScheduler),
        kubelet: kubelet.map(ToString::to_string),
        etcd: etcd.map(ToString::to_string),
        message: stale.or(ticket).or(unready).unwrap_or_default(),
    }
}

fn snapshot(facts: &Facts<'_>, before: &crds::ClusterVersionStatus) -> Option<crds::SnapshotStatus> {
    let Some(backup) = facts.backup else {
        // It may have been deleted since; what was known of it in this rollout stays.
        return before
            .snapshot
            .clone()
            .filter(|_| facts.rollout.is_some_and(|r| r.phase != Phase::Preflight));
    };
    let status = backup.status.as_ref();
    let artifact = status.and_then(|s| s.artifact.as_ref());
    Some(crds::SnapshotStatus {
        backup: backup.metadata.name.clone().unwrap_or_default(),
        key: artifact.map(|a| a.uri.clone()),
        revision: artifact.map(|a| a.revision),
        stored_at: artifact.and_then(|_| status?.completed_at.clone()),
        proof: backup.proven(),
        accepted: facts.rollout.is_some_and(|r| r.accepted.is_some()),
    })
}

fn held(facts: &Facts<'_>, before: &crds::ClusterVersionStatus) -> Option<crds::Held> {
    let held = facts.report.held.as_ref()?;
    let since = before
        .held
        .as_ref()
        .filter(|b| b.reason == held.reason)
        .map(|b| b.since.clone());
    Some(crds::Held {
        reason: held.reason.to_owned(),
        message: held.message.clone(),
        since: since.unwrap_or_else(|| facts.now.clone()),
    })
}

/// A rollout that has just ended goes to the top of the history.
fn remember(status: &mut crds::ClusterVersionStatus, before: &crds::ClusterVersionStatus, facts: &Facts<'_>) {
    let Some(rollout) = &status.rollout else { return };
    let Some(ended_at) = rollout.ended_at.clone() else {
        return;
    };
    if before
        .rollout
        .as_ref()
        .is_some_and(|b| b.id == rollout.id && b.ended_at.is_some())
    {
        return;
    }
    let entry = crds::HistoryEntry {
        source: rollout.source.clone(),
        target: rollout.target.clone(),
        result: rollout.phase,
        started_at: rollout.started_at.clone(),
        ended_at,
        reason: rollout
            .reason
            .clone()
            .filter(|_| rollout.phase != crds::Phase::Completed),
        snapshot: status.snapshot.as_ref().and_then(|s| s.key.clone()),
        longest_outage_seconds: status.longest_outage_seconds,
    };
    status.history.insert(0, entry);
    let limit = usize::try_from(facts.object.spec.history_limit).unwrap_or(10);
    status.history.truncate(limit.max(1));
}

/// The four conditions. kstatus reads `Reconciling` as in progress and `Stalled` as failed; `Settled` is
/// True at every end and wherever a person is waited for, so that one `kubectl wait` returns on failure
/// as well.
fn conditions(status: &mut crds::ClusterVersionStatus, facts: &Facts<'_>) {
    use State as S;
    let state = facts.report.state;
    let reason = match facts.report.held.as_ref() {
        Some(held) => held.reason.to_owned(),
        None => state.to_string(),
    };
    let moving = matches!(
        state,
        S::Preflight | S::BackingUp | S::Rolling | S::RollingBack | S::Unknown
    );
    let stalled = matches!(state, S::Blocked | S::RolledBack | S::Failed);
    let settled = !moving;
    let ready = match state {
        S::Idle => Tristate::True,
        S::Unknown => Tristate::Unknown,
        _ => Tristate::False,
    };
    let settled_reason = if state == S::Idle {
        "Completed".to_owned()
    } else {
        state.to_string()
    };
    let bool_of = |yes: bool| if yes { Tristate::True } else { Tristate::False };
    let generation = facts.object.metadata.generation;
    let message = status.summary.clone();
    let ready_reason = if state == S::Idle {
        "UpToDate".to_owned()
    } else {
        state.to_string()
    };
    for (type_, value, reason) in [
        ("Ready", ready, ready_reason),
        ("Reconciling", bool_of(moving), state.to_string()),
        (
            "Stalled",
            bool_of(stalled),
            if stalled { reason } else { "NotStalled".to_owned() },
        ),
        ("Settled", bool_of(settled), settled_reason),
    ] {
        let new = condition(type_, value, &reason, &message, generation, facts.now.clone());
        set_condition(&mut status.conditions, new);
    }
}

fn lowest(cluster: &Cluster) -> Option<KubernetesVersion> {
    cluster
        .nodes
        .values()
        .flat_map(|n| n.components.values())
        .filter_map(|c| c.version)
        .min()
}

/// The planner's word as the API's.
pub(super) const fn state_out(state: State) -> crds::State {
    match state {
        State::Unknown => crds::State::Unknown,
        State::Idle => crds::State::Idle,
        State::Preflight => crds::State::Preflight,
        State::Blocked => crds::State::Blocked,
        State::Preflighted => crds::State::Preflighted,
        State::BackingUp => crds::State::BackingUp,
        State::Rolling => crds::State::Rolling,
        State::RollingBack => crds::State::RollingBack,
        State::Paused => crds::State::Paused,
        State::RolledBack => crds::State::RolledBack,
        State::Failed => crds::State::Failed,
    }
}
