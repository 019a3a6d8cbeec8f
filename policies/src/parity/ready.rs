//! Whether an object does what it is there for, as its status says.

use serde_json::Value;

use super::Kind;

/// Why not; none when it does, or when its kind has nothing to be ready for.
pub(super) fn not_ready(kind: &Kind, object: &Value) -> Option<String> {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Some("is being deleted".to_owned());
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("apps", "Deployment") => stale(object).or_else(|| replicas(object, "availableReplicas")),
        ("apps", "StatefulSet") => stale(object).or_else(|| replicas(object, "readyReplicas")),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => replicas(object, "readyReplicas"),
        ("apps", "DaemonSet") => stale(object).or_else(|| {
            let (wanted, ready) = (
                count(object, "/status/desiredNumberScheduled"),
                count(object, "/status/numberReady"),
            );
            (ready < wanted).then(|| format!("{ready} of {wanted} pods are ready"))
        }),
        ("", "Pod") if text(object, "/status/phase") == "Succeeded" => None,
        ("", "Pod") => unless(object, "Ready", true),
        ("batch", "Job") => (condition(object, "Failed") == Some("True")).then(|| "has failed".to_owned()),
        ("", "PersistentVolumeClaim") => phase(object, "Bound"),
        ("", "Namespace") => phase(object, "Active"),
        ("", "Service") if text(object, "/spec/type") == "LoadBalancer" => {
            let given = object
                .pointer("/status/loadBalancer/ingress")
                .and_then(Value::as_array);
            given
                .is_none_or(Vec::is_empty)
                .then(|| "has no address of a load balancer".to_owned())
        }
        ("apiextensions.k8s.io", _) => unless(object, "Established", true),
        ("apiregistration.k8s.io", _) => unless(object, "Available", true),
        // Kubernetes' own kinds say it in other ways, if at all.
        (group, _) if !group.contains('.') || group.ends_with(".k8s.io") => None,
        // A custom resource that follows the conventions.
        _ => unless(object, "Ready", false),
    }
}

fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn count(object: &Value, at: &str) -> i64 {
    object.pointer(at).and_then(Value::as_i64).unwrap_or(0)
}

/// Its controller has not seen its newest spec yet.
fn stale(object: &Value) -> Option<String> {
    let seen = count(object, "/status/observedGeneration");
    (seen < count(object, "/metadata/generation")).then(|| "its controller has not seen it yet".to_owned())
}

fn replicas(object: &Value, ready: &str) -> Option<String> {
    let wanted = object
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    let ready = count(object, &format!("/status/{ready}"));
    (ready < wanted).then(|| format!("{ready} of {wanted} replicas are ready"))
}

fn phase(object: &Value, good: &str) -> Option<String> {
    let phase = text(object, "/status/phase");
    (phase != good).then(|| {
        if phase.is_empty() {
            "has no phase yet".to_owned()
        } else {
            format!("is {phase}")
        }
    })
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a str> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    let found = all.iter().find(|c| text(c, "/type") == type_)?;
    Some(text(found, "/status"))
}

/// Unless the condition is True; where it `must` be there, also when it is not.
fn unless(object: &Value, type_: &str, must: bool) -> Option<String> {
    match condition(object, type_) {
        Some("True") => None,
        None if !must => None,
        Some(status) => Some(format!("its condition {type_} is {status}")),
        None => Some(format!("has no condition {type_} yet")),
    }
}
