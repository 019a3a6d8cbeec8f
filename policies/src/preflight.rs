//! What is checked before anything is changed. The cluster's checks are made here; each node's own
//! (manifests, images, certificates, store, rehearsal) come in with its report.

use crate::facts;
use crate::model::{Check, CheckVerdict, Cluster, Component, NodeName, Seen, Wanted};
use crate::quorum;
use crate::skew::{self, RunningVersions};
use crate::version::KubernetesVersion;

/// All verdicts for going from `source` to `target`, worst first, then by name and node.
#[must_use]
pub fn checks(
    wanted: &Wanted,
    source: KubernetesVersion,
    target: KubernetesVersion,
    cluster: &Cluster,
) -> Vec<Check> {
    let mut all = vec![
        version_path(source, target),
        agents(cluster),
        version_skew(target, cluster),
        etcd_members(cluster),
        etcd_floor(target, cluster),
        backup_policy(wanted),
        high_availability(cluster),
    ];
    all.extend(
        cluster
            .warnings
            .iter()
            .map(|w| check("Admission", None, CheckVerdict::Warn, w.clone())),
    );
    for (name, node) in &cluster.nodes {
        if let Some(preflight) = &node.preflight {
            all.extend(preflight.checks.iter().map(|c| explained(name, c, target)));
        }
    }
    all.sort_by(|a, b| (b.verdict, &a.name, &a.node).cmp(&(a.verdict, &b.name, &b.node)));
    all
}

/// What stops the upgrade, if anything does: the first such check in full, the others by name.
#[must_use]
pub fn stops(checks: &[Check]) -> Option<String> {
    let mut all = checks.iter().filter(|c| c.verdict >= CheckVerdict::Unknown);
    let first = all.next()?;
    let mut sentence = format!("{}: {}", titled(first), first.message);
    let others: Vec<String> = all.map(titled).collect();
    if !others.is_empty() {
        sentence = format!("{sentence} (also: {})", others.join(", "));
    }
    Some(sentence)
}

fn titled(check: &Check) -> String {
    let unseen = if check.verdict == CheckVerdict::Unknown {
        " (not seen)"
    } else {
        ""
    };
    match &check.node {
        Some(node) => format!("{} on {node}{unseen}", check.name),
        None => format!("{}{unseen}", check.name),
    }
}

fn check(name: &str, node: Option<&NodeName>, verdict: CheckVerdict, message: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        node: node.cloned(),
        verdict,
        message: message.into(),
    }
}

fn version_path(source: KubernetesVersion, target: KubernetesVersion) -> Check {
    let (oldest, newest) = facts::supported_minors();
    let one = |verdict, message: String| check("VersionPath", None, verdict, message);
    if !(oldest..=newest).contains(&target.minor) {
        let message = format!(
            "spec.version {target}: this Lockkeeper knows v1.{oldest} to v1.{newest}; choose one of these, or a newer Lockkeeper"
        );
        return one(CheckVerdict::Block, message);
    }
    if target.minor > source.minor + 1 {
        let next = source.minor + 1;
        let message = format!(
            "spec.version {target} skips a minor: the cluster runs {source}, and Kubernetes supports one minor at a time; go to a v1.{next} release first"
        );
        return one(CheckVerdict::Block, message);
    }
    if target.minor < source.minor {
        let message = format!(
            "spec.version {target} is a minor below {source}, and no rollout from it is under way: Kubernetes cannot be downgraded; restore a snapshot instead"
        );
        return one(CheckVerdict::Block, message);
    }
    if target < source {
        let message = format!("{target} is an older patch than {source}");
        return one(CheckVerdict::Warn, message);
    }
    one(
        CheckVerdict::Pass,
        format!("{source} to {target} is one supported hop"),
    )
}

fn agents(cluster: &Cluster) -> Check {
    if cluster.nodes.is_empty() {
        let message = "no node has the label node-role.kubernetes.io/control-plane: Lockkeeper manages control planes made by kubeadm";
        return check("Agents", None, CheckVerdict::Block, message);
    }
    for (name, node) in &cluster.nodes {
        if let Some(why) = &node.stale {
            let message = format!(
                "{why}; see `kubectl -n lockkeeper-system get pods -l app.kubernetes.io/component=agent -o wide`"
            );
            return check("Agents", Some(name), CheckVerdict::Unknown, message);
        }
        for component in [
            Component::KubeApiserver,
            Component::KubeControllerManager,
            Component::KubeScheduler,
        ] {
            let running = node.components.get(&component);
            let Some(running) = running.filter(|r| r.version.is_some() && r.manifest_version.is_some())
            else {
                let message = format!("which version of {component} runs on {name} cannot be told");
                return check("Agents", Some(name), CheckVerdict::Unknown, message);
            };
            if running.version != running.manifest_version {
                let message = format!(
                    "{component} on {name} does not run what its manifest asks for: wait for the kubelet, or mend the manifest"
                );
                return check("Agents", Some(name), CheckVerdict::Block, message);
            }
            if !running.ready {
                let message = format!("{component} on {name} is not ready: see its log");
                return check("Agents", Some(name), CheckVerdict::Block, message);
            }
        }
        if let Some(problem) = node.manifest_problems.first() {
            return check("Agents", Some(name), CheckVerdict::Block, problem.clone());
        }
    }
    check(
        "Agents",
        None,
        CheckVerdict::Pass,
        format!("{} agents report, every component is ready", cluster.nodes.len()),
    )
}

