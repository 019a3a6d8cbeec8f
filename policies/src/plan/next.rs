//! The decision itself: from what is wanted, remembered and seen to one action.

use chrono::{DateTime, Utc};

use super::{Action, retry_backoff, steps};
use crate::model::{Backup, Check, Cluster, Count, InHand, Mode, Phase, Rollout, Wanted};
use crate::preflight;
use crate::report::{Held, Report, State, Step, ways_back};
use crate::version::KubernetesVersion;

pub(super) struct Planner<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) cluster: &'a Cluster,
    pub(super) now: DateTime<Utc>,
}

/// What a stage comes to: something to do, or why nothing is done.
pub(super) enum Next {
    Do(Action, String),
    Hold(&'static str, String),
    Rest(String),
}

impl Planner<'_> {
    pub(super) fn plan(&self, memory: Option<&Rollout>) -> (Action, Report) {
        let in_hand = memory.is_some_and(|r| r.in_hand.is_some());
        if let Some(restore) = self.cluster.restoring.as_ref().filter(|_| !in_hand) {
            let message =
                format!("EtcdRestore {restore} is under way: nothing else is changed until it has ended");
            return self.answer(State::Blocked, Next::Hold("Restoring", message), memory, vec![]);
        }
        let Some(rollout) = memory else {
            let (state, next) = self.without_rollout();
            return self.answer(state, next, None, vec![]);
        };
        if let Some(ticket) = &rollout.in_hand {
            let next = self.in_hand(rollout, ticket);
            return self.answer(moving(rollout), next, Some(rollout), vec![]);
        }
        if self.wanted.deleting {
            let next = Next::Do(Action::LetGo, "being deleted, and nothing is in hand".to_owned());
            return self.answer(moving(rollout), next, Some(rollout), vec![]);
        }
        match rollout.phase {
            Phase::Preflight => self.preflight(rollout),
            Phase::Snapshot => {
                let next = self.snapshot(rollout);
                self.answer(State::BackingUp, next, Some(rollout), vec![])
            }
            Phase::Forward => {
                let (state, next) = self.forward(rollout);
                self.answer(state, next, Some(rollout), vec![])
            }
            Phase::Back => {
                let next = self.back(rollout);
                self.answer(State::RollingBack, next, Some(rollout), vec![])
            }
            Phase::Completed | Phase::RolledBack | Phase::Failed | Phase::Superseded => {
                let (state, next) = self.after_end(rollout);
                self.answer(state, next, Some(rollout), vec![])
            }
        }
    }

    /// No rollout is remembered.
    fn without_rollout(&self) -> (State, Next) {
        if self.wanted.deleting {
            return (State::Idle, Next::Do(Action::LetGo, "being deleted".to_owned()));
        }
        let version = self.wanted.version;
        if self.settled_at(version) {
            return (State::Idle, Next::Rest(format!("runs {version}")));
        }
        let Some(source) = steps::lowest(self.cluster) else {
            let message = self.unseen();
            return (State::Unknown, Next::Hold("NotSeen", message));
        };
        let order = steps::order(self.cluster);
        let begin = Action::Begin {
            source,
            target: version,
            order,
        };
        (
            State::Preflight,
            Next::Do(begin, format!("{source} to {version}: checking")),
        )
    }

    /// A rollout has ended; what it left is what is remembered.
    fn after_end(&self, rollout: &Rollout) -> (State, Next) {
        let version = self.wanted.version;
        let same = version == rollout.target && self.wanted.retry == rollout.retry;
        let reason = rollout.reason.clone().unwrap_or_default();
        let failed = matches!(rollout.phase, Phase::RolledBack | Phase::Failed);
        if same && failed {
            let state = if rollout.phase == Phase::Failed {
                State::Failed
            } else {
                State::RolledBack
            };
            let way_out = "not tried again until spec.version changes or spec.retry is raised";
            return (
                state,
                Next::Hold(
                    "TargetFailed",
                    format!("{} to {version}: {reason}; {way_out}", rollout.source),
                ),
            );
        }
        if same && self.settled_at(version) {
            return (State::Idle, Next::Rest(format!("runs {version}")));
        }
        (State::Idle, Next::Do(Action::Forget, "a new wish".to_owned()))
    }

