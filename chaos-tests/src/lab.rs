//! A lab: nodes, load balancer, S3 server. Up, found again, down.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cache::{Cache, write_whole};
use crate::cgroup::Layout;
use crate::edge::EDGE;
use crate::kubeadm::{self, Secrets};
use crate::network::{self, FABRIC};
use crate::node::Node;
use crate::process::{Output, ProcessId, Run};
use crate::progress::Progress;
use crate::recipes::{self, Recipe};
use crate::state::{Home, Options, Phase, Resource, State};
use crate::{address, build, fabric, images, require, seed};

/// A lab that is up.
#[derive(Debug, Clone)]
pub struct Lab {
    home: Home,
    options: Options,
}

/// Whom a lab belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    /// It stays when this process ends.
    None,
    /// It is stale once this process is gone.
    ToThisProcess,
}

impl Lab {
    /// Brings a lab up. On failure everything made is taken down again, unless `keep`.
    ///
    /// # Errors
    /// A missing tool or privilege, a lab of that name that is up already, a step of kubeadm that failed.
    pub fn up(options: Options, tie: Tie, keep: bool, progress: &Progress) -> Result<Self> {
        require::all()?;
        check(&options)?;
        let home = Home::of(&options.name)?;
        let _lock = home.lock()?;
        clear_stale(&home, progress)?;
        if home.read()?.is_some() {
            bail!(
                "the lab `{0}` is up already: `lab down --name {0}` first, or choose another --name",
                home.name()
            );
        }
        let cache = Cache::open()?;
        build::all(&cache, &needed(&options)?, progress)?;
        home.write(&State {
            options: options.clone(),
            phase: Phase::Starting,
            owner: Some(ProcessId::own()),
            resources: Vec::new(),
        })?;
        let lab = Self { home, options };
        match lab.make(&cache, progress) {
            Ok(()) => {
                let owner = (tie == Tie::ToThisProcess).then(ProcessId::own);
                lab.home.change(|state| {
                    state.phase = Phase::Up;
                    state.owner = owner;
                })?;
                Ok(lab)
            }
            Err(error) if keep => {
                // Left for a look: no longer tied to this process, or the next `up` would clear it.
                lab.home.change(|state| state.owner = None)?;
                Err(error.context(format!(
                    "the half-made lab was kept: `lab down --name {}`",
                    lab.home.name()
                )))
            }
            Err(error) => {
                progress.say("taking down what was made");
                take_down(&lab.home)?;
                Err(error)
            }
        }
    }

    /// The lab of this name, which must be up.
    pub fn find(name: &str) -> Result<Self> {
        let home = Home::of(name)?;
        let Some(state) = home.read()? else {
            bail!(
                "there is no lab `{name}`: `lab up --name {name}` makes it, `lab status` lists what there is"
            );
        };
        Ok(Self {
            home,
            options: state.options,
        })
    }

    /// Takes it down.
    pub fn down(self) -> Result<()> {
        let lock = self.home.lock()?;
        take_down(&self.home)?;
        self.home.forget(lock);
        Ok(())
    }

    fn make(&self, cache: &Cache, progress: &Progress) -> Result<()> {
        let Options {
            nodes,
            kubernetes,
            etcd,
            also,
            ..
        } = &self.options;
        let tars = images::for_lab(cache, kubernetes, etcd, also)?;
        let seed = seed::with_images(cache, &tars, progress)?;
        // The program may be built anew while the lab runs; its nodes keep this one.
        let program = self.program();
        std::fs::copy(std::env::current_exe()?, &program)?;
        progress.say(format_args!(
            "lab `{}`: network, load balancer, S3 server",
            self.home.name()
        ));
        network::create_fabric(&self.home, *nodes)?;
        fabric::start_load_balancer(&self.home, *nodes)?;
        fabric::start_s3(&self.home, cache)?;
        fabric::start_s3_proxy(&self.home, &program)?;
        for node in self.nodes() {
            node.make_disk(&self.options, cache, &seed)?;
            node.power_on(*nodes, &program)?;
        }
        self.wait_for_containerd()?;
        let secrets = Secrets::random();
        let mut ca_hash = None;
        for node in self.nodes() {
            match &ca_hash {
                None => {
                    progress.say(format_args!("{}: kubeadm init {kubernetes}", node.name()));
                    ca_hash = Some(kubeadm::init(&node, &secrets, kubernetes)?);
                    self.write_kubeconfigs(&node)?;
                }
                Some(hash) => {
                    progress.say(format_args!("{}: kubeadm join", node.name()));
                    kubeadm::join(&node, &secrets, hash)?;
                }
            }
        }
        progress.say("waiting for every node to be Ready");
        self.wait_for_nodes()?;
        progress.say(format_args!("{nodes} node(s) Ready"));
        Ok(())
    }

    fn wait_for_containerd(&self) -> Result<()> {
        for node in self.nodes() {
            wait_until(
                &format!("containerd on {}", node.name()),
                Duration::from_secs(60),
                || Ok(node.run(&["ctr", "version"])?.output()?.success()),
            )?;
        }
        Ok(())
    }