fn version_skew(target: KubernetesVersion, cluster: &Cluster) -> Check {
    let one = |verdict, message: String| check("VersionSkew", None, verdict, message);
    for (name, kubelet) in &cluster.kubelets {
        if let Seen::Unknown(why) = kubelet {
            return check(
                "VersionSkew",
                Some(name),
                CheckVerdict::Unknown,
                format!("the kubelet's version cannot be told: {why}"),
            );
        }
    }
    let now = RunningVersions::of(cluster);
    if let Some(violation) = skew::violations(&now).into_iter().next() {
        return one(
            CheckVerdict::Block,
            format!("already outside the skew policy: {violation}"),
        );
    }
    let mut after = now;
    for name in cluster.nodes.keys() {
        for component in [
            Component::KubeApiserver,
            Component::KubeControllerManager,
            Component::KubeScheduler,
        ] {
            after = after.with(name, component, target);
        }
    }
    if let Some(violation) = skew::violations(&after).into_iter().next() {
        return one(
            CheckVerdict::Block,
            format!("at {target} it would be so: {violation}"),
        );
    }
    if let Some((node, kubelet)) = after.kubelets.iter().find(|(_, v)| v.minor + 3 == target.minor) {
        let message = format!(
            "the kubelet of {node} runs {kubelet}, three minors behind {target}: the next upgrade will be blocked by it"
        );
        return one(CheckVerdict::Warn, message);
    }
    one(
        CheckVerdict::Pass,
        format!(
            "control plane and {} kubelets stay within the skew policy",
            after.kubelets.len()
        ),
    )
}

fn etcd_members(cluster: &Cluster) -> Check {
    match quorum::healthy(cluster) {
        Ok(0) => check(
            "Etcd",
            None,
            CheckVerdict::Warn,
            "external etcd: its health is not seen from here",
        ),
        Ok(n) => check(
            "Etcd",
            None,
            CheckVerdict::Pass,
            format!("{n} members healthy, one leader, no alarm, no learner"),
        ),
        // Seen long ago is not seen: the agent that is silent is what a person must look at first.
        Err(why) if cluster.nodes.values().any(|n| n.stale.is_some()) => {
            check("Etcd", None, CheckVerdict::Unknown, why)
        }
        Err(why) => check("Etcd", None, CheckVerdict::Block, why),
    }
}

fn etcd_floor(target: KubernetesVersion, cluster: &Cluster) -> Check {
    let one = |verdict, message: String| check("EtcdVersion", None, verdict, message);
    let Some(floor) = facts::etcd_floor(target) else {
        return one(
            CheckVerdict::Unknown,
            format!("which etcd {target} needs is not known to this Lockkeeper"),
        );
    };
    for (name, node) in &cluster.nodes {
        let Seen::Known(etcd) = &node.etcd else { continue };
        match &etcd.version {
            None => {
                return one(
                    CheckVerdict::Unknown,
                    format!("etcd's version on {name} cannot be told"),
                );
            }
            Some(version) if *version < floor => {
                let message = format!(
                    "etcd on {name} is {version}; {target} needs {floor} or newer: upgrade etcd first"
                );
                return one(CheckVerdict::Block, message);
            }
            Some(_) => {}
        }
    }
    one(CheckVerdict::Pass, format!("etcd is {floor} or newer"))
}

fn backup_policy(wanted: &Wanted) -> Check {
    let one = |verdict, message: &str| check("BackupPolicy", None, verdict, message);
    match (wanted.backup_required, wanted.backup_possible) {
        (_, true) => one(
            CheckVerdict::Pass,
            "a snapshot is taken and read back before the first change",
        ),
        (true, false) => one(
            CheckVerdict::Block,
            "spec.backup.storeRef names no EtcdBackupStore in the operator's namespace: make one, or set spec.backup.required to false",
        ),
        (false, false) => one(
            CheckVerdict::Warn,
            "no snapshot is taken (spec.backup.required is false): the way back by data is closed",
        ),
    }
}

