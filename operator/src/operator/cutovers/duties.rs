//! What must run in exactly one of the clusters: how it is seen in each, and stopped or started in one.
//!
//! Stopped means proven: it is not to run, its controllers have taken note of that, and none of its pods or Jobs is
//! there. A stop writes the fence into the object and with it makes a new version of it; a start names the version on
//! which it was decided. So of an old start and a new stop the stop wins, whoever is late.

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::Selector;
use lockkeeper_crds::{Singleton, SingletonKind, SingletonStatus};
use lockkeeper_policies::cutover::{Duty, Fence, Side};
use serde_json::{Value, json};

use super::clusters::Cluster;
use crate::operator::act::FIELD_MANAGER;

/// On what was stopped: in which direction, and when.
const FENCE: &str = "lockkeeper.dev/cutover-fence";
/// On what was stopped: how many replicas it had.
const REPLICAS: &str = "lockkeeper.dev/cutover-replicas";

/// A `CronJob`'s controller decides from what it has heard, and may not have heard of the suspension yet: a Job may
/// still come for so long.
const HEARSAY: TimeDelta = TimeDelta::seconds(10);

/// One of them in one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    duty: Duty,
    /// It is not to run, and was told so in this direction.
    fence: Option<Fence>,
    version: Option<String>,
    /// What it has, or had before it was stopped.
    replicas: Option<i64>,
    /// For a person.
    told: String,
}

impl Found {
    fn unknown(why: String) -> Self {
        Self {
            duty: Duty::Unknown(why.clone()),
            fence: None,
            version: None,
            replicas: None,
            told: why,
        }
    }
}

/// All of them in one cluster, in the order of the spec.
pub(super) async fn look(
    cluster: &Result<Cluster, String>,
    all: &[Singleton],
    now: DateTime<Utc>,
) -> Vec<Found> {
    match cluster {
        Err(why) => all.iter().map(|_| Found::unknown(why.clone())).collect(),
        // Asked again it would not answer either, and everything else would wait for that.
        Ok(cluster) if !cluster.health().asked || cluster.health().lost.is_some() => {
            let why = format!("the API of {} does not answer, or not yet", cluster.side);
            all.iter().map(|_| Found::unknown(why.clone())).collect()
        }
        Ok(cluster) => join_all(all.iter().map(|one| look_at(cluster, one, now))).await,
    }
}

async fn look_at(cluster: &Cluster, one: &Singleton, now: DateTime<Utc>) -> Found {
    match seen(cluster, one, now).await {
        Ok(found) => found,
        Err(why) => Found::unknown(why),
    }
}

async fn seen(cluster: &Cluster, one: &Singleton, now: DateTime<Utc>) -> Result<Found, String> {
    let side = cluster.side;
    let object = read(cluster, one).await?.ok_or_else(|| {
        let how = match side {
            Side::Blue => "correct spec.singletons",
            Side::Green => "make it there, stopped",
        };
        format!("there is no {one} in {side}: {how}")
    })?;
    let left = if is_off(one.kind, &object) {
        Some(left(cluster, one, &object).await?)
    } else {
        None
    };
    Ok(judge(one.kind, &object, left, now))
}

/// None: there is no such thing.
pub(super) async fn read(cluster: &Cluster, one: &Singleton) -> Result<Option<DynamicObject>, String> {
    let api = objects(cluster, one);
    let what = format!("read {one} of {}", cluster.side);
    let found = cluster.api.within(what, api.get_opt(&one.name)).await;
    found.map_err(|e| e.to_string())
}

