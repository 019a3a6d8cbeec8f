//! Two clusters, two sources of traffic, a memory with a version, and two operators.

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use crate::cutover::*;

/// Seconds that a freeze may last.
const FREEZE: i64 = 40;
/// Seconds until the last client heeds what was set.
const SETTLES: i64 = 2;
/// Seconds after which an operator that has not renewed its lease does nothing more.
const LEASE: i64 = 4;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

/// What is broken on purpose, to see the properties fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// A cluster that does not answer is taken for one in which nothing runs.
    UnknownIsStopped,
    /// What is ending is taken for stopped.
    EndingIsStopped,
    /// A stop leaves no mark, and a start does not ask whether the object has changed.
    NoFence,
    /// What is written down is done although somebody else has written since.
    WritesOverOthers,
    /// The freeze has no end of its own.
    FreezeWithoutEnd,
    /// The way back ends as soon as all is blue's.
    EndsAtOnce,
    /// A source that does not answer is taken for one that is as it should be.
    UnreadIsAsSet,
    /// What is set is taken for what the last client heeds.
    HeededAtOnce,
}

impl Broken {
    /// Those that random courses find; [`Self::NoFence`] and [`Self::EndsAtOnce`] have courses of their own.
    pub(super) const TAKEN_OUT: [Self; 6] = [
        Self::UnknownIsStopped,
        Self::EndingIsStopped,
        Self::WritesOverOthers,
        Self::FreezeWithoutEnd,
        Self::UnreadIsAsSet,
        Self::HeededAtOnce,
    ];
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) hand_over: bool,
    pub(super) freeze: bool,
    pub(super) back_when_blue_lost: bool,
    pub(super) approval: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// An operator looks; what it sees is old by the time it acts.
    Look(usize),
    /// It does what follows from its last look.
    Act(usize),
    /// Nothing but time.
    Pass(i64),
    /// An operator dies and is started again: what it saw is gone.
    Kill(usize),
    /// A cluster's controllers bring about what its objects say.
    Controllers(Side),
    /// A cluster's API is there or away.
    Cluster(Side, bool),
    /// A source of traffic is there or away.
    Source(usize, bool),
    /// The gate passes or fails from now on.
    Gate(bool),
    Abort,
    Pause(bool),
    Promote(u8),
    /// Somebody else sets the weights.
    Foreign(u8),
}

#[derive(Clone, Debug)]
struct Cluster {
    answers: bool,
    away_since: Option<i64>,
    /// What the object says.
    on: bool,
    version: u64,
    fence: Option<Fence>,
    /// What is there.
    pods: bool,
}

struct Look {
    at: i64,
    memory: Memory,
    version: u64,
    seen: Seen,
    versions: [u64; 2],
    wanted: Wanted,
}

pub(super) struct World {
    now: i64,
    plan: Plan,
    broken: Broken,
    memory: Memory,
    version: u64,
    clusters: [Cluster; 2],
    sources: [u8; 2],
    answers: [bool; 2],
    gate: Vec<(i64, bool)>,
    gate_passes: bool,
    abort: bool,
    paused: bool,
    promoted: u8,
    ready: Option<i64>,
    freeze: Option<i64>,
    freeze_began: Option<i64>,
    /// When blue first took writes again after that.
    let_through: Option<i64>,
    /// From when on all clients are green's.
    all_greens: Option<i64>,
    looks: [Option<Look>; 2],
    set: Vec<u8>,
}

const fn index(side: Side) -> usize {
    match side {
        Side::Blue => 0,
        Side::Green => 1,
    }
}

impl World {
    pub(super) fn new(plan: Plan, broken: Broken) -> Self {
        let cluster = |on| Cluster {
            answers: true,
            away_since: None,
            on,
            version: 1,
            fence: None,
            pods: on,
        };
        Self {
            now: 0,
            plan,
            broken,
            memory: Memory::new(at(0)),
            version: 1,
            clusters: [cluster(true), cluster(false)],
            sources: [0, 0],
            answers: [true, true],
            gate: vec![],
            gate_passes: true,
            abort: false,
            paused: false,
            promoted: 0,
            ready: None,
            freeze: None,
            freeze_began: None,
            let_through: None,
            all_greens: None,
            looks: [None, None],
            set: vec![],
        }
    }

