//! Memory and requests of the operator and the agents: with nothing to do, and while a large etcd is saved.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{Api, PostParams};
use lockkeeper_crds::{EtcdBackup, EtcdBackupSpec, LocalReference};
use serde::Serialize;

use crate::install::NAMESPACE;
use crate::lockkeeper::Keeper;
use crate::process::ProcessId;
use crate::scene::{Look, Scene};

/// Until what an installation stirs up has settled.
const SETTLE: Duration = Duration::from_secs(60);
/// The flow by which the API servers count our requests.
const FLOW: &str = "lockkeeper-bench";
const PROGRAMS: [&str; 2] = ["operator", "agent"];

/// With nothing to do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AtRest {
    /// The largest operator's resident memory.
    pub operator_mib: f64,
    /// The largest agent's.
    pub agent_mib: f64,
    /// Requests of all operators and agents to all API servers, a watch counted when it begins.
    pub api_requests_per_minute: f64,
}

/// While etcd is saved.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DuringSnapshot {
    /// What was written into etcd beforehand.
    pub filled_mib: u32,
    /// Of the snapshot, as it lies in the store.
    pub snapshot_mib: f64,
    /// From the object's making to its end.
    pub seconds: f64,
    /// The largest operator's highest resident memory.
    pub operator_mib: f64,
    /// The largest agent's.
    pub agent_mib: f64,
}

pub(super) async fn measure(scene: &Scene, count: Duration) -> Result<AtRest> {
    scene.say(format_args!("at rest: {} s", (SETTLE + count).as_secs()));
    count_our_requests(scene)?;
    tokio::time::sleep(SETTLE).await;
    let before = counted(scene).await?;
    tokio::time::sleep(count).await;
    let after = counted(scene).await?;
    ensure!(
        after > before,
        "the API servers counted no request of ours: {before}, then {after}"
    );
    let memory = memory(scene, "VmRSS")?;
    Ok(AtRest {
        operator_mib: of(&memory, "operator")?,
        agent_mib: of(&memory, "agent")?,
        api_requests_per_minute: (after - before) * 60.0 / count.as_secs_f64(),
    })
}

/// No metric of the API server tells who asked. But it counts requests by flow, and what goes into a flow can be
/// chosen by service account: so our requests get a flow of their own. No manifest is touched for that.
fn count_our_requests(scene: &Scene) -> Result<()> {
    let everything = serde_json::json!({
        "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": NAMESPACE}}],
        "resourceRules": [{
            "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
        }],
        "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    });
    let schema = serde_json::json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": FLOW},
        "spec": {
            "matchingPrecedence": 50,
            "priorityLevelConfiguration": {"name": "workload-high"},
            "rules": [everything],
        },
    });
    scene
        .lab
        .out(&["kubectl", "apply", "-f", "-"])?
        .input(schema.to_string())
        .check()
        .map(drop)
}

async fn counted(scene: &Scene) -> Result<f64> {
    let mut sum = 0.0;
    for node in scene.lab.nodes() {
        let client = scene.client_at(node.name()).await?;
        let request = http::Request::get("/metrics").body(Vec::new())?;
        sum += in_flow(&client.request_text(request).await?);
    }
    Ok(sum)
}

fn in_flow(metrics: &str) -> f64 {
    let flow = format!("flow_schema=\"{FLOW}\"");
    metrics
        .lines()
        .filter(|line| {
            line.starts_with("apiserver_flowcontrol_dispatched_requests_total{") && line.contains(&flow)
        })
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A field of /proc/PID/status of every process of ours, in MiB, the largest of each program.
fn memory(scene: &Scene, field: &str) -> Result<BTreeMap<&'static str, f64>> {
    let mut largest = BTreeMap::new();
    for (program, process) in ours(scene)? {
        let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid))?;
        let mib = kib(&text, field).with_context(|| format!("{program}: no {field}"))? / 1024.0;
        let entry = largest.entry(program).or_insert(0.0_f64);
        *entry = entry.max(mib);
    }
    Ok(largest)
}

