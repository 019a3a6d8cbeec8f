//! Jobs of the user's that know how to move traffic. The contract is told at `JobTraffic` in `crds`.
//!
//! | file | what |
//! | --- | --- |
//! | `made` | Jobs and their pods as the API tells of them, and as they are marked |
//! | `next` | what is answered and done by what was found; pure |
//! | here | asking the API, and doing it |
//!
//! The Jobs themselves are what is remembered: their labels say what each does, a number in their names that nobody makes
//! two of a kind, and a termination message what was read. Nothing waits here for one: it is looked at again.

mod made;
mod next;

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use lockkeeper_crds::JobTraffic;
use serde_json::{Map, Value, json};

use super::edge::Edge;
use super::{Seen, TrafficError, Weights};
use crate::api::{ApiError, ApiServers};
use crate::jobs;
use made::{Action, Found, Made, Mark};
use next::{Deed, Next, Terms};

/// A finished one stays so much longer than what it told counts.
const SEEN: i64 = 60;

/// Jobs that move one target.
#[derive(Clone)]
pub struct Job {
    cluster: Edge,
    spec: JobTraffic,
    terms: Terms,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job")
            .field("terms", &self.terms)
            .finish_non_exhaustive()
    }
}

impl Job {
    /// `cluster`: the API of the cluster in which they run.
    pub(super) fn from_spec(spec: &JobTraffic, cluster: ApiServers) -> Self {
        let cluster = Edge::new(cluster, &spec.cluster);
        let terms = Terms {
            target: format!("job {}/{} in {}", spec.namespace, spec.name, cluster.place()),
            template: jobs::short_hash(&spec.template.to_string()),
            timeout: TimeDelta::seconds(spec.timeout_seconds.into()),
            read_every: TimeDelta::seconds(spec.read_every_seconds.into()),
        };
        Self {
            cluster,
            spec: spec.clone(),
            terms,
        }
    }

    /// The API of the cluster in which they run.
    pub(crate) const fn cluster(&self) -> &ApiServers {
        self.cluster.api()
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        BTreeSet::from([self.terms.target.clone()])
    }

    pub(super) const fn settles_in(&self) -> Duration {
        Duration::from_secs(self.spec.settles_in_seconds as u64)
    }

    /// Of one Job. A pod of the one before that takes its time to end is within what every driver has.
    pub(super) const fn takes(&self) -> Duration {
        Duration::from_secs(self.spec.timeout_seconds as u64)
    }

    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        let found = self.found().await?;
        let next = self.terms.ask(Action::Check, &found, Utc::now());
        self.follow(next).await.map(drop)
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let found = self.found().await?;
        let next = self.terms.ask(Action::Get, &found, Utc::now());
        Ok(Seen {
            weights: self.follow(next).await?,
            from: self.terms.target.clone(),
        })
    }

    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        let found = self.found().await?;
        self.follow(self.terms.set(weights, &found, Utc::now())).await
    }

    /// Jobs first: a pod whose Job is gone by then is found all the same.
    async fn found(&self) -> Result<Found, TrafficError> {
        let (jobs, pods) = (self.jobs(), self.api::<Pod>());
        let ours = ListParams::default().labels(&format!("{}={}", made::TRAFFIC, self.spec.name));
        let jobs = self.cluster.call(
            format!("list the Jobs of {}", self.terms.target),
            jobs.list(&ours),
        );
        let jobs = jobs.await.map_err(|error| self.wrong(&error))?;
        let pods = self.cluster.call(
            format!("list the pods of {}", self.terms.target),
            pods.list(&ours),
        );
        let pods = pods.await.map_err(|error| self.wrong(&error))?;
        Ok(Found::new(&jobs.items, &pods.items, self.terms.timeout))
    }

    async fn follow<T>(&self, next: Next<T>) -> Result<T, TrafficError> {
        for deed in &next.deeds {
            let done = match deed {
                Deed::End(job) => self.delete(job, DeleteParams::foreground()).await,
                Deed::Remove(job) => self.delete(job, DeleteParams::background()).await,
                Deed::Make(mark) => self.make(mark).await,
            };
            done.map_err(|error| match deed {
                Deed::Make(_) if error.is_invalid() => TrafficError::Spec {
                    field: "spec.traffic.job.template",
                    problem: format!("is not taken: {error}"),
                },
                _ => self.wrong(&error),
            })?;
        }
        next.answer
    }

    /// That one and no other of its name.
    async fn delete(&self, job: &Made, params: DeleteParams) -> Result<(), ApiError> {
        let params = params.preconditions(Preconditions {
            uid: Some(job.uid.clone()),
            resource_version: None,
        });
        let jobs = self.jobs();
        let what = format!("delete Job {}/{}", self.spec.namespace, job.name);
        match self.cluster.call(what, jobs.delete(&job.name, &params)).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn make(&self, mark: &Mark) -> Result<(), ApiError> {
        let jobs = jobs::api(self.cluster.client(), &self.spec.namespace);
        let what = format!("make a Job of {}", self.terms.target);
        let (params, job) = (PostParams::default(), self.build(mark));
        let call = async { jobs.create(&params, &job.map_err(kube::Error::SerdeError)?).await };
        match self.cluster.call(what, call).await {
            // Somebody else who leads no more, or we ourselves and were not told: the next look finds it.
            Err(error) if !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    fn build(&self, mark: &Mark) -> Result<DynamicObject, serde_json::Error> {
        let labels = mark.labels(&self.spec.name);
        let mut template = self.spec.template.clone();
        if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
            for (key, value) in [("parallelism", 1), ("completions", 1)] {
                spec.insert(key.to_owned(), json!(value));
            }
            if let Some(Value::Object(pod)) = spec.get_mut("template") {
                let metadata = pod.entry("metadata").or_insert_with(|| json!({}));
                if let Value::Object(metadata) = metadata {
                    jobs::add(metadata, "labels", labels.clone());
                }
                tell(pod, mark.action);
            }
        }
        let counts = self.spec.read_every_seconds + self.spec.timeout_seconds;
        let frame = jobs::Frame {
            name: format!("{}-traffic-{}", self.spec.name, mark.number),
            namespace: &self.spec.namespace,
            labels,
            asked: (made::ASKED, Utc::now()),
            timeout_seconds: self.spec.timeout_seconds,
            seen_seconds: i64::from(counts) + SEEN,
        };
        jobs::build(&template, frame)
    }

    fn jobs(&self) -> Api<batch::Job> {
        self.api()
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.client(), &self.spec.namespace)
    }

    fn wrong(&self, error: &ApiError) -> TrafficError {
        TrafficError::of_api(&self.terms.target, error)
    }
}

