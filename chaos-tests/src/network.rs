//! Network namespaces and the bridge that joins them. Nothing is made in the machine's own network.

use std::fs::File;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use crate::address;
use crate::process::Run;
use crate::state::{Home, Resource};

/// The namespace that holds the bridge, the load balancer, the S3 server and the clients.
pub const FABRIC: &str = "fabric";

/// Runs `ip`.
pub(crate) fn ip(words: &[&str]) -> Result<()> {
    Run::new("ip").args(words).check().map(drop)
}

/// Words that put a command into a network namespace. Not `ip netns exec`: that one replaces /sys and hides
/// the cgroups.
#[must_use]
pub fn enter(namespace: &str) -> Vec<String> {
    vec![
        "nsenter".into(),
        format!("--net=/run/netns/{namespace}"),
        "--".into(),
    ]
}

/// A command inside a network namespace.
pub fn run_in(namespace: &str, argv: &[&str]) -> Result<Run> {
    let words: Vec<String> = enter(namespace)
        .into_iter()
        .chain(argv.iter().map(|word| (*word).to_owned()))
        .collect();
    Run::argv(&words)
}

/// Makes a namespace of a lab, in which packets of others pass through.
pub(crate) fn create_namespace(home: &Home, of: &str) -> Result<String> {
    let name = home.namespace(of);
    home.record(Resource::NetworkNamespace { name: name.clone() })?;
    ip(&["netns", "add", &name])?;
    ip(&["-n", &name, "link", "set", "lo", "up"])?;
    // Packets of other nodes' pods pass through.
    run_in(&name, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?.check()?;
    Ok(name)
}

/// Makes the fabric: a bridge with the addresses of everything that is not a node.
pub fn create_fabric(home: &Home, nodes: u8) -> Result<()> {
    let name = create_namespace(home, FABRIC)?;
    ip(&["-n", &name, "link", "add", "br0", "type", "bridge"])?;
    for address in [
        address::FABRIC,
        address::LOAD_BALANCER,
        address::S3,
        address::S3_BEHIND,
    ] {
        ip(&[
            "-n",
            &name,
            "addr",
            "add",
            &format!("{address}/{}", address::PREFIX),
            "dev",
            "br0",
        ])?;
    }
    ip(&["-n", &name, "link", "set", "br0", "up"])?;
    for index in 1..=nodes {
        route(&name, index)?;
    }
    Ok(())
}

fn route(namespace: &str, to: u8) -> Result<()> {
    ip(&[
        "-n",
        namespace,
        "route",
        "add",
        &address::pods(to),
        "via",
        &address::node(to).to_string(),
    ])
}

/// Makes the network of a node: one cable to the bridge, and routes to the other nodes' pods.
pub fn create_node(home: &Home, index: u8, nodes: u8) -> Result<()> {
    let (node, fabric) = (address::name(index), home.namespace(FABRIC));
    let name = create_namespace(home, &node)?;
    let cable = format!("v-{node}");
    ip(&[
        "-n", &fabric, "link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &name,
    ])?;
    ip(&["-n", &fabric, "link", "set", &cable, "master", "br0", "up"])?;
    ip(&[
        "-n",
        &name,
        "addr",
        "add",
        &format!("{}/{}", address::node(index), address::PREFIX),
        "dev",
        "eth0",
    ])?;
    ip(&["-n", &name, "link", "set", "eth0", "up"])?;
    ip(&[
        "-n",
        &name,
        "route",
        "add",
        "default",
        "via",
        &address::FABRIC.to_string(),
    ])?;
    for other in (1..=nodes).filter(|other| *other != index) {
        route(&name, other)?;
    }
    // Only there where the bridge filter is built in; kube-proxy's rules for pods of one node need it.
    run_in(
        &name,
        &[
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables",
        ],
    )?
    .output()?;
    Ok(())
}

/// Removes the network of a node. Its cable is pulled first: the kernel takes namespaces down one after another, and
/// with all the pods of three nodes that takes a minute, in which a new cable could not have this name.
pub fn remove_node(home: &Home, node: &str) -> Result<()> {
    let (fabric, cable) = (home.namespace(FABRIC), format!("v-{node}"));
    let pulled = Run::new("ip")
        .args(["-n", &fabric, "link", "del", &cable])
        .to_the_end()
        .output()?;
    if !pulled.success() {
        // Most often there is none; one that stays is told of when the new one is made.
        let there = Run::new("ip")
            .args(["-n", &fabric, "link", "show", &cable])
            .output()?;
        if there.success() {
            bail!("the cable {cable} cannot be pulled: {}", pulled.stderr.trim());
        }
    }
    remove_namespace(&home.namespace(node))
}

/// Removes a namespace, if it is there.
pub fn remove_namespace(name: &str) -> Result<()> {
    if !std::path::Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    Run::new("ip")
        .args(["netns", "del", name])
        .to_the_end()
        .check()
        .map(drop)
}

/// Processes whose network is this namespace.
pub fn processes(name: &str) -> Result<Vec<u32>> {
    if !std::path::Path::new("/run/netns").join(name).exists() {
        return Ok(Vec::new());
    }
    let said = Run::new("ip")
        .args(["netns", "pids", name])
        .to_the_end()
        .output()?;
    Ok(said
        .stdout
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}

/// Moves the calling thread, and the threads it starts from now on, into a namespace.
pub fn move_thread_into(namespace: &str) -> Result<()> {
    use std::os::fd::AsFd;
    let file = File::open(format!("/run/netns/{namespace}"))
        .with_context(|| format!("no network namespace {namespace}"))?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the network namespace {namespace}"))?;
    Ok(())
}

/// Moves the calling thread, and the threads it starts from now on, back into the machine's own network.
pub fn move_thread_out() -> Result<()> {
    use std::os::fd::AsFd;
    // The first thread of this program never leaves it.
    let path = format!("/proc/{0}/task/{0}/ns/net", std::process::id());
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))
        .context("cannot go back into the machine's network")?;
    Ok(())
}

/// An address with a port, as programs want it.
#[must_use]
pub fn endpoint(address: Ipv4Addr, port: u16) -> String {
    format!("{address}:{port}")
}
