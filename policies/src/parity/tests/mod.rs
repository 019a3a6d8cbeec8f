use serde_json::{Value, json};

use super::*;

mod images;
mod inventories;
mod kinds;
mod objects;

const KEY: [u8; KEY_LENGTH] = [7; KEY_LENGTH];

fn kind(group: &str, kind: &str) -> Kind {
    Kind::new(group, kind)
}

/// What is kept of it, under one key.
fn record(kind: &Kind, object: &Value) -> Option<Record> {
    let scope = Scope::default();
    let mut recorder = Recorder {
        kind,
        scope: &scope,
        keyed: Keyed::new(&KEY),
        images: Images::default(),
    };
    recorder.record(object.clone()).unwrap()
}

fn equal(kind: &Kind, blue: &Value, green: &Value) -> bool {
    record(kind, blue).unwrap().digest == record(kind, green).unwrap().digest
}

/// As an API server serves it, with all that it has put on it.
fn served(mut object: Value) -> Value {
    let metadata = json!({
        "name": "web", "namespace": "shop", "uid": "1-2", "resourceVersion": "17", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "selfLink": "/x",
        "labels": {"app": "web", "team": "a"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "deployment.kubernetes.io/revision": "4",
            "note": "kept"
        },
        "finalizers": ["x/y"],
        "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
        "ownerReferences": [{"apiVersion": "shop.example.com/v1", "kind": "Shop", "name": "main", "uid": "9", "controller": true}]
    });
    object["metadata"] = metadata;
    object
}
