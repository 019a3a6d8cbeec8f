//! Cutovers: traffic and duty go from one cluster to another, and back.
//!
//! What comes in: `ClusterCutover`s, the clusters and the traffic that they name, answers of gates. What goes out:
//! weights, statuses, events, metrics. May touch: `ClusterCutover`s, the Secrets that they name (reading), what moves
//! their traffic by `crate::traffic`, and in their clusters what `preflight` says that it needs.
//!
//! | file | what |
//! | --- | --- |
//! | `sight` | from objects to what the protocol (`policies::cutover`) is told; pure |
//! | `status` | what people and tools are told; pure |
//! | `course` | the loop of one cutover: look, ask the protocol, do the one thing, tell |
//! | `ground` | what one stands on: clusters and driver, from Secrets |
//! | `clusters`, `gates` | what is asked all the time |
//! | `duties`, `freeze` | what runs in one of the clusters only; writes that blue refuses meanwhile |
//! | `parity` | whether green has what blue has, asked before the first step |
//! | `preflight` | what is asked before anything is touched |
//! | `rights` | what must be allowed in which cluster, and whether it is |
//! | `capacity` | whether green offers what blue does |
//! | `controllers` | who else would stop or start what runs once |
//! | `seldom` | what of these was asked a moment ago |
//! | `act` | reading and writing objects of this cluster |
//!
//! Each cutover has a task of its own, so that none waits for another's cluster that does not answer.

mod act;
mod capacity;
mod clusters;
mod controllers;
mod course;
mod duties;
mod freeze;
mod gates;
mod ground;
mod parity;
mod preflight;
mod rights;
mod seldom;
mod sight;
mod status;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::{Api, Resource as _, ResourceExt as _};
use lockkeeper_crds as crds;
use lockkeeper_crds::CutoverState;
use tokio::sync::{Mutex, Notify};
use tokio::task::{AbortHandle, JoinSet};

use super::act::Hands;
use super::cache::watched;
use super::leader::Leadership;
use crate::telemetry::metrics::{CutoverFigures, CutoverResult};
use crate::telemetry::{Metrics, Publisher, Pulse, Reason};
use course::Course;

/// Also when nothing is told: a watch may be silent for long.
const IDLE: Duration = Duration::from_secs(30);

/// Tells the outside.
#[derive(Clone)]
pub(super) struct Teller {
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Publisher,
}

/// Gives each cutover its course.
pub(super) struct Keeper {
    pub(super) hands: Hands,
    pub(super) leadership: Leadership,
    pub(super) teller: Teller,
    pub(super) pulse: Pulse,
}

struct Running {
    bell: Arc<Notify>,
    task: AbortHandle,
}

impl Keeper {
    /// Works until leadership ends.
    pub(super) async fn run(self) {
        let token = self.leadership.token.clone();
        tokio::select! {
            () = token.cancelled() => {}
            () = self.work() => {}
        }
    }

    async fn work(&self) {
        let changed = Arc::new(Notify::new());
        let mut watches = JoinSet::new();
        let api: Api<crds::ClusterCutover> = Api::all(self.hands.api.client());
        let objects = watched(api, &changed, &mut watches);
        while tokio::time::timeout(IDLE, objects.wait_until_ready())
            .await
            .is_err()
        {
            self.pulse.beat();
            tracing::warn!("ClusterCutovers cannot be listed: is their CustomResourceDefinition installed?");
        }
        // Dropped with this, and every course with it.
        let mut courses = JoinSet::new();
        let mut running: BTreeMap<String, Running> = BTreeMap::new();
        let mut versions: BTreeMap<String, String> = BTreeMap::new();
        let beginning = Arc::new(Mutex::new(()));
        loop {
            self.pulse.beat();
            while courses.try_join_next().is_some() {}
            running.retain(|_, course| !course.task.is_finished());
            let all = objects.state();
            versions.retain(|uid, _| all.iter().any(|o| o.uid().as_ref() == Some(uid)));
            for object in all {
                let (Some(uid), Some(version)) = (object.uid(), object.resource_version()) else {
                    continue;
                };
                let news = versions.insert(uid.clone(), version.clone()) != Some(version);
                match running.get(&uid) {
                    Some(course) if news => course.bell.notify_one(),
                    Some(_) => {}
                    None if has_ended(&object) => {}
                    None => {
                        let bell = Arc::new(Notify::new());
                        let course = Course {
                            name: object.name_any(),
                            uid: uid.clone(),
                            hands: self.hands.clone(),
                            leadership: self.leadership.clone(),
                            teller: self.teller.clone(),
                            bell: Arc::clone(&bell),
                            beginning: Arc::clone(&beginning),
                            state: course::State::default(),
                        };
                        let task = courses.spawn(course.run());
                        running.insert(uid, Running { bell, task });
                    }
                }
            }
            tokio::select! {
                () = changed.notified() => {}
                () = tokio::time::sleep(IDLE) => {}
            }
        }
    }
}

/// Nothing is left to do, a finalizer included.
fn has_ended(object: &crds::ClusterCutover) -> bool {
    let held = object.finalizers().iter().any(|f| f == super::act::FINALIZER);
    object.status.as_ref().is_some_and(|s| s.state.is_end()) && !held
}

impl Teller {
    /// What a status says in figures.
    fn figures(&self, name: &str, status: &crds::ClusterCutoverStatus) {
        let waits = matches!(status.state, CutoverState::Held | CutoverState::Blocked);
        let figures = CutoverFigures {
            green_wanted: status.weights.wanted.map(|w| i64::from(w.green)),
            // What cannot be read is not told.
            green_seen: status
                .weights
                .seen
                .filter(|_| status.weights.unknown.is_empty())
                .map(|w| i64::from(w.green)),
            held: waits,
            failed_requests: i64::try_from(status.spent.failed_requests).unwrap_or(i64::MAX),
        };
        let figures = (!status.state.is_end()).then_some(figures);
        self.metrics.cutover(name, figures);
    }

    /// What has changed.
    fn tell(
        &self,
        object: &crds::ClusterCutover,
        before: &crds::ClusterCutoverStatus,
        next: &crds::ClusterCutoverStatus,
    ) {
        if before.state != next.state {
            match next.state {
                CutoverState::Completed => self.metrics.cutover_ended(CutoverResult::Completed),
                CutoverState::RolledBack => self.metrics.cutover_ended(CutoverResult::RolledBack),
                _ => {}
            }
        }
        let step = |s: &crds::ClusterCutoverStatus| s.memory.as_ref().map(|m| (m.stage, m.step));
        if before.state == next.state && step(before) == step(next) {
            return;
        }
        let reason = match next.state {
            CutoverState::Preflight => return,
            CutoverState::Blocked => Reason::CutoverBlocked,
            CutoverState::AwaitingApproval => Reason::CutoverAwaitsApproval,
            CutoverState::Paused => Reason::CutoverPaused,
            CutoverState::Shifting => Reason::CutoverStep,
            CutoverState::Held => Reason::CutoverHeld,
            CutoverState::RollbackWindow => Reason::CutoverSwitched,
            CutoverState::RollingBack => Reason::CutoverRollingBack,
            CutoverState::Completed => Reason::CutoverFinalized,
            CutoverState::RolledBack => Reason::CutoverRolledBack,
        };
        self.events
            .publish(&object.object_ref(&()), reason, &next.message);
    }
}
