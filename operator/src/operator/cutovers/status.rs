//! From what was seen and decided to the status that people and tools read. Pure.

use chrono::{DateTime, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lockkeeper_crds as crds;
use lockkeeper_crds::{Colour, CutoverState, Tristate, Weights, condition, set_condition};
use lockkeeper_policies::cutover::{Act, Memory, Reason, Seen, Stage, Wanted, share};

use super::clusters::Health;
use super::sight::{kept, stage_out};
use crate::operator::wanted::kube_time;

/// The traffic as the driver reads it.
#[derive(Clone, Debug)]
pub(super) enum Traffic {
    /// The weights, and where they were read.
    Read(Weights, String),
    /// Why they are unknown.
    Unread(String),
}

/// What a status is made of.
pub(super) struct Facts<'a> {
    pub(super) object: &'a crds::ClusterCutover,
    /// As it is after the act, if that is one to remember.
    pub(super) memory: &'a Memory,
    pub(super) wanted: &'a Wanted,
    pub(super) seen: &'a Seen,
    pub(super) act: &'a Act,
    pub(super) traffic: &'a Traffic,
    /// Blue's and green's, with the UID where it is known.
    pub(super) clusters: [(Health, Option<String>); 2],
    /// The checks of this look; empty: they were not made.
    pub(super) checks: Vec<crds::Check>,
    pub(super) targets: Vec<String>,
    /// The last comparison of the clusters; none: there was none since.
    pub(super) parity: Option<crds::ParityStatus>,
    /// What was prepared in this look.
    pub(super) prepared_until: Option<DateTime<Utc>>,
    /// Why the last act was not done.
    pub(super) trouble: Option<&'a str>,
    /// What runs once; empty: it was not looked at.
    pub(super) singletons: Vec<crds::SingletonStatus>,
    pub(super) now: DateTime<Utc>,
}

/// The status to write; none when the time cannot be written.
pub(super) fn build(facts: &Facts<'_>) -> Option<crds::ClusterCutoverStatus> {
    let before = facts.object.status.clone().unwrap_or_default();
    let now = kube_time(facts.now)?;
    let state = state(facts.memory.stage, facts.act);
    let held = match facts.act {
        Act::Wait(held) if !state.is_end() && !held.message.is_empty() => Some(held),
        _ => None,
    };
    let mut message = message(facts, held.map(|h| h.message.as_str()));
    if let Some(trouble) = facts.trouble {
        message = format!("{message}; not yet: {trouble}");
    }
    let began = before.started_at.clone();
    let started = facts.memory.stage != Stage::Checking && facts.memory.stage != Stage::RolledBack;
    let mut status = crds::ClusterCutoverStatus {
        observed_generation: facts.object.metadata.generation,
        state,
        since: before
            .since
            .clone()
            .filter(|_| before.state == state)
            .or_else(|| Some(now.clone())),
        message,
        active: active(facts).or(before.active),
        weights: weights(facts, &before),
        step: match facts.memory.stage {
            Stage::Step(i) => u32::try_from(i + 1).ok(),
            _ => None,
        },
        steps: u32::try_from(facts.wanted.steps.len()).unwrap_or(u32::MAX),
        gates: gates(facts, &before),
        spent: crds::CutoverSpent {
            failed_requests: facts.seen.spent.failed_requests,
            failing_seconds: facts.seen.spent.failing_seconds,
        },
        clusters: clusters(facts, &before),
        singletons: if facts.singletons.is_empty() {
            before.singletons.clone()
        } else {
            facts.singletons.clone()
        },
        freeze: facts
            .object
            .spec
            .freeze
            .as_ref()
            .map(|_| freeze(facts, &before, &now)),
        rollback: rollback(facts),
        parity: facts.parity.clone().or_else(|| before.parity.clone()),
        held: held.map(|h| crds::Held {
            reason: h.reason.to_string(),
            message: h.message.clone(),
            since: before
                .held
                .as_ref()
                .filter(|b| b.reason == h.reason.to_string())
                .map_or_else(|| now.clone(), |b| b.since.clone()),
        }),
        memory: kept(facts.memory),
        targets: if started {
            facts.targets.clone()
        } else {
            before.targets.clone()
        },
        prepared_until: facts
            .prepared_until
            .and_then(kube_time)
            .or_else(|| before.prepared_until.clone()),
        started_at: began.or_else(|| started.then(|| now.clone())),
        completed_at: before
            .completed_at
            .clone()
            .or_else(|| state.is_end().then(|| now.clone())),
        preflight: if facts.checks.is_empty() {
            before.preflight.clone()
        } else {
            facts.checks.clone()
        },
        ..before.clone()
    };
    remember(&mut status, &before, facts);
    conditions(&mut status, facts);
    Some(status)
}

