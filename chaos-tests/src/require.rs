//! What the machine must offer, asked before anything is made.

use anyhow::{Result, bail};

/// A program the lab calls, and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("socat", "socat"),
    ("haproxy", "haproxy"),
    ("prometheus", "prometheus"),
    ("openssl", "openssl"),
    ("cc", "gcc libc6-dev"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setsid", "util-linux"),
    ("mount", "mount"),
];

/// The folder Debian's CNI plugins lie in.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Fails with one sentence for each thing that is missing.
pub fn all() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the lab makes namespaces, mounts and cgroups: run it as root");
    }
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| {
            format!("{program} is missing: apt-get install {package}, or run `make setup`")
        })
        .collect();
    if !std::path::Path::new(CNI_PLUGINS).join("bridge").exists() {
        missing.push(format!(
            "{CNI_PLUGINS}/bridge is missing: apt-get install containernetworking-plugins, or run `make setup`"
        ));
    }
    if missing.is_empty() {
        Ok(())
    } else {
        bail!("{}", missing.join("\n"))
    }
}

/// Where a program lies on the PATH.
#[must_use]
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    // Debian keeps system programs out of an ordinary user's PATH, and `su` keeps that PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
