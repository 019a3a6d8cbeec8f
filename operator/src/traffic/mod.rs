//! Traffic of two clusters: the shares of it, set and read back.
//!
//! | | |
//! | --- | --- |
//! | comes in | `spec.traffic` of a `ClusterCutover`, the Secrets that it names, the [`Weights`] that are wanted |
//! | goes out | what is set at the source of truth, as it is read there: never what was asked for |
//! | may touch | what moves the traffic, by its own interface: of Kubernetes objects routes, records and Jobs of its own; no file |
//!
//! A driver remembers nothing between two calls, so that it may die at any of them. Where several parts carry the
//! traffic all of them are set and all are read; if they differ, the weights are unknown. What is not ours is left
//! alone, and named. No error, log line or `Debug` output of this room holds a Secret's content.

mod dns;
mod edge;
mod error;
mod external_dns;
mod gateway;
mod haproxy;
mod hook;
mod job;
mod part;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use lockkeeper_crds::ClusterAccess;
pub use lockkeeper_crds::Weights;

use crate::api::ApiServers;

pub use dns::Dns;
pub use error::TrafficError;
pub use external_dns::ExternalDns;
pub use gateway::GatewayApi;
pub use haproxy::Haproxy;
pub use hook::Hook;
pub use job::Job;
use part::Part;

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

