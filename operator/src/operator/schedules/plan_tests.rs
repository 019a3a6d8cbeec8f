use serde_json::json;

use super::super::testing::{at, backup, deleted, hourly, planned};
use super::*;

#[test]
fn a_backup_is_a_schedules_own_by_label_and_by_name() {
    let own = backup("hourly-20261101-1100", "stored");
    let mut unlabelled = own.clone();
    unlabelled.metadata.labels = None;
    let mut anothers = own.clone();
    anothers.metadata.labels = Some([(crds::SCHEDULE_LABEL.to_owned(), "nightly".to_owned())].into());
    let all = [
        own,
        unlabelled,
        anothers,
        backup("hourly-before-i-touch-it", "stored"),
    ];
    let found = Backups::of("hourly", &all);
    assert_eq!(found.0.len(), 1);
    assert_eq!(found.0[0].slot, at("2026-11-01T11:00:00Z"));
}

#[test]
fn a_slot_is_begun_when_it_comes_and_not_while_a_backup_is_going_on() {
    let schedule = hourly(&json!({}));
    assert_eq!(planned(&schedule, &[], "2026-11-01T10:59:00Z").begin, None);
    let due = Some(at("2026-11-01T11:00:00Z"));
    assert_eq!(planned(&schedule, &[], "2026-11-01T11:00:00Z").begin, due);
    for state in ["waiting", "running"] {
        let going = [backup("hourly-20261101-1100", state)];
        let plan = planned(&schedule, &going, "2026-11-01T12:30:00Z");
        assert_eq!(
            (plan.begin, plan.turn.next),
            (None, Some(at("2026-11-01T12:00:00Z"))),
            "{state}"
        );
    }
    // One that was deleted while it was taken ends by itself; its slot is not begun again.
    let going = [deleted(backup("hourly-20261101-1100", "running"))];
    assert_eq!(planned(&schedule, &going, "2026-11-01T11:30:00Z").begin, None);
    assert_eq!(
        planned(&schedule, &going, "2026-11-01T12:00:00Z").begin,
        Some(at("2026-11-01T12:00:00Z"))
    );
}

#[test]
fn what_was_begun_is_known_from_the_backups_and_from_the_status() {
    let mut schedule = hourly(&json!({}));
    let done = [backup("hourly-20261101-1100", "stored")];
    assert_eq!(planned(&schedule, &done, "2026-11-01T11:30:00Z").begin, None);
    // Somebody has deleted it.
    schedule.status = Some(crds::EtcdBackupScheduleStatus {
        last_schedule_time: serde_json::from_value(json!("2026-11-01T11:00:00Z")).unwrap(),
        ..Default::default()
    });
    assert_eq!(planned(&schedule, &[], "2026-11-01T11:30:00Z").begin, None);
}

#[test]
fn what_stops_it_is_told_with_a_way_out_and_nothing_is_begun_or_let_go() {
    let taken = {
        let mut foreign = backup("hourly-20261101-1100", "stored");
        foreign.metadata.labels = None;
        foreign
    };
    for (spec, others, reason, says) in [
        (
            json!({"schedule": "61 * * * *"}),
            vec![],
            "InvalidSpec",
            "spec.schedule",
        ),
        (
            json!({"timeZone": "Mars/Olympus"}),
            vec![],
            "InvalidSpec",
            "spec.timeZone",
        ),
        (
            json!({"retention": {"keepWithin": "soon"}}),
            vec![],
            "InvalidSpec",
            "spec.retention.keepWithin",
        ),
        (
            json!({"storeRef": {"name": "other"}}),
            vec![],
            "StoreNotFound",
            "create it, or name another one",
        ),
        (json!({}), vec![taken], "NameTaken", "delete it"),
    ] {
        let plan = planned(&hourly(&spec), &others, "2026-11-01T11:00:00Z");
        let stalled = plan.stalled.unwrap();
        assert_eq!(stalled.reason, reason);
        assert!(stalled.message.contains(says), "{}", stalled.message);
        assert_eq!((plan.begin, plan.prune), (None, vec![]));
    }
}