    fn preflight(&self, rollout: &Rollout) -> (Action, Report) {
        if self.wish_changed(rollout) {
            return self.answer(State::Preflight, superseded(), Some(rollout), vec![]);
        }
        if rollout.preflight_id == 0 {
            let next = Next::Do(
                Action::AskPreflight,
                "asking every node for its checks".to_owned(),
            );
            return self.answer(State::Preflight, next, Some(rollout), vec![]);
        }
        let checks = preflight::checks(self.wanted, rollout.source, rollout.target, self.cluster);
        if let Some(failed_at) = rollout.backup_failed_at {
            let (state, next) = self.after_failed_backup(rollout, failed_at);
            return self.answer(state, next, Some(rollout), checks);
        }
        let waiting: Vec<&str> = self
            .cluster
            .nodes
            .iter()
            .filter(|(_, n)| {
                !n.preflight
                    .as_ref()
                    .is_some_and(|p| p.id == rollout.preflight_id && p.done)
            })
            .map(|(name, _)| name.as_ref())
            .collect();
        let blocker = preflight::stops(&checks);
        let due = rollout
            .preflight_at
            .is_none_or(|at| self.now - at >= retry_backoff(rollout.preflight_id));
        // A node that never answers must not hold the others' verdicts back for ever.
        if !waiting.is_empty() && (!due || blocker.is_none()) {
            let message = format!("waiting for the checks of {}", waiting.join(", "));
            return self.answer(
                State::Preflight,
                Next::Hold("PreflightRunning", message),
                Some(rollout),
                checks,
            );
        }
        if let Some(blocker) = blocker {
            let next = if due {
                Next::Do(Action::AskPreflight, format!("checking again: {blocker}"))
            } else {
                Next::Hold("PreflightBlocked", blocker)
            };
            return self.answer(State::Blocked, next, Some(rollout), checks);
        }
        if self.wanted.mode == Mode::Preflight {
            let message = format!(
                "{} to {}: every check passes; set spec.mode to Apply to go",
                rollout.source, rollout.target
            );
            return self.answer(
                State::Preflighted,
                Next::Hold("OnlyPreflight", message),
                Some(rollout),
                checks,
            );
        }
        if self.wanted.paused {
            return self.answer(State::Paused, paused(), Some(rollout), checks);
        }
        let phase = if self.wanted.backup_possible {
            Phase::Snapshot
        } else {
            Phase::Forward
        };
        let next = Next::Do(
            Action::Enter { phase, reason: None },
            "every check passes".to_owned(),
        );
        self.answer(State::Preflight, next, Some(rollout), checks)
    }

    /// A snapshot has failed: the checks are asked for again before the next, after a while.
    fn after_failed_backup(&self, rollout: &Rollout, failed_at: DateTime<Utc>) -> (State, Next) {
        let again_at = failed_at + retry_backoff(i64::from(rollout.failed_backups));
        if self.now >= again_at {
            let why = "checking again before the next snapshot".to_owned();
            return (State::Preflight, Next::Do(Action::AskPreflight, why));
        }
        let why = match &self.cluster.backup {
            Backup::Failed(why) => format!("failed: {why}"),
            _ => "is gone".to_owned(),
        };
        let message = format!(
            "snapshot {} {why}; tried again at {}",
            rollout.backup_name(),
            again_at.format("%H:%M:%SZ")
        );
        (State::BackingUp, Next::Hold("BackupFailed", message))
    }

