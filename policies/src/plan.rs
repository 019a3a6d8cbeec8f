//! The one next thing.
//!
//! [`plan`] is asked again after every change of what is seen; it keeps nothing between two calls. All
//! that must outlive a call is in [`Rollout`], and [`Rollout::after`] says how an action changes it, so
//! that the operator and the simulation cannot disagree.
//!
//! **One ticket at a time, also with two operators.** Before a ticket is issued it is reserved in the
//! rollout's memory ([`Action::Reserve`]), which is one object written by compare-and-swap. Only the
//! reserved ticket is ever issued. An operator that was cut off and comes back finds that its memory is
//! old when it reserves; one that had reserved finds its ticket issued by its successor, which is the
//! same ticket, or its number used up ([`Action::Void`]) where the successor gave the reservation up.

mod next;
#[cfg(test)]
mod simulation;
mod steps;
mod ticket;

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::model::{Cluster, InHand, NodeName, Phase, Rollout, Wanted};
use crate::report::{Report, Step};
use crate::version::KubernetesVersion;

/// The one next thing to do. Each writes one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing; the report says why.
    Nothing,
    /// Remember a new rollout.
    Begin {
        /// What runs.
        source: KubernetesVersion,
        /// What shall run.
        target: KubernetesVersion,
        /// Nodes in the order in which they will be changed.
        order: Vec<NodeName>,
    },
    /// Drop the memory of a rollout that has ended and that nobody asks for any more.
    Forget,
    /// Give out a new round of preflight.
    AskPreflight,
    /// Go on to another phase.
    Enter {
        /// Which.
        phase: Phase,
        /// Why, where it is not the usual course.
        reason: Option<String>,
    },
    /// Make the `EtcdBackup` of this name.
    TakeSnapshot {
        /// Its name.
        name: String,
    },
    /// Remember that the `EtcdBackup` of this name, which is there already, is the snapshot.
    AcceptBackup {
        /// Its name.
        name: String,
    },
    /// The snapshot failed: count it and go back to preflight.
    CountFailedBackup,
    /// Remember the ticket that will be issued.
    Reserve(InHand),
    /// Use up the reserved number without a ticket: it is given up, and an operator that was cut off
    /// before must not issue it after all.
    Void(InHand),
    /// Issue the reserved ticket.
    Issue {
        /// Its number.
        number: i64,
        /// What it changes.
        step: Step,
    },
    /// The gates passed: tell the agent to keep it.
    Confirm(InHand),
    /// Tell the agent to take it back.
    Withdraw {
        /// Which.
        ticket: InHand,
        /// Why.
        reason: String,
    },
    /// The ticket in hand has ended: forget it.
    Release {
        /// The phase that follows, and why, when it ended badly.
        then: Option<(Phase, String)>,
    },
    /// Write the version into the `kubeadm-config` ConfigMap.
    WriteKubeadmConfig(KubernetesVersion),
    /// The object is being deleted and nothing is in hand: let it go.
    LetGo,
}

impl Rollout {
    /// The memory after an action. `now` is when it was decided.
    #[must_use]
    pub fn after(&self, action: &Action, now: DateTime<Utc>) -> Self {
        let mut next = self.clone();
        match action {
            Action::AskPreflight => {
                next.preflight_id += 1;
                next.preflight_at = Some(now);
                next.backup_failed_at = None;
            }
            Action::Enter { phase, reason } => {
                next.phase = *phase;
                next.reason = reason.clone().or(next.reason);
            }
            Action::AcceptBackup { name } => next.accepted = Some(name.clone()),
            Action::CountFailedBackup => {
                next.failed_backups += 1;
                // The next one is its own: what was accepted and fails now must not be accepted again.
                next.accepted = None;
                next.phase = Phase::Preflight;
                next.backup_failed_at = Some(now);
            }
            Action::Reserve(ticket) => next.in_hand = Some(ticket.clone()),
            Action::Release { then } => {
                next.in_hand = None;
                if let Some((phase, reason)) = then {
                    next.phase = *phase;
                    next.reason = Some(reason.clone());
                }
            }
            _ => {}
        }
        next
    }

    /// True when the action is a change of this memory and of nothing else.
    #[must_use]
    pub const fn is_changed_by(action: &Action) -> bool {
        matches!(
            action,
            Action::AskPreflight
                | Action::Enter { .. }
                | Action::AcceptBackup { .. }
                | Action::CountFailedBackup
                | Action::Reserve(_)
                | Action::Release { .. }
        )
    }
}

/// How long to wait before what stopped an upgrade is tried again, checks and snapshots alike: 15 s at
/// first, for a store that was away for a moment, at most 2 min, since a rehearsal costs a few seconds of
/// CPU a node, and a snapshot a reading of all of etcd.
fn retry_backoff(rounds: i64) -> chrono::Duration {
    let doubled = 15u64.saturating_mul(1 << rounds.clamp(1, 4).saturating_sub(1));
    chrono::Duration::from_std(Duration::from_secs(doubled.min(120))).unwrap_or_default()
}

/// Decides the one next thing, and says why.
///
/// Assumes that `cluster.backup` is the one named by [`Rollout::backup_name`] and that the gate counts
/// began anew when the ticket in hand became ready.
#[must_use = "an unread report helps nobody"]
pub fn plan(
    wanted: &Wanted,
    memory: Option<&Rollout>,
    cluster: &Cluster,
    now: DateTime<Utc>,
) -> (Action, Report) {
    next::Planner { wanted, cluster, now }.plan(memory)
}
