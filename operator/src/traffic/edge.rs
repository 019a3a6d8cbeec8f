//! A cluster in which traffic is steered by objects.

use std::fmt::Display;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use lockkeeper_crds::ClusterAccess;
use serde_json::{Value, json};

use super::ANSWER_LIMIT;
use crate::api::{ApiError, ApiServers, within};

/// Who sets the weights, as `managedFields` tells it.
const FIELD_MANAGER: &str = "lockkeeper-cutover";

/// The API of such a cluster.
#[derive(Clone)]
pub(super) struct Edge {
    api: ApiServers,
    place: String,
}

impl Edge {
    pub(super) fn new(api: ApiServers, access: &ClusterAccess) -> Self {
        let place = access.secret_name().map_or_else(
            || "this cluster".to_owned(),
            |secret| format!("the cluster of Secret {secret}"),
        );
        Self { api, place }
    }

    pub(super) const fn api(&self) -> &ApiServers {
        &self.api
    }

    pub(super) fn client(&self) -> Client {
        self.api.client()
    }

    /// Which cluster it is, for a person.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) async fn call<T>(
        &self,
        what: impl Display,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ApiError> {
        within(ANSWER_LIMIT, what, self.api.endpoints(), call).await
    }

    /// Applies this spec on the version that was found: whoever changed the object in between is not overwritten. Its fields
    /// are taken from their owner all the same.
    pub(super) async fn apply(
        &self,
        what: impl Display,
        api: &Api<DynamicObject>,
        found: &DynamicObject,
        spec: &Value,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        let types = found.types.as_ref();
        let patch = json!({
            "apiVersion": types.map(|types| &types.api_version), "kind": types.map(|types| &types.kind),
            "metadata": {"resourceVersion": found.metadata.resource_version}, "spec": spec,
        });
        let params = PatchParams {
            dry_run,
            ..PatchParams::apply(FIELD_MANAGER).force()
        };
        let (name, patch) = (found.name_any(), Patch::Apply(&patch));
        self.call(what, api.patch(&name, &params, &patch)).await.map(drop)
    }
}
