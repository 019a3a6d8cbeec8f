use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const KEY: [u8; KEY_LENGTH] = [7; KEY_LENGTH];

fn kind(group: &str, kind: &str) -> Kind {
    Kind::new(group, kind)
}

/// What is kept of it, under one key.
fn record(kind: &Kind, object: &Value) -> Option<Record> {
    let scope = Scope::default();
    let mut recorder = Recorder {
        kind,
        scope: &scope,
        keyed: Keyed::new(&KEY),
    };
    recorder.record(object.clone()).unwrap()
}

fn equal(kind: &Kind, blue: &Value, green: &Value) -> bool {
    record(kind, blue).unwrap().digest == record(kind, green).unwrap().digest
}

/// As an API server serves it, with all that it has put on it.
fn served(mut object: Value) -> Value {
    let metadata = json!({
        "name": "web", "namespace": "shop", "uid": "1-2", "resourceVersion": "17", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "selfLink": "/x",
        "labels": {"app": "web", "team": "a"},
        "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{}", "deployment.kubernetes.io/revision": "4",
            "note": "kept"
        },
        "finalizers": ["x/y"],
        "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
        "ownerReferences": [{"apiVersion": "shop.example.com/v1", "kind": "Shop", "name": "main", "uid": "9", "controller": true}]
    });
    object["metadata"] = metadata;
    object
}

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
fn all_kinds() -> Vec<(Kind, Value, &'static [&'static str])> {
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
const MADE_BY_THE_CLUSTER: [&str; 10] = [
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

fn is_ignored(path: &[String], own: &[&str]) -> bool {
    if path.starts_with(&["metadata".into(), "managedFields".into()]) {
        return true;
    }
    if path.first().is_some_and(|first| first == "status") {
        return path.get(1).is_none_or(|second| second != "storedVersions");
    }
    MADE_BY_THE_CLUSTER.iter().chain(own).any(|pattern| {
        let steps: Vec<_> = pattern.split(' ').collect();
        steps.len() == path.len() && steps.iter().zip(path).all(|(s, p)| *s == "*" || s == p)
    })
}

/// The paths of all values that hold no others.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let members: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    if members.is_empty() {
        found.push(path.clone());
    }
    for (name, member) in members {
        path.push(name);
        leaves(member, path, found);
        path.pop();
    }
}

fn at<'a>(value: &'a mut Value, path: &[String]) -> &'a mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    })
}

fn changed(value: &Value) -> Value {
    match value {
        Value::Bool(b) => json!(!b),
        Value::Number(n) => json!(n.as_i64().unwrap() + 1),
        Value::String(s) => json!(format!("{s}x")),
        _ => json!("x"),
    }
}

#[test]
fn every_field_that_a_person_sets_is_seen_to_differ_and_none_that_a_cluster_makes() {
    let mut seen = [0, 0];
    for (kind, object, own) in all_kinds() {
        assert!(equal(&kind, &object, &object), "{kind}");
        let mut paths = Vec::new();
        leaves(&object, &mut Vec::new(), &mut paths);
        for path in paths {
            // Another name or namespace is another object.
            if matches!(path.join(" ").as_str(), "metadata name" | "metadata namespace") {
                continue;
            }
            let mut green = object.clone();
            let value = at(&mut green, &path);
            *value = changed(value);
            let ignored = is_ignored(&path, own);
            assert_eq!(
                equal(&kind, &object, &green),
                ignored,
                "{kind}: {}",
                path.join(" ")
            );
            seen[usize::from(ignored)] += 1;
        }
    }
    // Neither half of the table has been lost.
    assert!(seen[0] > 80 && seen[1] > 150, "{seen:?}");
}

#[test]
fn what_is_taken_away_or_added_differs_too() {
    let kind = kind("", "ConfigMap");
    let object = |data: Value| served(json!({"data": data}));
    let blue = object(json!({"a": "b"}));
    for green in [
        json!({}),
        json!({"a": "b", "c": "d"}),
        json!({"a": ["b"]}),
        json!({"a": {"b": "b"}}),
    ] {
        assert!(!equal(&kind, &blue, &object(green.clone())), "{green}");
    }
}

