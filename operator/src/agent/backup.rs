//! Takes the `EtcdBackup`s that the operator gives to this node, one at a time.
//!
//! | | |
//! | --- | --- |
//! | comes in | `EtcdBackup`s with `status.node` of this node and no end yet, or deleted, by one watch |
//! | goes out | a snapshot and its manifest in the store, or out of it; whether it can be restored; `status` of the `EtcdBackup`; `Available` of the store |
//! | may touch | the local etcd member (read), the store, those two statuses; what `agent/proof` may |
//!
//! Nothing is remembered on the disk: the object says that an attempt began (`startedAt`), the store says
//! whether it became a backup (its manifest). An agent that finds an attempt that it does not know of therefore
//! either adopts what was finished or calls it `Interrupted`; it is never tried again under the same object.

mod discard;
mod pki;
mod prove;
mod report;
mod stock;
mod take;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::OptionFuture;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, ResourceExt as _};
use lockkeeper_crds::{Artifact, EtcdBackup, Include, SCHEDULE_LABEL};
use tokio_util::sync::CancellationToken;

pub use prove::Proving;
pub(crate) use stock::look_after_stores;
pub use take::{Request, TakeError, take};

use crate::agent::etcd::EtcdMember;
use crate::store::{Fared, Store, folder, publish_availability};
use discard::Leaving;
use prove::Unproven;
use report::{Report, Written, within};
use take::artifact;

/// Between two writes of the progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Between two tries to begin while the API is away.
const RETRY: Duration = Duration::from_secs(10);

/// For looking into the store what became of an interrupted attempt.
const LOOK: Duration = Duration::from_secs(30);

/// Why the agent cannot go on taking backups.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The watch never ends by itself.
    #[error("the watch of EtcdBackups in namespace {namespace} ended")]
    WatchEnded {
        /// The namespace.
        namespace: String,
    },
}

