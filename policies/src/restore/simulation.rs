//! The rules as properties: nodes with journals, disks and kubelets that are played, an operator whose word may
//! come to some nodes only, and crashes, power cuts, partitions, clocks apart and things that never start.
//!
//! The restored etcd is one register that answers whoever runs it on the new data together with more than half of
//! all members, which is what raft gives; who takes the new data away never comes back to it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use super::*;

/// Seconds that a node has for each stage.
const LIMIT: i64 = 90;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

fn name(i: usize) -> NodeName {
    NodeName::from(format!("cp{i}").as_str())
}

/// What is broken on purpose, to see the properties fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A node that has signed undoes alone at its deadline.
    UndoesAfterReady,
    /// The decision to keep the new data asks for more than half of the signatures, not for all.
    CommitsWithoutAll,
    /// A node gets ready without waiting until all are up.
    NoBarrier,
}

#[derive(Clone, Debug)]
enum Event {
    /// The node looks; what it sees is old by the time it acts.
    Look(usize),
    /// The node does what follows from its last look.
    Act(usize),
    /// Nothing but time.
    Pass(i64),
    /// The node's power is cut; it comes back by [`Event::Boot`].
    Cut(usize),
    Boot(usize),
    /// The agent is killed and started again: what it saw is gone.
    Kill(usize),
    /// Node `i` is alone on the network, or among the others again.
    Part(usize, bool),
    /// Somebody sets a node's clock.
    Clock(usize, i64),
    /// The operator does its next thing.
    Operator,
    /// A person takes the order back, if nobody was told to begin.
    Withdraw,
}

#[derive(Clone, Debug)]
struct Pod {
    on: bool,
    running: bool,
    /// When the kubelet has brought about what the manifest says.
    settles: i64,
}

#[derive(Clone, Debug)]
struct Node {
    powered: bool,
    alone: bool,
    skew: i64,
    stage: Stage,
    deadline: DateTime<Utc>,
    live: Live,
    word: Word,
    pods: BTreeMap<Part, Pod>,
    seen: Option<Seen>,
    preparation: Preparation,
    /// What never comes up on the new data.
    never: Option<Part>,
    slow: i64,
}

struct World {
    now: i64,
    nodes: Vec<Node>,
    register: Register,
    /// The order as it stands in the API.
    word: Word,
    told_to_begin: bool,
    broken: Broken,
}

#[derive(Clone, Debug)]
struct Trait {
    never: Option<Part>,
    skew: i64,
    slow: i64,
    bad_file: bool,
}

impl World {
    fn new(traits: &[Trait], broken: Broken) -> Self {
        let nodes = traits.iter().map(|t| Node {
            powered: true,
            alone: false,
            skew: t.skew,
            stage: Stage::Preparing,
            deadline: at(t.skew + LIMIT),
            live: Live::Old,
            word: Word::Prepare,
            pods: Part::ALL
                .into_iter()
                .map(|p| {
                    (
                        p,
                        Pod {
                            on: true,
                            running: true,
                            settles: 0,
                        },
                    )
                })
                .collect(),
            seen: None,
            preparation: if t.bad_file {
                Preparation::Failed("a bad file".to_owned())
            } else {
                Preparation::Ready
            },
            never: t.never,
            slow: t.slow,
        });
        Self {
            now: 0,
            nodes: nodes.collect(),
            register: Register::default(),
            word: Word::Prepare,
            told_to_begin: false,
            broken,
        }
    }

    fn all(&self) -> BTreeSet<NodeName> {
        (0..self.nodes.len()).map(name).collect()
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        a == b || !(self.nodes[a].alone || self.nodes[b].alone)
    }

    /// Whether this node's etcd runs, and on which data.
    fn etcd(&self, i: usize) -> Option<Side> {
        let node = &self.nodes[i];
        if !node.powered || !node.pods[&Part::Etcd].running {
            return None;
        }
        match node.live {
            Live::Old => Some(Side::Old),
            Live::New if node.never != Some(Part::Etcd) => Some(Side::New),
            _ => None,
        }
    }

    fn has_quorum(&self, i: usize, side: Side) -> bool {
        let with = (0..self.nodes.len()).filter(|j| self.reaches(i, *j) && self.etcd(*j) == Some(side));
        self.etcd(i) == Some(side) && with.count() > self.nodes.len() / 2
    }