#[test]
fn while_suspended_nothing_is_begun_or_let_go_and_afterwards_one_backup_catches_up() {
    let three: Vec<_> = ["1100", "1200", "1300"]
        .iter()
        .map(|t| backup(&format!("hourly-20261101-{t}"), "stored"))
        .collect();
    let now = "2026-11-01T18:30:00Z";
    let plan = planned(&hourly(&json!({"suspend": true})), &three, now);
    assert_eq!(
        (plan.begin, plan.prune, plan.turn.next, plan.overdue),
        (None, vec![], None, None)
    );
    let plan = planned(&hourly(&json!({})), &three, now);
    assert_eq!(plan.begin, Some(at("2026-11-01T18:00:00Z")));
}

#[test]
fn the_old_ones_go_once_after_each_success_and_what_goes_next_is_told_before() {
    let mut schedule = hourly(&json!({}));
    let all: Vec<_> = ["1100", "1200", "1300"]
        .iter()
        .map(|t| backup(&format!("hourly-20261101-{t}"), "stored"))
        .collect();
    let two = planned(&schedule, &all[..2], "2026-11-01T12:30:00Z");
    assert_eq!(two.prune, Vec::<String>::new());
    assert_eq!(two.prune_next, ["hourly-20261101-1100"]);
    let three = planned(&schedule, &all, "2026-11-01T13:30:00Z");
    assert_eq!(three.prune, ["hourly-20261101-1100"]);
    assert_eq!(three.pruned_for, Some(at("2026-11-01T13:00:00Z")));
    // A change of the retention waits for the next success.
    schedule.spec.retention.keep_last = 1;
    schedule.status = Some(crds::EtcdBackupScheduleStatus {
        pruned_for: serde_json::from_value(json!("2026-11-01T13:00:00Z")).unwrap(),
        ..Default::default()
    });
    let changed = planned(&schedule, &all[1..], "2026-11-01T13:30:00Z");
    assert_eq!(changed.prune, Vec::<String>::new());
    assert_eq!(
        changed.prune_next,
        ["hourly-20261101-1200", "hourly-20261101-1300"]
    );
}

#[test]
fn what_is_retained_or_going_already_is_not_let_go() {
    let mut all: Vec<_> = ["1100", "1200", "1300", "1400"]
        .iter()
        .map(|t| backup(&format!("hourly-20261101-{t}"), "stored"))
        .collect();
    all[0].metadata.annotations = Some([(crds::RETAIN_ANNOTATION.to_owned(), "audit".to_owned())].into());
    all[1] = deleted(all[1].clone());
    let plan = planned(
        &hourly(&json!({"retention": {"keepLast": 1}})),
        &all,
        "2026-11-01T14:30:00Z",
    );
    assert_eq!(plan.prune, ["hourly-20261101-1300"]);
}

#[test]
fn without_a_success_it_is_overdue_from_its_first_slot_on() {
    let overdue =
        |all: &[crds::EtcdBackup]| planned(&hourly(&json!({})), all, "2026-11-01T15:30:00Z").overdue;
    assert_eq!(overdue(&[]), Some(at("2026-11-01T12:00:00Z")));
    let failed = backup("hourly-20261101-1200", "failed");
    assert_eq!(
        overdue(std::slice::from_ref(&failed)),
        Some(at("2026-11-01T12:00:00Z"))
    );
    let stored = backup("hourly-20261101-1100", "stored");
    assert_eq!(overdue(&[stored, failed]), Some(at("2026-11-01T13:00:00Z")));
}

#[test]
fn a_backup_of_the_future_does_not_keep_the_retention_from_being_applied_once() {
    let mut schedule = hourly(&json!({}));
    let all: Vec<_> = ["20261101-1100", "20261101-1200", "20261101-1300", "20271101-0000"]
        .iter()
        .map(|t| backup(&format!("hourly-{t}"), "stored"))
        .collect();
    let now = "2026-11-01T13:30:00Z";
    assert_eq!(
        planned(&schedule, &all, now).pruned_for,
        Some(at("2026-11-01T13:00:00Z"))
    );
    schedule.status = Some(crds::EtcdBackupScheduleStatus {
        pruned_for: serde_json::from_value(json!("2026-11-01T13:00:00Z")).unwrap(),
        ..Default::default()
    });
    assert_eq!(planned(&schedule, &all, now).prune, Vec::<String>::new());
}
