//! Takes out of the store what an `EtcdBackup` stored that was deleted and has the finalizer for it.
//!
//! Only of backups that name this node: the operator gives a backup whose node is lost to another one. The object
//! itself goes by the operator, once the condition `Deleted` written here is True.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::runtime::watcher::Event;
use lockkeeper_crds::{EtcdBackup, RETAIN_ANNOTATION, Tristate};
use tokio::time::Instant;

use super::report::{Report, Written};
use super::{Desk, Key, Outcome};
use crate::backoff;
use crate::store::{Failure, Store, StoreError};

/// After a failure: doubled up to the second figure. A store may be away for hours.
const RETRY: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(300)];

/// Why what was stored is still there.
#[derive(Debug, thiserror::Error)]
enum DiscardError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "what it stored lies at {lies}, and EtcdBackupStore {store} now means {means}: change it back, or delete the snapshot and its manifest by hand"
    )]
    Elsewhere {
        store: String,
        lies: String,
        means: String,
    },
}

impl DiscardError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Store(e) => e.reason(),
            Self::Elsewhere { .. } => "Elsewhere",
        }
    }
}

/// What waits to be taken out of the store.
#[derive(Debug, Default)]
pub(super) struct Leaving(BTreeMap<Key, Try>);

#[derive(Debug)]
struct Try {
    at: Instant,
    failures: u32,
}

impl Leaving {
    /// True for what this node's agent has to take out of the store.
    fn ours(backup: &EtcdBackup, node: &str) -> bool {
        let status = backup.status.as_ref();
        backup.is_leaving()
            && !backup.is_retained()
            && !backup.has("Deleted")
            && status.is_some_and(|s| s.node.as_deref() == Some(node) && s.started_at.is_some())
    }

    /// Takes an event in.
    pub(super) fn see(&mut self, event: &Event<EtcdBackup>, node: &str) {
        match event {
            Event::Apply(backup) | Event::InitApply(backup) if Self::ours(backup, node) => {
                let now = Try {
                    at: Instant::now(),
                    failures: 0,
                };
                self.0.entry(Key::of(backup)).or_insert(now);
            }
            Event::Apply(backup) | Event::InitApply(backup) | Event::Delete(backup) => {
                self.0.remove(&Key::of(backup));
            }
            Event::Init => self.0.clear(),
            Event::InitDone => {}
        }
    }

    /// The oldest whose time has come. It stays until [`Leaving::done`]. `busy`: is being taken still, and comes
    /// later.
    pub(super) fn next(&mut self, busy: Option<&Key>) -> Option<Key> {
        let now = Instant::now();
        if let Some(waits) = busy.and_then(|key| self.0.get_mut(key)) {
            waits.at = waits.at.max(now + RETRY[0]);
        }
        self.0
            .iter()
            .find(|(_, t)| t.at <= now)
            .map(|(key, _)| key.clone())
    }

    /// When the next one's time comes.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.0.values().map(|t| t.at).min()
    }

    pub(super) fn done(&mut self, key: &Key, outcome: Outcome) {
        match outcome {
            Outcome::Settled => drop(self.0.remove(key)),
            Outcome::Postponed => {
                if let Some(waits) = self.0.get_mut(key) {
                    let [first, limit] = RETRY;
                    waits.at = Instant::now() + backoff::wait(waits.failures, first, limit);
                    waits.failures += 1;
                }
            }
        }
    }
}

impl Desk {
    pub(super) async fn discard(&self, key: Key) -> Outcome {
        // As it is now: it may have been retained meanwhile.
        let mut report = match Report::read(&self.backups(), &key.name).await {
            Ok(Some(report)) => report,
            Ok(None) => return Outcome::Settled,
            Err(error) => {
                tracing::warn!(backup = %key.name, %error, "cannot be read; trying again");
                return Outcome::Postponed;
            }
        };
        let same = report.backup.metadata.uid.as_ref() == Some(&key.uid);
        if !same || !Leaving::ours(&report.backup, &self.node) {
            return Outcome::Settled;
        }
        let taken_out = self.take_out(&report.backup, &key).await;
        let written = match &taken_out {
            Ok((place, versions)) => {
                let (reason, message) = gone(place, *versions);
                tracing::info!(backup = %key.name, reason, message, "taken out of the store");
                report.deleted(Tristate::True, reason, &message).await
            }
            Err(error) => {
                tracing::warn!(backup = %key.name, reason = error.reason(), %error, "cannot be taken out of the store yet");
                let message = format!(
                    "{error}; or set the annotation {RETAIN_ANNOTATION} to let this object go and leave in the store what is there"
                );
                report.deleted(Tristate::False, error.reason(), &message).await
            }
        };
        match (taken_out, written) {
            (Ok(_), Ok(Written::Yes)) | (_, Ok(Written::Gone)) => Outcome::Settled,
            (_, Ok(Written::Yes | Written::Conflict)) => Outcome::Postponed,
            (_, Err(error)) => {
                tracing::warn!(backup = %key.name, %error, "that could not be written; trying again");
                Outcome::Postponed
            }
        }
    }

