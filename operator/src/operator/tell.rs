//! What the outside is told of a pass: metrics each time, an event at each transition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;
use lockkeeper_crds::{self as crds, ClusterVersionStatus, Phase, State, TicketState};

use super::act::ActError;
use super::conductor::PassError;
use super::gates::GateRound;
use super::wanted::chrono_time;
use crate::telemetry::metrics::{BackupFailure, Kind, NodeState, Outcome, UpgradeResult};
use crate::telemetry::{Metrics, Publisher, Pulse, Reason};

pub(super) struct Teller {
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Publisher,
    pub(super) pulse: Pulse,
}

/// How a pass ended: whether it changed anything, or why it did not get so far.
pub(super) fn outcome_of(ended: Result<bool, &PassError>) -> Outcome {
    match ended {
        Ok(true) => Outcome::Changed,
        Ok(false) => Outcome::Unchanged,
        Err(error) if error.is_conflict() => Outcome::Conflict,
        Err(PassError::Act(ActError::Api(_)) | PassError::NotLeading(_)) => Outcome::ApiError,
        Err(_) => Outcome::Invalid,
    }
}

impl Teller {
    /// A pass has ended.
    pub(super) fn pass(&self, ended: Result<bool, &PassError>, took: Duration) {
        self.pulse.beat();
        self.metrics
            .reconciled(Kind::ClusterVersion, outcome_of(ended), took);
    }

    /// What the agents report.
    pub(super) fn nodes(
        &self,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
        age: impl Fn(&str) -> Option<Duration>,
    ) {
        let now = chrono::Utc::now().timestamp();
        for (name, report) in reports {
            let Some(status) = &report.status else { continue };
            if let Some(age) = age(name) {
                self.metrics
                    .agent_reported(name, now - i64::try_from(age.as_secs()).unwrap_or(0));
            }
            let ends = status
                .certificates
                .iter()
                .map(|c| (c.path.as_str(), c.not_after.0.as_second()));
            self.metrics.certificates(name, ends);
        }
    }

    /// The backups that are known, and the stores.
    pub(super) fn backups<'a>(
        &self,
        backups: impl Iterator<Item = &'a crds::EtcdBackup>,
        stores: impl Iterator<Item = &'a crds::EtcdBackupStore>,
    ) {
        let stored = |b: &crds::EtcdBackup| {
            let completed = b.status.as_ref()?.completed_at.as_ref();
            Some(chrono_time(completed.filter(|_| b.is_proven())?)?.timestamp())
        };
        self.metrics.backup_succeeded(backups.filter_map(stored).max());
        for store in stores {
            let available = store
                .status
                .as_ref()
                .and_then(|s| s.conditions.iter().find(|c| c.type_ == "Available"));
            let available = available
                .filter(|c| c.status != "Unknown")
                .map(|c| c.status == "True");
            self.metrics
                .store(store.metadata.name.as_deref().unwrap_or_default(), available);
        }
    }

    /// A round of gates.
    pub(super) fn gates(&self, round: &GateRound) {
        self.metrics.gates(round);
        self.metrics.longest_outage(round.longest_outage);
    }

    /// The status was written: `before` became `next`.
    pub(super) fn status(
        &self,
        object: &crds::ClusterVersion,
        before: &ClusterVersionStatus,
        next: &ClusterVersionStatus,
    ) {
        self.metrics.upgrade_state(next.state);
        let count = |state: NodeState| next.nodes.iter().filter(|n| node_state(n) == Some(state)).count();
        self.metrics.upgrade_nodes(count);
        let second = |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0.as_second();
        let step = next.step.as_ref();
        self.metrics.step(
            step.and_then(|s| s.since.as_ref()).map(second),
            step.and_then(|s| s.deadline.as_ref()).map(second),
        );
        if next.rollout.as_ref().is_none_or(|r| r.ended_at.is_some()) {
            self.metrics.gates_rest();
        }
        self.count(before, next);
        let regarding = object.object_ref(&());
        for (reason, note) in transitions(before, next) {
            self.events.publish(&regarding, reason, &note);
        }
    }

    fn count(&self, before: &ClusterVersionStatus, next: &ClusterVersionStatus) {
        let phase = |s: &ClusterVersionStatus| s.rollout.as_ref().map(|r| r.phase);
        if phase(before) == phase(next) {
            return;
        }
        match phase(next) {
            Some(Phase::Completed) => self.metrics.upgrade_ended(UpgradeResult::Upgraded),
            Some(Phase::RolledBack) => self.metrics.upgrade_ended(UpgradeResult::RolledBack),
            Some(Phase::Failed) => self.metrics.upgrade_ended(UpgradeResult::Failed),
            Some(Phase::Back) => self.metrics.rollback_began(),
            _ => {}
        }
        let failed = |s: &ClusterVersionStatus| s.rollout.as_ref().map_or(0, |r| r.failed_backups);
        if failed(next) > failed(before) {
            self.metrics.backup_failed(BackupFailure::Other);
        }
    }
}

fn node_state(row: &crds::NodeRow) -> Option<NodeState> {
    match row.state.as_str() {
        "Pending" => Some(NodeState::Pending),
        "Upgrading" => Some(NodeState::Upgrading),
        "Done" => Some(NodeState::Done),
        "RollingBack" => Some(NodeState::RollingBack),
        "Unknown" => Some(NodeState::Unknown),
        _ => None,
    }
}

