//! From a process of the machine to the first process of a node: `lab node-launch` joins the group and turns
//! into `unshare`, which starts `lab node-init` as pid 1 of the new namespaces.

use std::os::unix::process::CommandExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Spec, mounts, services};
use crate::cgroup::Layout;
use crate::state::Home;

fn read(spec: &Path) -> Result<Spec> {
    let bytes = std::fs::read(spec).with_context(|| format!("cannot read {}", spec.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", spec.display()))
}

/// Joins the node's group and network and becomes the parent of its first process. Returns only on failure.
pub fn launch(path: &Path) -> Result<()> {
    let spec = read(path)?;
    Layout::of_machine()?.join(&spec.lab, &spec.name)?;
    let namespace = Home::of(&spec.lab)?.namespace(&spec.name);
    let program = std::env::current_exe()?;
    let error = std::process::Command::new("nsenter")
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("--")
        .args([
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--cgroup",
            "--fork",
            "--kill-child",
        ])
        .args(["--propagation", "private", "--"])
        .arg(program)
        .arg("node-init")
        .arg(path)
        .exec();
    Err(error).context("cannot start nsenter and unshare")
}

/// The first process of a node: sets up the mounts, then runs containerd and the kubelet for ever.
pub fn run(path: &Path) -> Result<()> {
    let spec = read(path)?;
    rustix::system::sethostname(spec.name.as_bytes())?;
    mounts::set_up(&spec)?;
    services::configure(&spec)?;
    mounts::close(&spec)?;
    services::run(&spec)
}
