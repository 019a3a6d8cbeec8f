//! Backups of the state that a restore has taken back: they lie in the store, and no object knows of them. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt as _;
use lockkeeper_crds as crds;
use lockkeeper_crds::Unclaimed;

use crate::store::folder;

/// A backup that is to get an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    /// The object's: that of before, or where another one has it by now, the folder's.
    pub(super) name: String,
    pub(super) store: String,
    pub(super) found: Unclaimed,
}

/// Of all that nobody claims, what was taken between the restored backup and the restore, of the etcd that it is of or of
/// the one that the restore replaced. `backups`: the objects that there are.
///
/// What was kept on purpose when its object was deleted is older, or is given its object back this once.
pub(super) fn lost<'a>(
    progress: &crds::RestoreProgress,
    stores: impl IntoIterator<Item = &'a crds::EtcdBackupStore>,
    backups: &[Arc<crds::EtcdBackup>],
) -> Vec<Lost> {
    let Some(backup) = &progress.backup else {
        return vec![];
    };
    let Some(from) = backup.taken_at.as_ref().map(|t| t.0) else {
        return vec![];
    };
    let until = progress.since.0;
    let clusters = [&backup.cluster_id, &progress.replaced_cluster_id];
    let names: BTreeSet<String> = backups.iter().map(|b| b.name_any()).collect();
    let claimed: BTreeSet<String> = backups.iter().map(|b| folder(b)).collect();
    let is_lost = |found: &Unclaimed| {
        let at = found.started_at.0;
        from < at && at <= until && clusters.contains(&&found.cluster_id)
    };
    let of_store = |store: &'a crds::EtcdBackupStore| {
        let found = store.status.iter().flat_map(|s| &s.unclaimed);
        found.map(|found| (store.name_any(), found))
    };
    let lost = stores.into_iter().flat_map(of_store);
    lost.filter(|(_, found)| is_lost(found) && !claimed.contains(&found.stored_as))
        .map(|(store, found)| {
            let taken = names.contains(&found.name);
            let name = if taken { &found.stored_as } else { &found.name };
            Lost {
                name: name.clone(),
                store,
                found: found.clone(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(lost: &[Lost]) -> Vec<String> {
        lost.iter().map(|l| format!("{}/{}", l.store, l.name)).collect()
    }

    #[test]
    fn what_was_taken_between_the_backup_and_its_restore_is_lost_and_nothing_else() {
        let progress = |replaced: &str| -> crds::RestoreProgress {
            serde_json::from_value(json!({
                "id": "r", "name": "back", "stage": "Done", "since": "2026-11-02T00:00:00Z", "mode": "InPlace",
                "store": "main", "replacedClusterId": replaced,
                "backup": {"uri": "", "takenAt": "2026-11-01T00:00:00Z", "revision": 1, "etcdVersion": "3.6.0",
                    "clusterId": "first", "sizeBytes": 1, "sha256": ""},
            }))
            .unwrap()
        };
        let unclaimed = |name: &str, at: &str, cluster: &str| json!({"name": name, "storedAs": format!("{name}-00000000"), "startedAt": at, "clusterId": cluster});
        let store: crds::EtcdBackupStore = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackupStore", "metadata": {"name": "main"},
            "spec": {}, "status": {"unclaimed": [
                unclaimed("after", "2026-11-02T00:00:01Z", "first"),
                unclaimed("of-the-replaced", "2026-11-01T12:00:00Z", "second"),
                unclaimed("of-the-backups", "2026-11-01T11:00:00Z", "first"),
                unclaimed("of-another-cluster", "2026-11-01T11:00:00Z", "other"),
                unclaimed("there-again", "2026-11-01T10:00:00Z", "first"),
                unclaimed("the-backup", "2026-11-01T00:00:00Z", "first"),
                unclaimed("kept", "2026-10-01T00:00:00Z", "first"),
            ]},
        }))
        .unwrap();
        let object = |name: &str, annotations: serde_json::Value| -> Arc<crds::EtcdBackup> {
            let metadata = json!({"name": name, "uid": "12345678", "annotations": annotations});
            Arc::new(
                serde_json::from_value(json!({
                    "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": metadata,
                    "spec": {"storeRef": {"name": "main"}},
                }))
                .unwrap(),
            )
        };
        let there = object(
            "there-again",
            json!({crds::STORED_AS_ANNOTATION: "there-again-00000000"}),
        );
        // A schedule has begun that slot anew.
        let anew = object("of-the-backups", json!({}));
        let found = lost(&progress("second"), [&store], &[there.clone(), anew]);
        assert_eq!(
            names(&found),
            ["main/of-the-replaced", "main/of-the-backups-00000000"]
        );
        // Of a restore that rescue made with no etcd left.
        let found = lost(&progress(""), [&store], &[there]);
        assert_eq!(names(&found), ["main/of-the-backups"]);
    }
}