#[test]
fn images_are_compared_by_digest_where_both_have_one() {
    let kind = kind("", "Pod");
    let pod = |image: &str| served(json!({"spec": {"containers": [{"name": "web", "image": image}]}}));
    for (blue, green, same) in [
        (
            "a.example.com/web:1.0@sha256:aa",
            "b.example.com/web:other@sha256:aa",
            true,
        ),
        (
            "a.example.com/web:1.0@sha256:aa",
            "a.example.com/web:1.0@sha256:bb",
            false,
        ),
        ("a.example.com/web:1.0", "a.example.com/web:1.0", true),
        ("a.example.com/web:1.0", "b.example.com/web:1.0", false),
        ("a.example.com/web:1.0", "a.example.com/web:1.0@sha256:aa", false),
    ] {
        assert_eq!(equal(&kind, &pod(blue), &pod(green)), same, "{blue} {green}");
    }
}

#[test]
fn what_a_scheduler_and_admission_put_into_a_pod_is_no_difference() {
    let pod = |token: &str, node: &str| {
        served(json!({
            "spec": {
                "nodeName": node,
                "tolerations": [{"key": "node.kubernetes.io/not-ready", "tolerationSeconds": 300}],
                "containers": [{"name": "web", "image": "web", "volumeMounts": [{"name": token, "mountPath": "/var/run"}]}],
                "volumes": [{"name": token, "projected": {}}]
            },
            "status": {"phase": "Running", "podIP": node}
        }))
    };
    let plain = served(json!({"spec": {"tolerations": [], "volumes": [],
        "containers": [{"name": "web", "image": "web", "volumeMounts": []}]}}));
    let kind = kind("", "Pod");
    assert!(equal(
        &kind,
        &pod("kube-api-access-abcde", "n1"),
        &pod("kube-api-access-fghij", "n2")
    ));
    assert!(equal(&kind, &pod("kube-api-access-abcde", "n1"), &plain));
    assert!(!equal(&kind, &pod("mine", "n1"), &pod("yours", "n1")));
}

#[test]
fn a_headless_service_is_not_one_with_an_address() {
    let service = |ip: &str| served(json!({"spec": {"clusterIP": ip, "ports": []}}));
    let kind = kind("", "Service");
    assert!(equal(&kind, &service("10.0.0.1"), &service("10.1.0.1")));
    assert!(!equal(&kind, &service("10.0.0.1"), &service("None")));
}

#[test]
fn a_server_of_another_release_that_leaves_out_what_is_empty_shows_the_same() {
    let kind = kind("apps", "Deployment");
    let object = |metadata: Value, resources: Option<Value>| {
        let mut container = json!({"name": "web", "image": "web"});
        if let Some(resources) = resources {
            container["resources"] = resources;
        }
        served(json!({"spec": {"template": {"metadata": metadata, "spec": {"containers": [container]}}}}))
    };
    let old = object(json!({"creationTimestamp": null}), Some(json!({})));
    assert!(equal(&kind, &old, &object(json!({}), None)));
    assert!(!equal(
        &kind,
        &old,
        &object(json!({}), Some(json!({"limits": {"cpu": "1"}})))
    ));
}

#[test]
fn what_a_cluster_makes_by_itself_is_not_compared() {
    let named = |namespace: &str, name: &str, more: Value| {
        let mut object = more;
        object["metadata"]["name"] = json!(name);
        object["metadata"]["namespace"] = json!(namespace);
        object
    };
    let owner = |version: &str| json!({"metadata": {"ownerReferences": [{"apiVersion": version, "kind": "X", "controller": true}]}});
    for (kind, object, compared) in [
        (
            kind("", "ConfigMap"),
            named("shop", "kube-root-ca.crt", json!({})),
            false,
        ),
        (
            kind("", "ConfigMap"),
            named("shop", "cluster-info", json!({})),
            true,
        ),
        (
            kind("", "Secret"),
            named(
                "shop",
                "a",
                json!({"type": "kubernetes.io/service-account-token"}),
            ),
            false,
        ),
        (
            kind("", "Secret"),
            named("shop", "a", json!({"type": "kubernetes.io/tls"})),
            true,
        ),
        (
            kind("", "Service"),
            named("default", "kubernetes", json!({})),
            false,
        ),
        (kind("", "Service"), named("shop", "kubernetes", json!({})), true),
        (kind("", "Pod"), named("shop", "a", owner("apps/v1")), false),
        (kind("batch", "Job"), named("shop", "a", owner("batch/v1")), false),
        (
            kind("apps", "Deployment"),
            named("shop", "a", owner("example.com/v1")),
            true,
        ),
        (kind("", "ConfigMap"), named("kube-system", "a", json!({})), false),
        (kind("", "Namespace"), named("", "kube-system", json!({})), false),
        (kind("", "Namespace"), named("", "shop", json!({})), true),
        (
            kind("rbac.authorization.k8s.io", "ClusterRole"),
            named(
                "",
                "admin",
                json!({"metadata": {"labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}}}),
            ),
            false,
        ),
        (
            kind("", "PersistentVolume"),
            named(
                "",
                "pvc-1",
                json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "csi"}}}),
            ),
            false,
        ),
    ] {
        assert_eq!(record(&kind, &object).is_some(), compared, "{kind} {object}");
    }
    assert_eq!(
        normalise(&kind("", "Pod"), json!({"metadata": {}})),
        Err(Unreadable)
    );
}

