//! A status as a page of text. Pure.

use std::fmt::Write as _;

use lockkeeper_crds::{CheckResult, ClusterVersion, ClusterVersionStatus};

/// One line: the state and what goes on.
pub(super) fn line(object: &ClusterVersion) -> String {
    object.status.as_ref().map_or_else(
        || "not looked at yet".to_owned(),
        |s| format!("{:?} {} {}", s.state, s.progress.text, s.summary),
    )
}

/// The page.
pub(super) fn page(object: &ClusterVersion) -> String {
    let mut out = String::new();
    let fallback = ClusterVersionStatus::default();
    let status = object.status.as_ref().unwrap_or(&fallback);
    let running = status.version.as_deref().unwrap_or("unknown");
    // Writing into a String cannot fail.
    let _infallible = write!(
        out,
        "CLUSTER   {running} -> {}   {:?}",
        object.spec.version, status.state
    )
    .and_then(|()| writeln!(out, "   nodes {}", status.progress.text))
    .and_then(|()| writeln!(out, "          {}", status.summary))
    .and_then(|()| step(&mut out, status))
    .and_then(|()| nodes(&mut out, status))
    .and_then(|()| checks(&mut out, status))
    .and_then(|()| rest(&mut out, status));
    out
}

fn step(out: &mut String, status: &ClusterVersionStatus) -> std::fmt::Result {
    let Some(step) = &status.step else { return Ok(()) };
    write!(out, "STEP      {} on {}: {}", step.name, step.node, step.state)?;
    match &step.deadline {
        Some(deadline) => writeln!(
            out,
            ", undone by its agent at {} unless it goes on",
            deadline.0.strftime("%H:%M:%S")
        ),
        None => writeln!(out),
    }
}

fn nodes(out: &mut String, status: &ClusterVersionStatus) -> std::fmt::Result {
    if status.nodes.is_empty() {
        return Ok(());
    }
    let wide = status
        .nodes
        .iter()
        .map(|n| n.name.len())
        .max()
        .unwrap_or(4)
        .max(4);
    writeln!(
        out,
        "\n{:wide$}  {:11}  {:9}  {:9}  {:9}  {:9}  {:7}  MESSAGE",
        "NODE", "STATE", "APISERVER", "KCM", "SCHEDULER", "KUBELET", "ETCD"
    )?;
    let dash = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    for n in &status.nodes {
        let line = format!(
            "{:wide$}  {:11}  {:9}  {:9}  {:9}  {:9}  {:7}  {}",
            n.name,
            n.state,
            dash(&n.apiserver),
            dash(&n.controller_manager),
            dash(&n.scheduler),
            dash(&n.kubelet),
            dash(&n.etcd),
            n.message
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Every check that is not simply good; how many were.
fn checks(out: &mut String, status: &ClusterVersionStatus) -> std::fmt::Result {
    if status.preflight.is_empty() {
        return Ok(());
    }
    let good = status
        .preflight
        .iter()
        .filter(|c| c.result == CheckResult::Pass)
        .count();
    writeln!(
        out,
        "\nPREFLIGHT {good} of {} checks pass",
        status.preflight.len()
    )?;
    for check in status.preflight.iter().filter(|c| c.result != CheckResult::Pass) {
        let on = check
            .node
            .as_ref()
            .map(|n| format!(" on {n}"))
            .unwrap_or_default();
        writeln!(
            out,
            "  {:7}  {}{on}: {}",
            format!("{:?}", check.result),
            check.name,
            check.message
        )?;
    }
    Ok(())
}

fn rest(out: &mut String, status: &ClusterVersionStatus) -> std::fmt::Result {
    writeln!(out)?;
    if let Some(snapshot) = &status.snapshot {
        let at = snapshot.key.as_deref().unwrap_or("being taken");
        write!(out, "SNAPSHOT  {at}")?;
        match snapshot.revision {
            Some(revision) => writeln!(out, " (revision {revision}, read back)")?,
            None => writeln!(out)?,
        }
    }
    for way in &status.ways_back {
        writeln!(out, "WAY BACK  {}: {}", way.kind, way.message)?;
    }
    if let Some(held) = &status.held {
        writeln!(
            out,
            "HELD      {} since {}: {}",
            held.reason,
            held.since.0.strftime("%H:%M:%S"),
            held.message
        )?;
    }
    for (i, next) in status.plan.iter().enumerate() {
        writeln!(out, "{}  {next}", if i == 0 { "NEXT    " } else { "        " })?;
    }
    if let Some(seconds) = status.longest_outage_seconds {
        writeln!(
            out,
            "OUTAGE    longest time without any ready API server: {seconds} s"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rolling_upgrade_in_a_page() {
        let object: ClusterVersion = serde_json::from_value(serde_json::json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "ClusterVersion", "metadata": {"name": "cluster"},
            "spec": {"version": "v1.36.3"},
            "status": {
                "version": "v1.35.4", "state": "Rolling", "summary": "cp2: waits for kube-apiserver to be ready; 0 of 3 nodes done",
                "progress": {"done": 0, "total": 3, "text": "0/3"},
                "step": {"name": "kube-apiserver to v1.36.3", "node": "cp2", "state": "Starting", "deadline": "2026-01-02T03:04:05Z"},
                "nodes": [
                    {"name": "cp1", "state": "Pending", "apiserver": "v1.35.4", "controllerManager": "v1.35.4", "scheduler": "v1.35.4", "kubelet": "v1.35.4", "etcd": "3.6.6"},
                    {"name": "cp2", "state": "Upgrading", "apiserver": "v1.36.3", "message": "kube-apiserver is not ready"}
                ],
                "preflight": [
                    {"name": "HighAvailability", "result": "Warn", "message": "two nodes"},
                    {"name": "Etcd", "result": "Pass", "message": "fine"}
                ],
                "snapshot": {"backup": "upgrade-x-1", "key": "s3://lockkeeper/lab/upgrade-x-1/snapshot.db", "revision": 1234},
                "plan": ["kube-apiserver to v1.36.3 on cp2", "kube-apiserver to v1.36.3 on cp1"],
                "waysBack": [{"kind": "Step", "message": "undone by its agent"}],
                "longestOutageSeconds": 0
            }
        }))
        .unwrap();
        insta::assert_snapshot!(page(&object));
    }

    #[test]
    fn a_new_object_has_a_page_too() {
        let object = ClusterVersion::new(
            "cluster",
            serde_json::from_value(serde_json::json!({"version": "v1.36.3"})).unwrap(),
        );
        assert!(page(&object).contains("unknown -> v1.36.3"));
    }
}
