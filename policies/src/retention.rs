//! Which backups of a schedule are kept.
//!
//! Each rule keeps on its own, and what any of them keeps stays. A rule of a calendar keeps the newest backup of
//! each of the newest hours, days, weeks, months or years that have one, as the clocks of the schedule's zone
//! show them; an hour or a day without a backup takes no place.

use std::collections::BTreeSet;

use chrono::{DateTime, Datelike as _, TimeDelta, Utc};
use chrono_tz::Tz;

/// How many failed backups are kept, for their messages.
const FAILED: usize = 10;

/// What is kept. A rule of 0 keeps nothing by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// The newest ones.
    pub last: usize,
    /// The newest of each hour.
    pub hourly: usize,
    /// The newest of each day.
    pub daily: usize,
    /// The newest of each week, Monday to Sunday.
    pub weekly: usize,
    /// The newest of each month.
    pub monthly: usize,
    /// The newest of each year.
    pub yearly: usize,
    /// All that are at most this much older than the newest one. Not than now: a schedule that stands still
    /// loses nothing.
    pub within: Option<TimeDelta>,
}

/// How far it is proven that a backup can be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Read back.
    Stored,
    /// Restored, booted and read.
    Verified,
    /// Read through an API server.
    Drilled,
}

/// How far a backup has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits or is being taken.
    Unfinished,
    /// Ended, and nothing that could be restored came of it.
    Failed,
    /// Ended, and what is stored was read back at least.
    Proven(Level),
}

impl State {
    const fn level(self) -> Option<Level> {
        match self {
            Self::Proven(level) => Some(level),
            Self::Unfinished | Self::Failed => None,
        }
    }
}

/// A backup of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name.
    pub name: String,
    /// The slot that it was taken for.
    pub slot: DateTime<Utc>,
    /// How far it has come.
    pub state: State,
    /// A person wants it kept for ever.
    pub retained: bool,
    /// It is being proven further, and does not go before that has ended.
    pub busy: bool,
}

/// The names of the backups that are not kept, the oldest first.
///
/// # Guarantees
/// * The newest proven backup is kept, whatever the rules say, and the newest that is verified, and the newest
///   that is drilled; so is everything unfinished, retained or just being proven further.
/// * A backup whose slot is in the future is kept and counts for nothing: a clock was wrong.
/// * Raising a number, or `within`, never lets a backup go that was kept before.
/// * Asked again after these are gone, there is nothing more to let go.
/// * The order of `points` does not matter.
#[must_use]
pub fn prune(points: &[Point], keep: &Retention, zone: Tz, now: DateTime<Utc>) -> Vec<String> {
    let mut known: Vec<&Point> = points.iter().filter(|p| !p.retained && p.slot <= now).collect();
    known.sort_by(|a, b| (b.slot, &b.name).cmp(&(a.slot, &a.name)));
    let proven: Vec<&Point> = known
        .iter()
        .copied()
        .filter(|p| p.state.level().is_some())
        .collect();
    let kept = kept(&proven, keep, zone);
    let too_many = known
        .iter()
        .copied()
        .filter(|p| p.state == State::Failed)
        .skip(FAILED);
    let mut gone: Vec<&Point> = proven
        .iter()
        .copied()
        .filter(|p| !kept.contains(p.name.as_str()) && !p.busy)
        .chain(too_many)
        .collect();
    gone.sort_by(|a, b| (a.slot, &a.name).cmp(&(b.slot, &b.name)));
    gone.into_iter().map(|p| p.name.clone()).collect()
}

/// What would go once a backup at `next` has succeeded: [`prune`] without the doing.
#[must_use]
pub fn prune_after(
    points: &[Point],
    keep: &Retention,
    zone: Tz,
    now: DateTime<Utc>,
    next: DateTime<Utc>,
) -> Vec<String> {
    let mut then = points.to_vec();
    then.push(Point {
        name: String::new(),
        slot: next,
        state: State::Proven(Level::Stored),
        retained: false,
        busy: false,
    });
    prune(&then, keep, zone, now.max(next))
}

fn kept<'a>(newest_first: &[&'a Point], keep: &Retention, zone: Tz) -> BTreeSet<&'a str> {
    let local = |p: &Point| p.slot.with_timezone(&zone);
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    let Some(newest) = newest_first.first() else {
        return kept;
    };
    for level in [Level::Stored, Level::Verified, Level::Drilled] {
        let so_far = |p: &&&Point| p.state.level() >= Some(level);
        kept.extend(newest_first.iter().find(so_far).map(|p| p.name.as_str()));
    }
    kept.extend(newest_first.iter().take(keep.last).map(|p| p.name.as_str()));
    if let Some(within) = keep.within {
        let young = newest_first.iter().filter(|p| newest.slot - p.slot <= within);
        kept.extend(young.map(|p| p.name.as_str()));
    }
    // With the offset: when clocks go back, an hour comes twice and is two.
    kept.extend(per(newest_first, keep.hourly, |p| {
        local(p).format("%Y-%m-%dT%H%z").to_string()
    }));
    kept.extend(per(newest_first, keep.daily, |p| local(p).date_naive()));
    kept.extend(per(newest_first, keep.weekly, |p| local(p).iso_week()));
    kept.extend(per(newest_first, keep.monthly, |p| {
        (local(p).year(), local(p).month())
    }));
    kept.extend(per(newest_first, keep.yearly, |p| local(p).year()));
    kept
}

/// The newest of each of the newest `count` periods.
fn per<'a, K: Ord>(newest_first: &[&'a Point], count: usize, period: impl Fn(&Point) -> K) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    newest_first
        .iter()
        .filter(|p| seen.insert(period(p)))
        .take(count)
        .map(|p| p.name.as_str())
        .collect()
}

/// Reads `keepWithin`, e.g. `30d`.
///
/// # Errors
/// When it is no duration; the sentence names the field and the way out.
pub fn within(text: &str) -> Result<TimeDelta, String> {
    humantime::parse_duration(text)
        .ok()
        .and_then(|d| TimeDelta::from_std(d).ok())
        .ok_or_else(|| {
            format!("spec.retention.keepWithin {text:?} is no duration: write hours, days or weeks, e.g. 36h, 30d or 8w")
        })
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