/// Watches the `EtcdBackup`s of `namespace` and takes those of `node`, until `shutdown`.
///
/// # Guarantees
/// * One at a time, the oldest first. What is to be taken out of the store waits for none of them, nor they for it.
/// * With `proving`, what is stored is proven as far as `spec.proof` asks, one at a time and never beside a ticket.
/// * On `shutdown` the one in hand is aborted, its parts and object are taken out of the store, and it is
///   marked `Interrupted` if the API answers: within 35 s.
/// * Idle: one watch, renewed by the server every five minutes; no other request.
///
/// # Errors
/// When the watch ends, which it does not by itself.
pub async fn run(
    client: kube::Client,
    namespace: String,
    node: String,
    member: Arc<EtcdMember>,
    proving: Option<Proving>,
    shutdown: CancellationToken,
) -> Result<(), BackupError> {
    let desk = Desk {
        client,
        namespace,
        node,
        member,
    };
    let mut unproven = Unproven::new(proving);
    let mut events = pin!(watcher(desk.backups(), watcher::Config::default()).default_backoff());
    let mut waiting = Waiting::default();
    // By name and UID, with the means to stop it.
    let mut job: Option<(Key, CancellationToken)> = None;
    let mut work = pin!(OptionFuture::from(None));
    let mut leaving = Leaving::default();
    let mut clearing: Option<Key> = None;
    let mut clear = pin!(OptionFuture::from(None));
    let mut proof: Option<(Key, CancellationToken)> = None;
    let mut prove = pin!(OptionFuture::from(None));
    loop {
        if job.is_none()
            && !shutdown.is_cancelled()
            && let Some(key) = waiting.next()
        {
            let stop = shutdown.child_token();
            work.set(OptionFuture::from(Some(Box::pin(
                desk.handle(key.clone(), stop.clone()),
            ))));
            job = Some((key, stop));
        }
        if clearing.is_none()
            && !shutdown.is_cancelled()
            && let Some(key) = leaving.next(job.as_ref().map(|(key, _)| key))
        {
            clear.set(OptionFuture::from(Some(Box::pin(desk.discard(key.clone())))));
            clearing = Some(key);
        }
        if proof.is_none()
            && !shutdown.is_cancelled()
            && let Some((key, prover)) = unproven.next()
        {
            let stop = shutdown.child_token();
            prove.set(OptionFuture::from(Some(Box::pin(desk.prove(
                key.clone(),
                prover,
                stop.clone(),
            )))));
            proof = Some((key, stop));
        }
        let wakes = [
            leaving.wake().filter(|_| clearing.is_none()),
            unproven.wake().filter(|_| proof.is_none()),
        ];
        let wake = wakes.into_iter().flatten().min();
        let wake = OptionFuture::from(wake.map(tokio::time::sleep_until));
        tokio::select! {
            event = events.next() => match event {
                None => return Err(BackupError::WatchEnded { namespace: desk.namespace.clone() }),
                Some(Err(error)) => tracing::warn!(%error, "EtcdBackups cannot be watched; trying again"),
                Some(Ok(event)) => {
                    leaving.see(&event, &desk.node);
                    unproven.see(&event, &desk.node);
                    let gone = waiting.see(event, &desk.node);
                    if let Some((key, stop)) = &job && gone.as_ref() == Some(key) {
                        tracing::info!(backup = %key.name, "deleted while it was taken: aborting");
                        stop.cancel();
                    }
                    if let Some((key, stop)) = &proof && gone.as_ref() == Some(key) {
                        stop.cancel();
                    }
                }
            },
            Some(outcome) = &mut work, if job.is_some() => {
                work.set(OptionFuture::from(None));
                if let Some((key, _)) = job.take() {
                    waiting.done(&key, outcome);
                }
            }
            Some(outcome) = &mut clear, if clearing.is_some() => {
                clear.set(OptionFuture::from(None));
                if let Some(key) = clearing.take() {
                    leaving.done(&key, outcome);
                }
            }
            Some(ended) = &mut prove, if proof.is_some() => {
                prove.set(OptionFuture::from(None));
                if let Some((key, _)) = proof.take() {
                    unproven.done(&key, ended);
                }
            }
            () = unproven.turned() => {
                if let Some((key, stop)) = proof.as_ref().filter(|_| unproven.busy()) {
                    tracing::info!(backup = %key.name, "its proof makes way for a ticket");
                    stop.cancel();
                }
            }
            // Its time has come; looked at above.
            Some(()) = wake => {}
            () = tokio::time::sleep(RETRY), if job.is_none() && waiting.postponed() => waiting.recall(),
            () = shutdown.cancelled(), if job.is_none() && proof.is_none() => return Ok(()),
        }
    }
}

/// Which backup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Seconds; first, so that the oldest comes first.
    created: i64,
    name: String,
    uid: String,
}

impl Key {
    fn of(backup: &EtcdBackup) -> Self {
        let metadata = &backup.metadata;
        Self {
            created: metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |t| t.0.as_second()),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its end is written, or it is nobody's business any more.
    Settled,
    /// The API did not answer: again, later.
    Postponed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Now,
    Later,
}

/// What waits for its turn.
#[derive(Debug, Default)]
struct Waiting(BTreeMap<Key, Turn>);

impl Waiting {
    /// Takes an event in. What is gone, if it was an end.
    fn see(&mut self, event: watcher::Event<EtcdBackup>, node: &str) -> Option<Key> {
        match event {
            watcher::Event::Apply(backup) | watcher::Event::InitApply(backup) => {
                let key = Key::of(&backup);
                if Report::ours(&backup, node) {
                    self.0.entry(key).or_insert(Turn::Now);
                    return None;
                }
                self.0.remove(&key);
                backup.metadata.deletion_timestamp.is_some().then_some(key)
            }
            watcher::Event::Delete(backup) => {
                let key = Key::of(&backup);
                self.0.remove(&key);
                Some(key)
            }
            watcher::Event::Init => {
                self.0.clear();
                None
            }
            watcher::Event::InitDone => None,
        }
    }

