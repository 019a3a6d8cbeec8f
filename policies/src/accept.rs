//! Whether an upgrade may use a backup that is there already instead of a snapshot of its own.

use chrono::{DateTime, TimeDelta, Utc};

use crate::retention::Level;

/// A backup that lies in a store and is not about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// The store that it lies in.
    pub store: String,
    /// The etcd cluster that it was taken of, hexadecimal.
    pub cluster_id: String,
    /// When it began to be taken: what was written since is not in it.
    pub begun: DateTime<Utc>,
    /// How far it is proven.
    pub level: Level,
}

/// What is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// The store that it must lie in.
    pub store: String,
    /// The etcd cluster that it must be of: after a restore it is another one, and an older backup is of another
    /// course of events.
    pub cluster_id: String,
    /// At most so old.
    pub within: TimeDelta,
    /// Proven so far at least.
    pub level: Level,
    /// Begun after this: a backup of before the last upgrade holds objects as an older version wrote them.
    pub not_before: Option<DateTime<Utc>>,
}

/// The newest of the candidates that is accepted.
///
/// # Guarantees
/// * None that is older than `within`, and none of the future: a clock was wrong, and its age is not known.
#[must_use]
pub fn accept<'a>(
    candidates: &'a [Candidate],
    acceptance: &Acceptance,
    now: DateTime<Utc>,
) -> Option<&'a Candidate> {
    let may = |c: &&Candidate| {
        c.store == acceptance.store
            && !c.cluster_id.is_empty()
            && c.cluster_id == acceptance.cluster_id
            && c.level >= acceptance.level
            && c.begun <= now
            && now - c.begun <= acceptance.within
            && acceptance.not_before.is_none_or(|limit| c.begun > limit)
    };
    candidates
        .iter()
        .filter(may)
        .max_by(|a, b| (a.begun, &a.name).cmp(&(b.begun, &b.name)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + minute * 60, 0).unwrap()
    }

    fn candidate(name: &str, minute: i64, level: Level) -> Candidate {
        Candidate {
            name: name.to_owned(),
            store: "default".to_owned(),
            cluster_id: "c1".to_owned(),
            begun: at(minute),
            level,
        }
    }

    fn within(minutes: i64, level: Level) -> Acceptance {
        Acceptance {
            store: "default".to_owned(),
            cluster_id: "c1".to_owned(),
            within: TimeDelta::minutes(minutes),
            level,
            not_before: None,
        }
    }

    #[test]
    fn the_newest_that_is_proven_far_enough_is_accepted() {
        let all = [
            candidate("old", 0, Level::Drilled),
            candidate("proven", 50, Level::Verified),
            candidate("newest", 55, Level::Stored),
            candidate("of the future", 90, Level::Drilled),
        ];
        let found = |acceptance: &Acceptance| accept(&all, acceptance, at(60)).map(|c| c.name.as_str());
        assert_eq!(found(&within(30, Level::Stored)), Some("newest"));
        assert_eq!(found(&within(30, Level::Verified)), Some("proven"));
        assert_eq!(found(&within(30, Level::Drilled)), None);
        assert_eq!(found(&within(60, Level::Drilled)), Some("old"));
        let after_an_upgrade = Acceptance {
            not_before: Some(at(52)),
            ..within(30, Level::Verified)
        };
        assert_eq!(found(&after_an_upgrade), None);
        let restored_since = Acceptance {
            cluster_id: "c2".to_owned(),
            ..within(60, Level::Stored)
        };
        assert_eq!(found(&restored_since), None);
        let elsewhere = Acceptance {
            store: "other".to_owned(),
            ..within(60, Level::Stored)
        };
        assert_eq!(found(&elsewhere), None);
    }

    proptest! {
        #[test]
        fn nothing_too_old_too_new_or_too_little_proven_is_ever_accepted(
            all in prop::collection::vec((0i64..200, 0usize..3), 0..20), minutes in 1i64..100, wanted in 0usize..3,
        ) {
            let levels = [Level::Stored, Level::Verified, Level::Drilled];
            let all: Vec<_> = all.iter().map(|(minute, level)| candidate("b", *minute, levels[*level])).collect();
            let fits = |c: &Candidate| c.level >= levels[wanted] && (100 - minutes..=100).contains(&((c.begun - at(0)).num_minutes()));
            match accept(&all, &within(minutes, levels[wanted]), at(100)) {
                Some(found) => {
                    prop_assert!(fits(found));
                    prop_assert!(all.iter().filter(|c| fits(c)).all(|c| c.begun <= found.begun));
                }
                None => prop_assert!(!all.iter().any(fits)),
            }
        }
    }
}
