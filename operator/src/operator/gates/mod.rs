//! Gates: is the control plane whole, asked of each API server directly.
//!
//! What comes in: the servers and the version that each should run. What goes out: a verdict a gate and
//! server. May touch: API servers; writes one Lease, `lockkeeper-gate`, in the operator's namespace.
//!
//! | file | what |
//! | --- | --- |
//! | `judge` | verdicts from answers; pure |
//! | `ask` | the requests |
//! | here | a round: all servers at once, bounded |

mod ask;
mod judge;

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::{join, join_all, join3};
use k8s_openapi::api::coordination::v1::Lease;
use strum::{EnumIter, IntoStaticStr};
use tokio::time::Instant;

pub use judge::GateCounter;

use crate::api::{Address, ApiServers};
use ask::{Asked, Readiness};
use judge::{Outage, Sights, identity_lease};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EnumIter, IntoStaticStr)]
pub enum Gate {
    /// `/readyz` of each server.
    Readyz,
    /// Each server reports the version that it should run.
    Version,
    /// What is written through a server is read through the next.
    WriteRead,
    /// Each server renews its identity lease.
    ServerLease,
    /// A controller manager leads and renews its lease.
    ControllerManager,
    /// A scheduler leads and renews its lease.
    Scheduler,
    /// No fewer nodes are ready than before.
    Nodes,
}

impl Gate {
    /// Its name in status, events and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    fn pass(self, node: Option<&str>, message: impl Into<String>) -> GateResult {
        self.with(Outcome::Pass, node, message.into())
    }

    fn fail(self, node: Option<&str>, message: impl Into<String>) -> GateResult {
        self.with(Outcome::Fail, node, message.into())
    }

    fn unknown(self, node: Option<&str>, message: impl Into<String>) -> GateResult {
        self.with(Outcome::Unknown, node, message.into())
    }

    fn with(self, outcome: Outcome, node: Option<&str>, message: String) -> GateResult {
        GateResult {
            gate: self,
            node: node.map(str::to_owned),
            outcome,
            message,
        }
    }
}

/// The verdict of a gate. The order is from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Seen, and good.
    Pass,
    /// Not seen. It is not healthy.
    Unknown,
    /// Seen, and bad.
    Fail,
}

/// One gate's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateResult {
    /// Which gate.
    pub gate: Gate,
    /// Of which node; absent for one of the whole cluster.
    pub node: Option<String>,
    /// The verdict.
    pub outcome: Outcome,
    /// What was seen.
    pub message: String,
}

impl std::fmt::Display for GateResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.gate.name())?;
        if let Some(node) = &self.node {
            write!(f, " of {node}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Every gate, asked once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateRound {
    /// A verdict a gate, and for most a node.
    pub results: Vec<GateResult>,
    /// At least one API server is ready.
    pub any_ready: bool,
    /// The longest time since [`GateProbe::measure`] in which none was, as far as rounds saw it.
    pub longest_outage: Duration,
}

impl GateRound {
    /// The worst verdict; a round in which nothing was asked is unknown.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.results
            .iter()
            .map(|result| result.outcome)
            .max()
            .unwrap_or(Outcome::Unknown)
    }

    /// What did not pass, worst first.
    #[must_use]
    pub fn problems(&self) -> Vec<&GateResult> {
        let mut problems: Vec<_> = self
            .results
            .iter()
            .filter(|result| result.outcome != Outcome::Pass)
            .collect();
        problems.sort_by_key(|result| std::cmp::Reverse(result.outcome));
        problems
    }
}

/// An API server and what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The node that it runs on.
    pub node: String,
    /// Where it listens.
    pub address: Address,
    /// The `gitVersion` that it should report, e.g. `v1.36.3`; absent when any will do.
    pub expected_version: Option<String>,
}

/// For the first half of a round: each server's readiness, version, and a write.
const FIRST_LIMIT: Duration = Duration::from_millis(1500);
/// For the second: reads of what was written, leases, nodes. Together 3 s.
const SECOND_LIMIT: Duration = Duration::from_millis(1500);

