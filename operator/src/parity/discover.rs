//! Which kinds a cluster serves, and in which versions: two requests.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use kube::core::discovery::v2::APIGroupDiscoveryList;
use lockkeeper_policies::parity::Kind;
use tokio::time::timeout;

use crate::api::explain;

/// A few hundred kinds are a few hundred KiB.
const LIMIT: Duration = Duration::from_secs(20);

/// A kind in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) namespaced: bool,
}

/// What a cluster serves.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// Listable kinds; the preferred version first.
    pub(super) served: BTreeMap<Kind, Vec<Served>>,
    /// Group and version of those whose server does not say what it serves.
    pub(super) silent: Vec<(String, String)>,
}

/// Asks a cluster.
///
/// # Errors
/// A sentence: then nothing is known of what it has.
pub(super) async fn discover(client: &Client) -> Result<Kinds, String> {
    let both = async {
        tokio::try_join!(
            client.list_core_api_versions_aggregated(),
            client.list_api_groups_aggregated()
        )
    };
    let (core, groups) = timeout(LIMIT, both)
        .await
        .map_err(|_| {
            format!(
                "what it serves is not known: no answer within {} s",
                LIMIT.as_secs()
            )
        })?
        .map_err(|error| format!("what it serves is not known: {}", explain(&error)))?;
    let mut kinds = Kinds::default();
    for list in [core, groups] {
        gather(list, &mut kinds);
    }
    if kinds.served.is_empty() {
        // A proxy that answers anything with an empty object, or a server of before v1.30.
        return Err("what it serves is not known: it named no kinds".to_owned());
    }
    Ok(kinds)
}

fn gather(list: APIGroupDiscoveryList, kinds: &mut Kinds) {
    for group in list.items {
        let name = group.metadata.and_then(|m| m.name).unwrap_or_default();
        for version in group.versions {
            let Some(version_name) = version.version else {
                continue;
            };
            if version.freshness.as_deref() == Some("Stale") {
                kinds.silent.push((name.clone(), version_name.clone()));
            }
            for resource in version.resources {
                let kind = resource.response_kind.and_then(|k| k.kind);
                let (Some(kind), Some(plural)) = (kind, resource.resource) else {
                    continue;
                };
                let has = |verb: &str| resource.verbs.iter().any(|v| v == verb);
                if !has("list") || !has("get") {
                    continue;
                }
                kinds
                    .served
                    .entry(Kind {
                        group: name.clone(),
                        kind,
                    })
                    .or_default()
                    .push(Served {
                        version: version_name.clone(),
                        plural,
                        namespaced: resource.scope.as_deref() == Some("Namespaced"),
                    });
            }
        }
    }
}