    fn wait_for_nodes(&self) -> Result<()> {
        let wanted = usize::from(self.options.nodes);
        wait_until("every node Ready", Duration::from_secs(180), || {
            let ready = "{range .items[*]}{.status.conditions[?(@.type==\"Ready\")].status} {end}";
            let said = self.kubectl(&["get", "nodes", "-o", &format!("jsonpath={ready}")])?;
            Ok(said.success()
                && said
                    .stdout
                    .split_whitespace()
                    .filter(|word| *word == "True")
                    .count()
                    == wanted)
        })
    }

    /// Writes the admin's kubeconfig with the load balancer as server, and one for each API server.
    fn write_kubeconfigs(&self, first: &Node) -> Result<()> {
        let text = std::fs::read_to_string(first.kubernetes_folder().join("admin.conf"))?;
        write_whole(&self.kubeconfig(None), text.as_bytes())?;
        for node in self.nodes() {
            let own = text.replace(&address::LOAD_BALANCER.to_string(), &node.address().to_string());
            write_whole(&self.kubeconfig(Some(node.name())), own.as_bytes())?;
        }
        Ok(())
    }

    /// The admin's kubeconfig: through the load balancer, or straight at the API server of one node.
    #[must_use]
    pub fn kubeconfig(&self, node: Option<&str>) -> PathBuf {
        self.home
            .path(&format!("kubeconfig/{}.conf", node.unwrap_or("admin")))
    }

    /// The lab's folder.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// How it was asked for.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The copy of this program that the lab's own processes run.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.home.path("lab-program")
    }

    /// All its nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        (1..=self.options.nodes)
            .map(|index| Node::new(&self.home, index))
            .collect()
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Result<Node> {
        let nodes = self.nodes();
        let names: Vec<String> = nodes.iter().map(|node| node.name().to_owned()).collect();
        nodes
            .into_iter()
            .find(|node| node.name() == name)
            .with_context(|| {
                format!(
                    "lab `{}` has no node `{name}`; it has {}",
                    self.home.name(),
                    names.join(", ")
                )
            })
    }

    /// Cuts the power of a node.
    pub fn power_cut(&self, node: &str) -> Result<()> {
        self.node(node)?.power_cut()
    }

    /// Gives a node its power back.
    pub fn power_on(&self, node: &str) -> Result<()> {
        self.node(node)?.power_on(self.options.nodes, &self.program())
    }

    /// Puts a new machine in the place of one that is off: the same name and address, and nothing on its disk but
    /// what every machine of a lab has from the start. It is on then.
    pub fn renew(&self, node: &str, progress: &Progress) -> Result<()> {
        let node = self.node(node)?;
        if node.on() {
            bail!("node {} is on: cut its power first", node.name());
        }
        let cache = Cache::open()?;
        let Options {
            kubernetes,
            etcd,
            also,
            ..
        } = &self.options;
        let tars = images::for_lab(&cache, kubernetes, etcd, also)?;
        let seed = seed::with_images(&cache, &tars, progress)?;
        let disk = node.folder().join("disk");
        std::fs::remove_dir_all(&disk).with_context(|| format!("cannot remove {}", disk.display()))?;
        node.make_disk(&self.options, &cache, &seed)?;
        node.power_on(self.options.nodes, &self.program())
    }

    /// Runs a command in a node to its end and returns what it said, whatever the status.
    pub fn exec(&self, node: &str, argv: &[&str]) -> Result<Output> {
        self.node(node)?.run(argv)?.output()
    }

    /// A command in the nodes' network, about to be run. Programs of this lab's version are on its PATH.
    pub fn out(&self, argv: &[&str]) -> Result<Run> {
        Ok(network::run_in(&self.home.namespace(FABRIC), argv)?
            .env("PATH", self.path_variable()?)
            .env("KUBECONFIG", self.kubeconfig(None)))
    }

    /// The PATH of commands in the nodes' network.
    pub fn path_variable(&self) -> Result<String> {
        let cache = Cache::open()?;
        let mut dirs = vec![cache.binaries("kubernetes", &self.options.kubernetes)];
        dirs.push(cache.binaries("etcd", &self.options.etcd));
        for what in ["helm", "versitygw"] {
            dirs.push(cache.binaries(what, recipes::only(what)?.version));
        }
        let own = dirs
            .iter()
            .map(|dir| dir.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(":");
        Ok(format!(
            "{own}:{}:/usr/sbin:/sbin",
            std::env::var("PATH").unwrap_or_default()
        ))
    }

    /// kubectl as the cluster's admin, through the load balancer.
    pub fn kubectl(&self, words: &[&str]) -> Result<Output> {
        let argv: Vec<&str> = std::iter::once("kubectl").chain(words.iter().copied()).collect();
        self.out(&argv)?.output()
    }

    /// Imports an image into every node that is on, all at once.
    pub fn import(&self, tar: &Path) -> Result<()> {
        let nodes: Vec<Node> = self.nodes().into_iter().filter(Node::on).collect();
        std::thread::scope(|scope| {
            let imports: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| node.import(tar)))
                .collect();
            imports
                .into_iter()
                .try_for_each(|import| import.join().unwrap_or_else(|_| bail!("an import panicked")))
        })
    }
}

