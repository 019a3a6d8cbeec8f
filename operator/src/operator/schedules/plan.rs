//! From a schedule and its backups to what is to be done now. Pure.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds as crds;
use lockkeeper_policies::retention::{self, Point, Retention, State};
use lockkeeper_policies::schedule::{self, Timetable, Timing, Turn};

use super::drill::{Drills, drills};
use crate::operator::backups::level;
use crate::operator::wanted::chrono_time;

/// A backup that a schedule made.
#[derive(Clone, Debug)]
pub(super) struct Own<'a> {
    pub(super) backup: &'a crds::EtcdBackup,
    pub(super) slot: DateTime<Utc>,
}

impl Own<'_> {
    pub(super) fn name(&self) -> &str {
        self.backup.metadata.name.as_deref().unwrap_or_default()
    }

    fn is_going(&self) -> bool {
        self.backup.metadata.deletion_timestamp.is_some()
    }

    fn state(&self) -> State {
        match self.backup.proven() {
            _ if !self.backup.is_finished() => State::Unfinished,
            Some(proof) => State::Proven(level(proof)),
            None => State::Failed,
        }
    }

    /// It is being proven further just now.
    fn is_being_proven(&self) -> bool {
        let running = |level: &crds::Proof| {
            let condition = self.backup.condition(level.name());
            condition.is_some_and(|c| c.status == "Unknown")
        };
        crds::Proof::ALL.iter().any(running)
    }
}

/// The backups of one schedule, the oldest slot first.
///
/// A backup is a schedule's own when it bears the schedule's label and a name that the schedule would give. One
/// that was labelled by hand is not, and neither is one whose name holds no slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Backups<'a>(pub(super) Vec<Own<'a>>);

impl<'a> Backups<'a> {
    pub(super) fn of(schedule: &str, all: impl IntoIterator<Item = &'a crds::EtcdBackup>) -> Self {
        let own = |backup: &'a crds::EtcdBackup| {
            let labels = backup.metadata.labels.as_ref()?;
            let slot = schedule::slot_of(schedule, backup.metadata.name.as_deref()?)?;
            (labels.get(crds::SCHEDULE_LABEL).map(String::as_str) == Some(schedule))
                .then_some(Own { backup, slot })
        };
        let mut own: Vec<Own<'a>> = all.into_iter().filter_map(own).collect();
        own.sort_by_key(|o| o.slot);
        Self(own)
    }

    /// Those that are not about to go.
    fn staying(&self) -> impl DoubleEndedIterator<Item = &Own<'a>> {
        self.0.iter().filter(|o| !o.is_going())
    }

    fn of_state(&self, state: State) -> impl DoubleEndedIterator<Item = &Own<'a>> {
        self.staying().filter(move |o| o.state() == state)
    }

    /// Those that are proven so far at least.
    pub(super) fn proven_so_far(&self, level: crds::Proof) -> impl DoubleEndedIterator<Item = &Own<'a>> {
        self.staying().filter(move |o| o.backup.proven() >= Some(level))
    }

    /// The one that waits or is being taken.
    pub(super) fn active(&self) -> Option<&Own<'a>> {
        self.of_state(State::Unfinished).next_back()
    }

    /// Those that can be restored.
    pub(super) fn proven(&self) -> impl DoubleEndedIterator<Item = &Own<'a>> {
        self.proven_so_far(crds::Proof::Stored)
    }

    /// Those that failed since the last one that can be restored.
    pub(super) fn failures(&self) -> impl DoubleEndedIterator<Item = &Own<'a>> {
        let since = self.proven().next_back().map(|o| o.slot);
        self.of_state(State::Failed)
            .filter(move |o| since.is_none_or(|s| o.slot > s))
    }

    /// Those that were deleted, and cannot go yet.
    pub(super) fn stuck(&self) -> impl Iterator<Item = (&Own<'a>, &crds::EtcdBackup)> {
        self.0
            .iter()
            .filter(|o| o.backup.is_leaving())
            .map(|o| (o, o.backup))
    }

    /// `in_use`: the backup that an upgrade has accepted as its snapshot.
    pub(super) fn points(&self, in_use: Option<&str>) -> Vec<Point> {
        self.staying()
            .map(|own| Point {
                name: own.name().to_owned(),
                slot: own.slot,
                state: own.state(),
                retained: own.backup.is_retained(),
                busy: own.is_being_proven() || in_use == Some(own.name()),
            })
            .collect()
    }
}

/// Why a schedule stands still until somebody does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stalled {
    /// Short and stable.
    pub(super) reason: &'static str,
    /// With the way out.
    pub(super) message: String,
}

/// What is to be done about a schedule.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Why nothing is.
    pub(super) stalled: Option<Stalled>,
    /// The slot to begin a backup for.
    pub(super) begin: Option<DateTime<Utc>>,
    /// Backups to let go now.
    pub(super) prune: Vec<String>,
    /// The slot of the success after which `prune` is, or was, all that goes.
    pub(super) pruned_for: Option<DateTime<Utc>>,
    /// What would go with the next success.
    pub(super) prune_next: Vec<String>,
    /// What the clock says.
    pub(super) turn: Turn,
    /// When the next success is overdue.
    pub(super) overdue: Option<DateTime<Utc>>,
    /// What is to be proven further.
    pub(super) drills: Drills,
}

impl Plan {
    /// When the clock alone makes something due next.
    pub(super) fn wake(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let moments = self.turn.next.into_iter().chain(self.drills.next);
        moments.filter(|moment| *moment > now).min()
    }