    pub(super) const fn stage(&self) -> Stage {
        self.memory.stage
    }

    pub(super) fn set_so_far(&self) -> Vec<u8> {
        let mut all = self.set.clone();
        all.dedup();
        all
    }

    /// Whether this is what the second operator's last look leads to.
    pub(super) fn second_is_about_to(&self, act: &Act) -> bool {
        self.looks[1]
            .as_ref()
            .is_some_and(|look| decide(&look.memory, &look.wanted, &look.seen, at(self.now)) == *act)
    }

    fn wanted(&self) -> Wanted {
        let step = |green, soak| Step {
            green,
            soak: TimeDelta::seconds(soak),
            approval: self.plan.approval,
        };
        Wanted {
            steps: vec![step(10, 8), step(50, 20), step(100, 10)],
            promoted: self.promoted,
            paused: self.paused,
            abort: self.abort,
            budget: Budget {
                failed_requests: Some(200),
                failing_seconds: None,
            },
            window: TimeDelta::seconds(30),
            takes: TimeDelta::seconds(60),
            settles: TimeDelta::seconds(if self.broken == Broken::HeededAtOnce {
                0
            } else {
                SETTLES
            }),
            lost_after: TimeDelta::seconds(20),
            blue_lost: if self.plan.back_when_blue_lost {
                WhenLost::GoBack
            } else {
                WhenLost::Hold
            },
            green_lost: WhenLost::GoBack,
            hand_over: self.plan.hand_over,
            hand_over_limit: TimeDelta::seconds(300),
            freeze: self.plan.freeze.then(|| TimeDelta::seconds(FREEZE)),
        }
    }

    fn duty(&self, side: Side) -> Duty {
        let cluster = &self.clusters[index(side)];
        match (cluster.answers, cluster.on, cluster.pods) {
            (false, ..) if self.broken == Broken::UnknownIsStopped => {
                Duty::Stopped(Some(match self.memory.stage {
                    Stage::Back => Fence::Back,
                    _ => Fence::Forward,
                }))
            }
            (false, ..) => Duty::Unknown(format!("{side} is away")),
            (_, true, true) => Duty::Running,
            (_, true, false) => Duty::Starting,
            (_, false, true) if self.broken != Broken::EndingIsStopped => Duty::Stopping,
            (_, false, _) => Duty::Stopped(if self.broken == Broken::NoFence {
                Some(match self.memory.stage {
                    Stage::Back => Fence::Back,
                    _ => Fence::Forward,
                })
            } else {
                cluster.fence
            }),
        }
    }

    /// Rounds one after the other up to now, since a moment.
    fn in_a_row(&self, passed: bool, since: DateTime<Utc>) -> u32 {
        let of_now = self.gate.iter().rev().take_while(|(_, p)| *p == passed);
        let counted = of_now.take_while(|(t, _)| at(*t) >= since).count();
        u32::try_from(counted).unwrap_or(u32::MAX)
    }

    fn look(&self) -> Look {
        let should = share(self.memory.stage, &self.wanted());
        let weights = match self.answers {
            [true, true] => Weights::Known(self.sources.to_vec()),
            _ if self.broken == Broken::UnreadIsAsSet => Weights::Known(vec![should]),
            _ => Weights::Unknown("a source is away".to_owned()),
        };
        let since = self.memory.since;
        let gate = Gate {
            name: "g".to_owned(),
            passes: self.in_a_row(true, self.memory.reached.unwrap_or(since)),
            passes_wanted: 3,
            failures: self.in_a_row(false, since),
            failures_limit: 3,
            message: String::new(),
        };
        let lost = |side| {
            let cluster: &Cluster = &self.clusters[index(side)];
            cluster.away_since.map(at)
        };
        let blue_answers = self.clusters[0].answers;
        let failed = self.gate.iter().filter(|(_, passed)| !passed).count();
        Look {
            at: self.now,
            memory: self.memory.clone(),
            version: self.version,
            seen: Seen {
                weights,
                obstacles: vec![],
                ready_at: self.ready.map(at),
                gates: vec![gate],
                blue_lost: lost(Side::Blue),
                green_lost: lost(Side::Green),
                blue: self.duty(Side::Blue),
                green: self.duty(Side::Green),
                frozen: blue_answers.then_some(self.freeze.is_some()),
                spent: Spent {
                    failed_requests: u64::try_from(failed).unwrap(),
                    failing_seconds: 0,
                },
            },
            versions: [self.clusters[0].version, self.clusters[1].version],
            wanted: self.wanted(),
        }
    }

