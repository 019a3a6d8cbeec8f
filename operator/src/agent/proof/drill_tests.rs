use super::*;

fn server(text: &str) -> ApiServer {
    let manifest = manifest::parse(Path::new("m"), Component::KubeApiserver, text.as_bytes()).unwrap();
    ApiServer { manifest }
}

fn node() -> String {
    include_str!("../testdata/kube-apiserver.yaml")
        .replace(
            "    - --secure-port=6443\n",
            "    - --secure-port=6443\n    - --bind-address=10.77.0.11\n    - --audit-log-path=/var/log/kubernetes/audit.log\n    - --encryption-provider-config=/etc/kubernetes/enc/config.yaml\n    - --etcd_servers=https://10.77.0.12:2379\n    - --authorization-config=/etc/kubernetes/authz.yaml\n    - --token-auth-file\n    - /etc/kubernetes/tokens.csv\n    - --audit_webhook_config_file=/etc/kubernetes/audit-hook.yaml\n",
        )
        .replace(
            "    volumeMounts:\n",
            "    volumeMounts:\n    - mountPath: /etc/kubernetes/enc\n      name: enc\n    - mountPath: /scratch\n      name: scratch\n",
        )
        .replace(
            "  volumes:\n",
            "  volumes:\n  - hostPath: {path: /etc/kubernetes/enc, type: DirectoryOrCreate}\n    name: enc\n  - emptyDir: {}\n    name: scratch\n",
        )
}

#[test]
fn it_reads_as_the_nodes_own_server_does_and_reaches_nothing_else() {
    let mut chore = Chore::default();
    server(&node())
        .made_harmless(&mut chore, "https://127.0.0.1:40000", 40_001)
        .unwrap();
    insta::assert_snapshot!(chore.command.join("\n"));
    let line = chore.command.join(" ");
    // What must hold whatever the golden file says.
    for of_the_node in [
        "2379",
        "6443",
        "10.77",
        "audit",
        "authz",
        "/etc/kubernetes/tokens.csv",
    ] {
        assert!(!line.contains(of_the_node), "{of_the_node}: {line}");
    }
    assert!(
        line.contains("--encryption-provider-config=/etc/kubernetes/enc/config.yaml"),
        "{line}"
    );
    assert!(
        chore.mounts.iter().all(|mount| mount.read_only),
        "{:?}",
        chore.mounts
    );
    assert!(chore.mounts.contains(&Mount::same("/etc/kubernetes/enc", true)));
    assert_eq!(chore.scratch, [Path::new("/scratch")]);
}

#[test]
fn a_command_that_is_not_the_binary_is_left_alone() {
    let words = ["/bin/sh", "-c", "kube-apiserver"].map(str::to_owned);
    assert_eq!(harmless(&words, "https://127.0.0.1:1", 2), None);
}

#[test]
fn only_the_minor_that_wrote_a_backup_reads_it() {
    let backup = |version: Option<&str>| -> store::Manifest {
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": "i", "name": "n", "uid": "u", "node": "n", "clusterId": "c", "memberId": "m",
            "etcdVersion": "3.6.6", "kubernetesVersion": version, "revision": 1, "sizeBytes": 1, "sha256": "s",
            "partSizeBytes": 1, "startedAt": "2026-11-21T15:00:00Z", "completedAt": "2026-11-21T15:00:01Z",
        }))
        .unwrap()
    };
    let server = server(&node());
    server.clone().fits(&backup(Some("v1.35.0"))).unwrap();
    server.clone().fits(&backup(None)).unwrap();
    let error = server.fits(&backup(Some("v1.36.3"))).unwrap_err();
    assert_eq!(error.reason(), "OtherMinor");
}
