//! The rules as properties: nodes with journals, disks and kubelets that are played, an operator whose word may
//! come to some nodes only, and crashes, power cuts, partitions, clocks apart and things that never start.
//!
//! The restored etcd is one register that answers whoever runs it on the new data together with more than half of
//! all members, which is what raft gives; who takes the new data away never comes back to it.

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use world::*;

fn event(n: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => (0..n).prop_map(Event::Look),
        30 => (0..n).prop_map(Event::Act),
        3 => (1i64..20).prop_map(Event::Pass),
        1 => (LIMIT..LIMIT * 2).prop_map(Event::Pass),
        2 => ((0..n), -200i64..200).prop_map(|(i, skew)| Event::Clock(i, skew)),
        2 => (0..n).prop_map(Event::Cut),
        3 => (0..n).prop_map(Event::Boot),
        2 => (0..n).prop_map(Event::Kill),
        2 => ((0..n), any::<bool>()).prop_map(|(i, alone)| Event::Part(i, alone)),
        8 => Just(Event::Operator),
        1 => Just(Event::Withdraw),
    ]
}

/// A look and an act of each node, with something in between now and then: courses that get somewhere.
fn course(n: usize) -> impl Strategy<Value = Vec<Event>> {
    let round = (
        prop::collection::vec((0..n, prop::bool::weighted(0.8)), n * 2),
        prop::option::weighted(0.25, event(n)),
    );
    prop::collection::vec(round, 0..60).prop_map(|rounds| {
        let mut events = vec![];
        for (steps, more) in rounds {
            events.extend([Event::Operator, Event::Pass(1)]);
            for (i, acts) in steps {
                events.push(Event::Look(i));
                events.extend(acts.then_some(Event::Act(i)));
            }
            events.extend(more);
        }
        events
    })
}

fn traits(n: usize) -> impl Strategy<Value = Vec<Trait>> {
    let never = prop_oneof![
        8 => Just(None),
        1 => Just(Some(Part::Etcd)),
        1 => Just(Some(Part::KubeApiserver)),
    ];
    let one = (never, -200i64..200, 0i64..25, prop::bool::weighted(0.03));
    let one = one.prop_map(|(never, skew, slow, bad_file)| Trait {
        never,
        skew,
        slow,
        bad_file,
    });
    prop::collection::vec(one, n)
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1usize), Just(2), Just(3), Just(3), Just(4), Just(5)]
}

fn world() -> impl Strategy<Value = (Vec<Trait>, Vec<Event>)> {
    size().prop_flat_map(|n| (traits(n), course(n)))
}

fn run(traits: &[Trait], events: &[Event], broken: Broken) -> Result<World, TestCaseError> {
    let mut world = World::new(traits, broken);
    for event in events {
        world.happen(event);
        world.check()?;
    }
    world.calm()?;
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Whatever is cut, killed, parted or never starts: no node keeps the new data while another keeps the old,
    /// and once the faults stop all have settled, with their manifests.
    #[test]
    fn all_nodes_end_on_the_same_data((traits, events) in world()) {
        let world = run(&traits, &events, Broken::Nothing)?;
        let kept = world.settled()?;
        let lame = traits.iter().any(|t| t.never.is_some() || t.bad_file);
        prop_assert!(!(kept && lame), "kept although a node cannot run on it");
    }
}

fn sound() -> Trait {
    Trait {
        never: None,
        skew: 0,
        slow: 3,
        bad_file: false,
    }
}

#[test]
fn without_faults_it_is_kept_and_a_node_that_cannot_start_takes_all_back() {
    for n in 1..=5 {
        let world = run(&vec![sound(); n], &[], Broken::Nothing).unwrap();
        assert!(world.settled().unwrap(), "{n} nodes");
        for part in [Part::Etcd, Part::KubeApiserver] {
            let mut traits = vec![sound(); n];
            traits[n - 1].never = Some(part);
            let world = run(&traits, &[], Broken::Nothing).unwrap();
            assert!(!world.settled().unwrap(), "{n} nodes, {part}");
            assert!(world.nodes.iter().all(|node| node.stage == Stage::Undone));
        }
    }
}

#[test]
fn a_bad_file_on_one_node_touches_nothing() {
    let mut traits = vec![sound(); 3];
    traits[1].bad_file = true;
    let world = run(&traits, &[], Broken::Nothing).unwrap();
    assert!(world.nodes.iter().all(|n| n.stage == Stage::Dropped));
}

/// Random courses with three nodes.
fn courses() -> impl Iterator<Item = (Vec<Trait>, Vec<Event>)> {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::{Config, TestRunner};
    let mut runner = TestRunner::new(Config::default());
    std::iter::repeat_with(move || (traits(3), course(3)).new_tree(&mut runner).unwrap().current())
}

/// The properties can fail: each rule taken out is found by some course of events.
#[test]
fn every_rule_is_needed() {
    for broken in [Broken::UndoesAfterReady, Broken::CommitsWithoutAll] {
        let found = courses()
            .take(5000)
            .any(|(traits, events)| run(&traits, &events, broken).and_then(|w| w.settled()).is_err());
        assert!(found, "{broken:?} was not noticed");
    }
}

/// One course in which a node signs, and then sees another that has not begun.
fn signed_too_early(broken: Broken) -> Result<(), TestCaseError> {
    let mut world = World::new(&vec![sound(); 3], broken);
    let go_on = |world: &mut World, nodes: &[usize], acts: usize| {
        for _ in 0..acts {
            for i in nodes {
                world.happen(&Event::Look(*i));
                world.happen(&Event::Act(*i));
                world.check()?;
            }
            world.pass(1);
        }
        Ok::<(), TestCaseError>(())
    };
    for _ in 0..4 {
        world.operate();
        go_on(&mut world, &[0, 1, 2], 1)?;
    }
    // The word comes to two; the third is slow.
    for _ in 0..40 {
        go_on(&mut world, &[0], 1)?;
        if world.nodes[0].stage == Stage::Ready {
            break;
        }
        go_on(&mut world, &[1], 1)?;
    }
    // The first signs, sees the third on the old data, gives up, and is dark for a while.
    go_on(&mut world, &[0], 2)?;
    world.happen(&Event::Cut(0));
    go_on(&mut world, &[2], 20)?;
    go_on(&mut world, &[2, 1], 60)?;
    world.calm()?;
    world.settled().map(drop)
}

#[test]
fn the_barrier_is_needed() {
    signed_too_early(Broken::Nothing).unwrap();
    assert!(signed_too_early(Broken::NoBarrier).is_err());
}

/// The courses are no walks on the spot: each end, and a fault in each stage, is met.
#[test]
fn the_courses_come_to_every_end() {
    let mut ends = BTreeMap::new();
    for (traits, events) in courses().take(400) {
        let world = run(&traits, &events, Broken::Nothing).unwrap();
        *ends.entry(world.nodes[0].stage).or_insert(0) += 1;
    }
    for end in [Stage::Done, Stage::Undone, Stage::Dropped] {
        assert!(ends.get(&end).is_some_and(|count| *count >= 20), "{ends:?}");
    }
}
