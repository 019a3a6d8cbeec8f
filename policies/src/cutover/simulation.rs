//! The rules as properties: two clusters with controllers that are played, two sources of traffic, two operators of
//! which one may act on an old look, and crashes, clusters and sources that are away, failing gates, foreign hands and
//! changed minds.

mod world;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use world::*;

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (0usize..2).prop_map(Event::Look),
        20 => (0usize..2).prop_map(Event::Act),
        8 => (1i64..4).prop_map(Event::Pass),
        1 => (20i64..90).prop_map(Event::Pass),
        3 => (0usize..2).prop_map(Event::Kill),
        6 => any::<bool>().prop_map(|green| Event::Controllers(side(green))),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(green, up)| Event::Cluster(side(green), up)),
        2 => ((0usize..2), any::<bool>()).prop_map(|(i, up)| Event::Source(i, up)),
        2 => any::<bool>().prop_map(Event::Gate),
        1 => Just(Event::Abort),
        1 => any::<bool>().prop_map(Event::Pause),
        2 => prop_oneof![Just(10u8), Just(50), Just(100)].prop_map(Event::Promote),
        1 => prop_oneof![Just(0u8), Just(10), Just(50), Just(100)].prop_map(Event::Foreign),
    ]
}

fn side(green: bool) -> Side {
    if green { Side::Green } else { Side::Blue }
}

/// Rounds of the leader's looks and acts, with something in between now and then: courses that get somewhere.
fn course() -> impl Strategy<Value = Vec<Event>> {
    let slowly = || prop::bool::weighted(0.6);
    let other = || prop::bool::weighted(0.25).prop_map(usize::from);
    let round = (
        prop::option::weighted(0.35, event()),
        (other(), other()),
        0i64..3,
        (slowly(), slowly()),
    );
    prop::collection::vec(round, 0..200).prop_map(|rounds| {
        let mut events = vec![Event::Promote(100)];
        for (more, (looks, acts), pass, (blue, green)) in rounds {
            events.extend([Event::Look(looks), Event::Act(acts), Event::Pass(pass)]);
            events.extend(blue.then_some(Event::Controllers(Side::Blue)));
            events.extend(green.then_some(Event::Controllers(Side::Green)));
            events.extend(more);
        }
        events
    })
}

fn plan() -> impl Strategy<Value = Plan> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(hand_over, freeze, back_when_blue_lost, approval)| Plan {
            hand_over,
            freeze,
            back_when_blue_lost,
            approval,
        },
    )
}

fn run(plan: Plan, events: &[Event], broken: Broken) -> Result<World, TestCaseError> {
    let mut world = World::new(plan, broken);
    for event in events {
        world.happen(event)?;
        world.check()?;
    }
    Ok(world)
}

fn run_to_the_end(plan: Plan, events: &[Event], broken: Broken) -> Result<World, TestCaseError> {
    let mut world = run(plan, events, broken)?;
    world.calm()?;
    world.settled()?;
    Ok(world)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    /// Whatever dies, is away, fails or is decided anew: no weight outside the plan is set, what runs once never runs
    /// twice, no freeze outlives its end, nothing goes forward after back; and once the faults stop it ends, with all
    /// at one side.
    #[test]
    fn it_ends_on_one_side_and_breaks_nothing_on_the_way(plan in plan(), events in course()) {
        run_to_the_end(plan, &events, Broken::Nothing)?;
    }
}

const ALL: Plan = Plan {
    hand_over: true,
    freeze: true,
    back_when_blue_lost: false,
    approval: false,
};

#[test]
fn without_faults_green_gets_all() {
    let world = run_to_the_end(ALL, &[], Broken::Nothing).unwrap();
    assert_eq!(world.stage(), Stage::Completed);
    assert_eq!(world.set_so_far(), [10, 50, 100]);
}

#[test]
fn a_gate_that_fails_on_the_way_takes_all_back() {
    let mut events: Vec<Event> = (0..25)
        .flat_map(|_| [Event::Look(0), Event::Act(0), Event::Pass(1)])
        .collect();
    events.push(Event::Gate(false));
    let mut world = run(ALL, &events, Broken::Nothing).unwrap();
    assert!(matches!(world.stage(), Stage::Step(_)), "{:?}", world.stage());
    for _ in 0..30 {
        for event in [Event::Look(0), Event::Act(0), Event::Pass(1)] {
            world.happen(&event).unwrap();
        }
    }
    assert_eq!(world.stage(), Stage::RolledBack);
    assert_eq!(world.set_so_far().last(), Some(&0));
}

