use std::path::Path;

use serde_json::json;

use super::*;
use crate::agent::cri::Cri;
use crate::agent::host::Host;
use crate::agent::proof::ProofConfig;

const NODE: &str = "cp-1";

/// A stored backup with these conditions besides, as `Verified=False/Why`.
fn stored(name: &str, proof: &str, conditions: &[&str]) -> EtcdBackup {
    let all = ["Succeeded=True/Stored", "Stored=True/ReadBack"]
        .iter()
        .chain(conditions);
    let all: Vec<_> = all
        .map(|text| {
            let (type_, rest) = text.split_once('=').unwrap();
            let (status, reason) = rest.split_once('/').unwrap();
            json!({"type": type_, "status": status, "reason": reason, "message": "",
                "lastTransitionTime": "2026-11-01T03:00:00Z"})
        })
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup",
        "metadata": {"name": name, "uid": format!("{name}-uid"), "creationTimestamp": "2026-11-01T03:00:00Z"},
        "spec": {"storeRef": {"name": "default"}, "proof": proof},
        "status": {"node": NODE, "startedAt": "2026-11-01T03:00:00Z", "completedAt": "2026-11-01T03:00:09Z",
            "conditions": all},
    }))
    .unwrap()
}

fn means(busy: bool) -> (watch::Sender<bool>, Option<Proving>) {
    let (tell, tickets) = watch::channel(busy);
    let config = ProofConfig {
        work_directory: "/work".into(),
        proof_on_etcd_disk: false,
        proof_memory_mib: 1024,
        proof_cpu_millis: 1000,
    };
    let host = Host::new(Path::new("/nonexistent"), Path::new("/m"), Path::new("/s"));
    let prover = Prover::new(host, Cri::new("unix:///nonexistent").unwrap(), config);
    (tell, Some(Proving { prover, tickets }))
}

fn next(unproven: &Unproven) -> Option<String> {
    unproven.next().map(|(key, _)| key.name)
}

#[test]
fn only_what_is_stored_and_not_proven_as_far_as_wanted_and_not_known_to_be_bad_is_proven() {
    let level = |proof, conditions: &[&str]| wanted(&stored("b", proof, conditions), NODE);
    assert_eq!(level("Stored", &[]), None);
    assert_eq!(level("Verified", &[]), Some(Proof::Verified));
    assert_eq!(
        level("Drilled", &["Verified=True/Restored"]),
        Some(Proof::Drilled)
    );
    assert_eq!(level("Verified", &["Verified=True/Restored"]), None);
    assert_eq!(
        level("Verified", &["Verified=False/SameDisk"]),
        Some(Proof::Verified)
    );
    assert_eq!(level("Verified", &["Verified=False/Damaged"]), None);
    assert_eq!(
        level("Drilled", &["Verified=False/Damaged", "Drilled=Unknown/Running"]),
        None
    );
    assert_eq!(wanted(&stored("b", "Verified", &[]), "cp-2"), None);
    let mut failed = stored("b", "Verified", &[]);
    failed.status.as_mut().unwrap().conditions[1].status = "False".to_owned();
    assert_eq!(wanted(&failed, NODE), None);
    let mut leaving = stored("b", "Verified", &[]);
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    assert_eq!(wanted(&leaving, NODE), None);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_proven_beside_a_ticket_and_one_that_made_way_comes_back_soon() {
    let (tell, means) = means(true);
    let mut unproven = Unproven::new(means);
    unproven.see(&Event::Apply(stored("a", "Verified", &[])), NODE);
    assert_eq!((next(&unproven), unproven.wake()), (None, None));
    tell.send_replace(false);
    unproven.turned().await;
    assert_eq!(next(&unproven).as_deref(), Some("a"));
    let (key, _) = unproven.next().unwrap();
    unproven.done(&key, Ended::Interrupted);
    assert_eq!(next(&unproven), None);
    tokio::time::sleep_until(unproven.wake().unwrap()).await;
    assert_eq!(next(&unproven).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_is_tried_again_ever_more_rarely_and_keeps_no_other_waiting() {
    let (_tell, means) = means(false);
    let mut unproven = Unproven::new(means);
    for name in ["a", "b"] {
        unproven.see(&Event::Apply(stored(name, "Verified", &[])), NODE);
    }
    let (a, _) = unproven.next().unwrap();
    unproven.done(&a, Ended::Failed);
    // The event of its own condition does not make it come back any sooner.
    let failed = stored("a", "Verified", &["Verified=False/SameDisk"]);
    unproven.see(&Event::Apply(failed), NODE);
    assert_eq!(next(&unproven).as_deref(), Some("b"));
    let (b, _) = unproven.next().unwrap();
    unproven.done(&b, Ended::Settled);
    let mut pauses = vec![];
    for _ in 0..8 {
        let began = Instant::now();
        tokio::time::sleep_until(unproven.wake().unwrap()).await;
        pauses.push(began.elapsed().as_secs());
        unproven.done(&a, Ended::Failed);
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
}

#[test]
fn without_means_nothing_is_proven() {
    let mut unproven = Unproven::new(None);
    unproven.see(&Event::Apply(stored("a", "Verified", &[])), NODE);
    assert_eq!(next(&unproven), None);
}
