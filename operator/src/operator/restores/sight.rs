//! From objects to what a restore is planned on. Pure.

use std::collections::BTreeMap;

use lockkeeper_crds as crds;

/// What one node shows.
#[derive(Clone, Debug)]
pub(super) struct NodeSight<'a> {
    /// Why its report cannot be relied on.
    pub(super) stale: Option<String>,
    /// What it was told.
    pub(super) order: Option<&'a crds::RestoreOrder>,
    /// What it says of the last restore.
    pub(super) progress: Option<&'a crds::RestoreProgress>,
    /// Its member.
    pub(super) etcd: Option<&'a crds::EtcdStatus>,
    /// The ticket that is live on it.
    pub(super) ticket: Option<i64>,
    /// Its agent can put a guard beside what it changes.
    pub(super) guard: crds::Tristate,
}

impl NodeSight<'_> {
    /// What it says of this restore.
    pub(super) fn of(&self, id: &str) -> Option<&crds::RestoreProgress> {
        self.progress.filter(|p| p.id == id)
    }
}

/// All that is looked at for one restore.
#[derive(Clone, Debug)]
pub(super) struct Sight<'a> {
    pub(super) object: &'a crds::EtcdRestore,
    /// Every control-plane node.
    pub(super) nodes: BTreeMap<String, NodeSight<'a>>,
    /// The `EtcdBackup` that it names.
    pub(super) backup: Option<&'a crds::EtcdBackup>,
    /// The `EtcdBackup` of the state right before, where it was made.
    pub(super) safety: Option<&'a crds::EtcdBackup>,
    /// The names of the stores.
    pub(super) stores: Vec<String>,
    /// Another restore that has begun and not ended.
    pub(super) other: Option<String>,
    /// Why no restore may be begun beside what is going on.
    pub(super) rollout: Option<String>,
    /// What a person types to confirm; none while it is not known.
    pub(super) cluster_name: Option<String>,
    /// etcd's revision, not older than the last pass; 0 while it is not known.
    pub(super) revision: i64,
    /// For conditions.
    pub(super) now: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
}

/// What one node's report shows.
pub(super) fn node<'a>(report: &'a crds::ControlPlaneNode, stale: Option<String>) -> NodeSight<'a> {
    let status = report.status.as_ref();
    let ticket = status.and_then(|s| s.ticket.as_ref());
    NodeSight {
        stale,
        order: report.spec.restore.as_ref(),
        progress: status.and_then(|s| s.restore.as_ref()),
        etcd: status.and_then(|s| s.etcd.as_ref()),
        ticket: ticket.filter(|t| !t.state.is_end()).map(|t| t.number),
        guard: status.map(|s| s.guard).unwrap_or_default(),
    }
}

/// The members of the restored cluster: those of the present one, each on the node that runs it.
pub(super) fn members(nodes: &BTreeMap<String, NodeSight<'_>>) -> Result<Vec<crds::RestoreMember>, String> {
    let mut members = Vec::new();
    let mut known = 0;
    for (name, node) in nodes {
        let etcd = node
            .etcd
            .ok_or_else(|| format!("{name} runs no etcd member: Lockkeeper restores etcd that runs as static pods beside the API servers"))?;
        let own = etcd
            .member_id
            .as_ref()
            .and_then(|id| etcd.members.iter().find(|m| m.id == *id))
            .ok_or_else(|| {
                format!(
                    "the etcd member of {name} does not tell who it is: {}",
                    etcd.message
                )
            })?;
        if own.peer_urls.iter().any(|url| !url.starts_with("https://")) || own.peer_urls.is_empty() {
            return Err(format!("the etcd member of {name} has no peer URL with https"));
        }
        known = known.max(etcd.members.len());
        members.push(crds::RestoreMember {
            node: name.clone(),
            name: own.name.clone(),
            peer_urls: own.peer_urls.join(","),
        });
    }
    if known != members.len() {
        return Err(format!(
            "etcd has {known} members, and {} of them run on control-plane nodes: remove the members that are no more, or wait for the nodes",
            members.len()
        ));
    }
    Ok(members)
}
