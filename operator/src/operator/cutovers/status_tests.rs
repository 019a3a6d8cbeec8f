//! What people and tools are told.

use chrono::TimeDelta;
use lockkeeper_policies::cutover::{Duty, Held, Spent, Weights as Share};

use super::*;
use crate::operator::cutovers::sight;
use crate::operator::cutovers::testing::object;

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000, 0).unwrap()
}

fn seen() -> Seen {
    Seen {
        weights: Share::Known(vec![25]),
        obstacles: vec![],
        ready_at: None,
        gates: vec![],
        blue_lost: None,
        green_lost: None,
        blue: Duty::Stopped(None),
        green: Duty::Stopped(None),
        frozen: Some(false),
        spent: Spent::default(),
    }
}

fn built(
    stage: Stage,
    act: &Act,
    traffic: &Traffic,
    before: Option<crds::ClusterCutoverStatus>,
) -> crds::ClusterCutoverStatus {
    let mut object = object();
    object.status = before;
    let memory = Memory {
        stage,
        reason: "gate shop has failed 2 times in a row".to_owned(),
        ..Memory::new(now())
    };
    build(&Facts {
        object: &object,
        memory: &memory,
        wanted: &sight::wanted(&object, std::time::Duration::ZERO, std::time::Duration::ZERO),
        seen: &seen(),
        act,
        traffic,
        clusters: [(Health::default(), None), (Health::default(), None)],
        checks: vec![],
        targets: vec!["haproxy a/b".to_owned()],
        prepared_until: None,
        parity: None,
        trouble: None,
        singletons: vec![],
        now: now() + TimeDelta::seconds(5),
    })
    .unwrap()
}

fn wait(reason: Reason) -> Act {
    Act::Wait(Held {
        reason,
        message: "a sentence".to_owned(),
    })
}

fn of(status: &crds::ClusterCutoverStatus, type_: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
    format!("{} {}", found.status, found.reason)
}

fn read() -> Traffic {
    Traffic::Read(Weights::of_green(25), "haproxy a".to_owned())
}

#[test]
fn one_wait_for_settled_returns_on_every_end_and_wherever_a_person_is_wanted() {
    for (stage, act, settled, stalled, ready) in [
        (
            Stage::Completed,
            wait(Reason::Ended),
            "True Completed",
            "False NotStalled",
            "True Completed",
        ),
        (
            Stage::RolledBack,
            wait(Reason::Ended),
            "True RolledBack",
            "True RolledBack",
            "False RolledBack",
        ),
        (
            Stage::Checking,
            wait(Reason::Looking),
            "False Looking",
            "False NotStalled",
            "False Preflight",
        ),
        (
            Stage::Checking,
            wait(Reason::Blocked),
            "True Blocked",
            "True Blocked",
            "False Blocked",
        ),
        (
            Stage::Step(0),
            wait(Reason::AwaitingApproval),
            "True AwaitingApproval",
            "False NotStalled",
            "False AwaitingApproval",
        ),
        (
            Stage::Step(0),
            wait(Reason::WeightsChanged),
            "True WeightsChanged",
            "True WeightsChanged",
            "False Held",
        ),
        (
            Stage::Step(0),
            wait(Reason::Soaking),
            "False Soaking",
            "False NotStalled",
            "False Shifting",
        ),
        (
            Stage::Step(0),
            wait(Reason::AtWork),
            "False AtWork",
            "False NotStalled",
            "False Shifting",
        ),
        (
            Stage::Window,
            wait(Reason::RollbackWindow),
            "False RollbackWindow",
            "False NotStalled",
            "False RollbackWindow",
        ),
        (
            Stage::Back,
            Act::Set(0),
            "False RollingBack",
            "False NotStalled",
            "False RollingBack",
        ),
    ] {
        let status = built(stage, &act, &read(), None);
        assert_eq!(of(&status, "Settled"), settled, "{stage:?}");
        assert_eq!(of(&status, "Stalled"), stalled, "{stage:?}");
        assert_eq!(of(&status, "Ready"), ready, "{stage:?}");
    }
}

#[test]
fn what_cannot_be_read_keeps_what_was_seen_and_says_that_it_is_unknown() {
    let before = built(Stage::Step(0), &wait(Reason::Soaking), &read(), None);
    assert_eq!(before.weights.seen, Some(Weights::of_green(25)));
    let unread = Traffic::Unread("the edge is away".to_owned());
    let after = built(
        Stage::Step(0),
        &wait(Reason::TrafficUnknown),
        &unread,
        Some(before),
    );
    assert_eq!(after.weights.seen, Some(Weights::of_green(25)));
    assert_eq!(after.weights.unknown, "the edge is away");
    assert_eq!(after.state, CutoverState::Held);
    assert_eq!(after.active, Some(Colour::Blue));
}

#[test]
fn each_stage_goes_into_the_history_once_with_its_reason() {
    let step = built(Stage::Step(0), &Act::Set(25), &read(), None);
    let again = built(Stage::Step(0), &wait(Reason::Soaking), &read(), Some(step));
    let back = built(Stage::Back, &Act::Set(0), &read(), Some(again));
    let stages: Vec<_> = back.history.iter().map(|h| (h.stage, h.green)).collect();
    assert_eq!(
        stages,
        [(crds::CutoverStage::Step, 25), (crds::CutoverStage::Back, 0)]
    );
    assert!(back.message.contains("gate shop has failed"), "{}", back.message);
}

#[test]
fn the_way_back_is_named_with_its_end_and_gone_after_it() {
    let window = built(Stage::Window, &wait(Reason::RollbackWindow), &read(), None);
    assert!(window.rollback.possible);
    assert_eq!(window.rollback.until, kube_time(now() + TimeDelta::seconds(60)));
    assert_eq!(of(&window, "RollbackPossible"), "True TrafficOnly");
    let done = built(Stage::Completed, &wait(Reason::Ended), &read(), Some(window));
    assert_eq!(of(&done, "RollbackPossible"), "False Completed");
    assert!(done.rollback.message.contains("other way round"));
}

#[test]
fn an_unchanged_look_is_the_same_status() {
    let first = built(Stage::Step(0), &wait(Reason::Soaking), &read(), None);
    let second = built(
        Stage::Step(0),
        &wait(Reason::Soaking),
        &read(),
        Some(first.clone()),
    );
    assert_eq!(first, second);
}
