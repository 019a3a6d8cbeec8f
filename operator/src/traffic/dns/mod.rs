//! Addresses of a name, changed by signed updates (RFC 2136, RFC 8945) and read at every authoritative server.
//!
//! | file | what |
//! | --- | --- |
//! | `exchange` | one message, its answer, and their signatures |
//! | `addresses` | which addresses make which share; pure |
//! | here | the record: its TTL lowered, its addresses exchanged, its TTL restored |
//!
//! Each update is one transaction of the server's that holds only if the record is what was read: what somebody else
//! changed meanwhile is not overwritten.

mod addresses;
mod exchange;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use futures::future::try_join_all;
use hickory_proto::op::update_message;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{Name, RData, Record, RecordSet, RecordType, TSigner};
use lockkeeper_crds::{DnsTraffic, Tsig};

use super::{Secrets, Seen, TrafficError, Weights};
use addresses::Addresses;

/// By how much the server's clock and ours may differ, in seconds: what BIND and Knot use by themselves.
const FUDGE: u16 = 300;

/// A name, its servers and its addresses.
#[derive(Clone)]
pub struct Dns {
    name: Name,
    zone: Name,
    primary: String,
    servers: Vec<String>,
    key: TSigner,
    addresses: Addresses,
    ttl: u32,
    cutover_ttl: u32,
}

impl std::fmt::Debug for Dns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dns")
            .field("name", &self.name)
            .field("primary", &self.primary)
            .field("servers", &self.servers)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

/// The record as one server tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Published {
    addresses: Vec<IpAddr>,
    ttl: u32,
    weights: Weights,
}

