//! A real operator that is to move traffic to a cluster that lacks something.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use kube::api::{Api, Patch, PatchParams, PostParams};
use lockkeeper_crds::{CheckResult, ClusterCutover, ClusterCutoverStatus, CutoverState, ParityOutcome};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::cluster::{CA, TOKEN};
use crate::world::{Pair, Side};

pub(crate) const NAMESPACE: &str = "lockkeeper-system";

/// What moves the traffic: it keeps what it was told last.
pub(crate) async fn traffic() -> (Arc<Mutex<String>>, String) {
    let weights = Arc::new(Mutex::new(r#"{"blue":100,"green":0}"#.to_owned()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/shop", listener.local_addr().unwrap());
    let (read, write) = (Arc::clone(&weights), Arc::clone(&weights));
    let set = move |query: axum::extract::RawQuery, body: String| async move {
        if query.0.is_none() {
            *write.lock().unwrap() = body;
        }
    };
    let router = Router::new().route(
        "/shop",
        get(|| async move { read.lock().unwrap().clone() }).put(set),
    );
    tokio::spawn(async move { axum::serve(listener, router).await });
    (weights, url)
}

pub(crate) fn operator(pair: &Pair) -> Child {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    Command::new(pair.lockkeeper())
        .args([
            "operator",
            "--cutovers",
            "--identity",
            "one",
            "--namespace",
            NAMESPACE,
        ])
        .args(["--metrics-address", &format!("127.0.0.1:{port}")])
        .arg("--kubeconfig")
        .arg(pair.admin_config(Side::Blue))
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The kubeconfig of green in a Secret: everything in its text.
pub(crate) async fn secret(pair: &Pair, name: &str, token: &str) {
    let authority = base64::engine::general_purpose::STANDARD.encode(CA);
    let text = pair.config(Side::Green, token).replace(
        "certificate-authority: ca.pem",
        &format!("certificate-authority-data: {authority}"),
    );
    let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    pair.create(
        Side::Blue,
        &path,
        &json!({"metadata": {"name": name}, "stringData": {"kubeconfig": text}}),
    )
    .await;
}

fn cutover(name: &str, green: &str, url: &str) -> Value {
    json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "ClusterCutover", "metadata": {"name": name},
        "spec": {
            "blue": {"thisCluster": true}, "green": {"kubeconfigSecret": {"name": green}},
            "traffic": {"hook": {"url": url}}, "steps": [{"green": 100, "soakSeconds": 0}],
            "parity": {"namespaces": ["shop"], "kinds": ["ConfigMap", "Secret"]}, "rollbackWindowSeconds": 3600,
            "capacity": {"atLeastPercent": 0, "reason": "these clusters have no nodes"}
        }
    })
}

pub(crate) async fn until(
    api: &Api<ClusterCutover>,
    name: &str,
    what: &str,
    done: impl Fn(&ClusterCutoverStatus) -> bool,
) -> ClusterCutoverStatus {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let status = api.get(name).await.unwrap().status.unwrap_or_default();
        if done(&status) {
            return status;
        }
        assert!(Instant::now() < end, "not {what}: {status:#?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn found(status: &ClusterCutoverStatus) -> Option<(CheckResult, String)> {
    let check = status.preflight.iter().find(|c| c.name == "Parity")?;
    Some((check.result, check.message.clone()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn a_cutover_begins_when_green_has_everything_and_is_known_to_have_it() {
    let pair = Pair::start().await;
    for side in [Side::Blue, Side::Green] {
        pair.namespace(side, "shop").await;
        let key = json!({"metadata": {"name": "key"}, "stringData": {"key": "hunter2"}});
        pair.create(side, "/api/v1/namespaces/shop/secrets", &key).await;
    }
    let settings = json!({"metadata": {"name": "settings"}, "data": {"a": "b"}});
    pair.create(Side::Blue, "/api/v1/namespaces/shop/configmaps", &settings)
        .await;
    pair.namespace(Side::Blue, NAMESPACE).await;
    pair.install_crds().await;
    secret(&pair, "green", TOKEN).await;
    let token = pair.reader(Side::Green, &["configmaps", "namespaces"]).await;
    secret(&pair, "half-blind", &token).await;
    let (weights, url) = traffic().await;
    let _operator = operator(&pair);
    let api: Api<ClusterCutover> = Api::all(pair.client(Side::Blue));
    let make = |name: &'static str, green: &'static str| {
        let object = serde_json::from_value(cutover(name, green, &url)).unwrap();
        let api = api.clone();
        async move { api.create(&PostParams::default(), &object).await.unwrap() }
    };

    // Its credentials may not list Secrets: it is not known whether they are equal.
    make("unknown", "half-blind").await;
    let unknown = |s: &ClusterCutoverStatus| {
        s.parity
            .as_ref()
            .is_some_and(|p| p.outcome == ParityOutcome::Unknown || p.unknown.len() == 1)
    };
    let status = until(&api, "unknown", "compared", unknown).await;
    let parity = status.parity.unwrap();
    assert!(
        parity.unknown[0].contains("Secret: green: secrets cannot be listed"),
        "{parity:?}"
    );
    let abort = Patch::Merge(json!({"spec": {"abort": true}}));
    api.patch("unknown", &PatchParams::default(), &abort)
        .await
        .unwrap();

    // Green lacks a ConfigMap.
    make("shop", "green").await;
    let status = until(&api, "shop", "blocked", |s| {
        s.state == CutoverState::Blocked && found(s).is_some()
    })
    .await;
    let (result, message) = found(&status).unwrap();
    assert_eq!(
        result,
        CheckResult::Block,
        "it was never called blocked while it was being compared: {message}"
    );
    let parity = status.parity.unwrap();
    assert_eq!(
        (parity.outcome, parity.blue, parity.missing, parity.different),
        (ParityOutcome::Different, 2, 1, 0)
    );
    assert_eq!(parity.sample, ["missing ConfigMap shop/settings"]);
    assert!(
        status.message.contains("1 are missing in green"),
        "{}",
        status.message
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        *weights.lock().unwrap(),
        r#"{"blue":100,"green":0}"#,
        "traffic was moved all the same"
    );

    // And then it has it.
    pair.create(Side::Green, "/api/v1/namespaces/shop/configmaps", &settings)
        .await;
    let status = until(&api, "shop", "over", |s| s.state == CutoverState::RollbackWindow).await;
    assert_eq!(status.parity.unwrap().outcome, ParityOutcome::Equal);
    assert_eq!(*weights.lock().unwrap(), r#"{"blue":0,"green":100}"#);
}
