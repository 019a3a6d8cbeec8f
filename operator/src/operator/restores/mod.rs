//! Restores of etcd: begins them, says the words, and tells how they ended.
//!
//! What comes in: `EtcdRestore`s, what the nodes report, the backups, by watches. What goes out: `spec.restore` of
//! `ControlPlaneNode`s, a backup of the state right before, the status. May touch: these objects. What is done on the
//! nodes is the agents' business, and from the word to begin until the end nobody asks the operator.
//!
//! | file | what |
//! | --- | --- |
//! | `sight` | from objects to what is planned on; pure |
//! | `plan` | what comes next for one restore; pure |
//! | `obstacle` | what keeps one from being begun; pure |
//! | `memorial` | what an object tells of a restore that the restored etcd does not know; pure |
//! | `loss` | what would be lost, as far as it is known; pure |
//! | `status` | what people and tools are told; pure |
//! | `adopt` | backups of the state that was taken back; pure |
//! | `act` | doing it |
//!
//! A pass that may change something is made on what the API answers, not on what a watch told some time ago.

mod act;
mod adopt;
mod loss;
mod memorial;
mod obstacle;
mod plan;
#[cfg(test)]
mod plan_tests;
mod sight;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use kube::{Resource as _, ResourceExt as _};
use lockkeeper_crds as crds;
use lockkeeper_crds::{RestoreMode, RestoreStage, RestoreState};
use tokio::time::Instant;

use super::act::Hands;
use super::cache::Cache;
use super::conductor::PassError;
use super::freshness::Freshness;
use super::leader::Leadership;
use super::sight::CONTROL_PLANE;
use super::tell::outcome_of;
use super::wanted::kube_time;
use crate::backoff;
use crate::telemetry::metrics::Kind;
use crate::telemetry::{Metrics, Publisher, Pulse, Reason};
use plan::{Deed, Plan};
use sight::Sight;

/// While one is in hand.
const ACTIVE: Duration = Duration::from_secs(2);
/// Otherwise.
const IDLE: Duration = Duration::from_secs(30);
/// After a failure: doubled up to the second figure.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// Seconds after its end in which a restore that has no object gets one.
const REMEMBERED: i64 = 3600;

/// Tells the outside.
pub(super) struct Teller {
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Publisher,
    pub(super) pulse: Pulse,
}

/// Looks after restores.
pub(super) struct Keeper {
    hands: Hands,
    cache: Arc<Cache>,
    leadership: Leadership,
    teller: Teller,
    fresh: Freshness,
    cluster_name: Option<String>,
}

impl Keeper {
    pub(super) fn new(hands: Hands, cache: Arc<Cache>, leadership: Leadership, teller: Teller) -> Self {
        Self {
            hands,
            cache,
            leadership,
            teller,
            fresh: Freshness::default(),
            cluster_name: None,
        }
    }

