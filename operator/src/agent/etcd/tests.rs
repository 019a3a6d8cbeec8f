use super::*;

#[tokio::test]
async fn a_node_without_an_etcd_manifest_has_no_member() {
    let root = tempfile::tempdir().unwrap();
    let member = EtcdMember::from_host(root.path(), None);
    assert_eq!(member.observe().await, None);
    let error = member.snapshot(None).await.unwrap_err();
    assert!(matches!(error, EtcdError::NoMember { .. }), "{error}");
}

#[tokio::test]
async fn what_cannot_be_asked_is_unknown_and_says_why() {
    let root = tempfile::tempdir().unwrap();
    let path = host::manifest_path(root.path());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let member = EtcdMember::from_host(root.path(), None);

    std::fs::write(&path, "no: pod").unwrap();
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::Unknown);
    assert!(seen.message.contains("has no container"), "{}", seen.message);

    let pod = "spec: {containers: [{name: etcd, command: [etcd, --cert-file=/etc/kubernetes/pki/etcd/server.crt]}]}";
    std::fs::write(&path, pod).unwrap();
    let seen = member.observe().await.unwrap();
    assert_eq!(seen.healthy, Tristate::Unknown);
    assert!(
        seen.message.contains("healthcheck-client.crt"),
        "{}",
        seen.message
    );
}

#[tokio::test]
async fn a_member_that_refuses_or_hangs_is_unhealthy_within_its_deadline() {
    let root = tempfile::tempdir().unwrap();
    let path = host::manifest_path(root.path());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "spec: {containers: [{name: etcd}]}").unwrap();
    // Accepts, because the kernel does, and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let deaf_at = deaf.local_addr().unwrap().to_string();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone_at = gone.local_addr().unwrap().to_string();
    drop(gone);
    for (address, says) in [(deaf_at, "within 2.5 s"), (gone_at, "refused")] {
        let began = std::time::Instant::now();
        let seen = EtcdMember::from_host(root.path(), Some(&address))
            .observe()
            .await
            .unwrap();
        assert_eq!(seen.healthy, Tristate::False);
        assert!(seen.message.contains(says), "{}", seen.message);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    }
}

#[test]
fn little_is_on_its_way_to_a_reader_that_keeps_a_pace() {
    let mib = 1024 * 1024;
    assert_eq!(ahead(None), MOST_AHEAD);
    assert_eq!(ahead(Some(i64::MAX as u64)), MOST_AHEAD);
    assert_eq!(ahead(Some(65536)), LEAST_AHEAD);
    assert_eq!(ahead(Some(64 * mib)), LEAST_AHEAD);
    assert_eq!(ahead(Some(200 * mib)), 419_430);
}
