//! Backups that were deleted, and go once what they stored is gone. Pure.
//!
//! An agent takes it out of the store, since agents alone hold the store's credentials; it says so by the
//! condition `Deleted`, and then the operator takes the finalizer off. An agent may write of a backup that names
//! its node and of no other, so a backup whose node is lost is given to another node first.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockkeeper_crds::{self as crds, Tristate, condition, set_condition};
use serde_json::json;

/// The condition that tells how far it is.
const DELETED: &str = "Deleted";

/// What is to be done about one of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Leave {
    /// Its agent is at it.
    Wait,
    /// Nothing of it is in the store, or is to stay there: take the finalizer off.
    LetGo,
    /// Write this into its status.
    Tell(serde_json::Value),
}

/// What is to be done about a backup that was deleted and has our finalizer.
///
/// `heard`: the nodes whose agents report.
pub(super) fn decide(backup: &crds::EtcdBackup, heard: &[&str], now: &Time) -> Leave {
    let status = backup.status.clone().unwrap_or_default();
    if backup.is_retained() || backup.has(DELETED) || status.started_at.is_none() {
        return Leave::LetGo;
    }
    let node = status.node.as_deref().unwrap_or_default();
    if heard.contains(&node) {
        return Leave::Wait;
    }
    if let Some(other) = heard.first() {
        return Leave::Tell(json!({
            "node": other,
            "message": format!("the agent of {other} takes it out of the store, since that of {node} is not heard"),
        }));
    }
    let reason = "NoAgent";
    if status
        .conditions
        .iter()
        .any(|c| c.type_ == DELETED && c.reason == reason)
    {
        return Leave::Wait;
    }
    let message = format!(
        "no agent is heard that could take it out of the store: bring one back, or set the annotation {} to let this object go and leave in the store what is there",
        crds::RETAIN_ANNOTATION
    );
    let mut conditions = status.conditions;
    let generation = backup.metadata.generation;
    let new = condition(
        DELETED,
        Tristate::False,
        reason,
        &message,
        generation,
        now.clone(),
    );
    set_condition(&mut conditions, new);
    Leave::Tell(json!({"conditions": conditions, "message": message}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;

    fn now() -> Time {
        Time(Timestamp::from_second(1_800_000_000).unwrap())
    }

    fn leaving(status: &serde_json::Value) -> crds::EtcdBackup {
        serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup",
            "metadata": {"name": "nightly-20261101-0300", "finalizers": [crds::STORED_FINALIZER],
                "deletionTimestamp": "2026-11-02T00:00:00Z"},
            "spec": {"storeRef": {"name": "default"}},
            "status": status,
        }))
        .unwrap()
    }

    fn told(leave: Leave) -> serde_json::Value {
        match leave {
            Leave::Tell(status) => status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_goes_when_what_it_stored_is_gone_or_never_was_or_is_retained() {
        let begun = json!({"node": "cp1", "startedAt": "2026-11-01T03:00:00Z"});
        assert_eq!(decide(&leaving(&begun), &["cp1"], &now()), Leave::Wait);

        let mut gone = begun.clone();
        gone["conditions"] = json!([{"type": "Deleted", "status": "True", "reason": "Deleted", "message": "",
            "lastTransitionTime": "2026-11-02T00:00:00Z"}]);
        assert_eq!(decide(&leaving(&gone), &[], &now()), Leave::LetGo);
        assert_eq!(
            decide(&leaving(&json!({"node": "cp1"})), &["cp1"], &now()),
            Leave::LetGo
        );

        let mut retained = leaving(&begun);
        retained.metadata.annotations = Some([(crds::RETAIN_ANNOTATION.to_owned(), String::new())].into());
        assert_eq!(decide(&retained, &[], &now()), Leave::LetGo);
    }

    #[test]
    fn another_agent_takes_over_from_one_that_is_lost_and_without_any_it_is_told_once() {
        let begun = json!({"node": "cp1", "startedAt": "2026-11-01T03:00:00Z"});
        let given = told(decide(&leaving(&begun), &["cp2", "cp3"], &now()));
        assert_eq!(given["node"], "cp2");

        let alone = told(decide(&leaving(&begun), &[], &now()));
        let message = alone["conditions"][0]["message"].as_str().unwrap();
        assert!(
            message.contains("bring one back") && message.contains(crds::RETAIN_ANNOTATION),
            "{message}"
        );
        let mut known = begun;
        known["conditions"] = alone["conditions"].clone();
        assert_eq!(decide(&leaving(&known), &[], &now()), Leave::Wait);
    }
}
