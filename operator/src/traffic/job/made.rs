//! Jobs of ours as the API tells of them, and their pods.

use std::fmt;

use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::ResourceExt as _;
use lockkeeper_crds::Weights;
use serde_json::{Value, json};

use crate::jobs;
use crate::traffic::told;

/// The name of what they move.
pub(super) const TRAFFIC: &str = "lockkeeper.dev/traffic";
const NUMBER: &str = "lockkeeper.dev/traffic-number";
const ACTION: &str = "lockkeeper.dev/traffic-action";
/// Green's share, of a `set`.
const GREEN: &str = "lockkeeper.dev/traffic-green";
/// A hash of what it was made from: what another template tells may be about something else.
const TEMPLATE: &str = "lockkeeper.dev/traffic-template";
pub(super) const ASKED: &str = "lockkeeper.dev/traffic-asked-at";

/// What one is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Get,
    Check,
    Set(Weights),
}

impl Action {
    const fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Check => "check",
            Self::Set(_) => "set",
        }
    }

    pub(super) const fn is_set(self) -> bool {
        matches!(self, Self::Set(_))
    }

    /// What its containers find in their environment; all of these names are ours.
    pub(super) fn environment(self) -> [(&'static str, Option<String>); 3] {
        let weights = match self {
            Self::Set(weights) => Some(weights),
            _ => None,
        };
        [
            ("LOCKKEEPER_ACTION", Some(self.word().to_owned())),
            ("LOCKKEEPER_BLUE", weights.map(|w| w.blue.to_string())),
            ("LOCKKEEPER_GREEN", weights.map(|w| w.green.to_string())),
        ]
    }

    fn read(action: &str, green: Option<&str>) -> Option<Self> {
        match (action, green) {
            ("get", None) => Some(Self::Get),
            ("check", None) => Some(Self::Check),
            ("set", Some(green)) => green.parse().ok().map(Weights::of_green).map(Self::Set),
            _ => None,
        }
    }
}

/// As what follows its name in a sentence.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => f.write_str("reads the weights"),
            Self::Check => f.write_str("finds out whether weights can be set"),
            Self::Set(weights) => write!(f, "sets {weights}"),
        }
    }
}

/// What a Job or a pod is told by its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) number: u64,
    pub(super) action: Action,
    pub(super) template: String,
}

impl Mark {
    /// `name`: of what is moved.
    pub(super) fn labels(&self, name: &str) -> Value {
        let mut labels = json!({
            TRAFFIC: name, NUMBER: self.number.to_string(), ACTION: self.action.word(), TEMPLATE: self.template,
        });
        if let (Action::Set(weights), Some(labels)) = (self.action, labels.as_object_mut()) {
            labels.insert(GREEN.to_owned(), json!(weights.green.to_string()));
        }
        labels
    }

    /// None: somebody else's.
    fn read(object: &impl kube::ResourceExt) -> Option<Self> {
        let label = |key: &str| object.labels().get(key).map(String::as_str);
        Some(Self {
            number: label(NUMBER)?.parse().ok()?,
            action: Action::read(label(ACTION)?, label(GREEN))?,
            template: label(TEMPLATE)?.to_owned(),
        })
    }
}

/// How one has ended, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) at: DateTime<Utc>,
    /// The weights that were read at its end, or why there are none.
    pub(super) told: Result<Weights, String>,
}

/// A Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) mark: Mark,
    /// By the clock of its cluster: which of two was made later.
    pub(super) created: DateTime<Utc>,
    /// By ours.
    pub(super) asked: DateTime<Utc>,
    /// It was told to end.
    pub(super) leaves: bool,
    /// None: it works, or was told to end and is not gone.
    pub(super) ended: Option<Ended>,
}

/// A pod of a `set` that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Live {
    pub(super) name: String,
    pub(super) node: String,
    /// The UID of its Job, which need not be there any more.
    pub(super) job: String,
    pub(super) mark: Mark,
}

/// What was found of one driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// As they were made, the last at the end.
    pub(super) jobs: Vec<Made>,
    pub(super) pods: Vec<Live>,
}

