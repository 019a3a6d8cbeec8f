//! An object without what its cluster has made of it: two clusters to which the same was applied have the same.

use serde_json::{Map, Value};

use super::Kind;
use super::ready::not_ready;

/// What came is no object with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API server served an object without a name")]
pub struct Unreadable;

/// What is meant by an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Normal {
    /// Empty for what lies in no namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why it does not do what it is there for.
    pub not_ready: Option<String>,
    /// The rest.
    pub value: Value,
}

/// Of `metadata`: who made it, when, and who works on it. Namespace and name are compared by themselves.
const METADATA: [&str; 13] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    // Put on by the controllers that clean up.
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
    "clusterName",
];

/// Annotations that clients and controllers write for themselves. One that ends with `/` stands for all under it.
const ANNOTATIONS: [&str; 9] = [
    "apf.kubernetes.io/autoupdate-spec",
    "control-plane.alpha.kubernetes.io/leader",
    "deployment.kubernetes.io/",
    "deprecated.daemonset.template.generation",
    "kubectl.kubernetes.io/last-applied-configuration",
    // A restart by hand changes nothing of what runs.
    "kubectl.kubernetes.io/restartedAt",
    "pv.kubernetes.io/",
    "volume.beta.kubernetes.io/storage-provisioner",
    "volume.kubernetes.io/",
];

/// Labels and selectors that hold a UID.
const LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];

/// Types of Secrets that a cluster, or a release tool, makes for itself. Helm's hold the time of the installation.
const OWN_SECRETS: [&str; 3] = [
    "bootstrap.kubernetes.io/token",
    "helm.sh/release.v1",
    "kubernetes.io/service-account-token",
];

/// What is meant by an object as an API server serves it; none when it is a cluster's own making as a whole.
///
/// # Errors
/// When it is no object with a name.
pub fn normalise(kind: &Kind, mut object: Value) -> Result<Option<Normal>, Unreadable> {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str).map(str::to_owned);
    let name = text("/metadata/name").ok_or(Unreadable)?;
    let namespace = text("/metadata/namespace").unwrap_or_default();
    if is_own(kind, &namespace, &name, &object) {
        return Ok(None);
    }
    let not_ready = not_ready(kind, &object);
    let stored = object.pointer("/status/storedVersions").cloned();
    let Some(members) = object.as_object_mut() else {
        return Err(Unreadable);
    };
    // A list of built-in kinds leaves the first two out, a single object has them.
    for member in ["kind", "apiVersion", "status"] {
        members.remove(member);
    }
    if let Some(metadata) = members.get_mut("metadata").and_then(Value::as_object_mut) {
        strip_metadata(metadata);
    }
    by_kind(kind, &mut object, stored);
    drop_nulls(&mut object);
    Ok(Some(Normal {
        namespace,
        name,
        not_ready,
        value: object,
    }))
}

/// A cluster makes it by itself, each its own way.
fn is_own(kind: &Kind, namespace: &str, name: &str, object: &Value) -> bool {
    let at = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let made_by_a_controller = object
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .is_some_and(|owners| owners.iter().any(is_built_in_controller));
    let own = match (kind.group.as_str(), kind.kind.as_str()) {
        // A cluster's own certificates and addresses.
        ("", "ConfigMap") => matches!(
            (namespace, name),
            (_, "kube-root-ca.crt")
                | ("kube-public", "cluster-info")
                | ("kube-system", "extension-apiserver-authentication")
        ),
        ("", "Secret") => at("/type").is_some_and(|t| OWN_SECRETS.contains(&t)),
        ("", "Service") => namespace == "default" && name == "kubernetes",
        ("", "PersistentVolume") => at("/metadata/annotations/pv.kubernetes.io~1provisioned-by").is_some(),
        // The release's own, brought up to date by every API server.
        ("rbac.authorization.k8s.io", _) => {
            at("/metadata/labels/kubernetes.io~1bootstrapping") == Some("rbac-defaults")
        }
        ("flowcontrol.apiserver.k8s.io", _) => {
            at("/metadata/annotations/apf.kubernetes.io~1autoupdate-spec") == Some("true")
        }
        ("apiregistration.k8s.io", _) => {
            at("/metadata/labels/kube-aggregator.kubernetes.io~1automanaged").is_some()
        }
        _ => false,
    };
    own || made_by_a_controller
}

/// What a built-in controller makes follows from what it was made of, often under a random name. What the controller
/// of a custom resource makes is compared: that controller may be missing.
fn is_built_in_controller(owner: &Value) -> bool {
    let controls = owner.get("controller").and_then(Value::as_bool) == Some(true);
    let version = owner
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    controls && matches!(version, "v1" | "apps/v1" | "batch/v1")
}

fn strip_metadata(metadata: &mut Map<String, Value>) {
    for member in METADATA {
        metadata.remove(member);
    }
    strip_annotations(metadata);
    strip_labels(metadata, "labels");
    let owners = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut);
    for owner in owners.into_iter().flatten().filter_map(Value::as_object_mut) {
        owner.remove("uid");
    }
}

fn strip_annotations(metadata: &mut Map<String, Value>) {
    retain(metadata, "annotations", |name| {
        !ANNOTATIONS.iter().any(|a| {
            if a.ends_with('/') {
                name.starts_with(a)
            } else {
                name == *a
            }
        })
    });
}

