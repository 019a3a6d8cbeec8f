//! The kubelet's static pod directory as it is, and what is wrong with it.
//!
//! The kubelet reads every file that does not begin with a dot, whatever its suffix; of two files that name the
//! same pod the lexically last wins (facts.md 5.1). A `kube-apiserver.yaml.bak` is the real API server.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use lockkeeper_crds::Component;

use super::chore;
use super::host::{Host, read_limited};
use super::manifest::{self, Manifest};

/// The kubelet's own limit on a manifest (facts.md 5.1).
const LARGEST: u64 = 10 * 1024 * 1024;

/// The rehearsal's own manifest; written and removed by the agent.
pub(crate) const REHEARSAL: &str = "lockkeeper-rehearsal.yaml";

/// The guard's manifest; likewise.
pub(crate) const GUARD: &str = "lockkeeper-guard.yaml";

/// A component's manifest file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ManifestFile {
    Known {
        hash: String,
        /// A sentence when it does not parse.
        manifest: Result<Manifest, String>,
    },
    Absent,
    /// It could not be read, and why.
    Unknown(String),
}

/// Something that is wrong with the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The component it concerns; none when it concerns none of ours.
    pub(crate) component: Option<Component>,
    pub(crate) sentence: String,
}

/// The directory as it is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Directory {
    pub(crate) files: BTreeMap<Component, ManifestFile>,
    pub(crate) problems: Vec<Problem>,
}

impl Directory {
    pub(crate) fn manifest(&self, component: Component) -> Option<&Manifest> {
        match self.files.get(&component) {
            Some(ManifestFile::Known { manifest, .. }) => manifest.as_ref().ok(),
            _ => None,
        }
    }
}

/// Reads the directory.
pub(crate) fn scan(host: &Host) -> Directory {
    let mut directory = Directory {
        files: Component::ALL
            .into_iter()
            .map(|c| (c, read_component(host, c)))
            .collect(),
        problems: Vec::new(),
    };
    for component in Component::ALL {
        if let Some(sentence) = component_problem(host, component, directory.files.get(&component)) {
            directory.problems.push(Problem {
                component: Some(component),
                sentence,
            });
        }
    }
    match others(host) {
        Ok(problems) => directory.problems.extend(problems),
        Err(error) => directory.problems.push(Problem {
            component: None,
            sentence: format!(
                "{} cannot be read ({error}): is it the kubelet's staticPodPath, and mounted into the agent?",
                host.manifests().display()
            ),
        }),
    }
    directory
}

/// Reads one component's file.
pub(crate) fn read_component(host: &Host, component: Component) -> ManifestFile {
    let path = host.manifest(component);
    match read_limited(&path, LARGEST) {
        Ok(bytes) => ManifestFile::Known {
            hash: manifest::hash(&bytes),
            manifest: manifest::parse(&path, component, &bytes).map_err(|e| e.to_string()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => ManifestFile::Absent,
        Err(error) => ManifestFile::Unknown(format!("{} cannot be read: {error}", path.display())),
    }
}

fn component_problem(host: &Host, component: Component, file: Option<&ManifestFile>) -> Option<String> {
    match file {
        Some(ManifestFile::Known {
            manifest: Err(sentence),
            ..
        })
        | Some(ManifestFile::Unknown(sentence)) => Some(sentence.clone()),
        Some(ManifestFile::Known { .. }) => None,
        Some(ManifestFile::Absent) | None => Some(format!(
            "{} is missing: Lockkeeper expects {component} under this name; put it back, or rename the file that defines it",
            host.manifest(component).display()
        )),
    }
}

/// Problems of the files that are not a component's own.
fn others(host: &Host) -> io::Result<Vec<Problem>> {
    let mut problems = Vec::new();
    let mut names: Vec<_> = fs::read_dir(host.manifests())?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    for name in names {
        let shown = name.to_string_lossy();
        let ours = Component::ALL.iter().any(|c| *shown == *format!("{c}.yaml"));
        if shown.starts_with('.')
            || ours
            || shown == REHEARSAL
            || shown == GUARD
            || chore::is_manifest(&shown)
        {
            continue;
        }
        let path = host.manifests().join(&name);
        // Followed like the kubelet does; directories and devices are skipped by it.
        match fs::metadata(&path) {
            Ok(about) if !about.is_file() => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            _ => {}
        }
        let pod = read_limited(&path, LARGEST)
            .map_err(|error| format!("{} cannot be read ({error}): move it out", path.display()))
            .and_then(|bytes| manifest::parse_pod(&path, &bytes).map_err(|e| e.to_string()));
        match pod {
            Ok((namespace, pod, _)) => {
                let component = Component::ALL
                    .into_iter()
                    .find(|c| namespace == "kube-system" && c.name() == pod);
                if let Some(component) = component {
                    problems.push(Problem {
                        component: Some(component),
                        sentence: format!(
                            "{} names the same pod as {component}.yaml, and the kubelet runs one of the two: move it out of the manifest directory (the kubelet reads every file there, whatever its suffix)",
                            path.display()
                        ),
                    });
                }
            }
            Err(sentence) => problems.push(Problem {
                component: None,
                sentence: format!(
                    "{sentence}; or move the file out of the manifest directory, where the kubelet reads every file whatever its suffix"
                ),
            }),
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn pod(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: kube-system\nspec:\n  containers:\n  - name: {name}\n    image: registry.k8s.io/{name}:v1.35.4\n"
        )
    }

    fn node() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        for component in Component::ALL {
            fs::write(host.manifest(component), pod(component.name())).unwrap();
        }
        fs::write(host.manifests().join("etcd.yaml"), pod("etcd")).unwrap();
        (root, host)
    }

    fn sentences(host: &Host) -> Vec<String> {
        scan(host).problems.into_iter().map(|p| p.sentence).collect()
    }

    #[test]
    fn a_directory_as_kubeadm_leaves_it_has_no_problem() {
        let (_root, host) = node();
        fs::write(host.manifests().join(".kube-apiserver.yaml.lockkeeper"), "half").unwrap();
        fs::write(host.manifests().join(REHEARSAL), "ours").unwrap();
        fs::write(host.manifests().join(GUARD), "ours").unwrap();
        fs::write(host.manifests().join("lockkeeper-chore-verify.yaml"), "ours").unwrap();
        fs::create_dir(host.manifests().join("old")).unwrap();
        assert_eq!(sentences(&host), Vec::<String>::new());
    }

    #[test]
    fn a_copy_whatever_its_suffix_is_a_stray() {
        let (_root, host) = node();
        fs::write(
            host.manifests().join("kube-apiserver.yaml.bak"),
            pod("kube-apiserver"),
        )
        .unwrap();
        let found = scan(&host).problems;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].component, Some(Component::KubeApiserver));
        assert!(
            found[0]
                .sentence
                .contains("names the same pod as kube-apiserver.yaml")
        );
    }

    #[test]
    fn missing_and_malformed_manifests_are_named() {
        let (_root, host) = node();
        fs::remove_file(host.manifest(Component::KubeScheduler)).unwrap();
        fs::write(host.manifest(Component::KubeApiserver), "kind: [").unwrap();
        fs::write(host.manifests().join("notes"), "remember").unwrap();
        let all = sentences(&host).join("\n");
        assert!(all.contains("kube-scheduler.yaml is missing"), "{all}");
        assert!(all.contains("kube-apiserver.yaml is not valid YAML"), "{all}");
        assert!(all.contains("notes is not a Pod with kind Pod"), "{all}");
    }
}