    fn snapshot(&self, rollout: &Rollout) -> Next {
        if self.wish_changed(rollout) {
            return superseded();
        }
        let name = rollout.backup_name();
        // Not after a failure: then one of its own is worth the wait.
        let may_accept =
            self.wanted.backup_accepted && rollout.accepted.is_none() && rollout.failed_backups == 0;
        match (&self.cluster.backup, &self.cluster.acceptable) {
            (Backup::Absent, Some(there)) if may_accept => {
                return Next::Do(
                    Action::AcceptBackup { name: there.clone() },
                    format!("EtcdBackup {there} is recent enough: no snapshot is taken"),
                );
            }
            _ => {}
        }
        match &self.cluster.backup {
            // Deleted since it was accepted; counted, so that one of its own is taken.
            Backup::Absent if rollout.accepted.is_some() => Next::Do(
                Action::CountFailedBackup,
                format!("EtcdBackup {name}, which was accepted as the snapshot, is gone"),
            ),
            Backup::Absent => Next::Do(
                Action::TakeSnapshot { name },
                "taking a snapshot of etcd".to_owned(),
            ),
            Backup::Running(how) => Next::Hold("BackingUp", format!("snapshot {name}: {how}")),
            Backup::Unknown(why) => {
                Next::Hold("BackupUnknown", format!("snapshot {name} cannot be seen: {why}"))
            }
            Backup::Failed(why) => Next::Do(
                Action::CountFailedBackup,
                format!("snapshot {name} failed: {why}"),
            ),
            Backup::Stored if self.wanted.paused => paused(),
            Backup::Stored => {
                let enter = Action::Enter {
                    phase: Phase::Forward,
                    reason: None,
                };
                Next::Do(
                    enter,
                    format!("snapshot {name} is proven as far as the spec asks"),
                )
            }
        }
    }

    fn forward(&self, rollout: &Rollout) -> (State, Next) {
        if self.wish_changed(rollout) {
            return (State::Rolling, self.turn_back(rollout));
        }
        let left = steps::remaining(self.cluster, &rollout.order, rollout.target);
        let Some(step) = left.first() else {
            return (
                State::Rolling,
                self.finish(rollout, rollout.target, Phase::Completed),
            );
        };
        if self.wanted.paused {
            return (State::Paused, paused());
        }
        if let Some(hold) = self.no_snapshot() {
            return (State::Rolling, hold);
        }
        if let Some(hold) = self.gates_closed(&self.cluster.gates) {
            return (State::Rolling, hold);
        }
        (State::Rolling, self.reserve(rollout, step, true))
    }

    fn back(&self, rollout: &Rollout) -> Next {
        let left = steps::remaining(self.cluster, &rollout.order, rollout.source);
        match left.first() {
            None => self.finish(rollout, rollout.source, Phase::RolledBack),
            // The gates may well be closed by what is being taken away: they are asked of the node that
            // was returned, and of the whole cluster before the end.
            Some(step) => self.reserve(rollout, step, false),
        }
    }

    /// All nodes run `version`: the ConfigMap, the gates, the end.
    fn finish(&self, rollout: &Rollout, version: KubernetesVersion, phase: Phase) -> Next {
        if let Some((name, why)) = self
            .cluster
            .nodes
            .iter()
            .find_map(|(n, node)| Some((n, node.stale.as_ref()?)))
        {
            return Next::Hold("AgentLost", format!("{name}: {why}"));
        }
        if let Some(hold) = self.gates_closed(&self.cluster.gates) {
            return hold;
        }
        if steps::kubeadm_config_is_behind(self.cluster, version) {
            let why = format!("writing {version} into the ConfigMap kube-system/kubeadm-config");
            return Next::Do(Action::WriteKubeadmConfig(version), why);
        }
        let enter = Action::Enter {
            phase,
            reason: rollout.reason.clone(),
        };
        Next::Do(enter, format!("every component of every node runs {version}"))
    }

    fn reserve(&self, rollout: &Rollout, step: &Step, forward: bool) -> Next {
        if let Err((reason, message)) = steps::may_take(self.cluster, rollout, step) {
            return Next::Hold(reason, message);
        }
        let number = self
            .cluster
            .nodes
            .get(&step.node)
            .map_or(1, |n| n.last_number + 1);
        let ticket = InHand {
            node: step.node.clone(),
            number,
            forward,
        };
        Next::Do(Action::Reserve(ticket), step.to_string())
    }

