use std::path::Path;

use super::*;

fn host() -> (tempfile::TempDir, Host) {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
    fs::create_dir_all(host.manifests()).unwrap();
    (root, host)
}

fn chore() -> Chore {
    Chore {
        name: "verify".to_owned(),
        image: "registry.k8s.io/etcd:3.6.11-0".to_owned(),
        command: [
            "etcdutl",
            "snapshot",
            "restore",
            "/work/snapshot.db",
            "--data-dir=/work/data",
        ]
        .map(str::to_owned)
        .to_vec(),
        environment: vec![("GOMEMLIMIT".to_owned(), "1".to_owned())],
        mounts: vec![
            Mount {
                host: "/var/lib/lockkeeper/work".into(),
                inside: "/work".into(),
                read_only: false,
            },
            Mount::same("/etc/kubernetes/pki/etcd", true),
        ],
        scratch: vec!["/scratch".into()],
        host_network: true,
        memory_limit: Some(1024 * 1024 * 1024),
        cpu_limit: Some(500),
        critical: false,
    }
}

/// A runtime that nobody answers for.
fn no_runtime() -> Cri {
    Cri::new("unix:///nonexistent/containerd.sock").unwrap()
}

#[test]
fn the_pod_of_a_chore() {
    let text = pod::render(&chore(), "lockkeeper-chore-verify-0123abcd", "0123abcd").unwrap();
    insta::assert_snapshot!(text);
    let critical = Chore {
        critical: true,
        ..chore()
    };
    let text = pod::render(&critical, "p", "u").unwrap();
    assert!(text.contains("priorityClassName: system-node-critical"), "{text}");
}

#[test]
fn a_program_that_ended_well_has_a_word_and_a_server_that_ended_has_none() {
    let status = ContainerStatus {
        state: EXITED,
        ..ContainerStatus::default()
    };
    assert_eq!(
        judge(&chore(), Stage::Ended, &status, "done\n").unwrap(),
        "done\n"
    );
    let error = judge(&chore(), Stage::Runs, &status, "bye\n")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "etcdutl snapshot restore /work/snapshot.db ended with exit code 0: bye"
    );
}

#[test]
fn a_failure_says_what_the_program_said_and_a_kill_for_memory_says_so() {
    let mut status = ContainerStatus {
        state: EXITED,
        exit_code: 1,
        ..ContainerStatus::default()
    };
    let log = "Error: expected sha256 [1 2], got [3 4]\nUsage:\n";
    let error = judge(&chore(), Stage::Ended, &status, log)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("exit code 1: expected sha256 [1 2], got [3 4]"),
        "{error}"
    );
    status.reason = "OOMKilled".to_owned();
    let error = judge(&chore(), Stage::Ended, &status, "")
        .unwrap_err()
        .to_string();
    assert!(error.contains("ran out of the 1024 MiB"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_manifest_is_taken_off_whatever_happens() {
    let (_root, host) = host();
    let count = || fs::read_dir(host.manifests()).unwrap().count();

    let cancel = CancellationToken::new();
    let cri = no_runtime();
    let chore = chore();
    {
        let mut run = std::pin::pin!(chore.run(&host, &cri, Duration::from_secs(5), &cancel));
        let on = tokio::time::timeout(Duration::from_millis(10), run.as_mut()).await;
        assert!(on.is_err());
        assert_eq!(count(), 1);
    }
    // Dropped.
    assert_eq!(count(), 0);

    let late = chore.run(&host, &cri, Duration::from_secs(5), &cancel).await;
    assert!(matches!(late, Err(ChoreError::Deadline { .. })), "{late:?}");
    assert_eq!(count(), 0);

    cancel.cancel();
    let cancelled = chore.stand(&host, &cri, Duration::from_secs(5), &cancel).await;
    assert!(matches!(cancelled, Err(ChoreError::Cancelled)), "{cancelled:?}");
    assert_eq!(count(), 0);
}

#[test]
fn what_a_killed_process_left_is_cleared_and_nothing_else() {
    let (_root, host) = host();
    for file in [
        "lockkeeper-chore-verify.yaml",
        "lockkeeper-chore-boot.yaml",
        "lockkeeper-guard.yaml",
        "etcd.yaml",
    ] {
        fs::write(host.manifests().join(file), "kind: Pod").unwrap();
    }
    clear(&host).unwrap();
    let mut left: Vec<_> = fs::read_dir(host.manifests())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["etcd.yaml", "lockkeeper-guard.yaml"]);
}
