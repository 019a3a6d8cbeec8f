//! Events: one for each transition, on the object that it concerns.
//!
//! What comes in: a reason and a sentence. What goes out: an Event object, later. May touch: Events.
//!
//! kube's own recorder folds events that differ only in their note into the first one (rust.md 0.6), so
//! a changing message would never be shown; this one makes a new Event for each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use strum::IntoStaticStr;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{Endpoints, within};

const CONTROLLER: &str = "lockkeeper.dev/operator";
/// The API server refuses a longer note.
const LONGEST_NOTE: usize = 1024;
/// The same event again within this is a reconcile that was repeated, not a second transition.
const REPEATED: Duration = Duration::from_secs(120);
/// Events wait here while the API is away; beyond that they are dropped, and logged.
const QUEUE: usize = 64;
/// An Event that could not be written is tried again a few times, over a server's restart.
const ATTEMPTS: u32 = 5;
const BETWEEN_ATTEMPTS: Duration = Duration::from_secs(5);

/// Why an event was made. The name is the event's `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
pub enum Reason {
    /// Every check before the upgrade passes.
    PreflightPassed,
    /// A check stops the upgrade; nothing was changed.
    PreflightBlocked,
    /// The steps are known.
    PlanComputed,
    /// The snapshot is being taken.
    BackupStarted,
    /// The snapshot lies in the store and its hash was compared.
    BackupVerified,
    /// The snapshot could not be taken.
    BackupFailed,
    /// A backup was chosen to be proven further.
    BackupDrillStarted,
    /// A backup was restored and read, and an API server too where that was asked for.
    BackupProven,
    /// A backup was tried and not proven.
    BackupNotProven,
    /// A slot of a schedule was passed over.
    BackupMissed,
    /// Backups of a schedule were let go.
    BackupsPruned,
    /// A schedule cannot go on without a person.
    ScheduleStalled,
    /// The store does not answer.
    StoreUnavailable,
    /// A node's components are being changed.
    NodeUpgradeStarted,
    /// A node's components run the target, and the gates passed.
    NodeUpgraded,
    /// The gates passed.
    GatePassed,
    /// The gates failed for too long.
    GateFailed,
    /// A step ran out of time.
    StepDeadlineExceeded,
    /// An etcd member is not healthy, so nothing is touched.
    QuorumAtRisk,
    /// An agent does not report.
    AgentLost,
    /// `spec.paused`.
    UpgradePaused,
    /// Not any more.
    UpgradeResumed,
    /// The cluster runs the target.
    UpgradeCompleted,
    /// The nodes are being returned.
    RollbackStarted,
    /// The cluster runs what it ran before.
    RollbackCompleted,
    /// It could not be returned; a person is needed.
    RollbackFailed,
    /// It stopped and a person is needed.
    UpgradeFailed,
    /// The backup is restored beside the data in use; nothing is touched.
    RestorePreparing,
    /// What would be lost is shown; a person's word is wanted.
    RestoreAwaitsConfirmation,
    /// The control plane goes down for a restore.
    RestoreStarted,
    /// The restored data runs, or the trial was made.
    RestoreCompleted,
    /// The restored data stays, and something of a control plane did not come up on it.
    RestoreNotWhole,
    /// Nothing was touched, or the data of before runs again.
    RestoreFailed,
    /// Something stands in the way of a cutover's beginning; nothing was touched.
    CutoverBlocked,
    /// A step of a cutover waits for a person.
    CutoverAwaitsApproval,
    /// `spec.paused` of a cutover.
    CutoverPaused,
    /// Green gets a share of the traffic.
    CutoverStep,
    /// A cutover cannot go on by itself.
    CutoverHeld,
    /// Green has all traffic; there is a way back for a while.
    CutoverSwitched,
    /// All traffic goes back to blue.
    CutoverRollingBack,
    /// Blue has all traffic again.
    CutoverRolledBack,
    /// Green has all traffic, and the way back has ended.
    CutoverFinalized,
}