#[test]
fn kinds_are_left_out_unless_named_and_namespaces_too() {
    let everything = Scope::default();
    assert!(everything.compares(&kind("apps", "Deployment"), "deployments"));
    assert!(!everything.compares(&kind("", "Event"), "events"));
    assert!(!everything.compares(&kind("coordination.k8s.io", "Lease"), "leases"));
    assert!(everything.concerns("shop.example.com") && !everything.concerns("metrics.k8s.io"));
    let named = |kinds: &[&str], namespaces: &[&str]| Scope {
        kinds: kinds.iter().map(|k| KindAsked((*k).to_owned())).collect(),
        namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(),
    };
    for asked in [
        "Lease",
        "leases",
        "lease.coordination.k8s.io",
        "Leases.coordination.k8s.io",
    ] {
        assert!(
            named(&[asked], &[]).compares(&kind("coordination.k8s.io", "Lease"), "leases"),
            "{asked}"
        );
    }
    assert!(!named(&["Lease.example.com"], &[]).compares(&kind("coordination.k8s.io", "Lease"), "leases"));
    assert!(!named(&["Lease"], &[]).compares(&kind("apps", "Deployment"), "deployments"));
    assert!(named(&["pods", "nodes.metrics.k8s.io"], &[]).concerns("metrics.k8s.io"));
    assert!(!named(&["pods"], &[]).concerns("shop.example.com"));
    let one = named(&[], &["kube-system"]);
    assert!(one.holds(&kind("", "ConfigMap"), "kube-system", "a"));
    assert!(!one.holds(&kind("", "ConfigMap"), "shop", "a"));
    assert!(one.holds(&kind("storage.k8s.io", "StorageClass"), "", "fast"));
    assert!(one.holds(&kind("", "Namespace"), "", "kube-system"));
    assert!(!one.holds(&kind("", "Namespace"), "", "shop"));
}

#[test]
fn what_does_not_do_what_it_is_there_for_is_not_ready() {
    let condition = |type_: &str, status: &str| json!({"conditions": [{"type": type_, "status": status}]});
    let workload = |wanted: i64, field: &str, got: i64, seen: i64| json!({"metadata": {"generation": 2}, "spec": {"replicas": wanted}, "status": {field: got, "observedGeneration": seen}});
    for (group, name, object, ready) in [
        ("apps", "Deployment", workload(2, "availableReplicas", 2, 2), true),
        (
            "apps",
            "Deployment",
            workload(2, "availableReplicas", 1, 2),
            false,
        ),
        (
            "apps",
            "Deployment",
            workload(2, "availableReplicas", 2, 1),
            false,
        ),
        ("apps", "Deployment", workload(0, "availableReplicas", 0, 2), true),
        ("apps", "StatefulSet", workload(1, "readyReplicas", 0, 2), false),
        (
            "apps",
            "DaemonSet",
            json!({"status": {"desiredNumberScheduled": 3, "numberReady": 2}}),
            false,
        ),
        (
            "apps",
            "DaemonSet",
            json!({"status": {"desiredNumberScheduled": 3, "numberReady": 3}}),
            true,
        ),
        ("", "Pod", json!({"status": condition("Ready", "False")}), false),
        ("", "Pod", json!({"status": {"phase": "Pending"}}), false),
        ("", "Pod", json!({"status": {"phase": "Succeeded"}}), true),
        (
            "batch",
            "Job",
            json!({"status": condition("Failed", "True")}),
            false,
        ),
        ("batch", "Job", json!({"status": {}}), true),
        (
            "",
            "PersistentVolumeClaim",
            json!({"status": {"phase": "Pending"}}),
            false,
        ),
        ("", "Namespace", json!({"status": {"phase": "Active"}}), true),
        (
            "",
            "Service",
            json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {}}}),
            false,
        ),
        ("", "Service", json!({"spec": {"type": "ClusterIP"}}), true),
        (
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            json!({}),
            false,
        ),
        (
            "example.com",
            "Shop",
            json!({"status": condition("Ready", "Unknown")}),
            false,
        ),
        ("example.com", "Shop", json!({}), true),
        (
            "",
            "ConfigMap",
            json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z"}}),
            false,
        ),
    ] {
        let found = super::ready::not_ready(&kind(group, name), &object);
        assert_eq!(found.is_none(), ready, "{name} {object}: {found:?}");
    }
}

