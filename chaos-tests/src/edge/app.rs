//! An application that answers with its colour, by HTTP and by gRPC, over TLS or without, and fails as often as it is told to.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::body::Body;
use tonic_prost::ProstCodec;
use tower::service_fn as answered_by;

use super::certificate::Certificate;
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
/// The only method of its gRPC service: from nothing to a string.
pub(super) const METHOD: &str = "/shop.Colour/Get";
/// The first byte of a connection that begins with TLS. Both versions of HTTP begin with a letter.
const HANDSHAKE: u8 = 22;

/// What the program does with each request.
struct App {
    colour: String,
    tls: TlsAcceptor,
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
/// `certificate`: with its key, as PEM.
pub async fn serve(colour: String, listen: SocketAddr, certificate: String) -> Result<()> {
    let app = Arc::new(App {
        colour,
        tls: Certificate::of(certificate).acceptor()?,
        fails: AtomicU64::new(0),
        requests: AtomicU64::new(0),
    });
    serve_on(TcpListener::bind(listen).await?, app).await
}

async fn serve_on(listener: TcpListener, app: Arc<App>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let app = app.clone();
        tokio::spawn(async move {
            // A client that goes away is no news.
            let _ = greet(stream, app).await;
        });
    }
}

async fn greet(stream: TcpStream, app: Arc<App>) -> Result<()> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first == [HANDSHAKE] {
        let tls = app.tls.accept(stream).await?;
        return converse(tls, app).await;
    }
    converse(stream, app).await
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, app: Arc<App>) -> Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(respond(&app, request).await) }
    });
    auto::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(|error| anyhow!(error))
}

async fn respond(app: &App, request: Request<Incoming>) -> Response<Body> {
    let (status, text) = app.answer(request.method(), request.uri().path());
    if request.uri().path() == METHOD {
        let call = answered_by(move |_: tonic::Request<()>| {
            std::future::ready(match status {
                StatusCode::OK => Ok(tonic::Response::new(text.clone())),
                _ => Err(Status::internal(text.clone())),
            })
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, ()>::default());
        return grpc.unary(call, request).await;
    }
    let mut answer = Response::new(Body::new(Full::new(Bytes::from(text))));
    *answer.status_mut() = status;
    answer
}

/// Puts the application into a colour's cluster and waits until it is ready.
pub(super) async fn deploy(pair: &Pair<'_>, colour: Colour) -> Result<()> {
    let lab = pair.lab(colour);
    lab.import(&image(lab)?)?;
    let client = pair.client(colour).await?;
    for object in objects(colour, &pair.certificate) {
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
        for object in objects(colour, &pair.certificate) {
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
fn objects(colour: Colour, certificate: &Certificate) -> Vec<Value> {
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
                            "env": [{"name": "LAB_CERTIFICATE", "value": certificate.pem()}],
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
pub(super) mod tests {
    use super::*;

    fn app(certificate: &Certificate) -> App {
        App {
            colour: "green".into(),
            tls: certificate.acceptor().unwrap(),
            fails: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// One that answers green on this machine.
    pub(in crate::edge) async fn green() -> (SocketAddr, Certificate) {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::make(folder.path()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve_on(listener, Arc::new(app(&certificate))));
        (address, certificate)
    }

    #[test]
    fn it_fails_as_often_as_it_is_told_to() {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&Certificate::make(folder.path()).unwrap());
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
