//! What runs on a node beside its pods: containerd, and the kubelet once kubeadm has written its files. Both are
//! started again when they end, as systemd would.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::WaitOptions;

use super::Spec;
use crate::process::append;
use crate::recipes::PAUSE;
use crate::require::CNI_PLUGINS;

/// The PATH of everything on a node.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Writes the node's own files under /etc.
pub(super) fn configure(spec: &Spec) -> Result<()> {
    let replace = |path: &str, text: &str| -> Result<()> {
        // It may be a link into a folder that a node does not have.
        let _ = std::fs::remove_file(path);
        std::fs::write(path, text).with_context(|| format!("cannot write {path}"))
    };
    replace("/etc/hostname", &format!("{}\n", spec.name))?;
    replace(
        "/etc/hosts",
        &format!("127.0.0.1 localhost\n{} {}\n", spec.address, spec.name),
    )?;
    // There is no name server in a lab; an answer of "refused" is quicker than none.
    replace(
        "/etc/resolv.conf",
        &format!(
            "nameserver {}\noptions timeout:1 attempts:1\n",
            crate::address::FABRIC
        ),
    )?;
    let machine_id = Path::new("/var/lib/machine-id");
    if !machine_id.exists() {
        std::fs::write(
            machine_id,
            format!("{}\n", crate::cache::hex(&rand::random::<[u8; 16]>())),
        )?;
    }
    replace("/etc/machine-id", &std::fs::read_to_string(machine_id)?)?;
    let _ = std::fs::remove_dir_all("/etc/cni/net.d");
    std::fs::create_dir_all("/etc/cni/net.d")?;
    replace("/etc/cni/net.d/10-lab.conflist", &pod_network(&spec.pods))?;
    std::fs::create_dir_all("/etc/containerd")?;
    replace("/etc/containerd/config.toml", &containerd_config())
}

/// No masquerading: every node and the fabric have routes to all pods, so addresses stay what they are.
fn pod_network(pods: &str) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

/// Where CAP_SYS_RESOURCE is missing (a machine that is itself a container, say) nobody may lower
/// oom_score_adj, and without `restrict_oom_score_adj` every sandbox fails with "can't get final child's PID
/// from pipe: EOF".
fn containerd_config() -> String {
    format!(
        "version = 2\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n  \
           sandbox_image = \"registry.k8s.io/pause:{PAUSE}\"\n  \
           restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  \
           bin_dir = \"{CNI_PLUGINS}\"\n"
    )
}

/// A program kept running.
struct Service {
    name: &'static str,
    pid: Option<u32>,
    again_after: Instant,
}

impl Service {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            pid: None,
            again_after: Instant::now(),
        }
    }

    /// Starts it if it does not run and the wait is over.
    fn keep(&mut self, command: impl FnOnce() -> Option<Command>) -> Result<()> {
        if self.pid.is_some() || Instant::now() < self.again_after {
            return Ok(());
        }
        let Some(mut command) = command() else {
            return Ok(());
        };
        let log = append(&Path::new("/var/log").join(format!("{}.log", self.name)))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .env("PATH", PATH)
            .env("HOME", "/root");
        match command.spawn() {
            Ok(child) => self.pid = Some(child.id()),
            Err(error) => {
                eprintln!("cannot start {}: {error}", self.name);
                self.again_after = Instant::now() + Duration::from_secs(1);
            }
        }
        Ok(())
    }

    fn ended(&mut self, pid: u32) {
        if self.pid == Some(pid) {
            eprintln!("{} ended", self.name);
            self.pid = None;
            self.again_after = Instant::now() + Duration::from_secs(1);
        }
    }
}

/// Runs the services and takes in every orphan, as the first process of a node must.
pub(super) fn run(spec: &Spec) -> Result<()> {
    let kubelet_program = format!("/opt/kubernetes-{}/kubelet", spec.kubelet);
    let mut containerd = Service::new("containerd");
    let mut kubelet = Service::new("kubelet");
    loop {
        containerd.keep(|| Some(Command::new("containerd")))?;
        kubelet.keep(|| kubelet_command(&kubelet_program))?;
        while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            containerd.ended(pid);
            kubelet.ended(pid);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The kubelet as kubeadm's systemd unit starts it; nothing until kubeadm has written all of its files.
fn kubelet_command(program: &str) -> Option<Command> {
    const CONFIG: &str = "/var/lib/kubelet/config.yaml";
    const KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
    const BOOTSTRAP: &str = "/etc/kubernetes/bootstrap-kubelet.conf";
    let flags = std::fs::read_to_string("/var/lib/kubelet/kubeadm-flags.env").ok()?;
    let known = Path::new(KUBECONFIG).exists();
    let bootstrap = Path::new(BOOTSTRAP).exists();
    if File::open(CONFIG).is_err() || !(known || bootstrap) {
        return None;
    }
    let mut command = Command::new(program);
    command
        .arg(format!("--kubeconfig={KUBECONFIG}"))
        .arg(format!("--config={CONFIG}"));
    if bootstrap {
        command.arg(format!("--bootstrap-kubeconfig={BOOTSTRAP}"));
    }
    command.args(flag_words(&flags));
    Some(command)
}

/// The flags in `KUBELET_KUBEADM_ARGS="--a=b --c=d"`.
fn flag_words(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("KUBELET_KUBEADM_ARGS="))
        .flat_map(|value| value.trim().trim_matches('"').split_whitespace())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeadms_flags_are_read_without_their_quotes() {
        let words = flag_words("KUBELET_KUBEADM_ARGS=\"--node-ip=10.77.0.11 --v=2\"\n");
        assert_eq!(words, ["--node-ip=10.77.0.11", "--v=2"]);
        assert!(flag_words("").is_empty());
    }

    #[test]
    fn the_pod_network_is_valid_json_with_the_nodes_own_range() {
        let parsed: serde_json::Value = serde_json::from_str(&pod_network("10.78.1.0/24")).unwrap();
        assert_eq!(
            parsed["plugins"][0]["ipam"]["ranges"][0][0]["subnet"],
            "10.78.1.0/24"
        );
    }
}
