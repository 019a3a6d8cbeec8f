//! Who has which address in a lab.
//!
//! Every lab has network namespaces of its own and no way out of them, so every lab uses the same plan and
//! two labs on one machine never meet.

use std::net::Ipv4Addr;

/// The bridge that the nodes hang on; also their way to everything that is not a node.
pub const FABRIC: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The load balancer in front of the API servers.
pub const LOAD_BALANCER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The S3 server as clients see it: the proxy that can misbehave.
pub const S3: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);
/// The S3 server itself, behind the proxy.
pub const S3_BEHIND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 102);
/// The port of both.
pub const S3_PORT: u16 = 9000;
/// The port of API servers and of the load balancer.
pub const API_PORT: u16 = 6443;
/// The prefix length of the nodes' network.
pub const PREFIX: u8 = 24;
/// All pods.
pub const PODS: &str = "10.78.0.0/16";
/// All services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The most nodes a lab can have: one digit in the address.
pub const MOST_NODES: u8 = 9;

/// The address of the node with this number, from 1.
#[must_use]
pub const fn node(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + index)
}

/// The pods' network of the node with this number. Numbered as kube-controller-manager hands them out when
/// nodes join one after another, so that `spec.podCIDR` tells the truth.
#[must_use]
pub fn pods(index: u8) -> String {
    format!("10.78.{}.0/24", index.saturating_sub(1))
}

/// The name of the node with this number.
#[must_use]
pub fn name(index: u8) -> String {
    format!("cp{index}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_address_is_given_twice() {
        let mut all: BTreeSet<Ipv4Addr> = (1..=MOST_NODES).map(node).collect();
        all.extend([FABRIC, LOAD_BALANCER, S3, S3_BEHIND]);
        assert_eq!(all.len(), usize::from(MOST_NODES) + 4);
    }

    #[test]
    fn the_first_node_gets_the_first_pod_network() {
        assert_eq!(pods(1), "10.78.0.0/24");
        assert_eq!(pods(3), "10.78.2.0/24");
    }
}
