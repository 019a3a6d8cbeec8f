use serde_json::{Value, json};

use super::super::testing::{at, backup, hourly, planned};
use super::*;

/// A stored backup with this `spec.proof` and these conditions besides, each since `since`.
fn proven(name: &str, proof: &str, since: &str, conditions: &[(&str, &str)]) -> crds::EtcdBackup {
    let mut backup = backup(name, "stored");
    backup.spec.proof = serde_json::from_value(json!(proof)).unwrap();
    for (type_, status) in conditions {
        let condition = json!({"type": type_, "status": status, "reason": "Why", "message": format!("why {type_}"),
            "lastTransitionTime": since});
        let conditions = &mut backup.status.as_mut().unwrap().conditions;
        conditions.push(serde_json::from_value(condition).unwrap());
    }
    backup
}

/// Hourly, with a drill every day at five.
fn drilled_daily(more: &Value) -> crds::EtcdBackupSchedule {
    let mut spec = json!({"drill": {"schedule": "0 5 * * *"}});
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    hourly(&spec)
}

fn drills_of(object: &crds::EtcdBackupSchedule, all: &[crds::EtcdBackup], now: &str) -> Drills {
    planned(object, all, now).drills
}

#[test]
fn at_its_slot_a_drill_takes_the_newest_recovery_point_and_once_only() {
    let schedule = drilled_daily(&json!({}));
    let mut all = vec![
        proven("hourly-20261102-0300", "Stored", "2026-11-02T03:00:10Z", &[]),
        proven("hourly-20261102-0400", "Stored", "2026-11-02T04:00:10Z", &[]),
        backup("hourly-20261102-0500", "running"),
    ];
    assert_eq!(drills_of(&schedule, &all, "2026-11-02T04:59:59Z").begin, None);
    let due = drills_of(&schedule, &all, "2026-11-02T05:00:00Z").begin.unwrap();
    assert_eq!(
        due,
        (
            at("2026-11-02T05:00:00Z"),
            "hourly-20261102-0400".to_owned(),
            Proof::Drilled
        )
    );
    // Chosen: the backup itself remembers it, and the status does when it has gone.
    all[1].metadata.annotations = Some(
        [(
            crds::DRILL_ANNOTATION.to_owned(),
            "2026-11-02T05:00:00Z".to_owned(),
        )]
        .into(),
    );
    let then = drills_of(&schedule, &all, "2026-11-02T05:10:00Z");
    assert_eq!((then.begin, then.next), (None, Some(at("2026-11-03T05:00:00Z"))));
    let mut told = schedule;
    told.status = Some(crds::EtcdBackupScheduleStatus {
        last_drill_slot: serde_json::from_value(json!("2026-11-02T05:00:00Z")).unwrap(),
        ..Default::default()
    });
    assert_eq!(drills_of(&told, &all[..1], "2026-11-02T05:10:00Z").begin, None);
}

#[test]
fn a_drill_without_a_recovery_point_waits_for_one_and_missed_ones_are_one() {
    let schedule = drilled_daily(&json!({}));
    let waits = drills_of(&schedule, &[], "2026-11-05T08:00:00Z");
    assert_eq!(
        (waits.begin, waits.next),
        (None, Some(at("2026-11-05T05:00:00Z")))
    );
    let all = [proven(
        "hourly-20261105-0800",
        "Verified",
        "2026-11-05T08:00:10Z",
        &[],
    )];
    let (slot, _, _) = drills_of(&schedule, &all, "2026-11-05T08:01:00Z").begin.unwrap();
    assert_eq!(slot, at("2026-11-05T05:00:00Z"));
}

#[test]
fn a_suspended_schedule_drills_nothing_and_a_bad_line_is_told_by_its_field() {
    let all = [proven(
        "hourly-20261102-0400",
        "Stored",
        "2026-11-02T04:00:10Z",
        &[],
    )];
    let suspended = drilled_daily(&json!({"suspend": true}));
    assert_eq!(
        drills_of(&suspended, &all, "2026-11-02T05:00:00Z"),
        Drills::default()
    );
    let wrong = hourly(&json!({"drill": {"schedule": "61 5 * * *"}}));
    let stalled = planned(&wrong, &all, "2026-11-02T05:00:00Z").stalled.unwrap();
    assert_eq!(stalled.reason, "InvalidSpec");
    assert!(
        stalled.message.contains("spec.drill.schedule"),
        "{}",
        stalled.message
    );
}

#[test]
fn a_proof_is_overdue_after_the_backup_after_the_last_one() {
    let overdue = |spec: &Value, all: &[crds::EtcdBackup]| {
        planned(&hourly(spec), all, "2026-11-02T04:30:00Z").drills.overdue
    };
    assert_eq!(overdue(&json!({}), &[]), None, "none is asked for");
    let verified = json!({"proof": "Verified", "deadlineSeconds": 600});
    assert_eq!(overdue(&verified, &[]), Some(at("2026-11-01T11:30:00Z")));
    let done = proven(
        "hourly-20261102-0300",
        "Verified",
        "2026-11-02T03:02:00Z",
        &[("Verified", "True")],
    );
    let not = proven(
        "hourly-20261102-0400",
        "Verified",
        "2026-11-02T04:02:00Z",
        &[("Verified", "False")],
    );
    assert_eq!(
        overdue(&verified, &[done.clone(), not]),
        Some(at("2026-11-02T04:30:00Z"))
    );
    let drill = json!({"deadlineSeconds": 600, "drill": {"schedule": "0 5 * * *", "proof": "Verified"}});
    assert_eq!(overdue(&drill, &[]), Some(at("2026-11-02T05:30:00Z")));
    assert_eq!(overdue(&drill, &[done]), Some(at("2026-11-02T05:30:00Z")));
}

#[test]
fn a_failed_proof_is_told_until_a_newer_backup_comes_as_far() {
    let bad = proven(
        "hourly-20261102-0300",
        "Verified",
        "2026-11-02T03:02:00Z",
        &[("Verified", "False")],
    );
    let good = proven(
        "hourly-20261102-0400",
        "Verified",
        "2026-11-02T04:02:00Z",
        &[("Verified", "True")],
    );
    let all = [bad.clone()];
    assert_eq!(
        unproven(&Backups::of("hourly", &all)),
        Some(("hourly-20261102-0300", "why Verified"))
    );
    let all = [bad, good.clone()];
    assert_eq!(unproven(&Backups::of("hourly", &all)), None);
    let mut drilled = good;
    drilled.spec.proof = Proof::Drilled;
    let failed = json!({"type": "Drilled", "status": "False", "reason": "SecretsUnreadable", "message": "no key",
        "lastTransitionTime": "2026-11-02T05:00:00Z"});
    drilled
        .status
        .as_mut()
        .unwrap()
        .conditions
        .push(serde_json::from_value(failed).unwrap());
    let all = [drilled];
    assert_eq!(
        unproven(&Backups::of("hourly", &all)),
        Some(("hourly-20261102-0400", "no key"))
    );
}

#[test]
fn another_agent_proves_what_a_lost_one_cannot() {
    let wants = proven("hourly-20261102-0300", "Verified", "2026-11-02T03:02:00Z", &[]);
    assert_eq!(other_node(&wants, &["cp1", "cp2"]), None);
    assert_eq!(other_node(&wants, &["cp2", "cp3"]), Some("cp2"));
    assert_eq!(other_node(&wants, &[]), None);
    let done = proven(
        "hourly-20261102-0300",
        "Verified",
        "2026-11-02T03:02:00Z",
        &[("Verified", "True")],
    );
    assert_eq!(other_node(&done, &["cp2"]), None);
}
