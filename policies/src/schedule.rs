//! When a scheduled backup is due.
//!
//! A *slot* is a moment that the cron line names, a whole minute of UTC. Each slot is begun at most once, and of
//! all slots that have passed since the last one that was begun only the newest is: what was missed while the
//! operator was away, or while a backup was going on, is one backup and not a hundred.

use chrono::{DateTime, NaiveDateTime, TimeDelta, TimeZone as _, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use sha2::{Digest as _, Sha256};

/// Why there is no timetable. Each names its field and the way out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The line is no cron line.
    #[error(
        "spec.schedule {line:?} is no cron line: {why}. Write minute, hour, day of month, month and day of week, e.g. \"0 3 * * *\""
    )]
    Cron {
        /// What stands there.
        line: String,
        /// What the parser says of it.
        why: String,
    },
    /// The line names no moment that ever comes.
    #[error("spec.schedule {line:?} names a moment that never comes: correct its day of month or its month")]
    Never {
        /// What stands there.
        line: String,
    },
    /// The zone is not known.
    #[error(
        "spec.timeZone {zone:?} is not a time zone of the IANA database: write one of its names, e.g. \"Europe/Berlin\", or \"UTC\""
    )]
    Zone {
        /// What stands there.
        zone: String,
    },
}

/// A cron line in a time zone.
#[derive(Clone, Debug)]
pub struct Timetable {
    cron: Cron,
    zone: Tz,
}

impl Timetable {
    /// Reads a cron line of five fields, and the IANA name of the zone that it is meant in.
    ///
    /// # Caveats
    /// When clocks go forward, a line that names one minute of one hour that is left out means the first minute
    /// after it. When they go back, such a line means the first of the two; a line with a step, a list or a
    /// star in it means both.
    ///
    /// # Errors
    /// When one of them cannot be understood, or no moment ever comes.
    pub fn parse(line: &str, zone: &str) -> Result<Self, ScheduleError> {
        let named = zone.parse::<Tz>().map_err(|_| ScheduleError::Zone {
            zone: zone.to_owned(),
        })?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let cron = parser.parse(line).map_err(|e| ScheduleError::Cron {
            line: line.to_owned(),
            why: e.to_string().trim_end_matches('.').to_owned(),
        })?;
        let table = Self { cron, zone: named };
        // Any moment will do: what comes once, comes again.
        if table.next(DateTime::UNIX_EPOCH).is_none() {
            return Err(ScheduleError::Never {
                line: line.to_owned(),
            });
        }
        Ok(table)
    }

    /// The zone, in which days, weeks and months of a retention are meant, too.
    #[must_use]
    pub const fn zone(&self) -> Tz {
        self.zone
    }

    /// The first slot after a moment.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let after = whole_seconds(after)?.with_timezone(&self.zone);
        Some(self.cron.find_next_occurrence(&after, false).ok()?.to_utc())
    }

    /// The newest slot that is not after a moment.
    #[must_use]
    pub fn last(&self, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let until = whole_seconds(until)?.with_timezone(&self.zone);
        Some(self.cron.find_previous_occurrence(&until, true).ok()?.to_utc())
    }

    fn before(&self, slot: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.last(slot - TimeDelta::seconds(1))
    }
}

fn whole_seconds(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.timestamp(), 0)
}

/// How a timetable is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A slot that could not be begun for this long is passed over; `None`: none is.
    pub starting_deadline: Option<TimeDelta>,
    /// A slot is begun up to this much later, so that many clusters do not come to one bucket at once.
    pub jitter: TimeDelta,
    /// What tells this schedule's jitter from another's.
    pub seed: String,
}

impl Timing {
    /// When a slot is begun: the same for the same seed and slot, in every process.
    #[must_use]
    pub fn begins(&self, slot: DateTime<Utc>) -> DateTime<Utc> {
        let hash = Sha256::digest(format!("{}/{}", self.seed, slot.timestamp()));
        let number = hash
            .iter()
            .take(8)
            .fold(0u64, |n, byte| (n << 8) | u64::from(*byte));
        let choices = u64::try_from(self.jitter.num_seconds())
            .unwrap_or(0)
            .saturating_add(1);
        slot + TimeDelta::seconds(i64::try_from(number % choices).unwrap_or(0))
    }
}

