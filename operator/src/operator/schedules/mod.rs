//! Scheduled backups: begins them, lets old ones go, and tells.
//!
//! What comes in: `EtcdBackupSchedule`s and `EtcdBackup`s, by watches, and the clock. What goes out: `EtcdBackup`s
//! made and deleted, the status of schedules. May touch: these objects. Taking a backup is the conductor's and the
//! agents' business, and so is taking what is stored out of the store the agents'.
//!
//! | file | what |
//! | --- | --- |
//! | `plan` | from a schedule and its backups to what is to be done; pure |
//! | `drill` | which backup is proven further, by when, and by whom; pure |
//! | `leaving` | what is to be done about a backup that was deleted; pure |
//! | `status`, `tell` | what people and tools are told |
//! | `act` | doing it |
//!
//! Nothing is kept from one pass to the next but the ages of reports: the backups themselves say which slots were
//! begun. What a watch told may be old, so before a backup is begun or deleted the API is asked and the plan is
//! made again on its answer; when it does not answer, nothing is done.

mod act;
mod drill;
mod leaving;
mod plan;
mod status;
mod tell;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kube::ResourceExt as _;
use lockkeeper_crds as crds;
use lockkeeper_policies::schedule::backup_name;
use serde_json::json;
use tokio::time::Instant;

use super::act::Hands;
use super::cache::Cache;
use super::conductor::PassError;
use super::freshness::Freshness;
use super::leader::Leadership;
use super::wanted::kube_time;
use crate::backoff;
use leaving::Leave;
use plan::{Around, Backups, Plan, plan};

pub(super) use tell::Teller;

/// Longest without a look: the wall clock, which slots go by, may be set. It asks the API nothing.
const IDLE: Duration = Duration::from_secs(30);
/// After a failure: doubled up to the second figure.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// Looks after every schedule, one after another.
pub(super) struct Keeper {
    hands: Hands,
    cache: Arc<Cache>,
    leadership: Leadership,
    teller: Teller,
    fresh: Freshness,
    /// Whose figures are exported.
    known: BTreeSet<String>,
}

/// What a pass did, and when the next one is due by the clock.
#[derive(Default)]
struct Passed {
    changed: bool,
    wake: Option<DateTime<Utc>>,
}

