//! The model cluster: what is so. The planner is shown only what has been reported of it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use strum::IntoEnumIterator as _;

use super::super::{Action, plan};
use crate::model::*;
use crate::report::State;
use crate::skew::{RunningVersions, violations};
use crate::version::KubernetesVersion;

pub(super) const SOURCE: u32 = 35;
pub(super) const TARGET: u32 = 36;

pub(super) fn v(minor: u32) -> KubernetesVersion {
    KubernetesVersion { minor, patch: 0 }
}

/// A backup that no upgrade has taken.
pub(super) const NIGHTLY: &str = "nightly";

/// What may happen between two looks of the operator.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The operator looks, plans and acts.
    Operator,
    /// The operator looks and plans, and is killed before it acts.
    OperatorDies,
    /// Another operator, cut off since the last [`Event::CutOff`], acts on what it saw then.
    StaleOperator,
    CutOff,
    /// An agent does its next thing and reports.
    Agent(usize),
    /// An agent falls silent, or comes back.
    Silence(usize),
    Voice(usize),
    EtcdDown(usize),
    EtcdUp(usize),
    SetVersion(u32),
    Pause(bool),
    /// The snapshot, if one is being taken, fails.
    BackupFails,
    /// A backup that is no upgrade's comes to be there, or goes.
    Nightly(bool),
    /// Whether such a one would do.
    Accept(bool),
    /// Nobody acts for longer than every deadline.
    LongPause,
}

pub(super) fn event(nodes: usize) -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => Just(Event::Operator),
        1 => Just(Event::OperatorDies),
        2 => Just(Event::StaleOperator),
        1 => Just(Event::CutOff),
        12 => (0..nodes).prop_map(Event::Agent),
        1 => (0..nodes).prop_map(Event::Silence),
        2 => (0..nodes).prop_map(Event::Voice),
        1 => (0..nodes).prop_map(Event::EtcdDown),
        3 => (0..nodes).prop_map(Event::EtcdUp),
        1 => prop_oneof![Just(SOURCE), Just(TARGET), Just(TARGET + 1)].prop_map(Event::SetVersion),
        1 => any::<bool>().prop_map(Event::Pause),
        1 => Just(Event::BackupFails),
        1 => any::<bool>().prop_map(Event::Nightly),
        1 => any::<bool>().prop_map(Event::Accept),
        1 => Just(Event::LongPause),
    ]
}

/// What an operator saw.
#[derive(Clone)]
pub(super) struct Sight {
    pub(super) memory: Option<Rollout>,
    pub(super) memory_version: u64,
    pub(super) cluster: Cluster,
    pub(super) spec_versions: BTreeMap<NodeName, u64>,
    pub(super) wanted: Wanted,
}

pub(super) struct Ticket {
    pub(super) number: i64,
    pub(super) changes: Vec<Component>,
    pub(super) to: KubernetesVersion,
    pub(super) forward: bool,
    pub(super) verdict: Verdict,
}

/// What the agent has in its journal.
pub(super) struct Journal {
    pub(super) number: i64,
    pub(super) forward: bool,
    pub(super) state: TicketState,
    pub(super) old: BTreeMap<Component, KubernetesVersion>,
    pub(super) new: BTreeMap<Component, KubernetesVersion>,
    pub(super) since: DateTime<Utc>,
}

pub(super) struct SimNode {
    pub(super) running: BTreeMap<Component, Running>,
    pub(super) ticket: Option<Ticket>,
    pub(super) voided: i64,
    pub(super) spec_version: u64,
    pub(super) journal: Option<Journal>,
    pub(super) silent: bool,
    pub(super) etcd_up: bool,
    pub(super) reported: Node,
}

impl SimNode {
    pub(super) fn last_number(&self) -> i64 {
        self.ticket.as_ref().map_or(0, |t| t.number).max(self.voided)
    }
}

pub(super) struct World {
    pub(super) nodes: BTreeMap<NodeName, SimNode>,
    pub(super) memory: Option<Rollout>,
    pub(super) memory_version: u64,
    pub(super) rollouts: u32,
    pub(super) backups: BTreeMap<String, Backup>,
    /// The next backup that is taken fails.
    pub(super) backup_fails: bool,
    /// Those that were seen proven at some moment, the deleted ones too.
    pub(super) proven: BTreeSet<String>,
    pub(super) wanted: Wanted,
    pub(super) now: DateTime<Utc>,
    pub(super) gates: Count,
    pub(super) kubeadm_config: KubernetesVersion,
    /// (node, component) pairs that never get ready on a version.
    pub(super) broken: BTreeSet<(NodeName, Component, KubernetesVersion)>,
    pub(super) cut_off: Option<Sight>,
    /// The most a test saw happen, so that it can be told from one in which nothing did.
    pub(super) changes: usize,
}

