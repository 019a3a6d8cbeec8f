//! Traffic of two clusters: the shares of it, set and read back.
//!
//! | | |
//! | --- | --- |
//! | comes in | `spec.traffic` of a `ClusterCutover`, the Secrets that it names, the [`Weights`] that are wanted |
//! | goes out | what is set at the source of truth, as it is read there: never what was asked for |
//! | may touch | what moves the traffic, by its own interface: of Kubernetes objects routes alone; no file |
//!
//! A driver remembers nothing between two calls, so that it may die at any of them. Where several parts carry the
//! traffic all of them are set and all are read; if they differ, the weights are unknown. What is not ours is left
//! alone, and named. No error, log line or `Debug` output of this room holds a Secret's content.

mod dns;
mod error;
mod gateway;
mod haproxy;
mod hook;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lockkeeper_crds::ClusterAccess;
pub use lockkeeper_crds::Weights;

use crate::api::ApiServers;

pub use dns::Dns;
pub use error::TrafficError;
pub use gateway::GatewayApi;
pub use haproxy::Haproxy;
pub use hook::Hook;

/// The longest that one part of what moves the traffic may take to answer: going back is promised within 2 s, and a
/// server on the same continent answers within a tenth of that.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The Secrets that a cutover names: name, key, content.
#[derive(Clone, Default)]
pub struct Secrets(pub BTreeMap<String, BTreeMap<String, Vec<u8>>>);

impl Secrets {
    /// A key of a Secret as text, without the line's end that editors leave.
    fn text(&self, field: &'static str, secret: &str, key: &str) -> Result<&str, TrafficError> {
        let problem = |problem: &str| TrafficError::Spec {
            field,
            problem: format!("names Secret {secret}, {problem}"),
        };
        let keys = self.0.get(secret).ok_or_else(|| problem("which is not there"))?;
        let bytes = keys
            .get(key)
            .ok_or_else(|| problem(&format!("which has no key `{key}`")))?;
        let text = std::str::from_utf8(bytes).map(str::trim_end);
        text.ok()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| problem(&format!("whose key `{key}` holds no text")))
    }

    /// The API of a cluster.
    async fn cluster(
        &self,
        field: &'static str,
        access: &ClusterAccess,
        own: &ApiServers,
    ) -> Result<ApiServers, TrafficError> {
        let Some(secret) = &access.kubeconfig_secret else {
            return Ok(own.clone());
        };
        let text = self.text(field, &secret.name, &secret.key)?;
        let api = ApiServers::from_kubeconfig(text).await;
        api.map_err(|error| TrafficError::Spec {
            field,
            problem: format!("names Secret {}: {error}", secret.name),
        })
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What was read at the source of truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What is set there. A server that is down is counted with what it would get.
    pub weights: Weights,
    /// Where it was read, for a person.
    pub from: String,
}

/// What moves the traffic.
#[derive(Clone, Debug)]
pub enum Driver {
    /// HAProxy's runtime API.
    Haproxy(Haproxy),
    /// Signed updates of a name's addresses.
    Dns(Dns),
    /// An HTTP endpoint of the user's.
    Hook(Hook),
    /// Routes of the Gateway API.
    GatewayApi(GatewayApi),
}

impl Driver {
    /// The driver that a spec asks for. Nothing is asked of anybody yet. `own`: the API of the operator's cluster.
    ///
    /// # Errors
    /// A spec that no driver can understand, whatever the schema let through.
    pub async fn from_spec(
        spec: &lockkeeper_crds::Traffic,
        secrets: &Secrets,
        own: &ApiServers,
    ) -> Result<Self, TrafficError> {
        match (&spec.haproxy, &spec.dns, &spec.hook, &spec.gateway_api) {
            (Some(haproxy), None, None, None) => Haproxy::from_spec(haproxy).map(Self::Haproxy),
            (None, Some(dns), None, None) => Dns::from_spec(dns, secrets).map(Self::Dns),
            (None, None, Some(hook), None) => Hook::from_spec(hook, secrets).map(Self::Hook),
            (None, None, None, Some(gateway)) => {
                let api = secrets.cluster("spec.traffic.gatewayAPI.cluster", &gateway.cluster, own);
                GatewayApi::from_spec(gateway, api.await?).map(Self::GatewayApi)
            }
            _ => Err(TrafficError::Spec {
                field: "spec.traffic",
                problem: "must name one thing that moves the traffic: gatewayAPI, haproxy, dns or hook"
                    .to_owned(),
            }),
        }
    }

    /// Which targets it moves, one a line. Two cutovers that have a line in common would fight.
    ///
    /// Caveat: one target under two names (an address and its DNS name) is two lines.
    #[must_use]
    pub fn targets(&self) -> BTreeSet<String> {
        match self {
            Self::Haproxy(driver) => driver.targets(),
            Self::Dns(driver) => driver.targets(),
            Self::Hook(driver) => driver.targets(),
            Self::GatewayApi(driver) => driver.targets(),
        }
    }