impl Reason {
    /// The event's `reason`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// The event's `type`.
    #[must_use]
    pub const fn type_(self) -> &'static str {
        match self {
            Self::PreflightPassed
            | Self::PlanComputed
            | Self::BackupStarted
            | Self::BackupVerified
            | Self::BackupDrillStarted
            | Self::BackupProven
            | Self::BackupsPruned
            | Self::NodeUpgradeStarted
            | Self::NodeUpgraded
            | Self::GatePassed
            | Self::UpgradePaused
            | Self::UpgradeResumed
            | Self::UpgradeCompleted
            | Self::RollbackStarted
            | Self::RestorePreparing
            | Self::RestoreStarted
            | Self::RestoreCompleted
            | Self::CutoverPaused
            | Self::CutoverStep
            | Self::CutoverSwitched
            | Self::CutoverFinalized
            | Self::RollbackCompleted => "Normal",
            Self::PreflightBlocked
            | Self::BackupFailed
            | Self::BackupNotProven
            | Self::BackupMissed
            | Self::ScheduleStalled
            | Self::StoreUnavailable
            | Self::GateFailed
            | Self::StepDeadlineExceeded
            | Self::QuorumAtRisk
            | Self::AgentLost
            | Self::RollbackFailed
            | Self::RestoreAwaitsConfirmation
            | Self::RestoreNotWhole
            | Self::RestoreFailed
            | Self::CutoverBlocked
            | Self::CutoverAwaitsApproval
            | Self::CutoverHeld
            | Self::CutoverRollingBack
            | Self::CutoverRolledBack
            | Self::UpgradeFailed => "Warning",
        }
    }

    const fn action(self) -> &'static str {
        match self {
            Self::PreflightPassed | Self::PreflightBlocked | Self::QuorumAtRisk => "Preflight",
            Self::BackupStarted
            | Self::BackupVerified
            | Self::BackupFailed
            | Self::BackupDrillStarted
            | Self::BackupProven
            | Self::BackupNotProven
            | Self::BackupMissed
            | Self::BackupsPruned
            | Self::ScheduleStalled
            | Self::StoreUnavailable => "Backup",
            Self::RollbackStarted | Self::RollbackCompleted | Self::RollbackFailed => "Rollback",
            Self::RestorePreparing
            | Self::RestoreAwaitsConfirmation
            | Self::RestoreStarted
            | Self::RestoreCompleted
            | Self::RestoreNotWhole
            | Self::RestoreFailed => "Restore",
            Self::CutoverBlocked
            | Self::CutoverAwaitsApproval
            | Self::CutoverPaused
            | Self::CutoverStep
            | Self::CutoverHeld
            | Self::CutoverSwitched
            | Self::CutoverRollingBack
            | Self::CutoverRolledBack
            | Self::CutoverFinalized => "Cutover",
            Self::AgentLost => "Observe",
            _ => "Upgrade",
        }
    }
}

/// Takes events and writes them in the background. Cheap to clone.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::Sender<Event>,
    recent: Arc<Mutex<HashMap<Key, Instant>>>,
    instance: String,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    object: String,
    reason: Reason,
    note: String,
}

impl Publisher {
    /// Starts the writer; it ends with `shutdown`. `instance`: the pod's name.
    #[must_use]
    pub fn start(client: Client, endpoints: Endpoints, instance: &str, shutdown: CancellationToken) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        tokio::spawn(shutdown.run_until_cancelled_owned(write_all(client, endpoints, events)));
        Self {
            queue,
            recent: Arc::default(),
            instance: instance.to_owned(),
        }
    }

    /// Publishes an event, soon. Call it once a transition.
    ///
    /// # Guarantees
    /// Returns at once and cannot fail. The same event within two minutes is published once.
    ///
    /// # Caveats
    /// Events that cannot be written for half a minute are dropped, and logged.
    pub fn publish(&self, regarding: &ObjectReference, reason: Reason, note: &str) {
        let note = shortened(note);
        if !self.is_news(regarding, reason, &note) {
            return;
        }
        tracing::info!(
            reason = reason.name(),
            object = regarding.name.as_deref(),
            "{note}"
        );
        let event = event(regarding, reason, note, &self.instance, Timestamp::now());
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(%error, reason = reason.name(), "an event is dropped");
        }
    }

    fn is_news(&self, regarding: &ObjectReference, reason: Reason, note: &str) -> bool {
        let now = Instant::now();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|_, at| now.saturating_duration_since(*at) < REPEATED);
        let key = Key {
            object: format!(
                "{:?}/{:?}/{:?}",
                regarding.kind, regarding.namespace, regarding.name
            ),
            reason,
            note: note.to_owned(),
        };
        recent.insert(key, now).is_none()
    }
}