/// Tells a pod's containers what to do, whatever their template says of it.
fn tell(pod: &mut Map<String, Value>, action: Action) {
    let Some(Value::Object(spec)) = pod.get_mut("spec") else {
        return;
    };
    let environment = action.environment();
    for kind in ["initContainers", "containers"] {
        let containers = spec.get_mut(kind).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let env = container.entry("env").or_insert_with(|| json!([]));
            let Value::Array(env) = env else { continue };
            let is_ours = |entry: &Value| environment.iter().any(|(name, _)| entry["name"] == *name);
            env.retain(|entry| !is_ours(entry));
            let told = environment.iter().filter_map(|(name, value)| {
                let value = value.as_ref()?;
                Some(json!({"name": name, "value": value}))
            });
            // First, so that what the template says can refer to them.
            env.splice(..0, told);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_container_is_told_what_to_do_and_every_pod_is_found_again() {
        let spec = json!({
            "cluster": {"thisCluster": true}, "namespace": "edge", "name": "shop",
            "template": {"spec": {"parallelism": 5, "template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {
                    "initContainers": [{"name": "wait"}],
                    "containers": [{"name": "set", "env": [
                        {"name": "LOCKKEEPER_GREEN", "value": "7"}, {"name": "URL", "value": "$(LOCKKEEPER_ACTION)"},
                    ]}],
                },
            }}},
        });
        let own = crate::api::testing::api_servers(&"127.0.0.1:1".parse().unwrap());
        let jobs = Job::from_spec(&serde_json::from_value(spec).unwrap(), own);
        let built = |action| {
            let mark = Mark {
                number: 7,
                action,
                template: "h".to_owned(),
            };
            serde_json::to_value(jobs.build(&mark).unwrap()).unwrap()
        };
        let job = built(Action::Set(Weights::of_green(25)));
        assert_eq!(job["metadata"]["name"], "shop-traffic-7");
        let (spec, pod) = (&job["spec"], &job["spec"]["template"]);
        assert_eq!(
            [
                &spec["parallelism"],
                &spec["completions"],
                &spec["activeDeadlineSeconds"]
            ],
            [1, 1, 60]
        );
        let labels = pod["metadata"]["labels"].as_object().unwrap();
        assert_eq!(labels["team"], "a");
        let ours = job["metadata"]["labels"].as_object().unwrap();
        assert!(ours.iter().all(|(key, value)| labels[key] == *value));
        let told = json!([
            {"name": "LOCKKEEPER_ACTION", "value": "set"}, {"name": "LOCKKEEPER_BLUE", "value": "75"},
            {"name": "LOCKKEEPER_GREEN", "value": "25"},
        ]);
        assert_eq!(pod["spec"]["initContainers"][0]["env"], told);
        let env = pod["spec"]["containers"][0]["env"].as_array().unwrap();
        assert_eq!(env[..3], told.as_array().unwrap()[..]);
        assert_eq!(env[3]["name"], "URL");
        assert_eq!(env.len(), 4);
        let env = built(Action::Check);
        assert_eq!(
            env["spec"]["template"]["spec"]["initContainers"][0]["env"],
            json!([{"name": "LOCKKEEPER_ACTION", "value": "check"}])
        );
    }

    #[tokio::test]
    async fn another_template_is_told_apart_and_the_target_is_the_same() {
        let own = crate::api::testing::api_servers(&"127.0.0.1:1".parse().unwrap());
        let of = |template: Value| {
            let spec = json!({"cluster": {"thisCluster": true}, "namespace": "edge", "name": "shop", "template": template});
            Job::from_spec(&serde_json::from_value(spec).unwrap(), own.clone())
        };
        let (one, other) = (of(json!({"spec": {"a": 1}})), of(json!({"spec": {"a": 2}})));
        assert_ne!(one.terms.template, other.terms.template);
        assert_eq!(one.targets(), other.targets());
        assert_eq!(
            one.targets().into_iter().collect::<Vec<_>>(),
            ["job edge/shop in this cluster"]
        );
    }
}