/// What the object says, and how much of it is left where it is not to run.
fn judge(kind: SingletonKind, object: &DynamicObject, left: Option<usize>, now: DateTime<Utc>) -> Found {
    let number = |pointer: &str| object.data.pointer(pointer).and_then(Value::as_i64);
    let has = number("/spec/replicas").unwrap_or(1);
    let note = |name: &str| object.metadata.annotations.as_ref().and_then(|a| a.get(name));
    let noted = number("/status/observedGeneration") >= object.metadata.generation;
    let fence = note(FENCE)
        .and_then(|text| parse(text))
        .filter(|_| left.is_some());
    let (duty, told) = match (left, kind) {
        (None, SingletonKind::CronJob) => (Duty::Running, "runs".to_owned()),
        (None, _) => {
            let ready = number("/status/readyReplicas").unwrap_or(0);
            let told = format!("{ready} of {has} ready");
            if noted && ready >= has {
                (Duty::Running, told)
            } else {
                (Duty::Starting, told)
            }
        }
        (Some(left), kind) => {
            // An object that cannot say what its controller has heard gets time instead.
            let heard = match kind {
                SingletonKind::CronJob => fence.is_none_or(|(_, at)| now - at >= HEARSAY),
                SingletonKind::Deployment | SingletonKind::StatefulSet => {
                    noted && number("/status/replicas").unwrap_or(0) == 0
                }
            };
            if left == 0 && heard {
                (Duty::Stopped(fence.map(|(fence, _)| fence)), "stopped".to_owned())
            } else {
                (Duty::Stopping, format!("stopping, {left} left"))
            }
        }
    };
    Found {
        duty,
        fence: fence.map(|(fence, _)| fence),
        version: object.metadata.resource_version.clone(),
        replicas: note(REPLICAS)
            .and_then(|text| text.parse().ok())
            .or((has > 0).then_some(has)),
        told,
    }
}

/// It is not to run.
fn is_off(kind: SingletonKind, object: &DynamicObject) -> bool {
    match kind {
        SingletonKind::CronJob => object.data.pointer("/spec/suspend") == Some(&Value::Bool(true)),
        SingletonKind::Deployment | SingletonKind::StatefulSet => {
            object.data.pointer("/spec/replicas") == Some(&json!(0))
        }
    }
}

/// How much of it there is, though it is not to run.
async fn left(cluster: &Cluster, one: &Singleton, object: &DynamicObject) -> Result<usize, String> {
    let side = cluster.side;
    if one.kind == SingletonKind::CronJob {
        let api: Api<Job> = Api::namespaced(cluster.api.client(), &one.namespace);
        let params = ListParams::default();
        let what = format!("list the Jobs of {one} in {side}");
        let jobs = cluster.api.within(what, api.list(&params)).await;
        let jobs = jobs.map_err(|e| e.to_string())?.items;
        let owner = object.metadata.uid.as_deref();
        return Ok(jobs.iter().filter(|job| goes_on(job, owner)).count());
    }
    let selector = object.data.pointer("/spec/selector").cloned().unwrap_or_default();
    let unreadable = |why: String| format!("spec.selector of {one} in {side} cannot be read: {why}");
    let selector: LabelSelector = serde_json::from_value(selector).map_err(|e| unreadable(e.to_string()))?;
    let selector = Selector::try_from(selector).map_err(|e| unreadable(e.to_string()))?;
    let api: Api<Pod> = Api::namespaced(cluster.api.client(), &one.namespace);
    let params = ListParams::default().labels_from(&selector);
    let what = format!("list the pods of {one} in {side}");
    let pods = cluster.api.within(what, api.list(&params)).await;
    Ok(pods
        .map_err(|e| e.to_string())?
        .items
        .iter()
        .filter(|p| lives(p))
        .count())
}

/// One whose containers have ended for good has ended, though the object is there; one that is being deleted may run.
fn lives(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed"))
}

/// A Job of this owner that has not ended.
fn goes_on(job: &Job, owner: Option<&str>) -> bool {
    let owned = job.metadata.owner_references.iter().flatten();
    let owned = owned.into_iter().any(|o| Some(o.uid.as_str()) == owner);
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ended = conditions.into_iter().flatten();
    let ended = ended
        .into_iter()
        .any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    owned && !ended
}

/// In which sense all of them together are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    /// They are to be stopped: they run as long as one of them does.
    Stop,
    /// They are to be started: they run when all of them do.
    Start,
}

/// All of them as one.
pub(super) fn together(all: &[Found], sense: Sense) -> Duty {
    let first = |wanted: fn(&Duty) -> bool| all.iter().map(|f| &f.duty).find(|d| wanted(d)).cloned();
    let unknown = first(|d| matches!(d, Duty::Unknown(_)));
    let running = || first(|d| matches!(d, Duty::Running));
    let starting = || first(|d| matches!(d, Duty::Starting));
    let stopping = || first(|d| matches!(d, Duty::Stopping));
    let stopped = || {
        let mut fences = all.iter().filter_map(|f| match &f.duty {
            Duty::Stopped(fence) => Some(*fence),
            _ => None,
        });
        let first = fences.next()?;
        // Stopped in different ways is not stopped this way.
        Some(Duty::Stopped(first.filter(|_| fences.all(|f| f == first))))
    };
    let found = match sense {
        Sense::Stop => unknown
            .or_else(running)
            .or_else(starting)
            .or_else(stopping)
            .or_else(stopped),
        Sense::Start => unknown
            .or_else(stopped)
            .or_else(stopping)
            .or_else(starting)
            .or_else(running),
    };
    found.unwrap_or(Duty::Stopped(None))
}

