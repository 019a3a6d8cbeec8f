//! What a comparison of two large clusters costs, against what people do by hand.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use kube::Client;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::world::{self, Pair, Side};

const NAMESPACES: usize = 20;
const ROUNDS: usize = 3;
/// What kubectl and Lockkeeper both read.
const KINDS: &str = "configmaps,secrets,services,serviceaccounts,deployments.apps";

/// Prints figures, each of one run. Optimized, or they are of the compiler:
/// `cargo test --release -p lockkeeper --test parity -- --ignored --nocapture figures`.
///
/// `LOCKKEEPER_TEST_OBJECTS` is how many objects each cluster has (20000), `LOCKKEEPER_TEST_KUBECTL` the kubectl that
/// does the same by hand: `kubectl get … -o yaml` of both clusters at the same time, then `diff` of the two.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn figures() {
    let wanted: usize = std::env::var("LOCKKEEPER_TEST_OBJECTS").map_or(20_000, |n| n.parse().unwrap());
    let pair = Pair::start().await;
    let began = Instant::now();
    let each = wanted / NAMESPACES;
    tokio::join!(fill(&pair, Side::Blue, each), fill(&pair, Side::Green, each));
    println!(
        "{wanted} objects in each cluster after {:.0} s",
        began.elapsed().as_secs_f64()
    );
    differ(&pair).await;
    let kinds: Vec<_> = KINDS
        .split(',')
        .flat_map(|kind| ["--kind", kind])
        .chain(["-o", "json"])
        .collect();
    let (mut ours, mut by_hand, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let ran = pair.parity(pair.admin_config(Side::Green), &kinds).await;
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        check(&pair, &serde_json::from_slice(&ran.stdout).unwrap(), wanted);
        let hand = hand(&pair).await;
        println!(
            "round {round}: lockkeeper parity {:.2} s, {:.1} MiB; by hand {:.2} s (the two kubectls {:.2} s, {:.0} MiB the larger, {:.0} MiB of YAML): {:.3} of it",
            ran.took.as_secs_f64(),
            mib(ran.peak),
            hand.whole.as_secs_f64(),
            hand.kubectl.as_secs_f64(),
            mib(hand.peak),
            mib(hand.bytes / 1024),
            ran.took.as_secs_f64() / hand.whole.as_secs_f64()
        );
        ours.push(ran.took);
        by_hand.push(hand.whole);
        peaks.push(ran.peak);
    }
    let everything = pair.parity(pair.admin_config(Side::Green), &["-o", "json"]).await;
    println!(
        "every kind: {:.2} s, {:.1} MiB",
        everything.took.as_secs_f64(),
        mib(everything.peak)
    );
    let median = |all: &mut Vec<Duration>| {
        all.sort();
        all[all.len() / 2].as_secs_f64()
    };
    let (ours, by_hand) = (median(&mut ours), median(&mut by_hand));
    let peak = mib(peaks.into_iter().max().unwrap());
    println!(
        "medians: {ours:.2} s (under 20), {peak:.1} MiB the highest (under 150), {:.3} of by hand (at most 0.5)",
        ours / by_hand
    );
    assert!(
        ours < 20. && peak < 150. && ours / by_hand <= 0.5,
        "a goal is missed"
    );
}

fn mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap()) / 1024.
}

/// Half ConfigMaps, a quarter Secrets, the rest Services, accounts and Deployments, as applications have them.
fn object(at: usize) -> (&'static str, &'static str, Value) {
    let name = format!("app-{at:05}");
    let text: String = (0..30)
        .map(|line| format!("setting.{line}.of.{name} = value number {line}\n"))
        .collect();
    let labels = json!({"app": name, "app.kubernetes.io/part-of": "shop"});
    let metadata = json!({"name": name, "labels": labels, "annotations": {"owner": "shop@example.com"}});
    match at % 20 {
        0..10 => (
            "/api/v1",
            "configmaps",
            json!({"metadata": metadata, "data": {"web.conf": text, "level": "info"}}),
        ),
        10..15 => (
            "/api/v1",
            "secrets",
            json!({"metadata": metadata, "stringData": {"password": name, "config": text}}),
        ),
        15..17 => ("/apis/apps/v1", "deployments", world::deployment(&name, 2)),
        17..19 => (
            "/api/v1",
            "services",
            json!({"metadata": metadata, "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
        ),
        _ => ("/api/v1", "serviceaccounts", json!({"metadata": metadata})),
    }
}

async fn fill(pair: &Pair, side: Side, each: usize) {
    for namespace in 0..NAMESPACES {
        pair.namespace(side, &format!("team-{namespace:02}")).await;
    }
    let client = pair.client(side);
    let all = (0..NAMESPACES).flat_map(|namespace| (0..each).map(move |at| (namespace, at)));
    stream::iter(all)
        .for_each_concurrent(24, |(namespace, at)| {
            let client = client.clone();
            async move {
                let (base, plural, object) = object(at);
                let path = format!("{base}/namespaces/team-{namespace:02}/{plural}");
                world::create(&client, &path, &object).await;
                if plural == "deployments" {
                    ready(&client, &format!("{path}/app-{at:05}/status")).await;
                }
            }
        })
        .await;
}

/// As a controller would say it.
async fn ready(client: &Client, path: &str) {
    let status = json!({"status": {
        "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 2,
        "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable", "message": "fine"}]
    }});
    let request = http::Request::patch(path)
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(&status).unwrap());
    client.request::<Value>(request.unwrap()).await.unwrap();
}

