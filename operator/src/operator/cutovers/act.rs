//! Reading and writing what cutovers need of this cluster's API: one object each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use lockkeeper_crds as crds;
use serde_json::json;

use crate::operator::act::{ActError, FINALIZER, Hands};

impl Hands {
    fn cutovers(&self) -> Api<crds::ClusterCutover> {
        Api::all(self.api.client())
    }

    /// As the API knows it now; none: it is gone.
    pub(super) async fn read_cutover(&self, name: &str) -> Result<Option<crds::ClusterCutover>, ActError> {
        let api = self.cutovers();
        let what = format!("read ClusterCutover {name}");
        Ok(self.api.within(what, api.get_opt(name)).await?)
    }

    /// Every one as the API knows it now.
    pub(super) async fn list_cutovers(&self) -> Result<Vec<crds::ClusterCutover>, ActError> {
        let api = self.cutovers();
        let params = ListParams::default();
        let listed = self.api.within("list ClusterCutovers", api.list(&params)).await?;
        Ok(listed.items)
    }

    /// Writes the status of what was read: refused when it has been changed since.
    pub(super) async fn write_cutover(
        &self,
        object: &crds::ClusterCutover,
        status: crds::ClusterCutoverStatus,
    ) -> Result<(), ActError> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut next = object.clone();
        next.status = Some(status);
        let (params, api) = (PostParams::default(), self.cutovers());
        let what = format!("write the status of ClusterCutover {name}");
        self.api
            .within(what, api.replace_status(name, &params, &next))
            .await?;
        Ok(())
    }

    /// Keeps it from being deleted, or lets it go: a deletion in the middle goes back first.
    pub(super) async fn hold_cutover(
        &self,
        object: &crds::ClusterCutover,
        hold: bool,
    ) -> Result<(), ActError> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut kept: Vec<String> = object.metadata.finalizers.clone().unwrap_or_default();
        kept.retain(|f| f != FINALIZER);
        if hold {
            kept.push(FINALIZER.to_owned());
        }
        let patch =
            json!({"metadata": {"resourceVersion": object.metadata.resource_version, "finalizers": kept}});
        let (params, patch, api) = (PatchParams::default(), Patch::Merge(&patch), self.cutovers());
        let what = format!("set the finalizer of ClusterCutover {name}");
        self.api.within(what, api.patch(name, &params, &patch)).await?;
        Ok(())
    }

    /// A Secret's content, or why there is none, as a sentence.
    pub(super) async fn read_secret(&self, name: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        let api: Api<Secret> = Api::namespaced(self.api.client(), &self.namespace);
        let what = format!("read Secret {}/{name}", self.namespace);
        let found = self.api.within(what, api.get_opt(name)).await.map_err(|error| {
            if error.is_forbidden() {
                format!("{error}: name it in the chart's cutover.secretNames")
            } else {
                error.to_string()
            }
        })?;
        let found = found.ok_or_else(|| format!("there is no Secret {}/{name}: make it", self.namespace))?;
        let data = found.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, value.0)).collect())
    }
}
