//! Single objects: what counts of them, and what does not.

use proptest::prelude::*;

use super::kinds::{MADE_BY_THE_CLUSTER, all_kinds};
use super::*;

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
        let found = super::super::ready::not_ready(&kind(group, name), &object);
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
