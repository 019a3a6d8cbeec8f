//! What runs, looked up without Lockkeeper: files on disk, processes by their very binary, each API server asked
//! itself, mirror pods. Lockkeeper's own word is compared last.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use lockkeeper_crds::{ControlPlaneNode, Tristate};
use sha2::{Digest, Sha256};

use crate::build;
use crate::cache::{Cache, hex};
use crate::images::{CONTROL_PLANE, reference};
use crate::lab::Lab;
use crate::node::Node;
use crate::process::Run;
use crate::recipes::recipe;
use crate::scene::{Look, Scene};

/// Mirror pods and agents' reports lag behind the processes; a kubelet's report comes every ten seconds.
const LAG: Duration = Duration::from_secs(120);

/// SHA-256 of every static pod's manifest, by node and file. A rehearsal's own manifest comes and goes beside them.
pub type Manifests = BTreeMap<String, String>;

/// The manifests on all disks.
pub fn manifests(lab: &Lab) -> Result<Manifests> {
    let mut all = Manifests::new();
    for node in lab.nodes() {
        for file in CONTROL_PLANE.iter().chain(&["etcd"]) {
            let path = node.kubernetes_folder().join(format!("manifests/{file}.yaml"));
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            all.insert(format!("{}/{file}", node.name()), hex(&Sha256::digest(&bytes)));
        }
    }
    Ok(all)
}

/// Every static pod's manifest is what it was.
pub fn as_before(lab: &Lab, before: &Manifests) -> Result<()> {
    ensure!(manifests(lab)? == *before, "not all manifests are as before");
    Ok(())
}

/// Waits until every component of every node runs a version, by every account of it.
pub async fn runs(scene: &Scene, version: &str) -> Result<()> {
    for node in scene.lab.nodes() {
        scene
            .wait_for(&format!("{} to run {version}", node.name()), LAG, || async {
                node_runs(scene, &node, version).await?;
                Ok(Look::Done(()))
            })
            .await?;
    }
    Ok(())
}

async fn node_runs(scene: &Scene, node: &Node, version: &str) -> Result<()> {
    let client = scene.client_at(node.name()).await?;
    let said = client.apiserver_version().await?.git_version;
    ensure!(said == version, "its API server says {said}");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "kube-system");
    for component in CONTROL_PLANE {
        let image = reference(component, version);
        let path = node
            .kubernetes_folder()
            .join(format!("manifests/{component}.yaml"));
        let manifest: serde_yaml::Value = serde_yaml::from_str(&std::fs::read_to_string(&path)?)?;
        let asked = image_of(&manifest).with_context(|| format!("{} names no image", path.display()))?;
        ensure!(asked == image, "{component}'s manifest asks for {asked}");
        is_binary(node, component, version)?;
        let pod = pods.get(&format!("{component}-{}", node.name())).await?;
        is_ready_with(&pod, &image).with_context(|| format!("{component}'s mirror pod"))?;
    }
    let nodes: Api<ControlPlaneNode> = Api::all(client);
    let told = match nodes.get(node.name()).await {
        Ok(object) => object.status,
        // A cluster without Lockkeeper does not even know the kind.
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(status) = told {
        for component in status.components {
            let told = component.version.unwrap_or_default();
            ensure!(
                told.trim_start_matches('v') == version.trim_start_matches('v'),
                "its ControlPlaneNode says that {} is {told}",
                component.component
            );
            ensure!(
                component.ready == Tristate::True,
                "its ControlPlaneNode says that {} is not ready: {}",
                component.component,
                component.message
            );
        }
    }
    Ok(())
}

fn image_of(manifest: &serde_yaml::Value) -> Option<&str> {
    manifest
        .get("spec")?
        .get("containers")?
        .get(0)?
        .get("image")?
        .as_str()
}

/// One process, and byte for byte the program that was built as this version.
fn is_binary(node: &Node, component: &str, version: &str) -> Result<()> {
    let wanted = build::binary(&Cache::open()?, recipe("kubernetes", version)?, component)?;
    let processes = node.processes(component)?;
    let [process] = processes.as_slice() else {
        bail!("{} processes {component} run", processes.len());
    };
    let same = Run::new("cmp")
        .arg("-s")
        .arg(format!("/proc/{}/exe", process.pid))
        .arg(&wanted)
        .output()?;
    ensure!(
        same.success(),
        "the process {component} is not the program of {version}"
    );
    Ok(())
}

fn is_ready_with(pod: &Pod, image: &str) -> Result<()> {
    let status = pod.status.as_ref().context("has no status")?;
    let container = status
        .container_statuses
        .iter()
        .flatten()
        .next()
        .context("has no container yet")?;
    ensure!(container.image == image, "runs {}", container.image);
    ensure!(container.ready, "is not ready");
    Ok(())
}
