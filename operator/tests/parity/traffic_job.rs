//! A real operator that moves traffic by Jobs. No kubelet and no controller runs here: what they would write is written by
//! the test.

use std::time::{Duration, Instant};

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds::{CheckResult, ClusterCutover, ClusterCutoverStatus, CutoverStage, CutoverState};
use serde_json::{Value, json};

use crate::cluster::TOKEN;
use crate::cutover::{NAMESPACE, operator, secret, until};
use crate::kubelet;
use crate::world::{Pair, Side};

fn cutover(name: &str, access: &str, template: &Value) -> Value {
    json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "ClusterCutover", "metadata": {"name": name},
        "spec": {
            "blue": {"thisCluster": true}, "green": {"kubeconfigSecret": {"name": "green"}},
            "traffic": {"job": {
                "cluster": {"kubeconfigSecret": {"name": access}}, "namespace": "shop", "name": "shop", "template": template,
                "readEverySeconds": 10,
            }},
            "rollbackWindowSeconds": 3600, "gates": [],
            "steps": [{"green": 50, "soakSeconds": 0}, {"green": 100, "soakSeconds": 0}],
            "capacity": {"atLeastPercent": 0, "reason": "these clusters have no nodes"},
        }
    })
}

fn template() -> Value {
    let containers =
        json!([{"name": "set", "image": "set", "env": [{"name": "LOCKKEEPER_GREEN", "value": "7"}]}]);
    json!({"spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": containers}}}})
}

struct World {
    pair: Pair,
    api: Api<ClusterCutover>,
}

