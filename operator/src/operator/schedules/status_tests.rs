use serde_json::json;

use super::super::testing::{at, backup, deleted, hourly, planned};
use super::*;

fn status(
    object: &crds::EtcdBackupSchedule,
    all: &[crds::EtcdBackup],
    now: &str,
) -> crds::EtcdBackupScheduleStatus {
    let plan = planned(object, all, now);
    build(object, &Backups::of("hourly", all), &plan, at(now))
}

/// `Ready=True/UpToDate Reconciling=...`
fn told(status: &crds::EtcdBackupScheduleStatus) -> String {
    let all = status.conditions.iter();
    let all: Vec<String> = all
        .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
        .collect();
    all.join(" ")
}

#[test]
fn the_conditions_and_the_line_tell_one_story() {
    let fine = hourly(&json!({}));
    let suspended = hourly(&json!({"suspend": true}));
    let impatient = hourly(&json!({"startingDeadlineSeconds": 600}));
    let lost = hourly(&json!({"storeRef": {"name": "other"}}));
    let stored = backup("hourly-20261101-1100", "stored");
    let failed = backup("hourly-20261101-1200", "failed");
    let running = backup("hourly-20261101-1200", "running");
    let waiting = backup("hourly-20261101-1200", "waiting");
    let idle = "Reconciling=False/Idle Stalled=False/NotStalled";
    let busy = "Reconciling=True/BackingUp Stalled=False/NotStalled";
    for (object, all, conditions, says) in [
        (
            &fine,
            vec![],
            format!("Ready=False/Overdue {idle}"),
            "a backup should have succeeded by 2026-11-01T12:00:00Z, and none has: none is going on",
        ),
        (
            &fine,
            vec![&stored],
            format!("Ready=True/UpToDate {idle}"),
            "the newest recovery point is of 2026-11-01T11:00:00Z",
        ),
        (
            &fine,
            vec![&stored, &running],
            format!("Ready=True/UpToDate {busy}"),
            "hourly-20261101-1200 is being taken",
        ),
        (
            &fine,
            vec![&stored, &waiting],
            format!("Ready=True/UpToDate {busy}"),
            "waits for an agent",
        ),
        (
            &fine,
            vec![&stored, &failed],
            format!("Ready=False/BackupFailed {idle}"),
            "hourly-20261101-1200 failed: the store is away (1 in a row)",
        ),
        (
            &suspended,
            vec![&stored],
            format!("Ready=True/Suspended {idle}"),
            "until spec.suspend is false",
        ),
        (
            &impatient,
            vec![&stored],
            format!("Ready=False/Missed {idle}"),
            "the backup of 2026-11-01T12:00:00Z was passed over",
        ),
        (
            &lost,
            vec![],
            "Ready=False/StoreNotFound Reconciling=False/Idle Stalled=True/StoreNotFound".to_owned(),
            "create it",
        ),
    ] {
        let all: Vec<crds::EtcdBackup> = all.into_iter().cloned().collect();
        // The slot of 12:00 has been begun, but for the one that is too late for it.
        let mut object = object.clone();
        let begun = if object.spec.starting_deadline_seconds.is_some() {
            "11"
        } else {
            "12"
        };
        object.status = Some(crds::EtcdBackupScheduleStatus {
            last_schedule_time: serde_json::from_value(json!(format!("2026-11-01T{begun}:00:00Z"))).unwrap(),
            ..Default::default()
        });
        let status = status(&object, &all, "2026-11-01T12:30:00Z");
        assert_eq!(told(&status), conditions, "{says}");
        assert!(status.message.contains(says), "{says}: {}", status.message);
    }
}

#[test]
fn before_its_first_slot_it_is_ready() {
    let status = status(&hourly(&json!({})), &[], "2026-11-01T10:30:00Z");
    assert!(
        told(&status).starts_with("Ready=True/Scheduled"),
        "{}",
        told(&status)
    );
    assert_eq!(status.message, "the first backup begins at 2026-11-01T11:00:00Z");
}

#[test]
fn it_is_made_anew_from_the_backups() {
    let all = [
        backup("hourly-20261101-1100", "stored"),
        backup("hourly-20261101-1200", "stored"),
        backup("hourly-20261101-1300", "failed"),
        backup("hourly-20261101-1400", "failed"),
        backup("hourly-20261101-1500", "running"),
    ];
    let now = "2026-11-01T15:00:20Z";
    let mut schedule = hourly(&json!({}));
    let first = status(&schedule, &all, now);
    let text = |t: &Option<Time>| t.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
    assert_eq!(text(&first.last_schedule_time), "2026-11-01T15:00:00Z");
    assert_eq!(text(&first.last_success_time), "2026-11-01T12:00:10Z");
    assert_eq!(text(&first.last_failure_time), "2026-11-01T14:00:10Z");
    assert_eq!(text(&first.next_schedule_time), "2026-11-01T16:00:00Z");
    assert_eq!(first.consecutive_failures, 2);
    assert_eq!(first.active.as_deref(), Some("hourly-20261101-1500"));
    let points = &first.recovery_points;
    assert_eq!((points.count, points.bytes), (2, 200));
    assert_eq!(
        (text(&points.oldest).as_str(), text(&points.newest).as_str()),
        ("2026-11-01T11:00:00Z", "2026-11-01T12:00:00Z")
    );
    assert_eq!((first.prune_next.len(), first.prune_next_count), (1, 1));
    // A status that says the same is not written again.
    schedule.status = Some(first.clone());
    assert_eq!(status(&schedule, &all, "2026-11-01T15:00:50Z"), first);
}

#[test]
fn the_retention_counts_as_applied_only_when_nothing_is_left_to_let_go() {
    let all: Vec<_> = ["1100", "1200", "1300"]
        .iter()
        .map(|t| backup(&format!("hourly-20261101-{t}"), "stored"))
        .collect();
    let schedule = hourly(&json!({}));
    assert_eq!(status(&schedule, &all, "2026-11-01T13:30:00Z").pruned_for, None);
    let rest = [deleted(all[0].clone()), all[1].clone(), all[2].clone()];
    assert!(
        status(&schedule, &rest, "2026-11-01T13:30:00Z")
            .pruned_for
            .is_some()
    );
}

#[test]
fn a_deleted_backup_that_cannot_go_is_told() {
    let mut stuck = deleted(backup("hourly-20261101-1100", "stored"));
    let why = "S3 does not answer; or set the annotation";
    let condition = json!({"type": "Deleted", "status": "False", "reason": "TimedOut", "message": why,
        "lastTransitionTime": "2026-11-01T00:00:00Z"});
    stuck
        .status
        .as_mut()
        .unwrap()
        .conditions
        .push(serde_json::from_value(condition).unwrap());
    let all = [stuck, backup("hourly-20261101-1200", "stored")];
    let status = status(&hourly(&json!({})), &all, "2026-11-01T12:30:00Z");
    assert!(
        status
            .message
            .ends_with(&format!("hourly-20261101-1100 cannot be deleted: {why}")),
        "{}",
        status.message
    );
    assert_eq!(status.recovery_points.count, 1);
}
