//! A real operator whose gates ask a real Prometheus, objects of real API servers, and Jobs in them.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds::{CheckResult, ClusterCutover, ClusterCutoverStatus, CutoverState};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::cluster::TOKEN;
use crate::cutover::{NAMESPACE, operator, secret, traffic, until};
use crate::kubelet;
use crate::prometheus::Prometheus;
use crate::world::{Pair, Side, deployment};

const WELL: &str = "errors_ratio{colour=\"green\"} 0.01\n";
const ILL: &str = "errors_ratio{colour=\"green\"} 0.2\n";

fn cutover(name: &str, url: &str, gates: &[Value], more: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "ClusterCutover", "metadata": {"name": name},
        "spec": {
            "blue": {"thisCluster": true}, "green": {"kubeconfigSecret": {"name": "green"}},
            "traffic": {"hook": {"url": url}}, "rollbackWindowSeconds": 3600, "gates": gates,
            "steps": [{"green": 50, "soakSeconds": 2}, {"green": 100, "soakSeconds": 2}],
            "capacity": {"atLeastPercent": 0, "reason": "these clusters have no nodes"},
        }
    });
    let spec = object["spec"].as_object_mut().unwrap();
    spec.extend(more.as_object().unwrap().clone());
    object
}

pub(crate) fn gate(name: &str, asks: &str, how: &Value, more: &Value) -> Value {
    let mut gate = json!({"name": name, asks: how, "intervalSeconds": 1, "passes": 2, "failures": 2});
    gate.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    gate
}

fn job_gate(template: &Value) -> Value {
    let how = json!({"cluster": "Green", "namespace": "shop", "timeoutSeconds": 60, "template": template});
    gate(
        "smoke",
        "job",
        &how,
        &json!({"at": ["Before"], "passes": 1, "intervalSeconds": 10}),
    )
}

fn smoke() -> Value {
    let containers = json!([{"name": "smoke", "image": "smoke"}]);
    json!({"spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": containers}}}})
}

/// All Deployments of namespace shop in green are there.
fn cel_gate(expression: &str) -> Value {
    let how = json!({"cluster": "Green", "apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop",
        "expression": expression});
    gate("deployments", "cel", &how, &json!({}))
}

fn found<'a>(status: &'a ClusterCutoverStatus, check: &str) -> Option<(CheckResult, &'a str)> {
    let check = status.preflight.iter().find(|c| c.name == check)?;
    Some((check.result, &check.message))
}

pub(crate) fn says(status: &ClusterCutoverStatus, gate: &str, words: &str) -> bool {
    status
        .gates
        .iter()
        .any(|g| g.name == gate && g.message.contains(words))
}

pub(crate) struct World {
    pub(crate) pair: Pair,
    pub(crate) api: Api<ClusterCutover>,
    pub(crate) prometheus: Prometheus,
    url: String,
}

impl World {
    pub(crate) async fn make(&self, name: &str, gates: &[Value], more: &Value) {
        let object = cutover(name, &self.url, gates, more);
        let object = serde_json::from_value(object).unwrap();
        self.api.create(&PostParams::default(), &object).await.unwrap();
    }

    fn promql(&self, name: &str, query: &str, more: &Value) -> Value {
        gate(
            name,
            "promQL",
            &json!({"url": self.prometheus.url, "query": query, "max": 0.05}),
            more,
        )
    }

    async fn end(&self, name: &str) {
        let abort = Patch::Merge(json!({"spec": {"abort": true}}));
        self.api
            .patch(name, &PatchParams::default(), &abort)
            .await
            .unwrap();
        until(&self.api, name, "ended", |s| s.state.is_end()).await;
    }

    /// It waits, and says why.
    async fn is_refused(&self, name: &str, check: &str, words: &str) {
        let blocked = |s: &ClusterCutoverStatus| {
            s.state == CutoverState::Blocked
                && found(s, check)
                    .is_some_and(|(result, told)| result == CheckResult::Block && told.contains(words))
        };
        until(&self.api, name, &format!("refused for {words:?}"), blocked).await;
        self.end(name).await;
    }

    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.pair.client(Side::Green), "shop")
    }

    /// The one that runs for a cutover; there is never a second.
    async fn running(&self) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let all = self
                .jobs()
                .list(&ListParams::default().labels("lockkeeper.dev/gate=smoke"))
                .await
                .unwrap()
                .items;
            let open = |job: &&Job| job.status.as_ref().and_then(|s| s.conditions.as_ref()).is_none();
            let open: Vec<String> = all
                .iter()
                .filter(open)
                .map(|j| j.metadata.name.clone().unwrap())
                .collect();
            assert!(open.len() < 2, "two run at once: {open:?}");
            if let Some(one) = open.into_iter().next() {
                return one;
            }
            assert!(Instant::now() < end, "no Job was made");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

