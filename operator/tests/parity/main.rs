//! `lockkeeper parity` and cutovers between two real clusters, each an etcd and an API server.
//!
//! Ignored unless asked for, since they need binaries:
//! `LOCKKEEPER_TEST_ETCD=… LOCKKEEPER_TEST_APISERVER=… LOCKKEEPER_TEST_EXTERNAL_DNS=… cargo test -p lockkeeper --test parity -- --ignored --skip figures`

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // Tests and their helpers only.

#[path = "../real/cluster.rs"]
#[allow(dead_code)] // Shared with tests that kill servers.
mod cluster;
mod cutover;
mod external_dns;
mod figures;
mod gates;
mod gates_tls;
mod kubelet;
mod prometheus;
mod traffic_job;
mod world;

use serde_json::json;

use world::{Pair, Side};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn two_clusters_are_equal_until_something_is_changed_in_one() {
    let pair = Pair::start().await;
    for side in [Side::Blue, Side::Green] {
        pair.namespace(side, "shop").await;
        pair.create(
            side,
            "/api/v1/namespaces/shop/configmaps",
            &json!({"metadata": {"name": "settings"}, "data": {"a.b": "1"}}),
        )
        .await;
        pair.create(
            side,
            "/api/v1/namespaces/shop/secrets",
            &json!({"metadata": {"name": "key"}, "stringData": {"key": "hunter2"}}),
        )
        .await;
        // Each cluster gives addresses of its own.
        pair.create(side, "/api/v1/namespaces/shop/services", &json!({
            "metadata": {"name": "web"}, "spec": {"type": "NodePort", "ports": [{"port": 80}], "selector": {"app": "web"}}
        })).await;
        pair.create(
            side,
            "/apis/storage.k8s.io/v1/storageclasses",
            &json!({"metadata": {"name": "fast"}, "provisioner": "csi.example.com"}),
        )
        .await;
    }
    let (code, report) = pair.compare(&[]).await;
    assert_eq!(code, 0, "{report:#}");
    let (_, all) = pair.counts(&report, "Secret");
    assert_eq!(all, [1, 1, 0, 0, 0, 0]);
    changes_are_found(&pair).await;
    some_are_accepted_and_some_not_looked_at(&pair).await;
    what_cannot_be_read_is_not_equal(&pair).await;
}

async fn changes_are_found(pair: &Pair) {
    pair.replace_data(Side::Green, "secrets/key", &json!({"key": "aHVudGVyMw=="}))
        .await;
    pair.create(
        Side::Blue,
        "/apis/apps/v1/namespaces/shop/deployments",
        &world::deployment("web", 1),
    )
    .await;
    pair.create(
        Side::Green,
        "/apis/apps/v1/namespaces/shop/deployments",
        &world::deployment("web", 1),
    )
    .await;
    pair.create(
        Side::Blue,
        "/apis/scheduling.k8s.io/v1/priorityclasses",
        &json!({"metadata": {"name": "high"}, "value": 10}),
    )
    .await;
    let (code, report) = pair.compare(&[]).await;
    assert_eq!(code, 1, "{report:#}");
    let (findings, counts) = pair.counts(&report, "Secret");
    assert_eq!(counts, [1, 1, 0, 1, 0, 0]);
    assert_eq!(findings[0]["fields"], json!(["data.key"]));
    assert_eq!(pair.counts(&report, "PriorityClass.scheduling.k8s.io").1[2], 1);
    assert_eq!(
        pair.counts(&report, "Deployment.apps").1,
        [1, 1, 0, 0, 1, 0],
        "no controller runs here"
    );
    let text = report.to_string();
    for secret in ["hunter", "aHVudGVy"] {
        assert!(!text.contains(secret), "{text}");
    }
}

async fn some_are_accepted_and_some_not_looked_at(pair: &Pair) {
    let accept = [
        "--accept",
        "Secret/shop/key=rotated",
        "--accept",
        "PriorityClass//high=not needed there",
        "--accept",
        "Deployment/shop/web=started by the cutover",
    ];
    let (code, report) = pair.compare(&accept).await;
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(pair.compare(&["--kind", "ConfigMap", "-n", "shop"]).await.0, 0);
    assert_eq!(
        pair.compare(&["--kind", "Secret", "--selector", "app=other"])
            .await
            .0,
        0
    );
    assert_eq!(pair.compare(&["--kind", "Secrte"]).await.0, 2);
}

async fn what_cannot_be_read_is_not_equal(pair: &Pair) {
    // Credentials that may not list one kind: unknown, and nothing about the others.
    pair.reader(Side::Green, &["configmaps", "services"]).await;
    let (code, report) = pair
        .compare_as_reader(&["--kind", "ConfigMap", "--kind", "Secret"])
        .await;
    assert_eq!(code, 2, "{report:#}");
    let unknown = pair.kind(&report, "Secret")["unknown"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        unknown.starts_with("green: ") && unknown.contains("forbidden"),
        "{unknown}"
    );
    assert_eq!(pair.counts(&report, "ConfigMap").1, [1, 1, 0, 0, 0, 0]);

    let (code, words) = pair.same_twice().await;
    assert_eq!(code, 2);
    assert!(words.contains("the same cluster"), "{words}");
    let (code, words) = pair.without_green().await;
    assert_eq!(code, 2);
    assert!(
        words.contains("could not be told") && words.contains("green: "),
        "{words}"
    );
}
