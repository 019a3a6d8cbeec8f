//! What is kept of a lab in which a scenario failed: logs, manifests, journals, and what the API says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::process::Run;
use crate::state::Home;

/// What the API is asked, and the file it goes to.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("nodes.txt", &["get", "nodes", "-o", "wide"]),
    ("pods.txt", &["get", "pods", "-A", "-o", "wide"]),
    ("events.txt", &["get", "events", "-A", "--sort-by=.lastTimestamp"]),
    ("leases.yaml", &["get", "leases", "-A", "-o", "yaml"]),
    (
        "clusterversions.yaml",
        &["get", "clusterversions.lockkeeper.dev", "-o", "yaml"],
    ),
    (
        "clustercutovers.yaml",
        &["get", "clustercutovers.lockkeeper.dev", "-o", "yaml"],
    ),
    (
        "controlplanenodes.yaml",
        &["get", "controlplanenodes.lockkeeper.dev", "-o", "yaml"],
    ),
    (
        "etcdbackups.yaml",
        &[
            "get",
            "etcdbackups.lockkeeper.dev,etcdbackupstores.lockkeeper.dev",
            "-A",
            "-o",
            "yaml",
        ],
    ),
];

/// Folders of a node's disk that tell what happened.
const FOLDERS: &[&str] = &["var-log", "kubernetes/manifests", "var-lib/lockkeeper"];

/// Copies it all into a folder of its own and returns the folder.
pub fn collect(lab: &Lab, scenario: &str) -> Result<PathBuf> {
    let stamp = chrono::Local::now().format("%Y%m%d-%H%M%S");
    let folder = Home::base().join(".logs").join(format!("{scenario}-{stamp}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (file, words) in QUESTIONS {
        let mut argv = words.to_vec();
        argv.push("--request-timeout=5s");
        // The API may be what failed; what it does not say is missing and no reason to stop.
        if let Ok(said) = lab.kubectl(&argv) {
            std::fs::write(folder.join(file), said.stdout + &said.stderr)?;
        }
    }
    copy(&lab.home().path("log"), &folder.join("lab"))?;
    copy(&lab.home().path("load"), &folder.join("lab"))?;
    for node in lab.nodes() {
        let own = folder.join(node.name());
        for file in ["init.log", "kubeadm.log"] {
            copy(&node.folder().join(file), &own.join(file))?;
        }
        for dir in FOLDERS {
            copy(
                &node.folder().join("disk").join(dir),
                &own.join(dir.replace('/', "-")),
            )?;
        }
    }
    Ok(folder)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Files may be rotated away meanwhile.
    Run::new("cp")
        .arg("-rT")
        .arg(from)
        .arg(to)
        .to_the_end()
        .output()
        .map(drop)
}
