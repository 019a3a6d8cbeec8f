use super::*;
use proptest::prelude::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn table(line: &str, zone: &str) -> Timetable {
    Timetable::parse(line, zone).unwrap()
}

fn punctual() -> Timing {
    Timing {
        starting_deadline: None,
        jitter: TimeDelta::zero(),
        seed: "uid".to_owned(),
    }
}

fn slots(table: &Timetable, from: &str, count: usize) -> Vec<String> {
    let mut slot = at(from);
    (0..count)
        .map(|_| {
            slot = table.next(slot).unwrap();
            slot.format("%m-%dT%H:%M").to_string()
        })
        .collect()
}

#[test]
fn what_cannot_be_understood_is_told_with_its_field_and_a_way_out() {
    for (line, zone, says) in [
        ("0 3 * *", "UTC", "spec.schedule \"0 3 * *\" is no cron line"),
        ("0 0 3 * * *", "UTC", "is no cron line"),
        ("61 3 * * *", "UTC", "is no cron line"),
        ("0 3 * * someday", "UTC", "is no cron line"),
        ("0 0 30 2 *", "UTC", "never comes"),
        (
            "0 3 * * *",
            "Mars/Olympus",
            "spec.timeZone \"Mars/Olympus\" is not",
        ),
        ("0 3 * * *", "", "spec.timeZone \"\" is not"),
    ] {
        let error = Timetable::parse(line, zone).unwrap_err().to_string();
        assert!(error.contains(says), "{line} {zone}: {error}");
        assert!(
            error.contains("e.g.") || error.contains("correct"),
            "no way out: {error}"
        );
    }
}

#[test]
fn a_line_is_meant_in_its_zone() {
    let daily = table("30 3 * * *", "Europe/Berlin");
    assert_eq!(
        slots(&daily, "2026-01-10T00:00:00Z", 2),
        ["01-10T02:30", "01-11T02:30"]
    );
    assert_eq!(
        slots(&daily, "2026-07-10T00:00:00Z", 2),
        ["07-10T01:30", "07-11T01:30"]
    );
    let weekdays = table("0 9 * * mon-fri", "Asia/Kolkata");
    // 2026-11-20 is a Friday.
    assert_eq!(
        slots(&weekdays, "2026-11-20T00:00:00Z", 2),
        ["11-20T03:30", "11-23T03:30"]
    );
}

#[test]
fn when_clocks_go_forward_a_daily_backup_is_not_lost_and_when_they_go_back_it_is_not_doubled() {
    // 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00.
    let daily = table("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        slots(&daily, "2026-03-28T00:00:00Z", 3),
        ["03-28T01:30", "03-29T01:00", "03-30T00:30"]
    );
    assert_eq!(
        slots(&daily, "2026-10-24T00:00:00Z", 3),
        ["10-24T00:30", "10-25T00:30", "10-26T01:30"]
    );
    let hourly = table("0 * * * *", "Europe/Berlin");
    assert_eq!(
        slots(&hourly, "2026-10-24T23:00:00Z", 3),
        ["10-25T00:00", "10-25T01:00", "10-25T02:00"]
    );
    assert_eq!(
        slots(&hourly, "2026-03-28T23:30:00Z", 3),
        ["03-29T00:00", "03-29T01:00", "03-29T02:00"]
    );
}

#[test]
fn what_was_missed_collapses_into_one() {
    let hourly = table("0 * * * *", "UTC");
    let made = at("2026-11-01T10:20:00Z");
    let turn = |begun: &[&str], now: &str| {
        let begun = begun.iter().map(|t| at(t));
        super::turn(&hourly, &punctual(), made, begun, at(now))
    };
    let first = turn(&[], "2026-11-01T10:59:59Z");
    assert_eq!((first.due, first.next), (None, Some(at("2026-11-01T11:00:00Z"))));
    assert_eq!(
        turn(&[], "2026-11-01T11:00:00Z").due,
        Some(at("2026-11-01T11:00:00Z"))
    );
    // Away for four days.
    let back = turn(&["2026-11-01T11:00:00Z"], "2026-11-05T17:30:00Z");
    assert_eq!(back.due, Some(at("2026-11-05T17:00:00Z")));
    let after = turn(
        &["2026-11-05T17:00:00Z", "2026-11-01T11:00:00Z"],
        "2026-11-05T17:30:01Z",
    );
    assert_eq!(
        (after.due, after.missed, after.next),
        (None, None, Some(at("2026-11-05T18:00:00Z")))
    );
}