/// What moves the traffic: one part or several, of any kinds, which are set together.
#[derive(Clone, Debug)]
pub struct Driver(Vec<Part>);

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
        let mut parts = Vec::new();
        if let Some(gateway) = &spec.gateway_api {
            let api = secrets.cluster("spec.traffic.gatewayAPI.cluster", &gateway.cluster, own);
            parts.push(Part::GatewayApi(GatewayApi::from_spec(gateway, api.await?)?));
        }
        if let Some(haproxy) = &spec.haproxy {
            parts.push(Part::Haproxy(Haproxy::from_spec(haproxy)?));
        }
        if let Some(dns) = &spec.dns {
            parts.push(Part::Dns(Dns::from_spec(dns, secrets)?));
        }
        if let Some(external) = &spec.external_dns {
            let api = secrets.cluster("spec.traffic.externalDNS.cluster", &external.cluster, own);
            parts.push(Part::ExternalDns(ExternalDns::from_spec(external, api.await?)?));
        }
        if let Some(hook) = &spec.hook {
            parts.push(Part::Hook(Hook::from_spec(hook, secrets)?));
        }
        if let Some(job) = &spec.job {
            let api = secrets.cluster("spec.traffic.job.cluster", &job.cluster, own);
            parts.push(Part::Job(Job::from_spec(job, api.await?)));
        }
        if parts.is_empty() {
            return Err(TrafficError::Spec {
                field: "spec.traffic",
                problem:
                    "must name what moves the traffic: gatewayAPI, haproxy, dns, externalDNS, hook or job"
                        .to_owned(),
            });
        }
        Ok(Self(parts))
    }

    /// The routes among its parts.
    pub(crate) fn gateway_api(&self) -> Option<&GatewayApi> {
        self.0.iter().find_map(|part| match part {
            Part::GatewayApi(routes) => Some(routes),
            _ => None,
        })
    }

    /// The weighted records among its parts.
    pub(crate) fn external_dns(&self) -> Option<&ExternalDns> {
        self.0.iter().find_map(|part| match part {
            Part::ExternalDns(records) => Some(records),
            _ => None,
        })
    }

    /// The Jobs among its parts.
    pub(crate) fn job(&self) -> Option<&Job> {
        self.0.iter().find_map(|part| match part {
            Part::Job(jobs) => Some(jobs),
            _ => None,
        })
    }

    /// Which targets it moves, one a line. Two cutovers that have a line in common would fight.
    ///
    /// Caveat: one target under two names (an address and its DNS name) is two lines.
    #[must_use]
    pub fn targets(&self) -> BTreeSet<String> {
        self.0.iter().flat_map(Part::targets).collect()
    }

    /// Asks whether every target can be reached, read and set, and has nothing but the two colours. Changes nothing.
    ///
    /// # Errors
    /// What stands in the way, and the way out.
    pub async fn check(&self) -> Result<(), TrafficError> {
        try_join_all(self.0.iter().map(Part::check)).await.map(drop)
    }

    /// Whether these weights can be made at all, by every part.
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
        self.0.iter().try_for_each(|part| part.can(weights))
    }

    /// Makes the targets ready for changes: lowers a TTL. May be called again. What it returns is how long from now
    /// somebody may still go by what was before.
    ///
    /// # Errors
    /// It could not, or not everywhere yet.
    pub async fn prepare(&self) -> Result<Duration, TrafficError> {
        let waits = try_join_all(self.0.iter().map(Part::prepare)).await?;
        Ok(waits.into_iter().max().unwrap_or_default())
    }

    /// Takes back what [`Driver::prepare`] did, once no more changes are to come. May be called again.
    ///
    /// # Errors
    /// It could not.
    pub async fn finish(&self) -> Result<(), TrafficError> {
        let tried = join_all(self.0.iter().map(Part::finish)).await;
        tried.into_iter().collect()
    }

    /// The weights, from the source of truth.
    ///
    /// # Errors
    /// They are unknown: no answer, or parts of the target that differ. [`TrafficError::AtWork`] where nothing worse is
    /// the matter.
    pub async fn seen(&self) -> Result<Seen, TrafficError> {
        let mut at_work = None;
        let (mut whole, mut greens, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for seen in join_all(self.0.iter().map(Part::seen)).await {
            match seen {
                Ok(seen) => {
                    greens.push(seen.weights.green);
                    told.push(format!("{} at {}", seen.weights, seen.from));
                    whole.push(seen);
                }
                Err(TrafficError::Differ { greens: its, detail }) if !its.is_empty() => {
                    greens.extend(its);
                    told.push(detail);
                }
                Err(error) if error.is_at_work() => at_work = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = at_work {
            return Err(error);
        }
        let one = greens.iter().all(|green| greens.first() == Some(green));
        match whole.first().map(|seen| seen.weights) {
            Some(weights) if one && whole.len() == self.0.len() => Ok(Seen {
                weights,
                from: whole
                    .into_iter()
                    .map(|seen| seen.from)
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
            _ => Err(TrafficError::Differ {
                detail: told.join("; "),
                greens,
            }),
        }
    }

    /// Sets the weights everywhere; nothing is sent to what has them already, and what can be set is set though another
    /// part cannot. What is set is known by [`Driver::seen`] only.
    ///
    /// # Errors
    /// Some parts may have been set, others not: set again, or set something else.
    pub async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        self.can(weights)?;
        let tried = join_all(self.0.iter().map(|part| part.set(weights))).await;
        tried.into_iter().collect()
    }

    /// How long after [`Driver::set`] the last client heeds it. Zero: at once.
    #[must_use]
    pub fn settles_in(&self) -> Duration {
        let settle = self.0.iter().map(Part::settles_in);
        settle.max().unwrap_or_default()
    }

    /// How long it may take until [`Driver::seen`] tells what [`Driver::set`] began to set, where that is long.
    #[must_use]
    pub fn takes(&self) -> Duration {
        let takes = self.0.iter().map(Part::takes);
        takes.max().unwrap_or_default()
    }
}

/// The one share that all give, each with where it was found (`in …`, `at …`); none of nothing.
fn alike(found: &[(Weights, String)]) -> Result<Option<Weights>, TrafficError> {
    let first = found.first().map(|(weights, _)| *weights);
    if found.iter().all(|(weights, _)| Some(*weights) == first) {
        return Ok(first);
    }
    let told = found.iter().map(|(weights, place)| format!("{weights} {place}"));
    Err(TrafficError::Differ {
        detail: told.collect::<Vec<_>>().join("; "),
        greens: found.iter().map(|(weights, _)| weights.green).collect(),
    })
}

/// What one of the user's own says in words: `{"blue": 75, "green": 25}`. Or what is wrong with it, without quoting it.
fn told(words: &[u8]) -> Result<Weights, String> {
    let weights: Weights =
        serde_json::from_slice(words).map_err(|_| "it is not as {\"blue\": 75, \"green\": 25}")?;
    if u16::from(weights.blue) + u16::from(weights.green) != 100 {
        return Err(format!("{weights} is not 100 % together"));
    }
    Ok(weights)
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
