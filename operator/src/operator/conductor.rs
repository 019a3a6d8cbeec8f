//! The loop: look, plan, do one thing, tell.
//!
//! One at a time, since there is one `ClusterVersion`. A pass is begun by a watch, or while a rollout is
//! under way every second. An idle pass asks the API nothing. Nothing is kept from one pass to the next
//! but counts of gates and ages of reports; a pass that fails is simply made again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::ResourceExt as _;
use lockkeeper_crds as crds;
use lockkeeper_policies::{Action, Cluster, KubernetesVersion, Phase, Report, Rollout, Seen, Wanted, plan};
use tokio::time::Instant;

use super::act::{ActError, Hands, changes};
use super::cache::Cache;
use super::freshness::Freshness;
use super::gates::GateProbe;
use super::gating::{self, Gating};
use super::leader::{Leadership, NotLeading};
use super::wanted::{self, UnderstandError, kube_time};
use super::{backups, restores, sight, status, tell};
use crate::api::Address;
use crate::backoff;

/// While a rollout is under way.
const ACTIVE: Duration = Duration::from_secs(1);
/// Otherwise; only so that a report that has become old is noticed without an event.
const IDLE: Duration = Duration::from_secs(30);
/// Between two looks at every server's readiness while nothing is under way: three requests a minute.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure: doubled up to the second figure while a rollout is under way, to the third otherwise.
const RETRY: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(2),
    Duration::from_secs(60),
];

/// Why a pass ended early. It is made again after a while.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    /// Something could not be done.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The object cannot be understood.
    #[error(transparent)]
    Understand(#[from] UnderstandError),
    /// Another leads.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

impl PassError {
    /// True when what was decided on had changed by the time it was written.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            Self::Act(ActError::Changed(_)) => true,
            Self::Act(ActError::Api(error)) => error.is_conflict(),
            _ => false,
        }
    }
}

/// When to look again.
enum After {
    Now,
    Soon,
    OnChange,
}

pub(super) struct Conductor {
    pub(super) hands: Hands,
    pub(super) cache: Arc<Cache>,
    pub(super) probe: Arc<GateProbe>,
    pub(super) leadership: Leadership,
    pub(super) teller: tell::Teller,
    fresh: Freshness,
    gating: Gating,
    measured_for: Option<String>,
    looked_at: Option<Instant>,
    active: bool,
}

/// What one pass looked at.
struct Look {
    object: crds::ClusterVersion,
    wanted: Wanted,
    memory: Option<Rollout>,
    reports: BTreeMap<String, crds::ControlPlaneNode>,
    kube: Vec<Arc<KubeNode>>,
    cluster: Cluster,
    backup: Option<crds::EtcdBackup>,
    outage_seconds: Option<i64>,
}

impl Conductor {
    pub(super) fn new(
        hands: Hands,
        cache: Arc<Cache>,
        probe: Arc<GateProbe>,
        leadership: Leadership,
        teller: tell::Teller,
    ) -> Self {
        Self {
            hands,
            cache,
            probe,
            leadership,
            teller,
            fresh: Freshness::default(),
            gating: Gating::default(),
            measured_for: None,
            looked_at: None,
            active: false,
        }
    }