fn high_availability(cluster: &Cluster) -> Check {
    let one = |verdict, message: String| check("HighAvailability", None, verdict, message);
    match cluster.nodes.len() {
        1 => one(
            CheckVerdict::Warn,
            "one control-plane node: the API is away for some seconds while its server is replaced"
                .to_owned(),
        ),
        2 => one(
            CheckVerdict::Warn,
            "two control-plane nodes: etcd cannot lose either; run one or three".to_owned(),
        ),
        n if !quorum::has_margin(cluster) => one(
            CheckVerdict::Warn,
            format!("{n} control-plane nodes, and fewer than three etcd members on them"),
        ),
        n => one(
            CheckVerdict::Pass,
            format!("{n} control-plane nodes, etcd can lose one"),
        ),
    }
}

/// A node's check, with what is known of removed gates and flags added to a start-up error.
fn explained(node: &NodeName, seen: &Check, target: KubernetesVersion) -> Check {
    let mut check = seen.clone();
    check.node = Some(node.clone());
    if check.verdict == CheckVerdict::Block
        && let Some(help) = facts::explain(&check.message, target)
    {
        check.message = format!("{} ({help})", check.message);
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{cluster, version};
    use crate::model::{Mode, PreflightView};

    pub(crate) fn wanted(minor: u32) -> Wanted {
        Wanted {
            version: version(minor),
            mode: Mode::Apply,
            paused: false,
            retry: 0,
            backup_required: true,
            backup_possible: true,
            backup_accepted: false,
            rollback_automatic: true,
            gate_passes: 3,
            gate_failures: 30,
            deleting: false,
        }
    }

    fn first(wanted: &Wanted, source: u32, cluster: &Cluster) -> Option<String> {
        let all = checks(wanted, version(source), wanted.version, cluster);
        stops(&all)
    }

    #[test]
    fn a_healthy_cluster_may_go_one_minor_up() {
        assert_eq!(first(&wanted(36), 35, &cluster(3, 35)), None);
        assert_eq!(first(&wanted(36), 35, &cluster(1, 35)), None);
    }

    #[test]
    fn the_others_that_stop_it_are_named() {
        let mut cluster = cluster(3, 35);
        cluster
            .node_mut("cp2")
            .manifest_problems
            .push("stray kube-apiserver.yaml.bak".into());
        cluster.etcd_mut("cp1").alarms.push("NOSPACE".into());
        let found = first(&wanted(36), 35, &cluster).unwrap_or_default();
        assert!(found.contains("stray"), "{found}");
        assert!(found.ends_with("(also: Etcd)"), "{found}");
    }

    #[test]
    fn each_blocker_names_the_way_out() {
        type Break = fn(&mut Wanted, &mut Cluster);
        let cases: [(&str, &str, Break); 9] = [
            ("VersionPath", "go to a v1.36", |w, _| w.version = version(37)),
            ("VersionPath", "newer Lockkeeper", |w, _| w.version = version(99)),
            ("VersionPath", "cannot be downgraded", |w, _| {
                w.version = version(34)
            }),
            ("Agents", "kubectl", |_, c| {
                c.node_mut("cp2").stale = Some("no report for 60 s".into())
            }),
            ("Agents", "stray", |_, c| {
                c.node_mut("cp2")
                    .manifest_problems
                    .push("stray kube-apiserver.yaml.bak".into())
            }),
            ("VersionSkew", "upgrade it first", |_, c| {
                c.kubelets.insert("worker".into(), Seen::Known(version(32)));
            }),
            ("EtcdVersion", "upgrade etcd first", |_, c| {
                c.etcd_mut("cp1").version = "3.5.9".parse().ok()
            }),
            ("Etcd", "alarm disarm", |_, c| {
                c.etcd_mut("cp1").alarms.push("NOSPACE".into())
            }),
            ("BackupPolicy", "spec.backup.required", |w, _| {
                w.backup_possible = false
            }),
        ];
        for (name, word, break_it) in cases {
            let (mut wanted, mut cluster) = (wanted(36), cluster(3, 35));
            break_it(&mut wanted, &mut cluster);
            let found = first(&wanted, 35, &cluster).unwrap_or_default();
            assert!(
                found.starts_with(name) && found.contains(word),
                "{name}/{word}: {found}"
            );
        }
    }

    #[test]
    fn a_rehearsal_that_dies_of_a_removed_gate_is_explained() {
        let mut cluster = cluster(3, 35);
        cluster.node_mut("cp2").preflight = Some(PreflightView {
            id: 1,
            done: true,
            checks: vec![check(
                "Rehearsal",
                None,
                CheckVerdict::Block,
                "unrecognized feature gate: HonorPVReclaimPolicy",
            )],
        });
        let found = first(&wanted(36), 35, &cluster).unwrap();
        assert!(found.contains("was removed in v1.36"), "{found}");
    }

    #[test]
    fn what_is_worst_stands_first() {
        let mut cluster = cluster(1, 35);
        cluster.etcd_mut("cp1").alarms.push("NOSPACE".into());
        let all = checks(&wanted(36), version(35), version(36), &cluster);
        assert!(all.is_sorted_by(|a, b| a.verdict >= b.verdict), "{all:#?}");
        assert_eq!(all[0].name, "Etcd");
    }
}