impl World {
    pub(super) fn new(n: usize, broken: &[(usize, usize)]) -> Self {
        let template = crate::model::tests::cluster(n, SOURCE);
        let names: Vec<NodeName> = template.nodes.keys().cloned().collect();
        let component = |i: usize| Component::iter().nth(i % 3).unwrap();
        Self {
            broken: broken
                .iter()
                .filter_map(|(node, c)| Some((names.get(*node)?.clone(), component(*c), v(TARGET))))
                .collect(),
            nodes: template
                .nodes
                .into_iter()
                .map(|(name, node)| {
                    let sim = SimNode {
                        running: node.components.clone(),
                        ticket: None,
                        voided: 0,
                        spec_version: 0,
                        journal: None,
                        silent: false,
                        etcd_up: true,
                        reported: node,
                    };
                    (name, sim)
                })
                .collect(),
            memory: None,
            memory_version: 0,
            rollouts: 0,
            backups: BTreeMap::new(),
            backup_fails: false,
            proven: BTreeSet::new(),
            wanted: wanted(),
            now: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
            gates: Count::default(),
            kubeadm_config: v(SOURCE),
            cut_off: None,
            changes: 0,
        }
    }

    pub(super) fn name(&self, i: usize) -> NodeName {
        self.nodes.keys().nth(i).unwrap().clone()
    }

    pub(super) fn api_away(&self) -> bool {
        !self
            .nodes
            .values()
            .any(|n| n.running[&Component::KubeApiserver].ready)
    }

    pub(super) fn sight(&self) -> Sight {
        let backup = self
            .memory
            .as_ref()
            .and_then(|m| self.backups.get(&m.backup_name()).cloned());
        let nodes: BTreeMap<NodeName, Node> = self
            .nodes
            .iter()
            .map(|(name, n)| {
                let mut seen = n.reported.clone();
                seen.stale = n.silent.then(|| "no report".to_owned());
                seen.last_number = n.last_number();
                seen.ticket = n.ticket.as_ref().map(|t| {
                    let told = n.reported.ticket.as_ref().filter(|r| r.number == t.number);
                    TicketView {
                        number: t.number,
                        verdict: t.verdict,
                        state: told.and_then(|r| r.state),
                        message: told.map(|r| r.message.clone()).unwrap_or_default(),
                    }
                });
                (name.clone(), seen)
            })
            .collect();
        let node_gates = self
            .nodes
            .keys()
            .map(|n| (n.clone(), self.gates.clone()))
            .collect();
        Sight {
            memory: self.memory.clone(),
            memory_version: self.memory_version,
            spec_versions: self
                .nodes
                .iter()
                .map(|(n, s)| (n.clone(), s.spec_version))
                .collect(),
            wanted: self.wanted.clone(),
            cluster: Cluster {
                kubelets: self
                    .nodes
                    .keys()
                    .map(|n| (n.clone(), Seen::Known(v(SOURCE))))
                    .collect(),
                nodes,
                gates: self.gates.clone(),
                node_gates,
                backup: backup.unwrap_or(Backup::Absent),
                acceptable: self.backups.contains_key(NIGHTLY).then(|| NIGHTLY.to_owned()),
                kubeadm_config: Seen::Known(self.kubeadm_config),
                warnings: vec![],
                restoring: None,
            },
        }
    }

