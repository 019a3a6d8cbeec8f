//! From a plan to the status that people and tools read. Pure.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockkeeper_crds::{self as crds, Tristate, condition, set_condition};

use super::drill;
use super::plan::{Backups, Own, Plan};
use crate::operator::wanted::{chrono_time, kube_time};

/// So many of the backups that go next are named.
const NAMED: usize = 20;

/// The status to write.
pub(super) fn build(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    plan: &Plan,
    now: DateTime<Utc>,
) -> crds::EtcdBackupScheduleStatus {
    let before = object.status.clone().unwrap_or_default();
    let newest = |a: Option<Time>, b: Option<Time>| a.max(b);
    let slot = |slot: DateTime<Utc>| kube_time(slot);
    let begun = backups.0.iter().map(|o| o.slot).filter(|s| *s <= now).max();
    let told = before
        .last_schedule_time
        .clone()
        .filter(|t| chrono_time(t).is_some_and(|t| t <= now));
    let completed = |own: &Own<'_>| own.backup.status.as_ref()?.completed_at.clone();
    let failures = backups.failures().count();
    let mut status = crds::EtcdBackupScheduleStatus {
        observed_generation: object.metadata.generation,
        message: String::new(),
        active: backups.active().map(|o| o.name().to_owned()),
        last_schedule_time: newest(told, begun.and_then(slot)),
        last_success_time: backups.proven().next_back().and_then(completed),
        last_failure_time: newest(
            before.last_failure_time.clone(),
            backups.failures().next_back().and_then(completed),
        ),
        last_missed_time: newest(before.last_missed_time.clone(), plan.turn.missed.and_then(slot)),
        next_schedule_time: plan.turn.next.and_then(slot),
        last_verified_time: newest(
            before.last_verified_time.clone(),
            drill::reached(backups, crds::Proof::Verified).and_then(slot),
        ),
        last_drilled_time: newest(
            before.last_drilled_time.clone(),
            drill::reached(backups, crds::Proof::Drilled).and_then(slot),
        ),
        last_drill_slot: drill::last_slot(object, backups, now).and_then(slot),
        next_drill_time: plan.drills.next.and_then(slot),
        consecutive_failures: u32::try_from(failures).unwrap_or(u32::MAX),
        recovery_points: points(backups),
        prune_next: plan.prune_next.iter().take(NAMED).cloned().collect(),
        prune_next_count: u32::try_from(plan.prune_next.len()).unwrap_or(u32::MAX),
        // Only once nothing of it is left to do.
        pruned_for: if plan.prune.is_empty() {
            plan.pruned_for.and_then(slot)
        } else {
            before.pruned_for.clone()
        },
        conditions: before.conditions.clone(),
    };
    conditions(&mut status, object, backups, plan, now);
    status
}

fn points(backups: &Backups<'_>) -> crds::RecoveryPoints {
    let size = |own: &Own<'_>| Some(own.backup.status.as_ref()?.artifact.as_ref()?.size_bytes);
    crds::RecoveryPoints {
        count: u32::try_from(backups.proven().count()).unwrap_or(u32::MAX),
        oldest: backups.proven().next().and_then(|o| kube_time(o.slot)),
        newest: backups.proven().next_back().and_then(|o| kube_time(o.slot)),
        bytes: backups.proven().filter_map(size).sum(),
    }
}

/// The three conditions, and the line that says the same to a person.
fn conditions(
    status: &mut crds::EtcdBackupScheduleStatus,
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    plan: &Plan,
    now: DateTime<Utc>,
) {
    let Some(at) = kube_time(now) else { return };
    let (ready, reason, message) = ready(status, object, backups, plan, now);
    let generation = object.metadata.generation;
    let active = backups.active();
    let doing = match active {
        Some(own) => doing(own),
        None => "no backup is going on".to_owned(),
    };
    let of = |yes: bool| if yes { Tristate::True } else { Tristate::False };
    let (stalled, why) = match &plan.stalled {
        Some(stalled) => (stalled.reason, stalled.message.as_str()),
        None => ("NotStalled", "nothing is asked of a person"),
    };
    let reconciling = if active.is_some() { "BackingUp" } else { "Idle" };
    for (type_, value, reason, message) in [
        ("Ready", of(ready), reason, message.as_str()),
        ("Reconciling", of(active.is_some()), reconciling, doing.as_str()),
        ("Stalled", of(plan.stalled.is_some()), stalled, why),
    ] {
        let new = condition(type_, value, reason, message, generation, at.clone());
        set_condition(&mut status.conditions, new);
    }
    status.message = match active {
        Some(_) if plan.stalled.is_none() && status.consecutive_failures == 0 => doing,
        _ => message,
    };
    if let Some(stuck) = stuck(backups) {
        status.message = format!("{}; {stuck}", status.message);
    }
}

fn doing(own: &Own<'_>) -> String {
    let assigned = own.backup.status.as_ref().is_some_and(|s| s.node.is_some());
    if assigned {
        format!("{} is being taken", own.name())
    } else {
        format!(
            "{} waits for an agent that is heard and whose etcd member is healthy",
            own.name()
        )
    }
}

/// Whether backups come as they should, why, and in words.
fn ready(
    status: &crds::EtcdBackupScheduleStatus,
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    plan: &Plan,
    now: DateTime<Utc>,
) -> (bool, &'static str, String) {
    if let Some(stalled) = &plan.stalled {
        return (false, stalled.reason, stalled.message.clone());
    }
    if object.spec.suspend {
        let message = "suspended: no backup is begun and none is let go until spec.suspend is false";
        return (true, "Suspended", message.to_owned());
    }
    if let Some(failed) = backups.failures().next_back() {
        let why = failed
            .backup
            .status
            .as_ref()
            .map(|s| s.message.as_str())
            .unwrap_or_default();
        let count = status.consecutive_failures;
        let message = format!("{} failed: {why} ({count} in a row)", failed.name());
        return (false, "BackupFailed", message);
    }
    if status.last_missed_time > status.last_schedule_time
        && let Some(missed) = &status.last_missed_time
    {
        let message = format!(
            "the backup of {} was passed over, since it could not be begun within spec.startingDeadlineSeconds",
            missed.0
        );
        return (false, "Missed", message);
    }
    if let Some(overdue) = plan
        .overdue
        .and_then(kube_time)
        .filter(|o| chrono_time(o).is_some_and(|o| o < now))
    {
        let doing = backups
            .active()
            .map_or_else(|| "none is going on".to_owned(), doing);
        let message = format!(
            "a backup should have succeeded by {}, and none has: {doing}",
            overdue.0
        );
        return (false, "Overdue", message);
    }
    if let Some((name, why)) = drill::unproven(backups) {
        return (false, "NotProven", format!("{name} is not proven: {why}"));
    }
    if let Some(newest) = &status.recovery_points.newest {
        return (
            true,
            "UpToDate",
            format!("the newest recovery point is of {}", newest.0),
        );
    }
    let next = status
        .next_schedule_time
        .as_ref()
        .map(|t| t.0.to_string())
        .unwrap_or_default();
    (true, "Scheduled", format!("the first backup begins at {next}"))
}

/// A deleted backup that cannot go, if there is one.
fn stuck(backups: &Backups<'_>) -> Option<String> {
    backups.stuck().find_map(|(own, backup)| {
        let conditions = &backup.status.as_ref()?.conditions;
        let why = conditions
            .iter()
            .find(|c| c.type_ == "Deleted" && c.status == "False")?;
        Some(format!("{} cannot be deleted: {}", own.name(), why.message))
    })
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
