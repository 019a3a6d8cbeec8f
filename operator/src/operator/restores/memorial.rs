//! A restore that the nodes have made and that the restored etcd does not know: what its object tells. Pure.

use std::collections::BTreeMap;

use lockkeeper_crds as crds;
use lockkeeper_crds::{RestoreProgress, RestoreStage, RestoreState};

use super::plan::{Plan, kept};
use super::status::safety_name;

/// The object with what the nodes know of it: in an etcd of before it has no state of its future.
pub(super) fn recalled(object: &crds::EtcdRestore, progress: &RestoreProgress) -> crds::EtcdRestore {
    let mut object = object.clone();
    let status = object.status.get_or_insert_with(Default::default);
    status.id = Some(progress.id.clone());
    // No node was armed before it was made.
    let before = || safety_name(&progress.name, &progress.id);
    status.safety_backup.get_or_insert_with(before);
    object
}

/// Where it stands, by all nodes.
pub(super) fn standing(id: &str, reports: &BTreeMap<String, crds::ControlPlaneNode>) -> Plan {
    let said = |report: &'_ crds::ControlPlaneNode| {
        let told = report.status.as_ref()?.restore.clone();
        told.filter(|p| p.id == id)
    };
    let all: BTreeMap<&String, Option<RestoreProgress>> = reports
        .iter()
        .map(|(name, report)| (name, said(report)))
        .collect();
    let waits = all.iter().find_map(|(name, told)| match told {
        Some(progress) if progress.stage == RestoreStage::Done => None,
        Some(progress) => Some(format!("{name}: {:?}: {}", progress.stage, progress.message)),
        None => Some(format!("{name} has not answered")),
    });
    match waits {
        None => kept(
            all.iter()
                .filter_map(|(name, told)| Some((*name, told.as_ref()?))),
        ),
        Some(why) => Plan {
            state: RestoreState::Restoring,
            message: format!("decided: the restored data stays; not all is up on it yet: {why}"),
            reason: "Restoring",
            deeds: vec![],
        },
    }
}
