//! Faults, as a person with the machine in hand would cause them. Each has its way back.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::cache::write_whole;
use crate::lab::Lab;
use crate::node::Node;
use crate::s3_proxy::Mode;
use crate::{address, network};

/// The table of ours in a node's network. Only filter chains, so that removing it resets nothing.
const TABLE: &str = "lockkeeper_lab";
/// The file that fills a disk.
const FILLER: &str = ".lab-filler";
/// Where members of etcd reach one another.
const PEERS: u16 = 2380;
/// A disk larger than this is the machine's own and not filled.
const LARGEST_DISK: u64 = 4 << 30;

/// The other end of a cut line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Everything that is not the node itself.
    Everyone,
    /// Another node, with its pods.
    Node(String),
    /// The S3 server.
    S3,
    /// The load balancer: its address and its health checks.
    LoadBalancer,
    /// The other members of etcd, and nothing else of their nodes.
    Members,
}

impl std::str::FromStr for Peer {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "all" | "everyone" => Self::Everyone,
            "s3" => Self::S3,
            "lb" => Self::LoadBalancer,
            "members" => Self::Members,
            node => Self::Node(node.to_owned()),
        })
    }
}

impl Lab {
    /// Stops a component's processes on a node where they stand (SIGSTOP). Returns how many.
    pub fn freeze(&self, node: &str, component: &str) -> Result<usize> {
        self.signal(node, component, Signal::STOP)
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self, node: &str, component: &str) -> Result<usize> {
        self.signal(node, component, Signal::CONT)
    }

    /// Kills a component's processes on a node. `component` is the program's name; `operator` and `agent`
    /// stand for Lockkeeper's own two.
    pub fn kill(&self, node: &str, component: &str) -> Result<usize> {
        self.signal(node, component, Signal::KILL)
    }

    /// Signals a component's processes on a node.
    ///
    /// # Errors
    /// No such process: a fault that hits nothing would make a test pass for no reason.
    pub fn signal(&self, node: &str, component: &str, signal: Signal) -> Result<usize> {
        let found = self.node(node)?.processes(component)?;
        let hit = found.into_iter().filter(|process| process.signal(signal)).count();
        if hit == 0 {
            bail!("no process `{component}` runs on {node}");
        }
        Ok(hit)
    }

    /// Cuts the line between a node and a peer, both ways, without a word to either: packets are dropped.
    pub fn partition(&self, node: &str, peer: &Peer) -> Result<()> {
        let node = self.node(node)?;
        let rules = self.partition_rules(&node, peer)?;
        network::run_in(&node.namespace(), &["nft", "-f", "-"])?
            .input(rules)
            .check()?;
        Ok(())
    }

    /// Mends all cut lines of a node.
    pub fn heal(&self, node: &str) -> Result<()> {
        let node = self.node(node)?;
        // Made first, so that there is one to delete.
        let rules = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
        network::run_in(&node.namespace(), &["nft", "-f", "-"])?
            .input(rules)
            .to_the_end()
            .check()?;
        Ok(())
    }

    fn partition_rules(&self, node: &Node, peer: &Peer) -> Result<String> {
        let cut = match peer {
            Peer::Everyone => Cut::Everyone,
            Peer::Members => Cut::Port(PEERS),
            Peer::Node(name) => {
                let other = self.node(name)?;
                if other.name() == node.name() {
                    bail!("{name} cannot be cut off from itself");
                }
                Cut::Networks(vec![other.address().to_string(), other.pods()])
            }
            Peer::S3 => Cut::Networks(vec![address::S3.to_string()]),
            Peer::LoadBalancer => Cut::Networks(
                [address::LOAD_BALANCER, address::FABRIC]
                    .map(|a: Ipv4Addr| a.to_string())
                    .to_vec(),
            ),
        };
        Ok(rules(&cut))
    }

    /// Makes the S3 server pass, refuse, hang, cut or crawl.
    pub fn s3(&self, mode: Mode) -> Result<()> {
        write_whole(&self.home().path("s3-proxy.json"), &serde_json::to_vec(&mode)?)?;
        // The proxy looks every 50 ms.
        std::thread::sleep(Duration::from_millis(150));
        Ok(())
    }

