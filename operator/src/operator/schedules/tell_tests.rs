use serde_json::json;

use super::super::status;
use super::super::testing::{at, backup, hourly, planned};
use super::*;

#[test]
fn an_event_is_made_at_a_transition_and_not_at_a_repetition() {
    let mut schedule = hourly(&json!({}));
    let mut next = |all: &[crds::EtcdBackup], now: &str| -> Vec<&'static str> {
        let backups = Backups::of("hourly", all);
        let next = status::build(&schedule, &backups, &planned(&schedule, all, now), at(now));
        let before = schedule.status.replace(next.clone()).unwrap_or_default();
        transitions(&before, &next, &backups)
            .iter()
            .map(|(reason, _)| reason.name())
            .collect()
    };
    let running = [backup("hourly-20261101-1100", "running")];
    let stored = backup("hourly-20261101-1100", "stored");
    let failed = backup("hourly-20261101-1200", "failed");
    let none: [&str; 0] = [];
    assert_eq!(next(&[], "2026-11-01T10:30:00Z"), none);
    assert_eq!(next(&running, "2026-11-01T11:00:01Z"), ["BackupStarted"]);
    assert_eq!(next(&running, "2026-11-01T11:00:02Z"), none);
    assert_eq!(
        next(std::slice::from_ref(&stored), "2026-11-01T11:00:10Z"),
        ["BackupVerified"]
    );
    let both = [stored, failed.clone()];
    assert_eq!(next(&both, "2026-11-01T12:00:10Z"), ["BackupFailed"]);
    assert_eq!(next(&both, "2026-11-01T12:10:10Z"), none);
    // Deleting what is known of a failure is no new failure.
    assert_eq!(next(&both[..1], "2026-11-01T12:11:10Z"), none);
    assert_eq!(next(&[failed], "2026-11-01T12:12:10Z"), none);
}

#[test]
fn a_slot_that_was_passed_over_and_a_stall_are_told_once() {
    let mut schedule = hourly(&json!({"startingDeadlineSeconds": 60}));
    let mut next = |zone: &str, now: &str| -> Vec<&'static str> {
        schedule.spec.time_zone = zone.to_owned();
        let backups = Backups::default();
        let next = status::build(&schedule, &backups, &planned(&schedule, &[], now), at(now));
        let before = schedule.status.replace(next.clone()).unwrap_or_default();
        transitions(&before, &next, &backups)
            .iter()
            .map(|(reason, _)| reason.name())
            .collect()
    };
    assert_eq!(next("UTC", "2026-11-01T11:30:00Z"), ["BackupMissed"]);
    assert_eq!(next("UTC", "2026-11-01T11:31:00Z"), [""; 0]);
    assert_eq!(next("Mars/Olympus", "2026-11-01T11:32:00Z"), ["ScheduleStalled"]);
    assert_eq!(next("Mars/Olympus", "2026-11-01T11:33:00Z"), [""; 0]);
}

#[test]
fn a_failure_is_counted_by_its_reason() {
    let failed = [backup("hourly-20261101-1200", "failed")];
    assert_eq!(failure(&Backups::of("hourly", &failed)), BackupFailure::Store);
    assert_eq!(failure(&Backups::default()), BackupFailure::Other);
}
