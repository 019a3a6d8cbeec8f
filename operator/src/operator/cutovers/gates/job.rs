//! A round that is a Job.
//!
//! The Job itself is what is remembered of it: its labels say whose it is, its number in them is its place in the row,
//! and when it was asked for stands in an annotation. So a successor finds the one that runs, and a name that is made of
//! all that cannot be made twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1 as batch;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use lockkeeper_crds::JobGate;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::cel::allowed;
use super::{Answer, Hindrance, Outcome, Reach};
use crate::api::{ApiError, ApiServers};
use crate::operator::cutovers::rights::Objects;

/// The UID of the cutover.
const CUTOVER: &str = "lockkeeper.dev/cutover";
const GATE: &str = "lockkeeper.dev/gate";
const ROUND: &str = "lockkeeper.dev/gate-round";
const ASKED: &str = "lockkeeper.dev/gate-asked-at";

/// Between two looks at one that runs.
const EVERY: Duration = Duration::from_secs(1);
/// After its time the cluster ends it; a controller that does not within so long is not at work.
const GRACE: TimeDelta = TimeDelta::seconds(30);
/// A finished one stays so long for its logs, unless the template says otherwise.
const KEPT: i64 = 3600;
/// And no shorter, whatever the template says: its end must be seen.
const SEEN: i64 = 60;

/// Asks by Jobs.
pub(super) struct Job {
    spec: JobGate,
    gate: String,
    owner: String,
    /// The last round that was told.
    told: AtomicU64,
}

/// One that was made for this gate.
struct Made {
    name: String,
    round: u64,
    asked: Option<DateTime<Utc>>,
    end: Option<Result<(), String>>,
}

impl Job {
    pub(super) fn new(spec: &JobGate, gate: &str, owner: &str) -> Self {
        Self {
            spec: spec.clone(),
            gate: gate.to_owned(),
            owner: owner.to_owned(),
            told: AtomicU64::new(0),
        }
    }

