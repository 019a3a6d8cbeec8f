//! Routes of the Gateway API in an edge cluster: the weights of their backends.
//!
//! | file | what |
//! | --- | --- |
//! | `rules` | a route's rules as they are, and with other weights; pure |
//! | `taken` | whether its gateways have taken it, by its status and theirs; pure |
//! | here | reading and applying routes |
//!
//! Lists of rules and of backends are atomic in the schema: whoever sets a weight sets all rules. So they are applied as
//! they were read, on the version that was read, and whoever changes a rule in between is not overwritten. They are
//! taken from their owner all the same (`force`): a route without an owner of its rules does not exist.
//!
//! A weight that stands in a route is not yet heeded: it counts as set when every gateway that the route names has taken
//! this generation, and is programmed itself.

mod rules;
mod taken;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use kube::discovery;
use lockkeeper_crds::{GatewayApiTraffic, RouteRef};
use serde_json::json;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};

use super::edge::Edge;
use super::{Seen, TrafficError, Weights};
use crate::api::{ApiError, ApiServers};
use rules::{Colours, Share};
use taken::GatewayRef;

/// The group of routes and gateways.
const GROUP: &str = "gateway.networking.k8s.io";
/// How long a step is waited for until its gateways have taken it, before it is said that they have not: they take tenths
/// of a second, and whoever gives the word to go back meanwhile waits along.
const TAKING: Duration = Duration::from_millis(600);
/// Between two looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often weights are set on what was read, when somebody else writes in between: a gateway writes a route's status
/// once or twice after each change.
const TRIES: usize = 4;

/// Routes, and the two backends in them.
#[derive(Clone)]
pub struct GatewayApi {
    edge: Edge,
    routes: Arc<[Route]>,
    colours: Colours,
    settles_in: Duration,
}

/// A route.
struct Route {
    named: RouteRef,
    /// How it is reached; asked for until it is known.
    api: OnceCell<Api<DynamicObject>>,
    /// As it was read last: a question less on the way back, when each counts. Nothing is believed for it: it is only
    /// ever written with its `resourceVersion`, and gateways that it does not name any more are asked in vain.
    last: Mutex<Option<DynamicObject>>,
}

impl Route {
    fn last(&self) -> MutexGuard<'_, Option<DynamicObject>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A route as it was read.
struct Found<'r> {
    route: &'r Route,
    api: &'r Api<DynamicObject>,
    object: DynamicObject,
}

impl Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RouteRef {
            kind,
            namespace,
            name,
        } = &self.named;
        write!(f, "{kind} {namespace}/{name}")
    }
}

impl std::fmt::Debug for GatewayApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayApi")
            .field("routes", &self.targets())
            .field("colours", &self.colours)
            .finish_non_exhaustive()
    }
}

impl GatewayApi {
    /// `edge`: the API of the cluster in which the routes lie.
    pub(super) fn from_spec(spec: &GatewayApiTraffic, edge: ApiServers) -> Result<Self, TrafficError> {
        if spec.routes.is_empty() {
            return Err(TrafficError::Spec {
                field: "spec.traffic.gatewayAPI.routes",
                problem: "is empty: name the routes whose backends are blue and green".to_owned(),
            });
        }
        let routes = spec.routes.iter().map(|named| Route {
            named: named.clone(),
            api: OnceCell::new(),
            last: Mutex::default(),
        });
        Ok(Self {
            edge: Edge::new(edge, &spec.cluster),
            routes: routes.collect(),
            colours: Colours::new(&spec.blue, &spec.green)?,
            settles_in: Duration::from_secs(spec.settles_in_seconds.into()),
        })
    }

    /// The API of the cluster in which the routes lie.
    pub(crate) const fn edge(&self) -> &ApiServers {
        self.edge.api()
    }

    /// Namespace and name of every gateway that a route names; of none that cannot be read.
    pub(crate) async fn gateways(&self) -> BTreeSet<(String, String)> {
        let read = join_all(self.routes.iter().map(|route| self.read(route))).await;
        let named = read
            .iter()
            .flatten()
            .flat_map(|found| taken::gateways(&found.object));
        named.map(|gateway| (gateway.namespace, gateway.name)).collect()
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        let routes = self.routes.iter();
        routes
            .map(|route| format!("{route} in {}", self.edge.place()))
            .collect()
    }

    pub(super) const fn settles_in(&self) -> Duration {
        self.settles_in
    }

