//! Targets that fail: images under the references that Lockkeeper asks for.

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::images::{self, CONTROL_PLANE, reference};
use crate::recipes::TARGET;
use crate::scene::Scene;

/// A version whose API server starts, stays and is never ready, while its other components are those of
/// [`TARGET`]. Nobody has released it, so nothing else can bring it in.
pub const BAD_TARGET: &str = "v1.36.4";

const API_SERVER: &str = "kube-apiserver";

/// Puts the images of [`BAD_TARGET`] onto every node.
pub fn import_bad_target(scene: &Scene) -> Result<()> {
    scene.say(format_args!(
        "images of {BAD_TARGET}, whose API server is never ready"
    ));
    let tar = broken(scene, BAD_TARGET)?;
    scene.lab.import(&tar)?;
    for node in scene.lab.nodes() {
        for component in CONTROL_PLANE.iter().filter(|component| **component != API_SERVER) {
            let (from, to) = (reference(component, TARGET), reference(component, BAD_TARGET));
            node.run(&["ctr", "-n", "k8s.io", "images", "tag", "--force", &from, &to])?
                .check()
                .with_context(|| format!("cannot name {from} {to} on {}", node.name()))?;
        }
    }
    Ok(())
}

/// Puts an API server that is never ready in the place of [`TARGET`]'s on one node.
pub fn break_target_on(scene: &Scene, node: &str) -> Result<()> {
    scene.say(format_args!(
        "{node}: an API server of {TARGET} that is never ready"
    ));
    scene.lab.node(node)?.import(&broken(scene, TARGET)?)
}

/// Brings the real image back.
pub fn mend_target_on(scene: &Scene, node: &str) -> Result<()> {
    let tar = images::control_plane(&Cache::open()?, API_SERVER, TARGET)?;
    scene.lab.node(node)?.import(&tar)
}

fn broken(scene: &Scene, version: &str) -> Result<std::path::PathBuf> {
    let tar = scene.file(&format!("never-ready-{version}.tar"));
    // It takes any flag and any signal, and listens nowhere.
    let binary = images::pause_binary(&Cache::open()?)?;
    images::broken_target(&tar, API_SERVER, version, &binary)?;
    Ok(tar)
}