    /// The oldest whose turn it is. It stays until [`Waiting::done`].
    fn next(&self) -> Option<Key> {
        self.0
            .iter()
            .find(|(_, turn)| **turn == Turn::Now)
            .map(|(key, _)| key.clone())
    }

    fn done(&mut self, key: &Key, outcome: Outcome) {
        match outcome {
            Outcome::Settled => {
                self.0.remove(key);
            }
            Outcome::Postponed => {
                if let Some(turn) = self.0.get_mut(key) {
                    *turn = Turn::Later;
                }
            }
        }
    }

    fn postponed(&self) -> bool {
        self.0.values().any(|turn| *turn == Turn::Later)
    }

    fn recall(&mut self) {
        self.0.values_mut().for_each(|turn| *turn = Turn::Now);
    }
}

/// What handling one takes.
struct Desk {
    client: kube::Client,
    namespace: String,
    node: String,
    member: Arc<EtcdMember>,
}

impl Desk {
    fn backups(&self) -> Api<EtcdBackup> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn handle(&self, key: Key, stop: CancellationToken) -> Outcome {
        let backups = self.backups();
        // As it is now: what the watch said may be older than what this agent itself has written.
        let mut report = match Report::read(&backups, &key.name).await {
            Ok(Some(report)) => report,
            Ok(None) => return Outcome::Settled,
            Err(error) => {
                tracing::warn!(backup = %key.name, %error, "cannot be read; trying again");
                return Outcome::Postponed;
            }
        };
        if !Report::ours(&report.backup, &self.node) || report.backup.metadata.uid.as_ref() != Some(&key.uid)
        {
            return Outcome::Settled;
        }
        if report.backup.stored_as().is_some() {
            return self.adopt(report, &stop).await;
        }
        let (end, store) = if report.status().started_at.is_some() {
            self.interrupted(&report, &key).await
        } else {
            let name = &report.backup.spec.store_ref.name;
            let store = match Store::open(&self.client, &self.namespace, name).await {
                Err(error) if error.is_unanswered() => {
                    tracing::warn!(backup = %key.name, %error, "cannot be begun; trying again");
                    return Outcome::Postponed;
                }
                opened => opened,
            };
            match report.claim().await {
                Ok(Written::Yes) => {}
                Ok(Written::Conflict) => return Outcome::Postponed,
                Ok(Written::Gone) => return Outcome::Settled,
                Err(error) => {
                    tracing::warn!(backup = %key.name, %error, "cannot be begun; trying again");
                    return Outcome::Postponed;
                }
            }
            match store {
                Ok(store) => {
                    let end = self.take_into(&store, &mut report, &key, &stop).await;
                    (end, Some(store))
                }
                Err(error) => (Err(error.into()), None),
            }
        };
        match &end {
            Ok(artifact) => tracing::info!(backup = %key.name, uri = %artifact.uri, "stored"),
            Err(error) => tracing::warn!(backup = %key.name, reason = error.reason(), %error, "failed"),
        }
        self.tell_store(&report.backup.spec.store_ref.name, &end, store.as_ref())
            .await;
        match &end {
            // This member's fault: the operator asks another one, if there is one.
            Err(error @ TakeError::Etcd(_)) => {
                report.hand_back(&self.node, error, &stop).await;
            }
            _ => {
                report.finish(&end, &stop).await;
            }
        }
        Outcome::Settled
    }