    /// The spec names neither the target nor its retry any more, before or between two steps.
    fn turn_back(&self, rollout: &Rollout) -> Next {
        if self.cluster.nodes.values().all(|n| n.runs(rollout.source)) {
            return superseded();
        }
        let reason = self.wish_reason(rollout);
        Next::Do(
            Action::Enter {
                phase: Phase::Back,
                reason: Some(reason.clone()),
            },
            reason,
        )
    }

    pub(super) fn wish_reason(&self, rollout: &Rollout) -> String {
        let (wish, source) = (self.wanted.version, rollout.source);
        if wish == source {
            format!("spec.version was set back to {source}")
        } else {
            format!("spec.version was changed to {wish} on the way: back to {source} first, then there")
        }
    }

    pub(super) fn wish_changed(&self, rollout: &Rollout) -> bool {
        self.wanted.version != rollout.target
    }

    /// Invariant 4, asked again at the last moment: no change before a stored snapshot.
    pub(super) fn no_snapshot(&self) -> Option<Next> {
        let required = self.wanted.backup_required && self.wanted.backup_possible;
        match &self.cluster.backup {
            Backup::Stored => None,
            _ if !required => None,
            other => {
                let message = format!(
                    "the snapshot that this rollout began with cannot be seen any more ({other:?}): set spec.version back, or spec.backup.required to false"
                );
                Some(Next::Hold("BackupUnknown", message))
            }
        }
    }

    pub(super) fn gates_closed(&self, gates: &Count) -> Option<Next> {
        if gates.passes >= self.wanted.gate_passes {
            return None;
        }
        let message = gates.failing.as_ref().map_or_else(
            || {
                format!(
                    "{} of {} gate rounds in a row have passed",
                    gates.passes, self.wanted.gate_passes
                )
            },
            |failing| format!("{failing} ({} rounds in a row)", gates.failures),
        );
        Some(Next::Hold("GatesNotPassed", message))
    }

    fn settled_at(&self, version: KubernetesVersion) -> bool {
        !self.cluster.nodes.is_empty() && self.cluster.nodes.values().all(|n| n.runs(version))
    }

    fn unseen(&self) -> String {
        let stale = self
            .cluster
            .nodes
            .iter()
            .find_map(|(name, n)| Some(format!("{name}: {}", n.stale.as_ref()?)));
        let none = "no node has the label node-role.kubernetes.io/control-plane";
        let version = || "not every component's version is known yet".to_owned();
        stale.unwrap_or_else(|| {
            if self.cluster.nodes.is_empty() {
                none.to_owned()
            } else {
                version()
            }
        })
    }

    fn answer(
        &self,
        state: State,
        next: Next,
        rollout: Option<&Rollout>,
        checks: Vec<Check>,
    ) -> (Action, Report) {
        let (action, summary, held) = match next {
            Next::Do(action, why) => (action, why, None),
            Next::Hold(reason, message) => (Action::Nothing, message.clone(), Some(Held { reason, message })),
            Next::Rest(why) => (Action::Nothing, why, None),
        };
        let going_to = match rollout {
            Some(r) if r.phase == Phase::Back => r.source,
            Some(r) if !r.phase.is_end() => r.target,
            _ => self.wanted.version,
        };
        let active = rollout.filter(|r| !r.phase.is_end());
        let report = Report {
            state,
            summary,
            held,
            checks,
            remaining: active
                .map(|r| steps::remaining(self.cluster, &r.order, going_to))
                .unwrap_or_default(),
            ways_back: active
                .map(|r| ways_back(r, self.cluster, self.cluster.backup == Backup::Stored))
                .unwrap_or_default(),
            done: self.cluster.nodes.values().filter(|n| n.runs(going_to)).count(),
        };
        (action, report)
    }
}

const fn moving(rollout: &Rollout) -> State {
    match rollout.phase {
        Phase::Back => State::RollingBack,
        _ => State::Rolling,
    }
}

fn paused() -> Next {
    Next::Hold(
        "Paused",
        "spec.paused is true: set it to false to go on".to_owned(),
    )
}

fn superseded() -> Next {
    let reason = "spec.version was changed before anything was done".to_owned();
    Next::Do(
        Action::Enter {
            phase: Phase::Superseded,
            reason: Some(reason.clone()),
        },
        reason,
    )
}