#[test]
fn fields_are_named_and_what_stands_in_them_is_not() {
    let blue = json!({"spec": {"containers": [{"image": "secret-a"}, {"image": "b"}]}, "data": {"tls.key": "hidden"}, "same": 1});
    let green = json!({"spec": {"containers": [{"image": "secret-c"}]}, "data": {}, "same": 1});
    let found = fields(&blue, &green, 9);
    assert_eq!(
        found,
        [
            "data[\"tls.key\"]",
            "spec.containers[0].image",
            "spec.containers[1]"
        ]
    );
    assert_eq!(fields(&blue, &green, 2).len(), 2);
    assert!(fields(&blue, &blue, 9).is_empty());
}

#[test]
fn digests_of_two_keys_have_nothing_in_common() {
    let value = json!({"data": {"password": "aGVsbG8="}});
    let with = |byte| Keyed::new(&[byte; KEY_LENGTH]).digest(&value);
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn where_a_text_ends_counts() {
    let mut keyed = Keyed::new(&KEY);
    let forms = [
        json!(["ab", "c"]),
        json!(["a", "bc"]),
        json!([["ab"], "c"]),
        json!({"ab": "c"}),
        json!({"a": "bc"}),
        json!(["ab", "c", null]),
        json!("abc"),
        json!(1),
        json!("1"),
        json!(true),
    ];
    for (i, a) in forms.iter().enumerate() {
        for (j, b) in forms.iter().enumerate() {
            assert_eq!(keyed.digest(a) == keyed.digest(b), i == j, "{a} {b}");
        }
    }
}

/// What is not known.
fn unknown() -> Listed {
    Listed::Unknown("forbidden".to_owned())
}

fn config_map(namespace: &str, name: &str, value: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}, "data": {"value": value}})
}

fn listed(objects: &[Value]) -> Listed {
    let kind = kind("", "ConfigMap");
    Listed::Known(objects.iter().filter_map(|o| record(&kind, o)).collect())
}

fn compared(blue: Listed, green: Listed, accepted: &[Acceptance]) -> KindReport {
    compare(&kind("", "ConfigMap"), "configmaps", blue, green, accepted)
}

#[test]
fn what_cannot_be_listed_is_unknown_and_neither_empty_nor_equal() {
    let some = listed(&[config_map("shop", "a", "1")]);
    for (blue, green) in [
        (unknown(), some.clone()),
        (some.clone(), unknown()),
        (unknown(), unknown()),
    ] {
        let report = compared(blue, green, &[]);
        assert!(report.unknown.as_deref().unwrap().contains("forbidden"));
        assert_eq!((report.missing, report.extra), (0, 0));
        let whole = Report::new(vec![report], vec![], &[]);
        assert!(!whole.is_known() && !whole.differs());
    }
    // A kind that is not served is known to have no objects.
    assert_eq!(compared(some.clone(), Listed::Absent, &[]).missing, 1);
    assert_eq!(compared(Listed::Absent, some, &[]).extra, 1);
}

#[test]
fn a_difference_is_accepted_by_name_with_its_reason_and_no_other_is() {
    let blue = [
        config_map("shop", "a", "1"),
        config_map("shop", "b", "1"),
        config_map("other", "a", "1"),
    ];
    let green = [config_map("shop", "b", "2")];
    let accepted = |kind: &str, namespace: &str, name: &str| Acceptance {
        kind: KindAsked(kind.to_owned()),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        reason: "known".to_owned(),
    };
    let report = compared(
        listed(&blue),
        listed(&green),
        &[
            accepted("configmap", "shop", "a"),
            accepted("ConfigMap", "shop", "b"),
        ],
    );
    assert_eq!(
        (report.missing, report.different, report.accepted.len()),
        (1, 0, 2)
    );
    assert!(report.accepted.iter().all(|f| f.accepted == "known"));
    assert_eq!(report.findings[0].namespace, "other");
    let report = compared(
        listed(&blue),
        listed(&green),
        &[accepted("Secret", "shop", "a"), accepted("ConfigMap", "", "b")],
    );
    assert_eq!(
        (report.missing, report.different, report.accepted.len()),
        (2, 1, 0)
    );
    let all = [
        accepted("configmaps", "shop", "a"),
        accepted("ConfigMap", "shop", "c"),
        accepted("ConfigMaps.apps", "shop", "a"),
    ];
    let whole = Report::new(vec![compared(listed(&blue), listed(&green), &all)], vec![], &all);
    assert_eq!(whole.unused, ["ConfigMap/shop/c", "ConfigMaps.apps/shop/a"]);
    let whole = Report::new(vec![compared(unknown(), unknown(), &all)], vec![], &all[..2]);
    assert!(whole.unused.is_empty(), "of what is unknown nothing can be said");
}