/// Asks, and remembers from one round to the next what only two rounds can tell.
///
/// Keep one for the life of the leader: its first round after a long pause leaves the leases of the
/// controller manager and the scheduler unknown until they are seen to be renewed (2 s).
pub struct GateProbe {
    api: ApiServers,
    namespace: String,
    word: u64,
    count: AtomicU64,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    sights: Sights,
    outage: Outage,
    measured: Option<String>,
    nodes_wanted: Option<usize>,
}

impl GateProbe {
    /// `namespace`: the operator's, for the Lease that is written.
    #[must_use]
    pub fn new(api: ApiServers, namespace: &str) -> Self {
        Self {
            api,
            namespace: namespace.to_owned(),
            word: std::hash::RandomState::new().build_hasher().finish(),
            count: AtomicU64::new(0),
            memory: Mutex::default(),
        }
    }

    /// How many nodes must be ready; `None` leaves the gate [`Gate::Nodes`] out.
    pub fn want_ready_nodes(&self, wanted: Option<usize>) {
        self.memory().nodes_wanted = wanted;
    }

    /// Whose outages are measured. Another rollout begins anew; the same one goes on where it was, also after
    /// the lease was lost and won again, which an outage brings about.
    pub fn measure(&self, rollout: &str) {
        let mut memory = self.memory();
        if memory.measured.as_deref() != Some(rollout) {
            memory.measured = Some(rollout.to_owned());
            memory.outage = Outage::default();
        }
    }

    /// How many nodes are ready now, through any server: the baseline for [`Self::want_ready_nodes`].
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn ready_nodes(&self) -> Result<usize, crate::api::ApiError> {
        self.api
            .within("list nodes", ask::ready_nodes(&self.api.client()))
            .await
    }

    /// Asks every gate once, all servers at the same time.
    ///
    /// # Guarantees
    /// Ends within 3 s whatever the servers do, and has a result for every gate and server.
    pub async fn round(&self, servers: &[Server]) -> GateRound {
        let began = Instant::now();
        let asked = self.ask_each(servers).await;
        let any_ready = asked
            .iter()
            .any(|asked| matches!(asked.readiness, Readiness::Ready));
        self.leave_unready(
            servers
                .iter()
                .zip(&asked)
                .map(|(s, a)| (&s.address, &a.readiness)),
        );
        let ready_by = Instant::now();
        let (reads, leases, nodes) = join3(
            self.read_each(servers, &asked),
            self.leases(servers, &asked),
            self.nodes(servers, &asked),
        )
        .await;

        let mut results: Vec<GateResult> = servers
            .iter()
            .zip(&asked)
            .flat_map(|(server, asked)| [asked.readyz(server), asked.version(server)])
            .chain(reads)
            .collect();
        let mut memory = self.memory();
        results.extend(lease_results(servers, &asked, leases, &mut memory.sights));
        results.extend(nodes);
        memory.outage.record(began, ready_by, any_ready);
        let longest_outage = memory.outage.longest();
        GateRound {
            results,
            any_ready,
            longest_outage,
        }
    }

    /// Asks each server only whether it is ready, and leaves those that are not. For times in which no round
    /// is made: a server that has lost its etcd keeps a watch open and says nothing on it.
    pub async fn look(&self, addresses: &[Address]) {
        let asked = join_all(addresses.iter().map(|address| async move {
            match self.api.client_for(address) {
                Ok(client) => ask::readyz(&client, FIRST_LIMIT).await.0,
                Err(error) => Readiness::Mute(error.to_string()),
            }
        }))
        .await;
        self.leave_unready(addresses.iter().zip(&asked));
    }