impl World {
    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.pair.client(Side::Green), "shop")
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.pair.client(Side::Green), "shop")
    }

    async fn make(&self, name: &str, access: &str, template: &Value) {
        let object = serde_json::from_value(cutover(name, access, template)).unwrap();
        self.api.create(&PostParams::default(), &object).await.unwrap();
    }

    async fn abort(&self, name: &str) {
        let abort = Patch::Merge(json!({"spec": {"abort": true}}));
        let params = PatchParams::default();
        self.api.patch(name, &params, &abort).await.unwrap();
    }

    async fn is_refused(&self, name: &str, check: &str, words: &str) {
        let blocked = |s: &ClusterCutoverStatus| {
            let mut checks = s.preflight.iter();
            s.state == CutoverState::Blocked
                && checks
                    .any(|c| c.name == check && c.result == CheckResult::Block && c.message.contains(words))
        };
        until(&self.api, name, &format!("refused for {words:?}"), blocked).await;
        self.abort(name).await;
        until(&self.api, name, "ended", |s| s.state.is_end()).await;
    }

    /// Those that have not ended.
    async fn open(&self) -> Vec<Job> {
        let ours = ListParams::default().labels("lockkeeper.dev/traffic=shop");
        let all = self.jobs().list(&ours).await.unwrap().items;
        let open = |job: &Job| job.status.as_ref().and_then(|s| s.conditions.as_ref()).is_none();
        all.into_iter().filter(open).collect()
    }

    /// The one that is to do this, once it is there; never is there a second one.
    async fn open_one(&self, told: &[(&str, &str)]) -> Job {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let open = self.open().await;
            let names: Vec<String> = open.iter().map(Job::name_any).collect();
            assert!(open.len() < 2, "two are at work: {names:?}");
            if let Some(job) = open.into_iter().find(|job| environment(job) == told) {
                return job;
            }
            assert!(Instant::now() < end, "no Job for {told:?}, but {names:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Reads are answered until a Job is there that does something else.
    async fn set_after_reads(&self, weights: &str, told: &[(&str, &str)]) -> Job {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            for job in self.open().await {
                if environment(&job) == told {
                    return self.open_one(told).await;
                }
                if environment(&job) == GET && job.metadata.deletion_timestamp.is_none() {
                    self.completes(&job, weights).await;
                }
            }
            assert!(Instant::now() < end, "no Job for {told:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Its pod runs.
    async fn runs(&self, job: &Job) -> String {
        // Nobody collects pods here, and a number may come again.
        let name = format!("{}-{}", job.name_any(), &job.uid().unwrap()[..5]);
        let template = job.spec.clone().unwrap().template;
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": job.name_any(), "uid": job.uid().unwrap(),
            "controller": true, "blockOwnerDeletion": true});
        let pod = json!({
            "metadata": {"name": name, "labels": template.metadata.unwrap().labels, "ownerReferences": [owner]},
            "spec": {
                "nodeName": "node-1", "restartPolicy": "Never", "automountServiceAccountToken": false,
                "containers": [{"name": "set", "image": "set"}],
            },
        });
        kubelet::account(&self.pair, Side::Green, "shop").await;
        self.pair
            .create(Side::Green, "/api/v1/namespaces/shop/pods", &pod)
            .await;
        self.pod_is(&name, &json!({"phase": "Running"})).await;
        name
    }

    async fn pod_is(&self, name: &str, status: &Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let params = PatchParams::default();
        self.pods().patch_status(name, &params, &patch).await.unwrap();
    }

    async fn pod_ends(&self, name: &str, message: &str) {
        let ended = json!({"exitCode": 0, "finishedAt": kubelet::now(), "message": message});
        let container = json!({"name": "set", "image": "set", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": ended}});
        let status = json!({"phase": "Succeeded", "containerStatuses": [container]});
        self.pod_is(name, &status).await;
    }

    async fn completes(&self, job: &Job, message: &str) {
        let pod = self.runs(job).await;
        self.pod_ends(&pod, message).await;
        kubelet::ends(&self.jobs(), &job.name_any(), "Complete").await;
    }

    /// The garbage collector has done its part.
    async fn is_collected(&self, job: &Job) {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": []}}));
        let params = PatchParams::default();
        let jobs = self.jobs();
        jobs.patch(&job.name_any(), &params, &patch).await.unwrap();
    }
}

const GET: &[(&str, &str)] = &[("LOCKKEEPER_ACTION", "get")];
const CHECK: &[(&str, &str)] = &[("LOCKKEEPER_ACTION", "check")];
const ALL_BLUE: &str = r#"{"blue": 100, "green": 0}"#;
const HALF: &str = r#"{"blue": 50, "green": 50}"#;

fn set<'a>(blue: &'a str, green: &'a str) -> [(&'static str, &'a str); 3] {
    [
        ("LOCKKEEPER_ACTION", "set"),
        ("LOCKKEEPER_BLUE", blue),
        ("LOCKKEEPER_GREEN", green),
    ]
}

fn environment(job: &Job) -> Vec<(&str, &str)> {
    let pod = job.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
    let env = pod.containers[0].env.iter().flatten();
    env.map(|e| (&*e.name, e.value.as_deref().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn traffic_is_moved_by_jobs_of_which_none_overtakes_another() {
    let pair = Pair::start().await;
    pair.namespace(Side::Green, "shop").await;
    pair.namespace(Side::Blue, NAMESPACE).await;
    pair.install_crds().await;
    secret(&pair, "green", TOKEN).await;
    let token = pair.reader(Side::Green, &["namespaces", "pods"]).await;
    secret(&pair, "reader", &token).await;
    let api = Api::all(pair.client(Side::Blue));
    let world = World { pair, api };
    let mut running = operator(&world.pair);

    let lacks = "may not create jobs of batch in namespace shop, nor list jobs of batch in namespace shop";
    world.make("rights", "reader", &template()).await;
    world.is_refused("rights", "JobPermissions", lacks).await;
    let no_pods = json!({"spec": {"backoffLimit": 0}});
    world.make("template", "green", &no_pods).await;
    world
        .is_refused("template", "Traffic", "spec.template.spec")
        .await;
    assert!(world.open().await.is_empty(), "one was made all the same");

    // Before anything it is asked whether they can be set; one that says no holds, and is asked again after a while.
    world.make("shop", "green", &template()).await;
    let first = world.open_one(CHECK).await;
    kubelet::ends(&world.jobs(), &first.name_any(), "Failed").await;
    let failed = Instant::now();
    let told = |s: &ClusterCutoverStatus| {
        s.state == CutoverState::Blocked && s.message.contains("failed: BackoffLimitExceeded: it said no")
    };
    until(&world.api, "shop", "told of the Job that failed", told).await;
    let second = world.open_one(CHECK).await;
    assert!(failed.elapsed() > Duration::from_secs(3), "no pause was made");
    world.completes(&second, ALL_BLUE).await;

    // A successor finds the Job that is at work, and nothing is seen before that has told it.
    let half = world.set_after_reads(ALL_BLUE, &set("50", "50")).await;
    running.kill().await.unwrap();
    running = operator(&world.pair);
    let pod = world.runs(&half).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let again = world.open_one(&set("50", "50")).await;
    assert_eq!(again.uid(), half.uid(), "another one was made");
    let waits = |s: &ClusterCutoverStatus| {
        s.state == CutoverState::Shifting && s.message.contains("sets 50 % blue, 50 % green")
    };
    let status = until(&world.api, "shop", "told that a Job is at work", waits).await;
    assert_eq!(status.weights.seen.unwrap().green, 0);
    world.pod_ends(&pod, HALF).await;
    kubelet::ends(&world.jobs(), &half.name_any(), "Complete").await;

    aborted_in_the_middle(&world).await;
    running.kill().await.unwrap();
}

/// What is under way is ended, and seen to have ended, before all-to-blue is set.
async fn aborted_in_the_middle(world: &World) {
    let whole = world.set_after_reads(HALF, &set("0", "100")).await;
    let pod = world.runs(&whole).await;
    world.abort("shop").await;
    let ends = Instant::now() + Duration::from_secs(20);
    loop {
        let one = world.open_one(&set("0", "100")).await;
        if one.metadata.deletion_timestamp.is_some() {
            let foreground = one.finalizers().contains(&"foregroundDeletion".to_owned());
            assert!(foreground, "{:?}", one.metadata);
            break;
        }
        assert!(Instant::now() < ends, "it was not told to end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Its Job is gone, and its pod is not.
    world.is_collected(&whole).await;
    for _ in 0..20 {
        let open: Vec<String> = world.open().await.iter().map(Job::name_any).collect();
        assert!(open.is_empty(), "{open:?} is at work beside pod {pod}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let waits = |s: &ClusterCutoverStatus| {
        s.state == CutoverState::RollingBack
            && s.message
                .contains("on node-1, which sets 0 % blue, 100 % green, has not ended")
    };
    until(&world.api, "shop", "told what it waits for", waits).await;
    world.pod_ends(&pod, r#"{"blue": 0, "green": 100}"#).await;
    let back = world.open_one(&set("100", "0")).await;
    let status = until(&world.api, "shop", "there", |_| true).await;
    assert_eq!(status.memory.unwrap().stage, CutoverStage::Back);
    world.completes(&back, ALL_BLUE).await;
    until(&world.api, "shop", "all blue's", |s| {
        s.state == CutoverState::RolledBack
    })
    .await;
    let left = world.jobs().list(&ListParams::default()).await.unwrap().items;
    assert!(
        left.len() <= 2,
        "{:?}",
        left.iter().map(Job::name_any).collect::<Vec<_>>()
    );
}
