//! From a `ClusterCutover` to what the protocol is told of it, and back. Pure.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use lockkeeper_crds as crds;
use lockkeeper_crds::{CutoverStage, OnLoss};
use lockkeeper_policies::cutover::{Budget, Memory, Side, Spent, Stage, Step, Wanted, WhenLost};

use crate::operator::wanted::{chrono_time, kube_time};

/// How long weights may take to be seen where they were set, twice the TTL and Jobs aside: a server that restarts, or a
/// gateway that programs its proxies, takes seconds.
const TAKES: TimeDelta = TimeDelta::seconds(60);

/// The wish. Of what moves the traffic, `settles`: twice its TTL; `takes`: how long a change may be on its way.
pub(super) fn wanted(object: &crds::ClusterCutover, settles: Duration, takes: Duration) -> Wanted {
    let spec = &object.spec;
    let settles = TimeDelta::from_std(settles).unwrap_or(TimeDelta::MAX);
    let takes = TimeDelta::from_std(takes).unwrap_or(TimeDelta::MAX);
    let takes = TAKES
        .checked_add(&takes)
        .and_then(|takes| takes.checked_add(&settles));
    let loss = |on: OnLoss| match on {
        OnLoss::Hold => WhenLost::Hold,
        OnLoss::GoBack => WhenLost::GoBack,
    };
    let budget = spec.budget.as_ref();
    Wanted {
        steps: spec
            .steps
            .iter()
            .map(|s| Step {
                green: s.green,
                soak: TimeDelta::seconds(s.soak_seconds.into()),
                approval: s.approval,
            })
            .collect(),
        promoted: spec.promote,
        paused: spec.paused,
        abort: spec.abort || object.metadata.deletion_timestamp.is_some(),
        budget: Budget {
            failed_requests: budget.and_then(|b| b.failed_requests).map(u64::from),
            failing_seconds: budget.and_then(|b| b.failing_seconds).map(u64::from),
        },
        window: TimeDelta::seconds(spec.rollback_window_seconds.into()),
        takes: takes.unwrap_or(TimeDelta::MAX),
        settles,
        lost_after: TimeDelta::seconds(spec.when_lost.after_seconds.into()),
        blue_lost: loss(spec.when_lost.blue),
        green_lost: loss(spec.when_lost.green),
        hand_over: !spec.singletons.is_empty(),
        hand_over_limit: TimeDelta::seconds(spec.hand_over_seconds.into()),
        freeze: spec
            .freeze
            .as_ref()
            .map(|f| TimeDelta::seconds(f.longest_seconds.into())),
    }
}

/// The memory; a new one where there is none.
pub(super) fn memory(object: &crds::ClusterCutover, now: DateTime<Utc>) -> Memory {
    let status = object.status.as_ref();
    let Some(kept) = status.and_then(|s| s.memory.as_ref()) else {
        return Memory::new(now);
    };
    let step = usize::try_from(kept.step).unwrap_or(usize::MAX);
    Memory {
        stage: match kept.stage {
            CutoverStage::Checking => Stage::Checking,
            CutoverStage::Step => Stage::Step(step.min(object.spec.steps.len().saturating_sub(1))),
            CutoverStage::HandingOver => Stage::HandingOver,
            CutoverStage::Window => Stage::Window,
            CutoverStage::Back => Stage::Back,
            CutoverStage::Completed => Stage::Completed,
            CutoverStage::RolledBack => Stage::RolledBack,
        },
        since: chrono_time(&kept.since).unwrap_or(now),
        reached: kept.reached.as_ref().and_then(chrono_time),
        frozen_until: kept.frozen_until.as_ref().and_then(chrono_time),
        handed: kept.handed,
        diverged: kept.diverged,
        spent: status.map(|s| spent(s.spent)).unwrap_or_default(),
        reason: kept.reason.clone(),
    }
}

/// The UID of the cluster that this cutover began with; none before it has begun.
pub(super) fn begun_with(object: &crds::ClusterCutover, side: Side) -> Option<String> {
    let status = object.status.as_ref()?;
    let memory = status.memory.as_ref()?;
    let colour = match side {
        Side::Blue => crds::Colour::Blue,
        Side::Green => crds::Colour::Green,
    };
    let clusters = (memory.stage != CutoverStage::Checking).then_some(&status.clusters)?;
    clusters.iter().find(|c| c.colour == colour)?.uid.clone()
}