    /// Works until leadership ends.
    pub(super) async fn run(mut self) {
        let mut failures = 0u32;
        loop {
            let started = Instant::now();
            let passed = self.pass().await;
            self.teller.pass(
                passed.as_ref().map(|after| matches!(after, After::Now)),
                started.elapsed(),
            );
            let wait = match passed {
                Ok(after) => {
                    failures = 0;
                    match after {
                        After::Now => Duration::from_millis(20),
                        After::Soon => ACTIVE,
                        After::OnChange => IDLE,
                    }
                }
                Err(error) => {
                    let [first, active, idle] = RETRY;
                    let limit = if self.active { active } else { idle };
                    let wait = backoff::wait(failures, first, limit);
                    failures += 1;
                    // Somebody else wrote first: looking again is the usual course. What lasts is not said
                    // at every try.
                    if error.is_conflict() || !failures.is_power_of_two() {
                        tracing::debug!(%error, "looking again");
                    } else {
                        tracing::warn!(%error, failures, again_in = ?wait, "a pass was not finished");
                    }
                    wait
                }
            };
            let changed = Arc::clone(&self.cache.changed);
            // After a failure only time helps: the watch of what could not be written rings at once.
            let rung = async {
                if failures == 0 {
                    changed.notified().await
                } else {
                    std::future::pending().await
                }
            };
            tokio::select! {
                () = self.leadership.token.cancelled() => return,
                () = rung => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn pass(&mut self) -> Result<After, PassError> {
        let reports = self.cache.reports();
        self.fresh.observe(reports.iter(), Instant::now());
        self.look_around(gating::addresses(&reports)).await;
        self.teller
            .nodes(&reports, |name| self.fresh.age(name, Instant::now()));
        let (backups, stores) = (self.cache.backups.state(), self.cache.stores.state());
        self.teller.backups(
            backups.iter().map(AsRef::as_ref),
            stores.iter().map(AsRef::as_ref),
        );
        let read = self.object().await;
        if read.is_err() && self.active {
            // Nothing can be done without the object, but how long no server answers is to be known.
            self.measure(&reports).await;
        }
        let Some(object) = read? else {
            self.active = false;
            self.attend(&reports, false, None).await?;
            self.assign_backups(&reports).await?;
            return Ok(After::OnChange);
        };
        let mut look = self.look(object, reports).await?;
        let (action, report) = plan(&look.wanted, look.memory.as_ref(), &look.cluster, Utc::now());
        tracing::debug!(?action, state = %report.state, summary = %report.summary, "planned");
        let request = look.memory.as_ref().and_then(|m| request(m, &look.object));
        self.attend(&look.reports, self.active, request.as_ref()).await?;
        self.leadership.check()?;
        let memory = self.act(&action, &mut look).await?;
        self.tell(&look, &action, &report, memory.as_ref()).await?;
        self.assign_backups(&look.reports).await?;
        Ok(match action {
            Action::Nothing if self.active => After::Soon,
            Action::Nothing => After::OnChange,
            _ => After::Now,
        })
    }

    /// Learns where the servers are, and while no round of gates does so, leaves those that are not ready.
    async fn look_around(&mut self, addresses: Vec<Address>) {
        let due = self.looked_at.is_none_or(|at| at.elapsed() >= LOOK);
        if !self.active && due {
            self.probe.look(&addresses).await;
            self.looked_at = Some(Instant::now());
        }
        self.hands.api.endpoints().learn(addresses);
    }

    /// The object: from the watch while idle; read anew while a rollout is under way, so that a plan is
    /// not made on a memory that this process has itself changed since.
    async fn object(&self) -> Result<Option<crds::ClusterVersion>, PassError> {
        let Some(object) = self.cache.version() else {
            return Ok(None);
        };
        let under_way = |o: &crds::ClusterVersion| {
            o.status
                .as_ref()
                .and_then(|s| s.rollout.as_ref())
                .is_some_and(|r| r.ended_at.is_none())
        };
        if !self.active && !under_way(&object) {
            return Ok(Some(object));
        }
        let api = kube::Api::<crds::ClusterVersion>::all(self.hands.api.client());
        let read = self
            .hands
            .api
            .within("read ClusterVersion cluster", api.get_opt("cluster"))
            .await;
        Ok(read.map_err(ActError::from)?)
    }

    async fn look(
        &mut self,
        object: crds::ClusterVersion,
        reports: BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<Look, PassError> {
        let store = object.spec.backup.store_ref.as_ref();
        let wanted = wanted::wanted(&object, store.is_some_and(|s| self.cache.has_store(&s.name)))?;
        let memory = wanted::memory(&object)?;
        self.active = memory.as_ref().is_some_and(|m| !m.phase.is_end());
        let outage_seconds = self.ask_gates(memory.as_ref(), &object, &reports).await;
        let kube = self.cache.kube.state();
        let now = Instant::now();
        let rollout = memory.as_ref().map(|m| m.id.as_str());
        let nodes = sight::nodes(&kube, &reports, rollout, |r| self.fresh.stale(&r.name_any(), now));
        let backup = memory
            .as_ref()
            .filter(|m| m.phase != Phase::Preflight || m.backup_failed_at.is_some())
            .and_then(|m| self.cache.backup(&m.backup_name()));
        let late = backup.as_ref().is_some_and(is_late);
        let mut cluster = Cluster {
            nodes,
            kubelets: sight::kubelets(&kube),
            gates: self.gating.whole(),
            node_gates: self.gating.each(),
            backup: sight::backup(backup.as_ref(), object.spec.backup.proof, late),
            acceptable: None,
            kubeadm_config: Seen::Absent,
            warnings: vec![],
            restoring: restores::in_the_way(&self.cache.restores.state()),
        };
        cluster.acceptable = backups::acceptable(
            &object,
            self.cache.backups.state().iter().map(AsRef::as_ref),
            &cluster,
            Utc::now(),
        );
        if let Some(goal) = memory.as_ref().filter(|_| self.active).map(goal)
            && cluster.nodes.values().all(|n| n.runs(goal))
        {
            cluster.kubeadm_config = match self.hands.kubeadm_version().await? {
                None => Seen::Absent,
                Some(Ok(version)) => Seen::Known(version),
                Some(Err(why)) => Seen::Unknown(why),
            };
        }
        Ok(Look {
            object,
            wanted,
            memory,
            reports,
            kube,
            cluster,
            backup,
            outage_seconds,
        })
    }

    /// A round of gates when one is due, and the longest outage seen in this rollout.
    async fn ask_gates(
        &mut self,
        memory: Option<&Rollout>,
        object: &crds::ClusterVersion,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Option<i64> {
        let rollout = memory.filter(|m| matches!(m.phase, Phase::Snapshot | Phase::Forward | Phase::Back))?;
        if self.measured_for.as_ref() != Some(&rollout.id) {
            self.probe.measure(&rollout.id);
            let before = object
                .status
                .as_ref()
                .and_then(|s| s.rollout.as_ref())
                .map(|r| r.ready_nodes);
            self.probe
                .want_ready_nodes(before.and_then(|n| usize::try_from(n).ok()).map(tolerable));
            self.measured_for = Some(rollout.id.clone());
            self.gating = Gating::default();
        }
        if !self.gating.due(Instant::now()) {
            return None;
        }
        let round = self
            .gating
            .round(&self.probe, reports, rollout.in_hand.as_ref())
            .await;
        self.teller.gates(&round);
        if !gating::passed(&round) {
            tracing::debug!(problems = ?round.problems(), "gates");
        }
        i64::try_from(round.longest_outage.as_secs()).ok()
    }

    /// A round of gates of which only the outage counts: while no API server answers, no pass gets as far
    /// as a round of its own.
    async fn measure(&mut self, reports: &BTreeMap<String, crds::ControlPlaneNode>) {
        if self.measured_for.is_some() && self.gating.due(Instant::now()) {
            let round = self.gating.round(&self.probe, reports, None).await;
            self.teller.gates(&round);
        }
    }

    /// Sees to it that every agent knows whether to be attentive, and what to check.
    async fn attend(
        &self,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
        attentive: bool,
        request: Option<&crds::PreflightRequest>,
    ) -> Result<(), PassError> {
        for (name, report) in reports {
            // The last request stays when none is asked for: taking it away would tell the agent nothing.
            let wants = request.or(report.spec.preflight.as_ref());
            let attentive = attentive || report.spec.restore.is_some();
            if report.spec.attentive != attentive || report.spec.preflight.as_ref() != wants {
                self.leadership.check()?;
                self.hands.ask(name, attentive, wants).await?;
            }
        }
        Ok(())
    }

    /// Does the one thing; returns the memory that follows from it.
    async fn act(&mut self, action: &Action, look: &mut Look) -> Result<Option<Rollout>, PassError> {
        let now = Utc::now();
        let memory = look.memory.clone();
        match action {
            Action::Nothing => {}
            Action::Begin {
                source,
                target,
                order,
            } => {
                look.object = self.hands.hold(&look.object, true).await?;
                return Ok(Some(wanted::begun(
                    *source,
                    *target,
                    order,
                    look.wanted.retry,
                    now,
                )));
            }
            Action::Forget => return Ok(None),
            Action::LetGo => look.object = self.hands.hold(&look.object, false).await?,
            Action::TakeSnapshot { name } => {
                if let Some(store) = &look.object.spec.backup.store_ref {
                    self.hands
                        .take_snapshot(name, store, look.object.spec.backup.proof)
                        .await?;
                }
            }
            Action::Issue { number, step } => {
                let report = look.reports.get(step.node.as_ref());
                let changes = changes(&step.node, report, &step.components, step.version)?;
                let ticket = ticket(*number, changes, look);
                self.hands.issue(&step.node, ticket).await?;
            }
            Action::Void(t) => self.hands.void(&t.node, t.number).await?,
            Action::Confirm(t) => {
                self.hands
                    .say(&t.node, t.number, crds::Verdict::Confirmed, None)
                    .await?
            }
            Action::Withdraw { ticket: t, reason } => {
                self.hands
                    .say(&t.node, t.number, crds::Verdict::Withdrawn, Some(reason.clone()))
                    .await?;
            }
            Action::WriteKubeadmConfig(version) => self.hands.write_kubeadm_version(*version).await?,
            memory_only => return Ok(memory.map(|m| m.after(memory_only, now))),
        }
        Ok(memory)
    }

    /// Writes the status if it says anything new. For an action on the memory this is the action.
    async fn tell(
        &mut self,
        look: &Look,
        action: &Action,
        report: &Report,
        memory: Option<&Rollout>,
    ) -> Result<(), PassError> {
        if *action == Action::LetGo {
            return Ok(());
        }
        let Some(now) = kube_time(Utc::now()) else {
            return Ok(());
        };
        let facts = status::Facts {
            object: &look.object,
            report,
            rollout: memory,
            cluster: &look.cluster,
            nodes: &look.reports,
            backup: look.backup.as_ref(),
            ready_nodes: u32::try_from(sight::ready_nodes(&look.kube)).unwrap_or(0),
            outage_seconds: look.outage_seconds,
            now,
        };
        let next = status::build(&facts);
        let before = look.object.status.clone().unwrap_or_default();
        if before != next {
            self.leadership.check()?;
            self.hands.write_status(&look.object, next.clone()).await?;
        }
        self.teller.status(&look.object, &before, &next);
        let ended = memory.is_some_and(|m| m.phase.is_end());
        let finalizers = look.object.metadata.finalizers.as_deref().unwrap_or_default();
        if ended && before == next && finalizers.iter().any(|f| f == super::act::FINALIZER) {
            self.hands.hold(&look.object, false).await?;
        }
        Ok(())
    }

    /// Gives a waiting backup to a node, one at a time, and ends one whose agent is lost.
    async fn assign_backups(
        &self,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        let all = self.cache.backups.state();
        let now = Instant::now();
        if let Some(lost) = all.iter().find(|b| backups::running(b)) {
            let status = lost.status.clone().unwrap_or_default();
            let node = status.node.clone().unwrap_or_default();
            if let (Some(why), Some(at)) = (self.fresh.stale(&node, now), kube_time(Utc::now())) {
                self.leadership.check()?;
                let ended = backups::abandoned(status, &format!("{node}: {why}"), at);
                self.hands.fail_backup(&lost.name_any(), &ended).await?;
            }
            return Ok(());
        }
        let Some(waiting) = backups::first_waiting(all.iter().map(AsRef::as_ref)) else {
            return Ok(());
        };
        let nodes = sight::nodes(&self.cache.kube.state(), reports, None, |r| {
            self.fresh.stale(&r.name_any(), now)
        });
        let Some(at) = kube_time(Utc::now()) else {
            return Ok(());
        };
        let (name, status) = (waiting.name_any(), waiting.status.clone().unwrap_or_default());
        if let Some(node) = backups::choose(&nodes, reports, &status.tried) {
            self.leadership.check()?;
            if let Some(finalizers) = backups::held(waiting) {
                self.hands.hold_backup(waiting, &finalizers).await?;
            }
            self.hands.assign(&name, node.as_ref(), &at).await?;
        } else if let Some(ended) = backups::exhausted(status, &nodes, at) {
            self.leadership.check()?;
            self.hands.fail_backup(&name, &ended).await?;
        }
        Ok(())
    }
}

/// How many ready nodes are enough where `before` were ready: every one of a small cluster; of a large one
/// nine in ten, since in a large cluster some node or other is always on its way out or in.
const fn tolerable(before: usize) -> usize {
    before - before / 10
}

/// The version that a rollout goes to now.
const fn goal(rollout: &Rollout) -> KubernetesVersion {
    match rollout.phase {
        Phase::Back => rollout.source,
        _ => rollout.target,
    }
}

/// The checks that every agent is asked for, while the rollout is still before its first change.
fn request(memory: &Rollout, object: &crds::ClusterVersion) -> Option<crds::PreflightRequest> {
    (memory.phase == Phase::Preflight && memory.preflight_id > 0).then(|| crds::PreflightRequest {
        id: memory.preflight_id,
        rollout: memory.id.clone(),
        target: memory.target.to_string(),
        store_ref: object.spec.backup.store_ref.clone(),
    })
}

fn ticket(number: i64, changes: Vec<crds::Change>, look: &Look) -> crds::Ticket {
    let strategy = &look.object.spec.strategy;
    let forward = look
        .memory
        .as_ref()
        .and_then(|m| m.in_hand.as_ref())
        .is_none_or(|t| t.forward);
    crds::Ticket {
        number,
        rollout: look.memory.as_ref().map(|m| m.id.clone()).unwrap_or_default(),
        changes,
        ready_seconds: strategy.ready_seconds,
        confirm_seconds: strategy.confirm_seconds,
        drain_seconds: strategy.drain_seconds,
        unconfirmed: if forward {
            crds::Unconfirmed::Undo
        } else {
            crds::Unconfirmed::Keep
        },
        verdict: crds::Verdict::Pending,
        reason: None,
    }
}

/// True for a snapshot that has had its time and a minute more.
fn is_late(backup: &crds::EtcdBackup) -> bool {
    let since = backup
        .metadata
        .creation_timestamp
        .as_ref()
        .and_then(wanted::chrono_time);
    let limit = i64::from(backup.spec.deadline_seconds) + 60;
    since.is_some_and(|since| (Utc::now() - since).num_seconds() > limit)
}