fn check(options: &Options) -> Result<()> {
    recipes::can_start(&options.kubernetes)?;
    if options.nodes == 0 || options.nodes > address::MOST_NODES {
        bail!(
            "--nodes must be 1 to {}, not {}",
            address::MOST_NODES,
            options.nodes
        );
    }
    for (path, size) in &options.small_disks {
        if !path.starts_with("/var/lib") || *size < 8 {
            bail!(
                "a small disk must be under /var/lib and have at least 8 MiB, not {}={size}",
                path.display()
            );
        }
    }
    Ok(())
}

/// What must be built for a lab.
fn needed(options: &Options) -> Result<Vec<&'static Recipe>> {
    let mut all = vec![
        recipes::recipe("kubernetes", &options.kubernetes)?,
        recipes::recipe("etcd", &options.etcd)?,
    ];
    for version in &options.also {
        all.push(recipes::recipe("kubernetes", version)?);
    }
    all.push(recipes::only("versitygw")?);
    all.push(recipes::only("helm")?);
    Ok(all)
}

/// Waits with short looks until something holds; on time-out says what did not happen.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !holds()? {
        crate::interrupt::check()?;
        if began.elapsed() > limit {
            bail!("waited {} s for {what}, in vain", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Takes away what dead processes left: this name's lab if nothing stands behind it, and every other lab whose
/// owner is gone.
fn clear_stale(home: &Home, progress: &Progress) -> Result<()> {
    for other in Home::all()? {
        let own = other.name() == home.name();
        let stale = match other.read() {
            Ok(Some(state)) => state.stale() && (own || state.owner.is_some()),
            Ok(None) | Err(_) => own,
        };
        if !stale {
            continue;
        }
        // Another process may be at it.
        let lock = if own { None } else { Some(other.lock()) };
        let lock = match lock.transpose() {
            Ok(lock) => lock,
            Err(_) => continue,
        };
        progress.say(format_args!(
            "the lab `{}` was left by a process that is gone: taking it down",
            other.name()
        ));
        take_down(&other)?;
        if let Some(lock) = lock {
            other.forget(lock);
        }
    }
    Ok(())
}

/// Takes down whatever there is of a lab. Goes on past what fails and reports it at the end.
pub fn take_down(home: &Home) -> Result<()> {
    let layout = Layout::of_machine()?;
    let state = home.read().ok().flatten();
    let mut failures = Vec::new();
    let mut namespaces: BTreeSet<String> = found_namespaces(home);
    let mut processes = Vec::new();
    for resource in state.iter().flat_map(|state| &state.resources) {
        match resource {
            Resource::NetworkNamespace { name } => {
                namespaces.insert(name.clone());
            }
            Resource::Process { id, .. } => processes.push(*id),
        }
    }
    // A node's first process takes all of the node with it; its launcher is its parent.
    for launcher in &processes {
        if launcher.alive() {
            for child in launcher.children() {
                child.signal(Signal::KILL);
            }
            launcher.signal(Signal::KILL);
        }
    }
    // What was started and not written down: found by cgroup and by network namespace, which are ours alone.
    let mut rest = layout.processes(home.name(), None);
    for namespace in &namespaces {
        rest.extend(network::processes(namespace)?);
    }
    processes.extend(
        rest.into_iter()
            .filter(|pid| *pid != std::process::id())
            .filter_map(ProcessId::of),
    );
    for process in &processes {
        process.signal(Signal::KILL);
    }
    for process in &processes {
        if !process.gone_within(Duration::from_secs(20)) {
            failures.push(format!("process {} does not end", process.pid));
        }
    }
    for namespace in &namespaces {
        if let Err(error) = network::remove_namespace(namespace) {
            failures.push(error.to_string());
        }
    }
    layout.remove(home.name(), None);
    if failures.is_empty() && home.root().exists() {
        std::fs::remove_dir_all(home.root())
            .with_context(|| format!("cannot remove {}", home.root().display()))?;
    }
    if failures.is_empty() {
        Ok(())
    } else {
        bail!("lab `{}` is not all gone: {}", home.name(), failures.join("; "))
    }
}

/// Namespaces whose names are those of this lab, for when the state file is gone.
fn found_namespaces(home: &Home) -> BTreeSet<String> {
    let wanted: BTreeSet<String> = [FABRIC, EDGE]
        .map(str::to_owned)
        .into_iter()
        .chain((1..=address::MOST_NODES).map(address::name))
        .map(|of| home.namespace(&of))
        .collect();
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return BTreeSet::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| wanted.contains(name))
        .collect()
}

/// Holds the lock of a lab, for commands that take one down by name.
pub fn down_by_name(name: &str) -> Result<bool> {
    let home = Home::of(name)?;
    let lock = home.lock()?;
    let there = home.root().exists() || !found_namespaces(&home).is_empty();
    take_down(&home)?;
    home.forget(lock);
    Ok(there)
}
