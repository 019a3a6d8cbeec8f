//! A round that is a Job.
//!
//! The Job itself is what is remembered of it: its labels say whose it is, its number in them is its place in the row,
//! and when it was asked for stands in an annotation. So a successor finds the one that runs, and a name that is made of
//! all that cannot be made twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1 as batch;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};
use lockkeeper_crds::JobGate;
use serde_json::json;
use tokio::time::sleep;

use super::cel::allowed;
use super::{Answer, Hindrance, Outcome, Reach};
use crate::api::{ApiError, ApiServers};
use crate::jobs;
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
/// A finished one stays no shorter, whatever the template says: its end must be seen.
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
        Ok(found.items.iter().filter_map(made).collect())
    }

    async fn create(
        &self,
        api: &ApiServers,
        round: u64,
        now: DateTime<Utc>,
        params: &PostParams,
    ) -> Result<(), ApiError> {
        let jobs = jobs::api(api.client(), &self.spec.namespace);
        let what = format!("make a Job of gate {} in {}", self.gate, self.spec.cluster);
        let job = self.build(round, now);
        let call = async { jobs.create(params, &job.map_err(kube::Error::SerdeError)?).await };
        api.within(what, call).await.map(drop)
    }

    fn build(&self, round: u64, now: DateTime<Utc>) -> Result<DynamicObject, serde_json::Error> {
        let frame = jobs::Frame {
            name: self.name(round),
            namespace: &self.spec.namespace,
            labels: json!({CUTOVER: self.owner, GATE: self.gate, ROUND: round.to_string()}),
            asked: (ASKED, now),
            timeout_seconds: self.spec.timeout_seconds,
            seen_seconds: SEEN,
        };
        jobs::build(&self.spec.template, frame)
    }

    /// Short enough for its pods' labels; another for each cutover.
    fn name(&self, round: u64) -> String {
        let hash = jobs::short_hash(&format!("{}/{}", self.owner, self.gate));
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

/// None: it bears no number, and is not ours.
fn made(job: &batch::Job) -> Option<Made> {
    Some(Made {
        name: job.metadata.name.clone()?,
        round: job.labels().get(ROUND)?.parse().ok()?,
        asked: jobs::asked(job, ASKED),
        end: jobs::end(job).map(|end| end.result),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_be_found_again_is_its_name_and_its_labels() {
        let spec = json!({"cluster": "Green", "namespace": "shop", "timeoutSeconds": 60, "template": {
            "metadata": {"labels": {"team": "a", GATE: "another"}, "name": "mine"}, "spec": {},
        }});
        let gate = Job::new(&serde_json::from_value(spec).unwrap(), "smoke", "u-1");
        let now = DateTime::from_timestamp(1_763_700_000, 0).unwrap();
        let job = serde_json::to_value(gate.build(3, now).unwrap()).unwrap();
        let name = job["metadata"]["name"].as_str().unwrap();
        assert!(
            name.starts_with("smoke-") && name.ends_with("-3") && name.len() < 20,
            "{name}"
        );
        assert_eq!(
            job["metadata"]["labels"],
            json!({"team": "a", CUTOVER: "u-1", GATE: "smoke", ROUND: "3"})
        );
        let found = made(&serde_json::from_value(job).unwrap()).unwrap();
        assert_eq!((found.round, found.asked, found.end), (3, Some(now), None));
    }
}