impl Found {
    /// `pods` were listed after `jobs`: what had no Job any more then and has not ended is among them.
    pub(super) fn new(jobs: &[batch::Job], pods: &[Pod], timeout: TimeDelta) -> Self {
        let mut made: Vec<Made> = jobs
            .iter()
            .filter_map(|job| self::made(job, pods, timeout))
            .collect();
        made.sort_by_key(|job| (job.created, job.mark.number));
        Self {
            jobs: made,
            pods: pods.iter().filter_map(live).collect(),
        }
    }
}

fn made(job: &batch::Job, pods: &[Pod], timeout: TimeDelta) -> Option<Made> {
    let mark = Mark::read(job)?;
    let (name, uid) = (job.metadata.name.clone()?, job.metadata.uid.clone()?);
    let created = job.metadata.creation_timestamp.as_ref().and_then(jobs::time)?;
    let asked = jobs::asked(job, ASKED).unwrap_or(created);
    let leaves = job.metadata.deletion_timestamp.is_some();
    let end = jobs::end(job).filter(|_| !leaves);
    let ended = end.map(|end| {
        let (at, told) = match end.result {
            Err(why) => (end.at, Err(format!("failed: {why}; its logs may say more"))),
            Ok(()) => match message(pods, &uid) {
                Some((at, words)) => (
                    at.or(end.at),
                    told(words.as_bytes()).map_err(|why| format!("left a termination message, but {why}")),
                ),
                None => (
                    end.at,
                    Err("completed without a termination message, which must say what is set".to_owned()),
                ),
            },
        };
        Ended {
            // The clocks of its cluster may be wrong; it cannot have worked longer than it may.
            at: at.unwrap_or(asked).clamp(asked, asked + timeout),
            told,
        }
    });
    Some(Made {
        name,
        uid,
        mark,
        created,
        asked,
        leaves,
        ended,
    })
}

/// The termination message of a Job that has completed, and when it was left. Two that differ are none.
fn message(pods: &[Pod], job: &str) -> Option<(Option<DateTime<Utc>>, String)> {
    let well = pods
        .iter()
        .filter(|pod| owner(pod) == Some(job) && phase(pod) == "Succeeded");
    let ended = well.flat_map(terminated);
    let mut left = ended.filter_map(|end| Some((end.finished_at.as_ref(), end.message.as_deref()?.trim())));
    let (at, words) = left.find(|(_, words)| !words.is_empty())?;
    let alike = left.all(|(_, other)| other.is_empty() || other == words);
    alike.then(|| (at.and_then(jobs::time), words.to_owned()))
}

fn terminated(pod: &Pod) -> impl Iterator<Item = &ContainerStateTerminated> {
    let statuses = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten());
    statuses.filter_map(|status| status.state.as_ref()?.terminated.as_ref())
}

fn owner(pod: &Pod) -> Option<&str> {
    let owner = pod.owner_references().iter().find(|owner| owner.kind == "Job")?;
    Some(&owner.uid)
}

fn phase(pod: &Pod) -> &str {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase.unwrap_or_default()
}