fn ours(scene: &Scene) -> Result<Vec<(&'static str, ProcessId)>> {
    let mut all = Vec::new();
    for node in scene.lab.nodes() {
        for program in PROGRAMS {
            all.extend(
                node.processes(program)?
                    .into_iter()
                    .map(|process| (program, process)),
            );
        }
    }
    Ok(all)
}

fn kib(status: &str, field: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn of(memory: &BTreeMap<&'static str, f64>, program: &str) -> Result<f64> {
    memory
        .get(program)
        .copied()
        .with_context(|| format!("no process `{program}` runs"))
}

/// Writes beside what Kubernetes has there: API servers would keep it in memory, etcd does not.
pub(super) fn fill(scene: &Scene, mib: u32) -> Result<()> {
    scene.say(format_args!("filling etcd with {mib} MiB"));
    let script = format!(
        "head -c 1048576 /dev/urandom >/tmp/filler
        for number in $(seq {mib}); do
            etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/kubernetes/pki/etcd/ca.crt \
                --cert=/etc/kubernetes/pki/etcd/server.crt --key=/etc/kubernetes/pki/etcd/server.key \
                put /lab/filler/$number </tmp/filler >/dev/null || exit 1
        done"
    );
    let Some(node) = scene.lab.nodes().into_iter().next() else {
        bail!("a lab without nodes")
    };
    node.run(&["sh", "-c", &script])?
        .limit(Duration::from_secs(900))
        .check()
        .map(drop)
}

pub(super) async fn during_snapshot(scene: &Scene, filled_mib: u32) -> Result<DuringSnapshot> {
    let keeper = Keeper::installed(scene).await?;
    let backups: Api<EtcdBackup> = Api::namespaced(keeper.client(), NAMESPACE);
    let spec = EtcdBackupSpec {
        store_ref: LocalReference {
            name: "default".into(),
        },
        deadline_seconds: 600,
        include: vec![],
        proof: Default::default(),
    };
    // 5 sets the kernel's mark of the highest resident memory back to what it is now (proc(5)).
    for (_, process) in ours(scene)? {
        std::fs::write(format!("/proc/{}/clear_refs", process.pid), "5")?;
    }
    let before = ours(scene)?;
    let began = std::time::Instant::now();
    backups
        .create(&PostParams::default(), &EtcdBackup::new(FLOW, spec))
        .await?;
    let done = scene
        .wait_for("the snapshot", Duration::from_secs(600), || async {
            let status = backups.get(FLOW).await?.status.unwrap_or_default();
            Ok(match (status.completed_at, status.artifact) {
                (Some(_), Some(artifact)) => Look::Done(Ok(artifact)),
                (Some(_), None) => Look::Done(Err(status.message)),
                (None, _) => Look::NotYet(status.message),
            })
        })
        .await?;
    let seconds = began.elapsed().as_secs_f64();
    let artifact = done.map_err(|why| anyhow::anyhow!("the snapshot failed: {why}"))?;
    let memory = memory(scene, "VmHWM")?;
    ensure!(
        ours(scene)? == before,
        "a process of ours was restarted during the snapshot"
    );
    Ok(DuringSnapshot {
        filled_mib,
        snapshot_mib: artifact.size_bytes as f64 / f64::from(1 << 20),
        seconds,
        operator_mib: of(&memory, "operator")?,
        agent_mib: of(&memory, "agent")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_flow_is_counted() {
        let line = |flow: &str, value: &str| {
            format!(
                "apiserver_flowcontrol_dispatched_requests_total{{flow_schema=\"{flow}\",priority_level=\"x\"}} {value}\n"
            )
        };
        let text = line(FLOW, "7") + &line("probes", "100") + &line(FLOW, "1e+03");
        assert_eq!(in_flow(&text), 1007.0);
    }

    #[test]
    fn a_field_of_a_status_is_read_by_its_whole_name() {
        let text = "VmHWMx:\t1 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(kib(text, "VmHWM"), Some(2048.0));
        assert_eq!(kib(text, "VmSwap"), None);
    }
}
