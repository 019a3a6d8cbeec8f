//! The invariants as properties: plan, apply to a model cluster with faults and crashes, plan again,
//! until settled. Courses of events are random; the model is `world`.

mod world;

use proptest::prelude::*;

use super::{Action, plan};
use crate::model::*;
use crate::report::State;
use world::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Whatever happens on the way, and whatever the target breaks: the invariants hold at each moment,
    /// and in the end the cluster is where it was asked to be, or back where it came from, or the status
    /// says why not.
    #[test]
    fn every_course_of_events_settles(
        n in prop_oneof![Just(1usize), Just(3)],
        events in prop::collection::vec(event(3), 0..250),
        broken in prop::collection::vec((0usize..3, 0usize..3), 0..2),
    ) {
        let mut world = World::new(n, &broken);
        for event in &events {
            let touches = match event {
                Event::Agent(i) | Event::Silence(i) | Event::Voice(i) | Event::EtcdDown(i) | Event::EtcdUp(i) => *i,
                _ => 0,
            };
            if touches < n {
                world.happen(event);
            }
        }
        let (action, report) = world.calm();
        prop_assert!(matches!(action, Action::Nothing | Action::AskPreflight), "{:?}", report);
        let wish = world.wanted.version;
        match report.state {
            State::Idle => prop_assert!(world.all_at(wish.minor), "idle, and not at {}", wish),
            State::RolledBack => prop_assert!(world.all_at(SOURCE), "rolled back, and not at the source"),
            State::Blocked => prop_assert!(wish == v(TARGET + 1) || wish == v(SOURCE), "blocked: {:?}", report.held),
            other => prop_assert!(false, "ended in {:?}: {:?}", other, report),
        }
    }

    /// Nothing goes wrong: the target runs everywhere, and each component was changed exactly once.
    #[test]
    fn a_quiet_cluster_is_upgraded(n in 1usize..6) {
        let mut world = World::new(n, &[]);
        let (_, report) = world.calm();
        prop_assert_eq!(report.state, State::Idle);
        prop_assert!(world.all_at(TARGET));
        prop_assert_eq!(world.changes, 2 * n, "one ticket for the API server, one for the two that follow it");
        prop_assert_eq!(world.kubeadm_config, v(TARGET));
    }

    /// A target that breaks any one component of any one node ends rolled back, and is not tried again.
    #[test]
    fn a_bad_target_is_taken_back_and_not_tried_again(node in 0usize..3, component in 0usize..3) {
        let mut world = World::new(3, &[(node, component)]);
        let (_, report) = world.calm();
        prop_assert_eq!(report.state, State::RolledBack);
        prop_assert!(world.all_at(SOURCE));
        let changes = world.changes;
        let (_, report) = world.calm();
        prop_assert_eq!(report.state, State::RolledBack);
        prop_assert_eq!(world.changes, changes, "the failed target was tried again");
        world.broken.clear();
        world.wanted.retry = 1;
        let (_, report) = world.calm();
        prop_assert_eq!(report.state, State::Idle);
        prop_assert!(world.all_at(TARGET), "a raised retry tries it again");
    }

    /// `spec.version` set back at any moment is a rollback.
    #[test]
    fn set_back_midway_returns(after in 0usize..60) {
        let mut world = World::new(3, &[]);
        for _ in 0..after {
            for i in 0..3 {
                world.happen(&Event::Agent(i));
            }
            world.happen(&Event::Operator);
        }
        let finished = world.memory.as_ref().is_some_and(|m| m.phase == Phase::Completed);
        world.wanted.version = v(SOURCE);
        let (_, report) = world.calm();
        if finished {
            prop_assert_eq!(report.state, State::Blocked, "a finished minor upgrade has no way down");
        } else {
            prop_assert_eq!(report.state, State::Idle, "{:?}", report);
            prop_assert!(world.all_at(SOURCE));
        }
    }

    /// With `rollback.automatic: false` the node undoes its own step and the rest waits for a person.
    #[test]
    fn without_automatic_rollback_it_stops(node in 0usize..3) {
        let mut world = World::new(3, &[(node, 0)]);
        world.wanted.rollback_automatic = false;
        let (_, report) = world.calm();
        prop_assert_eq!(report.state, State::Failed);
        prop_assert!(report.held.unwrap().message.contains("spec.retry"));
        world.wanted.version = v(SOURCE);
        let (_, report) = world.calm();
        prop_assert!(world.all_at(SOURCE), "set back by hand: {:?}", report);
    }
}

#[test]
fn one_member_down_beforehand_means_that_nothing_is_touched() {
    let mut world = World::new(3, &[]);
    world.happen(&Event::EtcdDown(2));
    for _ in 0..200 {
        for i in 0..3 {
            world.happen(&Event::Agent(i));
        }
        world.happen(&Event::Operator);
    }
    assert_eq!(world.changes, 0);
    assert!(world.backups.is_empty());
    let sight = world.sight();
    let (_, report) = plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, world.now);
    assert_eq!(report.state, State::Blocked);
    assert!(report.summary.contains("Etcd"), "{}", report.summary);
}

/// A store that fails every snapshot must not make etcd be read all the time.
#[test]
fn a_failed_snapshot_is_waited_out_and_the_checks_are_made_again() {
    let mut world = World::new(3, &[]);
    let (mut failed_at, mut asked) = (vec![], vec![]);
    for _ in 0..900 {
        world.backup_fails = true;
        for i in 0..3 {
            world.happen(&Event::Agent(i));
        }
        world.happen(&Event::Operator);
        let memory = world.memory.as_ref().unwrap();
        if memory.failed_backups as usize > failed_at.len() {
            failed_at.push(world.now);
            asked.push(memory.preflight_id);
        }
        let sight = world.sight();
        let (_, report) = plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, world.now);
        if report.state == State::BackingUp && memory.backup_failed_at.is_some() {
            assert!(
                report.summary.contains("failed: cut; tried again at"),
                "{}",
                report.summary
            );
        }
    }
    let waits: Vec<i64> = failed_at
        .windows(2)
        .map(|w| (w[1] - w[0]).num_seconds())
        .collect();
    assert!(waits.len() > 3, "{waits:?}");
    assert!(
        waits
            .iter()
            .zip([15, 30, 60, 120, 120])
            .all(|(wait, least)| *wait >= least),
        "{waits:?}"
    );
    assert!(asked.windows(2).all(|w| w[1] > w[0]), "{asked:?}");
    assert_eq!(world.changes, 0);
}

#[test]
fn a_deleted_object_is_let_go_when_nothing_is_in_hand() {
    let mut world = World::new(3, &[]);
    let mut let_go = false;
    for round in 0..300 {
        for i in 0..3 {
            world.happen(&Event::Agent(i));
        }
        world.happen(&Event::Operator);
        world.wanted.deleting = round > 12;
        let sight = world.sight();
        let (action, _) = plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, world.now);
        if action == Action::LetGo {
            assert!(
                world
                    .nodes
                    .values()
                    .all(|n| n.journal.as_ref().is_none_or(|j| j.state.is_end()))
            );
            let_go = true;
        }
    }
    assert!(let_go);
}
