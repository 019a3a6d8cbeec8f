use lockkeeper_crds::{Directory, EtcdBackupStoreSpec};
use serde_json::json;

use super::*;
use crate::store::Secrets;

/// What a bucket holds and what objects say, compared.
struct Scene {
    at: tempfile::TempDir,
    store: Store,
}

impl Scene {
    fn new() -> Self {
        let at = tempfile::tempdir().unwrap();
        let spec = EtcdBackupStoreSpec {
            directory: Some(Directory {
                path: at.path().display().to_string(),
            }),
            ..EtcdBackupStoreSpec::default()
        };
        let store = Store::from_spec("main", &spec, Secrets::default()).unwrap();
        Self { at, store }
    }

    fn stored(&self, name: &str, uid: &str, day: u32) {
        let folder = self.at.path().join(format!("{name}-{uid}"));
        std::fs::create_dir(&folder).unwrap();
        let manifest = json!({
            "format": 1, "id": "a", "name": name, "uid": uid, "node": "cp-1", "clusterId": "c", "memberId": "m",
            "etcdVersion": "3.6.0", "revision": 5, "sizeBytes": 4, "sha256": "s", "partSizeBytes": 8_388_608,
            "schedule": "nightly", "startedAt": format!("2026-11-{day:02}T03:00:00Z"),
            "completedAt": format!("2026-11-{day:02}T03:00:05Z"),
        });
        std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    }

    /// An object of this UID; with an annotation, when it stands for what another one stored.
    fn object(&self, name: &str, uid: &str, stored: Option<&str>) -> EtcdBackup {
        let key = self.store.key(name, stored.unwrap_or(uid));
        let condition = json!({"type": "Stored", "status": "True", "reason": "ReadBack", "message": "",
            "lastTransitionTime": "2026-11-01T03:00:05Z"});
        let mut object = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": name, "uid": uid},
            "spec": {"storeRef": {"name": "main"}},
            "status": {"node": "cp-1", "completedAt": "2026-11-01T03:00:05Z", "conditions": [condition],
                "artifact": {"uri": "", "manifestUri": self.store.uri(&key.manifest), "sizeBytes": 4, "sha256": "s",
                    "revision": 5, "etcdVersion": "3.6.0", "clusterId": "c", "memberId": "m"}},
        });
        if let Some(stored) = stored {
            let folder = format!("{name}-{stored}");
            object["metadata"]["annotations"] = json!({lockkeeper_crds::STORED_AS_ANNOTATION: folder});
        }
        serde_json::from_value(object).unwrap()
    }
}

#[tokio::test]
async fn what_no_object_stands_for_is_told_the_newest_first() {
    let scene = Scene::new();
    for (name, uid, day) in [
        ("known", "11111111", 1),
        ("lost", "22222222", 2),
        ("adopted", "33333333", 3),
        ("lost", "44444444", 4),
    ] {
        scene.stored(name, uid, day);
    }
    std::fs::create_dir(scene.at.path().join("broken-55555555")).unwrap();
    std::fs::write(scene.at.path().join("broken-55555555/manifest.json"), "{").unwrap();
    let objects = [
        scene.object("known", "11111111", None),
        scene.object("adopted", "99999999", Some("33333333")),
    ];
    let listed = scene.store.list().await.unwrap();
    let told = unclaimed(&objects, &listed);
    let told: Vec<_> = told
        .iter()
        .map(|u| (u.name.as_str(), u.stored_as.as_str()))
        .collect();
    assert_eq!(told, [("lost", "lost-44444444"), ("lost", "lost-22222222")]);
    let told = unclaimed(&[], &listed);
    assert_eq!(told[0].schedule.as_deref(), Some("nightly"));
}

#[tokio::test]
async fn what_an_object_says_and_the_store_does_not_have_is_missing() {
    let scene = Scene::new();
    scene.stored("there", "11111111", 1);
    let gone = scene.object("gone", "22222222", None);
    let mut going = scene.object("going", "33333333", None);
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    let mut unfinished = scene.object("unfinished", "44444444", None);
    unfinished.status.as_mut().unwrap().completed_at = None;
    let mut elsewhere = scene.object("elsewhere", "55555555", None);
    let artifact = elsewhere.status.as_mut().unwrap().artifact.as_mut().unwrap();
    artifact.manifest_uri = "s3://another/elsewhere-55555555/manifest.json".to_owned();
    let objects = [
        scene.object("there", "11111111", None),
        gone,
        going,
        unfinished,
        elsewhere,
    ];
    let listed = scene.store.list().await.unwrap();
    let missing = missing(&scene.store, &objects, &listed);
    assert_eq!(missing.iter().map(|b| b.name_any()).collect::<Vec<_>>(), ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_store_is_looked_into_when_it_is_new_or_changed_and_soon_again_when_it_is_ill() {
    let store = |generation: i64, available: &str| -> EtcdBackupStore {
        let condition = json!({"type": "Available", "status": available, "reason": "x", "message": "",
            "lastTransitionTime": "2026-11-01T03:00:05Z"});
        serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupStore",
            "metadata": {"name": "main", "generation": generation}, "spec": {}, "status": {"conditions": [condition]},
        }))
        .unwrap()
    };
    let mut due = Due::new("cp-1");
    let pause = async |due: &mut Due, well| {
        let began = Instant::now();
        tokio::time::sleep_until(due.wake().unwrap()).await;
        let name = due.next().unwrap();
        due.looked(&name, well);
        began.elapsed()
    };
    due.see(&Event::InitApply(store(1, "True")));
    assert!(pause(&mut due, true).await < SPREAD);
    // Its own words make it no sooner.
    due.see(&Event::Apply(store(1, "True")));
    assert_eq!(pause(&mut due, true).await, WELL);
    due.see(&Event::Apply(store(2, "True")));
    assert!(pause(&mut due, false).await < SPREAD);
    assert_eq!(pause(&mut due, true).await, ILL);
    due.see(&Event::Apply(store(2, "False")));
    assert_eq!(pause(&mut due, true).await, ILL);
    // As after a restore: the watch has to begin anew.
    due.see(&Event::Init);
    assert_eq!(due.wake(), None);
    due.see(&Event::InitApply(store(2, "True")));
    assert!(pause(&mut due, true).await < SPREAD);
}