/// What happened between two statuses, as events. Pure; nothing for a status that says the same.
fn transitions(before: &ClusterVersionStatus, next: &ClusterVersionStatus) -> Vec<(Reason, String)> {
    let mut found = Vec::new();
    let phase = |s: &ClusterVersionStatus| s.rollout.as_ref().map(|r| (r.id.clone(), r.phase));
    let (was, is) = (phase(before), phase(next));
    let way = next
        .rollout
        .as_ref()
        .map(|r| format!("{} to {}", r.source, r.target))
        .unwrap_or_default();
    let reason = next
        .rollout
        .as_ref()
        .and_then(|r| r.reason.clone())
        .unwrap_or_default();
    if was != is
        && let Some((_, phase)) = is
    {
        match phase {
            Phase::Preflight => found.push((Reason::PlanComputed, format!("{way}: checking first"))),
            Phase::Snapshot => {
                found.push((Reason::PreflightPassed, format!("{way}: every check passes")));
                found.push((
                    Reason::BackupStarted,
                    format!("{way}: taking a snapshot of etcd first"),
                ));
            }
            Phase::Forward => {
                let key = next.snapshot.as_ref().and_then(|s| s.key.clone());
                if let Some(key) = key {
                    found.push((Reason::BackupVerified, format!("stored and read back: {key}")));
                }
            }
            Phase::Back => found.push((Reason::RollbackStarted, reason)),
            Phase::Completed => found.push((Reason::UpgradeCompleted, next.summary.clone())),
            Phase::RolledBack => found.push((Reason::RollbackCompleted, reason)),
            Phase::Failed => found.push((Reason::UpgradeFailed, reason)),
            Phase::Superseded => {}
        }
    }
    let failed = |s: &ClusterVersionStatus| s.rollout.as_ref().map_or(0, |r| r.failed_backups);
    if was.as_ref().map(|w| &w.0) == is.as_ref().map(|i| &i.0) && failed(next) > failed(before) {
        found.push((Reason::BackupFailed, next.summary.clone()));
    }
    if before.state != next.state {
        match next.state {
            State::Blocked => found.push((Reason::PreflightBlocked, next.summary.clone())),
            State::Paused => found.push((Reason::UpgradePaused, next.summary.clone())),
            _ if before.state == State::Paused => found.push((Reason::UpgradeResumed, next.summary.clone())),
            _ => {}
        }
    }
    found.extend(step_transition(before, next));
    found
}

/// What became of the step in hand. A step is named once it has been issued.
fn step_transition(before: &ClusterVersionStatus, next: &ClusterVersionStatus) -> Option<(Reason, String)> {
    let named = |s: &ClusterVersionStatus| s.step.clone().filter(|step| !step.name.is_empty());
    let told = |step: &crds::StepStatus| format!("{}: {}", step.node, step.name);
    let same = |a: &crds::StepStatus, b: &crds::StepStatus| a.node == b.node && a.name == b.name;
    let phase = |s: &ClusterVersionStatus| s.rollout.as_ref().map(|r| r.phase);
    let undoing = format!("{:?}", TicketState::Undoing);
    match (named(before), named(next)) {
        (was, Some(is)) if !was.as_ref().is_some_and(|was| same(was, &is)) => {
            Some((Reason::NodeUpgradeStarted, told(&is)))
        }
        (Some(was), Some(is)) if is.state == undoing && was.state != undoing => {
            Some((Reason::GateFailed, format!("{}: {}", is.node, next.summary)))
        }
        // A step that ended badly turned the rollout round, and that is told.
        (Some(was), None) if phase(before) == phase(next) && was.state != undoing => {
            Some((Reason::NodeUpgraded, told(&was)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, phase: Phase) -> ClusterVersionStatus {
        let rollout = serde_json::json!({
            "id": "a", "source": "v1.35.4", "target": "v1.36.3", "phase": phase, "startedAt": "2026-01-01T00:00:00Z",
            "reason": "the gates failed"
        });
        ClusterVersionStatus {
            state,
            rollout: Some(serde_json::from_value(rollout).unwrap()),
            ..Default::default()
        }
    }

    #[test]
    fn an_event_is_made_at_a_transition_and_not_at_a_repetition() {
        let names = |before: &ClusterVersionStatus, next: &ClusterVersionStatus| -> Vec<&'static str> {
            transitions(before, next).iter().map(|(r, _)| r.name()).collect()
        };
        let idle = ClusterVersionStatus::default();
        let begun = status(State::Preflight, Phase::Preflight);
        let blocked = status(State::Blocked, Phase::Preflight);
        let back = status(State::RollingBack, Phase::Back);
        let ended = status(State::RolledBack, Phase::RolledBack);
        let step = |state: &str| crds::StepStatus {
            name: "kube-apiserver to v1.36.3".into(),
            node: "cp1".into(),
            state: state.into(),
            since: None,
            deadline: None,
        };
        let rolling = status(State::Rolling, Phase::Forward);
        let [starting, ready, undoing] = ["Starting", "Ready", "Undoing"].map(|s| ClusterVersionStatus {
            step: Some(step(s)),
            ..rolling.clone()
        });
        assert_eq!(names(&rolling, &starting), ["NodeUpgradeStarted"]);
        assert!(names(&starting, &ready).is_empty());
        assert_eq!(names(&ready, &rolling), ["NodeUpgraded"]);
        assert_eq!(names(&ready, &undoing), ["GateFailed"]);
        assert_eq!(names(&undoing, &back), ["RollbackStarted"]);
        assert_eq!(names(&idle, &begun), ["PlanComputed"]);
        assert_eq!(names(&begun, &blocked), ["PreflightBlocked"]);
        assert!(names(&blocked, &blocked).is_empty());
        assert_eq!(names(&begun, &back), ["RollbackStarted"]);
        assert_eq!(
            transitions(&back, &ended),
            [(Reason::RollbackCompleted, "the gates failed".to_owned())]
        );
    }
}
