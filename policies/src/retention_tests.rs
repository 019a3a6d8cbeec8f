use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn point(slot: DateTime<Utc>, state: State) -> Point {
    Point {
        name: format!("nightly-{}", slot.format("%Y%m%d-%H%M")),
        slot,
        state,
        retained: false,
        busy: false,
    }
}

fn proven(texts: &[&str]) -> Vec<Point> {
    texts
        .iter()
        .map(|t| point(at(t), State::Proven(Level::Stored)))
        .collect()
}

const NOW: &str = "2026-12-31T23:59:00Z";

fn gone(points: &[Point], keep: &Retention, zone: Tz) -> Vec<String> {
    prune(points, keep, zone, at(NOW))
}

#[test]
fn the_newest_of_each_day_that_has_one_is_kept() {
    let points = proven(&[
        "2026-11-01T03:00:00Z",
        "2026-11-01T15:00:00Z",
        // Two days without any.
        "2026-11-04T03:00:00Z",
        "2026-11-05T03:00:00Z",
        "2026-11-05T15:00:00Z",
    ]);
    let keep = |daily| Retention {
        daily,
        ..Retention::default()
    };
    assert_eq!(
        gone(&points, &keep(3), Tz::UTC),
        ["nightly-20261101-0300", "nightly-20261105-0300"]
    );
    assert_eq!(
        gone(&points, &keep(2), Tz::UTC),
        [
            "nightly-20261101-0300",
            "nightly-20261101-1500",
            "nightly-20261105-0300"
        ]
    );
}

#[test]
fn a_day_is_one_of_the_zone() {
    // 23:30 and 00:30 in Berlin: two days there, one day in UTC.
    let points = proven(&["2026-11-01T22:30:00Z", "2026-11-01T23:30:00Z"]);
    let keep = Retention {
        daily: 2,
        ..Retention::default()
    };
    assert!(gone(&points, &keep, Tz::Europe__Berlin).is_empty());
    assert_eq!(gone(&points, &keep, Tz::UTC), ["nightly-20261101-2230"]);
}

#[test]
fn the_hour_that_comes_twice_is_two_hours() {
    let points = proven(&["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"]);
    let keep = Retention {
        hourly: 2,
        ..Retention::default()
    };
    assert!(gone(&points, &keep, Tz::Europe__Berlin).is_empty());
}

#[test]
fn each_calendar_keeps_its_newest() {
    // Weeks begin on Monday: 2026-11-01 is a Sunday, 2026-12-28 a Monday of week 53.
    let points = proven(&[
        "2025-12-31T03:00:00Z",
        "2026-01-02T03:00:00Z",
        "2026-11-01T03:00:00Z",
        "2026-11-02T03:00:00Z",
        "2026-12-28T03:00:00Z",
    ]);
    let kept = |keep: &Retention| -> Vec<String> {
        let gone = gone(&points, keep, Tz::UTC);
        let kept = points.iter().filter(|p| !gone.contains(&p.name));
        kept.map(|p| p.slot.format("%m%d").to_string()).collect()
    };
    let none = Retention::default;
    assert_eq!(kept(&Retention { weekly: 3, ..none() }), ["1101", "1102", "1228"]);
    assert_eq!(
        kept(&Retention { monthly: 3, ..none() }),
        ["0102", "1102", "1228"]
    );
    assert_eq!(kept(&Retention { yearly: 2, ..none() }), ["1231", "1228"]);
    let both = Retention {
        yearly: 2,
        last: 2,
        ..none()
    };
    assert_eq!(kept(&both), ["1231", "1102", "1228"]);
}

#[test]
fn within_counts_from_the_newest_and_not_from_now() {
    let points = proven(&[
        "2026-01-01T03:00:00Z",
        "2026-01-08T03:00:00Z",
        "2026-01-15T03:00:00Z",
    ]);
    let keep = Retention {
        within: Some(within("7d").unwrap()),
        ..Retention::default()
    };
    assert_eq!(gone(&points, &keep, Tz::UTC), ["nightly-20260101-0300"]);
}