fn strip_labels(parent: &mut Map<String, Value>, member: &str) {
    retain(parent, member, |name| !LABELS.contains(&name));
}

/// Keeps some members of a map, and no empty map: a server of one release leaves it out, another does not.
fn retain(parent: &mut Map<String, Value>, member: &str, keep: impl Fn(&str) -> bool) {
    let Some(map) = parent.get_mut(member).and_then(Value::as_object_mut) else {
        return;
    };
    map.retain(|name, _| keep(name));
    if map.is_empty() {
        parent.remove(member);
    }
}

fn by_kind(kind: &Kind, object: &mut Value, stored: Option<Value>) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => {
            placed(object);
            pod_spec(object.get_mut("spec"));
        }
        ("apps", _) | ("", "ReplicationController") | ("batch", "Job") => {
            if let Some(selector) = object
                .pointer_mut("/spec/selector")
                .and_then(Value::as_object_mut)
            {
                strip_labels(selector, "matchLabels");
            }
            template(object.pointer_mut("/spec/template"));
        }
        ("batch", "CronJob") => template(object.pointer_mut("/spec/jobTemplate/spec/template")),
        ("", "PodTemplate") => template(object.get_mut("template")),
        ("", "Service") => service(object),
        // A token of before v1.24 has a random name.
        ("", "ServiceAccount") => drop_members(Some(object), &["secrets"]),
        ("", "PersistentVolumeClaim") => drop_members(object.get_mut("spec"), &["volumeName"]),
        ("", "PersistentVolume") => {
            drop_members(object.pointer_mut("/spec/claimRef"), &["uid", "resourceVersion"]);
        }
        // Filled by a controller from the roles that it selects.
        ("rbac.authorization.k8s.io", "ClusterRole") if object.get("aggregationRule").is_some() => {
            drop_members(Some(object), &["rules"]);
        }
        ("apiextensions.k8s.io", _) => {
            drop_members(
                object.pointer_mut("/spec/conversion/webhook/clientConfig"),
                &["caBundle"],
            );
            if let (Some(stored), Some(members)) = (stored, object.as_object_mut()) {
                members.insert("storedVersions".to_owned(), stored);
            }
        }
        ("apiregistration.k8s.io", _) => drop_members(object.get_mut("spec"), &["caBundle"]),
        ("admissionregistration.k8s.io", _) => {
            let webhooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
            for webhook in webhooks.into_iter().flatten() {
                drop_members(webhook.get_mut("clientConfig"), &["caBundle"]);
            }
        }
        _ => {}
    }
}

fn drop_members(object: Option<&mut Value>, names: &[&str]) {
    if let Some(members) = object.and_then(Value::as_object_mut) {
        for name in names {
            members.remove(*name);
        }
    }
}

/// Addresses that a cluster gives. `clusterIP: None` is a wish, and stays.
fn service(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    if spec.get("clusterIP").and_then(Value::as_str) != Some("None") {
        spec.remove("clusterIP");
    }
    // The families follow from the cluster's ranges.
    for member in ["clusterIPs", "healthCheckNodePort", "ipFamilies"] {
        spec.remove(member);
    }
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        drop_members(Some(port), &["nodePort"]);
    }
}

/// What admission and scheduler have put into a pod.
fn placed(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return;
    };
    let text = |value: &Value, member: &str| -> String {
        value
            .get(member)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let token = |name: &str| name.starts_with("kube-api-access-");
    if let Some(tolerations) = spec.get_mut("tolerations").and_then(Value::as_array_mut) {
        tolerations.retain(|t| {
            !matches!(
                text(t, "key").as_str(),
                "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable"
            )
        });
    }
    if let Some(volumes) = spec.get_mut("volumes").and_then(Value::as_array_mut) {
        volumes.retain(|v| !token(&text(v, "name")));
    }
    for containers in CONTAINERS {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                mounts.retain(|m| !token(&text(m, "name")));
            }
        }
    }
}

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

fn template(template: Option<&mut Value>) {
    let Some(template) = template else { return };
    if let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("creationTimestamp");
        strip_annotations(metadata);
        strip_labels(metadata, "labels");
        if metadata.is_empty() {
            drop_members(Some(template), &["metadata"]);
        }
    }
    pod_spec(template.get_mut("spec"));
}

fn pod_spec(spec: Option<&mut Value>) {
    let Some(spec) = spec.and_then(Value::as_object_mut) else {
        return;
    };
    spec.remove("nodeName");
    for containers in CONTAINERS {
        let containers = spec.get_mut(containers).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            image(container.get_mut("image"));
            retain(container, "resources", |_| true);
        }
    }
    let volumes = spec.get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        image(volume.pointer_mut("/image/reference"));
    }
}

/// An image that names its digest is that digest, from whatever registry and by whatever tag.
fn image(image: Option<&mut Value>) {
    let Some(image) = image else { return };
    let digest = image
        .as_str()
        .and_then(|i| Some(i.rsplit_once('@')?.1.to_owned()));
    if let Some(digest) = digest {
        *image = Value::String(digest);
    }
}

/// `creationTimestamp: null` in a template and its like: nothing, which newer servers leave out.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
