//! What one cutover stands on: its two clusters and what moves its traffic. Built from the spec and the Secrets that it
//! names; what cannot be built is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lockkeeper_crds as crds;
use lockkeeper_policies::cutover::{Side, Weights};

use super::clusters::Cluster;
use super::gates::Reach;
use super::sight;
use super::status::Traffic;
use crate::api::ApiServers;
use crate::operator::act::Hands;
use crate::traffic::{Driver, Secrets, TrafficError};

/// What the named Secrets hold, or why each cannot be read, as a sentence.
pub(super) type Contents = BTreeMap<String, Result<BTreeMap<String, Vec<u8>>, String>>;

/// What one cutover stands on. Each part is there, or a sentence says why it is not.
pub(super) struct Ground {
    pub(super) blue: Result<Cluster, String>,
    pub(super) green: Result<Cluster, String>,
    pub(super) driver: Result<Driver, String>,
    /// What it was built from.
    contents: Contents,
}

/// What was built anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Renewed {
    pub(super) clusters: bool,
    /// A Secret holds something else.
    pub(super) secrets: bool,
}

impl Ground {
    pub(super) async fn build(hands: &Hands, object: &crds::ClusterCutover) -> Self {
        let not_built = String::new;
        let mut ground = Self {
            blue: Err(not_built()),
            green: Err(not_built()),
            driver: Err(not_built()),
            contents: Contents::new(),
        };
        ground.renew(hands, object).await;
        ground
    }

    /// Builds what is not there yet, and anew what stands on a Secret that holds something else now: credentials are
    /// replaced, also in the middle of a cutover.
    pub(super) async fn renew(&mut self, hands: &Hands, object: &crds::ClusterCutover) -> Renewed {
        let spec = &object.spec;
        let contents = read(hands, spec).await;
        let changed = changed(&self.contents, &contents);
        let stale = |name: &str| changed.contains(name);
        let blue = self.blue.is_err() || spec.blue.secret_name().is_some_and(stale);
        let green = self.green.is_err() || spec.green.secret_name().is_some_and(stale);
        if blue {
            self.blue = cluster(hands, Side::Blue, object, &contents).await;
        }
        if green {
            self.green = cluster(hands, Side::Green, object, &contents).await;
        }
        if self.driver.is_err() || spec.traffic.secret_names().into_iter().any(stale) {
            self.driver = driver(hands, &spec.traffic, &contents).await;
        }
        let renewed = Renewed {
            clusters: blue || green,
            secrets: !changed.is_empty(),
        };
        for (name, content) in contents {
            // One that cannot be read now is not forgotten by that.
            if content.is_ok() || !self.contents.contains_key(&name) {
                self.contents.insert(name, content);
            }
        }
        renewed
    }

    /// For gates.
    pub(super) fn reach(&self, hands: &Hands) -> Reach {
        let link =
            |cluster: &Result<Cluster, String>| cluster.as_ref().map(Cluster::link).map_err(Clone::clone);
        Reach {
            blue: link(&self.blue),
            green: link(&self.green),
            own: hands.api.clone(),
            secrets: Arc::new(self.contents.clone()),
        }
    }

    /// A cluster does not answer, or not to us.
    pub(super) fn is_in_trouble(&self) -> bool {
        let clusters = [&self.blue, &self.green].into_iter();
        clusters.flatten().any(|cluster| cluster.health().lost.is_some())
    }

    pub(super) const fn is_whole(&self) -> bool {
        self.blue.is_ok() && self.green.is_ok() && self.driver.is_ok()
    }

    /// Twice the TTL; unknown while there is no driver, and then nothing moves.
    pub(super) fn settles(&self) -> Duration {
        self.driver.as_ref().map_or(Duration::ZERO, Driver::settles_in)
    }

    /// How long a change may be on its way, where that is long.
    pub(super) fn takes(&self) -> Duration {
        self.driver.as_ref().map_or(Duration::ZERO, Driver::takes)
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
                TrafficError::AtWork { .. } => {
                    let what = error.to_string();
                    (Weights::NotYet(what.clone()), Traffic::Unread(what))
                }
                _ => unread(error.to_string()),
            },
        }
    }
}

async fn read(hands: &Hands, spec: &crds::ClusterCutoverSpec) -> Contents {
    let mut contents = Contents::new();
    for name in spec.secret_names() {
        if !contents.contains_key(name) {
            contents.insert(name.to_owned(), hands.read_secret(name).await);
        }
    }
    contents
}

/// The Secrets that hold something else than before; one that cannot be read does not.
fn changed(before: &Contents, now: &Contents) -> BTreeSet<String> {
    let changed = now
        .iter()
        .filter(|(name, content)| content.is_ok() && before.get(*name) != Some(content));
    changed.map(|(name, _)| name.clone()).collect()
}

fn content<'a>(contents: &'a Contents, name: &str) -> Result<&'a BTreeMap<String, Vec<u8>>, String> {
    match contents.get(name) {
        Some(Ok(data)) => Ok(data),
        Some(Err(why)) => Err(why.clone()),
        None => Err(format!("Secret {name} was not read")),
    }
}

async fn cluster(
    hands: &Hands,
    side: Side,
    object: &crds::ClusterCutover,
    contents: &Contents,
) -> Result<Cluster, String> {
    let access = match side {
        Side::Blue => &object.spec.blue,
        Side::Green => &object.spec.green,
    };
    let begun_with = sight::begun_with(object, side);
    let Some(secret) = &access.kubeconfig_secret else {
        return Ok(Cluster::new(side, hands.api.clone(), begun_with));
    };
    let place = format!("spec.{side}: Secret {}/{}", hands.namespace, secret.name);
    let data = content(contents, &secret.name).map_err(|why| format!("spec.{side}: {why}"))?;
    let text = data
        .get(&secret.key)
        .ok_or_else(|| format!("{place} has no key {:?}: put a kubeconfig there", secret.key))?;
    let text = std::str::from_utf8(text).map_err(|_| format!("{place}: {:?} is no text", secret.key))?;
    let api = ApiServers::from_kubeconfig(text).await;
    let api = api.map_err(|error| format!("{place}: {error}"))?;
    Ok(Cluster::new(side, api, begun_with))
}

async fn driver(hands: &Hands, spec: &crds::Traffic, contents: &Contents) -> Result<Driver, String> {
    let mut secrets = BTreeMap::new();
    for name in spec.secret_names() {
        let data = content(contents, name).map_err(|why| format!("spec.traffic: {why}"))?;
        secrets.insert(name.to_owned(), data.clone());
    }
    let driver = Driver::from_spec(spec, &Secrets(secrets), &hands.api).await;
    driver.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(text: &str) -> Result<BTreeMap<String, Vec<u8>>, String> {
        Ok([("kubeconfig".to_owned(), text.as_bytes().to_vec())].into())
    }

    #[test]
    fn a_secret_that_holds_something_else_is_told_and_one_that_cannot_be_read_is_not() {
        let before = Contents::from([
            ("same".to_owned(), holding("a")),
            ("other".to_owned(), holding("a")),
            ("away".to_owned(), holding("a")),
            ("back".to_owned(), Err("no answer".to_owned())),
        ]);
        let now = Contents::from([
            ("same".to_owned(), holding("a")),
            ("other".to_owned(), holding("b")),
            ("away".to_owned(), Err("no answer".to_owned())),
            ("back".to_owned(), holding("a")),
        ]);
        let changed: Vec<String> = changed(&before, &now).into_iter().collect();
        assert_eq!(changed, ["back", "other"]);
    }
}