#[test]
fn the_newest_is_kept_by_no_rule_at_all() {
    let points = proven(&["2026-11-01T03:00:00Z", "2026-11-02T03:00:00Z"]);
    assert_eq!(
        gone(&points, &Retention::default(), Tz::UTC),
        ["nightly-20261101-0300"]
    );
}

#[test]
fn the_newest_of_each_level_of_proof_is_kept_however_old_it_is() {
    let mut points = proven(&[
        "2026-11-01T03:00:00Z",
        "2026-11-02T03:00:00Z",
        "2026-11-03T03:00:00Z",
        "2026-11-04T03:00:00Z",
        "2026-11-05T03:00:00Z",
    ]);
    points[0].state = State::Proven(Level::Drilled);
    points[1].state = State::Proven(Level::Drilled);
    points[2].state = State::Proven(Level::Verified);
    let keep = Retention::default();
    let old = ["nightly-20261101-0300", "nightly-20261104-0300"];
    assert_eq!(gone(&points, &keep, Tz::UTC), old);
    // A drill of a newer one makes the old ones ordinary, but not while it is going on.
    points[3].busy = true;
    assert_eq!(gone(&points, &keep, Tz::UTC), old[..1]);
    points[3].busy = false;
    points[3].state = State::Proven(Level::Drilled);
    assert_eq!(
        gone(&points, &keep, Tz::UTC),
        [old[0], "nightly-20261102-0300", "nightly-20261103-0300"]
    );
}

#[test]
fn a_duration_is_hours_days_or_weeks_and_anything_else_is_told() {
    assert_eq!(within("36h"), Ok(TimeDelta::hours(36)));
    assert_eq!(within("30d"), Ok(TimeDelta::days(30)));
    assert_eq!(within("8w"), Ok(TimeDelta::weeks(8)));
    let error = within("soon").unwrap_err();
    assert!(
        error.contains("spec.retention.keepWithin") && error.contains("30d"),
        "{error}"
    );
}

#[test]
fn failed_ones_are_kept_for_a_while_and_take_no_place() {
    let start = at("2026-11-01T00:00:00Z");
    let failed = (0..12).map(|hour| point(start + TimeDelta::hours(hour), State::Failed));
    let mut points: Vec<Point> = failed.collect();
    points.extend(proven(&["2026-10-01T00:00:00Z", "2026-10-02T00:00:00Z"]));
    let keep = Retention {
        last: 2,
        ..Retention::default()
    };
    assert_eq!(
        gone(&points, &keep, Tz::UTC),
        ["nightly-20261101-0000", "nightly-20261101-0100"]
    );
}

#[test]
fn what_would_go_next_goes_next() {
    let points = proven(&[
        "2026-11-01T03:00:00Z",
        "2026-11-02T03:00:00Z",
        "2026-11-03T03:00:00Z",
    ]);
    let keep = Retention {
        last: 3,
        ..Retention::default()
    };
    let (now, next) = (at("2026-11-03T12:00:00Z"), at("2026-11-04T03:00:00Z"));
    assert!(prune(&points, &keep, Tz::UTC, now).is_empty());
    let told = prune_after(&points, &keep, Tz::UTC, now, next);
    assert_eq!(told, ["nightly-20261101-0300"]);
    let mut then = points;
    then.push(point(next, State::Proven(Level::Stored)));
    assert_eq!(prune(&then, &keep, Tz::UTC, next), told);
}

fn points() -> impl Strategy<Value = Vec<Point>> {
    // Half hours around the turn of a year and of the clocks, some of them after NOW.
    let half_hours = prop_oneof![0i64..100, 3980i64..4080, 14_200i64..14_300, 17_400i64..17_600];
    let state = prop_oneof![
        4 => Just(State::Proven(Level::Stored)),
        2 => Just(State::Proven(Level::Verified)),
        1 => Just(State::Proven(Level::Drilled)),
        1 => Just(State::Failed),
        1 => Just(State::Unfinished),
    ];
    let seldom = || prop::bool::weighted(0.1);
    let all = prop::collection::btree_map(half_hours, (state, seldom(), seldom()), 0..60);
    all.prop_map(|all| {
        let begin = at("2026-01-01T00:00:00Z");
        let one = |(half_hours, (state, retained, busy))| Point {
            retained,
            busy,
            ..point(begin + TimeDelta::minutes(30 * half_hours), state)
        };
        all.into_iter().map(one).collect()
    })
}

