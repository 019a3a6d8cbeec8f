//! An object of each kind that has rules of its own, as an API server serves it.

use super::*;

fn pod_spec() -> Value {
    json!({
        "nodeName": "n1", "serviceAccountName": "web", "priority": 5,
        "containers": [{
            "name": "web", "image": "registry.example.com/web:1.0", "resources": {"limits": {"cpu": "1"}},
            "env": [{"name": "A", "value": "b"}], "securityContext": {"privileged": false}
        }],
        "volumes": [{"name": "v", "configMap": {"name": "c"}}]
    })
}

/// A kind, an object of it as it is served, and the paths that a cluster makes by itself. `*` is any one step.
#[allow(clippy::too_many_lines)] // A table.
pub(super) fn all_kinds() -> Vec<(Kind, Value, &'static [&'static str])> {
    vec![
        (
            kind("apps", "Deployment"),
            served(json!({
                "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                    "template": {"metadata": {"creationTimestamp": null, "labels": {"app": "web"},
                        "annotations": {"kubectl.kubernetes.io/restartedAt": "now", "a": "b"}}, "spec": pod_spec()}},
                "status": {"observedGeneration": 3, "replicas": 2, "availableReplicas": 2}
            })),
            &[
                "spec template spec nodeName",
                "spec template metadata creationTimestamp",
                "spec template metadata annotations kubectl.kubernetes.io/restartedAt",
            ],
        ),
        (
            kind("batch", "CronJob"),
            served(json!({
                "spec": {"schedule": "* * * * *", "suspend": false,
                    "jobTemplate": {"spec": {"template": {"metadata": {"labels": {"app": "web"}}, "spec": pod_spec()}}}},
                "status": {"lastScheduleTime": "2026-01-02T03:04:05Z"}
            })),
            &["spec jobTemplate spec template spec nodeName"],
        ),
        (
            kind("", "Service"),
            served(json!({
                "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
                    "healthCheckNodePort": 31000, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                    "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "nodePort": 30080, "targetPort": 8080}]},
                "status": {"loadBalancer": {}}
            })),
            &[
                "spec clusterIP",
                "spec clusterIPs *",
                "spec healthCheckNodePort",
                "spec ipFamilies *",
                "spec ports * nodePort",
            ],
        ),
        (
            kind("", "ConfigMap"),
            served(json!({"data": {"a": "b", "c": "d"}, "immutable": true})),
            &[],
        ),
        (
            kind("", "Secret"),
            served(json!({"type": "Opaque", "data": {"password": "aGVsbG8="}})),
            &[],
        ),
        (
            kind("", "ServiceAccount"),
            served(json!({"secrets": [{"name": "web-token-x7k2p"}], "imagePullSecrets": [{"name": "pull"}]})),
            &["secrets * name"],
        ),
        (
            kind("", "ResourceQuota"),
            served(json!({"spec": {"hard": {"pods": "10"}}, "status": {"used": {"pods": "3"}}})),
            &[],
        ),
        (
            kind("", "PersistentVolumeClaim"),
            served(json!({
                "spec": {"storageClassName": "fast", "volumeName": "pvc-1-2", "resources": {"requests": {"storage": "1Gi"}}},
                "status": {"phase": "Bound"}
            })),
            &["spec volumeName"],
        ),
        (
            kind("storage.k8s.io", "StorageClass"),
            served(
                json!({"provisioner": "csi.example.com", "parameters": {"type": "ssd"}, "reclaimPolicy": "Delete"}),
            ),
            &[],
        ),
        (
            kind("scheduling.k8s.io", "PriorityClass"),
            served(json!({"value": 1000, "globalDefault": false})),
            &[],
        ),
        (
            kind("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
            served(
                json!({"webhooks": [{"name": "a.example.com", "failurePolicy": "Fail",
                "clientConfig": {"caBundle": "LS0t", "service": {"name": "hook", "namespace": "shop"}}}]}),
            ),
            &["webhooks * clientConfig caBundle"],
        ),
        (
            kind("apiextensions.k8s.io", "CustomResourceDefinition"),
            served(json!({
                "spec": {"group": "example.com", "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"caBundle": "LS0t"}}},
                    "versions": [{"name": "v1", "served": true, "storage": true}]},
                "status": {"storedVersions": ["v1"], "conditions": [{"type": "Established", "status": "True"}]}
            })),
            &["spec conversion webhook clientConfig caBundle"],
        ),
        (
            kind("example.com", "Shop"),
            served(
                json!({"spec": {"size": 3, "on": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            ),
            &[],
        ),
    ]
}

/// Of every object.
pub(super) const MADE_BY_THE_CLUSTER: [&str; 10] = [
    "metadata uid",
    "metadata resourceVersion",
    "metadata generation",
    "metadata creationTimestamp",
    "metadata selfLink",
    "metadata finalizers *",
    "metadata ownerReferences * uid",
    "metadata annotations kubectl.kubernetes.io/last-applied-configuration",
    "metadata annotations deployment.kubernetes.io/revision",
    "kind",
];