    /// Plans on a sight and applies the action by compare-and-swap, as the operator does.
    pub(super) fn act(&mut self, sight: &Sight, apply: bool) {
        let (action, report) = plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, self.now);
        if action == Action::Nothing {
            let fulfilled = report.state == State::Idle;
            assert!(
                fulfilled || report.held.is_some(),
                "nothing moves and nothing says why: {report:?}"
            );
        }
        if !apply || self.api_away() {
            return;
        }
        let fresh_memory = sight.memory_version == self.memory_version;
        if Rollout::is_changed_by(&action) || matches!(action, Action::Begin { .. } | Action::Forget) {
            if !fresh_memory {
                return;
            }
            self.memory_version += 1;
            self.memory = match &action {
                Action::Begin {
                    source,
                    target,
                    order,
                } => {
                    self.rollouts += 1;
                    Some(Rollout::begun(
                        format!("r{}", self.rollouts),
                        *source,
                        *target,
                        order.clone(),
                        sight.wanted.retry,
                    ))
                }
                Action::Forget => None,
                _ => sight.memory.as_ref().map(|m| m.after(&action, self.now)),
            };
            if matches!(action, Action::AskPreflight) {
                self.answer_preflight();
            }
            return;
        }
        let swap = |node: &mut SimNode, name: &NodeName| {
            let fresh = sight.spec_versions[name] == node.spec_version;
            node.spec_version += u64::from(fresh);
            fresh
        };
        match action {
            Action::TakeSnapshot { name } => {
                self.backups
                    .entry(name)
                    .or_insert_with(|| Backup::Running("streaming".into()));
            }
            Action::Issue { number, step } => {
                check_issue(sight, &step.node);
                let node = self.nodes.get_mut(&step.node).unwrap();
                // As the operator does it: read anew, refused when the number is used up.
                if node.last_number() < number {
                    node.spec_version += 1;
                    let forward = sight.memory.as_ref().unwrap().in_hand.as_ref().unwrap().forward;
                    let (changes, to) = (step.components, step.version);
                    node.ticket = Some(Ticket {
                        number,
                        changes,
                        to,
                        forward,
                        verdict: Verdict::Pending,
                    });
                }
            }
            Action::Void(t) => {
                let node = self.nodes.get_mut(&t.node).unwrap();
                if node.last_number() < t.number {
                    node.spec_version += 1;
                    node.voided = t.number;
                }
            }
            Action::Confirm(t) | Action::Withdraw { ticket: t, .. } => {
                let verdict = if matches!(
                    plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, self.now).0,
                    Action::Confirm(_)
                ) {
                    Verdict::Confirmed
                } else {
                    Verdict::Withdrawn
                };
                let node = self.nodes.get_mut(&t.node).unwrap();
                if swap(node, &t.node)
                    && let Some(ticket) = &mut node.ticket
                {
                    assert_eq!(ticket.verdict, Verdict::Pending, "a verdict is never changed");
                    ticket.verdict = verdict;
                }
            }
            Action::WriteKubeadmConfig(version) => self.kubeadm_config = version,
            _ => {}
        }
    }

    pub(super) fn answer_preflight(&mut self) {
        let id = self.memory.as_ref().unwrap().preflight_id;
        for node in self.nodes.values_mut() {
            node.reported.preflight = Some(PreflightView {
                id,
                done: true,
                checks: vec![],
            });
        }
    }

    /// An agent's next thing: what the agent's own state machine does, in the small.
    pub(super) fn agent(&mut self, name: &NodeName) {
        let api_away = self.api_away();
        let (now, broken) = (self.now, self.broken.clone());
        let snapshot = self.memory.as_ref().map(Rollout::backup_name);
        let snapshot = snapshot.is_some_and(|name| self.proven.contains(&name));
        let node = self.nodes.get_mut(name).unwrap();
        let heard = if api_away { None } else { node.ticket.as_ref() };
        let live = node
            .journal
            .as_ref()
            .filter(|j| !j.state.is_end())
            .map(|j| (j.number, j.state));
        let settle = |running: &mut BTreeMap<Component, Running>,
                      to: &BTreeMap<Component, KubernetesVersion>| {
            for (component, version) in to {
                let ready = !broken.contains(&(name.clone(), *component, *version));
                running.insert(
                    *component,
                    Running {
                        version: Some(*version),
                        manifest_version: Some(*version),
                        ready,
                    },
                );
            }
            to.keys().all(|c| running[c].ready)
        };
        match live {
            None => {
                let Some(ticket) = heard else {
                    return self.report(name);
                };
                if ticket.verdict != Verdict::Pending
                    || node.journal.as_ref().is_some_and(|j| j.number >= ticket.number)
                {
                    if node.journal.as_ref().is_none_or(|j| j.number < ticket.number) {
                        node.journal = Some(journal(ticket, node, TicketState::Refused, now));
                    }
                    return self.report(name);
                }
                assert!(
                    snapshot,
                    "invariant 4: a change before the rollout's own snapshot was proven"
                );
                node.journal = Some(journal(ticket, node, TicketState::Applying, now));
                self.changes += 1;
            }
            Some((number, state)) => {
                let verdict = heard.filter(|t| t.number == number).map(|t| t.verdict);
                let journal = node.journal.as_mut().unwrap();
                let late = now - journal.since > TimeDelta::seconds(300);
                let next = match state {
                    TicketState::Applying => {
                        for (component, version) in &journal.new {
                            let running = node.running.get_mut(component).unwrap();
                            running.manifest_version = Some(*version);
                            running.ready = false;
                        }
                        TicketState::Starting
                    }
                    _ if verdict == Some(Verdict::Withdrawn) && state != TicketState::Undoing => {
                        TicketState::Undoing
                    }
                    TicketState::Starting if settle(&mut node.running, &journal.new) => TicketState::Ready,
                    TicketState::Starting if late => TicketState::Undoing,
                    TicketState::Ready if verdict == Some(Verdict::Confirmed) => TicketState::Confirmed,
                    // The way back leads to what is known to be good: it is kept, confirmed or not.
                    TicketState::Ready if late && !journal.forward => TicketState::Confirmed,
                    TicketState::Ready if late => TicketState::Undoing,
                    TicketState::Undoing if settle(&mut node.running, &journal.old) => TicketState::Undone,
                    other => other,
                };
                if next != state {
                    journal.state = next;
                    journal.since = now;
                }
            }
        }
        self.report(name);
    }

    pub(super) fn report(&mut self, name: &NodeName) {
        if self.api_away() {
            return;
        }
        let all_up: Vec<bool> = self.nodes.values().map(|n| n.etcd_up).collect();
        let node = self.nodes.get_mut(name).unwrap();
        if node.silent {
            return;
        }
        node.reported.components = node.running.clone();
        node.reported.ticket = node.journal.as_ref().map(|j| TicketView {
            number: j.number,
            verdict: Verdict::Pending,
            state: Some(j.state),
            message: format!("{:?}", j.state),
        });
        if let Seen::Known(etcd) = &mut node.reported.etcd {
            let quorum = all_up.iter().filter(|up| **up).count() * 2 > all_up.len();
            etcd.unhealthy = (!node.etcd_up || !quorum).then(|| "no linearizable read".to_owned());
        }
    }

    pub(super) fn happen(&mut self, event: &Event) {
        self.now += TimeDelta::seconds(1);
        match event {
            Event::Operator | Event::OperatorDies => {
                self.round_of_gates();
                let sight = self.sight();
                self.act(&sight, matches!(event, Event::Operator));
            }
            Event::CutOff => self.cut_off = Some(self.sight()),
            Event::StaleOperator => {
                if let Some(sight) = self.cut_off.take() {
                    self.act(&sight, true);
                }
            }
            Event::Agent(i) => self.agent(&self.name(*i)),
            Event::Silence(i) | Event::Voice(i) => {
                let name = self.name(*i);
                self.nodes.get_mut(&name).unwrap().silent = matches!(event, Event::Silence(_));
                self.report(&name);
            }
            Event::EtcdDown(i) | Event::EtcdUp(i) => {
                let name = self.name(*i);
                self.nodes.get_mut(&name).unwrap().etcd_up = matches!(event, Event::EtcdUp(_));
                self.report(&name);
            }
            Event::SetVersion(minor) => self.wanted.version = v(*minor),
            Event::Pause(paused) => self.wanted.paused = *paused,
            Event::Nightly(true) => drop(self.backups.insert(NIGHTLY.to_owned(), Backup::Stored)),
            Event::Nightly(false) => drop(self.backups.remove(NIGHTLY)),
            Event::Accept(accept) => self.wanted.backup_accepted = *accept,
            Event::BackupFails => self.backup_fails = true,
            Event::LongPause => self.now += TimeDelta::seconds(1000),
        }
        self.end_backups();
        let stored = self.backups.iter().filter(|(_, b)| **b == Backup::Stored);
        self.proven.extend(stored.map(|(name, _)| name.clone()));
        self.check();
    }

    fn end_backups(&mut self) {
        for backup in self.backups.values_mut() {
            if !matches!(backup, Backup::Running(_)) {
                continue;
            }
            *backup = if std::mem::take(&mut self.backup_fails) {
                Backup::Failed("cut".into())
            } else {
                Backup::Stored
            };
        }
    }

    pub(super) fn round_of_gates(&mut self) {
        let good = self
            .nodes
            .values()
            .all(|n| n.etcd_up && n.running.values().all(|r| r.ready));
        self.gates = if good {
            Count {
                passes: self.gates.passes + 1,
                ..Count::default()
            }
        } else {
            Count {
                passes: 0,
                failures: self.gates.failures + 1,
                failing: Some("a server is not ready".into()),
            }
        };
    }

    /// The invariants that hold at every moment, in the world as it is.
    pub(super) fn check(&self) {
        let disturbed = |n: &&SimNode| {
            n.journal.as_ref().is_some_and(|j| {
                !j.state.is_end() && j.state != TicketState::Ready || n.running.values().any(|r| !r.ready)
            })
        };
        let count = self.nodes.values().filter(disturbed).count();
        assert!(count <= 1, "invariant 1: {count} nodes are disturbed at once");
        let live = self
            .nodes
            .values()
            .filter(|n| n.journal.as_ref().is_some_and(|j| !j.state.is_end()))
            .count();
        assert!(live <= 1, "invariant 1: {live} tickets are live at once");
        let mut truth = self.sight().cluster;
        for (name, node) in &self.nodes {
            truth.nodes.get_mut(name).unwrap().components = node.running.clone();
        }
        let found = violations(&RunningVersions::of(&truth));
        assert!(found.is_empty(), "invariant 3: {found:?}");
    }

    pub(super) fn all_at(&self, minor: u32) -> bool {
        self.nodes
            .values()
            .all(|n| n.running.values().all(|r| r.is_at(v(minor)) && r.ready))
    }

    /// No more faults: everyone does their part until nothing changes any more.
    pub(super) fn calm(&mut self) -> (Action, crate::report::Report) {
        for i in 0..self.nodes.len() {
            self.happen(&Event::EtcdUp(i));
            self.happen(&Event::Voice(i));
        }
        self.wanted.paused = false;
        if self.memory.as_ref().is_some_and(|m| m.accepted.is_some()) {
            // Deleted on the way, it holds an upgrade up until a person decides; here they bring it back.
            self.happen(&Event::Nightly(true));
        }
        let mut quiet = 0;
        for _ in 0..400 {
            for i in 0..self.nodes.len() {
                self.happen(&Event::Agent(i));
            }
            self.happen(&Event::Operator);
            // Broken components need the deadline to pass; preflight its back-off.
            self.now += TimeDelta::seconds(20);
            let sight = self.sight();
            let (_, report) = plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, self.now);
            let over = matches!(
                report.state,
                State::Idle | State::RolledBack | State::Failed | State::Blocked
            );
            quiet = if over { quiet + 1 } else { 0 };
            if quiet > 5 {
                break;
            }
        }
        let sight = self.sight();
        plan(&sight.wanted, sight.memory.as_ref(), &sight.cluster, self.now)
    }
}