    /// Closes the connections to servers that are not ready, as long as another one is.
    fn leave_unready<'a>(&self, seen: impl Iterator<Item = (&'a Address, &'a Readiness)> + Clone) {
        if !seen
            .clone()
            .any(|(_, readiness)| matches!(readiness, Readiness::Ready))
        {
            return;
        }
        for (address, readiness) in seen {
            if let Readiness::Unready(why) | Readiness::Mute(why) = readiness {
                self.api
                    .endpoints()
                    .give_up(address, Instant::now(), format!("not ready: {why}"));
            }
        }
    }

    async fn ask_each(&self, servers: &[Server]) -> Vec<Asked> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        join_all(servers.iter().enumerate().map(|(index, server)| async move {
            let nonce = format!("{:016x}-{count}-{index}", self.word);
            match self.api.client_for(&server.address) {
                Ok(client) => Asked::of(client, &self.namespace, index, nonce, FIRST_LIMIT).await,
                Err(error) => Asked::impossible(&error),
            }
        }))
        .await
    }

    /// Reads what was written through each server through the one after it.
    async fn read_each(&self, servers: &[Server], asked: &[Asked]) -> Vec<GateResult> {
        let readers = servers.iter().zip(asked).cycle().skip(1);
        join_all(servers.iter().zip(asked).zip(readers).enumerate().map(
            |(index, ((server, writer), (through, reader)))| async move {
                writer
                    .read_back(server, index, &self.namespace, through, reader, SECOND_LIMIT)
                    .await
            },
        ))
        .await
    }

    async fn leases(&self, servers: &[Server], asked: &[Asked]) -> Result<Vec<Lease>, String> {
        let (server, client) = speaker(servers, asked)?;
        ask::limited(SECOND_LIMIT, ask::leases(&client))
            .await
            .map_err(|why| format!("the leases in kube-system cannot be read through {server}: {why}"))
    }

    async fn nodes(&self, servers: &[Server], asked: &[Asked]) -> Option<GateResult> {
        let wanted = self.memory().nodes_wanted?;
        let gate = Gate::Nodes;
        let counted = match speaker(servers, asked) {
            Ok((server, client)) => ask::limited(SECOND_LIMIT, ask::ready_nodes(&client))
                .await
                .map_err(|why| format!("the nodes cannot be listed through {server}: {why}")),
            Err(why) => Err(why),
        };
        Some(match counted {
            Err(why) => gate.unknown(None, why),
            Ok(ready) if ready >= wanted => gate.pass(None, format!("{ready} nodes are ready")),
            Ok(ready) => gate.fail(None, format!("{ready} nodes are ready, {wanted} were before")),
        })
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server to ask what any server may answer: a ready one if there is one.
fn speaker(servers: &[Server], asked: &[Asked]) -> Result<(String, kube::Client), String> {
    servers
        .iter()
        .zip(asked)
        .filter_map(|(server, asked)| {
            let ready = matches!(asked.readiness, Readiness::Ready);
            Some((!ready, server, asked.client.clone()?))
        })
        .min_by_key(|(unready, ..)| *unready)
        .map(|(_, server, client)| (server.node.clone(), client))
        .ok_or_else(|| "there is no API server to ask".to_owned())
}

fn lease_results(
    servers: &[Server],
    asked: &[Asked],
    leases: Result<Vec<Lease>, String>,
    sights: &mut Sights,
) -> Vec<GateResult> {
    let each = servers.iter().zip(asked);
    let leaders = [
        (Gate::ControllerManager, "kube-controller-manager"),
        (Gate::Scheduler, "kube-scheduler"),
    ];
    match leases {
        Err(why) => each
            .map(|(server, _)| Gate::ServerLease.unknown(Some(&server.node), why.clone()))
            .chain(leaders.map(|(gate, _)| gate.unknown(None, why.clone())))
            .collect(),
        Ok(leases) => each
            .map(|(server, asked)| identity_lease(&server.node, &leases, asked.clock))
            .chain(leaders.map(|(gate, name)| {
                let lease = leases
                    .iter()
                    .find(|lease| lease.metadata.name.as_deref() == Some(name));
                sights.leader(gate, lease, Instant::now())
            }))
            .collect(),
    }
}
