//! What runs on this node, seen from the host: manifests, containers, and the processes' own word.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use lockkeeper_crds::{Component, ComponentStatus, Tristate};

use super::cri::{Container, Cri, EXITED, POD_UID, RUNNING};
use super::directory::{self, Directory, ManifestFile};
use super::host::Host;
use super::logs;
use super::manifest::Manifest;
use super::processes::{Asker, api_address};
use super::ticket::{ComponentSeen, ExitSeen, FileSeen, NewestSeen, NodeSeen, RunningSeen};
use super::time::{from_nanos, to_api};

/// While nothing is being done a ready process is asked again after this.
const IDLE_READINESS: Duration = Duration::from_secs(30);

/// While nothing is being done a process that would not tell its version is asked again after this: each
/// question makes it ask the API whether we may.
const IDLE_VERSION: Duration = Duration::from_secs(60);

/// One look at the node.
#[derive(Clone, Debug)]
pub(crate) struct Observation {
    pub(crate) directory: Directory,
    pub(crate) components: Vec<ComponentStatus>,
    pub(crate) seen: NodeSeen,
    /// `host:port` of this node's API server.
    pub(crate) address: Option<String>,
    /// Why the container runtime could not be asked.
    pub(crate) runtime_problem: Option<String>,
}

/// What is remembered of a running container.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    started_at: Option<DateTime<Utc>>,
    images: BTreeSet<String>,
    /// How the image is called for people.
    image: Option<String>,
    version: Option<String>,
    version_asked: Option<Instant>,
    ready: Tristate,
    ready_asked: Option<Instant>,
    message: String,
    /// It has taken connections.
    listened: bool,
    /// Since when it takes none any more.
    closed_at: Option<DateTime<Utc>>,
}

/// Looks at the node, and remembers what need not be asked twice.
#[derive(Debug)]
pub(crate) struct Observer {
    host: Host,
    cri: Cri,
    asker: Asker,
    known: BTreeMap<Component, Known>,
    /// Containers that ended while a ticket was live; the runtime forgets all but the last.
    exits: BTreeMap<String, (Component, ExitSeen)>,
}

impl Observer {
    pub(crate) fn new(host: Host, cri: Cri) -> Self {
        Self {
            asker: Asker::new(host.clone()),
            host,
            cri,
            known: BTreeMap::new(),
            exits: BTreeMap::new(),
        }
    }

