//! Jobs that are made from a template of the user's: how they are built, and what is told by those that are there.
//!
//! | | |
//! | --- | --- |
//! | comes in | a template, as a `CronJob`'s `jobTemplate` has it; a Job as the API knows it |
//! | goes out | a Job to make; when it was asked for, and how it ended |
//! | may touch | nothing |

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::batch::v1 as batch;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, ResourceExt as _};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

/// A finished one stays so long for its logs, unless the template says otherwise.
const KEPT: i64 = 3600;

/// What a Job gets besides what its template says.
pub(crate) struct Frame<'a> {
    pub(crate) name: String,
    pub(crate) namespace: &'a str,
    pub(crate) labels: Value,
    /// When it was asked for, and the annotation that says so.
    pub(crate) asked: (&'static str, DateTime<Utc>),
    /// The longest that it may take, whatever the template says.
    pub(crate) timeout_seconds: u32,
    /// It stays no shorter once it has finished, whatever the template says: its end must be seen.
    pub(crate) seen_seconds: i64,
}

/// How one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) at: Option<DateTime<Utc>>,
    /// Or why it failed.
    pub(crate) result: Result<(), String>,
}

/// Of any content: a template may have fields that are newer than ours.
pub(crate) fn api(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &ApiResource::erase::<batch::Job>(&()))
}

/// What the template says, and what must be found again.
pub(crate) fn build(template: &Value, frame: Frame<'_>) -> Result<DynamicObject, serde_json::Error> {
    let of = |key: &str| match template.get(key) {
        Some(Value::Object(fields)) => fields.clone(),
        _ => Map::new(),
    };
    let (key, asked) = frame.asked;
    let asked = asked.to_rfc3339_opts(SecondsFormat::Millis, true);
    let mut metadata = of("metadata");
    add(&mut metadata, "labels", frame.labels);
    add(&mut metadata, "annotations", json!({key: asked}));
    metadata.remove("generateName");
    metadata.insert("name".to_owned(), json!(frame.name));
    metadata.insert("namespace".to_owned(), json!(frame.namespace));
    let mut spec = of("spec");
    let number = |spec: &Map<String, Value>, key: &str| spec.get(key).and_then(Value::as_i64);
    let limit = i64::from(frame.timeout_seconds);
    let limit = number(&spec, "activeDeadlineSeconds").map_or(limit, |own| own.min(limit));
    let kept = number(&spec, "ttlSecondsAfterFinished").unwrap_or(KEPT);
    spec.insert("activeDeadlineSeconds".to_owned(), json!(limit));
    let kept = kept.max(frame.seen_seconds);
    spec.insert("ttlSecondsAfterFinished".to_owned(), json!(kept));
    serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec,
    }))
}

/// Into a map of a map; what is there under another key stays.
pub(crate) fn add(within: &mut Map<String, Value>, key: &str, more: Value) {
    let there = within.entry(key).or_insert_with(|| json!({}));
    if let (Value::Object(there), Value::Object(more)) = (there, more) {
        there.extend(more);
    }
}

/// When it was asked for, by this annotation.
pub(crate) fn asked(job: &batch::Job, key: &str) -> Option<DateTime<Utc>> {
    job.annotations().get(key)?.parse().ok()
}

/// None: it has not ended, or not for certain.
pub(crate) fn end(job: &batch::Job) -> Option<End> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let certain = conditions.iter().filter(|c| c.status == "True");
    certain.into_iter().find_map(|c| {
        let result = match &*c.type_ {
            "Complete" => Ok(()),
            "Failed" => {
                let words = [&c.reason, &c.message].into_iter().flatten();
                let words = words.filter(|w| !w.is_empty()).cloned();
                Err(words.collect::<Vec<_>>().join(": "))
            }
            _ => return None,
        };
        let at = c.last_transition_time.as_ref();
        Some(End {
            at: at.and_then(time),
            result,
        })
    })
}

/// The API's time; whole seconds, as it keeps them.
pub(crate) fn time(time: &Time) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.0.as_second(), 0)
}

/// Eight letters that differ where the text does.
pub(crate) fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(template: &Value) -> Value {
        let frame = Frame {
            name: "smoke-3".to_owned(),
            namespace: "shop",
            labels: json!({"ours": "1"}),
            asked: ("asked", DateTime::from_timestamp(1_763_700_000, 0).unwrap()),
            timeout_seconds: 60,
            seen_seconds: 60,
        };
        serde_json::to_value(build(template, frame).unwrap()).unwrap()
    }

    #[test]
    fn the_template_is_kept_and_what_must_be_found_again_is_added() {
        let job = built(&json!({
            "metadata": {"labels": {"team": "a", "ours": "another"}, "name": "mine", "generateName": "mine-"},
            "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 30, "ttlSecondsAfterFinished": 0, "new": {"field": 1}},
        }));
        assert_eq!(
            job["metadata"],
            json!({
                "name": "smoke-3", "namespace": "shop", "labels": {"team": "a", "ours": "1"},
                "annotations": {"asked": "2025-11-21T04:40:00.000Z"},
            })
        );
        assert_eq!(job["spec"]["new"]["field"], 1);
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 30);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], 60);
        let job = built(&json!({"spec": {"activeDeadlineSeconds": 90}}));
        assert_eq!(job["spec"]["activeDeadlineSeconds"], 60);
        assert_eq!(job["spec"]["ttlSecondsAfterFinished"], KEPT);
    }

    #[test]
    fn an_end_is_what_its_conditions_say_for_certain() {
        let of = |conditions: Value| {
            let job = json!({"metadata": {"name": "j"}, "spec": {"template": {}}, "status": {"conditions": conditions}});
            end(&serde_json::from_value(job).unwrap())
        };
        let result = |conditions: Value| of(conditions).map(|end| end.result);
        assert_eq!(of(json!([])), None);
        assert_eq!(of(json!([{"type": "FailureTarget", "status": "True"}])), None);
        assert_eq!(of(json!([{"type": "Complete", "status": "False"}])), None);
        assert_eq!(
            result(json!([{"type": "Complete", "status": "True"}])),
            Some(Ok(()))
        );
        let failed = json!([{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "too often",
            "lastTransitionTime": "2025-11-21T04:40:00Z"}]);
        assert_eq!(
            of(failed),
            Some(End {
                at: DateTime::from_timestamp(1_763_700_000, 0),
                result: Err("BackoffLimitExceeded: too often".to_owned())
            })
        );
    }
}
