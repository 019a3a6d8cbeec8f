//! A node: namespaces, a cgroup and a disk. Killing its first process is a power cut; the disk stays.

pub mod init;
mod mounts;
mod services;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, write_whole};
use crate::cgroup::Layout;
use crate::process::{ProcessId, Run, start_daemon};
use crate::recipes::RECIPES;
use crate::state::{Home, Options, Resource};
use crate::{address, network};

/// What a node's first process must know. Written beside the node's disk, read inside its namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The lab it belongs to.
    pub lab: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The network of its pods.
    pub pods: String,
    /// Its folder on the machine; the disk is `disk` in it.
    pub folder: PathBuf,
    /// The folder with all built binaries, shown read-only as /opt.
    pub binaries: PathBuf,
    /// The version whose kubelet runs.
    pub kubelet: String,
    /// Paths with a small disk of their own, in MiB.
    pub small_disks: Vec<(PathBuf, u32)>,
}

/// A node of a lab, up or not.
#[derive(Debug, Clone)]
pub struct Node {
    home: Home,
    index: u8,
    name: String,
}

impl Node {
    /// The node with this number.
    #[must_use]
    pub fn new(home: &Home, index: u8) -> Self {
        Self {
            home: home.clone(),
            index,
            name: address::name(index),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        address::node(self.index)
    }

    /// The network of its pods.
    #[must_use]
    pub fn pods(&self) -> String {
        address::pods(self.index)
    }

    /// The name of its network namespace.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.home.namespace(&self.name)
    }