    /// One that lies in the store already. Nothing is written but its status; while the store is away it waits.
    async fn adopt(&self, report: Report, stop: &CancellationToken) -> Outcome {
        let (name, store) = (report.name(), report.backup.spec.store_ref.name.clone());
        let look = async {
            let store = Store::open(&self.client, &self.namespace, &store).await?;
            let place = store.place(&report.backup);
            let manifest = store.manifest(&place).await?;
            let absent = || TakeError::Absent(store.uri(&place.manifest));
            let manifest = manifest.filter(|m| m.is_of(&place)).ok_or_else(absent)?;
            Ok::<_, TakeError>((artifact(&store, &manifest), manifest))
        };
        let looked = tokio::time::timeout(LOOK, look).await;
        let end = match looked {
            Ok(Err(TakeError::Store(error))) if error.of_the_store() || error.is_unanswered() => {
                tracing::warn!(backup = %name, %error, "cannot be looked up yet");
                return Outcome::Postponed;
            }
            Err(_) => return Outcome::Postponed,
            Ok(end) => end,
        };
        match end {
            Ok((artifact, manifest)) => {
                tracing::info!(backup = %name, uri = %artifact.uri, "adopted");
                report.adopted(&artifact, &manifest, stop).await;
            }
            Err(error) => {
                tracing::warn!(backup = %name, reason = error.reason(), %error, "not adopted");
                report.finish(&Err(error), stop).await;
            }
        }
        Outcome::Settled
    }

    async fn take_into(
        &self,
        store: &Store,
        report: &mut Report,
        key: &Key,
        stop: &CancellationToken,
    ) -> Result<Artifact, TakeError> {
        let spec = report.backup.spec.clone();
        let request = Request {
            name: key.name.clone(),
            uid: key.uid.clone(),
            schedule: report.backup.labels().get(SCHEDULE_LABEL).cloned(),
            node: self.node.clone(),
            kubernetes_version: within(self.client.apiserver_version())
                .await
                .ok()
                .map(|v| v.git_version),
            ended: self.ended().await,
            deadline: Duration::from_secs(spec.deadline_seconds.into()),
            pki: spec.include.contains(&Include::Pki),
        };
        let (began, begun) = tokio::sync::oneshot::channel::<Arc<AtomicU64>>();
        let take = take(&self.member, store, &request, stop, |snapshot| {
            // Nobody listens any more only if the attempt has ended.
            let _ = began.send(snapshot.streamed());
        });
        let progress = async {
            if let Ok(streamed) = begun.await {
                loop {
                    tokio::time::sleep(PROGRESS).await;
                    report.progress(streamed.load(Ordering::Relaxed)).await;
                }
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            end = take => end,
            never = progress => match never {},
        }
    }

    /// The directories of the backups that have ended; none when the API does not say.
    async fn ended(&self) -> BTreeSet<String> {
        let params = ListParams::default();
        let Ok(all) = within(self.backups().list(&params)).await else {
            return BTreeSet::new();
        };
        let ended = all.items.iter().filter(|backup| backup.is_finished());
        ended.map(folder).collect()
    }

    /// An attempt of an agent that is no more. If it came as far as its manifest, it is a backup.
    async fn interrupted(&self, report: &Report, key: &Key) -> (Result<Artifact, TakeError>, Option<Store>) {
        let name = &report.backup.spec.store_ref.name;
        let store = Store::open(&self.client, &self.namespace, name).await.ok();
        let look = async {
            let store = store.as_ref()?;
            let place = store.place(&report.backup);
            let manifest = store.manifest(&place).await.ok()?;
            if manifest.is_none() {
                store.discard(&place).await;
            }
            // Nobody takes it any more: what it had begun to send goes too.
            if let Err(error) = store.sweep_of(&place).await {
                tracing::warn!(backup = %key.name, %error, "parts of it may be left in the store");
            }
            manifest.map(|manifest| artifact(store, &manifest))
        };
        let found = tokio::time::timeout(LOOK, look).await.ok().flatten();
        let why = "the agent that took it ended before it was stored";
        (found.ok_or(TakeError::Interrupted(why)), store)
    }

    /// How the store fared, if it had a part in the end.
    async fn tell_store(&self, store: &str, end: &Result<Artifact, TakeError>, at: Option<&Store>) {
        let outcome = match end {
            Ok(_) => Ok(()),
            Err(TakeError::Store(e)) if e.of_the_store() => Err(e),
            Err(_) => return,
        };
        let fared = Fared::of(&self.node, outcome, at);
        if let Err(error) = publish_availability(&self.client, &self.namespace, store, &fared).await {
            tracing::warn!(%store, %error, "its availability could not be written");
        }
    }
}

#[cfg(test)]
mod tests;
