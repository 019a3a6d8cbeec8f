//! Knot at the edge: the zone of the shop's name on a primary, which takes signed updates, and on a secondary.
//!
//! A share is the part of the addresses that a colour has, so each colour's cluster gets a second one. Clients keep an
//! answer for its TTL and go round the addresses in it, as resolvers do.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use rustix::process::Signal;
use tokio::net::UdpSocket;

use super::network::{self, EDGE, applications};
use super::{Colour, Pair};
use crate::cache::write_whole;
use crate::process::{ProcessId, start_daemon};
use crate::scene::{Look, Scene};
use crate::state::{Home, Resource};

/// The zone.
pub const ZONE: &str = "example.test";
/// The name that clients ask for.
pub const NAME: &str = "shop.example.test.";
/// The TTL of its addresses, in seconds, but while a cutover is under way.
pub const TTL: u8 = 20;
/// Their TTL then.
pub const CUTOVER_TTL: u8 = 2;
/// The name of the key that signs updates.
pub const KEY: &str = "lockkeeper";
/// The longest that a server on the same machine may take to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// One of the two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// It takes updates, and tells the other.
    Primary,
    /// It answers as well.
    Secondary,
}

/// Both.
pub const SERVERS: [Server; 2] = [Server::Primary, Server::Secondary];

impl Server {
    const fn name(self) -> &'static str {
        match self {
            Self::Primary => "dns-primary",
            Self::Secondary => "dns-secondary",
        }
    }

    pub(super) const fn ip(self) -> Ipv4Addr {
        match self {
            Self::Primary => Ipv4Addr::new(10, 80, 0, 2),
            Self::Secondary => Ipv4Addr::new(10, 80, 0, 3),
        }
    }

    /// Where it is asked.
    #[must_use]
    pub fn address(self) -> SocketAddr {
        SocketAddr::from((self.ip(), 53))
    }

    /// The addresses that it publishes, and their TTL: asked without Lockkeeper's help, and with no memory.
    pub async fn published(self) -> Result<(BTreeSet<IpAddr>, u32)> {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(NAME)?, RecordType::A));
        let exchange = async {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect(self.address()).await?;
            socket.send(&question.to_vec()?).await?;
            let mut bytes = vec![0; 4096];
            let length = socket.recv(&mut bytes).await?;
            anyhow::Ok(Message::from_vec(bytes.get(..length).unwrap_or_default())?)
        };
        let answer = tokio::time::timeout(ANSWER, exchange).await;
        let answer = answer.with_context(|| format!("{} does not answer", self.name()))??;
        ensure!(
            answer.metadata.id == question.metadata.id,
            "{} answers something else",
            self.name()
        );
        let Some(first) = answer.answers.first() else {
            bail!(
                "{} has no addresses: {}",
                self.name(),
                answer.metadata.response_code
            );
        };
        let addresses = answer.answers.iter().filter_map(|record| record.data.ip_addr());
        Ok((addresses.collect(), first.ttl))
    }

    /// Green's part of the addresses that it publishes, in percent.
    pub async fn green_share(self) -> Result<u8> {
        let (addresses, _) = self.published().await?;
        let green = applications(Colour::Green);
        let of_green = addresses
            .iter()
            .filter(|address| green.contains(*address))
            .count();
        let rounded = (of_green * 100 + addresses.len() / 2) / addresses.len().max(1);
        Ok(u8::try_from(rounded)?)
    }

    /// The TTL that it tells.
    pub async fn ttl(self) -> Result<u8> {
        Ok(u8::try_from(self.published().await?.1)?)
    }

    fn config(self, home: &Home, key: &str) -> String {
        let folder = home.path(self.name());
        let (folder, ip) = (folder.display(), self.ip());
        let (primary, secondary) = (Self::Primary.ip(), Self::Secondary.ip());
        let zone = match self {
            Self::Primary => format!(
                "remote:\n  - id: second\n    address: {secondary}\n\
                 acl:\n  - id: update\n    key: {KEY}\n    action: update\n    update-owner: name\n    \
                 update-owner-match: equal\n    update-owner-name: [shop]\n  \
                 - id: transfer\n    address: [{primary}, {secondary}]\n    action: transfer\n\
                 zone:\n  - domain: {ZONE}\n    file: {ZONE}.zone\n    zonefile-load: difference\n    \
                 acl: [update, transfer]\n    notify: second\n"
            ),
            Self::Secondary => format!(
                "remote:\n  - id: first\n    address: {primary}\n\
                 acl:\n  - id: notify\n    address: [{primary}, {secondary}]\n    action: notify\n\
                 zone:\n  - domain: {ZONE}\n    master: first\n    acl: notify\n"
            ),
        };
        format!(
            "server:\n  rundir: {folder}\n  listen: {ip}@53\n  tcp-workers: 1\n  udp-workers: 1\n\
             database:\n  storage: {folder}\n\
             template:\n  - id: default\n    storage: {folder}\n\
             key:\n  - id: {KEY}\n    algorithm: hmac-sha256\n    secret: {key}\n{zone}"
        )
    }
}

