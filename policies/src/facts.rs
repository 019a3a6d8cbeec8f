//! What is known of each release, as data with its sources (`data/releases.json`).

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::version::{EtcdVersion, KubernetesVersion};

#[derive(Debug, Deserialize)]
struct Releases {
    #[allow(dead_code, reason = "the sources stand in the data for people to read")]
    source: String,
    supported_minors: Range,
    etcd_floor: BTreeMap<u32, String>,
    removed_gates: BTreeMap<u32, Vec<String>>,
    removed_flags: BTreeMap<u32, BTreeMap<String, Vec<String>>>,
}

#[derive(Debug, Deserialize)]
struct Range {
    oldest: u32,
    newest: u32,
}

static RELEASES: LazyLock<Option<Releases>> =
    LazyLock::new(|| serde_json::from_str(include_str!("../data/releases.json")).ok());

/// The oldest and the newest minor that this build knows.
#[must_use]
pub fn supported_minors() -> (u32, u32) {
    RELEASES
        .as_ref()
        .map_or((0, 0), |r| (r.supported_minors.oldest, r.supported_minors.newest))
}

/// The oldest etcd that this Kubernetes works with; `None` for a minor that this build does not know.
#[must_use]
pub fn etcd_floor(version: KubernetesVersion) -> Option<EtcdVersion> {
    RELEASES.as_ref()?.etcd_floor.get(&version.minor)?.parse().ok()
}

/// If the text names a feature gate or flag that is gone by `target`, the sentence that says since when
/// and what to do. Turns a start-up error of a rehearsal into help.
#[must_use]
pub fn explain(text: &str, target: KubernetesVersion) -> Option<String> {
    let releases = RELEASES.as_ref()?;
    let words: Vec<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
        .map(|w| w.trim_start_matches('-'))
        .collect();
    let gate = releases
        .removed_gates
        .range(..=target.minor)
        .find_map(|(minor, gates)| {
            gates
                .iter()
                .find(|gate| words.contains(&gate.as_str()))
                .map(|gate| (minor, gate))
        });
    if let Some((minor, gate)) = gate {
        return Some(format!(
            "feature gate {gate} was removed in v1.{minor}: take it out of --feature-gates first"
        ));
    }
    releases
        .removed_flags
        .range(..=target.minor)
        .find_map(|(minor, components)| {
            let flag = components
                .values()
                .flatten()
                .find(|flag| words.contains(&flag.as_str()))?;
            Some(format!(
                "flag --{flag} was removed in v1.{minor}: take it out of the manifest first"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(minor: u32) -> KubernetesVersion {
        KubernetesVersion { minor, patch: 0 }
    }

    #[test]
    fn the_data_parses_and_names_its_sources() {
        let releases = RELEASES.as_ref().unwrap();
        assert!(releases.source.contains("kubernetes.io"));
        let (oldest, newest) = supported_minors();
        assert!(oldest < newest);
        for minor in oldest..=newest {
            assert!(etcd_floor(v(minor)).is_some(), "no etcd floor for v1.{minor}");
        }
        assert!(etcd_floor(v(newest + 1)).is_none());
    }

    #[test]
    fn a_start_up_error_is_explained_from_the_minor_on_in_which_the_gate_was_removed() {
        let error = r#"Error: invalid argument "HonorPVReclaimPolicy=true" for "--feature-gates" flag: unrecognized feature gate: HonorPVReclaimPolicy"#;
        assert!(explain(error, v(36)).unwrap().contains("removed in v1.36"));
        assert_eq!(explain(error, v(35)), None);
        assert!(
            explain("Error: unknown flag: --cloud-provider", v(33))
                .unwrap()
                .contains("--cloud-provider")
        );
        assert_eq!(explain("Error: unknown flag: --nonsense", v(37)), None);
    }
}
