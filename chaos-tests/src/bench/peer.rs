//! The same upgrade by kubeadm, as its documentation says: `apply` on the first node, `node` on each other one.
//!
//! etcd stays as it is, as with us. CoreDNS is not installed, and the lab has no kube-proxy of the target, so the
//! addons are left out; preflight misses systemd. Nothing else differs from kubeadm's defaults.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::scene::Scene;

const LIMIT: Duration = Duration::from_secs(15 * 60);

pub(super) fn upgrade(scene: &Scene, to: &str) -> Result<()> {
    let kubeadm = format!("kubeadm-{to}");
    for (number, node) in scene.lab.nodes().iter().enumerate() {
        scene.say(format_args!("kubeadm upgrade on {}", node.name()));
        let mut argv = vec![kubeadm.as_str(), "upgrade"];
        match number {
            0 => argv.extend(["apply", to, "--yes"]),
            _ => argv.push("node"),
        }
        argv.extend([
            "--etcd-upgrade=false",
            "--ignore-preflight-errors=all",
            "--skip-phases=addon/coredns,addon/kube-proxy",
        ]);
        node.run(&argv)?
            .log(&scene.lab.home().log(&format!("kubeadm-upgrade-{}", node.name())))
            .limit(LIMIT)
            .check()
            .with_context(|| format!("kubeadm upgrade on {}", node.name()))?;
    }
    Ok(())
}