#[test]
fn a_slot_of_the_future_is_not_believed() {
    let hourly = table("0 * * * *", "UTC");
    let begun = [at("2027-11-05T17:00:00Z")];
    let turn = turn(
        &hourly,
        &punctual(),
        at("2026-11-01T00:00:00Z"),
        begun,
        at("2026-11-05T17:30:00Z"),
    );
    assert_eq!(turn.due, Some(at("2026-11-05T17:00:00Z")));
}

#[test]
fn a_slot_that_is_too_late_is_passed_over_and_the_next_one_is_not() {
    let hourly = table("0 * * * *", "UTC");
    let timing = Timing {
        starting_deadline: Some(TimeDelta::minutes(10)),
        ..punctual()
    };
    let made = at("2026-11-01T10:20:00Z");
    let turn = |now: &str| super::turn(&hourly, &timing, made, [], at(now));
    assert_eq!(turn("2026-11-01T11:10:00Z").due, Some(at("2026-11-01T11:00:00Z")));
    let late = turn("2026-11-01T11:10:01Z");
    assert_eq!(
        (late.due, late.missed, late.next),
        (
            None,
            Some(at("2026-11-01T11:00:00Z")),
            Some(at("2026-11-01T12:00:00Z"))
        )
    );
    assert_eq!(turn("2026-11-01T12:00:00Z").due, Some(at("2026-11-01T12:00:00Z")));
}

#[test]
fn jitter_is_the_same_in_every_process_and_another_for_another_slot() {
    let timing = Timing {
        jitter: TimeDelta::seconds(600),
        ..punctual()
    };
    let slot = at("2026-11-01T03:00:00Z");
    // Fixed for ever: a version that reckoned otherwise would begin a slot at another moment than its forerunner.
    assert_eq!(timing.begins(slot), at("2026-11-01T03:03:34Z"));
    let offsets: std::collections::BTreeSet<i64> = (0..100)
        .map(|day| slot + TimeDelta::days(day))
        .map(|slot| (timing.begins(slot) - slot).num_seconds())
        .collect();
    assert!(offsets.len() > 80, "{offsets:?}");
    assert!(offsets.iter().all(|s| (0..=600).contains(s)));
    let other = Timing {
        seed: "another".to_owned(),
        ..timing.clone()
    };
    assert_ne!(other.begins(slot), timing.begins(slot));
}

#[test]
fn a_success_is_overdue_when_the_slot_after_it_has_had_its_time() {
    let daily = table("0 3 * * mon-fri", "UTC");
    let hour = TimeDelta::hours(1);
    // From Friday to Monday.
    assert_eq!(
        overdue(&daily, &punctual(), at("2026-11-20T03:00:00Z"), hour),
        Some(at("2026-11-23T04:00:00Z"))
    );
}

#[test]
fn only_a_name_that_this_would_write_has_a_slot() {
    let slot = at("2026-11-01T03:05:00Z");
    assert_eq!(backup_name("nightly", slot), "nightly-20261101-0305");
    assert_eq!(slot_of("nightly", "nightly-20261101-0305"), Some(slot));
    for other in [
        "nightly",
        "nightly-",
        "nightly-by-hand",
        "nightly-20261101-305",
        "nightly-20261101-0305-1",
        "nightly-20261301-0305",
        "nightly-+20261101-0305",
        "nightly-20261101-9905",
        "weekly-20261101-0305",
        "nightly-x-20261101-0305",
    ] {
        assert_eq!(slot_of("nightly", other), None, "{other}");
    }
}

