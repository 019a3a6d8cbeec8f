//! Backups that are proven further than stored: which one a drill takes, by when one should be, and who proves one
//! whose node is lost. Pure.

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds::{self as crds, Proof};
use lockkeeper_policies::schedule::{self, Timetable, Timing};

use super::plan::Backups;
use crate::operator::wanted::chrono_time;

/// What is to be done about a schedule's drills now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Drills {
    /// The slot to begin now, the backup that is proven for it, and how far.
    pub(super) begin: Option<(DateTime<Utc>, String, Proof)>,
    /// When the next one begins; a moment that has passed when one waits for a recovery point.
    pub(super) next: Option<DateTime<Utc>>,
    /// By when a backup should be proven as far as the spec asks; none where it asks for nothing.
    pub(super) overdue: Option<DateTime<Utc>>,
}

/// Reads `spec.drill.schedule`.
fn table(spec: &crds::EtcdBackupScheduleSpec, drill: &crds::Drill) -> Result<Timetable, String> {
    Timetable::parse(&drill.schedule, &spec.time_zone)
        .map_err(|e| e.to_string().replacen("spec.schedule", "spec.drill.schedule", 1))
}

/// A drill is begun at its slot, however late.
fn timing() -> Timing {
    Timing {
        starting_deadline: None,
        jitter: TimeDelta::zero(),
        seed: String::new(),
    }
}

/// What is to be done now. `made`: when the schedule was.
///
/// # Errors
/// When `spec.drill.schedule` cannot be understood; the sentence names it.
pub(super) fn drills(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    backup_table: &Timetable,
    made: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Drills, String> {
    let mut drills = Drills {
        overdue: overdue_backup(object, backups, backup_table, made),
        ..Drills::default()
    };
    let Some(drill) = &object.spec.drill else {
        return Ok(drills);
    };
    let table = table(&object.spec, drill)?;
    let turn = schedule::turn(&table, &timing(), made, begun(object, backups), now);
    drills.next = turn.next;
    if let Some(slot) = turn.due
        && let Some(newest) = backups.proven().rfind(|own| own.slot <= now)
    {
        drills.begin = Some((
            slot,
            newest.name().to_owned(),
            drill.proof.max(newest.backup.spec.proof),
        ));
    }
    let done = reached(backups, drill.proof)
        .filter(|t| *t <= now)
        .unwrap_or(made);
    let next = table.next(done).map(|slot| slot + limit(object));
    // Where each backup is to be proven too, the drill's is the later word of the two only where it asks for more.
    if drills.overdue.is_none() || drill.proof > object.spec.proof {
        drills.overdue = drills.overdue.into_iter().chain(next).min();
    }
    Ok(drills)
}

/// The drill's slots that a backup was chosen for.
fn begun(object: &crds::EtcdBackupSchedule, backups: &Backups<'_>) -> Vec<DateTime<Utc>> {
    let told = object.status.as_ref().and_then(|s| s.last_drill_slot.as_ref());
    let told = told.and_then(chrono_time);
    backups
        .0
        .iter()
        .filter_map(|own| slot(own.backup))
        .chain(told)
        .collect()
}

/// The newest slot of a drill that a backup was chosen for.
pub(super) fn last_slot(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    begun(object, backups)
        .into_iter()
        .filter(|slot| *slot <= now)
        .max()
}

/// The drill's slot that a backup was chosen for.
fn slot(backup: &crds::EtcdBackup) -> Option<DateTime<Utc>> {
    let text = backup
        .metadata
        .annotations
        .as_ref()?
        .get(crds::DRILL_ANNOTATION)?;
    text.parse().ok()
}

/// When a backup last came to this level, of those that are there.
pub(super) fn reached(backups: &Backups<'_>, level: Proof) -> Option<DateTime<Utc>> {
    let at = |backup: &crds::EtcdBackup| {
        let condition = backup.condition(level.name())?;
        (condition.status == "True")
            .then(|| chrono_time(&condition.last_transition_time))
            .flatten()
    };
    backups.0.iter().filter_map(|own| at(own.backup)).max()
}

/// What a backup may take, and then its proof; and once more, for one that was tried again.
fn limit(object: &crds::EtcdBackupSchedule) -> TimeDelta {
    TimeDelta::seconds(i64::from(object.spec.deadline_seconds) * 3)
}

/// By when the backup after the last one that was proven should be, where each is to be.
fn overdue_backup(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    table: &Timetable,
    made: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let wanted = object.spec.proof;
    if wanted == Proof::Stored {
        return None;
    }
    let since = backups
        .proven_so_far(wanted)
        .next_back()
        .map_or(made, |own| own.slot);
    Some(table.next(since)? + TimeDelta::seconds(object.spec.jitter_seconds.into()) + limit(object))
}

/// The newest backup whose proof was tried and not reached, with the reason, unless a newer one came as far.
pub(super) fn unproven<'a>(backups: &'a Backups<'_>) -> Option<(&'a str, &'a str)> {
    let own = backups.proven().rfind(|own| failed(own.backup).is_some())?;
    let (level, message) = failed(own.backup)?;
    let better = backups.proven_so_far(level).next_back();
    better
        .is_none_or(|better| better.slot < own.slot)
        .then_some((own.name(), message))
}

fn failed(backup: &crds::EtcdBackup) -> Option<(Proof, &str)> {
    let wanted = Proof::ALL.into_iter().filter(|level| *level <= backup.spec.proof);
    wanted
        .filter_map(|level| Some((level, backup.condition(level.name())?)))
        .find(|(_, condition)| condition.status == "False")
        .map(|(level, condition)| (level, condition.message.as_str()))
}

/// The node whose agent is to prove a backup instead of its own, which is not heard.
pub(super) fn other_node<'a>(backup: &crds::EtcdBackup, heard: &[&'a str]) -> Option<&'a str> {
    backup.unproven()?;
    let own = backup.status.as_ref()?.node.as_deref()?;
    if heard.contains(&own) {
        return None;
    }
    heard.first().copied()
}

#[cfg(test)]
#[path = "drill_tests.rs"]
mod tests;