    /// Where it lay, and whether that keeps versions.
    async fn take_out(&self, backup: &EtcdBackup, key: &Key) -> Result<(String, Tristate), DiscardError> {
        let name = &backup.spec.store_ref.name;
        let artifact = backup.status.as_ref().and_then(|s| s.artifact.as_ref());
        let store = match Store::open(&self.client, &self.namespace, name).await {
            // One that failed for want of its store: there is nothing to be sought, and nowhere.
            Err(e) if artifact.is_none() && matches!(e.failure(), Failure::Missing { .. }) => {
                return Ok((String::new(), Tristate::False));
            }
            opened => opened?,
        };
        let place = store.place(backup);
        let means = store.uri(&place.manifest);
        // The store may have been given another bucket or prefix since.
        if let Some(artifact) = artifact.filter(|a| a.manifest_uri != means) {
            return Err(DiscardError::Elsewhere {
                store: name.clone(),
                lies: artifact.manifest_uri.clone(),
                means,
            });
        }
        let uid = match backup.stored_as() {
            None => key.uid.clone(),
            Some(_) => {
                let manifest = store.manifest(&place).await?.filter(|m| m.is_of(&place));
                manifest.map(|m| m.uid).unwrap_or_default()
            }
        };
        store.remove(&place, &uid).await?;
        Ok((means, store.keeps_versions()))
    }
}

/// What became of it. The name is free in any case, and nothing lists it any more.
fn gone(place: &str, versions: Tristate) -> (&'static str, String) {
    match versions {
        Tristate::False => ("Deleted", "what it stored is gone".to_owned()),
        Tristate::True => (
            "VersionsKept",
            format!(
                "what it stored is deleted, and stays beside {place} as older versions, which the bucket keeps: its lifecycle ends them (NoncurrentVersionExpiration), not before an object lock does; or delete the versions by hand"
            ),
        ),
        Tristate::Unknown => (
            "Deleted",
            format!(
                "what it stored is deleted; should the bucket keep versions or what is deleted, it stays there beside {place} until the bucket's lifecycle ends it"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NODE: &str = "cp-1";

    fn leaving(name: &str, patch: &serde_json::Value) -> EtcdBackup {
        let mut backup = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup",
            "metadata": {"name": name, "uid": format!("{name}-uid"), "finalizers": ["lockkeeper.dev/stored"],
                "deletionTimestamp": "2026-11-02T00:00:00Z"},
            "spec": {"storeRef": {"name": "default"}},
            "status": {"node": NODE, "startedAt": "2026-11-01T03:00:00Z"},
        });
        for part in ["metadata", "status"] {
            for (field, value) in patch[part].as_object().into_iter().flatten() {
                backup[part][field] = value.clone();
            }
        }
        serde_json::from_value(backup).unwrap()
    }

    #[test]
    fn only_what_is_not_kept_is_called_gone() {
        let said = |versions| gone("s3://b/x/manifest.json", versions);
        assert_eq!(
            said(Tristate::False),
            ("Deleted", "what it stored is gone".to_owned())
        );
        for (versions, reason) in [(Tristate::True, "VersionsKept"), (Tristate::Unknown, "Deleted")] {
            let (told, message) = said(versions);
            assert_eq!(told, reason);
            assert!(
                message.contains("s3://b/x/") && message.contains("lifecycle"),
                "{message}"
            );
            assert!(!message.contains("gone"), "{message}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_may_go_and_is_this_nodes_is_taken_out() {
        let mut waits = Leaving::default();
        let done = json!([{"type": "Deleted", "status": "True", "reason": "Deleted", "message": "",
            "lastTransitionTime": "2026-11-02T00:00:00Z"}]);
        for (name, patch) in [
            ("stays", json!({"metadata": {"deletionTimestamp": null}})),
            (
                "foreign",
                json!({"metadata": {"finalizers": ["example.org/other"]}}),
            ),
            (
                "retained",
                json!({"metadata": {"annotations": {RETAIN_ANNOTATION: ""}}}),
            ),
            ("elsewhere", json!({"status": {"node": "cp-2"}})),
            ("never-begun", json!({"status": {"startedAt": null}})),
            ("gone", json!({"status": {"conditions": done}})),
        ] {
            waits.see(&Event::Apply(leaving(name, &patch)), NODE);
        }
        assert_eq!(waits.next(None), None);
        waits.see(&Event::Apply(leaving("old", &json!({}))), NODE);
        assert_eq!(waits.next(None).map(|k| k.name).as_deref(), Some("old"));
        // Retained at the last moment.
        let retained = json!({"metadata": {"annotations": {RETAIN_ANNOTATION: ""}}});
        waits.see(&Event::Apply(leaving("old", &retained)), NODE);
        assert_eq!(waits.next(None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_cannot_go_is_tried_again_ever_more_rarely_and_keeps_no_other_from_going() {
        let mut waits = Leaving::default();
        for name in ["a", "b"] {
            waits.see(&Event::Apply(leaving(name, &json!({}))), NODE);
        }
        let a = waits.next(None).unwrap();
        waits.done(&a, Outcome::Postponed);
        let b = waits.next(None).unwrap();
        assert_eq!(b.name, "b");
        // The event of its own condition does not make it come back any sooner.
        waits.see(&Event::Apply(leaving("a", &json!({}))), NODE);
        waits.done(&b, Outcome::Settled);
        assert_eq!(waits.next(None), None);
        let mut pauses = vec![];
        for _ in 0..7 {
            let began = Instant::now();
            tokio::time::sleep_until(waits.wake().unwrap()).await;
            pauses.push(began.elapsed().as_secs());
            let key = waits.next(None).unwrap();
            waits.done(&key, Outcome::Postponed);
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_being_taken_still_comes_later() {
        let mut waits = Leaving::default();
        waits.see(&Event::Apply(leaving("a", &json!({}))), NODE);
        let key = waits.next(None).unwrap();
        assert_eq!(waits.next(Some(&key)), None);
        assert!(
            waits.wake().unwrap() > Instant::now(),
            "or it would be asked for without end"
        );
        tokio::time::sleep_until(waits.wake().unwrap()).await;
        assert_eq!(waits.next(None), Some(key));
    }
}