    /// Asks whether the target can be reached, read and set, and has nothing but the two colours. Changes nothing.
    ///
    /// # Errors
    /// What stands in the way, and the way out.
    pub async fn check(&self) -> Result<(), TrafficError> {
        match self {
            Self::Haproxy(driver) => driver.check().await,
            Self::Dns(driver) => driver.check().await,
            Self::Hook(driver) => driver.check().await,
            Self::GatewayApi(driver) => driver.check().await,
        }
    }

    /// Whether these weights can be made at all.
    ///
    /// # Errors
    /// They cannot, and which ones can.
    pub fn can(&self, weights: Weights) -> Result<(), TrafficError> {
        if u16::from(weights.blue) + u16::from(weights.green) != 100 {
            return Err(TrafficError::Spec {
                field: "spec.steps",
                problem: format!("{weights} is not 100 % together"),
            });
        }
        match self {
            Self::Dns(driver) => driver.can(weights),
            Self::Haproxy(_) | Self::Hook(_) | Self::GatewayApi(_) => Ok(()),
        }
    }

    /// Makes the target ready for changes: lowers a TTL. May be called again. What it returns is how long from now
    /// somebody may still go by what was before.
    ///
    /// # Errors
    /// It could not, or not everywhere yet.
    pub async fn prepare(&self) -> Result<Duration, TrafficError> {
        match self {
            Self::Dns(driver) => driver.prepare().await,
            Self::Haproxy(_) | Self::Hook(_) | Self::GatewayApi(_) => Ok(Duration::ZERO),
        }
    }

    /// Takes back what [`Driver::prepare`] did, once no more changes are to come. May be called again.
    ///
    /// # Errors
    /// It could not.
    pub async fn finish(&self) -> Result<(), TrafficError> {
        match self {
            Self::Dns(driver) => driver.finish().await,
            Self::Haproxy(_) | Self::Hook(_) | Self::GatewayApi(_) => Ok(()),
        }
    }

    /// The weights, from the source of truth.
    ///
    /// # Errors
    /// They are unknown: no answer, or parts of the target that differ.
    pub async fn seen(&self) -> Result<Seen, TrafficError> {
        match self {
            Self::Haproxy(driver) => driver.seen().await,
            Self::Dns(driver) => driver.seen().await,
            Self::Hook(driver) => driver.seen().await,
            Self::GatewayApi(driver) => driver.seen().await,
        }
    }

    /// Sets the weights; nothing is sent to what has them already. What is set is known by [`Driver::seen`] only.
    ///
    /// # Errors
    /// Some parts may have been set, others not: set again, or set something else.
    pub async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        self.can(weights)?;
        match self {
            Self::Haproxy(driver) => driver.set(weights).await,
            Self::Dns(driver) => driver.set(weights).await,
            Self::Hook(driver) => driver.set(weights).await,
            Self::GatewayApi(driver) => driver.set(weights).await,
        }
    }

    /// How long after [`Driver::set`] the last client heeds it. Zero: at once.
    #[must_use]
    pub fn settles_in(&self) -> Duration {
        match self {
            Self::Haproxy(_) => Duration::ZERO,
            Self::GatewayApi(driver) => driver.settles_in(),
            Self::Dns(driver) => driver.settles_in(),
            Self::Hook(driver) => driver.settles_in(),
        }
    }
}

/// The shares that two sums give, to the nearest point; what is not nothing is never said to be nothing. `None` when
/// both are.
fn nearest(blue: u64, green: u64) -> Option<Weights> {
    let total = blue + green;
    let rounded = (green * 100 + total / 2).checked_div(total)?;
    let rounded = match (blue, green) {
        (0, _) | (_, 0) => rounded,
        _ => rounded.clamp(1, 99),
    };
    u8::try_from(rounded).ok().map(Weights::of_green)
}

/// The driver that a spec asks for, for tests: no cluster is there, and nobody is asked.
#[cfg(test)]
fn built(spec: &lockkeeper_crds::Traffic, secrets: &Secrets) -> Result<Driver, TrafficError> {
    let own = crate::api::testing::api_servers(&"127.0.0.1:1".parse().unwrap());
    let driver = futures::FutureExt::now_or_never(Driver::from_spec(spec, secrets, &own));
    driver.expect("nothing is asked of anybody")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_not_nothing() {
        assert_eq!(nearest(256, 1), Some(Weights::of_green(1)));
        assert_eq!(nearest(1, 256), Some(Weights::of_green(99)));
        assert_eq!(nearest(256, 0), Some(Weights::BLUE));
        assert_eq!(nearest(2, 1), Some(Weights::of_green(33)));
        assert_eq!(nearest(0, 0), None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let key = BTreeMap::from([("key".to_owned(), b"hunter2".to_vec())]);
        let secrets = Secrets(BTreeMap::from([("tsig".to_owned(), key)]));
        assert_eq!(format!("{secrets:?}"), r#"{"tsig"}"#);
    }
}