/// None: it has ended, or changes nothing anyway.
fn live(pod: &Pod) -> Option<Live> {
    let mark = Mark::read(pod)?;
    if !mark.action.is_set() || ["Succeeded", "Failed"].contains(&phase(pod)) {
        return None;
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    Some(Live {
        name: pod.name_any(),
        node: node.unwrap_or_else(|| "no node".to_owned()),
        job: owner(pod).unwrap_or_default().to_owned(),
        mark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
    }

    fn mark() -> Mark {
        Mark {
            number: 7,
            action: Action::Set(Weights::of_green(25)),
            template: "h".to_owned(),
        }
    }

    fn job(condition: &str) -> batch::Job {
        let conditions =
            json!([{"type": condition, "status": "True", "reason": "Why", "lastTransitionTime": at(500)}]);
        serde_json::from_value(json!({
            "metadata": {
                "name": "shop-traffic-7", "uid": "u-7", "creationTimestamp": at(1), "labels": mark().labels("shop"),
                "annotations": {ASKED: at(0)},
            },
            "status": {"conditions": conditions},
        }))
        .unwrap()
    }

    fn pod(phase: &str, messages: &[&str]) -> Pod {
        let ended = |words: &&str| {
            json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "finishedAt": at(9), "message": words}}})
        };
        serde_json::from_value(json!({
            "metadata": {
                "name": "shop-traffic-7-x", "labels": mark().labels("shop"),
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u-7"}],
            },
            "spec": {"nodeName": "node-1", "containers": []},
            "status": {"phase": phase, "containerStatuses": messages.iter().map(ended).collect::<Vec<_>>()},
        }))
        .unwrap()
    }

    fn found(condition: &str, pods: &[Pod]) -> Found {
        Found::new(&[job(condition)], pods, TimeDelta::seconds(60))
    }

    fn told_by(pods: &[Pod]) -> Result<Weights, String> {
        found("Complete", pods).jobs.remove(0).ended.unwrap().told
    }

    #[test]
    fn what_is_told_comes_from_a_termination_message_alone() {
        let words = r#" {"blue": 75, "green": 25} "#;
        assert_eq!(
            told_by(&[pod("Failed", &[words]), pod("Succeeded", &["", words, words])]),
            Ok(Weights::of_green(25))
        );
        for (pods, why) in [
            (vec![], "without a termination message"),
            (vec![pod("Failed", &[words])], "without"),
            (vec![pod("Succeeded", &["", " "])], "without"),
            (
                vec![pod("Succeeded", &[words, r#"{"blue":0,"green":100}"#])],
                "without",
            ),
            (vec![pod("Succeeded", &["hunter2"])], "it is not as"),
            (
                vec![pod("Succeeded", &[r#"{"blue": 75, "green": 20}"#])],
                "not 100 % together",
            ),
        ] {
            let told = told_by(&pods).unwrap_err();
            assert!(told.contains(why) && !told.contains("hunter2"), "{told}");
        }
    }

    #[test]
    fn when_it_was_read_is_told_by_the_pod_within_what_our_clock_allows() {
        let words = r#"{"blue": 75, "green": 25}"#;
        let ended = |condition: &str, pods: &[Pod]| found(condition, pods).jobs.remove(0).ended.unwrap();
        assert_eq!(ended("Complete", &[pod("Succeeded", &[words])]).at, at(9));
        let failed = ended("Failed", &[]);
        assert_eq!(failed.at, at(60));
        assert_eq!(failed.told, Err("failed: Why; its logs may say more".to_owned()));
        assert_eq!(found("Suspended", &[]).jobs[0].ended, None);
        let mut leaving = job("Complete");
        leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
        let left = Found::new(&[leaving], &[pod("Succeeded", &[words])], TimeDelta::seconds(60));
        assert!(left.jobs[0].leaves && left.jobs[0].ended.is_none());
    }

    #[test]
    fn a_pod_that_sets_and_has_not_ended_is_seen_whatever_became_of_its_job() {
        let pods = [
            pod("Succeeded", &[]),
            pod("Failed", &[]),
            pod("Running", &[]),
            pod("", &[]),
        ];
        let found = Found::new(&[], &pods, TimeDelta::seconds(60));
        assert_eq!(found.pods.len(), 2);
        assert_eq!(
            (&*found.pods[0].node, &*found.pods[0].job, &found.pods[0].mark),
            ("node-1", "u-7", &mark())
        );
    }

    #[test]
    fn what_is_written_into_labels_is_read_from_them() {
        for action in [Action::Get, Action::Check, Action::Set(Weights::BLUE)] {
            let mark = Mark { action, ..mark() };
            let mut job = job("Complete");
            job.metadata.labels = serde_json::from_value(mark.labels("shop")).unwrap();
            assert_eq!(Mark::read(&job), Some(mark));
        }
        let mut stranger = job("Complete");
        stranger.labels_mut().remove(NUMBER);
        assert_eq!(Mark::read(&stranger), None);
    }
}
