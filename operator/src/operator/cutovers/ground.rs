//! What one cutover stands on: its two clusters and what moves its traffic. Built from the spec and the Secrets that it
//! names; what cannot be built is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockkeeper_crds as crds;
use lockkeeper_policies::cutover::{Side, Weights};

use super::clusters::Cluster;
use super::status::Traffic;
use crate::api::ApiServers;
use crate::operator::act::Hands;
use crate::traffic::{Driver, Secrets, TrafficError};

/// What one cutover stands on. Each part is there, or a sentence says why it is not.
pub(super) struct Ground {
    pub(super) blue: Result<Cluster, String>,
    pub(super) green: Result<Cluster, String>,
    pub(super) driver: Result<Driver, String>,
}

impl Ground {
    pub(super) async fn build(hands: &Hands, spec: &crds::ClusterCutoverSpec) -> Self {
        Self {
            blue: cluster(hands, Side::Blue, &spec.blue).await,
            green: cluster(hands, Side::Green, &spec.green).await,
            driver: driver(hands, &spec.traffic).await,
        }
    }

    /// Builds what is not there yet.
    pub(super) async fn complete(&mut self, hands: &Hands, spec: &crds::ClusterCutoverSpec) {
        if self.blue.is_err() {
            self.blue = cluster(hands, Side::Blue, &spec.blue).await;
        }
        if self.green.is_err() {
            self.green = cluster(hands, Side::Green, &spec.green).await;
        }
        if self.driver.is_err() {
            self.driver = driver(hands, &spec.traffic).await;
        }
    }

    pub(super) const fn is_whole(&self) -> bool {
        self.blue.is_ok() && self.green.is_ok() && self.driver.is_ok()
    }

    /// Twice the TTL; unknown while there is no driver, and then nothing moves.
    pub(super) fn settles(&self) -> Duration {
        self.driver.as_ref().map_or(Duration::ZERO, Driver::settles_in)
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        self.driver.as_ref().map(Driver::targets).unwrap_or_default()
    }

    /// The weights where they are set: for the protocol, and for the status.
    pub(super) async fn traffic(&self) -> (Weights, Traffic) {
        let unread = |why: String| (Weights::Unknown(why.clone()), Traffic::Unread(why));
        let driver = match &self.driver {
            Ok(driver) => driver,
            Err(why) => return unread(why.clone()),
        };
        match driver.seen().await {
            Ok(seen) => (
                Weights::Known(vec![seen.weights.green]),
                Traffic::Read(seen.weights, seen.from),
            ),
            Err(error) => match &error {
                // All were read, and differ: somebody died in the middle of setting them.
                TrafficError::Differ { greens, .. } if !greens.is_empty() => {
                    (Weights::Known(greens.clone()), Traffic::Unread(error.to_string()))
                }
                _ => unread(error.to_string()),
            },
        }
    }
}

async fn cluster(hands: &Hands, side: Side, access: &crds::ClusterAccess) -> Result<Cluster, String> {
    let Some(secret) = &access.kubeconfig_secret else {
        return Ok(Cluster::new(side, hands.api.clone()));
    };
    let place = format!("spec.{side}: Secret {}/{}", hands.namespace, secret.name);
    let data = hands.read_secret(&secret.name).await;
    let data = data.map_err(|why| format!("spec.{side}: {why}"))?;
    let text = data
        .get(&secret.key)
        .ok_or_else(|| format!("{place} has no key {:?}: put a kubeconfig there", secret.key))?;
    let text = std::str::from_utf8(text).map_err(|_| format!("{place}: {:?} is no text", secret.key))?;
    let api = ApiServers::from_kubeconfig(text).await;
    let api = api.map_err(|error| format!("{place}: {error}"))?;
    Ok(Cluster::new(side, api))
}

async fn driver(hands: &Hands, spec: &crds::Traffic) -> Result<Driver, String> {
    let mut secrets = BTreeMap::new();
    for name in spec.secret_names() {
        let data = hands.read_secret(name).await;
        secrets.insert(
            name.to_owned(),
            data.map_err(|why| format!("spec.traffic: {why}"))?,
        );
    }
    Driver::from_spec(spec, &Secrets(secrets)).map_err(|error| error.to_string())
}