    /// Works until leadership ends.
    pub(super) async fn run(mut self) {
        let token = self.leadership.token.clone();
        tokio::select! {
            () = token.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&mut self) {
        while tokio::time::timeout(IDLE, self.cache.restores.wait_until_ready())
            .await
            .is_err()
        {
            self.teller.pulse.beat();
            tracing::warn!("EtcdRestores cannot be listed: is their CustomResourceDefinition installed?");
        }
        let bell = Arc::clone(&self.cache.restores_changed);
        let mut failures = 0u32;
        loop {
            let started = Instant::now();
            let passed = self.pass().await;
            self.teller.pulse.beat();
            let outcome = outcome_of(passed.as_ref().map(|in_hand| *in_hand));
            self.teller
                .metrics
                .reconciled(Kind::EtcdRestore, outcome, started.elapsed());
            let wait = match passed {
                Ok(in_hand) => {
                    failures = 0;
                    if in_hand { ACTIVE } else { IDLE }
                }
                Err(error) => {
                    let [first, limit] = RETRY;
                    let wait = backoff::wait(failures, first, limit);
                    failures += 1;
                    if error.is_conflict() {
                        tracing::debug!(%error, "looking again");
                    } else {
                        tracing::warn!(%error, again_in = ?wait, "restores: a pass was not finished");
                    }
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            tokio::select! {
                () = bell.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One look. True while a restore is in hand.
    async fn pass(&mut self) -> Result<bool, PassError> {
        let reports = self.cache.reports();
        self.fresh.observe(reports.iter(), Instant::now());
        let cached = self.cache.restores.state();
        let open =
            |o: &crds::EtcdRestore| !is_memorial(o) && !o.status.as_ref().is_some_and(|s| s.state.is_end());
        let ordered = reports.values().any(|r| r.spec.restore.is_some());
        let in_hand = cached.iter().any(|o| open(o) && has_begun(o));
        self.teller.metrics.restoring(in_hand);
        self.remember(&cached, &reports).await?;
        if !ordered && !cached.iter().any(|o| open(o)) {
            return Ok(false);
        }
        let (mut all, revision) = self.hands.list_restores().await?;
        all.retain(|o| open(o) && o.metadata.deletion_timestamp.is_none());
        self.take_back(&all, &reports).await?;
        if self.cluster_name.is_none() {
            self.cluster_name = Some(self.hands.cluster_name().await?);
        }
        // The one that has begun first; then the oldest.
        all.sort_by_key(|o| (!has_begun(o), o.metadata.creation_timestamp.as_ref().map(|t| t.0)));
        for (i, object) in all.iter().enumerate() {
            let other = all.first().filter(|_| i > 0).map(|o| o.name_any());
            self.attend(object, other, revision, &reports).await?;
        }
        Ok(!all.is_empty())
    }

    async fn attend(
        &self,
        object: &crds::EtcdRestore,
        other: Option<String>,
        revision: i64,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        let Some(now) = kube_time(Utc::now()) else {
            return Ok(());
        };
        let named = object
            .spec
            .from
            .backup_ref
            .as_ref()
            .and_then(|r| self.cache.backup(&r.name));
        let safety = object.status.as_ref().and_then(|s| s.safety_backup.clone());
        let safety = safety.and_then(|name| self.cache.backup(&name));
        let sight = Sight {
            object,
            nodes: self.nodes(reports),
            backup: named.as_ref(),
            safety: safety.as_ref(),
            stores: self.cache.stores.state().iter().map(|s| s.name_any()).collect(),
            other,
            rollout: self.rollout(),
            cluster_name: self.cluster_name.clone(),
            revision,
            now,
        };
        let plan = plan::plan(&sight);
        let next = status::build(&sight, &plan);
        let before = object.status.clone().unwrap_or_default();
        if before.state != next.state {
            // Written before anything follows from it.
            self.leadership.check()?;
            self.hands.write_restore(object, next.clone()).await?;
            self.tell(object, &next);
            return Ok(());
        }
        self.act(object, &plan, reports).await?;
        if before != next {
            self.leadership.check()?;
            self.hands.write_restore(object, next).await?;
        }
        Ok(())
    }

    async fn act(
        &self,
        object: &crds::EtcdRestore,
        plan: &Plan,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        for deed in &plan.deeds {
            self.leadership.check()?;
            match deed {
                Deed::Give(node, order) => {
                    if let Some(report) = reports.get(node) {
                        self.hands.give_restore(report, Some(order)).await?;
                    }
                }
                Deed::Backup(name, store) => {
                    self.hands.back_up_before(name, store, &object.name_any()).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes orders back that belong to no restore which goes on.
    async fn take_back(
        &self,
        open: &[crds::EtcdRestore],
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        let ids: BTreeSet<&str> = open
            .iter()
            .filter_map(|o| o.status.as_ref()?.id.as_deref())
            .collect();
        for report in reports.values() {
            let order = report.spec.restore.as_ref();
            if order.is_some_and(|o| !ids.contains(o.id.as_str())) {
                self.leadership.check()?;
                self.hands.give_restore(report, None).await?;
            }
        }
        Ok(())
    }

    /// Tells of a restore that the nodes have made and that the restored etcd does not know.
    async fn remember(
        &self,
        cached: &[Arc<crds::EtcdRestore>],
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        let done = reports
            .values()
            .filter_map(|r| r.status.as_ref()?.restore.as_ref());
        let now = Utc::now().timestamp();
        let mut done: Vec<_> = done
            .filter(|p| p.mode == RestoreMode::InPlace && p.stage == RestoreStage::Done)
            // Later, whoever deletes the object wants it gone.
            .filter(|p| now - p.since.0.as_second() < REMEMBERED)
            .collect();
        done.dedup_by(|a, b| a.id == b.id);
        for progress in done {
            self.adopt(progress).await?;
            let knows = |o: &&Arc<crds::EtcdRestore>| {
                o.metadata.uid.as_deref() == Some(progress.id.as_str())
                    || annotated(o) == Some(progress.id.as_str())
            };
            let Some(object) = cached.iter().find(knows) else {
                let taken = cached.iter().any(|o| o.name_any() == progress.name);
                let short: String = progress.id.chars().take(8).collect();
                let name = if taken {
                    format!("{}-{short}", progress.name)
                } else {
                    progress.name.clone()
                };
                self.leadership.check()?;
                self.hands.tell_of_restore(&name, progress).await?;
                continue;
            };
            let was = object.status.clone().unwrap_or_default();
            // With the reports of nodes that were slower.
            if was.state.is_end()
                && was
                    .nodes
                    .iter()
                    .all(|n| n.stage.is_some_and(RestoreStage::is_end))
            {
                continue;
            }
            self.complete(object, progress, reports).await?;
        }
        Ok(())
    }

    /// Gives the backups of the state that was taken back an object again, once an agent has found them.
    async fn adopt(&self, progress: &crds::RestoreProgress) -> Result<(), PassError> {
        let (stores, backups) = (self.cache.stores.state(), self.cache.backups.state());
        for lost in adopt::lost(progress, stores.iter().map(|s| &**s), &backups) {
            self.leadership.check()?;
            self.hands.adopt_backup(&lost, &progress.name).await?;
        }
        Ok(())
    }

    async fn complete(
        &self,
        object: &crds::EtcdRestore,
        progress: &crds::RestoreProgress,
        reports: &BTreeMap<String, crds::ControlPlaneNode>,
    ) -> Result<(), PassError> {
        let Some(now) = kube_time(Utc::now()) else {
            return Ok(());
        };
        let was = object.status.clone().unwrap_or_default();
        let object = memorial::recalled(object, progress);
        let sight = Sight {
            object: &object,
            nodes: self.nodes(reports),
            backup: None,
            safety: None,
            stores: vec![],
            other: None,
            rollout: None,
            cluster_name: None,
            revision: 0,
            now,
        };
        let plan = memorial::standing(&progress.id, reports);
        let next = status::build(&sight, &plan);
        if was != next {
            self.leadership.check()?;
            self.hands.write_restore(&object, next.clone()).await?;
            if was.state != next.state {
                self.tell(&object, &next);
            }
        }
        Ok(())
    }

    fn nodes<'a>(
        &self,
        reports: &'a BTreeMap<String, crds::ControlPlaneNode>,
    ) -> BTreeMap<String, sight::NodeSight<'a>> {
        let now = Instant::now();
        let kube = self.cache.kube.state();
        let control_plane: BTreeSet<String> = kube
            .iter()
            .filter(|n| n.labels().contains_key(CONTROL_PLANE))
            .map(|n| n.name_any())
            .collect();
        reports
            .iter()
            .filter(|(name, _)| control_plane.contains(*name))
            .map(|(name, report)| (name.clone(), sight::node(report, self.fresh.stale(name, now))))
            .collect()
    }

    /// Why no restore may begin beside what the `ClusterVersion` does.
    fn rollout(&self) -> Option<String> {
        let version = self.cache.version()?;
        let rollout = version.status.as_ref()?.rollout.as_ref()?;
        rollout.ended_at.is_none().then(|| {
            format!(
                "ClusterVersion cluster has a rollout under way ({}): wait for its end, or set spec.version back",
                rollout.id
            )
        })
    }

    fn tell(&self, object: &crds::EtcdRestore, next: &crds::EtcdRestoreStatus) {
        let reason = match next.state {
            RestoreState::Validating | RestoreState::Preparing => Reason::RestorePreparing,
            RestoreState::AwaitingConfirmation => Reason::RestoreAwaitsConfirmation,
            RestoreState::Arming | RestoreState::Restoring => Reason::RestoreStarted,
            RestoreState::Completed if is_lame(next) => Reason::RestoreNotWhole,
            RestoreState::Completed => Reason::RestoreCompleted,
            RestoreState::Failed | RestoreState::Undone => Reason::RestoreFailed,
        };
        self.teller
            .events
            .publish(&object.object_ref(&()), reason, &next.message);
    }
}

fn annotated(object: &crds::EtcdRestore) -> Option<&str> {
    let annotations = object.metadata.annotations.as_ref()?;
    annotations.get(crds::RESTORED_ANNOTATION).map(String::as_str)
}

/// It tells of a restore and is none to make.
fn is_memorial(object: &crds::EtcdRestore) -> bool {
    annotated(object).is_some()
}

/// Something of a control plane did not come up on the restored data.
fn is_lame(status: &crds::EtcdRestoreStatus) -> bool {
    status.conditions.iter().any(|c| c.reason == plan::NOT_WHOLE)
}

fn has_begun(object: &crds::EtcdRestore) -> bool {
    let state = object.status.as_ref().map(|s| s.state);
    state.is_some_and(|s| s != RestoreState::Validating && !s.is_end())
}

/// The restore for which the rest of the cluster stands still, if there is one.
pub(super) fn in_the_way(restores: &[Arc<crds::EtcdRestore>]) -> Option<String> {
    let standing = |o: &&Arc<crds::EtcdRestore>| {
        let state = o.status.as_ref().map(|s| s.state);
        matches!(state, Some(RestoreState::Arming | RestoreState::Restoring))
    };
    restores.iter().find(standing).map(|o| o.name_any())
}