/// Where it stands, in one word for a person.
fn state(stage: Stage, act: &Act) -> CutoverState {
    let reason = match act {
        Act::Wait(held) => Some(held.reason),
        _ => None,
    };
    match (stage, reason) {
        (Stage::Completed, _) => CutoverState::Completed,
        (Stage::RolledBack, _) => CutoverState::RolledBack,
        (Stage::Back, _) => CutoverState::RollingBack,
        (_, Some(Reason::AwaitingApproval)) => CutoverState::AwaitingApproval,
        (_, Some(Reason::Paused)) => CutoverState::Paused,
        (Stage::Checking, Some(Reason::Blocked)) => CutoverState::Blocked,
        (Stage::Checking, _) => CutoverState::Preflight,
        (
            _,
            Some(
                Reason::ClusterLost | Reason::TrafficUnknown | Reason::WeightsChanged | Reason::GreenDiverged,
            ),
        ) => CutoverState::Held,
        (Stage::Window, _) => CutoverState::RollbackWindow,
        (Stage::Step(_) | Stage::HandingOver, _) => CutoverState::Shifting,
    }
}

fn message(facts: &Facts<'_>, held: Option<&str>) -> String {
    if let Some(held) = held {
        return held.to_owned();
    }
    let share = share(facts.memory.stage, facts.wanted);
    match facts.memory.stage {
        Stage::Completed => "green has all traffic; the way back has ended".to_owned(),
        Stage::RolledBack => format!("blue has all traffic: {}", facts.memory.reason),
        Stage::Back => format!("all traffic goes back to blue: {}", facts.memory.reason),
        Stage::Checking => "what must hold before the first step is looked at".to_owned(),
        Stage::HandingOver => "what runs once is handed over from blue to green".to_owned(),
        _ => format!("green gets {share} %"),
    }
}

fn active(facts: &Facts<'_>) -> Option<Colour> {
    match facts.traffic {
        Traffic::Read(weights, _) if weights.green > weights.blue => Some(Colour::Green),
        Traffic::Read(..) => Some(Colour::Blue),
        Traffic::Unread(_) => None,
    }
}

fn weights(facts: &Facts<'_>, before: &crds::ClusterCutoverStatus) -> crds::WeightsStatus {
    let wanted = Some(Weights::of_green(share(facts.memory.stage, facts.wanted)));
    match facts.traffic {
        Traffic::Read(weights, from) => crds::WeightsStatus {
            wanted,
            seen: Some(*weights),
            from: from.clone(),
            unknown: String::new(),
        },
        Traffic::Unread(why) => crds::WeightsStatus {
            wanted,
            unknown: why.clone(),
            ..before.weights.clone()
        },
    }
}

fn gates(facts: &Facts<'_>, before: &crds::ClusterCutoverStatus) -> Vec<crds::GateStatus> {
    if facts.seen.gates.is_empty() {
        // As they were when they last counted.
        return before.gates.clone();
    }
    let rows = facts.seen.gates.iter().map(|g| crds::GateStatus {
        name: g.name.clone(),
        passed: g.failures == 0 && g.passes > 0,
        in_a_row: g.failures.max(g.passes),
        message: g.message.clone(),
    });
    rows.collect()
}

fn clusters(facts: &Facts<'_>, before: &crds::ClusterCutoverStatus) -> Vec<crds::CutoverCluster> {
    let colours = [Colour::Blue, Colour::Green].into_iter();
    colours
        .zip(&facts.clusters)
        .map(|(colour, (health, uid))| {
            let old = before.clusters.iter().find(|c| c.colour == colour);
            crds::CutoverCluster {
                colour,
                uid: uid.clone().or_else(|| old?.uid.clone()),
                version: health.version.clone().or_else(|| old?.version.clone()),
                answers: health.asked && health.lost.is_none(),
                message: health.message.clone(),
            }
        })
        .collect()
}

fn freeze(facts: &Facts<'_>, before: &crds::ClusterCutoverStatus, now: &Time) -> crds::FreezeStatus {
    let before = before.freeze.clone().unwrap_or_default();
    match facts.seen.frozen {
        Some(true) => crds::FreezeStatus {
            frozen: Some(true),
            since: before.since.or_else(|| Some(now.clone())),
            seconds: None,
        },
        Some(false) => crds::FreezeStatus {
            frozen: Some(false),
            since: None,
            seconds: before
                .since
                .map(|since| now.0.as_second() - since.0.as_second())
                .or(before.seconds),
        },
        None => crds::FreezeStatus {
            frozen: None,
            ..before
        },
    }
}