pub(crate) async fn world() -> World {
    let pair = Pair::start().await;
    for side in [Side::Blue, Side::Green] {
        pair.namespace(side, "shop").await;
    }
    pair.namespace(Side::Blue, NAMESPACE).await;
    pair.install_crds().await;
    secret(&pair, "green", TOKEN).await;
    let old = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let old = (old.as_millis() - 400_000).to_string();
    let prometheus = Prometheus::start(&format!("{WELL}old 0 {old}\n")).await;
    prometheus.until_it_has("errors_ratio").await;
    let (_, url) = traffic().await;
    let api = Api::all(pair.client(Side::Blue));
    World {
        pair,
        api,
        prometheus,
        url,
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD, LOCKKEEPER_TEST_APISERVER and prometheus"]
async fn what_a_gate_can_never_be_told_is_refused_before_anything_begins() {
    let world = world().await;
    let _operator = operator(&world.pair);
    let no_template = json!({"spec": {"backoffLimit": 0}});
    let gizmo = json!({"cluster": "Green", "apiVersion": "example.com/v1", "kind": "Gizmo", "expression": "size(objects) == 1"});
    for (name, gate, words) in [
        (
            "query",
            world.promql("errors", "sum(", &json!({})),
            "gate errors: correct promQL.query",
        ),
        (
            "range",
            world.promql("errors", "errors_ratio[1m]", &json!({})),
            "gives a matrix",
        ),
        (
            "expression",
            cel_gate("objects.all(o, "),
            "gate deployments: correct cel.expression: 1:",
        ),
        (
            "kind",
            gate("gizmos", "cel", &gizmo, &json!({})),
            "correct cel.apiVersion and cel.kind",
        ),
        ("job", job_gate(&no_template), "spec.template.spec"),
    ] {
        world.make(name, &[gate], &json!({})).await;
        world.is_refused(name, "Gates", words).await;
    }
    // Nothing offers anything in clusters without nodes.
    world
        .make("capacity", &[], &json!({"capacity": {"atLeastPercent": 100}}))
        .await;
    let unknown =
        |s: &ClusterCutoverStatus| found(s, "Capacity").is_some_and(|(r, _)| r == CheckResult::Unknown);
    until(&world.api, "capacity", "in doubt of the capacity", unknown).await;
    world.end("capacity").await;
    a_rival_is_named(&world).await;
    a_role_without_a_right_is_named(&world).await;
}

/// What Flux applied, Flux applies again.
async fn a_rival_is_named(world: &World) {
    for side in [Side::Blue, Side::Green] {
        let replicas = u32::from(side == Side::Blue);
        let mut object = deployment("consumer", replicas);
        object["apiVersion"] = json!("apps/v1");
        object["kind"] = json!("Deployment");
        object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("apps");
        let api: Api<k8s_openapi::api::apps::v1::Deployment> =
            Api::namespaced(world.pair.client(side), "shop");
        let flux = PatchParams::apply("kustomize-controller");
        api.patch("consumer", &flux, &Patch::Apply(&object))
            .await
            .unwrap();
    }
    let one = json!({"kind": "Deployment", "namespace": "shop", "name": "consumer"});
    let words = "Flux (Kustomization apps) would undo what is done to Deployment shop/consumer in blue";
    world.make("rival", &[], &json!({"singletons": [one]})).await;
    world.is_refused("rival", "Controllers", words).await;
    let mut accepted = one.clone();
    accepted["reason"] = json!("suspended by hand");
    world
        .make(
            "accepted",
            &[],
            &json!({"singletons": [one], "acceptedControllers": [accepted]}),
        )
        .await;
    let passed =
        |s: &ClusterCutoverStatus| found(s, "Controllers").is_some_and(|(r, _)| r == CheckResult::Pass);
    until(&world.api, "accepted", "accepted", passed).await;
    world.end("accepted").await;
}

async fn a_role_without_a_right_is_named(world: &World) {
    let token = world.pair.reader(Side::Green, &["namespaces", "pods"]).await;
    secret(&world.pair, "reader", &token).await;
    let green = json!({"green": {"kubeconfigSecret": {"name": "reader"}}});
    for (name, gate, words) in [
        (
            "unread",
            cel_gate("size(objects) == 1"),
            "the credentials for green may not list deployments of apps in namespace shop",
        ),
        (
            "unmade",
            job_gate(&smoke()),
            "may not create jobs of batch in namespace shop",
        ),
    ] {
        world.make(name, &[gate], &green).await;
        world.is_refused(name, "Gates", words).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD, LOCKKEEPER_TEST_APISERVER and prometheus"]
async fn gates_let_it_go_on_hold_it_and_send_it_back() {
    let world = world().await;
    let mut running = operator(&world.pair);
    what_is_no_value_holds(&world).await;

    // A failed Job holds it before the first step; another operator finds the one that runs.
    let gates = [
        world.promql("errors", "errors_ratio", &json!({})),
        cel_gate("objects.all(d, has(d.status.readyReplicas) && d.status.readyReplicas == d.spec.replicas)"),
        job_gate(&smoke()),
    ];
    world.make("shop", &gates, &json!({})).await;
    let first = world.running().await;
    kubelet::ends(&world.jobs(), &first, "Failed").await;
    let told = |s: &ClusterCutoverStatus| says(s, "smoke", "failed: BackoffLimitExceeded: it said no");
    until(&world.api, "shop", "told of the Job that failed", told).await;
    let second = world.running().await;
    assert_ne!(first, second);
    running.kill().await.unwrap();
    running = operator(&world.pair);
    let nothing = |s: &ClusterCutoverStatus| says(s, "deployments", "there is no such Deployment in green");
    until(&world.api, "shop", "told that green has no Deployment", nothing).await;
    assert_eq!(world.running().await, second, "a second one was made");
    kubelet::ends(&world.jobs(), &second, "Complete").await;
    let completed = |s: &ClusterCutoverStatus| says(s, "smoke", "completed");
    until(&world.api, "shop", "told of the Job that completed", completed).await;

    // Green gets a Deployment, which is not ready at first.
    let deployments = "/apis/apps/v1/namespaces/shop/deployments";
    world
        .pair
        .create(Side::Green, deployments, &deployment("web", 1))
        .await;
    let untrue = |s: &ClusterCutoverStatus| says(s, "deployments", "is false of 1 Deployment of green");
    until(&world.api, "shop", "told that it is not ready", untrue).await;
    let api: Api<k8s_openapi::api::apps::v1::Deployment> =
        Api::namespaced(world.pair.client(Side::Green), "shop");
    let ready = Patch::Merge(json!({"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}}));
    api.patch_status("web", &PatchParams::default(), &ready)
        .await
        .unwrap();
    let green_has =
        |share: u8| move |s: &ClusterCutoverStatus| s.weights.seen.is_some_and(|w| w.green == share);
    until(&world.api, "shop", "at 50 %", green_has(50)).await;

    // A Prometheus that does not answer holds a step, and sends nothing back.
    world.prometheus.process.signal(Signal::STOP);
    let mute = |s: &ClusterCutoverStatus| says(s, "errors", "did not answer within 5 s");
    until(&world.api, "shop", "told that nobody answers", mute).await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    let status = until(&world.api, "shop", "still there", |_| true).await;
    assert!(
        green_has(50)(&status) && status.state != CutoverState::RollingBack,
        "{status:#?}"
    );
    world.prometheus.process.signal(Signal::CONT);
    until(&world.api, "shop", "over", |s| {
        s.state == CutoverState::RollbackWindow
    })
    .await;

    // And one that tells of errors sends all back.
    world.prometheus.say(ILL);
    let status = until(&world.api, "shop", "sent back", |s| {
        s.state == CutoverState::RolledBack
    })
    .await;
    assert!(
        status.message.contains("gate errors has failed 2 times in a row")
            && status.message.contains("is 0.2"),
        "{}",
        status.message
    );
    running.kill().await.unwrap();
}

/// Each kind of answer that is none, of the real server; and one that is.
async fn what_is_no_value_holds(world: &World) {
    let before = json!({"at": ["Before"]});
    let asked = [
        ("nothing", "no_such_metric", "gives no value"),
        ("alert", "errors_ratio > 0.05", "gives no value"),
        ("old", "old", "gives no value"),
        ("nan", "0 * errors_ratio / 0", "is NaN"),
        ("infinite", "errors_ratio / 0", "is inf"),
        ("well", "errors_ratio", "is 0.01, wanted is at most 0.05"),
    ];
    let gates = asked.map(|(name, query, _)| world.promql(name, query, &before));
    world.make("doubts", &gates, &json!({})).await;
    for (name, _, words) in asked {
        let passed = |s: &ClusterCutoverStatus| s.gates.iter().any(|g| g.name == name && g.passed);
        let told = |s: &ClusterCutoverStatus| says(s, name, words) && passed(s) == (name == "well");
        until(&world.api, "doubts", &format!("told by {name}: {words}"), told).await;
    }
    let status = until(&world.api, "doubts", "held", |_| true).await;
    assert_eq!(
        status.memory.unwrap().stage,
        lockkeeper_crds::CutoverStage::Checking
    );
    world.end("doubts").await;
}
