//! The agent's own object: its spec is watched, its status is told. One watch and, at rest, one request a minute.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures::StreamExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource as _};
use lockkeeper_crds::{ControlPlaneNode, ControlPlaneNodeSpec, ControlPlaneNodeStatus, PreflightReport};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::time::to_api;

/// The field manager of every write.
const MANAGER: &str = "lockkeeper-agent";

/// At rest. Three agents then make three requests a minute.
const AT_REST: Duration = Duration::from_secs(60);

/// While the operator waits for each word.
const ATTENTIVE: Duration = Duration::from_secs(3);

/// Several changes in one breath become one report.
const BREATH: Duration = Duration::from_millis(300);

/// Longer than the client gives a server that answers nothing: only what the client itself gives up makes it
/// go to another server. A call cut off sooner would find the same silent one again.
const DEADLINE: Duration = crate::api::CALL_LIMIT;

/// Pauses after failed requests: the operator's word must not come late because we slept.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What the API last told of the agent's own object.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    /// False until the API has answered once.
    pub(crate) synced: bool,
    pub(crate) uid: Option<String>,
    pub(crate) generation: Option<i64>,
    pub(crate) spec: ControlPlaneNodeSpec,
    /// The highest ever seen; not a reason to wake anyone.
    heartbeat: i64,
    /// As reported, perhaps by this agent before it was restarted.
    pub(crate) preflight: Option<PreflightReport>,
}

impl Known {
    /// Takes in the object as the API tells it. True when something changed that the agent acts on.
    fn learn(&mut self, object: &ControlPlaneNode) -> bool {
        let uid = object.metadata.uid.clone();
        let older = self.uid == uid && object.metadata.generation < self.generation;
        if let Some(status) = &object.status {
            self.heartbeat = self.heartbeat.max(status.heartbeat);
            self.preflight.clone_from(&status.preflight);
        }
        if older {
            // The answer to a report overtook the watch.
            return false;
        }
        let changed = !self.synced || self.uid != uid || self.spec != object.spec;
        self.synced = true;
        self.uid = uid;
        self.generation = object.metadata.generation;
        self.spec = object.spec.clone();
        changed
    }

    /// Takes in the object as a new list tells it, which is the truth whatever was known: a restore of etcd takes
    /// generations back too.
    fn learn_anew(&mut self, object: &ControlPlaneNode) -> bool {
        self.generation = None;
        self.learn(object)
    }

    /// The object is not there.
    fn miss(&mut self) -> bool {
        let changed = !self.synced || self.uid.is_some();
        *self = Self {
            synced: true,
            heartbeat: self.heartbeat,
            ..Self::default()
        };
        changed
    }
}

fn learn(known: &watch::Sender<Known>, object: &ControlPlaneNode) {
    known.send_if_modified(|k| k.learn(object));
}

/// Watches the agent's own object until `shutdown`. While the API is away the last word stands.
pub(crate) async fn follow(
    client: Client,
    node: String,
    known: Arc<watch::Sender<Known>>,
    shutdown: CancellationToken,
) {
    let api: Api<ControlPlaneNode> = Api::all(client);
    let mut pause = FIRST_PAUSE;
    let config = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let mut events = watcher(api, config).boxed();
    let mut listed = false;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Some(Ok(event)) => {
                pause = FIRST_PAUSE;
                match event {
                    Event::Init => listed = false,
                    Event::InitApply(object) => {
                        listed = true;
                        known.send_if_modified(|k| k.learn_anew(&object));
                    }
                    Event::Apply(object) => learn(&known, &object),
                    Event::InitDone if listed => {}
                    Event::InitDone | Event::Delete(_) => {
                        known.send_if_modified(Known::miss);
                    }
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "own object not watched, trying again");
                tokio::select! {
                    () = sleep(pause) => {}
                    () = shutdown.cancelled() => return,
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            // A watcher does not end by itself.
            None => return,
        }
    }
}