/// 5 missing, 7 different, 3 extra, 1 not ready.
async fn differ(pair: &Pair) {
    let green = pair.client(Side::Green);
    for at in 0..5 {
        let path = format!("/api/v1/namespaces/team-{at:02}/configmaps/app-00000");
        let request = http::Request::delete(path).body(vec![]);
        green.request::<Value>(request.unwrap()).await.unwrap();
    }
    for at in 5..12 {
        let path = format!("/api/v1/namespaces/team-{at:02}/secrets/app-00010");
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(serde_json::to_vec(&json!({"data": {"password": "b3RoZXI="}})).unwrap());
        green.request::<Value>(request.unwrap()).await.unwrap();
    }
    for at in 0..3 {
        let path = format!("/api/v1/namespaces/team-{at:02}/configmaps");
        world::create(&green, &path, &json!({"metadata": {"name": "only-here"}})).await;
    }
    let request = http::Request::patch("/apis/apps/v1/namespaces/team-00/deployments/app-00015/status")
        .header("content-type", "application/merge-patch+json")
        .body(serde_json::to_vec(&json!({"status": {"availableReplicas": 1}})).unwrap());
    green.request::<Value>(request.unwrap()).await.unwrap();
}

/// Exactly what was made different, of all objects.
fn check(pair: &Pair, report: &Value, wanted: usize) {
    let of = |kind| pair.counts(report, kind).1;
    let wanted = u64::try_from(wanted).unwrap();
    let kinds = [
        "ConfigMap",
        "Secret",
        "Service",
        "ServiceAccount",
        "Deployment.apps",
    ];
    assert_eq!(kinds.map(|k| of(k)[0]).iter().sum::<u64>(), wanted, "{report:#}");
    assert_eq!(of("ConfigMap")[2..], [5, 0, 0, 3], "{report:#}");
    assert_eq!(of("Secret")[2..], [0, 7, 0, 0], "{report:#}");
    assert_eq!(of("Deployment.apps")[2..], [0, 0, 1, 0], "{report:#}");
    let fields = &pair.counts(report, "Secret").0[0]["fields"];
    assert_eq!(*fields, json!(["data.password"]));
}

struct Hand {
    whole: Duration,
    kubectl: Duration,
    peak: u64,
    bytes: u64,
}

async fn hand(pair: &Pair) -> Hand {
    let kubectl = std::env::var("LOCKKEEPER_TEST_KUBECTL").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let get = |side: Side, to: &Path| {
        let mut command = Command::new("sh");
        // A redirection, as a person writes it; `exec`, so that the memory looked at is kubectl's.
        command.args([
            "-c",
            "exec \"$1\" --kubeconfig \"$2\" get \"$3\" --all-namespaces -o yaml >\"$4\"",
            "sh",
            &kubectl,
        ]);
        command.arg(pair.admin_config(side)).arg(KINDS).arg(to);
        world::run(command)
    };
    let (blue, green) = (folder.path().join("blue.yaml"), folder.path().join("green.yaml"));
    let (a, b) = tokio::join!(get(Side::Blue, &blue), get(Side::Green, &green));
    assert_eq!((a.code, b.code), (0, 0), "{} {}", a.stderr, b.stderr);
    let kubectl = began.elapsed();
    let mut diff = Command::new("diff");
    let out = File::create(folder.path().join("diff")).unwrap();
    let status = diff
        .arg(&blue)
        .arg(&green)
        .stdout(Stdio::from(out))
        .status()
        .await;
    assert_eq!(status.unwrap().code(), Some(1));
    Hand {
        whole: began.elapsed(),
        kubectl,
        peak: a.peak.max(b.peak),
        bytes: std::fs::metadata(&blue).unwrap().len(),
    }
}