fn rollback(facts: &Facts<'_>) -> crds::RollbackStatus {
    let until = (facts.memory.stage == Stage::Window)
        .then(|| facts.memory.since + facts.wanted.window)
        .and_then(kube_time);
    let (possible, message) = match facts.memory.stage {
        Stage::Checking => (true, "nothing was touched yet"),
        Stage::Step(_) | Stage::HandingOver | Stage::Window if facts.memory.diverged => (
            false,
            "green has taken writes that blue has not: spec.abort sends the traffic back and leaves them behind",
        ),
        // Before it happens, and not only after.
        Stage::Step(_) | Stage::HandingOver if facts.wanted.freeze.is_some() => (
            true,
            "spec.abort sends all traffic back to blue; once blue's freeze is lifted after the hand-over, that would leave behind what green has taken",
        ),
        Stage::Step(_) | Stage::HandingOver | Stage::Window => {
            (true, "spec.abort sends all traffic back to blue")
        }
        Stage::Back => (true, "it goes back"),
        Stage::Completed => (
            false,
            "it has ended: to go back, make a ClusterCutover the other way round",
        ),
        Stage::RolledBack => (false, "it has gone back"),
    };
    crds::RollbackStatus {
        possible,
        until,
        message: message.to_owned(),
    }
}

/// At most: a stage each for twenty steps, and what is before and after them.
const HISTORY: usize = 30;

fn remember(status: &mut crds::ClusterCutoverStatus, before: &crds::ClusterCutoverStatus, facts: &Facts<'_>) {
    let Some(memory) = &status.memory else { return };
    let (stage, step) = stage_out(facts.memory.stage);
    let same = |m: &crds::CutoverMemory| m.stage == stage && m.step == step;
    if before.memory.as_ref().is_some_and(same) {
        return;
    }
    status.history.push(crds::CutoverEntry {
        at: memory.since.clone(),
        stage,
        green: share(facts.memory.stage, facts.wanted),
        reason: facts.memory.reason.clone(),
    });
    let over = status.history.len().saturating_sub(HISTORY);
    status.history.drain(..over);
}

fn conditions(status: &mut crds::ClusterCutoverStatus, facts: &Facts<'_>) {
    use CutoverState as S;
    let state = status.state;
    let of = |yes: bool| if yes { Tristate::True } else { Tristate::False };
    let state_name = format!("{state:?}");
    let reason = status
        .held
        .as_ref()
        .map_or_else(|| state_name.clone(), |h| h.reason.clone());
    // A person is wanted.
    let waits = matches!(state, S::Blocked | S::AwaitingApproval | S::Paused | S::Held);
    let moving = matches!(
        state,
        S::Preflight | S::Shifting | S::RollbackWindow | S::RollingBack
    );
    let stalled = matches!(state, S::Blocked | S::Held | S::RolledBack);
    let preflighted = match state {
        S::Blocked => Tristate::False,
        S::Preflight => Tristate::Unknown,
        _ => Tristate::True,
    };
    let possible = of(status.rollback.possible);
    let rollback = match (facts.memory.stage, facts.memory.diverged) {
        (Stage::Completed, _) => "Completed",
        (Stage::RolledBack, _) => "RolledBack",
        (_, true) => "GreenDiverged",
        _ => "TrafficOnly",
    };
    let text = status.message.clone();
    let all = [
        (
            "Ready",
            of(state == S::Completed),
            state_name.as_str(),
            text.as_str(),
        ),
        ("Reconciling", of(moving), state_name.as_str(), text.as_str()),
        (
            "Stalled",
            of(stalled),
            if stalled { reason.as_str() } else { "NotStalled" },
            text.as_str(),
        ),
        (
            "Settled",
            of(state.is_end() || waits),
            reason.as_str(),
            text.as_str(),
        ),
        ("Preflighted", preflighted, state_name.as_str(), text.as_str()),
        (
            "RollbackPossible",
            possible,
            rollback,
            status.rollback.message.as_str(),
        ),
    ];
    let generation = facts.object.metadata.generation;
    let Some(now) = kube_time(facts.now) else { return };
    let new = all.map(|(type_, value, reason, message)| {
        condition(type_, value, reason, message, generation, now.clone())
    });
    for condition in new {
        set_condition(&mut status.conditions, condition);
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