/// What is to be done about a timetable now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The slot to begin now.
    pub due: Option<DateTime<Utc>>,
    /// The slot that was passed over: its starting deadline is over, and nothing newer is due.
    pub missed: Option<DateTime<Utc>>,
    /// When the next one begins, jitter included; a moment that has passed when one is due.
    pub next: Option<DateTime<Utc>>,
}

/// What is due now.
///
/// `since`: when the schedule was made; slots up to then are none of its own. `begun`: every slot that is known
/// to have been begun, in any order. One in the future is not believed: a clock was wrong, and the schedule
/// would stand still until then.
///
/// # Guarantees
/// * No slot of `begun`, none before the newest of them, none up to `since` and none in the future is due.
/// * However many slots have passed, the newest that has come is due, and it alone.
#[must_use]
pub fn turn(
    table: &Timetable,
    timing: &Timing,
    since: DateTime<Utc>,
    begun: impl IntoIterator<Item = DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Turn {
    let after = begun
        .into_iter()
        .filter(|slot| *slot <= now)
        .fold(since, DateTime::max);
    let come = newest_come(table, timing, after, now);
    let late = |slot: DateTime<Utc>| {
        timing
            .starting_deadline
            .is_some_and(|deadline| now > timing.begins(slot) + deadline)
    };
    let due = come.filter(|slot| !late(*slot));
    let missed = come.filter(|slot| late(*slot));
    let next = due
        .map(|slot| timing.begins(slot))
        .or_else(|| next_to_come(table, timing, after, now));
    Turn { due, missed, next }
}

/// The newest slot after `after` whose moment, jitter included, has come.
fn newest_come(
    table: &Timetable,
    timing: &Timing,
    after: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let mut slot = table.last(now)?;
    // Ends soon: a slot older than the longest jitter has come.
    while slot > after {
        if timing.begins(slot) <= now {
            return Some(slot);
        }
        slot = table.before(slot)?;
    }
    None
}

/// The earliest beginning after `now` of any slot after `after`.
fn next_to_come(
    table: &Timetable,
    timing: &Timing,
    after: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let mut slot = table.next(after.max(now - timing.jitter - TimeDelta::seconds(1)))?;
    let mut earliest: Option<DateTime<Utc>> = None;
    while earliest.is_none_or(|found| slot < found) {
        let begins = timing.begins(slot);
        if begins > now {
            earliest = Some(earliest.map_or(begins, |found| found.min(begins)));
        }
        let Some(next) = table.next(slot) else { break };
        slot = next;
    }
    earliest
}

/// When the next success is overdue: a success at the slot after the last one would have come by then.
///
/// `since`: the slot of the last success, or when the schedule was made. `deadline`: what one backup may take.
#[must_use]
pub fn overdue(
    table: &Timetable,
    timing: &Timing,
    since: DateTime<Utc>,
    deadline: TimeDelta,
) -> Option<DateTime<Utc>> {
    Some(timing.begins(table.next(since)?) + deadline)
}

/// How a slot stands in an object's name: UTC, so that an hour that comes twice has two names.
const SLOT: &str = "%Y%m%d-%H%M";

/// The name of the backup of a slot. The same slot has the same name whoever makes it, so it is made once.
#[must_use]
pub fn backup_name(schedule: &str, slot: DateTime<Utc>) -> String {
    format!("{schedule}-{}", slot.format(SLOT))
}

/// The slot in the name of a schedule's backup; `None` for any other name.
#[must_use]
pub fn slot_of(schedule: &str, backup: &str) -> Option<DateTime<Utc>> {
    let text = backup.strip_prefix(schedule)?.strip_prefix('-')?;
    let slot = Utc.from_utc_datetime(&NaiveDateTime::parse_from_str(text, SLOT).ok()?);
    // The parser is lenient where the writer is not; only what would be written counts.
    (backup_name(schedule, slot) == backup).then_some(slot)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
