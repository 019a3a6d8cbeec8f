use super::*;
use std::path::Path;

fn parsed(component: Component, text: &str) -> Manifest {
    manifest::parse(Path::new("m"), component, text.as_bytes()).unwrap()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

#[test]
fn the_pod_of_a_node_with_flags_of_its_own() {
    let api = include_str!("testdata/kube-apiserver.yaml")
        .replace(
            "    - --secure-port=6443\n",
            "    - --secure-port=6443\n    - --bind-address=10.77.0.11\n    - --audit-log-path=/var/log/kubernetes/audit.log\n    - --feature-gates=HonorPVReclaimPolicy=true\n    - --etcd_servers=https://10.77.0.12:2379\n",
        )
        .replace(
            "    volumeMounts:\n",
            "    volumeMounts:\n    - mountPath: /var/log/kubernetes\n      name: audit\n",
        )
        .replace(
            "  volumes:\n",
            "  volumes:\n  - hostPath: {path: /var/log/kubernetes, type: DirectoryOrCreate}\n    name: audit\n",
        );
    let manifests = [
        parsed(Component::KubeApiserver, &api),
        parsed(
            Component::KubeControllerManager,
            include_str!("testdata/kube-controller-manager.yaml"),
        ),
        parsed(
            Component::KubeScheduler,
            include_str!("testdata/kube-scheduler.yaml"),
        ),
    ];
    let parts: Vec<_> = Component::ALL
        .into_iter()
        .zip(&manifests)
        .map(|(component, manifest)| Part {
            component,
            manifest,
            target_image: manifest::with_tag(&manifest.image, "v1.36.3").unwrap(),
        })
        .collect();
    let (text, cast) = render(&parts, "/var/lib/lockkeeper/rehearsal", "1").unwrap();
    assert_eq!(cast.len(), 6);
    insta::assert_snapshot!(text);
    // What must hold whatever the golden file says.
    let pod: Value = serde_yaml::from_str(&text).unwrap();
    assert!(pod["spec"].get("hostNetwork").is_none());
    assert!(!text.contains("10.77.0.12") && !text.contains("2379"));
    assert!(!text.contains("conf\n    - --leader") && !text.contains("kubeconfig=/etc/kubernetes"));
    for container in pod["spec"]["containers"].as_sequence().unwrap() {
        for mount in container["volumeMounts"].as_sequence().unwrap() {
            let scratch = mount["mountPath"] == SCRATCH;
            assert_eq!(mount.get("readOnly").is_some(), !scratch, "{mount:?}");
        }
    }
}

#[test]
fn no_flag_can_lead_back_to_the_real_cluster() {
    let rewritten = rewrite(
        Component::KubeControllerManager,
        Role::Target,
        &words(&[
            "/usr/local/bin/kube-controller-manager",
            "--kubeconfig",
            "/etc/kubernetes/controller-manager.conf",
            "--authorization_kubeconfig=/etc/kubernetes/controller-manager.conf",
            "--master=https://10.0.0.1:6443",
            "--leader-elect-resource-name",
            "kube-controller-manager",
            "--controllers=*",
            "--",
        ]),
    )
    .unwrap();
    assert_eq!(
        rewritten,
        words(&[
            "/usr/local/bin/kube-controller-manager",
            "--secure-port=20257",
            "--kubeconfig=/lockkeeper-rehearsal/kubeconfig",
            "--authorization-kubeconfig=/lockkeeper-rehearsal/kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect-resource-name=lockkeeper-rehearsal",
            "--controllers=*",
            "--",
        ])
    );
}

#[test]
fn a_command_behind_a_shell_is_not_rehearsed() {
    for command in [&["/bin/sh", "-c", "kube-apiserver --etcd-servers=x"][..], &[][..]] {
        assert_eq!(
            rewrite(Component::KubeApiserver, Role::Target, &words(command)),
            Err(RehearsalError::Command(Component::KubeApiserver))
        );
    }
}

#[test]
fn a_schedulers_configuration_loses_its_kubeconfig_and_its_lease() {
    let made = scheduler_config(
        "kind: KubeSchedulerConfiguration\nclientConnection:\n  kubeconfig: /etc/kubernetes/scheduler.conf\n  qps: 5\nleaderElection:\nprofiles: []\n",
    )
    .unwrap();
    let value: Value = serde_yaml::from_str(&made).unwrap();
    assert_eq!(
        value["clientConnection"]["kubeconfig"],
        Value::from("/lockkeeper-rehearsal/kubeconfig")
    );
    assert_eq!(value["clientConnection"]["qps"], Value::from(5));
    assert_eq!(value["leaderElection"]["resourceName"], Value::from(POD));
    assert!(scheduler_config("[]").is_err());
}

#[test]
fn an_end_for_want_of_a_cluster_is_expected_and_one_for_a_flag_is_not() {
    for (reason, expected) in [
        ("error creating storage factory: context deadline exceeded", true),
        (
            "unable to load configmap based request-header-client-ca-file: Get \"https://127.0.0.1:1/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication\": dial tcp 127.0.0.1:1: connect: connection refused",
            true,
        ),
        ("unrecognized feature gate: HonorPVReclaimPolicy", false),
        ("unknown flag: --cloud-provider", false),
        ("", false),
    ] {
        assert_eq!(is_expected_end(reason), expected, "{reason}");
    }
}