    /// Looks. `wanted` are the images that a ticket names; `close` asks everything anew.
    pub(crate) async fn observe(&mut self, wanted: &BTreeSet<String>, close: bool) -> Observation {
        let directory = directory::scan(&self.host);
        let (containers, runtime_problem) = match self.cri.containers().await {
            Ok(containers) => (Some(containers), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (images, ids) = self.images(wanted).await;
        self.remember_exits(containers.as_deref().unwrap_or_default(), wanted.is_empty())
            .await;
        let looks = Component::ALL.map(|component| {
            let newest = containers
                .as_deref()
                .and_then(|all| newest_running(all, component));
            self.look(component, directory.manifest(component), newest, &ids, close)
        });
        let found = futures::future::join_all(looks).await;
        let mut components = Vec::new();
        let mut seen = NodeSeen {
            components: BTreeMap::new(),
            images,
            alone: false,
        };
        for (component, known) in Component::ALL.into_iter().zip(found) {
            let container = containers
                .as_deref()
                .and_then(|all| newest_running(all, component));
            let file = directory.files.get(&component);
            components.push(status(
                component,
                file,
                container,
                known.as_ref(),
                runtime_problem.as_deref(),
            ));
            let ours = ComponentSeen {
                file: file_seen(file),
                problems: directory
                    .problems
                    .iter()
                    .filter(|p| p.component == Some(component))
                    .map(|p| p.sentence.clone())
                    .collect(),
                newest: newest(containers.as_deref().unwrap_or_default(), component),
                running: container
                    .zip(known.as_ref())
                    .map(|(container, known)| RunningSeen {
                        id: container.id.clone(),
                        closed_at: known.closed_at,
                        images: known.images.clone(),
                        created_at: from_nanos(container.created_at),
                        version: known.version.clone(),
                        ready: known.ready,
                        message: known.message.clone(),
                    }),
                exits: self
                    .exits
                    .values()
                    .filter(|(c, _)| *c == component)
                    .map(|(_, e)| e.clone())
                    .collect(),
            };
            seen.components.insert(component, ours);
            match known {
                Some(known) => self.known.insert(component, known),
                None => self.known.remove(&component),
            };
        }
        let address = directory.manifest(Component::KubeApiserver).and_then(api_address);
        Observation {
            directory,
            components,
            seen,
            address,
            runtime_problem,
        }
    }

    /// Whether each wanted image is here, and by which other references it goes.
    async fn images(
        &self,
        wanted: &BTreeSet<String>,
    ) -> (BTreeMap<String, Tristate>, BTreeMap<String, String>) {
        let mut present = BTreeMap::new();
        let mut ids = BTreeMap::new();
        for reference in wanted {
            let answer = match self.cri.image(reference).await {
                Ok(Some(image)) => {
                    ids.insert(reference.clone(), image.id);
                    Tristate::True
                }
                Ok(None) => Tristate::False,
                Err(_) => Tristate::Unknown,
            };
            present.insert(reference.clone(), answer);
        }
        (present, ids)
    }

    async fn remember_exits(&mut self, containers: &[Container], idle: bool) {
        if idle {
            self.exits.clear();
            return;
        }
        for container in containers.iter().filter(|c| c.state == EXITED) {
            let Some(component) = component_of(container) else {
                continue;
            };
            if self.exits.contains_key(&container.id) {
                continue;
            }
            let Ok(Some(status)) = self.cri.container(&container.id).await else {
                continue;
            };
            let said = logs::reason(&self.host.reach(Path::new(&status.log_path)));
            let exit = ExitSeen {
                created_at: from_nanos(container.created_at),
                code: status.exit_code,
                last_line: said,
            };
            self.exits.insert(container.id.clone(), (component, exit));
        }
    }

    async fn look(
        &self,
        component: Component,
        manifest: Option<&Manifest>,
        container: Option<&Container>,
        ids: &BTreeMap<String, String>,
        close: bool,
    ) -> Option<Known> {
        let container = container?;
        let mut known = match self.known.get(&component).filter(|k| k.id == container.id) {
            Some(known) => known.clone(),
            None => self.first_look(container, manifest).await,
        };
        // An image that goes by several names is the same image; but where the runtime kept the name that the
        // manifest asked for, that one counts.
        if requested(container).is_none() {
            for (reference, id) in ids {
                if known.images.contains(id) {
                    known.images.insert(reference.clone());
                }
            }
        }
        match manifest {
            Some(manifest) => self.question(component, manifest, &mut known, close).await,
            None => {
                known.ready = Tristate::Unknown;
                known.message =
                    "the manifest cannot be read, so its address and port are not known".to_owned();
            }
        }
        Some(known)
    }

    async fn first_look(&self, container: &Container, manifest: Option<&Manifest>) -> Known {
        let status = self.cri.container(&container.id).await.ok().flatten();
        let mut images = BTreeSet::new();
        if let Some(requested) = requested(container) {
            images.insert(requested.to_owned());
        } else {
            let of_status = status.iter().flat_map(|s| {
                [
                    s.image.as_ref().map_or("", |i| &i.image),
                    &s.image_ref,
                    &s.image_id,
                ]
            });
            let of_list = [
                container.image.as_ref().map_or("", |i| &i.image),
                &container.image_ref,
                &container.image_id,
            ];
            images.extend(of_list.into_iter().chain(of_status).map(str::to_owned));
            images.remove("");
            let mut more = BTreeSet::new();
            for reference in &images {
                if let Ok(Some(image)) = self.cri.image(reference).await {
                    more.insert(image.id);
                    more.extend(image.repo_tags);
                    more.extend(image.repo_digests);
                    break;
                }
            }
            images.extend(more);
        }
        let image = manifest
            .map(|m| m.image.clone())
            .filter(|image| images.contains(image))
            .or_else(|| {
                images
                    .iter()
                    .find(|i| i.contains(':') && !i.starts_with("sha256:"))
                    .cloned()
            })
            .or_else(|| images.first().cloned());
        Known {
            id: container.id.clone(),
            started_at: status
                .filter(|s| s.started_at > 0)
                .map(|s| from_nanos(s.started_at)),
            images,
            image,
            version: None,
            version_asked: None,
            ready: Tristate::Unknown,
            ready_asked: None,
            message: String::new(),
            listened: false,
            closed_at: None,
        }
    }

    async fn question(&self, component: Component, manifest: &Manifest, known: &mut Known, close: bool) {
        let stale = |asked: Option<Instant>, after: Duration| asked.is_none_or(|at| at.elapsed() >= after);
        let target = match self.asker.target(component, manifest) {
            Ok(target) => target,
            Err(error) => {
                known.ready = Tristate::Unknown;
                known.message = error.to_string();
                return;
            }
        };
        if close || known.ready != Tristate::True || stale(known.ready_asked, IDLE_READINESS) {
            let said = self.asker.readiness(component, &target).await;
            known.closed_at = match (said.listens, known.listened) {
                (false, true) => known.closed_at.or_else(|| Some(Utc::now())),
                _ => None,
            };
            known.listened |= said.listens;
            (known.ready, known.message) = (said.ready, said.message);
            known.ready_asked = Some(Instant::now());
        }
        if known.version.is_none() && (close || stale(known.version_asked, IDLE_VERSION)) {
            known.version_asked = Some(Instant::now());
            match self.asker.version(component, &target).await {
                Ok(version) => known.version = Some(version),
                Err(why) if known.message.is_empty() => known.message = why,
                Err(_) => {}
            }
        }
    }
}

/// The component whose own container this is.
fn component_of(container: &Container) -> Option<Component> {
    Component::ALL
        .into_iter()
        .find(|component| container.is_of_static_pod(component.name()))
}

fn newest_running(all: &[Container], component: Component) -> Option<&Container> {
    all.iter()
        .filter(|c| c.state == RUNNING && component_of(c) == Some(component))
        .max_by_key(|c| c.created_at)
}

/// The newest container, whatever has become of it.
fn newest(all: &[Container], component: Component) -> Option<NewestSeen> {
    let container = all
        .iter()
        .filter(|c| component_of(c) == Some(component))
        .max_by_key(|c| c.created_at)?;
    Some(NewestSeen {
        pod: container.label(POD_UID).to_owned(),
        created_at: from_nanos(container.created_at),
    })
}

/// The name that the manifest asked for, where the runtime kept it.
fn requested(container: &Container) -> Option<&str> {
    container
        .image
        .as_ref()
        .map(|i| i.user_specified_image.as_str())
        .filter(|i| !i.is_empty())
}

pub(crate) fn file_seen(file: Option<&ManifestFile>) -> FileSeen {
    match file {
        Some(ManifestFile::Known { hash, .. }) => FileSeen::Hash(hash.clone()),
        Some(ManifestFile::Unknown(why)) => FileSeen::Unknown(why.clone()),
        Some(ManifestFile::Absent) | None => FileSeen::Absent,
    }
}

fn status(
    component: Component,
    file: Option<&ManifestFile>,
    container: Option<&Container>,
    known: Option<&Known>,
    runtime_problem: Option<&str>,
) -> ComponentStatus {
    let (manifest_hash, manifest_image) = match file {
        Some(ManifestFile::Known { hash, manifest }) => (
            Some(hash.clone()),
            manifest.as_ref().ok().map(|m| m.image.clone()),
        ),
        _ => (None, None),
    };
    let (ready, message) = match (known, runtime_problem) {
        (Some(known), _) => (known.ready, known.message.clone()),
        (None, Some(problem)) => (Tristate::Unknown, problem.to_owned()),
        (None, None) => (Tristate::False, "no container of it runs".to_owned()),
    };
    ComponentStatus {
        component,
        manifest_hash,
        manifest_image,
        image: known.and_then(|k| k.image.clone()),
        container_id: container.map(|c| c.id.clone()),
        started_at: known.and_then(|k| k.started_at).map(to_api),
        restarts: container
            .and_then(|c| c.metadata.as_ref())
            .map_or(0, |m| m.attempt),
        version: known.and_then(|k| k.version.clone()),
        ready,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::cri::{CONTAINER_NAME, POD_NAME};
    use super::*;
    use std::collections::HashMap;

    fn container(name: &str, pod: &str, created_at: i64, state: i32) -> Container {
        Container {
            id: format!("{pod}-{created_at}"),
            labels: HashMap::from([
                (CONTAINER_NAME.to_owned(), name.to_owned()),
                (POD_NAME.to_owned(), pod.to_owned()),
            ]),
            created_at,
            state,
            ..Container::default()
        }
    }

    #[test]
    fn the_newest_running_container_of_the_real_pod_counts() {
        let all = [
            container("kube-apiserver", "kube-apiserver-cp1", 1, EXITED),
            container("kube-apiserver", "kube-apiserver-cp1", 2, RUNNING),
            container("kube-apiserver", "lockkeeper-surge-cp1", 3, RUNNING),
            container("kube-apiserver-target", "lockkeeper-rehearsal-cp1", 4, RUNNING),
        ];
        assert_eq!(
            newest_running(&all, Component::KubeApiserver).map(|c| c.created_at),
            Some(2)
        );
        assert_eq!(newest_running(&all, Component::KubeScheduler), None);
    }
}