/// Tells each to stop that was not told so in this direction.
pub(super) async fn stop(
    cluster: &Cluster,
    all: &[Singleton],
    found: &[Found],
    fence: Fence,
    now: DateTime<Utc>,
) -> Result<(), String> {
    let due = all.iter().zip(found).filter(|(_, f)| f.fence != Some(fence));
    let told = join_all(due.map(async |(one, found)| {
        let had = found.replicas.filter(|_| one.kind != SingletonKind::CronJob);
        let annotations = json!({FENCE: text(fence, now), REPLICAS: had.map(|n| n.to_string())});
        let spec = match one.kind {
            SingletonKind::CronJob => json!({"suspend": true}),
            SingletonKind::Deployment | SingletonKind::StatefulSet => json!({"replicas": 0}),
        };
        let patch = json!({"metadata": {"annotations": annotations}, "spec": spec});
        write(cluster, one, "stop", &patch).await
    }));
    // Each was tried; the first that failed is told.
    told.await.into_iter().collect()
}

/// Starts each that is stopped, unless it was changed since it was found so. `other`: the same in the other cluster,
/// which knows how many replicas it had where it ran.
pub(super) async fn start(
    cluster: &Cluster,
    all: &[Singleton],
    found: &[Found],
    other: &[Found],
) -> Result<(), String> {
    let due = all.iter().zip(found.iter().zip(other));
    let due = due.filter(|(_, (f, _))| matches!(f.duty, Duty::Stopping | Duty::Stopped(_)));
    let told = join_all(due.map(async |(one, (found, other))| {
        let spec = match one.kind {
            SingletonKind::CronJob => json!({"suspend": false}),
            SingletonKind::Deployment | SingletonKind::StatefulSet => {
                json!({"replicas": found.replicas.or(other.replicas).unwrap_or(1)})
            }
        };
        let patch = json!({
            "metadata": {"resourceVersion": found.version, "annotations": {FENCE: null, REPLICAS: null}},
            "spec": spec,
        });
        write(cluster, one, "start", &patch).await
    }));
    // Each was tried; the first that failed is told.
    told.await.into_iter().collect()
}

async fn write(cluster: &Cluster, one: &Singleton, doing: &str, patch: &Value) -> Result<(), String> {
    let (api, params) = (
        objects(cluster, one),
        PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        },
    );
    let (what, patch) = (format!("{doing} {one} in {}", cluster.side), Patch::Merge(patch));
    match cluster
        .api
        .within(what, api.patch(&one.name, &params, &patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

fn objects(cluster: &Cluster, one: &Singleton) -> Api<DynamicObject> {
    let resource = match one.kind {
        SingletonKind::CronJob => ApiResource::erase::<CronJob>(&()),
        SingletonKind::Deployment => ApiResource::erase::<Deployment>(&()),
        SingletonKind::StatefulSet => ApiResource::erase::<StatefulSet>(&()),
    };
    Api::namespaced_with(cluster.api.client(), &one.namespace, &resource)
}

/// `forward 2026-11-21T22:10:00.000Z`.
fn text(fence: Fence, at: DateTime<Utc>) -> String {
    let way = match fence {
        Fence::Forward => "forward",
        Fence::Back => "back",
    };
    format!(
        "{way} {}",
        at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
    )
}

fn parse(text: &str) -> Option<(Fence, DateTime<Utc>)> {
    let (fence, at) = text.split_once(' ')?;
    let fence = match fence {
        "forward" => Fence::Forward,
        "back" => Fence::Back,
        _ => return None,
    };
    Some((fence, at.parse().ok()?))
}

/// For a person.
pub(super) fn rows(all: &[Singleton], blue: &[Found], green: &[Found]) -> Vec<SingletonStatus> {
    let both = all.iter().zip(blue.iter().zip(green));
    both.map(|(one, (blue, green))| SingletonStatus {
        what: one.to_string(),
        blue: blue.told.clone(),
        green: green.told.clone(),
    })
    .collect()
}

#[cfg(test)]
#[path = "duties_tests.rs"]
mod tests;