/// Random courses of the fullest plan.
fn courses() -> impl Iterator<Item = Vec<Event>> {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::{Config, TestRunner};
    let mut runner = TestRunner::new(Config::default());
    std::iter::repeat_with(move || course().new_tree(&mut runner).unwrap().current())
}

/// The properties can fail: each rule taken out is found by some course of events.
#[test]
fn every_rule_is_needed() {
    for broken in Broken::TAKEN_OUT {
        let found = courses()
            .take(6000)
            .any(|events| run_to_the_end(ALL, &events, broken).is_err());
        assert!(found, "{broken:?} was not noticed");
    }
}

/// One course in which an operator is about to start what runs once in green, hangs, and another goes back meanwhile.
fn started_too_late(broken: Broken) -> Result<(), TestCaseError> {
    let mut world = World::new(ALL, broken);
    let go_on = |world: &mut World| {
        for event in [Event::Look(0), Event::Act(0)] {
            world.happen(&event)?;
            world.check()?;
        }
        Ok::<(), TestCaseError>(())
    };
    let mut first = None;
    for _ in 0..200 {
        world.happen(&Event::Look(1))?;
        if world.second_is_about_to(&Act::Start(Side::Green)) {
            first = Some(());
            break;
        }
        go_on(&mut world)?;
        world.happen(&Event::Controllers(Side::Blue))?;
        world.happen(&Event::Pass(1))?;
    }
    prop_assume!(first.is_some());
    world.happen(&Event::Abort)?;
    for _ in 0..12 {
        go_on(&mut world)?;
        world.happen(&Event::Controllers(Side::Blue))?;
    }
    world.happen(&Event::Act(1))?;
    world.happen(&Event::Controllers(Side::Green))?;
    world.check()
}

#[test]
fn the_fence_is_needed() {
    started_too_late(Broken::Nothing).unwrap();
    assert!(matches!(
        started_too_late(Broken::NoFence),
        Err(TestCaseError::Fail(_))
    ));
}

/// One course in which an operator is about to set a weight, hangs, and another goes back and calls that an end.
fn set_too_late(broken: Broken) -> Result<(), TestCaseError> {
    let mut world = World::new(ALL, broken);
    for event in [Event::Look(0), Event::Act(0), Event::Pass(1)]
        .iter()
        .cycle()
        .take(60)
    {
        world.happen(event)?;
        world.happen(&Event::Look(1))?;
        if world.second_is_about_to(&Act::Set(10)) {
            break;
        }
    }
    assert!(world.second_is_about_to(&Act::Set(10)), "{:?}", world.stage());
    world.happen(&Event::Abort)?;
    for event in [Event::Look(0), Event::Act(0), Event::Pass(1)]
        .iter()
        .cycle()
        .take(60)
    {
        world.happen(event)?;
        if world.stage().is_end() {
            break;
        }
    }
    world.happen(&Event::Act(1))?;
    world.settled()
}

#[test]
fn an_end_waits_for_what_may_be_on_its_way() {
    set_too_late(Broken::Nothing).unwrap();
    assert!(set_too_late(Broken::EndsAtOnce).is_err());
}

/// The courses are no walks on the spot: each end is met, and each stage is one that a fault meets.
#[test]
fn the_courses_come_to_every_stage() {
    let mut met: BTreeMap<String, u32> = BTreeMap::new();
    for events in courses().take(400) {
        let world = run(ALL, &events, Broken::Nothing).unwrap();
        *met.entry(format!("{:?}", world.stage())).or_default() += 1;
    }
    for stage in [
        "Checking",
        "Step(0)",
        "Step(1)",
        "HandingOver",
        "Step(2)",
        "Window",
        "Completed",
        "Back",
        "RolledBack",
    ] {
        assert!(met.get(stage).is_some_and(|n| *n >= 2), "{stage}: {met:?}");
    }
}