    pub(super) fn happen(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Look(who) => self.looks[*who] = Some(self.look()),
            Event::Act(who) => {
                if let Some(look) = self.looks[*who].take() {
                    self.act(&look)?;
                }
            }
            Event::Pass(seconds) => {
                for _ in 0..*seconds {
                    self.now += 1;
                    if self.freeze_began.is_some() && !self.is_frozen() {
                        self.let_through.get_or_insert(self.now);
                    }
                    self.gate.push((self.now, self.gate_passes));
                }
            }
            Event::Kill(who) => self.looks[*who] = None,
            Event::Controllers(side) => {
                let cluster = &mut self.clusters[index(*side)];
                cluster.pods = cluster.on;
            }
            Event::Cluster(side, up) => {
                let now = self.now;
                let cluster = &mut self.clusters[index(*side)];
                cluster.answers = *up;
                cluster.away_since = if *up {
                    None
                } else {
                    cluster.away_since.or(Some(now))
                };
            }
            Event::Source(i, up) => self.answers[*i] = *up,
            Event::Gate(passes) => self.gate_passes = *passes,
            Event::Abort => self.abort = true,
            Event::Pause(paused) => self.paused = *paused,
            Event::Promote(to) => self.promoted = self.promoted.max(*to),
            // A foreign hand after the end is nobody's business here, and one between a look and an act is nobody's
            // to know.
            Event::Foreign(to) if !self.memory.stage.is_end() && self.answers[0] => {
                self.sources[0] = *to;
                self.looks = [None, None];
            }
            Event::Foreign(_) => {}
        }
        Ok(())
    }

    fn act(&mut self, look: &Look) -> Result<(), TestCaseError> {
        if self.now - look.at >= LEASE {
            return Ok(());
        }
        let mut act = decide(&look.memory, &look.wanted, &look.seen, at(self.now));
        if self.broken == Broken::EndsAtOnce
            && matches!(&act, Act::Wait(held) if held.reason == Reason::RollingBack)
        {
            act = Act::Mark(look.memory.at(Stage::RolledBack, at(self.now)));
        }
        match act {
            Act::Wait(_) => {}
            Act::Mark(next) => {
                if look.version == self.version || self.broken == Broken::WritesOverOthers {
                    self.mark(next)?;
                }
            }
            Act::Prepare => self.ready = Some(self.now + 3),
            Act::Set(green) => {
                self.set.push(green);
                for i in 0..2 {
                    if self.answers[i] {
                        self.sources[i] = green;
                    }
                }
            }
            Act::Stop(side, fence) => self.write(side, false, Some(fence), look),
            Act::Start(side) => self.write(side, true, None, look),
            Act::Freeze(until) => {
                if self.clusters[0].answers {
                    let until = (until - at(0)).num_seconds();
                    self.freeze_began.get_or_insert(self.now);
                    self.freeze = Some(until);
                }
            }
            Act::Thaw => {
                if self.clusters[0].answers {
                    self.freeze = None;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, side: Side, on: bool, fence: Option<Fence>, look: &Look) {
        let cluster = &mut self.clusters[index(side)];
        let unchanged = cluster.version == look.versions[index(side)] || self.broken == Broken::NoFence;
        if cluster.answers && unchanged {
            cluster.on = on;
            cluster.fence = fence.or(cluster.fence).filter(|_| !on);
            cluster.version += 1;
        }
    }

    fn mark(&mut self, next: Memory) -> Result<(), TestCaseError> {
        let (old, new) = (self.memory.stage, next.stage);
        let forward = |stage| match stage {
            Stage::Checking => 0,
            Stage::Step(i) if i < 2 => 1 + i,
            Stage::HandingOver => 3,
            Stage::Step(_) => 4,
            Stage::Window => 5,
            Stage::Back => 6,
            Stage::Completed | Stage::RolledBack => 7,
        };
        prop_assert!(forward(new) >= forward(old), "from {old:?} to {new:?}");
        prop_assert!(
            !old.is_end() || old == new,
            "an end that was none: {old:?} to {new:?}"
        );
        if new == Stage::RolledBack && old == Stage::Back {
            prop_assert_eq!(self.sources, [0, 0], "called rolled back");
        }
        if new == Stage::Step(2) && self.memory.reached.is_none() && next.reached.is_some() {
            self.all_greens = Some(self.now + SETTLES);
        }
        self.memory = next;
        self.version += 1;
        Ok(())
    }

    /// Whether writes to blue are refused now.
    fn is_frozen(&self) -> bool {
        self.freeze
            .is_some_and(|until| self.now < until || self.broken == Broken::FreezeWithoutEnd)
    }

    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        let plan = [0, 10, 50, 100];
        prop_assert!(
            self.set.iter().all(|w| plan.contains(w)),
            "outside the plan: {:?}",
            self.set
        );
        prop_assert!(
            !(self.clusters[0].pods && self.clusters[1].pods),
            "it runs in both clusters"
        );
        if let Some(began) = self.freeze_began {
            prop_assert!(
                !self.is_frozen() || self.now <= began + FREEZE,
                "frozen for {} s",
                self.now - began
            );
        }
        Ok(())
    }

    /// The faults stop, and the leader works until it has ended. Where a person's word is waited for, it is given.
    pub(super) fn calm(&mut self) -> Result<(), TestCaseError> {
        self.answers = [true, true];
        self.gate_passes = true;
        self.paused = false;
        self.promoted = 100;
        for side in [Side::Blue, Side::Green] {
            self.happen(&Event::Cluster(side, true))?;
        }
        for second in 0..400 {
            if self.memory.stage.is_end() {
                // What a predecessor had on its way comes now, or never.
                self.happen(&Event::Act(1))?;
                break;
            }
            if second == 200 {
                self.abort = true;
            }
            // A foreign hand's weights before the beginning are a person's to set right.
            if self.memory.stage == Stage::Checking {
                self.sources = [0, 0];
            }
            for event in [
                Event::Look(0),
                Event::Act(0),
                Event::Controllers(Side::Blue),
                Event::Controllers(Side::Green),
                Event::Pass(1),
            ] {
                self.happen(&event)?;
                self.check()?;
            }
        }
        for side in [Side::Blue, Side::Green] {
            self.happen(&Event::Controllers(side))?;
        }
        self.happen(&Event::Pass(FREEZE + 1))?;
        self.check()
    }

    /// It has ended, and all is at one side.
    pub(super) fn settled(&self) -> Result<(), TestCaseError> {
        let stage = self.memory.stage;
        prop_assert!(stage.is_end(), "it stays at {stage:?}");
        let green = stage == Stage::Completed;
        // Where nothing was ever set, a foreign hand's weights are its own.
        if !self.set.is_empty() {
            prop_assert_eq!(
                self.sources,
                if green { [100, 100] } else { [0, 0] },
                "{:?}",
                stage
            );
        }
        if self.plan.hand_over {
            prop_assert_eq!(self.clusters[0].pods, !green, "{:?}", stage);
            prop_assert_eq!(self.clusters[1].pods, green, "{:?}", stage);
        }
        if green && let Some(let_through) = self.let_through {
            prop_assert!(
                self.all_greens.is_some_and(|all| let_through >= all),
                "blue took writes at {let_through}, and all clients were green's at {:?}",
                self.all_greens
            );
        }
        prop_assert!(!self.is_frozen());
        Ok(())
    }
}