/// Written apart from the planner: what must be so in the sight on which a ticket is issued.
pub(super) fn check_issue(sight: &Sight, node: &NodeName) {
    let memory = sight.memory.as_ref().unwrap();
    assert_eq!(
        memory.in_hand.as_ref().map(|t| &t.node),
        Some(node),
        "only the reserved ticket is issued"
    );
    if memory.in_hand.as_ref().is_some_and(|t| t.forward) {
        let proven = sight.cluster.backup == Backup::Stored;
        assert!(proven, "invariant 4: a step forward without a proven snapshot");
    }
    for (name, seen) in &sight.cluster.nodes {
        assert_eq!(
            seen.stale, None,
            "invariant 6: a step on a stale report of {name}"
        );
        let Seen::Known(etcd) = &seen.etcd else {
            panic!("etcd on {name} is unknown")
        };
        assert_eq!(
            etcd.unhealthy, None,
            "invariant 2: a step while the member on {name} is unhealthy"
        );
    }
}

pub(super) fn journal(ticket: &Ticket, node: &SimNode, state: TicketState, since: DateTime<Utc>) -> Journal {
    Journal {
        number: ticket.number,
        forward: ticket.forward,
        state,
        old: ticket
            .changes
            .iter()
            .map(|c| (*c, node.running[c].version.unwrap()))
            .collect(),
        new: ticket.changes.iter().map(|c| (*c, ticket.to)).collect(),
        since,
    }
}

pub(super) fn wanted() -> Wanted {
    Wanted {
        version: v(TARGET),
        mode: Mode::Apply,
        paused: false,
        retry: 0,
        backup_required: true,
        backup_possible: true,
        backup_accepted: false,
        rollback_automatic: true,
        gate_passes: 1,
        gate_failures: 5,
        deleting: false,
    }
}
