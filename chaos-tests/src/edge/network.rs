//! The edge's network. Both labs have the same addresses inside, so each is seen from outside under a network of its
//! own, one to one; what goes out of a lab bears the address of its end of the cable.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::Result;

use super::Colour;
use super::app::NODE_PORT;
use crate::address;
use crate::network::{FABRIC, create_namespace, ip, run_in};
use crate::state::Home;

/// The namespace of the edge, in blue's lab.
pub const EDGE: &str = "edge";
/// Where clients ask.
pub const PROXY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(ADDRESS, 80));
/// Where clients ask what a Job of the scenario's steers.
pub(super) const BESIDE: SocketAddr = SocketAddr::V4(SocketAddrV4::new(ADDRESS, 81));
/// The edge itself.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 80, 0, 1);
/// The edge, both clusters as others see them, and the cables: what is outside of a lab.
const OUTSIDE: &str = "10.80.0.0/14";

impl Colour {
    const fn number(self) -> u8 {
        match self {
            Self::Blue => 1,
            Self::Green => 2,
        }
    }

    /// An address of its lab, as others see it.
    const fn seen(self, inside: Ipv4Addr) -> Ipv4Addr {
        Ipv4Addr::new(10, 80 + self.number(), 0, inside.octets()[3])
    }

    /// The two ends of its cable: the edge's and its own.
    const fn cable(self) -> (Ipv4Addr, Ipv4Addr) {
        let number = self.number();
        (Ipv4Addr::new(10, 83, number, 1), Ipv4Addr::new(10, 83, number, 2))
    }
}

/// The load balancer of a colour's API servers, as others see it.
pub(super) fn api_server(colour: Colour) -> SocketAddr {
    SocketAddr::from((colour.seen(address::LOAD_BALANCER), address::API_PORT))
}

/// The application of a colour, as the edge sees it.
pub(super) fn application(colour: Colour) -> SocketAddr {
    SocketAddr::from((colour.seen(address::node(1)), NODE_PORT))
}

/// A second address of the first node, for those whose shares are made of addresses.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 21);

/// The addresses of a colour's application, as the edge sees them. The second is there once it was added.
pub(super) fn applications(colour: Colour) -> [IpAddr; 2] {
    [address::node(1), SECOND].map(|inside| colour.seen(inside).into())
}

/// Gives the first node of both clusters its second address.
pub(super) fn add_second_addresses(blue: &Home, green: &Home) -> Result<()> {
    for home in [blue, green] {
        let node = home.namespace(&address::name(1));
        ip(&["-n", &node, "addr", "add", &format!("{SECOND}/32"), "dev", "eth0"])?;
    }
    Ok(())
}

/// Gives the edge another address.
pub(super) fn add_edge_address(blue: &Home, address: Ipv4Addr) -> Result<()> {
    let edge = blue.namespace(EDGE);
    ip(&["-n", &edge, "addr", "add", &format!("{address}/32"), "dev", "lo"])
}

/// Makes the edge and lays its cables.
pub(super) fn create(blue: &Home, green: &Home) -> Result<()> {
    let edge = create_namespace(blue, EDGE)?;
    ip(&["-n", &edge, "addr", "add", &format!("{ADDRESS}/32"), "dev", "lo"])?;
    for (colour, home) in [(Colour::Blue, blue), (Colour::Green, green)] {
        lay_cable(&edge, colour, &home.namespace(FABRIC))?;
    }
    Ok(())
}

fn lay_cable(edge: &str, colour: Colour, fabric: &str) -> Result<()> {
    let (here, there) = colour.cable();
    let (name, seen) = (colour.name(), colour.seen(Ipv4Addr::UNSPECIFIED));
    ip(&[
        "-n", edge, "link", "add", name, "type", "veth", "peer", "name", EDGE, "netns", fabric,
    ])?;
    ip(&["-n", edge, "addr", "add", &format!("{here}/30"), "dev", name])?;
    ip(&["-n", edge, "link", "set", name, "up"])?;
    ip(&["-n", fabric, "addr", "add", &format!("{there}/30"), "dev", EDGE])?;
    ip(&["-n", fabric, "link", "set", EDGE, "up"])?;
    ip(&[
        "-n",
        edge,
        "route",
        "add",
        &format!("{seen}/24"),
        "via",
        &there.to_string(),
    ])?;
    ip(&["-n", fabric, "route", "add", OUTSIDE, "via", &here.to_string()])?;
    let inside = format!("{}/24", Ipv4Addr::from(u32::from(address::FABRIC) & !0xff));
    let nat = |words: &[&str]| {
        let argv: Vec<&str> = ["iptables", "-w", "-t", "nat", "-A"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        run_in(fabric, &argv)?.check().map(drop)
    };
    nat(&[
        "PREROUTING",
        "-i",
        EDGE,
        "-d",
        &format!("{seen}/24"),
        "-j",
        "NETMAP",
        "--to",
        &inside,
    ])?;
    nat(&["POSTROUTING", "-o", EDGE, "-j", "MASQUERADE"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_is_seen_under_addresses_of_its_own() {
        assert_eq!(api_server(Colour::Blue).to_string(), "10.81.0.100:6443");
        assert_eq!(application(Colour::Green).to_string(), "10.82.0.11:30080");
    }
}