    /// The rights, and the template as the server that is to run it sees it.
    pub(super) async fn check(&self, reach: &Reach) -> Result<(), Hindrance> {
        let cluster = self.spec.cluster;
        let api = reach.cluster(cluster).map_err(Hindrance::unknown)?;
        let needed = ["create", "list", "delete"];
        let needed = needed.map(|verb| {
            Objects::to(verb, "batch", "jobs")
                .within(&self.spec.namespace)
                .into()
        });
        allowed(&api, cluster, &needed).await?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match self.create(&api, 0, Utc::now(), &params).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) if error.is_unanswered() => Err(Hindrance::unknown(error.to_string())),
            Err(error) => Err(Hindrance::block(format!(
                "{error}: correct job.namespace and job.template"
            ))),
        }
    }

    pub(super) async fn round(&self, reach: &Reach) -> Answer {
        match self.ask(reach).await {
            Ok(answer) => answer,
            Err(why) => Answer::unknown(why),
        }
    }

    async fn ask(&self, reach: &Reach) -> Result<Answer, String> {
        let cluster = self.spec.cluster;
        let mut made = self.made(&reach.cluster(cluster)?).await?;
        let told = self.told.load(Ordering::Relaxed);
        let newest = made.iter().map(|job| job.round).max().unwrap_or(0);
        // One that runs, or whose end nobody has told yet: a predecessor's.
        let open = made
            .iter()
            .filter(|job| job.end.is_none() || (job.round == newest && told < newest));
        let round = match open.map(|job| job.round).min() {
            Some(round) => round,
            None => {
                let api = reach.cluster(cluster)?;
                let created = self
                    .create(&api, newest + 1, Utc::now(), &PostParams::default())
                    .await;
                match created {
                    Ok(()) => {}
                    // Somebody else who leads no more, or we ourselves and were not told.
                    Err(error) if error.is_conflict() => {}
                    Err(error) => return Err(error.to_string()),
                }
                newest + 1
            }
        };
        loop {
            let api = reach.cluster(cluster)?;
            made = self.made(&api).await?;
            let Some(job) = made.iter().find(|job| job.round == round) else {
                self.told.store(round, Ordering::Relaxed);
                return Err(format!(
                    "its Job was deleted in {cluster} before its end was seen"
                ));
            };
            let place = format!("Job {}/{} in {cluster}", self.spec.namespace, job.name);
            let answer = match &job.end {
                Some(Ok(())) => Answer::new(Outcome::Passed, format!("{place} completed")),
                Some(Err(why)) => Answer::new(Outcome::Failed, format!("{place} failed: {why}")),
                None if self.is_late(job) => {
                    return Err(format!(
                        "{place} has not ended in its time, and was not ended either"
                    ));
                }
                None => {
                    sleep(EVERY).await;
                    continue;
                }
            };
            self.told.store(round, Ordering::Relaxed);
            self.remove(
                &api,
                made.iter().filter(|job| job.round < round && job.end.is_some()),
            )
            .await;
            return Ok(Answer {
                asked: job.asked,
                ..answer
            });
        }
    }

    fn is_late(&self, job: &Made) -> bool {
        let limit = TimeDelta::seconds(self.spec.timeout_seconds.into()) + GRACE;
        job.asked.is_none_or(|asked| Utc::now() - asked > limit)
    }

    /// Every one that was made for this gate and is there.
    async fn made(&self, api: &ApiServers) -> Result<Vec<Made>, String> {
        let jobs: Api<batch::Job> = Api::namespaced(api.client(), &self.spec.namespace);
        let params = ListParams::default().labels(&format!("{CUTOVER}={},{GATE}={}", self.owner, self.gate));
        let what = format!("list the Jobs of gate {} in {}", self.gate, self.spec.cluster);
        let found = api.within(what, jobs.list(&params)).await;
        let found = found.map_err(|e| e.to_string())?;
        Ok(found.items.into_iter().filter_map(made).collect())
    }

    async fn create(
        &self,
        api: &ApiServers,
        round: u64,
        now: DateTime<Utc>,
        params: &PostParams,
    ) -> Result<(), ApiError> {
        let resource = ApiResource::erase::<batch::Job>(&());
        let jobs: Api<DynamicObject> = Api::namespaced_with(api.client(), &self.spec.namespace, &resource);
        let what = format!("make a Job of gate {} in {}", self.gate, self.spec.cluster);
        let job = self.build(round, now);
        let call = async { jobs.create(params, &job.map_err(kube::Error::SerdeError)?).await };
        api.within(what, call).await.map(drop)
    }

    /// What the template says, and what we must find again.
    fn build(&self, round: u64, now: DateTime<Utc>) -> Result<DynamicObject, serde_json::Error> {
        let template = |key: &str| match self.spec.template.get(key) {
            Some(Value::Object(fields)) => fields.clone(),
            _ => Map::new(),
        };
        let mut metadata = template("metadata");
        let labels = json!({CUTOVER: self.owner, GATE: self.gate, ROUND: round.to_string()});
        let asked = now.to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        add(&mut metadata, "labels", labels);
        add(&mut metadata, "annotations", json!({ASKED: asked}));
        metadata.remove("generateName");
        metadata.insert("name".to_owned(), json!(self.name(round)));
        metadata.insert("namespace".to_owned(), json!(self.spec.namespace));
        let mut spec = template("spec");
        let number = |spec: &Map<String, Value>, key: &str| spec.get(key).and_then(Value::as_i64);
        let limit = i64::from(self.spec.timeout_seconds);
        let limit = number(&spec, "activeDeadlineSeconds").map_or(limit, |own| own.min(limit));
        let kept = number(&spec, "ttlSecondsAfterFinished").map_or(KEPT, |own| own.max(SEEN));
        spec.insert("activeDeadlineSeconds".to_owned(), json!(limit));
        spec.insert("ttlSecondsAfterFinished".to_owned(), json!(kept));
        serde_json::from_value(json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec,
        }))
    }

    /// Short enough for its pods' labels; another for each cutover.
    fn name(&self, round: u64) -> String {
        let hash = Sha256::digest(format!("{}/{}", self.owner, self.gate));
        let hash: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let gate: String = self.gate.chars().take(40).collect();
        format!("{gate}-{hash}-{round}")
    }

    /// What is not removed now is removed by its `ttlSecondsAfterFinished`.
    async fn remove<'a>(&self, api: &ApiServers, old: impl Iterator<Item = &'a Made>) {
        let jobs: Api<batch::Job> = Api::namespaced(api.client(), &self.spec.namespace);
        for job in old {
            let what = format!("delete Job {} in {}", job.name, self.spec.cluster);
            let params = DeleteParams::background();
            if let Err(error) = api.within(what, jobs.delete(&job.name, &params)).await {
                tracing::debug!(%error, gate = self.gate, "an old Job stays until its time");
            }
        }
    }
}