impl Keeper {
    pub(super) fn new(hands: Hands, cache: Arc<Cache>, leadership: Leadership, teller: Teller) -> Self {
        Self {
            hands,
            cache,
            leadership,
            teller,
            fresh: Freshness::default(),
            known: BTreeSet::new(),
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
        // The kind may be missing, where the chart's CRDs are older than this: that is no reason to stop upgrades,
        // so only this loop waits for it.
        while tokio::time::timeout(IDLE, self.cache.schedules_ready())
            .await
            .is_err()
        {
            self.teller.pulse.beat();
            tracing::warn!(
                "EtcdBackupSchedules cannot be listed: is their CustomResourceDefinition installed?"
            );
        }
        let bell = Arc::clone(&self.cache.backups_changed);
        let mut failures = 0u32;
        loop {
            let started = Instant::now();
            let passed = self.pass().await;
            self.teller
                .pass(passed.as_ref().map(|p| p.changed), started.elapsed());
            match passed {
                Ok(passed) => {
                    failures = 0;
                    let wait = passed.wake.map_or(IDLE, until).min(IDLE);
                    tokio::select! {
                        () = bell.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
                Err(error) => {
                    let [first, limit] = RETRY;
                    let wait = backoff::wait(failures, first, limit);
                    failures += 1;
                    if error.is_conflict() {
                        tracing::debug!(%error, "looking again");
                    } else {
                        tracing::warn!(%error, again_in = ?wait, "schedules: a pass was not finished");
                    }
                    // Only time helps: the watch of what could not be written rings at once.
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn pass(&mut self) -> Result<Passed, PassError> {
        let reports = self.cache.reports();
        self.fresh.observe(reports.iter(), Instant::now());
        let now = Instant::now();
        let heard: Vec<&str> = reports.keys().map(String::as_str).collect();
        let heard: Vec<&str> = heard
            .into_iter()
            .filter(|n| self.fresh.stale(n, now).is_none())
            .collect();
        let mut all = self
            .see_off(&heard)
            .await
            .map(|changed| Passed { changed, wake: None });
        let schedules = self.cache.schedules.state();
        let schedules: Vec<_> = schedules
            .iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .collect();
        let names: BTreeSet<String> = schedules.iter().map(|s| s.name_any()).collect();
        for gone in self.known.difference(&names) {
            self.teller.gone(gone);
        }
        self.known = names;
        for schedule in schedules {
            // One that cannot be looked after keeps none of the others from it.
            match self.attend(schedule).await {
                Ok(one) => {
                    if let Ok(all) = &mut all {
                        all.changed |= one.changed;
                        all.wake = [all.wake, one.wake].into_iter().flatten().min();
                    }
                }
                Err(error) => all = all.and(Err(error)),
            }
        }
        all
    }

    /// Looks after one schedule: begin, tell, let go.
    async fn attend(&self, object: &crds::EtcdBackupSchedule) -> Result<Passed, PassError> {
        let cached = self.cache.backups.state();
        let name = object.name_any();
        let now = Utc::now();
        let backups = Backups::of(&name, cached.iter().map(AsRef::as_ref));
        let plan = self.plan(object, &backups, now);
        if plan.begin.is_none() && plan.prune.is_empty() && plan.drills.begin.is_none() {
            let changed = self.tell(object, &backups, &plan, now).await?;
            return Ok(Passed {
                changed,
                wake: plan.wake(now),
            });
        }
        // Something is to be made or to be deleted: not on what a watch told some time ago.
        let Some(object) = self.hands.read_schedule(&name).await? else {
            return Ok(Passed::default());
        };
        let listed = self.hands.list_backups(&name).await?;
        let backups = Backups::of(&name, &listed);
        let plan = self.plan(&object, &backups, now);
        if let Some(slot) = plan.begin {
            self.leadership.check()?;
            self.hands
                .begin_backup(&object, &backup_name(&name, slot))
                .await?;
            // Its watch rings, and the pass after that tells of it.
            return Ok(Passed {
                changed: true,
                wake: None,
            });
        }
        if let Some((slot, name, proof)) = &plan.drills.begin {
            // Before anything is let go: it is not the one that goes, once it is being proven.
            self.drill(&object, &backups, *slot, name, *proof).await?;
            return Ok(Passed {
                changed: true,
                wake: None,
            });
        }
        self.tell(&object, &backups, &plan, now).await?;
        self.prune(&object, &backups, &plan.prune).await?;
        Ok(Passed {
            changed: true,
            wake: plan.wake(now),
        })
    }

    fn plan(&self, object: &crds::EtcdBackupSchedule, backups: &Backups<'_>, now: DateTime<Utc>) -> Plan {
        let version = self.cache.version();
        let rollout = version.as_ref().and_then(|v| v.status.as_ref()?.rollout.as_ref());
        let in_use = rollout.filter(|r| r.ended_at.is_none());
        let around = Around {
            in_use: in_use.and_then(|r| r.accepted_backup.as_deref()),
            namespace: &self.hands.namespace,
            stores: &self.cache.stores.state().iter().map(|s| s.name_any()).collect(),
            names: &self.cache.backups.state().iter().map(|b| b.name_any()).collect(),
        };
        plan(object, backups, &around, now)
    }

    /// Writes the status if it says anything new.
    async fn tell(
        &self,
        object: &crds::EtcdBackupSchedule,
        backups: &Backups<'_>,
        plan: &Plan,
        now: DateTime<Utc>,
    ) -> Result<bool, PassError> {
        let next = status::build(object, backups, plan, now);
        let changed = object.status.as_ref() != Some(&next);
        if changed {
            self.leadership.check()?;
            self.hands.write_schedule(object, next.clone()).await?;
            self.teller.status(object, backups, &next);
        }
        self.teller.figures(&object.name_any(), &next, plan);
        Ok(changed)
    }

    /// Asks for more proof of one backup.
    async fn drill(
        &self,
        object: &crds::EtcdBackupSchedule,
        backups: &Backups<'_>,
        slot: DateTime<Utc>,
        name: &str,
        proof: crds::Proof,
    ) -> Result<(), PassError> {
        if let Some(own) = backups.0.iter().find(|own| own.name() == name) {
            self.leadership.check()?;
            self.hands.raise_proof(own.backup, proof, slot).await?;
            self.teller.drilled(object, name, proof);
        }
        Ok(())
    }

    /// Deletes what the retention does not keep.
    async fn prune(
        &self,
        object: &crds::EtcdBackupSchedule,
        backups: &Backups<'_>,
        names: &[String],
    ) -> Result<(), PassError> {
        for own in &backups.0 {
            if names.iter().any(|name| name == own.name()) {
                self.leadership.check()?;
                self.hands.delete_backup(own.backup).await?;
            }
        }
        if !names.is_empty() {
            self.teller.pruned(object, names);
        }
        Ok(())
    }

    /// Lets deleted backups go as soon as what they stored is gone, and has those proven whose node is lost.
    async fn see_off(&self, heard: &[&str]) -> Result<bool, PassError> {
        let Some(now) = kube_time(Utc::now()) else {
            return Ok(false);
        };
        let mut changed = false;
        for backup in self.cache.backups.state().iter() {
            if let Some(node) = drill::other_node(backup, heard) {
                self.leadership.check()?;
                let status = json!({"node": node, "message": format!("the agent of {node} proves it, since its own is not heard")});
                self.hands.tell_backup(backup, status).await?;
                changed = true;
            }
        }
        for backup in self.cache.backups.state().iter().filter(|b| b.is_leaving()) {
            match leaving::decide(backup, heard, &now) {
                Leave::Wait => continue,
                Leave::LetGo => {
                    self.leadership.check()?;
                    self.hands.let_go(backup).await?;
                }
                Leave::Tell(status) => {
                    self.leadership.check()?;
                    self.hands.tell_backup(backup, status).await?;
                }
            }
            changed = true;
        }
        Ok(changed)
    }
}

/// From now until a moment; a little more rather than less, so that it has come when the sleeper wakes.
fn until(moment: DateTime<Utc>) -> Duration {
    (moment - Utc::now()).to_std().unwrap_or_default() + Duration::from_millis(50)
}
