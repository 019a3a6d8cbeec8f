//! An application that answers with its colour, and fails as often as it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{Colour, POD, Pair, image};
use crate::scene::Look;

/// The image of this program.
pub(super) const IMAGE: &str = "lockkeeper.dev/lab:dev";
/// The namespace of the application, in both clusters.
pub const NAMESPACE: &str = "shop";
/// Its name.
pub const NAME: &str = "colour";
/// Its port on every node.
pub(super) const NODE_PORT: u16 = 30080;
const PORT: u16 = 8080;

/// What the program does with each request.
struct App {
    colour: String,
    /// Every so many requests one fails; none at 0.
    fails: AtomicU64,
    requests: AtomicU64,
}

impl App {
    fn answer(&self, method: &Method, path: &str) -> (StatusCode, String) {
        if let (&Method::PUT, Some(every)) = (method, path.strip_prefix("/fail-one-in/")) {
            return match every.parse() {
                Ok(every) => {
                    self.fails.store(every, Ordering::Relaxed);
                    (StatusCode::OK, "so be it".into())
                }
                Err(_) => (StatusCode::BAD_REQUEST, "not a number".into()),
            };
        }
        if path == "/healthz" {
            return (StatusCode::OK, "ok".into());
        }
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        match number.checked_rem(self.fails.load(Ordering::Relaxed)) {
            Some(0) => (StatusCode::INTERNAL_SERVER_ERROR, "told to fail".into()),
            _ => (StatusCode::OK, self.colour.clone()),
        }
    }
}

/// Serves for ever: `/` answers with the colour, `/healthz` is always well, `PUT /fail-one-in/10` makes it fail.
pub async fn serve(colour: String, listen: SocketAddr) -> Result<()> {
    let app = Arc::new(App {
        colour,
        fails: AtomicU64::new(0),
        requests: AtomicU64::new(0),
    });
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (status, body) = app.answer(request.method(), request.uri().path());
                let mut answer = Response::new(Full::new(Bytes::from(body)));
                *answer.status_mut() = status;
                std::future::ready(Ok::<_, Infallible>(answer))
            });
            // A client that goes away is no news.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Puts the application into a colour's cluster and waits until it is ready.
pub(super) async fn deploy(pair: &Pair<'_>, colour: Colour) -> Result<()> {
    let lab = pair.lab(colour);
    lab.import(&image(lab)?)?;
    let client = pair.client(colour).await?;
    for object in objects(colour) {
        apply(pair, &client, &object).await?;
    }
    let deployments: Api<Deployment> = Api::namespaced(client, NAMESPACE);
    pair.scene
        .wait_for(&format!("the application in {}", colour.name()), POD, || async {
            let ready = deployments
                .get(NAME)
                .await?
                .status
                .and_then(|status| status.ready_replicas);
            Ok(match ready {
                Some(1..) => Look::Done(()),
                _ => Look::NotYet("not ready".into()),
            })
        })
        .await
}

/// Applies one object of any kind.
pub async fn apply(pair: &Pair<'_>, client: &kube::Client, object: &Value) -> Result<()> {
    let types: TypeMeta = serde_json::from_value(object.clone())?;
    let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
    let dynamic: DynamicObject = serde_json::from_value(object.clone())?;
    let name = dynamic
        .metadata
        .name
        .clone()
        .context("an object without a name")?;
    let api: Api<DynamicObject> = match &dynamic.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let manager = PatchParams::apply("lab").force();
    pair.scene
        .wait_for(&format!("{} {name} to be taken", kind.kind), POD, || async {
            api.patch(&name, &manager, &Patch::Apply(&dynamic)).await?;
            Ok(Look::Done(()))
        })
        .await
}

/// What must still be there afterwards, as it was: in both clusters the namespace of the application, and each object
/// in it that was made for it, with its UID and its generation.
pub async fn belongings(pair: &Pair<'_>) -> Result<BTreeMap<String, (Option<String>, Option<i64>)>> {
    let mut all = BTreeMap::new();
    for colour in [Colour::Blue, Colour::Green] {
        let client = pair.client(colour).await?;
        for object in objects(colour) {
            let types: TypeMeta = serde_json::from_value(object.clone())?;
            let kind = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
            let named: DynamicObject = serde_json::from_value(object)?;
            let api: Api<DynamicObject> = match &named.metadata.namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
                None => Api::all_with(client.clone(), &kind),
            };
            let found = api.get(&named.metadata.name.unwrap_or_default()).await?.metadata;
            all.insert(
                format!("{} {}", colour.name(), kind.kind),
                (found.uid, found.generation),
            );
        }
    }
    Ok(all)
}

/// A Job of this program that completes, as a `CronJob`'s `jobTemplate` has it.
#[must_use]
pub fn smoke() -> Value {
    json!({"spec": {"backoffLimit": 0, "template": {"spec": {
        "restartPolicy": "Never", "automountServiceAccountToken": false, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "smoke", "image": IMAGE, "imagePullPolicy": "Never", "args": ["--help"]}],
    }}}})
}

/// Small, and the same in both clusters but for the argument that is the colour.
fn objects(colour: Colour) -> Vec<Value> {
    let labels = json!({"app": NAME});
    let listen = format!("0.0.0.0:{PORT}");
    vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "automountServiceAccountToken": false,
                        "tolerations": [{"operator": "Exists"}],
                        "containers": [{
                            "name": "app", "image": IMAGE, "imagePullPolicy": "Never",
                            "args": ["colour", "--colour", colour.name(), "--listen", listen],
                            "ports": [{"containerPort": PORT}],
                            "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
                        }],
                    },
                },
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {
                "type": "NodePort", "selector": labels,
                "ports": [{"port": PORT, "targetPort": PORT, "nodePort": NODE_PORT}],
            },
        }),
    ]
}

impl Pair<'_> {
    /// Makes the application of a colour fail one request in so many; 0 mends it.
    pub async fn fail_one_in(&self, colour: Colour, every: u32) -> Result<()> {
        let url = format!("http://{}/fail-one-in/{every}", super::application(colour));
        let answer = reqwest::Client::new().put(url).send().await?;
        ensure!(
            answer.status().is_success(),
            "the application answered {}",
            answer.status()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fails_as_often_as_it_is_told_to() {
        let app = App {
            colour: "green".into(),
            fails: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        };
        let failed = || {
            (0..100)
                .filter(|_| app.answer(&Method::GET, "/").0 != StatusCode::OK)
                .count()
        };
        assert_eq!(failed(), 0);
        assert_eq!(app.answer(&Method::PUT, "/fail-one-in/10").0, StatusCode::OK);
        assert_eq!(failed(), 10);
        assert_eq!(app.answer(&Method::GET, "/healthz").0, StatusCode::OK);
        assert_eq!(app.answer(&Method::GET, "/").1, "green");
    }
}