/// Into a map of a map; what is there under another key stays.
fn add(metadata: &mut Map<String, Value>, key: &str, more: Value) {
    let there = metadata.entry(key).or_insert_with(|| json!({}));
    if let (Value::Object(there), Value::Object(more)) = (there, more) {
        there.extend(more);
    }
}

/// None: it bears no number, and is not ours.
fn made(job: batch::Job) -> Option<Made> {
    let metadata = job.metadata;
    let round = metadata.labels.as_ref()?.get(ROUND)?.parse().ok()?;
    let asked = metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ASKED)?.parse().ok());
    let conditions = job.status.and_then(|s| s.conditions).unwrap_or_default();
    let end = conditions
        .into_iter()
        .filter(|c| c.status == "True")
        .find_map(|c| match &*c.type_ {
            "Complete" => Some(Ok(())),
            "Failed" => {
                let words = [c.reason, c.message].into_iter().flatten();
                Some(Err(words
                    .filter(|w| !w.is_empty())
                    .collect::<Vec<_>>()
                    .join(": ")))
            }
            _ => None,
        });
    Some(Made {
        name: metadata.name?,
        round,
        asked,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(template: &Value) -> Job {
        let spec =
            json!({"cluster": "Green", "namespace": "shop", "timeoutSeconds": 60, "template": template});
        Job::new(&serde_json::from_value(spec).unwrap(), "smoke", "u-1")
    }

    fn built(template: &Value) -> Value {
        let now = DateTime::from_timestamp(1_763_700_000, 0).unwrap();
        serde_json::to_value(gate(template).build(3, now).unwrap()).unwrap()
    }

    #[test]
    fn the_template_is_kept_and_what_must_be_found_again_is_added() {
        let job = built(&json!({
            "metadata": {"labels": {"team": "a", GATE: "another"}, "name": "mine"},
            "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 30, "ttlSecondsAfterFinished": 0, "new": {"field": 1}},
        }));
        let name = job["metadata"]["name"].as_str().unwrap();
        assert!(
            name.starts_with("smoke-") && name.ends_with("-3") && name.len() < 20,
            "{name}"
        );
        assert_eq!(
            job["metadata"]["labels"],
            json!({"team": "a", CUTOVER: "u-1", GATE: "smoke", ROUND: "3"})
        );
        assert_eq!(job["metadata"]["annotations"][ASKED], "2025-11-21T04:40:00.000Z");
        assert_eq!(job["spec"]["new"]["field"], 1);
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 30);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], SEEN);
        let job = built(&json!({"spec": {"activeDeadlineSeconds": 90}}));
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 60);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], KEPT);
    }

    #[test]
    fn an_end_is_what_its_conditions_say_for_certain() {
        let of = |conditions: Value| {
            let job = json!({"metadata": {"name": "j", "labels": {ROUND: "2"}}, "spec": {"template": {}},
                "status": {"conditions": conditions}});
            made(serde_json::from_value(job).unwrap()).unwrap().end
        };
        assert_eq!(of(json!([])), None);
        assert_eq!(of(json!([{"type": "FailureTarget", "status": "True"}])), None);
        assert_eq!(of(json!([{"type": "Complete", "status": "False"}])), None);
        assert_eq!(of(json!([{"type": "Complete", "status": "True"}])), Some(Ok(())));
        let failed = json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often"}]);
        assert_eq!(
            of(failed),
            Some(Err("BackoffLimitExceeded: too often".to_owned()))
        );
    }
}