/// Tells the status until `shutdown`: at once when it changed in something that matters, else as a heartbeat.
pub(crate) async fn tell(
    client: Client,
    node: String,
    mut status: watch::Receiver<Option<ControlPlaneNodeStatus>>,
    known: Arc<watch::Sender<Known>>,
    shutdown: CancellationToken,
) {
    let api: Api<ControlPlaneNode> = Api::all(client);
    let mut heard = known.subscribe();
    let mut told: Option<ControlPlaneNodeStatus> = None;
    let mut told_at = Instant::now();
    let mut heartbeat = 0;
    let mut pause = FIRST_PAUSE;
    loop {
        let (synced, attentive, seen) = {
            let known = heard.borrow_and_update();
            (known.synced, known.spec.attentive, known.heartbeat)
        };
        let current = status.borrow_and_update().clone();
        let rest = if attentive { ATTENTIVE } else { AT_REST };
        let due = match (&current, &told) {
            (None, _) => None,
            (Some(_), None) => Some(Instant::now()),
            (Some(new), Some(old)) if essence(new) != essence(old) => Some(told_at + BREATH),
            _ => Some(told_at + rest),
        };
        if let (true, Some(mut report)) = (synced && due.is_some_and(|at| at <= Instant::now()), current) {
            heartbeat = seen.max(heartbeat) + 1;
            report.heartbeat = heartbeat;
            report.observed_at = Some(to_api(Utc::now()));
            match send(&api, &node, &report).await {
                Ok(object) => {
                    learn(&known, &object);
                    told = Some(report);
                    told_at = Instant::now();
                    pause = FIRST_PAUSE;
                }
                Err(error) => {
                    tracing::warn!(%error, "status not reported, trying again");
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = shutdown.cancelled() => return,
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            continue;
        }
        let wake = due.filter(|_| synced);
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            _ = heard.changed() => {}
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// What is worth a report of its own: not what changes with every breath of etcd.
fn essence(status: &ControlPlaneNodeStatus) -> ControlPlaneNodeStatus {
    let mut essence = status.clone();
    essence.heartbeat = 0;
    essence.observed_at = None;
    if let Some(etcd) = &mut essence.etcd {
        etcd.raft_index = None;
        etcd.raft_applied_index = None;
        etcd.db_size_bytes = None;
    }
    essence
}

/// Why a report did not arrive.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error("no API server answered within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the status cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// One request; two more when the object is not there.
async fn send(
    api: &Api<ControlPlaneNode>,
    node: &str,
    status: &ControlPlaneNodeStatus,
) -> Result<ControlPlaneNode, ReportError> {
    let mut body = serde_json::json!({
        "apiVersion": ControlPlaneNode::api_version(&()),
        "kind": ControlPlaneNode::kind(&()),
        "metadata": {"name": node},
        "status": serde_json::to_value(status)?,
    });
    without_nulls(&mut body);
    // Forced: nobody else writes this status, and what we no longer name must go.
    let apply = PatchParams::apply(MANAGER).force();
    match bounded(api.patch_status(node, &apply, &Patch::Apply(&body))).await {
        Err(ReportError::Api(kube::Error::Api(why))) if why.is_not_found() => {
            let empty = ControlPlaneNode::new(node, ControlPlaneNodeSpec::default());
            match bounded(api.create(&PostParams::default(), &empty)).await {
                Ok(_) => tracing::info!(node, "own object created"),
                Err(ReportError::Api(kube::Error::Api(why))) if why.is_already_exists() => {}
                Err(error) => return Err(error),
            }
            bounded(api.patch_status(node, &apply, &Patch::Apply(&body))).await
        }
        answer => answer,
    }
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ReportError> {
    match timeout(DEADLINE, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ReportError::Deadline),
    }
}

/// An applied configuration says nothing about what it does not know, rather than null.
fn without_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, v| !v.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lockkeeper_crds::EtcdStatus;

    fn object(uid: &str, generation: i64, attentive: bool, heartbeat: i64) -> ControlPlaneNode {
        let spec = ControlPlaneNodeSpec {
            attentive,
            ..ControlPlaneNodeSpec::default()
        };
        let mut object = ControlPlaneNode::new("cp1", spec);
        object.metadata.uid = Some(uid.to_owned());
        object.metadata.generation = Some(generation);
        object.status = Some(ControlPlaneNodeStatus {
            heartbeat,
            ..ControlPlaneNodeStatus::default()
        });
        object
    }

    #[test]
    fn an_overtaken_event_does_not_turn_the_spec_back() {
        let mut known = Known::default();
        assert!(known.learn(&object("a", 1, false, 3)));
        assert!(known.learn(&object("a", 2, true, 4)));
        assert!(!known.learn(&object("a", 1, false, 3)));
        assert!(known.spec.attentive);
        assert_eq!(known.heartbeat, 4);
    }

    #[test]
    fn a_new_list_counts_whatever_was_known() {
        let mut known = Known::default();
        known.learn(&object("a", 9, true, 4));
        assert!(known.learn_anew(&object("a", 3, false, 2)));
        assert!(known.learn(&object("a", 4, true, 2)), "deaf until generation 9");
    }

    #[test]
    fn a_heartbeat_wakes_nobody_and_a_new_object_does() {
        let mut known = Known::default();
        assert!(known.learn(&object("a", 1, false, 3)));
        assert!(!known.learn(&object("a", 1, false, 9)));
        assert!(known.miss());
        assert!(!known.miss());
        assert!(known.learn(&object("b", 1, false, 0)));
        assert_eq!(known.heartbeat, 9);
    }

    #[test]
    fn the_essence_leaves_out_what_always_moves() {
        let mut one = ControlPlaneNodeStatus {
            etcd: Some(EtcdStatus::default()),
            ..ControlPlaneNodeStatus::default()
        };
        let mut two = one.clone();
        two.heartbeat = 5;
        two.etcd = Some(EtcdStatus {
            raft_index: Some(7),
            ..EtcdStatus::default()
        });
        assert_eq!(essence(&one), essence(&two));
        one.manifest_problems = vec!["x".to_owned()];
        assert_ne!(essence(&one), essence(&two));
    }

    #[test]
    fn nulls_are_left_out() {
        let mut value = serde_json::json!({"a": null, "b": [{"c": null, "d": 1}]});
        without_nulls(&mut value);
        assert_eq!(value, serde_json::json!({"b": [{"d": 1}]}));
    }
}
