//! Nodes with journals, disks and kubelets that are played, the restored etcd as one register, and an operator.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use crate::model::NodeName;
use crate::restore::*;

/// Seconds that a node has for each stage.
pub(super) const LIMIT: i64 = 90;

pub(super) fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

pub(super) fn name(i: usize) -> NodeName {
    NodeName::from(format!("cp{i}").as_str())
}

/// What is broken on purpose, to see the properties fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// A node that has signed undoes alone at its deadline.
    UndoesAfterReady,
    /// The decision to keep the new data asks for more than half of the signatures, not for all.
    CommitsWithoutAll,
    /// A node gets ready without waiting until all are up.
    NoBarrier,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
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
pub(super) struct Pod {
    on: bool,
    running: bool,
    /// When the kubelet has brought about what the manifest says.
    settles: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    powered: bool,
    alone: bool,
    skew: i64,
    pub(super) stage: Stage,
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

pub(super) struct World {
    now: i64,
    pub(super) nodes: Vec<Node>,
    register: Register,
    /// The order as it stands in the API.
    word: Word,
    told_to_begin: bool,
    broken: Broken,
}

#[derive(Clone, Debug)]
pub(super) struct Trait {
    pub(super) never: Option<Part>,
    pub(super) skew: i64,
    pub(super) slow: i64,
    pub(super) bad_file: bool,
}

impl World {
    pub(super) fn new(traits: &[Trait], broken: Broken) -> Self {
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
    pub(super) fn pass(&mut self, seconds: i64) {
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

    pub(super) fn operate(&mut self) {
        let stages: Vec<Stage> = self.nodes.iter().map(|n| n.stage).collect();
        match self.word {
            Word::Prepare if stages.iter().all(|s| *s == Stage::Prepared) => self.word = Word::Arm,
            Word::Arm if stages.iter().all(|s| *s == Stage::Armed) => {
                (self.word, self.told_to_begin) = (Word::Go, true);
            }
            _ => {}
        }
    }

    pub(super) fn happen(&mut self, event: &Event) {
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
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
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
    pub(super) fn calm(&mut self) -> Result<(), TestCaseError> {
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

    pub(super) fn settled(&self) -> Result<bool, TestCaseError> {
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