#[test]
fn a_difference_that_is_gone_when_it_is_looked_at_closely_is_none() {
    let (blue, green) = (config_map("shop", "a", "1"), config_map("shop", "a", "2"));
    let mut report = compared(listed(&[blue]), listed(&[green]), &[]);
    report.explain("shop", "a", vec!["data.value".to_owned()]);
    assert_eq!(report.findings[0].fields, ["data.value"]);
    report.explain("shop", "a", vec![]);
    assert_eq!((report.different, report.findings.len()), (0, 0));
}

#[test]
fn all_are_counted_and_a_sample_is_named() {
    let blue: Vec<_> = (0..100)
        .map(|i| config_map("shop", &format!("c{i:03}"), "1"))
        .collect();
    let report = compared(listed(&blue), listed(&[]), &[]);
    assert_eq!((report.missing, report.findings.len()), (100, SAMPLE));
}

fn inventory() -> impl Strategy<Value = Vec<(String, String, String)>> {
    prop::collection::btree_map(("[ab]", "[a-z]{1,3}"), "[a-z]{0,3}", 0..30)
        .prop_map(|all| all.into_iter().map(|((ns, name), v)| (ns, name, v)).collect())
}

fn objects(all: &[(String, String, String)]) -> Vec<Value> {
    all.iter().map(|(ns, name, v)| config_map(ns, name, v)).collect()
}

/// Any JSON, as a custom resource may hold it.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,3}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_cluster_equals_itself_in_whatever_order_it_is_listed(
        all in inventory().prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let (blue, green) = all;
        let report = compared(listed(&objects(&blue)), listed(&objects(&green)), &[]);
        prop_assert_eq!((report.blue, report.green), (blue.len(), blue.len()));
        let whole = Report::new(vec![report], vec![], &[]);
        prop_assert!(whole.is_known() && !whole.differs());
    }

    #[test]
    fn each_single_change_is_found_and_nothing_else(all in inventory(), at in any::<prop::sample::Index>(), change in 0..3) {
        prop_assume!(!all.is_empty());
        let at = at.index(all.len());
        let mut green = all.clone();
        let (namespace, name, _) = all[at].clone();
        let outcome = match change {
            0 => { green.remove(at); Outcome::Missing }
            1 => { green[at].2.push('!'); Outcome::Different }
            _ => { green.push(("a".to_owned(), "new-one".to_owned(), String::new())); Outcome::Extra }
        };
        let report = compared(listed(&objects(&all)), listed(&objects(&green)), &[]);
        prop_assert_eq!(report.findings.len(), 1);
        let found = &report.findings[0];
        prop_assert_eq!(found.outcome, outcome);
        if change < 2 {
            prop_assert_eq!((&found.namespace, &found.name), (&namespace, &name));
        }
    }

    #[test]
    fn what_a_custom_resource_holds_is_compared_whatever_it_is(spec in json_value(), other in json_value()) {
        let kind = kind("example.com", "Shop");
        let object = |spec: &Value| json!({"metadata": {"namespace": "shop", "name": "a"}, "spec": spec});
        let (blue, green) = (object(&spec), object(&other));
        prop_assert_eq!(equal(&kind, &blue, &green), spec == other);
        let normal = |o: &Value| normalise(&kind, o.clone()).unwrap().unwrap().value;
        prop_assert_eq!(fields(&normal(&blue), &normal(&green), 3).is_empty(), spec == other);
    }

    #[test]
    fn what_is_normal_stays_as_it_is(spec in json_value(), which in any::<prop::sample::Index>()) {
        let mut all = all_kinds();
        let (kind, mut object, _) = all.swap_remove(which.index(all.len()));
        object["extra"] = spec;
        let once = normalise(&kind, object).unwrap().unwrap();
        let mut again = once.value.clone();
        again["metadata"]["name"] = json!(once.name);
        again["metadata"]["namespace"] = json!(once.namespace);
        if let Some(stored) = again.get("storedVersions").cloned() {
            again["status"] = json!({"storedVersions": stored});
        }
        prop_assert_eq!(normalise(&kind, again).unwrap().unwrap().value, once.value);
    }
}