fn shortened(note: &str) -> String {
    let note = note.trim();
    if note.len() <= LONGEST_NOTE {
        return note.to_owned();
    }
    let end = (0..=LONGEST_NOTE - "…".len())
        .rev()
        .find(|end| note.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", note.get(..end).unwrap_or_default())
}

/// An event on a cluster-scoped object lies in the namespace `default`, where kubectl looks for it.
fn event(regarding: &ObjectReference, reason: Reason, note: String, instance: &str, now: Timestamp) -> Event {
    let name = regarding.name.as_deref().unwrap_or("lockkeeper");
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(
                regarding
                    .namespace
                    .clone()
                    .unwrap_or_else(|| "default".to_owned()),
            ),
            ..ObjectMeta::default()
        },
        action: Some(reason.action().to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(note),
        reason: Some(reason.name().to_owned()),
        regarding: Some(regarding.clone()),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(instance.chars().take(128).collect()),
        type_: Some(reason.type_().to_owned()),
        ..Event::default()
    }
}

async fn write_all(client: Client, endpoints: Endpoints, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        for attempt in 1..=ATTEMPTS {
            let params = PostParams::default();
            let call = api.create(&params, &event);
            match within(Duration::from_secs(5), "publish an event", &endpoints, call).await {
                Ok(_) => break,
                // Its name holds the time in nanoseconds: it is ours, by a write whose answer was lost.
                Err(error) if error.is_conflict() => break,
                Err(error) if error.is_unanswered() && attempt < ATTEMPTS => {
                    tokio::time::sleep(BETWEEN_ATTEMPTS).await;
                }
                Err(error) => {
                    tracing::warn!(%error, reason = event.reason.as_deref(), "an event is dropped");
                    break;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regarding(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("ClusterVersion".to_owned()),
            name: Some(name.to_owned()),
            ..ObjectReference::default()
        }
    }

    fn publisher() -> (Publisher, mpsc::Receiver<Event>) {
        let (queue, events) = mpsc::channel(QUEUE);
        let publisher = Publisher {
            queue,
            recent: Arc::default(),
            instance: "pod-1".to_owned(),
        };
        (publisher, events)
    }

    fn notes(events: &mut mpsc::Receiver<Event>) -> Vec<String> {
        std::iter::from_fn(|| events.try_recv().ok())
            .filter_map(|event| event.note)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_reconcile_publishes_once_and_a_new_note_is_a_new_event() {
        let (publisher, mut events) = publisher();
        for note in ["a", "a", "b", "a"] {
            publisher.publish(&regarding("cluster"), Reason::GateFailed, note);
        }
        publisher.publish(&regarding("other"), Reason::GateFailed, "a");
        publisher.publish(&regarding("cluster"), Reason::GatePassed, "a");
        assert_eq!(notes(&mut events), ["a", "b", "a", "a"]);
        tokio::time::advance(REPEATED * 2).await;
        publisher.publish(&regarding("cluster"), Reason::GateFailed, "a");
        assert_eq!(notes(&mut events), ["a"]);
    }

    #[tokio::test]
    async fn a_full_queue_loses_events_and_not_the_caller() {
        let (publisher, mut events) = publisher();
        for i in 0..QUEUE + 10 {
            publisher.publish(&regarding("cluster"), Reason::AgentLost, &i.to_string());
        }
        assert_eq!(notes(&mut events).len(), QUEUE);
    }

    #[test]
    fn an_event_is_one_that_the_api_accepts() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let event = event(
            &regarding("cluster"),
            Reason::AgentLost,
            shortened(&"é".repeat(2000)),
            "pod-1",
            now,
        );
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        let note = event.note.unwrap();
        assert!(note.len() <= LONGEST_NOTE && note.len() > LONGEST_NOTE - 4 && note.ends_with('…'));
    }
}
