//! Proves backups that are stored, as far as their `spec.proof` asks: one at a time, and never beside a ticket.
//!
//! Only those that name this node: the operator gives one whose node is lost to another.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::runtime::watcher::Event;
use lockkeeper_crds::{EtcdBackup, Findings, Proof, Tristate};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::report::{Report, Written};
use super::{Desk, Key};
use crate::agent::proof::{ProofError, Prover, Subject, Told};
use crate::backoff;
use crate::store::Store;

/// After a failure that is not the backup's own: doubled up to the second figure. Each costs a download.
const RETRY: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(3600)];

/// What proving takes.
#[derive(Clone, Debug)]
pub struct Proving {
    pub(crate) prover: Prover,
    /// True while a ticket is in hand on this node.
    pub(crate) tickets: watch::Receiver<bool>,
}

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is proven, or known to be bad, or nobody's business any more.
    Settled,
    /// It could not be told: again, later.
    Failed,
    /// Somebody said stop: again, soon.
    Interrupted,
}

/// What waits to be proven.
#[derive(Debug)]
pub(super) struct Unproven {
    means: Option<Proving>,
    waits: BTreeMap<Key, Try>,
}

#[derive(Debug)]
struct Try {
    at: Instant,
    failures: u32,
}

/// The level that is wanted of a backup and not reached yet, where it is for this node's agent to prove it.
fn wanted(backup: &EtcdBackup, node: &str) -> Option<Proof> {
    let ours = backup
        .status
        .as_ref()
        .is_some_and(|s| s.node.as_deref() == Some(node));
    backup.unproven().filter(|_| ours)
}

impl Unproven {
    pub(super) fn new(means: Option<Proving>) -> Self {
        Self {
            means,
            waits: BTreeMap::new(),
        }
    }

    /// Takes an event in.
    pub(super) fn see(&mut self, event: &Event<EtcdBackup>, node: &str) {
        match event {
            Event::Apply(backup) | Event::InitApply(backup) if wanted(backup, node).is_some() => {
                let now = Try {
                    at: Instant::now(),
                    failures: 0,
                };
                self.waits.entry(Key::of(backup)).or_insert(now);
            }
            Event::Apply(backup) | Event::InitApply(backup) | Event::Delete(backup) => {
                self.waits.remove(&Key::of(backup));
            }
            Event::Init => self.waits.clear(),
            Event::InitDone => {}
        }
    }

    /// True while a ticket is in hand.
    pub(super) fn busy(&self) -> bool {
        self.means.as_ref().is_none_or(|means| *means.tickets.borrow())
    }

    /// The oldest whose time has come, and the means to prove it. It stays until [`Unproven::done`].
    pub(super) fn next(&self) -> Option<(Key, Prover)> {
        let now = Instant::now();
        let means = self.means.as_ref().filter(|_| !self.busy())?;
        let (key, _) = self.waits.iter().find(|(_, t)| t.at <= now)?;
        Some((key.clone(), means.prover.clone()))
    }

    /// When the next one's time comes; none while it would have to wait all the same.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.waits.values().map(|t| t.at).min().filter(|_| !self.busy())
    }

    /// Waits until a ticket comes in hand, or has ended.
    pub(super) async fn turned(&mut self) {
        if let Some(means) = &mut self.means
            && means.tickets.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }

    pub(super) fn done(&mut self, key: &Key, ended: Ended) {
        let [first, limit] = RETRY;
        match ended {
            Ended::Settled => drop(self.waits.remove(key)),
            Ended::Interrupted => {
                if let Some(waits) = self.waits.get_mut(key) {
                    waits.at = Instant::now() + first;
                }
            }
            Ended::Failed => {
                if let Some(waits) = self.waits.get_mut(key) {
                    waits.at = Instant::now() + backoff::wait(waits.failures, first, limit);
                    waits.failures += 1;
                }
            }
        }
    }
}

/// Writes each level into the object as it is reached.
struct Teller<'a>(&'a mut Report);

impl Told for Teller<'_> {
    async fn reached(&mut self, level: Proof, findings: &Findings, sentence: &str) {
        let name = self.0.backup.metadata.name.clone().unwrap_or_default();
        tracing::info!(backup = %name, %level, "{sentence}");
        let reason = match level {
            Proof::Drilled => "Read",
            Proof::Stored | Proof::Verified => "Restored",
        };
        let written = self
            .0
            .proof(level, Tristate::True, reason, sentence, Some(findings))
            .await;
        if let Err(error) = written {
            tracing::warn!(backup = %name, %error, "its proof could not be written");
        }
    }
}

