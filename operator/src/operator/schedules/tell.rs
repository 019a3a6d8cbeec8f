//! What the outside is told of schedules: metrics each time, an event at each transition.

use std::sync::Arc;
use std::time::Duration;

use kube::Resource as _;
use lockkeeper_crds::{self as crds, EtcdBackupScheduleStatus, Proof};

use super::plan::{Backups, Plan};
use crate::operator::conductor::PassError;
use crate::operator::tell::outcome_of;
use crate::telemetry::metrics::{BackupFailure, Kind, ScheduleFigures};
use crate::telemetry::{Metrics, Publisher, Pulse, Reason};

pub(in crate::operator) struct Teller {
    pub(in crate::operator) metrics: Arc<Metrics>,
    pub(in crate::operator) events: Publisher,
    pub(in crate::operator) pulse: Pulse,
}

impl Teller {
    /// A pass over all schedules has ended.
    pub(super) fn pass(&self, ended: Result<bool, &PassError>, took: Duration) {
        self.pulse.beat();
        self.metrics
            .reconciled(Kind::EtcdBackupSchedule, outcome_of(ended), took);
    }

    /// What a schedule's status says.
    pub(super) fn figures(&self, name: &str, status: &EtcdBackupScheduleStatus, plan: &Plan) {
        let second = |t: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| t.0.as_second();
        self.metrics.schedule(
            name,
            Some(ScheduleFigures {
                last_success: status.last_success_time.as_ref().map(second),
                next: status.next_schedule_time.as_ref().map(second),
                last_verified: status.last_verified_time.as_ref().map(second),
                last_drilled: status.last_drilled_time.as_ref().map(second),
                proof_overdue: plan.drills.overdue.map(|t| t.timestamp()),
                overdue: plan.overdue.map(|t| t.timestamp()),
                consecutive_failures: status.consecutive_failures.into(),
                recovery_points: status.recovery_points.count.into(),
            }),
        );
    }

    /// A schedule is gone.
    pub(super) fn gone(&self, name: &str) {
        self.metrics.schedule(name, None);
    }

    /// The status was written: what it was became `next`.
    pub(super) fn status(
        &self,
        object: &crds::EtcdBackupSchedule,
        backups: &Backups<'_>,
        next: &EtcdBackupScheduleStatus,
    ) {
        let before = object.status.clone().unwrap_or_default();
        if next.last_failure_time > before.last_failure_time {
            self.metrics.backup_failed(failure(backups));
        }
        for (reason, note) in transitions(&before, next, backups) {
            self.events.publish(&object.object_ref(&()), reason, &note);
        }
    }

    /// A drill has begun.
    pub(super) fn drilled(&self, object: &crds::EtcdBackupSchedule, name: &str, proof: crds::Proof) {
        let note = format!("{name} is chosen for a drill: {proof}");
        self.events
            .publish(&object.object_ref(&()), Reason::BackupDrillStarted, &note);
    }

    /// Backups were let go.
    pub(super) fn pruned(&self, object: &crds::EtcdBackupSchedule, names: &[String]) {
        let note = format!("let go by spec.retention: {}", names.join(", "));
        self.events
            .publish(&object.object_ref(&()), Reason::BackupsPruned, &note);
    }
}

/// Why the newest failure failed.
fn failure(backups: &Backups<'_>) -> BackupFailure {
    let ended = backups
        .failures()
        .next_back()
        .and_then(|o| o.backup.status.as_ref());
    let ended = ended.and_then(|s| s.conditions.iter().find(|c| c.type_ == "Succeeded"));
    match ended.map(|c| c.reason.as_str()) {
        Some("StoreUnavailable" | "ManifestConflict") => BackupFailure::Store,
        Some("EtcdUnavailable") => BackupFailure::Etcd,
        Some("TrailerMismatch" | "ReadBackMismatch") => BackupFailure::Corrupt,
        Some("DeadlineExceeded") => BackupFailure::Deadline,
        _ => BackupFailure::Other,
    }
}

/// What happened between two statuses, as events. Pure; nothing for a status that says the same.
fn transitions(
    before: &EtcdBackupScheduleStatus,
    next: &EtcdBackupScheduleStatus,
    backups: &Backups<'_>,
) -> Vec<(Reason, String)> {
    let mut found = Vec::new();
    if next.last_success_time > before.last_success_time
        && let Some(newest) = backups.proven().next_back()
    {
        found.push((
            Reason::BackupVerified,
            format!("{}: stored and read back", newest.name()),
        ));
    }
    if next.last_failure_time > before.last_failure_time {
        let failed = backups.failures().next_back();
        let why = failed.and_then(|o| Some((o.name(), &o.backup.status.as_ref()?.message)));
        let note = why.map_or_else(|| next.message.clone(), |(name, why)| format!("{name}: {why}"));
        found.push((Reason::BackupFailed, note));
    }
    for (level, now, then) in [
        (
            Proof::Verified,
            &next.last_verified_time,
            &before.last_verified_time,
        ),
        (Proof::Drilled, &next.last_drilled_time, &before.last_drilled_time),
    ] {
        let newest = backups.proven_so_far(level).next_back();
        if let Some(own) = newest.filter(|_| now > then) {
            let said = own.backup.condition(level.name()).map(|c| c.message.as_str());
            let note = format!("{}: {}", own.name(), said.unwrap_or_default());
            found.push((Reason::BackupProven, note));
        }
    }
    let ready = |s: &EtcdBackupScheduleStatus| s.conditions.iter().find(|c| c.type_ == "Ready").cloned();
    if let Some(now) = ready(next).filter(|c| c.reason == "NotProven")
        && ready(before).is_none_or(|then| then.message != now.message)
    {
        found.push((Reason::BackupNotProven, now.message));
    }
    if next.last_missed_time > before.last_missed_time {
        found.push((Reason::BackupMissed, next.message.clone()));
    }
    if next.active != before.active
        && let Some(name) = &next.active
    {
        found.push((Reason::BackupStarted, format!("taking {name}")));
    }
    let stalled = |s: &EtcdBackupScheduleStatus| {
        let stalled = s
            .conditions
            .iter()
            .find(|c| c.type_ == "Stalled" && c.status == "True")?;
        Some((stalled.reason.clone(), stalled.message.clone()))
    };
    if let Some((reason, message)) = stalled(next)
        && stalled(before).is_none_or(|(was, _)| was != reason)
    {
        found.push((Reason::ScheduleStalled, message));
    }
    found
}

#[cfg(test)]
#[path = "tell_tests.rs"]
mod tests;
