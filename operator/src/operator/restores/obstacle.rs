//! What keeps a restore from being begun. Pure.

use lockkeeper_crds as crds;
use lockkeeper_crds::{RestoreMode, Tristate};

use super::plan::InHand;
use super::sight::{NodeSight, members};

impl InHand<'_> {
    /// Why it cannot be begun.
    pub(super) fn obstacle(&self) -> Option<(&'static str, String)> {
        let sight = self.sight;
        if let Some(other) = &sight.other {
            return Some((
                "AnotherInFlight",
                format!("waits for EtcdRestore {other}: one is made at a time"),
            ));
        }
        if let Some(reference) = &self.spec().from.backup_ref {
            let Some(backup) = sight.backup else {
                return Some(("NoBackup", format!("there is no EtcdBackup {}", reference.name)));
            };
            if backup.metadata.deletion_timestamp.is_some() {
                return Some((
                    "BackupLeaving",
                    format!(
                        "EtcdBackup {} was deleted, and goes with what it stored",
                        reference.name
                    ),
                ));
            }
            if !backup.is_proven() {
                return Some((
                    "BackupNotStored",
                    format!("EtcdBackup {} is not stored and read back", reference.name),
                ));
            }
            if let Some(why) = self.wrong_version(backup) {
                return Some(("VersionMismatch", why));
            }
        }
        match self.store() {
            Some(store) if sight.stores.contains(&store.name) => {}
            Some(store) => {
                return Some(("NoStore", format!("there is no EtcdBackupStore {}", store.name)));
            }
            None => return Some(("NoStore", "spec.storeRef is missing".to_owned())),
        }
        if sight.nodes.is_empty() {
            return Some((
                "NoNodes",
                "no node has the label node-role.kubernetes.io/control-plane".to_owned(),
            ));
        }
        if self.parties().is_empty() {
            return Some(("NoNodes", "spec.node names no control-plane node".to_owned()));
        }
        if sight.cluster_name.is_none() || sight.revision == 0 {
            return Some((
                "Unknown",
                "the cluster's name or etcd's revision is not known yet".to_owned(),
            ));
        }
        self.busy()
            .or_else(|| self.unguarded())
            .or_else(|| members(&sight.nodes).err().map(|why| ("Members", why)))
    }

    /// The first node that nobody would bring back, were its power cut with its API server down: its kubelet then has
    /// the static pods and nothing else, and a restore takes all API servers down at once.
    pub(super) fn unguarded(&self) -> Option<(&'static str, String)> {
        if self.spec().mode != RestoreMode::InPlace {
            return None;
        }
        let without = |(name, node): &(&String, &NodeSight<'_>)| {
            let why = match node.guard {
                Tristate::True => return None,
                Tristate::False => "its agent has no guard",
                Tristate::Unknown => "its agent is of a version that does not say whether it has a guard",
            };
            Some(format!(
                "{name}: {why}, without which a power cut in the middle would leave the node to be put right by hand: set the chart's value agent.guard.enabled to true, at this version; once the agents run with it, it goes on by itself"
            ))
        };
        self.parties()
            .iter()
            .find_map(without)
            .map(|why| ("NoGuard", why))
    }

    fn wrong_version(&self, backup: &crds::EtcdBackup) -> Option<String> {
        let artifact = backup.status.as_ref()?.artifact.as_ref()?;
        let minor = |version: &str| {
            let mut parts = version.trim_start_matches('v').split('.');
            Some((
                parts.next()?.parse::<u32>().ok()?,
                parts.next()?.parse::<u32>().ok()?,
            ))
        };
        self.sight.nodes.iter().find_map(|(name, node)| {
            let runs = node.etcd?.version.as_deref()?;
            (minor(runs)? != minor(&artifact.etcd_version)?).then(|| {
                format!(
                    "the backup was taken from etcd {}, and {name} runs {runs}: restore it with etcd of the same minor version",
                    artifact.etcd_version
                )
            })
        })
    }

    /// What may not go on beside a restore.
    pub(super) fn busy(&self) -> Option<(&'static str, String)> {
        if let Some(why) = &self.sight.rollout {
            return Some(("RolloutInFlight", why.clone()));
        }
        for (name, node) in &self.sight.nodes {
            if let Some(why) = &node.stale {
                return Some(("NodeSilent", format!("{name}: {why}")));
            }
            if let Some(number) = node.ticket {
                return Some(("RolloutInFlight", format!("ticket {number} is live on {name}")));
            }
        }
        None
    }
}