fn rules() -> impl Strategy<Value = Retention> {
    (
        0usize..6,
        0usize..6,
        0usize..6,
        0usize..4,
        0usize..4,
        0usize..3,
        prop::option::of(0i64..400),
    )
        .prop_map(
            |(last, hourly, daily, weekly, monthly, yearly, hours)| Retention {
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
                within: hours.map(TimeDelta::hours),
            },
        )
}

fn zones() -> impl Strategy<Value = Tz> {
    prop::sample::select(vec![
        Tz::UTC,
        Tz::Europe__Berlin,
        Tz::Australia__Lord_Howe,
        Tz::Asia__Kolkata,
        Tz::America__New_York,
    ])
}

fn set(names: Vec<String>) -> BTreeSet<String> {
    names.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_newest_proven_stays_and_only_finished_ones_that_nobody_retains_go(
        points in points(), keep in rules(), zone in zones(),
    ) {
        let gone = set(gone(&points, &keep, zone));
        for point in &points {
            if gone.contains(&point.name) {
                prop_assert!(point.state != State::Unfinished && !point.retained && point.slot <= at(NOW));
                prop_assert!(!point.busy || point.state == State::Failed);
            }
        }
        let ours = || points.iter().filter(|p| !p.retained && p.slot <= at(NOW));
        for level in [Level::Stored, Level::Verified, Level::Drilled] {
            let newest = ours().filter(|p| p.state.level() >= Some(level)).max_by_key(|p| p.slot);
            if let Some(newest) = newest {
                prop_assert!(!gone.contains(&newest.name), "the newest that is {:?}", level);
            }
        }
    }

    #[test]
    fn raising_a_number_lets_nothing_go_that_was_kept(
        points in points(), keep in rules(), zone in zones(), which in 0..7, more in 1usize..5,
    ) {
        let mut raised = keep.clone();
        match which {
            0 => raised.last += more,
            1 => raised.hourly += more,
            2 => raised.daily += more,
            3 => raised.weekly += more,
            4 => raised.monthly += more,
            5 => raised.yearly += more,
            _ => raised.within = Some(keep.within.unwrap_or_default() + TimeDelta::days(more as i64)),
        }
        prop_assert!(set(gone(&points, &raised, zone)).is_subset(&set(gone(&points, &keep, zone))));
    }

    #[test]
    fn pruning_twice_is_pruning_once(points in points(), keep in rules(), zone in zones()) {
        let first = set(gone(&points, &keep, zone));
        let left: Vec<Point> = points.into_iter().filter(|p| !first.contains(&p.name)).collect();
        prop_assert_eq!(gone(&left, &keep, zone), Vec::<String>::new());
    }

    #[test]
    fn half_a_pruning_changes_nothing_of_the_rest(
        points in points(), keep in rules(), zone in zones(), done in 0usize..60,
    ) {
        let all = gone(&points, &keep, zone);
        let (first, rest) = all.split_at(done.min(all.len()));
        let left: Vec<Point> = points.into_iter().filter(|p| !first.contains(&p.name)).collect();
        prop_assert_eq!(gone(&left, &keep, zone), rest);
    }

    #[test]
    fn the_order_does_not_matter(
        (points, shuffled) in points().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())),
        keep in rules(), zone in zones(),
    ) {
        prop_assert_eq!(gone(&points, &keep, zone), gone(&shuffled, &keep, zone));
    }

    #[test]
    fn what_goes_now_would_go_next_time_too(points in points(), keep in rules(), zone in zones()) {
        let next = at("2027-02-01T03:00:00Z");
        let known: Vec<Point> = points.into_iter().filter(|p| p.slot <= at(NOW)).collect();
        let now = set(gone(&known, &keep, zone));
        let then = set(prune_after(&known, &keep, zone, at(NOW), next));
        prop_assert!(now.is_subset(&then), "{:?} {:?}", now, then);
    }
}