const ZONES: [&str; 7] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Chatham",
    "Asia/Kolkata",
    "America/Santiago",
];
const LINES: [&str; 9] = [
    "* * * * *",
    "*/7 * * * *",
    "0 * * * *",
    "30 2 * * *",
    "5 0 * * *",
    "0 0,12 * * *",
    "15 1-4 * * *",
    "45 3 * * sun",
    "0 3 1 * *",
];

/// A moment in 2026, near a change of the clocks more often than not.
fn moments() -> impl Strategy<Value = DateTime<Utc>> {
    let changes = [
        "2026-03-08T07:00:00Z",
        "2026-03-29T01:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-04-04T14:00:00Z",
        "2026-10-25T01:00:00Z",
        "2026-11-01T06:00:00Z",
        "2026-09-06T04:00:00Z",
        "2026-07-01T00:00:00Z",
    ];
    (0..changes.len(), -3 * 86400..3 * 86400i64)
        .prop_map(move |(change, offset)| at(changes[change]) + TimeDelta::seconds(offset))
}

fn tables() -> impl Strategy<Value = Timetable> {
    (0..LINES.len(), 0..ZONES.len()).prop_map(|(line, zone)| table(LINES[line], ZONES[zone]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn last_and_next_tell_of_the_same_slots(table in tables(), now in moments()) {
        let next = table.next(now).unwrap();
        prop_assert!(next > now);
        let last = table.last(now).unwrap();
        prop_assert!(last <= now);
        prop_assert_eq!(table.next(last), Some(next), "a slot between {} and {} is told by next alone", last, next);
        prop_assert_eq!(table.last(next), Some(next));
        prop_assert_eq!(table.before(next), Some(last), "before {}", next);
        prop_assert_eq!(next.timestamp() % 60, 0, "a slot is a whole minute, or two have one name: {}", next);
    }

    #[test]
    fn each_slot_is_begun_at_most_once_and_never_early(
        table in tables(),
        start in moments(),
        jitter in 0i64..900,
        deadline in prop::option::of(10i64..7200),
        waits in prop::collection::vec(1i64..90_000, 1..40),
    ) {
        let timing = Timing {
            jitter: TimeDelta::seconds(jitter),
            starting_deadline: deadline.map(TimeDelta::seconds),
            seed: "uid".to_owned(),
        };
        let mut begun: Vec<DateTime<Utc>> = vec![];
        let mut now = start;
        for wait in waits {
            now += TimeDelta::seconds(wait);
            let turn = turn(&table, &timing, start, begun.clone(), now);
            if let Some(slot) = turn.due {
                prop_assert!(timing.begins(slot) <= now && slot > start);
                prop_assert!(begun.iter().all(|b| *b < slot));
                if let Some(deadline) = timing.starting_deadline {
                    prop_assert!(now <= timing.begins(slot) + deadline);
                }
                prop_assert_eq!(turn.missed, None);
                begun.push(slot);
            } else {
                prop_assert!(turn.next.is_some_and(|next| next > now), "{:?} at {}", turn, now);
            }
        }
    }

    #[test]
    fn woken_when_it_said_there_is_something_due(table in tables(), start in moments(), jitter in 0i64..900) {
        let timing = Timing { jitter: TimeDelta::seconds(jitter), ..punctual() };
        let next = turn(&table, &timing, start, [], start).next.unwrap();
        let early = turn(&table, &timing, start, [], next - TimeDelta::seconds(1));
        prop_assert_eq!((early.due, early.next), (None, Some(next)));
        let then = turn(&table, &timing, start, [], next).due.unwrap();
        prop_assert_eq!(timing.begins(then), next);
    }

    #[test]
    fn names_and_slots_go_both_ways(minute in 0i64..60_000_000, name in "[a-z][a-z0-9-]{0,20}[a-z0-9]") {
        let slot = DateTime::from_timestamp(minute * 60, 0).unwrap();
        prop_assert_eq!(slot_of(&name, &backup_name(&name, slot)), Some(slot));
    }
}