pub(super) const fn spent(kept: crds::CutoverSpent) -> Spent {
    Spent {
        failed_requests: kept.failed_requests,
        failing_seconds: kept.failing_seconds,
    }
}

/// The memory as it is kept; none when its times cannot be written.
pub(super) fn kept(memory: &Memory) -> Option<crds::CutoverMemory> {
    let (stage, step) = stage_out(memory.stage);
    Some(crds::CutoverMemory {
        stage,
        step,
        since: kube_time(memory.since)?,
        reached: memory.reached.and_then(kube_time),
        frozen_until: memory.frozen_until.and_then(kube_time),
        handed: memory.handed,
        diverged: memory.diverged,
        reason: memory.reason.clone(),
    })
}

/// A stage as the API knows it, and its step from 0.
pub(super) fn stage_out(stage: Stage) -> (CutoverStage, u32) {
    match stage {
        Stage::Checking => (CutoverStage::Checking, 0),
        Stage::HandingOver => (CutoverStage::HandingOver, 0),
        Stage::Step(i) => (CutoverStage::Step, u32::try_from(i).unwrap_or(u32::MAX)),
        Stage::Window => (CutoverStage::Window, 0),
        Stage::Back => (CutoverStage::Back, 0),
        Stage::Completed => (CutoverStage::Completed, 0),
        Stage::RolledBack => (CutoverStage::RolledBack, 0),
    }
}

/// Which gates count.
pub(super) const fn moment(stage: Stage) -> Option<crds::GateMoment> {
    match stage {
        Stage::Checking => Some(crds::GateMoment::Before),
        Stage::HandingOver | Stage::Step(_) => Some(crds::GateMoment::Steps),
        Stage::Window => Some(crds::GateMoment::Window),
        Stage::Back | Stage::Completed | Stage::RolledBack => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::cutovers::testing::object;

    #[test]
    fn what_is_remembered_comes_back() {
        let now = DateTime::from_timestamp(1_763_700_000, 0).unwrap();
        for stage in [
            Stage::Checking,
            Stage::Step(1),
            Stage::HandingOver,
            Stage::Window,
            Stage::Back,
            Stage::RolledBack,
        ] {
            let memory = Memory {
                stage,
                reached: Some(now + TimeDelta::seconds(7)),
                frozen_until: Some(now + TimeDelta::seconds(60)),
                handed: true,
                diverged: stage == Stage::Window,
                reason: "a gate".to_owned(),
                ..Memory::new(now)
            };
            let mut object = object();
            object.status = Some(crds::ClusterCutoverStatus {
                memory: kept(&memory),
                ..crds::ClusterCutoverStatus::default()
            });
            assert_eq!(super::memory(&object, now + TimeDelta::seconds(99)), memory);
        }
    }

    #[test]
    fn once_it_has_begun_its_clusters_are_known_by_their_uids() {
        let mut object = object();
        let mut begun = |stage| {
            object.status = Some(crds::ClusterCutoverStatus {
                memory: kept(&Memory {
                    stage,
                    ..Memory::new(Utc::now())
                }),
                clusters: vec![crds::CutoverCluster {
                    colour: crds::Colour::Green,
                    uid: Some("g-1".to_owned()),
                    version: None,
                    answers: true,
                    message: String::new(),
                }],
                ..crds::ClusterCutoverStatus::default()
            });
            [Side::Blue, Side::Green].map(|side| begun_with(&object, side))
        };
        assert_eq!(begun(Stage::Checking), [None, None]);
        assert_eq!(begun(Stage::Window), [None, Some("g-1".to_owned())]);
    }

    #[test]
    fn a_deletion_is_an_abort() {
        let mut object = object();
        assert!(!wanted(&object, Duration::ZERO, Duration::ZERO).abort);
        object.metadata.deletion_timestamp = kube_time(Utc::now());
        assert!(wanted(&object, Duration::ZERO, Duration::ZERO).abort);
    }

    #[test]
    fn what_is_slow_has_longer_to_take_the_weights() {
        let wanted = wanted(&object(), Duration::from_secs(600), Duration::from_secs(90));
        assert_eq!(wanted.settles, TimeDelta::seconds(600));
        assert_eq!(wanted.takes, TimeDelta::seconds(750));
    }
}