/// The zone before any cutover: all is blue's.
fn zone() -> String {
    let blue = applications(Colour::Blue).map(|address| format!("shop {TTL} A {address}\n"));
    format!(
        "$ORIGIN {ZONE}.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A {}\n{}",
        Server::Primary.ip(),
        blue.concat()
    )
}

/// Both servers at the edge.
#[derive(Debug)]
pub struct Dns {
    home: Home,
    /// What signs updates, in base64.
    pub key: String,
}

impl Dns {
    /// Starts both, and waits until both answer.
    pub async fn start(pair: &Pair<'_>) -> Result<Self> {
        let dns = Self {
            home: pair.scene.lab.home().clone(),
            key: base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>()),
        };
        network::add_second_addresses(&dns.home, pair.green.home())?;
        for server in SERVERS {
            network::add_edge_address(&dns.home, server.ip())?;
            let folder = dns.home.path(server.name());
            write_whole(
                &folder.join("knot.conf"),
                server.config(&dns.home, &dns.key).as_bytes(),
            )?;
            if server == Server::Primary {
                write_whole(&folder.join(format!("{ZONE}.zone")), zone().as_bytes())?;
            }
            dns.run(server)?;
        }
        dns.wait_until_both_answer(pair.scene).await?;
        Ok(dns)
    }

    /// Starts a server that was killed. It has kept what it was told.
    pub fn run(&self, server: Server) -> Result<()> {
        let program = crate::require::find("knotd").context("knotd is missing: apt-get install knot")?;
        let config = self.home.path(server.name()).join("knot.conf");
        let (program, config) = (program.to_string_lossy(), config.to_string_lossy());
        let enter = crate::network::enter(&self.home.namespace(EDGE));
        let mut words: Vec<&str> = enter.iter().map(String::as_str).collect();
        words.extend([&*program, "-c", &*config]);
        let id = start_daemon(&words, &self.home.log(server.name()))?;
        let what = server.name().to_owned();
        self.home.record(Resource::Process { what, id })
    }

    /// Signals a server.
    ///
    /// # Errors
    /// It does not run: a fault that hits nothing would make a test pass for no reason.
    pub fn signal(&self, server: Server, signal: Signal) -> Result<ProcessId> {
        let state = self.home.read()?.context("the lab is gone")?;
        let process = state.process(server.name());
        let process = process.with_context(|| format!("{} was never started", server.name()))?;
        ensure!(process.signal(signal), "{} does not run", server.name());
        Ok(process)
    }

    async fn wait_until_both_answer(&self, scene: &Scene) -> Result<()> {
        for server in SERVERS {
            scene
                .wait_for(server.name(), Duration::from_secs(60), || async {
                    server.published().await?;
                    Ok(Look::Done(()))
                })
                .await?;
        }
        Ok(())
    }
}

/// A resolver that asks both servers, and keeps an answer for its TTL.
pub(super) fn resolver() -> Result<TokioResolver> {
    let servers = SERVERS.map(|server| NameServerConfig::udp_and_tcp(server.ip().into()));
    let mut options = ResolverOpts::default();
    options.timeout = ANSWER;
    options.ip_strategy = LookupIpStrategy::Ipv4Only;
    options.use_hosts_file = ResolveHosts::Never;
    let config = ResolverConfig::from_name_servers(servers.to_vec());
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    Ok(builder.with_options(options).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_begins_with_blue_alone() {
        let text = zone();
        assert!(
            text.contains("shop 20 A 10.81.0.11\nshop 20 A 10.81.0.21\n"),
            "{text}"
        );
        assert!(!text.contains("10.82."), "{text}");
    }
}