    /// Applies what is there, and nothing of it: whether we may is known then.
    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        let weights = self.seen().await?.weights;
        try_join_all(self.routes.iter().map(async |route| {
            let found = self.read(route).await?;
            taken::refs_resolve(&found.object).map_err(|detail| refused(route, detail))?;
            let applied = self.apply(&found, weights, true).await;
            applied.map_err(|error| failed(route, &error))
        }))
        .await
        .map(drop)
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let read = try_join_all(self.routes.iter().map(async |route| {
            let found = self.read(route).await?;
            let shares = self.shares(&found)?;
            Ok::<_, TrafficError>((found, shares))
        }));
        // Those that were named a moment ago, at the same time.
        let known: BTreeSet<GatewayRef> = self
            .routes
            .iter()
            .flat_map(|route| route.last().as_ref().map_or_else(Vec::new, taken::gateways))
            .collect();
        let programmed = join_all(known.iter().map(|gateway| self.programmed(gateway)));
        let (all, programmed) = tokio::join!(read, programmed);
        let all = all?;
        for (Found { route, object, .. }, shares) in &all {
            taken::by_all(object).map_err(|detail| refused(route, detail))?;
            // Who goes back does not wait for what leads to green.
            if shares.iter().any(|share| share.weights() != Some(Weights::BLUE)) {
                taken::refs_resolve(object).map_err(|detail| refused(route, detail))?;
            }
        }
        let mut told: BTreeMap<&GatewayRef, _> = known.iter().zip(programmed).collect();
        let named: BTreeSet<GatewayRef> = all
            .iter()
            .flat_map(|(found, _)| taken::gateways(&found.object))
            .collect();
        try_join_all(named.iter().map(|gateway| {
            let told = told.remove(gateway);
            async move {
                match told {
                    Some(told) => told,
                    None => self.programmed(gateway).await,
                }
            }
        }))
        .await?;

        let weights = rules::together(all.iter().flat_map(|(_, shares)| shares))?;
        let from = self.targets().into_iter().collect::<Vec<_>>().join(", ");
        Ok(Seen { weights, from })
    }

    /// Every route that can be set is set, also where another one cannot: going back must not wait for it.
    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        let set = join_all(self.routes.iter().map(|route| self.set_one(route, weights)));
        set.await.into_iter().collect::<Result<(), _>>()?;
        if weights != Weights::BLUE {
            let taken = async {
                while self.seen().await.is_err() {
                    sleep(LOOK_EVERY).await;
                }
            };
            // Whether they have is for the next look to say.
            let _ = timeout(TAKING, taken).await;
        }
        Ok(())
    }

    async fn set_one(&self, route: &Route, weights: Weights) -> Result<(), TrafficError> {
        let last = route.last().take();
        let mut known = last
            .zip(route.api.get())
            .map(|(object, api)| Found { route, api, object });
        for _ in 0..TRIES {
            let found = match known.take() {
                Some(found) => found,
                None => self.read(route).await?,
            };
            let shares = self.shares(&found)?;
            if shares.iter().all(|share| share.weights() == Some(weights)) {
                return Ok(());
            }
            match self.apply(&found, weights, false).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(failed(route, &error)),
            }
        }
        let detail = format!("somebody else changed it {TRIES} times while it was being set");
        Err(refused(route, detail))
    }

    fn shares(&self, found: &Found<'_>) -> Result<Vec<Share>, TrafficError> {
        rules::shares(&found.object, &self.colours, &found.route.to_string())
    }

    /// The routes of its kind, in the most stable version in which the edge serves them: TCPRoute has been an alpha for
    /// years beside HTTPRoute's v1.
    async fn api<'r>(&self, route: &'r Route) -> Result<&'r Api<DynamicObject>, TrafficError> {
        let ask = async || {
            let (client, kind) = (self.edge.client(), route.named.kind.to_string());
            let group = self
                .edge
                .call("ask which routes there are", discovery::group(&client, GROUP));
            let group = group.await.map_err(|error| failed(route, &error))?;
            let mut served = group.resources_by_stability().into_iter();
            let found = served.find(|(resource, _)| resource.kind == kind);
            let (resource, _) = found.ok_or_else(|| TrafficError::Unfit {
                target: route.to_string(),
                problem: format!("the cluster knows no {kind}: install the Gateway API's"),
            })?;
            Ok(Api::namespaced_with(client, &route.named.namespace, &resource))
        };
        route.api.get_or_try_init(ask).await
    }

    async fn read<'r>(&self, route: &'r Route) -> Result<Found<'r>, TrafficError> {
        let api = self.api(route).await?;
        let read = self
            .edge
            .call(format!("read {route}"), api.get(&route.named.name));
        let object = read.await.map_err(|error| failed(route, &error))?;
        *route.last() = Some(object.clone());
        Ok(Found { route, api, object })
    }

    async fn apply(&self, found: &Found<'_>, weights: Weights, dry_run: bool) -> Result<(), ApiError> {
        let Found { route, api, object } = found;
        let what = format!("set the weights of {route}");
        let spec = json!({"rules": rules::with(object, &self.colours, weights)});
        self.edge.apply(what, api, object, &spec, dry_run).await
    }

    async fn programmed(&self, gateway: &GatewayRef) -> Result<(), TrafficError> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, "v1", "Gateway"));
        let api: Api<DynamicObject> = Api::namespaced_with(self.edge.client(), &gateway.namespace, &kind);
        let target = format!("Gateway {}/{}", gateway.namespace, gateway.name);
        let found = self.edge.call(format!("read {target}"), api.get(&gateway.name));
        let found = found
            .await
            .map_err(|error| TrafficError::of_api(&target, &error))?;
        taken::programmed(&found).map_err(|detail| TrafficError::Refused { target, detail })
    }
}

fn refused(route: &Route, detail: String) -> TrafficError {
    TrafficError::Refused {
        target: route.to_string(),
        detail,
    }
}

fn failed(route: &Route, error: &ApiError) -> TrafficError {
    TrafficError::of_api(&route.to_string(), error)
}
