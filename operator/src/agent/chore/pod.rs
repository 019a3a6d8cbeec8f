//! A chore as a static pod. Pure.

use serde_json::{Value, json};

use super::Chore;

/// The manifest of one run. `uid` tells its containers from those of any other run: the kubelet takes a UID that
/// a manifest has, and makes one of its content otherwise (facts.md 5.2).
pub(super) fn render(chore: &Chore, pod: &str, uid: &str) -> Result<String, String> {
    let (volumes, mounts) = volumes(chore);
    let mut spec = json!({
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "dnsPolicy": "Default",
        "hostNetwork": chore.host_network,
        "containers": [{
            "name": chore.name,
            "image": chore.image,
            "imagePullPolicy": "IfNotPresent",
            "command": chore.command,
            "env": chore.environment.iter().map(|(name, value)| json!({"name": name, "value": value})).collect::<Vec<_>>(),
            "resources": resources(chore),
            "securityContext": {
                "runAsUser": 0,
                "runAsGroup": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": mounts,
        }],
        "volumes": volumes,
    });
    // With this class the kernel spares it when memory is short, and the kubelet does not ask for it otherwise.
    if chore.critical
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert("priorityClassName".to_owned(), "system-node-critical".into());
        spec.insert("priority".to_owned(), 2_000_001_000.into());
    }
    let manifest = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod,
            "namespace": "kube-system",
            "uid": uid,
            "labels": {"app.kubernetes.io/name": "lockkeeper", "app.kubernetes.io/component": "chore"},
        },
        "spec": spec,
    });
    serde_yaml::to_string(&manifest).map_err(|e| e.to_string())
}

/// Limits without requests: a request is the limit otherwise, and the kubelet would put other pods out for it.
fn resources(chore: &Chore) -> Value {
    let mut limits = serde_json::Map::new();
    let mut requests = serde_json::Map::new();
    if let Some(bytes) = chore.memory_limit {
        limits.insert("memory".to_owned(), bytes.to_string().into());
        requests.insert("memory".to_owned(), "0".into());
    }
    if let Some(thousandths) = chore.cpu_limit {
        limits.insert("cpu".to_owned(), format!("{thousandths}m").into());
        requests.insert("cpu".to_owned(), "0".into());
    }
    json!({"limits": limits, "requests": requests})
}

fn volumes(chore: &Chore) -> (Vec<Value>, Vec<Value>) {
    let of_host = chore.mounts.iter().map(|mount| {
        (
            json!({"hostPath": {"path": mount.host}}),
            json!({"mountPath": mount.inside, "readOnly": mount.read_only}),
        )
    });
    let scratch = chore
        .scratch
        .iter()
        .map(|inside| (json!({"emptyDir": {}}), json!({"mountPath": inside})));
    of_host
        .chain(scratch)
        .enumerate()
        .map(|(number, (mut volume, mut mount))| {
            for part in [&mut volume, &mut mount] {
                if let Some(fields) = part.as_object_mut() {
                    fields.insert("name".to_owned(), format!("v{number}").into());
                }
            }
            (volume, mount)
        })
        .unzip()
}
