use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::watcher::Event;
use lockkeeper_crds::{EtcdBackupSpec, EtcdBackupStatus, LocalReference, Proof};

use super::*;
use crate::api::testing::{Answer, client, ok, refused};

const NODE: &str = "cp-1";

fn backup(name: &str, created: i64, status: EtcdBackupStatus) -> EtcdBackup {
    let spec = EtcdBackupSpec {
        store_ref: LocalReference {
            name: "main".to_owned(),
        },
        deadline_seconds: 60,
        include: vec![],
        proof: Proof::Stored,
    };
    let mut backup = EtcdBackup::new(name, spec);
    backup.metadata.uid = Some(format!("{name}-uid"));
    backup.metadata.creation_timestamp = Some(Time(Timestamp::from_second(created).unwrap()));
    backup.status = Some(status);
    backup
}

fn assigned(node: &str) -> EtcdBackupStatus {
    EtcdBackupStatus {
        node: Some(node.to_owned()),
        ..EtcdBackupStatus::default()
    }
}

fn completed() -> EtcdBackupStatus {
    EtcdBackupStatus {
        completed_at: Some(Time(Timestamp::UNIX_EPOCH)),
        ..assigned(NODE)
    }
}

fn next(waiting: &Waiting) -> Option<String> {
    waiting.next().map(|key| key.name)
}

#[test]
fn only_what_this_node_was_given_and_has_no_end_is_taken_the_oldest_first() {
    let mut waiting = Waiting::default();
    for (name, created, status) in [
        ("younger", 2, assigned(NODE)),
        ("older", 1, assigned(NODE)),
        ("elsewhere", 0, assigned("cp-2")),
        ("unassigned", 0, EtcdBackupStatus::default()),
        ("done", 0, completed()),
    ] {
        waiting.see(Event::Apply(backup(name, created, status)), NODE);
    }
    assert_eq!(next(&waiting).as_deref(), Some("older"));
    waiting.see(Event::Apply(backup("older", 1, completed())), NODE);
    assert_eq!(next(&waiting).as_deref(), Some("younger"));
    waiting.see(Event::Delete(backup("younger", 2, assigned(NODE))), NODE);
    assert_eq!(next(&waiting), None);
}

#[test]
fn what_is_being_deleted_is_reported_and_not_taken() {
    let mut waiting = Waiting::default();
    let mut leaving = backup("leaving", 1, assigned(NODE));
    assert_eq!(waiting.see(Event::Apply(leaving.clone()), NODE), None);
    leaving.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let gone = waiting.see(Event::Apply(leaving), NODE).unwrap();
    assert_eq!(gone.name, "leaving");
    assert_eq!(next(&waiting), None);
}

#[test]
fn one_that_could_not_be_begun_lets_the_others_pass_and_comes_back() {
    let mut waiting = Waiting::default();
    for (name, created) in [("first", 1), ("second", 2)] {
        waiting.see(Event::Apply(backup(name, created, assigned(NODE))), NODE);
    }
    let first = waiting.next().unwrap();
    waiting.done(&first, Outcome::Postponed);
    assert_eq!(next(&waiting).as_deref(), Some("second"));
    // Its own events do not make it come back any sooner.
    waiting.see(Event::Apply(backup("first", 1, assigned(NODE))), NODE);
    assert_eq!(next(&waiting).as_deref(), Some("second"));
    let second = waiting.next().unwrap();
    waiting.done(&second, Outcome::Settled);
    assert!(waiting.postponed());
    waiting.recall();
    assert_eq!(next(&waiting).as_deref(), Some("first"));
}

#[test]
fn a_new_list_replaces_what_was_known() {
    let mut waiting = Waiting::default();
    waiting.see(Event::Apply(backup("gone meanwhile", 1, assigned(NODE))), NODE);
    waiting.see(Event::Init, NODE);
    waiting.see(Event::InitApply(backup("there", 2, assigned(NODE))), NODE);
    waiting.see(Event::InitDone, NODE);
    assert_eq!(next(&waiting).as_deref(), Some("there"));
}

/// Has a desk handle an object for what lies in a store as `lost-11111111`; see [`handled`].
async fn adopted(store: impl Fn() -> Answer + Send + Sync + 'static) -> (Outcome, bool) {
    let mut object = backup("lost", 1, assigned(NODE));
    let stored_as = (
        lockkeeper_crds::STORED_AS_ANNOTATION.to_owned(),
        "lost-11111111".to_owned(),
    );
    object.metadata.annotations = Some([stored_as].into());
    handled(object, store).await
}

/// Has a desk handle it; the API answers for the store as given. What came of it, and whether anything was written.
async fn handled(object: EtcdBackup, store: impl Fn() -> Answer + Send + Sync + 'static) -> (Outcome, bool) {
    let key = Key::of(&object);
    let object = serde_json::to_value(object).unwrap();
    let (client, asked) = client(move |path| match path.contains("/etcdbackupstores/") {
        true => store(),
        false => ok(&object),
    });
    let desk = Desk {
        client,
        namespace: "default".to_owned(),
        node: NODE.to_owned(),
        member: Arc::new(EtcdMember::from_host(std::path::Path::new("/nowhere"), None)),
    };
    let outcome = desk.handle(key, CancellationToken::new()).await;
    let wrote = asked.lock().unwrap().iter().any(|path| path.contains("/status"));
    (outcome, wrote)
}

#[tokio::test]
async fn what_lies_in_a_store_is_given_up_by_what_the_store_says_and_by_nothing_else() {
    let at = tempfile::tempdir().unwrap();
    let store = move |path: &std::path::Path| {
        ok(
            &serde_json::json!({"apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupStore",
            "metadata": {"name": "main"}, "spec": {"directory": {"path": path}}}),
        )
    };
    let away = || refused(503, "ServiceUnavailable");
    assert_eq!(adopted(away).await, (Outcome::Postponed, false));
    let forbidden = || refused(403, "Forbidden");
    assert_eq!(adopted(forbidden).await, (Outcome::Settled, true));
    let missing = || refused(404, "NotFound");
    assert_eq!(adopted(missing).await, (Outcome::Postponed, false));
    let unmounted = at.path().join("not-there");
    assert_eq!(
        adopted(move || store(&unmounted)).await,
        (Outcome::Postponed, false)
    );
    let empty = at.path().to_owned();
    assert_eq!(adopted(move || store(&empty)).await, (Outcome::Settled, true));
}

#[tokio::test]
async fn none_is_begun_before_its_store_was_read() {
    let new = || backup("new", 1, assigned(NODE));
    let away = || refused(503, "ServiceUnavailable");
    assert_eq!(handled(new(), away).await, (Outcome::Postponed, false));
    // That it may not be read, or does not exist, is an answer.
    let forbidden = || refused(403, "Forbidden");
    assert_eq!(handled(new(), forbidden).await, (Outcome::Settled, true));
    let missing = || refused(404, "NotFound");
    assert_eq!(handled(new(), missing).await, (Outcome::Settled, true));
}
