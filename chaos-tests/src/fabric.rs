//! What stands beside the nodes: the load balancer and the S3 server.

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::address;
use crate::cache::{Cache, hex, write_whole};
use crate::network::{self, endpoint};
use crate::process::start_daemon;
use crate::state::{Home, Resource};
use crate::{build, recipes};

/// The bucket that a lab's S3 server has from the start.
pub const BUCKET: &str = "lockkeeper";

/// The keys of a lab's S3 server, made afresh for each lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Keys {
    /// The access key.
    pub access: String,
    /// The secret key.
    pub secret: String,
}

impl S3Keys {
    /// The keys of a lab; made at the first call.
    pub fn of(home: &Home) -> Result<Self> {
        let path = home.path("s3-keys.json");
        if let Ok(bytes) = std::fs::read(&path) {
            return serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()));
        }
        let keys = Self {
            access: format!("LK{}", hex(&rand::random::<[u8; 9]>()).to_uppercase()),
            secret: hex(&rand::random::<[u8; 20]>()),
        };
        write_whole(&path, &serde_json::to_vec(&keys)?)?;
        Ok(keys)
    }
}

/// The address of the S3 server as clients see it.
#[must_use]
pub fn s3_endpoint() -> String {
    format!("http://{}", endpoint(address::S3, address::S3_PORT))
}

/// Starts a program in the fabric and writes it down.
fn start(home: &Home, what: &str, argv: &[&str]) -> Result<()> {
    let enter = network::enter(&home.namespace(network::FABRIC));
    let words: Vec<&str> = enter
        .iter()
        .map(String::as_str)
        .chain(argv.iter().copied())
        .collect();
    let id = start_daemon(&words, &home.log(what))?;
    home.record(Resource::Process {
        what: what.to_owned(),
        id,
    })
}

/// Starts HAProxy.
pub fn start_load_balancer(home: &Home, nodes: u8) -> Result<()> {
    let config = home.path("haproxy.cfg");
    write_whole(&config, haproxy(nodes, &home.path("haproxy.sock")).as_bytes())?;
    let program = crate::require::find("haproxy").context("haproxy is missing: apt-get install haproxy")?;
    start(
        home,
        "haproxy",
        &[&program.to_string_lossy(), "-db", "-f", &config.to_string_lossy()],
    )
}

/// A server counts as up or down after two looks, a second apart: what a careful admin sets. A connection that is
/// refused goes to another server, as in kubeadm's guide for highly available clusters.
fn haproxy(nodes: u8, socket: &Path) -> String {
    let mut text = format!(
        "global\n  stats socket {} mode 600 level admin\n\
         defaults\n  mode tcp\n  option redispatch\n  retries 1\n  timeout connect 2s\n  timeout client 1h\n  timeout server 1h\n\
         frontend api\n  bind {}\n  default_backend api-servers\n\
         backend api-servers\n  option httpchk GET /readyz\n  http-check expect status 200\n  \
         default-server check check-ssl verify none inter 1s fall 2 rise 2 on-marked-down shutdown-sessions\n",
        socket.display(),
        endpoint(address::LOAD_BALANCER, address::API_PORT),
    );
    for index in 1..=nodes {
        let server = endpoint(address::node(index), address::API_PORT);
        text.push_str(&format!("  server {} {server}\n", address::name(index)));
    }
    text
}

/// Starts the S3 server.
pub fn start_s3(home: &Home, cache: &Cache) -> Result<()> {
    let keys = S3Keys::of(home)?;
    // A folder at the top is a bucket.
    std::fs::create_dir_all(home.path("s3").join(BUCKET))?;
    let program = build::binary(cache, recipes::only("versitygw")?, "versitygw")?;
    start(
        home,
        "s3",
        &[
            &program.to_string_lossy(),
            "--access",
            &keys.access,
            "--secret",
            &keys.secret,
            "--port",
            &endpoint(address::S3_BEHIND, address::S3_PORT),
            "--quiet",
            "posix",
            &home.path("s3").to_string_lossy(),
        ],
    )
}

/// Starts the proxy in front of the S3 server. It passes everything until a fault says otherwise.
pub fn start_s3_proxy(home: &Home, lab_program: &Path) -> Result<()> {
    let control = home.path("s3-proxy.json");
    write_whole(&control, &serde_json::to_vec(&crate::s3_proxy::Mode::Pass)?)?;
    start(
        home,
        "s3-proxy",
        &[
            &lab_program.to_string_lossy(),
            "s3-proxy",
            "--listen",
            &endpoint(address::S3, address::S3_PORT),
            "--to",
            &endpoint(address::S3_BEHIND, address::S3_PORT),
            "--control",
            &control.to_string_lossy(),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_is_behind_the_load_balancer() {
        let text = haproxy(3, Path::new("/x/haproxy.sock"));
        assert!(text.contains("bind 10.77.0.100:6443"));
        for server in [
            "server cp1 10.77.0.11:6443",
            "server cp2 10.77.0.12:6443",
            "server cp3 10.77.0.13:6443",
        ] {
            assert!(text.contains(server), "{text}");
        }
    }
}