    /// Fills the disk at a path of a node to its last byte.
    ///
    /// # Errors
    /// The path is not on a small disk of its own: see [`crate::state::Options::small_disks`].
    pub fn fill_disk(&self, node: &str, path: &str) -> Result<()> {
        let node = self.node(node)?;
        let said = node.run(&["stat", "-f", "-c", "%S %b", path])?.check()?;
        let mut numbers = said
            .split_whitespace()
            .filter_map(|word| word.parse::<u64>().ok());
        let size = numbers
            .next()
            .unwrap_or(0)
            .saturating_mul(numbers.next().unwrap_or(0));
        if size == 0 || size > LARGEST_DISK {
            bail!(
                "{path} on {} is on the machine's own disk; bring the lab up with --small-disk {path}=64 to have one to fill",
                node.name()
            );
        }
        let filler = filler(path);
        // Ends with "no space left", which is what is wanted.
        node.run(&[
            "dd",
            "if=/dev/zero",
            &format!("of={filler}"),
            "bs=64K",
            "conv=fsync",
        ])?
        .output()?;
        let small = format!("{filler}.rest");
        node.run(&[
            "dd",
            "if=/dev/zero",
            &format!("of={small}"),
            "bs=1",
            "count=65536",
        ])?
        .output()?;
        Ok(())
    }

    /// Frees a filled disk.
    pub fn free_disk(&self, node: &str, path: &str) -> Result<()> {
        let filler = filler(path);
        let small = format!("{filler}.rest");
        self.node(node)?
            .run(&["rm", "-f", &filler, &small])?
            .check()
            .context("cannot free the disk")
            .map(drop)
    }
}

fn filler(path: &str) -> String {
    Path::new(path).join(FILLER).to_string_lossy().into_owned()
}

/// Which packets a cut line loses.
enum Cut {
    /// All but those of the loopback.
    Everyone,
    /// What comes from and goes to these networks.
    Networks(Vec<String>),
    /// What comes from and goes to this TCP port, on either side.
    Port(u16),
}

/// Drops what comes in and what goes out of it.
fn rules(cut: &Cut) -> String {
    let [incoming, outgoing] = match cut {
        Cut::Everyone => ["iifname \"eth0\"", "oifname \"eth0\""].map(|rule| vec![rule.to_owned()]),
        Cut::Networks(networks) => {
            let set = networks.join(", ");
            ["saddr", "daddr"].map(|end| vec![format!("ip {end} {{ {set} }}")])
        }
        Cut::Port(port) => {
            let both = vec![format!("tcp sport {port}"), format!("tcp dport {port}")];
            [both.clone(), both]
        }
    };
    let chain = |hook: &str, which: &[String]| {
        let rules: String = which.iter().map(|which| format!("    {which} drop\n")).collect();
        format!("  chain {hook} {{\n    type filter hook {hook} priority -300; policy accept;\n{rules}  }}\n")
    };
    format!(
        "table inet {TABLE} {{\n{}{}{}}}\n",
        chain("input", &incoming),
        chain("output", &outgoing),
        // Pods of the node.
        chain("forward", &[incoming.as_slice(), &outgoing].concat())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_drops_both_ways_and_for_pods_too() {
        let text = rules(&Cut::Networks(vec!["10.77.0.12".into(), "10.78.1.0/24".into()]));
        assert_eq!(
            text.matches("ip saddr { 10.77.0.12, 10.78.1.0/24 } drop").count(),
            2
        );
        assert_eq!(
            text.matches("ip daddr { 10.77.0.12, 10.78.1.0/24 } drop").count(),
            2
        );
        assert_eq!(rules(&Cut::Everyone).matches("\"eth0\" drop").count(), 4);
        assert_eq!(rules(&Cut::Port(2380)).matches("port 2380 drop").count(), 8);
    }

    #[test]
    fn a_peer_is_read_from_its_word() {
        assert_eq!("s3".parse(), Ok(Peer::S3));
        assert_eq!("members".parse(), Ok(Peer::Members));
        assert_eq!("cp2".parse(), Ok(Peer::Node("cp2".into())));
    }
}