impl Dns {
    pub(super) fn from_spec(spec: &DnsTraffic, secrets: &Secrets) -> Result<Self, TrafficError> {
        let name = absolute("spec.traffic.dns.name", &spec.name)?;
        let zone = absolute("spec.traffic.dns.zone", &spec.zone)?;
        let wrong = |field: &'static str, problem: &str| TrafficError::Spec {
            field,
            problem: problem.to_owned(),
        };
        if !zone.zone_of(&name) {
            return Err(wrong("spec.traffic.dns.name", "is not in spec.traffic.dns.zone"));
        }
        if spec.servers.is_empty() {
            return Err(wrong("spec.traffic.dns.servers", "names no server"));
        }
        if spec.cutover_ttl_seconds > spec.ttl_seconds {
            return Err(wrong("spec.traffic.dns.cutoverTtlSeconds", "is above ttlSeconds"));
        }
        Ok(Self {
            name,
            zone,
            primary: spec.primary.clone(),
            servers: spec.servers.clone(),
            key: key(&spec.tsig, secrets)?,
            addresses: Addresses::new(&spec.blue, &spec.green)?,
            ttl: spec.ttl_seconds,
            cutover_ttl: spec.cutover_ttl_seconds,
        })
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        BTreeSet::from([format!("the record {} {}", self.name.to_lowercase(), self.kind())])
    }

    fn kind(&self) -> RecordType {
        if self.addresses.v6() {
            RecordType::AAAA
        } else {
            RecordType::A
        }
    }

    pub(super) fn can(&self, weights: Weights) -> Result<(), TrafficError> {
        self.addresses.of(weights).map(drop)
    }

    /// Adds an address that is there already, which changes nothing and needs the same right.
    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        self.seen().await?;
        let published = self.read(&self.primary).await?;
        let mut first = published.clone();
        first.addresses.truncate(1);
        let message = update_message::append(self.records(&first), self.zone.clone(), true, false);
        exchange::update(&self.primary, message, &self.key).await
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let seen = self.read_all().await?;
        let weights = seen.values().next().map(|published| published.weights);
        match weights {
            Some(weights) if seen.values().all(|published| published.weights == weights) => Ok(Seen {
                weights,
                from: format!("{} at {}", self.name, self.servers.join(", ")),
            }),
            _ => Err(differ(&seen)),
        }
    }

    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        let before = self.read(&self.primary).await?;
        if before.ttl > self.cutover_ttl {
            return Err(TrafficError::Unfit {
                target: exchange::target(&self.primary),
                problem: format!(
                    "{} has a TTL of {} s, more than spec.traffic.dns.cutoverTtlSeconds: clients would heed a change \
                     too late; it must be lowered and waited out first",
                    self.name, before.ttl
                ),
            });
        }
        self.change(&before, self.addresses.of(weights)?, self.cutover_ttl)
            .await
    }

    /// Lowers the TTL. Whoever asked just before may keep the old answer for as long as the old TTL was; since that
    /// may have been lowered by one who died at it, never less than the usual one.
    pub(super) async fn prepare(&self) -> Result<Duration, TrafficError> {
        let before = self.read(&self.primary).await?;
        if before.ttl > self.cutover_ttl {
            self.change(&before, before.addresses.clone(), self.cutover_ttl)
                .await?;
        }
        let seen = self.read_all().await?;
        if let Some((server, published)) = seen.iter().find(|(_, seen)| seen.ttl > self.cutover_ttl) {
            return Err(TrafficError::Unfit {
                target: exchange::target(server),
                problem: format!(
                    "it still tells a TTL of {} s: it has not caught up with its primary yet",
                    published.ttl
                ),
            });
        }
        Ok(Duration::from_secs(before.ttl.max(self.ttl).into()))
    }

    pub(super) async fn finish(&self) -> Result<(), TrafficError> {
        let before = self.read(&self.primary).await?;
        self.change(&before, before.addresses.clone(), self.ttl).await
    }

    pub(super) fn settles_in(&self) -> Duration {
        Duration::from_secs(u64::from(self.cutover_ttl) * 2)
    }

    async fn change(&self, before: &Published, addresses: Vec<IpAddr>, ttl: u32) -> Result<(), TrafficError> {
        let after = Published {
            addresses,
            ttl,
            weights: before.weights,
        };
        let set = |published: &Published| published.addresses.iter().copied().collect::<BTreeSet<_>>();
        if before.ttl == after.ttl && set(before) == set(&after) {
            return Ok(());
        }
        let (old, new) = (self.records(before), self.records(&after));
        let message = update_message::compare_and_swap(old, new, self.zone.clone(), false);
        exchange::update(&self.primary, message, &self.key).await
    }

    fn records(&self, published: &Published) -> RecordSet {
        let mut set = RecordSet::with_ttl(self.name.clone(), self.kind(), published.ttl);
        for address in &published.addresses {
            set.add_rdata(RData::from(*address));
        }
        set
    }

    async fn read_all(&self) -> Result<BTreeMap<&str, Published>, TrafficError> {
        let reads = self
            .servers
            .iter()
            .map(async |server| Ok::<_, TrafficError>((server.as_str(), self.read(server).await?)));
        Ok(try_join_all(reads).await?.into_iter().collect())
    }

    async fn read(&self, server: &str) -> Result<Published, TrafficError> {
        let answer = exchange::query(server, &self.name, self.kind()).await?;
        let records: Vec<&Record> = answer
            .answers
            .iter()
            .filter(|record| record.record_type() == self.kind() || record.record_type() == RecordType::CNAME)
            .collect();
        let unfit = |problem: String| TrafficError::Unfit {
            target: exchange::target(server),
            problem,
        };
        let mut addresses = Vec::new();
        for record in &records {
            match record.data.ip_addr() {
                Some(address) if record.name == self.name => addresses.push(address),
                _ => {
                    return Err(unfit(format!(
                        "{} is an alias there: name what it stands for",
                        self.name
                    )));
                }
            }
        }
        let weights = self
            .addresses
            .share(&addresses)
            .map_err(|stranger| TrafficError::Stranger {
                target: format!("{} at {}", self.name, exchange::target(server)),
                what: format!("the address {stranger}"),
            })?;
        match (weights, records.first()) {
            (Some(weights), Some(first)) => Ok(Published {
                addresses,
                ttl: first.ttl,
                weights,
            }),
            _ => Err(unfit(format!(
                "{} has no {} record there: publish blue's addresses first",
                self.name,
                self.kind()
            ))),
        }
    }
}

fn differ(seen: &BTreeMap<&str, Published>) -> TrafficError {
    let texts: Vec<String> = seen
        .iter()
        .map(|(server, published)| format!("{} at {server}", published.weights))
        .collect();
    TrafficError::Differ {
        detail: texts.join("; "),
        greens: seen.values().map(|published| published.weights.green).collect(),
    }
}

fn absolute(field: &'static str, text: &str) -> Result<Name, TrafficError> {
    let mut name = Name::from_ascii(text).map_err(|_| TrafficError::Spec {
        field,
        problem: format!("has {text:?}, which is no name"),
    })?;
    name.set_fqdn(true);
    Ok(name)
}

fn key(tsig: &Tsig, secrets: &Secrets) -> Result<TSigner, TrafficError> {
    const SECRET: &str = "spec.traffic.dns.tsig.secret";
    let text = secrets.text(SECRET, &tsig.secret.name, "key")?;
    let wrong = |problem: &str| TrafficError::Spec {
        field: SECRET,
        problem: format!("names Secret {}, {problem}", tsig.secret.name),
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| wrong("whose key `key` is not base64"))?;
    let algorithm = match tsig.algorithm {
        lockkeeper_crds::TsigAlgorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        lockkeeper_crds::TsigAlgorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        lockkeeper_crds::TsigAlgorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    let name = absolute("spec.traffic.dns.tsig.name", &tsig.name)?;
    TSigner::new(bytes, algorithm, name, FUDGE).map_err(|_| wrong("whose key cannot be used"))
}
