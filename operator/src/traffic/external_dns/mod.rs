//! A `DNSEndpoint` of external-dns: weighted records of one name, one of each colour.
//!
//! | file | what |
//! | --- | --- |
//! | `records` | its records as they are, and with other weights; pure |
//! | here | reading and applying the object |
//!
//! external-dns notes the generation that it has read in the object's status, and changes the provider's zone right after.
//! The zone itself gives each who asks one record by chance, so that nobody can read weights there: they count as set when
//! the generation was read, and as heeded after `settlesInSeconds`.

mod records;

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use lockkeeper_crds::ExternalDnsTraffic;
use serde_json::json;

use super::edge::Edge;
use super::{Seen, TrafficError, Weights};
use crate::api::{ApiError, ApiServers};
use records::Colours;

const UNREAD: &str = "external-dns has not read its newest weights yet";
/// How often weights are set on what was read, when somebody else writes in between: external-dns writes its status once
/// after each change.
const TRIES: usize = 3;

/// An object, and the records of each colour in it.
#[derive(Clone)]
pub struct ExternalDns {
    edge: Edge,
    object: Api<DynamicObject>,
    name: String,
    /// The object and its cluster, for a person.
    target: String,
    colours: Colours,
    settles_in: Duration,
}

impl std::fmt::Debug for ExternalDns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExternalDns")
            .field("target", &self.target)
            .field("colours", &self.colours)
            .finish_non_exhaustive()
    }
}

impl ExternalDns {
    /// `edge`: the API of the cluster in which the object lies.
    pub(super) fn from_spec(spec: &ExternalDnsTraffic, edge: ApiServers) -> Result<Self, TrafficError> {
        let edge = Edge::new(edge, &spec.cluster);
        let gvk = GroupVersionKind::gvk("externaldns.k8s.io", "v1alpha1", "DNSEndpoint");
        let resource = ApiResource::from_gvk(&gvk);
        Ok(Self {
            object: Api::namespaced_with(edge.client(), &spec.namespace, &resource),
            name: spec.name.clone(),
            target: format!("DNSEndpoint {}/{} in {}", spec.namespace, spec.name, edge.place()),
            colours: Colours::new(spec)?,
            settles_in: Duration::from_secs(spec.settles_in_seconds.into()),
            edge,
        })
    }

    /// The API of the cluster in which the object lies.
    pub(crate) const fn edge(&self) -> &ApiServers {
        self.edge.api()
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        BTreeSet::from([self.target.clone()])
    }

    pub(super) const fn settles_in(&self) -> Duration {
        self.settles_in
    }

    /// Applies what is there, and nothing of it: whether we may is known then. What external-dns has not read by now it may
    /// never read.
    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        let found = self.read().await?;
        let weights = records::shares(&found, &self.colours, &self.target)?;
        if !records::was_read(&found) {
            return Err(TrafficError::Refused {
                target: self.target.clone(),
                detail: format!("{UNREAD}: is it at work, and does it look at this object?"),
            });
        }
        let applied = self.apply(&found, weights, true).await;
        applied.map_err(|error| self.failed(&error))
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let found = self.read().await?;
        let weights = records::shares(&found, &self.colours, &self.target)?;
        if !records::was_read(&found) {
            return Err(TrafficError::AtWork {
                target: self.target.clone(),
                detail: format!("{UNREAD}; it does so every --interval, or at once with --events"),
            });
        }
        Ok(Seen {
            weights,
            from: self.target.clone(),
        })
    }

    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        for _ in 0..TRIES {
            let found = self.read().await?;
            match records::shares(&found, &self.colours, &self.target) {
                Ok(set) if set == weights => return Ok(()),
                // Names that differ are made alike by that.
                Ok(_) | Err(TrafficError::Differ { .. }) => {}
                Err(error) => return Err(error),
            }
            match self.apply(&found, weights, false).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(TrafficError::Refused {
            target: self.target.clone(),
            detail: format!("somebody else changed it {TRIES} times while it was being set"),
        })
    }

    async fn read(&self) -> Result<DynamicObject, TrafficError> {
        let read = self
            .edge
            .call(format!("read {}", self.target), self.object.get(&self.name));
        read.await.map_err(|error| self.failed(&error))
    }

    async fn apply(&self, found: &DynamicObject, weights: Weights, dry_run: bool) -> Result<(), ApiError> {
        let what = format!("set the weights of {}", self.target);
        let spec = json!({"endpoints": records::with(found, &self.colours, weights)});
        self.edge.apply(what, &self.object, found, &spec, dry_run).await
    }

    fn failed(&self, error: &ApiError) -> TrafficError {
        TrafficError::of_api(&self.target, error)
    }
}
