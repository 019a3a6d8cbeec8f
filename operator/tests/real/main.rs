//! The operator's frame against real API servers and a real etcd.
//!
//! Ignored unless asked for, since they need binaries:
//! `LOCKKEEPER_TEST_ETCD=… LOCKKEEPER_TEST_APISERVER=… cargo test -p lockkeeper --test real -- --ignored --test-threads 1`

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // Tests and their helpers only.

mod cluster;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams, PostParams};
use lockkeeper::operator::gates::{Gate, GateCounter, GateProbe, GateRound, Outcome, Server};
use lockkeeper::operator::leader::{Candidate, LEASE, identity, run_while_leader};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use cluster::{Cluster, Process};

async fn seconds(n: u64) {
    sleep(Duration::from_secs(n)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn leading_survives_api_servers_that_are_killed_frozen_and_restarted_in_turn() {
    let mut cluster = Cluster::start(2).await;
    let api = cluster.api_servers();
    let changes = Arc::new(Mutex::new(vec![]));
    let observer = Arc::clone(&changes);
    let candidate = Candidate::new(
        api.client(),
        api.endpoints().clone(),
        "default",
        identity("a"),
        Arc::new(move |epoch| observer.lock().unwrap().push(epoch)),
    );
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(run_while_leader(
        candidate,
        shutdown.clone(),
        |leadership| async move {
            leadership.token.cancelled().await;
            Ok(())
        },
    ));
    seconds(3).await;
    for _ in 0..2 {
        for index in [0, 1] {
            cluster.kill_server(index);
            seconds(12).await;
            cluster.start_server(index).await;
        }
    }
    for index in [0, 1] {
        let server = cluster.servers[index].as_ref().unwrap();
        server.signal(Signal::STOP);
        seconds(25).await;
        server.signal(Signal::CONT);
        seconds(12).await;
    }
    assert_eq!(*changes.lock().unwrap(), [Some(1)], "leadership was lost");
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let leases: Api<Lease> = Api::default_namespaced(api.client());
    let spec = leases.get(LEASE).await.unwrap().spec.unwrap();
    assert_eq!((spec.holder_identity, spec.lease_transitions), (None, Some(1)));
}

struct Operator {
    process: Process,
    metrics: String,
}

fn operator(cluster: &Cluster, name: &str) -> Operator {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let metrics = format!("127.0.0.1:{port}");
    let process = Process::start(
        Command::new(cluster.lockkeeper())
            .args([
                "operator",
                "--identity",
                name,
                "--metrics-address",
                &metrics,
                "--kubeconfig",
            ])
            .arg(cluster.kubeconfig())
            .stderr(cluster.log("operators")),
    );
    Operator { process, metrics }
}

impl Operator {
    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let Ok(mut tcp) = tokio::net::TcpStream::connect(&self.metrics).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text
    }

    async fn leads(&self) -> bool {
        self.get("/metrics").await.contains("\nlockkeeper_leader 1\n")
    }

    async fn until_it_leads(&self, cluster: &Cluster) -> Duration {
        let start = Instant::now();
        while !self.leads().await {
            let late = start.elapsed() > Duration::from_secs(60);
            assert!(!late, "nobody leads:\n{}", cluster.read_log("operators"));
            sleep(Duration::from_millis(50)).await;
        }
        start.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn another_operator_takes_over_at_once_after_sigterm_and_within_the_lease_after_sigkill() {
    let cluster = Cluster::start(1).await;
    let a = operator(&cluster, "a");
    println!("first leader after {:?}", a.until_it_leads(&cluster).await);
    let b = operator(&cluster, "b");
    seconds(5).await;
    assert!(!b.leads().await);
    assert!(b.get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(b.get("/healthz").await.starts_with("HTTP/1.1 200"));
    for line in a
        .get("/metrics")
        .await
        .lines()
        .filter(|line| line.starts_with("process_resident"))
    {
        println!("idle leader: {line}");
    }

    a.process.signal(Signal::TERM);
    let took = b.until_it_leads(&cluster).await;
    println!("SIGTERM: the other leads after {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(a.process.wait().success());

    let a = operator(&cluster, "a");
    for _ in 0..2 {
        seconds(5).await;
    }
    b.process.kill();
    let took = a.until_it_leads(&cluster).await;
    println!("SIGKILL: the other leads after {took:?}");
    assert!((20..=31).contains(&took.as_secs()), "{took:?}");

    a.process.kill();
    let again = operator(&cluster, "a");
    let took = again.until_it_leads(&cluster).await;
    println!("SIGKILL, and the same replica restarted: leads after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

fn of(round: &GateRound, gate: Gate) -> Vec<Outcome> {
    round
        .results
        .iter()
        .filter(|result| result.gate == gate)
        .map(|result| result.outcome)
        .collect()
}

/// What a controller manager and a scheduler do to their leases.
async fn renew(leases: &Api<Lease>) {
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name}, "spec": {"holderIdentity": "n1_x", "renewTime": format!("{now:.6}")}});
        leases
            .patch(name, &PatchParams::apply("test").force(), &Patch::Apply(lease))
            .await
            .unwrap();
    }
}

async fn ready_node(nodes: &Api<Node>, name: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    nodes
        .create(&PostParams::default(), &serde_json::from_value(node).unwrap())
        .await
        .unwrap();
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs LOCKKEEPER_TEST_ETCD and LOCKKEEPER_TEST_APISERVER"]
async fn the_gates_tell_a_whole_control_plane_from_one_that_is_not() {
    let mut cluster = Cluster::start(2).await;
    let api = cluster.api_servers();
    let version = api.client().apiserver_version().await.unwrap().git_version;
    // Both run on this host, so both have its identity lease.
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    let servers: Vec<_> = cluster
        .addresses
        .iter()
        .map(|address| Server {
            node: host.clone(),
            address: address.clone(),
            expected_version: Some(version.clone()),
        })
        .collect();
    let nodes: Api<Node> = Api::all(api.client());
    ready_node(&nodes, "n1").await;
    ready_node(&nodes, "n2").await;
    let leases: Api<Lease> = Api::namespaced(api.client(), "kube-system");

    let probe = GateProbe::new(api.clone(), "default");
    assert_eq!(probe.ready_nodes().await.unwrap(), 2);
    probe.want_ready_nodes(Some(2));
    let round = probe.round(&servers).await;
    assert_eq!(of(&round, Gate::ControllerManager), [Outcome::Fail], "{round:#?}");
    for gate in [Gate::Readyz, Gate::Version, Gate::WriteRead, Gate::ServerLease] {
        assert_eq!(of(&round, gate), [Outcome::Pass, Outcome::Pass], "{round:#?}");
    }

    let mut counter = GateCounter::default();
    let start = Instant::now();
    for _ in 0..4 {
        renew(&leases).await;
        counter = counter.record(&probe.round(&servers).await);
    }
    println!("4 rounds over 2 servers: {:?}", start.elapsed());
    assert_eq!(counter.passes, 3, "the first only sees who leads");

    nodes
        .delete("n2", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    let round = probe.round(&servers).await;
    assert_eq!(of(&round, Gate::Nodes), [Outcome::Fail]);
    assert_eq!(
        round.problems()[0].to_string(),
        "Nodes: 1 nodes are ready, 2 were before"
    );
    probe.want_ready_nodes(None);

    cluster.kill_server(1);
    let start = Instant::now();
    let round = probe.round(&servers).await;
    println!("one killed: {:?}\n{:#?}", start.elapsed(), round.problems());
    assert!(start.elapsed() < Duration::from_secs(3));
    assert!(round.any_ready);
    assert_eq!(of(&round, Gate::Readyz), [Outcome::Pass, Outcome::Fail]);
    assert_eq!(of(&round, Gate::WriteRead), [Outcome::Unknown, Outcome::Unknown]);

    cluster.servers[0].as_ref().unwrap().signal(Signal::STOP);
    let start = Instant::now();
    let round = probe.round(&servers).await;
    println!("the other frozen: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_millis(3300));
    assert!(!round.any_ready);
    cluster.servers[0].as_ref().unwrap().signal(Signal::CONT);
    seconds(2).await;
    let round = probe.round(&servers).await;
    assert!(round.any_ready);
    println!("longest outage: {:?}", round.longest_outage);
    assert!(
        (3..=6).contains(&round.longest_outage.as_secs()),
        "{:?}",
        round.longest_outage
    );
}