    /// Its folder on the machine.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.home.node(&self.name)
    }

    /// Its /etc/kubernetes, seen from the machine, whether the node is up or not.
    #[must_use]
    pub fn kubernetes_folder(&self) -> PathBuf {
        self.folder().join("disk/kubernetes")
    }

    /// A path of its /var/lib, seen from the machine, whether the node is up or not.
    #[must_use]
    pub fn var_lib(&self, inside: &str) -> PathBuf {
        self.folder().join("disk/var-lib").join(inside)
    }

    /// A path of its /var/log, seen from the machine.
    #[must_use]
    pub fn var_log(&self, inside: &str) -> PathBuf {
        self.folder().join("disk/var-log").join(inside)
    }

    /// Makes the disk: the images are there from the start, and every built program is on the PATH.
    pub fn make_disk(&self, options: &Options, cache: &Cache, seed: &Path) -> Result<()> {
        let disk = self.folder().join("disk");
        for dir in [
            "kubernetes",
            "etc",
            "usr/local/bin",
            "work-etc",
            "work-usr",
            "var-lib",
            "var-log",
        ] {
            std::fs::create_dir_all(disk.join(dir))?;
        }
        crate::seed::plant(seed, &disk.join("var-lib/containerd"))?;
        for recipe in RECIPES {
            for (program, _) in recipe.commands {
                let target = format!("/opt/{}-{}/{program}", recipe.what, recipe.version);
                link(
                    &target,
                    &disk.join(format!("usr/local/bin/{program}-{}", recipe.version)),
                )?;
                if recipe.what != "kubernetes" || recipe.version == options.kubernetes {
                    link(&target, &disk.join("usr/local/bin").join(program))?;
                }
            }
        }
        for (number, (_, size)) in options.small_disks.iter().enumerate() {
            let image = self.folder().join(format!("small-{number}.img"));
            std::fs::File::create(&image)?.set_len(u64::from(*size) << 20)?;
            Run::new("/sbin/mkfs.ext4")
                .args(["-q", "-m", "0"])
                .arg(&image)
                .check()?;
        }
        let spec = Spec {
            lab: self.home.name().to_owned(),
            name: self.name.clone(),
            address: self.address(),
            pods: address::pods(self.index),
            folder: self.folder(),
            binaries: cache.root().join("bin"),
            kubelet: options.kubernetes.clone(),
            small_disks: options.small_disks.clone(),
        };
        write_whole(
            &self.folder().join("node.json"),
            &serde_json::to_vec_pretty(&spec)?,
        )
    }

    /// Gives the node its network and its group, and starts its first process.
    pub fn power_on(&self, nodes: u8, lab_program: &Path) -> Result<()> {
        if self.init().is_some() {
            bail!("node {} is on already", self.name);
        }
        let layout = Layout::of_machine()?;
        layout.remove(self.home.name(), Some(&self.name));
        layout.create(self.home.name(), &self.name)?;
        network::remove_node(&self.home, &self.name)?;
        network::create_node(&self.home, self.index, nodes)?;
        let ready = self.folder().join("ready");
        let _ = std::fs::remove_file(&ready);
        let log = self.folder().join("init.log");
        let spec = self.folder().join("node.json");
        let (program, spec) = (lab_program.to_string_lossy(), spec.to_string_lossy());
        let id = start_daemon(&[&program, "node-launch", &spec], &log)?;
        self.home.record(Resource::Process {
            what: self.purpose(),
            id,
        })?;
        let began = Instant::now();
        while !ready.exists() {
            crate::interrupt::check()?;
            if !id.alive() || began.elapsed() > Duration::from_secs(20) {
                bail!(
                    "node {} did not start: {}",
                    self.name,
                    crate::process::last_lines(&log, 10)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Cuts the power: every process of the node is gone at once, and so is its network.
    pub fn power_cut(&self) -> Result<()> {
        let Some(init) = self.init() else {
            bail!("node {} is off already", self.name)
        };
        self.cut(init)
    }

    /// The same for one who knows the first process already and wants to lose no time.
    pub fn cut(&self, init: ProcessId) -> Result<()> {
        if !init.signal(Signal::KILL) {
            bail!("node {} is off already", self.name);
        }
        // The kernel ends the whole pid namespace before its first process is gone.
        if !init.gone_within(Duration::from_secs(20)) {
            bail!("node {}: its processes did not end within 20 s", self.name);
        }
        if let Some(launcher) = self.launcher() {
            launcher.end(Duration::from_secs(2));
        }
        network::remove_node(&self.home, &self.name)
    }

    /// Whether its first process runs.
    #[must_use]
    pub fn on(&self) -> bool {
        self.init().is_some()
    }

    fn purpose(&self) -> String {
        format!("node {}", self.name)
    }

    fn launcher(&self) -> Option<ProcessId> {
        self.home
            .read()
            .ok()??
            .process(&self.purpose())
            .filter(|id| id.alive())
    }

    /// The node's first process, by its pid on the machine.
    #[must_use]
    pub fn init(&self) -> Option<ProcessId> {
        self.launcher()?
            .children()
            .into_iter()
            .find(|child| child.alive())
    }

    /// Words that put a command into the node.
    pub fn enter(&self) -> Result<Vec<String>> {
        let Some(init) = self.init() else {
            bail!("node {} of lab `{}` is off", self.name, self.home.name());
        };
        let pid = init.pid.to_string();
        Ok(["nsenter", "-t", &pid, "-m", "-n", "-p", "-u", "-i", "-C", "--"]
            .map(str::to_owned)
            .to_vec())
    }

    /// A command inside the node, about to be run.
    pub fn run(&self, argv: &[&str]) -> Result<Run> {
        let mut words = self.enter()?;
        words.extend(argv.iter().map(|word| (*word).to_owned()));
        Ok(Run::argv(&words)?
            .env("PATH", services::PATH)
            .env("HOME", "/root"))
    }

    /// `etcdctl` inside the node, with the client certificate that kubeadm makes; it asks the node's own member unless
    /// told another endpoint.
    pub fn etcdctl(&self, words: &[&str]) -> Result<Run> {
        let certificates = [
            "etcdctl",
            "--cacert=/etc/kubernetes/pki/etcd/ca.crt",
            "--cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt",
            "--key=/etc/kubernetes/pki/etcd/healthcheck-client.key",
        ];
        self.run(&[&certificates, words].concat())
    }

    /// The node's processes that run this program, by pid on the machine. `kube-apiserver` and the like by
    /// their file; `operator` and `agent` are `lockkeeper` with that first argument.
    pub fn processes(&self, component: &str) -> Result<Vec<ProcessId>> {
        let layout = Layout::of_machine()?;
        Ok(layout
            .processes(self.home.name(), Some(&self.name))
            .into_iter()
            .filter_map(ProcessId::of)
            .filter(|id| runs(component, &id.arguments()))
            .collect())
    }

    /// Imports an image into the node's containerd.
    pub fn import(&self, tar: &Path) -> Result<()> {
        self.run(&["ctr", "-n", "k8s.io", "images", "import", "-"])?
            .stdin_file(tar)
            .limit(Duration::from_secs(180))
            .check()
            .with_context(|| format!("cannot import {} on {}", tar.display(), self.name))
            .map(drop)
    }
}

fn runs(component: &str, arguments: &[String]) -> bool {
    let Some(program) = arguments.first().and_then(|program| program.rsplit('/').next()) else {
        return false;
    };
    match component {
        "operator" | "agent" => {
            program == "lockkeeper" && arguments.get(1).is_some_and(|word| word == component)
        }
        _ => program == component,
    }
}

fn link(target: &str, at: &Path) -> Result<()> {
    let _ = std::fs::remove_file(at);
    std::os::unix::fs::symlink(target, at).with_context(|| format!("cannot link {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_told_by_its_program_and_ours_by_the_first_argument() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(runs("etcd", &words("etcd --name=cp1")));
        assert!(runs(
            "kube-apiserver",
            &words("/usr/local/bin/kube-apiserver --x")
        ));
        assert!(!runs("etcd", &words("etcdctl get x")));
        assert!(runs("agent", &words("/usr/local/bin/lockkeeper agent")));
        assert!(!runs("operator", &words("/usr/local/bin/lockkeeper agent")));
    }
}