    fn stalled(stalled: Stalled) -> Self {
        Self {
            stalled: Some(stalled),
            begin: None,
            prune: vec![],
            pruned_for: None,
            prune_next: vec![],
            turn: Turn {
                due: None,
                missed: None,
                next: None,
            },
            overdue: None,
            drills: Drills::default(),
        }
    }
}

/// What surrounds a schedule.
pub(super) struct Around<'a> {
    pub(super) namespace: &'a str,
    /// The `EtcdBackupStore`s that exist.
    pub(super) stores: &'a BTreeSet<String>,
    /// The names of all `EtcdBackup`s, the schedule's own and others.
    pub(super) names: &'a BTreeSet<String>,
    /// The backup that an upgrade which has not ended accepted as its snapshot.
    pub(super) in_use: Option<&'a str>,
}

/// What is to be done about `object` now, given its backups.
pub(super) fn plan(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    around: &Around<'_>,
    now: DateTime<Utc>,
) -> Plan {
    let (table, keep) = match (table(&object.spec), keep(&object.spec.retention)) {
        (Ok(table), Ok(keep)) => (table, keep),
        (Err(message), _) | (_, Err(message)) => {
            let reason = "InvalidSpec";
            return Plan::stalled(Stalled { reason, message });
        }
    };
    let timing = timing(object);
    let made = object
        .metadata
        .creation_timestamp
        .as_ref()
        .and_then(chrono_time)
        .unwrap_or(now);
    let told = object
        .status
        .as_ref()
        .and_then(|s| s.last_schedule_time.as_ref())
        .and_then(chrono_time);
    let begun = backups.0.iter().map(|o| o.slot).chain(told);
    let mut turn = schedule::turn(&table, &timing, made, begun, now);
    let stalled = stalled(object, backups, around, turn.due);
    let suspended = object.spec.suspend;
    let may_begin = stalled.is_none() && !suspended && backups.active().is_none();
    let begin = turn.due.filter(|_| may_begin);

    let points = backups.points(around.in_use);
    let newest = backups.proven().map(|o| o.slot).rfind(|slot| *slot <= now);
    let before = object
        .status
        .as_ref()
        .and_then(|s| s.pruned_for.as_ref())
        .and_then(chrono_time);
    // One of the future was written by a clock that was wrong.
    let before = before.filter(|slot| *slot <= now);
    let is_news = newest.is_some_and(|newest| before.is_none_or(|before| before < newest));
    let prune = if is_news && !suspended {
        retention::prune(&points, &keep, table.zone(), now)
    } else {
        vec![]
    };
    let mut drills = match drills(object, backups, &table, made, now) {
        _ if suspended => Drills::default(),
        Ok(drills) => drills,
        Err(message) => {
            let reason = "InvalidSpec";
            return Plan::stalled(Stalled { reason, message });
        }
    };
    if stalled.is_some() {
        drills.begin = None;
    }
    let next_slot = table.next(now).unwrap_or(now);
    let deadline = TimeDelta::seconds(object.spec.deadline_seconds.into());
    let overdue = schedule::overdue(&table, &timing, newest.unwrap_or(made), deadline);
    if suspended {
        (turn.next, turn.missed) = (None, None);
    }
    Plan {
        begin,
        pruned_for: if is_news && !suspended { newest } else { before },
        prune_next: retention::prune_after(&points, &keep, table.zone(), now, next_slot),
        prune,
        overdue: overdue.filter(|_| !suspended),
        turn,
        stalled,
        drills,
    }
}

/// Why no backup can be begun, although the spec can be understood.
fn stalled(
    object: &crds::EtcdBackupSchedule,
    backups: &Backups<'_>,
    around: &Around<'_>,
    due: Option<DateTime<Utc>>,
) -> Option<Stalled> {
    let store = &object.spec.store_ref.name;
    if !around.stores.contains(store) {
        let namespace = around.namespace;
        return Some(Stalled {
            reason: "StoreNotFound",
            message: format!(
                "EtcdBackupStore {store} does not exist in namespace {namespace}: create it, or name another one in spec.storeRef"
            ),
        });
    }
    let name = schedule::backup_name(object.metadata.name.as_deref()?, due?);
    let taken = around.names.contains(&name) && backups.0.iter().all(|o| o.name() != name);
    taken.then(|| Stalled {
        reason: "NameTaken",
        message: format!(
            "EtcdBackup {name} exists and is not of this schedule: delete it, or give it the label {}; the next slot is not touched by it",
            crds::SCHEDULE_LABEL
        ),
    })
}

fn table(spec: &crds::EtcdBackupScheduleSpec) -> Result<Timetable, String> {
    Timetable::parse(&spec.schedule, &spec.time_zone).map_err(|e| e.to_string())
}

fn keep(rules: &crds::Retention) -> Result<Retention, String> {
    let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
    Ok(Retention {
        last: count(rules.keep_last),
        hourly: count(rules.keep_hourly),
        daily: count(rules.keep_daily),
        weekly: count(rules.keep_weekly),
        monthly: count(rules.keep_monthly),
        yearly: count(rules.keep_yearly),
        within: rules.keep_within.as_deref().map(retention::within).transpose()?,
    })
}

fn timing(object: &crds::EtcdBackupSchedule) -> Timing {
    let spec = &object.spec;
    Timing {
        starting_deadline: spec
            .starting_deadline_seconds
            .map(|s| TimeDelta::seconds(s.into())),
        jitter: TimeDelta::seconds(spec.jitter_seconds.into()),
        // Not the name: schedules that come from one template have the same in every cluster.
        seed: object.metadata.uid.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
