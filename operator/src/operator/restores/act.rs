//! Doing what was decided of restores: one object each, refused when it was changed since.

use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds as crds;
use serde_json::json;

use super::adopt::Lost;
use crate::operator::act::{ActError, FIELD_MANAGER, Hands};

/// On the backup of the state right before a restore: the name of that.
const BEFORE_RESTORE: &str = "lockkeeper.dev/before-restore";

impl Hands {
    fn restores(&self) -> Api<crds::EtcdRestore> {
        Api::namespaced(self.api.client(), &self.namespace)
    }

    /// Every restore as the API knows it now, and etcd's revision then.
    pub(super) async fn list_restores(&self) -> Result<(Vec<crds::EtcdRestore>, i64), ActError> {
        let api = self.restores();
        let listed = self
            .api
            .within("list EtcdRestores", api.list(&ListParams::default()))
            .await?;
        let revision = listed
            .metadata
            .resource_version
            .as_deref()
            .and_then(|v| v.parse().ok());
        Ok((listed.items, revision.unwrap_or(0)))
    }

    /// Writes the status of what was read: refused when it has been changed since.
    pub(super) async fn write_restore(
        &self,
        object: &crds::EtcdRestore,
        status: crds::EtcdRestoreStatus,
    ) -> Result<(), ActError> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut next = object.clone();
        next.status = Some(status);
        let (params, api) = (PostParams::default(), self.restores());
        let call = api.replace_status(name, &params, &next);
        self.api
            .within(format!("write the status of EtcdRestore {name}"), call)
            .await?;
        Ok(())
    }

    /// Makes an object that tells of a restore which the restored etcd does not know.
    pub(super) async fn tell_of_restore(
        &self,
        name: &str,
        progress: &crds::RestoreProgress,
    ) -> Result<(), ActError> {
        let uri = progress
            .backup
            .as_ref()
            .map(|b| b.uri.clone())
            .unwrap_or_default();
        let object: crds::EtcdRestore = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdRestore",
            "metadata": {
                "name": name, "namespace": self.namespace,
                "annotations": {crds::RESTORED_ANNOTATION: progress.id},
            },
            // Without the confirmation.
            "spec": {"from": {"uri": uri}, "storeRef": {"name": progress.store}, "mode": progress.mode},
        }))
        .map_err(|e| ActError::Changed(e.to_string()))?;
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let api = self.restores();
        match self
            .api
            .within(format!("create EtcdRestore {name}"), api.create(&params, &object))
            .await
        {
            Err(error) if error.is_conflict() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Gives a node its order, or takes it, unless the object was changed since it was read.
    pub(super) async fn give_restore(
        &self,
        node: &crds::ControlPlaneNode,
        order: Option<&crds::RestoreOrder>,
    ) -> Result<(), ActError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"restore": order},
        });
        let api: Api<crds::ControlPlaneNode> = Api::all(self.api.client());
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let what = format!("give {name} its part of a restore");
        match self.api.within(what, api.patch(name, &params, &patch)).await {
            Err(error) if error.is_conflict() => {
                Err(ActError::Changed(format!("ControlPlaneNode {name} was changed")))
            }
            other => Ok(other.map(drop)?),
        }
    }

    /// Makes the backup of the state right before.
    pub(super) async fn back_up_before(
        &self,
        name: &str,
        store: &crds::LocalReference,
        restore: &str,
    ) -> Result<(), ActError> {
        let restore: String = restore.chars().take(63).collect();
        let metadata = json!({"labels": {BEFORE_RESTORE: restore}, "finalizers": [crds::STORED_FINALIZER]});
        let seconds = crate::operator::act::SNAPSHOT_SECONDS;
        let spec = json!({"storeRef": store, "deadlineSeconds": seconds});
        self.create_backup(name, metadata, spec).await
    }

    /// Makes an object for a backup that was taken before this restore. No schedule lets it go: whether it was to be kept
    /// for ever, nobody knows any more.
    pub(super) async fn adopt_backup(&self, lost: &Lost, restore: &str) -> Result<(), ActError> {
        let labels = lost.found.schedule.as_ref();
        let labels = labels.map(|schedule| json!({crds::SCHEDULE_LABEL: schedule}));
        let metadata = json!({
            "labels": labels,
            "annotations": {
                crds::STORED_AS_ANNOTATION: lost.found.stored_as,
                crds::RETAIN_ANNOTATION: format!("taken before EtcdRestore {restore}"),
            },
            "finalizers": [crds::STORED_FINALIZER],
        });
        let spec = json!({"storeRef": {"name": lost.store}});
        self.create_backup(&lost.name, metadata, spec).await
    }

    /// What a person types to confirm: the cluster's name of kubeadm's ConfigMap, or that of the `ClusterVersion`.
    pub(super) async fn cluster_name(&self) -> Result<String, ActError> {
        let api: Api<k8s_openapi::api::core::v1::ConfigMap> =
            Api::namespaced(self.api.client(), "kube-system");
        let what = "read ConfigMap kube-system/kubeadm-config";
        let found = self.api.within(what, api.get_opt("kubeadm-config")).await?;
        let text = found.and_then(|map| map.data?.remove("ClusterConfiguration"));
        Ok(text.as_deref().and_then(named).unwrap_or("cluster").to_owned())
    }
}

/// `clusterName` of kubeadm's ClusterConfiguration.
fn named(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|l| l.strip_prefix("clusterName:"))?;
    Some(line.trim().trim_matches(['"', '\''])).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_kubeadms() {
        assert_eq!(named("apiServer: {}\nclusterName: \"prod-a\"\n"), Some("prod-a"));
        assert_eq!(named("clusterName: \n"), None);
        assert_eq!(named("  clusterName: nested\n"), None);
    }
}
