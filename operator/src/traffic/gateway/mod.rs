//! Routes of the Gateway API in an edge cluster: the weights of their backends.
//!
//! | file | what |
//! | --- | --- |
//! | `rules` | a route's rules as they are, and with other weights; pure |
//! | here | reading and applying routes, and whether their gateways have taken them |
//!
//! Lists of rules and of backends are atomic in the schema: whoever sets a weight sets all rules. So they are applied as
//! they were read, on the version that was read, and whoever changes a rule in between is not overwritten.
//!
//! A weight that stands in a route is not yet heeded: it counts as set when every parent says so of this generation
//! (`Accepted` and `ResolvedRefs`).

mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::{join_all, try_join_all};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::discovery;
use lockkeeper_crds::{GatewayTraffic, RouteRef};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{Seen, TrafficError, Weights};
use crate::api::{ApiError, ApiServers};
use rules::Colours;

/// The group of all routes.
const GROUP: &str = "gateway.networking.k8s.io";
/// Who sets the rules, as `managedFields` tells it.
const FIELD_MANAGER: &str = "lockkeeper-cutover";

/// Routes, and the two backends in them.
#[derive(Clone)]
pub struct Gateway {
    api: ApiServers,
    routes: Vec<RouteRef>,
    colours: Colours,
    /// The versions in which the edge serves its routes; asked for once.
    kinds: Arc<OnceCell<discovery::ApiGroup>>,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway")
            .field("routes", &self.routes)
            .field("colours", &self.colours)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// `api`: the edge cluster's.
    pub(super) fn from_spec(spec: &GatewayTraffic, api: ApiServers) -> Result<Self, TrafficError> {
        if spec.routes.is_empty() {
            return Err(TrafficError::Spec {
                field: "spec.traffic.gateway.routes",
                problem: "is empty: name the routes whose backends are blue and green".to_owned(),
            });
        }
        Ok(Self {
            api,
            routes: spec.routes.clone(),
            colours: Colours::new(&spec.blue, &spec.green)?,
            kinds: Arc::default(),
        })
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        self.routes.iter().map(target).collect()
    }

    /// Applies what is there, and nothing of it: whether we may is known then.
    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        try_join_all(self.routes.iter().map(async |route| {
            let found = self.read(route).await?;
            let shares = rules::shares(&found, &self.colours, &target(route))?;
            self.taken(route, &found)?;
            self.apply(route, &found, shares, true).await
        }))
        .await
        .map(drop)
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let seen = try_join_all(self.routes.iter().map(async |route| {
            let found = self.read(route).await?;
            let shares = rules::shares(&found, &self.colours, &target(route))?;
            self.taken(route, &found)?;
            Ok::<_, TrafficError>((route, shares))
        }))
        .await?;
        let from: Vec<String> = seen.iter().map(|(route, _)| target(route)).collect();
        let greens: Vec<u8> = seen.iter().map(|(_, shares)| shares.green).collect();
        let weights = seen.first().map(|(_, shares)| *shares).unwrap_or(Weights::BLUE);
        if greens.iter().any(|green| *green != weights.green) {
            let list = seen
                .iter()
                .map(|(route, shares)| format!("{shares} in {}", target(route)));
            return Err(TrafficError::Differ {
                detail: list.collect::<Vec<_>>().join("; "),
                greens,
            });
        }
        Ok(Seen {
            weights,
            from: from.join(", "),
        })
    }

    /// Every route that can be set is set, also where another one cannot: going back must not wait for it.
    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        join_all(self.routes.iter().map(async |route| {
            let found = self.read(route).await?;
            if rules::shares(&found, &self.colours, &target(route))? == weights {
                return Ok(());
            }
            self.apply(route, &found, weights, false).await
        }))
        .await
        .into_iter()
        .collect()
    }

    async fn routes_of(&self, route: &RouteRef) -> Result<Api<DynamicObject>, TrafficError> {
        let client = self.api.client();
        let asked = self.kinds.get_or_try_init(|| {
            self.api
                .within("ask which routes there are", discovery::group(&client, GROUP))
        });
        let group = asked.await.map_err(|error| failed(route, &error))?;
        let kind = route.kind.to_string();
        let found = group.recommended_kind(&kind);
        let (resource, _): (ApiResource, _) = found.ok_or_else(|| TrafficError::Unfit {
            target: target(route),
            problem: format!("the cluster knows no {kind}: install the Gateway API's"),
        })?;
        Ok(Api::namespaced_with(client.clone(), &route.namespace, &resource))
    }

    async fn read(&self, route: &RouteRef) -> Result<DynamicObject, TrafficError> {
        let api = self.routes_of(route).await?;
        let what = format!("read {}", target(route));
        let found = self.api.within(what, api.get(&route.name)).await;
        found.map_err(|error| failed(route, &error))
    }

    async fn apply(
        &self,
        route: &RouteRef,
        found: &DynamicObject,
        weights: Weights,
        dry_run: bool,
    ) -> Result<(), TrafficError> {
        let api = self.routes_of(route).await?;
        let rules = rules::with(found, &self.colours, weights);
        let patch = json!({
            "apiVersion": found.types.as_ref().map(|t| &t.api_version),
            "kind": found.types.as_ref().map(|t| &t.kind),
            "metadata": {"resourceVersion": found.metadata.resource_version},
            "spec": {"rules": rules},
        });
        let params = PatchParams {
            dry_run,
            force: true,
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let (what, patch) = (
            format!("set the weights of {}", target(route)),
            Patch::Apply(&patch),
        );
        let applied = self
            .api
            .within(what, api.patch(&route.name, &params, &patch))
            .await;
        applied.map(drop).map_err(|error| failed(route, &error))
    }

    fn taken(&self, route: &RouteRef, found: &DynamicObject) -> Result<(), TrafficError> {
        rules::taken(found).map_err(|problem| TrafficError::Refused {
            target: target(route),
            detail: problem,
        })
    }
}

fn target(route: &RouteRef) -> String {
    format!("{} {}/{}", route.kind, route.namespace, route.name)
}

fn failed(route: &RouteRef, error: &ApiError) -> TrafficError {
    let (target, detail) = (target(route), error.to_string());
    if error.is_not_found() || error.is_forbidden() || error.is_invalid() {
        TrafficError::Refused { target, detail }
    } else {
        TrafficError::Unreachable { target, detail }
    }
}