impl Desk {
    pub(super) async fn prove(&self, key: Key, prover: Prover, stop: CancellationToken) -> Ended {
        loop {
            // As it is now: more may be wanted than when it was begun.
            let mut report = match Report::read(&self.backups(), &key.name).await {
                Ok(Some(report)) => report,
                Ok(None) => return Ended::Settled,
                Err(error) => {
                    tracing::warn!(backup = %key.name, %error, "cannot be read; trying again");
                    return Ended::Failed;
                }
            };
            if report.backup.metadata.uid.as_ref() != Some(&key.uid) {
                return Ended::Settled;
            }
            let Some(level) = wanted(&report.backup, &self.node) else {
                return Ended::Settled;
            };
            match self.try_to_prove(&mut report, &key, level, &prover, &stop).await {
                Ended::Settled => {}
                other => return other,
            }
        }
    }

    async fn try_to_prove(
        &self,
        report: &mut Report,
        key: &Key,
        level: Proof,
        prover: &Prover,
        stop: &CancellationToken,
    ) -> Ended {
        // The levels that this try is about.
        let reached = report.backup.proven().unwrap_or_default();
        let open = || {
            Proof::ALL
                .into_iter()
                .filter(move |l| *l > reached && *l <= level)
        };
        for level in open() {
            // One that failed before keeps its word until there is a better one.
            if report.backup.condition(level.name()).is_none() {
                let running = report.proof(level, Tristate::Unknown, "Running", "being proven", None);
                match running.await {
                    Ok(Written::Yes) => {}
                    Ok(Written::Gone) => return Ended::Settled,
                    Ok(Written::Conflict) | Err(_) => return Ended::Failed,
                }
            }
        }
        tracing::info!(backup = %key.name, %level, "proving");
        let done = self.work(report, level, prover, stop).await;
        let Err(error) = done else {
            return Ended::Settled;
        };
        if error.is_interruption() {
            tracing::info!(backup = %key.name, "its proof was interrupted");
            return Ended::Interrupted;
        }
        let reason = error.reason();
        tracing::warn!(backup = %key.name, %level, reason, %error, "not proven");
        // What is bad now counts for nothing, however well it was before.
        let reached = match error.is_verdict() {
            true => Proof::Stored,
            false => report.backup.proven().unwrap_or_default(),
        };
        for level in Proof::ALL.into_iter().filter(|l| *l > reached && *l <= level) {
            let written = report
                .proof(level, Tristate::False, reason, &error.to_string(), None)
                .await;
            if let Err(error) = written {
                tracing::warn!(backup = %key.name, %error, "that could not be written");
                return Ended::Failed;
            }
        }
        if error.is_verdict() {
            Ended::Settled
        } else {
            Ended::Failed
        }
    }

    async fn work(
        &self,
        report: &mut Report,
        level: Proof,
        prover: &Prover,
        stop: &CancellationToken,
    ) -> Result<(), ProofError> {
        let spec = report.backup.spec.clone();
        let store = Store::open(&self.client, &self.namespace, &spec.store_ref.name).await?;
        let place = store.place(&report.backup);
        let manifest = store
            .manifest(&place)
            .await?
            .ok_or_else(|| ProofError::NoManifest(store.uri(&place.manifest)))?;
        // What the object promises: a backup of another content under its name is not it.
        let promised = report.status().artifact.map(|a| a.sha256);
        if promised.as_ref().is_some_and(|sha256| *sha256 != manifest.sha256) {
            return Err(ProofError::Mismatch {
                what: "the hash",
                told: promised.unwrap_or_default(),
                found: manifest.sha256,
            });
        }
        let subject = Subject {
            store: &store,
            key: &place,
            manifest: &manifest,
            keys: store.identities(),
            reached: report.backup.proven().unwrap_or_default(),
        };
        let limit = Duration::from_secs(spec.deadline_seconds.into());
        prover
            .prove(level, &subject, limit, stop, &mut Teller(report))
            .await
    }
}

#[cfg(test)]
#[path = "prove_tests.rs"]
mod tests;
