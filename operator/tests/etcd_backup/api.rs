//! As much of a Kubernetes API as the agent's backups need: get, list, watch, merge-patch of a status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) const NAMESPACE: &str = "lockkeeper";
const GROUP: &str = "/apis/lockkeeper.dev/v1alpha1/namespaces/lockkeeper";

#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    objects: Mutex<BTreeMap<String, Value>>,
    version: Mutex<u64>,
    /// With the version that each made: a watch begins after the one that it names, and misses none.
    events: watch::Sender<Vec<(u64, Value)>>,
    requests: Mutex<Vec<String>>,
}

impl Api {
    pub(crate) async fn start() -> (Self, kube::Client) {
        let api = Self(Arc::new(Inner {
            objects: Mutex::default(),
            version: Mutex::new(100),
            events: watch::channel(vec![]).0,
            requests: Mutex::default(),
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = api.clone();
        let router = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
            let api = served.clone();
            async move { api.answer(&method, &uri, &body) }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        (api, kube::Client::try_from(config).unwrap())
    }

    pub(crate) fn put(&self, collection: &str, name: &str, mut object: Value) {
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(NAMESPACE);
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2025-07-01T00:00:00Z");
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("{name}-0123456789"));
        }
        self.write(&format!("{collection}/{name}"), object, "ADDED");
    }

    pub(crate) fn put_store(&self, spec: &lockkeeper_crds::EtcdBackupStoreSpec, secret: &str) {
        let kind =
            json!({ "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupStore", "spec": spec });
        self.put(&format!("{GROUP}/etcdbackupstores"), "main", kind);
        let data = json!({
            "AWS_ACCESS_KEY_ID": base64("identifier"),
            "AWS_SECRET_ACCESS_KEY": base64(secret),
        });
        let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
        self.put(
            &secrets,
            super::world::SECRET_NAME,
            json!({ "apiVersion": "v1", "kind": "Secret", "data": data }),
        );
    }

    pub(crate) fn put_backup(&self, name: &str, deadline: u32, status: &Value) {
        let backup = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1",
            "kind": "EtcdBackup",
            "spec": { "storeRef": { "name": "main" }, "deadlineSeconds": deadline },
            "status": status,
        });
        self.put(&format!("{GROUP}/etcdbackups"), name, backup);
    }

    /// A backup that stands for what lies in this folder.
    pub(crate) fn put_adopting(&self, name: &str, folder: &str) {
        let backup = json!({
            "apiVersion": "lockkeeper.dev/v1alpha1",
            "kind": "EtcdBackup",
            "metadata": { "annotations": { lockkeeper_crds::STORED_AS_ANNOTATION: folder } },
            "spec": { "storeRef": { "name": "main" }, "deadlineSeconds": 60 },
            "status": { "node": super::NODE },
        });
        self.put(&format!("{GROUP}/etcdbackups"), name, backup);
    }

    pub(crate) fn delete_backup(&self, name: &str) {
        let path = format!("{GROUP}/etcdbackups/{name}");
        let mut version = self.0.version.lock().unwrap();
        *version += 1;
        let mut gone = self.0.objects.lock().unwrap().remove(&path).unwrap();
        gone["metadata"]["resourceVersion"] = json!(version.to_string());
        self.tell(*version, json!({ "type": "DELETED", "object": gone }));
    }

    /// Deletes a backup that has the finalizer: it stays, marked.
    pub(crate) fn mark_deleted(&self, name: &str) {
        let mut object = self.backup(name);
        object["metadata"]["finalizers"] = json!([lockkeeper_crds::STORED_FINALIZER]);
        object["metadata"]["deletionTimestamp"] = json!("2025-07-02T00:00:00Z");
        self.write(&format!("{GROUP}/etcdbackups/{name}"), object, "MODIFIED");
    }

    pub(crate) fn backup(&self, name: &str) -> Value {
        self.0.objects.lock().unwrap()[&format!("{GROUP}/etcdbackups/{name}")].clone()
    }

    pub(crate) fn store(&self) -> Value {
        self.0.objects.lock().unwrap()[&format!("{GROUP}/etcdbackupstores/main")].clone()
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.0.requests.lock().unwrap().clone()
    }

    /// Waits for the end of a backup, and gives its status.
    pub(crate) async fn end_of(&self, name: &str, limit: Duration) -> Value {
        let began = Instant::now();
        loop {
            let status = self.backup(name)["status"].clone();
            if !status["completedAt"].is_null() {
                return status;
            }
            assert!(began.elapsed() < limit, "{name} has no end: {status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn tell(&self, version: u64, event: Value) {
        self.0.events.send_modify(|all| all.push((version, event)));
    }

    fn write(&self, path: &str, mut object: Value, event: &str) -> Value {
        let mut version = self.0.version.lock().unwrap();
        *version += 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        self.0
            .objects
            .lock()
            .unwrap()
            .insert(path.to_owned(), object.clone());
        if path.contains("etcdbackups/") {
            self.tell(*version, json!({ "type": event, "object": object }));
        }
        object
    }

    fn answer(&self, method: &Method, uri: &Uri, body: &[u8]) -> Response {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let kind = if query.contains("watch=true") {
            "WATCH"
        } else {
            method.as_str()
        };
        self.0.requests.lock().unwrap().push(format!("{kind} {path}"));
        if path == "/version" {
            let version = json!({
                "major": "1", "minor": "35", "gitVersion": "v1.35.4", "gitCommit": "", "gitTreeState": "",
                "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            return respond(&version);
        }
        if kind == "WATCH" {
            let since = query.split('&').find_map(|p| p.strip_prefix("resourceVersion="));
            let since: u64 = since.and_then(|v| v.parse().ok()).unwrap_or_default();
            let events = self.0.events.subscribe();
            let lines = futures::stream::unfold((events, since), |(mut events, seen)| async move {
                let newer = |all: &Vec<(u64, Value)>| all.iter().find(|(v, _)| *v > seen).cloned();
                let all = events.wait_for(|all| newer(all).is_some()).await;
                let (version, event) = all.ok().and_then(|all| newer(&all))?;
                Some((Ok::<_, std::io::Error>(format!("{event}\n")), (events, version)))
            });
            return Body::from_stream(lines.boxed()).into_response();
        }
        if path.ends_with("/etcdbackups") {
            let version = self.0.version.lock().unwrap().to_string();
            let objects = self.0.objects.lock().unwrap();
            let items: Vec<_> = objects
                .iter()
                .filter(|(p, _)| p.contains("/etcdbackups/"))
                .map(|(_, o)| o)
                .collect();
            let list = json!({
                "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupList",
                "metadata": { "resourceVersion": version }, "items": items,
            });
            return respond(&list);
        }
        let object_path = path.trim_end_matches("/status").to_owned();
        let Some(mut object) = self.0.objects.lock().unwrap().get(&object_path).cloned() else {
            return failure(404, "NotFound");
        };
        if *method == Method::PATCH {
            let patch: Value = serde_json::from_slice(body).unwrap();
            for field in ["resourceVersion", "uid"] {
                let wanted = &patch["metadata"][field];
                if !wanted.is_null() && *wanted != object["metadata"][field] {
                    return failure(409, "Conflict");
                }
            }
            merge(&mut object["status"], &patch["status"]);
            object = self.write(&object_path, object, "MODIFIED");
        }
        respond(&object)
    }
}

fn merge(object: &mut Value, patch: &Value) {
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch.as_object().unwrap() {
        if value.is_object() {
            merge(&mut object[key], value);
        } else {
            object[key] = value.clone();
        }
    }
}

fn respond(body: &Value) -> Response {
    ([("content-type", "application/json")], body.to_string()).into_response()
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason,
    });
    (StatusCode::from_u16(code).unwrap(), respond(&status)).into_response()
}

fn base64(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
}
