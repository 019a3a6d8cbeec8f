//! Traffic goes from blue to green behind an HAProxy, step by step, past a gate of every kind.
//!
//! Seen failing: with a driver that sets 33 for 25 and reads 25 ("green's shares at the edge were [0, 1, 5, 33, 50, 100]").

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::FutureExt;
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::cutting_over::{LIMIT, MARGIN, begin, plan, seen_by_clients};
use super::{Scenario, Suite};
use crate::edge::{Colour, PROXY, Pair, Plan, app, errors_of};
use crate::progress::spoken;
use crate::scene::Scene;

/// The scenario.
pub(super) const SCENARIO: Scenario = Scenario {
    name: "cutover-haproxy",
    about: "two clusters behind one HAProxy: 1, 5, 25, 50, 100 % with no request failed, seen by the clients",
    suite: Suite::Quick,
    minutes: 5,
    lab: super::one_cluster,
    leaves_clean: false,
    play: |scene| play(scene).boxed_local(),
};

const STEPS: [u8; 5] = [1, 5, 25, 50, 100];

async fn play(scene: &Scene) -> Result<String> {
    Pair::play(scene, async |pair| {
        let (clients, watch) = begin(pair).await?;
        let began = Instant::now();
        let plan = Plan {
            more: json!({"gates": gates(pair).await?}),
            ..plan(&STEPS)
        };
        let cutover = pair.begin("shop", &plan).await?;
        let status = cutover.settles("Completed", LIMIT).await?;
        let took = began.elapsed();
        watch.were(&[0, 1, 5, 25, 50, 100])?;
        let passed = status.gates.iter().filter(|gate| gate.passed).count();
        ensure!(
            passed == 3,
            "not every gate of the end has passed: {:?}",
            status.gates
        );
        let jobs: Api<Job> = Api::namespaced(pair.client(Colour::Green).await?, app::NAMESPACE);
        let jobs = jobs.list(&ListParams::default()).await?.items;
        let complete = |job: &Job| job.status.as_ref().and_then(|s| s.succeeded) == Some(1);
        ensure!(
            jobs.len() == 1 && jobs.iter().all(complete),
            "{} Jobs were made for one round",
            jobs.len()
        );
        let widest = seen_by_clients(&clients, &watch, MARGIN)?;
        let seen = status.weights.seen.map(|weights| weights.green);
        ensure!(seen == Some(100), "the status says that green has {seen:?} %");
        let count = clients.stop()?;
        count.none_failed()?;
        Ok(format!(
            "all green's after {}; clients saw each share within {widest:.1} points; {count}",
            spoken(took)
        ))
    })
    .await
}

/// One of each kind: requests through the edge, green's errors as they are counted there, green's Deployment, and a Job
/// in green before the first step.
async fn gates(pair: &Pair<'_>) -> Result<Value> {
    let gate = |name: &str, asks: &str, how: Value, at: &[&str], (seconds, passes): (u32, u32)| json!({"name": name, asks: how, "at": at, "intervalSeconds": seconds, "passes": passes, "failures": 2});
    let through = json!({"url": format!("http://{PROXY}/"), "requests": 10});
    let counted = json!({"url": pair.prometheus().await?, "query": errors_of(Colour::Green), "max": 0.0});
    let ready = "object.status.readyReplicas == object.spec.replicas";
    let deployment = json!({
        "cluster": "Green", "apiVersion": "apps/v1", "kind": "Deployment", "namespace": app::NAMESPACE,
        "name": app::NAME, "expression": ready,
    });
    let smoke = json!({"cluster": "Green", "namespace": app::NAMESPACE, "template": app::smoke()});
    let (often, once) = ((1, 2), (10, 1));
    Ok(json!([
        gate("shop", "http", through, &["Before", "Steps", "Window"], often),
        // Before green has any traffic nothing is known of it.
        gate("errors", "promQL", counted, &["Steps", "Window"], often),
        gate(
            "deployment",
            "cel",
            deployment,
            &["Before", "Steps", "Window"],
            often
        ),
        gate("smoke", "job", smoke, &["Before"], once),
    ]))
}