    /// The kubelets do their work, and the word goes round while an API answers.
    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        for i in 0..self.nodes.len() {
            let (now, node) = (self.now, &mut self.nodes[i]);
            if node.powered {
                for pod in node.pods.values_mut().filter(|p| p.settles <= now) {
                    pod.running = pod.on;
                }
            }
        }
        for i in 0..self.nodes.len() {
            let api = (0..self.nodes.len()).any(|j| {
                self.reaches(i, j)
                    && self.has_quorum(j, Side::Old)
                    && self.nodes[j].powered
                    && self.nodes[j].pods[&Part::KubeApiserver].running
            });
            if self.nodes[i].powered {
                self.nodes[i].word = if api { self.word } else { Word::Unknown };
            }
        }
    }

    fn see(&self, i: usize) -> Seen {
        let node = &self.nodes[i];
        let part = |p: Part| {
            let pod = &node.pods[&p];
            let quorum = match node.live {
                Live::New => self.has_quorum(i, Side::New),
                _ => self.has_quorum(i, Side::Old),
            };
            let broken = node.live == Live::New && node.never == Some(p);
            PartSeen {
                on: pod.on,
                running: Some(pod.running),
                ready: pod.running && quorum && !broken,
            }
        };
        Seen {
            word: node.word,
            preparation: node.preparation.clone(),
            parts: Part::ALL.into_iter().map(|p| (p, part(p))).collect(),
            live: node.live.clone(),
            register: self.has_quorum(i, Side::New).then(|| self.register.clone()),
            old_whole: self.has_quorum(i, Side::Old),
            peers: (0..self.nodes.len())
                .filter(|j| *j != i && self.reaches(i, *j))
                .filter_map(|j| Some((name(j), self.etcd(j)?)))
                .collect(),
        }
    }

    fn decide(&self, i: usize, seen: &Seen) -> Act {
        let (node, me, nodes) = (&self.nodes[i], name(i), self.all());
        let now = at(self.now + node.skew);
        let mut seen = seen.clone();
        match self.broken {
            Broken::UndoesAfterReady if node.stage == Stage::Ready && now >= node.deadline => {
                return Act::Mark(Stage::Undoing, "alone".to_owned());
            }
            Broken::CommitsWithoutAll if node.stage == Stage::Ready => {
                if let Some(register) = seen.register.as_mut().filter(|r| r.ready.len() * 2 > nodes.len()) {
                    register.ready.clone_from(&nodes);
                }
            }
            Broken::NoBarrier if node.stage == Stage::Going => {
                // Nor may it take the others' silence for their going back.
                seen.peers.clear();
                if let Some(register) = seen.register.as_mut().filter(|r| r.up.contains(&me)) {
                    register.up.clone_from(&nodes);
                    register.cleansed = true;
                }
            }
            _ => {}
        }
        let standing = Standing {
            node: &me,
            nodes: &nodes,
            stage: node.stage,
            deadline: node.deadline,
        };
        decide(&standing, &seen, now)
    }

    fn act(&mut self, i: usize) {
        let Some(seen) = self.nodes[i].seen.take() else {
            return;
        };
        let act = self.decide(i, &seen);
        let quorum = self.has_quorum(i, Side::New);
        let settles = self.now + self.nodes[i].slow;
        let (all, now) = (self.all(), self.now);
        let node = &mut self.nodes[i];
        match act {
            Act::Wait(_) => {}
            Act::Mark(stage, _) => {
                node.stage = stage;
                node.deadline = at(now + node.skew + LIMIT);
            }
            Act::TakeOff(part) => {
                let pod = node.pods.get_mut(&part).unwrap();
                (pod.on, pod.settles) = (false, settles);
            }
            Act::PutOn(part) => {
                let pod = node.pods.get_mut(&part).unwrap();
                (pod.on, pod.settles) = (true, settles);
            }
            Act::SwapIn | Act::SwapOut => {
                assert!(
                    !node.pods[&Part::Etcd].running,
                    "data exchanged under a running etcd"
                );
                let goal = if act == Act::SwapIn { Live::New } else { Live::Old };
                // Two renames: one is seen between.
                node.live = match node.live {
                    Live::Old | Live::New => Live::Neither,
                    _ => goal,
                };
            }
            Act::SignUp if quorum => {
                self.register.up.insert(name(i));
            }
            Act::Cleanse if quorum => self.register.cleansed = true,
            Act::SignReady if quorum && self.register.decision.is_none() => {
                self.register.ready.insert(name(i));
            }
            Act::Propose(decision) if quorum && self.register.decision.is_none() => {
                let complete = self.register.ready == all || self.broken == Broken::CommitsWithoutAll;
                if decision == Decision::Undo || complete {
                    self.register.decision = Some(decision);
                }
            }
            _ => {}
        }
    }

    fn operate(&mut self) {
        let stages: Vec<Stage> = self.nodes.iter().map(|n| n.stage).collect();
        match self.word {
            Word::Prepare if stages.iter().all(|s| *s == Stage::Prepared) => self.word = Word::Arm,
            Word::Arm if stages.iter().all(|s| *s == Stage::Armed) => {
                (self.word, self.told_to_begin) = (Word::Go, true);
            }
            _ => {}
        }
    }

    fn happen(&mut self, event: &Event) {
        let n = self.nodes.len();
        match *event {
            Event::Look(i) if i < n && self.nodes[i].powered => self.nodes[i].seen = Some(self.see(i)),
            Event::Act(i) if i < n && self.nodes[i].powered => self.act(i),
            Event::Cut(i) if i < n => {
                self.nodes[i].powered = false;
                self.nodes[i].seen = None;
                for pod in self.nodes[i].pods.values_mut() {
                    pod.running = false;
                }
            }
            Event::Boot(i) if i < n && !self.nodes[i].powered => {
                self.nodes[i].powered = true;
                for pod in self.nodes[i].pods.values_mut() {
                    pod.running = pod.on;
                }
            }
            Event::Kill(i) if i < n => self.nodes[i].seen = None,
            Event::Part(i, alone) if i < n => self.nodes[i].alone = alone,
            Event::Clock(i, skew) if i < n => self.nodes[i].skew = skew,
            Event::Operator => self.operate(),
            Event::Withdraw if !self.told_to_begin => self.word = Word::Withdrawn,
            Event::Pass(seconds) => self.pass(seconds),
            _ => {}
        }
    }

    /// What holds at every moment.
    fn check(&self) -> Result<(), TestCaseError> {
        let kept = |n: &Node| matches!(n.stage, Stage::Committed | Stage::Done);
        let back = |n: &Node| matches!(n.stage, Stage::Undoing | Stage::Undone | Stage::Dropped);
        prop_assert!(
            !(self.nodes.iter().any(kept) && self.nodes.iter().any(back)),
            "one node keeps the new data, another the old"
        );
        for node in &self.nodes {
            let untouched = matches!(node.stage, Stage::Preparing | Stage::Prepared | Stage::Armed);
            if untouched || matches!(node.stage, Stage::Dropped | Stage::Undone) {
                prop_assert_eq!(&node.live, &Live::Old);
                prop_assert!(node.pods.values().all(|p| p.on), "a manifest is away");
            }
            if kept(node) || node.stage == Stage::Ready {
                prop_assert_eq!(&node.live, &Live::New);
            }
        }
        Ok(())
    }

    /// Power, network and agents are back for good.
    fn calm(&mut self) -> Result<(), TestCaseError> {
        for i in 0..self.nodes.len() {
            self.happen(&Event::Boot(i));
            self.nodes[i].alone = false;
        }
        for _ in 0..600 {
            for i in 0..self.nodes.len() {
                self.happen(&Event::Look(i));
                self.happen(&Event::Act(i));
                self.check()?;
            }
            self.pass(1);
            if self.nodes.iter().all(|n| n.stage.is_end()) {
                return Ok(());
            }
            self.operate();
        }
        Ok(())
    }

    fn settled(&self) -> Result<bool, TestCaseError> {
        let stages: Vec<Stage> = self.nodes.iter().map(|n| n.stage).collect();
        prop_assert!(
            stages.iter().all(|s| s.is_end()),
            "not settled: {:?}, register {:?}",
            stages,
            self.register
        );
        for node in &self.nodes {
            prop_assert!(
                node.pods.values().all(|p| p.on),
                "a node is left without a manifest"
            );
        }
        Ok(stages.iter().all(|s| *s == Stage::Done))
    }
}

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
