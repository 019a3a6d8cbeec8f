//! Schedules and backups for tests.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use lockkeeper_crds as crds;
use serde_json::{Value, json};

use super::plan::{Around, Backups, Plan, plan};

pub(super) fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

/// Every hour, made on 2026-11-01 at 10:20; keeps the newest two.
pub(super) fn hourly(spec: &Value) -> crds::EtcdBackupSchedule {
    let mut object = json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupSchedule",
        "metadata": {"name": "hourly", "uid": "uid-1", "generation": 1, "creationTimestamp": "2026-11-01T10:20:00Z"},
        "spec": {"storeRef": {"name": "default"}, "schedule": "0 * * * *", "retention": {"keepLast": 2}},
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// `stored`, `failed`, `running` or `waiting`.
pub(super) fn backup(name: &str, state: &str) -> crds::EtcdBackup {
    let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-11-01T00:00:00Z"});
    // Ten seconds after its slot.
    let slot = lockkeeper_policies::schedule::slot_of("hourly", name).unwrap_or_default();
    let completed = (slot + chrono::TimeDelta::seconds(10))
        .format("%Y-%m-%dT%H:%M:%SZ")
        .to_string();
    let status = match state {
        "stored" => json!({"node": "cp1", "startedAt": completed, "completedAt": completed,
            "artifact": {"uri": "s3://b/k", "manifestUri": "s3://b/m", "sizeBytes": 100, "sha256": "", "revision": 1,
                "etcdVersion": "3.6.0", "clusterId": "c", "memberId": "m"},
            "conditions": [condition("Succeeded", "True", "Stored"), condition("Stored", "True", "ReadBack")]}),
        "failed" => json!({"node": "cp1", "completedAt": completed, "message": "the store is away",
            "conditions": [condition("Succeeded", "False", "StoreUnavailable")]}),
        "running" => json!({"node": "cp1", "startedAt": completed}),
        _ => json!({}),
    };
    serde_json::from_value(json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup",
        "metadata": {"name": name, "labels": {crds::SCHEDULE_LABEL: "hourly"}, "finalizers": [crds::STORED_FINALIZER]},
        "spec": {"storeRef": {"name": "default"}},
        "status": status,
    }))
    .unwrap()
}

pub(super) fn deleted(mut backup: crds::EtcdBackup) -> crds::EtcdBackup {
    backup.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-02T00:00:00Z")).unwrap();
    backup
}

/// The plan where store `default` exists.
pub(super) fn planned(object: &crds::EtcdBackupSchedule, all: &[crds::EtcdBackup], now: &str) -> Plan {
    let around = Around {
        namespace: "lockkeeper-system",
        stores: &BTreeSet::from(["default".to_owned()]),
        names: &all.iter().filter_map(|b| b.metadata.name.clone()).collect(),
        in_use: None,
    };
    plan(object, &Backups::of("hourly", all), &around, at(now))
}
