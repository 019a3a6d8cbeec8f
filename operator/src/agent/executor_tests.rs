//! The real executor on a real directory, a kubelet and an operator that are played, and an agent that is killed or
//! a power that is cut between any two steps of any write.
//!
//! The played kubelet has the real one's way after a boot: until its own node's API server is ready it starts no
//! agent, takes no pod away, and changes a static pod only under the same UID.

use super::*;
use crate::agent::guard::Guard;
use crate::agent::host::power;
use crate::agent::manifest;
use crate::agent::ticket::{ComponentSeen, ExitSeen, FileSeen, NewestSeen, NodeSeen, RunningSeen, decide};
use lockkeeper_crds::{Change, Tristate, Unconfirmed, Verdict};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TARGET: &str = "v1.36.3";

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_763_700_000 + second, 0).unwrap()
}

/// How the target behaves.
#[derive(Clone, Copy, Debug)]
enum Temper {
    Good(i64),
    NeverReady,
    Crashes,
}

#[derive(Clone, Debug)]
struct Tick {
    seconds: i64,
    cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    /// After so many steps of writing.
    steps: u32,
    /// Comes back after so many seconds.
    seconds: i64,
    /// The whole node, not the agent alone.
    power: bool,
}

#[derive(Clone, Debug)]
struct Plan {
    ticks: Vec<Tick>,
    changes: BTreeSet<Component>,
    temper: Temper,
    kubelet_delay: i64,
    verdict: Verdict,
    verdict_at: usize,
    /// Ticks at which the API does not answer.
    away: std::ops::Range<usize>,
    /// The object is deleted at this tick.
    deleted_at: Option<usize>,
    /// Somebody edits this component's manifest at this tick.
    edit: Option<(usize, Component)>,
}

/// A container as the played kubelet runs it.
#[derive(Clone, Debug)]
struct Process {
    hash: String,
    image: String,
    created: i64,
    pod: String,
}

struct World {
    root: tempfile::TempDir,
    host: Host,
    now: i64,
    temper: Temper,
    delay: i64,
    processes: BTreeMap<Component, Process>,
    /// When the kubelet noticed another manifest.
    noticed: BTreeMap<Component, i64>,
    exits: BTreeMap<Component, Vec<ExitSeen>>,
    booted: i64,
    /// The kubelet has got something from an API since the boot.
    synced: bool,
}

/// What the guard gives the kubelet before it looks.
const SETTLE: i64 = 10;

/// A static pod's UID.
fn pod_of(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    let pod: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
    let uid = pod.get("metadata").and_then(|m| m.get("uid")?.as_str());
    uid.map_or_else(|| manifest::hash(bytes), str::to_owned)
}

/// The old manifest, but for a UID.
fn is_bridge(bytes: &[u8]) -> bool {
    let plain = |bytes: &[u8]| {
        let mut pod: serde_yaml::Value = serde_yaml::from_slice(bytes).unwrap();
        let metadata = pod.get_mut("metadata").and_then(|m| m.as_mapping_mut()).unwrap();
        metadata.remove("uid");
        pod
    };
    plain(bytes) == plain(sample(Component::KubeApiserver).as_bytes())
}

fn sample(component: Component) -> &'static str {
    match component {
        Component::KubeApiserver => include_str!("testdata/kube-apiserver.yaml"),
        Component::KubeControllerManager => include_str!("testdata/kube-controller-manager.yaml"),
        Component::KubeScheduler => include_str!("testdata/kube-scheduler.yaml"),
    }
}

fn image(component: Component, tag: &str) -> String {
    format!("registry.k8s.io/{component}:{tag}")
}

impl World {
    fn new(temper: Temper, delay: i64) -> Self {
        // Memory where there is some: what fsync costs is not what is tested.
        let root = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        fs::write(root.path().join("guard.yaml"), "guard").unwrap();
        let mut processes = BTreeMap::new();
        for component in Component::ALL {
            fs::write(host.manifest(component), sample(component)).unwrap();
            processes.insert(
                component,
                Process {
                    hash: manifest::hash(sample(component).as_bytes()),
                    image: image(component, "v1.35.4"),
                    created: -1000,
                    pod: pod_of(sample(component).as_bytes()),
                },
            );
        }
        Self {
            root,
            host,
            now: 0,
            temper,
            delay,
            processes,
            noticed: BTreeMap::new(),
            exits: BTreeMap::new(),
            booted: -1000,
            synced: true,
        }
    }

    /// The node loses its power and gets it back: every static pod is started from what stands there.
    fn reboot(&mut self, seconds: i64) {
        self.now += seconds;
        (self.booted, self.synced) = (self.now, false);
        self.noticed.clear();
        for component in Component::ALL {
            self.start(component, &self.bytes(component));
        }
    }

    fn start(&mut self, component: Component, bytes: &[u8]) {
        let process = Process {
            hash: manifest::hash(bytes),
            image: manifest::parse(Path::new("m"), component, bytes).unwrap().image,
            created: self.now,
            pod: pod_of(bytes),
        };
        self.processes.insert(component, process);
    }

    /// The agent's process begins.
    fn agent(&self) -> Executor {
        Executor::open(self.host.clone(), self.guard())
    }

    fn guard(&self) -> Guard {
        Guard::new(self.host.clone(), Some(self.root.path().join("guard.yaml")))
    }

    fn bytes(&self, component: Component) -> Vec<u8> {
        fs::read(self.host.manifest(component)).expect("a manifest is missing")
    }

    /// Time passes second by second, and the kubelet does its work.
    fn pass(&mut self, seconds: i64) {
        // Nobody writes meanwhile.
        let files = Component::ALL.map(|c| (c, self.bytes(c), manifest::hash(&self.bytes(c))));
        for _ in 0..seconds {
            self.now += 1;
            self.synced |= self.is_ready(Component::KubeApiserver);
            for (component, bytes, hash) in &files {
                self.kubelet(*component, bytes, hash);
            }
        }
    }

    fn kubelet(&mut self, component: Component, bytes: &[u8], hash: &str) {
        let process = &self.processes[&component];
        if process.hash == hash {
            self.noticed.remove(&component);
            let crashing = matches!(self.temper, Temper::Crashes) && process.image.ends_with(TARGET);
            if crashing && self.now - process.created >= 3 {
                let exit = ExitSeen {
                    created_at: at(process.created),
                    code: 1,
                    last_line: String::new(),
                };
                self.exits.entry(component).or_default().push(exit);
                let now = self.now;
                self.processes.get_mut(&component).unwrap().created = now;
            }
            return;
        }
        let since = *self.noticed.entry(component).or_insert(self.now);
        let can_go = self.synced || self.processes[&component].pod == pod_of(bytes);
        if self.now - since >= self.delay && can_go {
            self.start(component, bytes);
        }
    }

    fn is_ready(&self, component: Component) -> bool {
        let process = &self.processes[&component];
        let age = self.now - process.created;
        let is_new = process.image.ends_with(TARGET);
        match self.temper {
            Temper::Good(after) if is_new => age >= after,
            _ if is_new => false,
            _ => age >= 2,
        }
    }

    fn see(&self) -> NodeSeen {
        let components = Component::ALL.map(|component| {
            let process = &self.processes[&component];
            let ready = self.is_ready(component);
            let seen = ComponentSeen {
                file: FileSeen::Hash(manifest::hash(&self.bytes(component))),
                problems: Vec::new(),
                running: Some(RunningSeen {
                    id: component.to_string(),
                    closed_at: None,
                    images: BTreeSet::from([process.image.clone()]),
                    created_at: at(process.created),
                    version: process.image.rsplit(':').next().map(str::to_owned),
                    ready: if ready { Tristate::True } else { Tristate::False },
                    message: String::new(),
                }),
                newest: Some(NewestSeen {
                    pod: process.pod.clone(),
                    created_at: at(process.created),
                }),
                exits: self.exits.get(&component).cloned().unwrap_or_default(),
            };
            (component, seen)
        });
        NodeSeen {
            components: BTreeMap::from(components),
            images: Component::ALL
                .map(|c| (image(c, TARGET), Tristate::True))
                .into_iter()
                .collect(),
            alone: !self.synced,
        }
    }

    /// One look of the agent, or of the guard where there is no agent, as their loops do it.
    fn look(&self, agent: &mut Executor, desired: Option<&Ticket>) {
        if !self.synced {
            if !self.guard().is_on() || self.now < self.booted + SETTLE {
                return;
            }
            *agent = self.agent();
        }
        let desired = desired.filter(|_| self.synced);
        for _ in 0..16 {
            let action = decide(agent.journal(), desired, &self.see(), at(self.now));
            if !matches!(agent.perform(action, at(self.now)), Ok(true)) || power::is_cut() {
                return;
            }
        }
    }
}

fn ticket(number: i64, changes: &BTreeSet<Component>, verdict: Verdict) -> Ticket {
    Ticket {
        number,
        rollout: "r".to_owned(),
        changes: changes
            .iter()
            .map(|component| Change {
                component: *component,
                manifest_hash: manifest::hash(sample(*component).as_bytes()),
                image: image(*component, TARGET),
                version: TARGET.to_owned(),
            })
            .collect(),
        ready_seconds: 60,
        confirm_seconds: 40,
        drain_seconds: 10,
        unconfirmed: Unconfirmed::Undo,
        verdict,
        reason: None,
    }
}

fn new_bytes(component: Component) -> Vec<u8> {
    sample(component).replace("v1.35.4", TARGET).into_bytes()
}

const EDIT: &[u8] = b"# edited by a person\n";

fn edited(bytes: &[u8]) -> Vec<u8> {
    [bytes, EDIT].concat()
}

/// Plays the plan to its end and gives the end's state; asserts what must hold at every moment.
fn play(plan: &Plan) -> Option<TicketState> {
    power::set(None);
    let mut world = World::new(plan.temper, plan.kubelet_delay);
    let mut agent = world.agent();
    let mut heard: Option<Ticket> = None;
    let mut person: Option<(Component, Vec<u8>)> = None;
    let quiet = Tick {
        seconds: 5,
        cut: None,
    };
    for index in 0..plan.ticks.len() + 300 {
        let tick = plan.ticks.get(index).unwrap_or(&quiet);
        if !plan.away.contains(&index) {
            let verdict = if index >= plan.verdict_at {
                plan.verdict
            } else {
                Verdict::Pending
            };
            let there = plan.deleted_at.is_none_or(|at| index < at);
            heard = there.then(|| ticket(7, &plan.changes, verdict));
        }
        if let Some((at, component)) = plan.edit
            && at == index
        {
            let bytes = edited(&world.bytes(component));
            fs::write(world.host.manifest(component), &bytes).unwrap();
            person = Some((component, bytes));
        }
        power::set(tick.cut.map(|cut| cut.steps));
        world.look(&mut agent, heard.as_ref());
        let cut = power::is_cut();
        power::set(None);
        for component in Component::ALL {
            let bytes = world.bytes(component);
            match &person {
                Some((edited, theirs)) if *edited == component => {
                    assert_eq!(&bytes, theirs, "an edit was lost")
                }
                _ => assert!(
                    bytes == sample(component).as_bytes()
                        || (plan.changes.contains(&component) && bytes == new_bytes(component))
                        || (component == Component::KubeApiserver && is_bridge(&bytes)),
                    "{component} holds what nobody wrote"
                ),
            }
        }
        let confirmed = agent
            .journal()
            .entry()
            .is_some_and(|e| e.state == TicketState::Confirmed);
        assert!(
            world.guard().is_on()
                || confirmed
                || person.is_some()
                || world.bytes(Component::KubeApiserver) != new_bytes(Component::KubeApiserver),
            "an API server that is not confirmed, and no guard"
        );
        if let Some(how) = tick.cut.filter(|_| cut) {
            match how.power {
                true => world.reboot(how.seconds),
                false => world.pass(how.seconds),
            }
            agent = world.agent();
            // The API has to be asked again, and may be away.
            heard = None;
        }
        world.pass(tick.seconds);
        let ended = agent.journal().entry().is_some_and(|e| e.state.is_end());
        if ended && index >= plan.ticks.len() + 3 {
            break;
        }
    }
    assert!(!world.guard().is_on(), "the guard stays");
    let entry = agent.journal().entry().cloned();
    for component in Component::ALL {
        if person.as_ref().is_some_and(|(edited, _)| *edited == component) {
            continue;
        }
        let new = entry.as_ref().is_some_and(|e| e.state == TicketState::Confirmed)
            && plan.changes.contains(&component);
        let wanted = if new {
            new_bytes(component)
        } else {
            sample(component).as_bytes().to_vec()
        };
        assert!(world.bytes(component) == wanted, "{component} after {entry:?}");
    }
    if let Some(entry) = &entry {
        assert!(entry.state.is_end(), "not ended: {entry:?}");
        if entry.state == TicketState::Confirmed {
            assert_eq!(plan.verdict, Verdict::Confirmed);
        }
        // Numbers that are used stay used, whatever stands in the API and whoever restarts the agent.
        let mut agent = world.agent();
        for number in [6, 7] {
            let stale = ticket(number, &plan.changes, Verdict::Pending);
            world.look(&mut agent, Some(&stale));
            assert_eq!(agent.journal().entry(), Some(entry));
        }
    }
    entry.map(|e| e.state)
}

fn plans() -> impl Strategy<Value = Plan> {
    let cut = (1..12u32, 0..150i64, any::<bool>()).prop_map(|(steps, seconds, power)| Cut {
        steps,
        seconds,
        power,
    });
    let tick =
        (1..15i64, proptest::option::weighted(0.3, cut)).prop_map(|(seconds, cut)| Tick { seconds, cut });
    let temper = prop_oneof![
        3 => (1..30i64).prop_map(Temper::Good),
        1 => Just(Temper::NeverReady),
        1 => Just(Temper::Crashes),
    ];
    let verdict = prop_oneof![
        1 => Just(Verdict::Pending),
        3 => Just(Verdict::Confirmed),
        1 => Just(Verdict::Withdrawn),
    ];
    let component = prop::sample::select(Component::ALL.to_vec());
    (
        proptest::collection::vec(tick, 1..25),
        proptest::collection::btree_set(component.clone(), 1..4),
        temper,
        0..12i64,
        verdict,
        1..20usize,
        (0..25usize, 0..15usize),
        proptest::option::weighted(0.1, 0..20usize),
        proptest::option::weighted(0.2, (0..20usize, component)),
    )
        .prop_map(
            |(ticks, changes, temper, kubelet_delay, verdict, verdict_at, away, deleted_at, edit)| Plan {
                ticks,
                changes,
                temper,
                kubelet_delay,
                verdict,
                verdict_at,
                away: away.0..away.0 + away.1,
                deleted_at,
                edit,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_ends_with_the_new_manifests_or_the_old_bytes(plan in plans()) {
        play(&plan);
    }
}

fn plain() -> Plan {
    Plan {
        ticks: vec![],
        changes: BTreeSet::from(Component::ALL),
        temper: Temper::Good(5),
        kubelet_delay: 2,
        verdict: Verdict::Confirmed,
        verdict_at: 5,
        away: 0..0,
        deleted_at: None,
        edit: None,
    }
}

#[test]
fn a_good_target_that_is_confirmed_stays() {
    assert_eq!(play(&plain()), Some(TicketState::Confirmed));
}

#[test]
fn a_bad_target_goes_back_with_no_api() {
    for temper in [Temper::NeverReady, Temper::Crashes] {
        let plan = Plan {
            temper,
            away: 1..1000,
            ..plain()
        };
        assert_eq!(play(&plan), Some(TicketState::Undone));
    }
}

#[test]
fn a_node_that_boots_into_a_bad_api_server_gets_the_old_one_back() {
    for temper in [Temper::NeverReady, Temper::Crashes] {
        // In the middle of starting, and in the middle of going back.
        for tick in 1..20 {
            for step in 1..7 {
                let ticks = (0..20).map(|n| Tick {
                    seconds: 5,
                    cut: (n >= tick).then_some(Cut {
                        steps: step,
                        seconds: 10,
                        power: true,
                    }),
                });
                let plan = Plan {
                    ticks: ticks.collect(),
                    temper,
                    ..plain()
                };
                assert_eq!(play(&plan), Some(TicketState::Undone));
            }
        }
    }
}

#[test]
fn a_good_target_that_nobody_confirms_goes_back() {
    for (verdict, deleted_at) in [
        (Verdict::Pending, None),
        (Verdict::Withdrawn, None),
        (Verdict::Confirmed, Some(2)),
    ] {
        let plan = Plan {
            verdict,
            deleted_at,
            ..plain()
        };
        assert_eq!(play(&plan), Some(TicketState::Undone));
    }
}

#[test]
fn the_power_cut_at_every_single_step_of_a_change_ends_well() {
    let mut ends = BTreeSet::new();
    for (verdict, power) in [
        (Verdict::Confirmed, false),
        (Verdict::Confirmed, true),
        (Verdict::Withdrawn, false),
        (Verdict::Withdrawn, true),
    ] {
        // The first look writes eleven files of three steps each; later ones write one or three.
        for (look, steps) in [(0, 1..37), (1, 1..12), (2, 1..12), (5, 1..12), (6, 1..12)] {
            for step in steps {
                let ticks = (0..8).map(|n| Tick {
                    seconds: 5,
                    cut: (n == look).then_some(Cut {
                        steps: step,
                        seconds: 10,
                        power,
                    }),
                });
                let plan = Plan {
                    ticks: ticks.collect(),
                    verdict,
                    ..plain()
                };
                ends.insert(format!("{:?}", play(&plan)));
            }
        }
    }
    assert!(
        ends.contains("Some(Confirmed)") && ends.contains("Some(Undone)"),
        "{ends:?}"
    );
}

#[test]
fn a_full_disk_does_not_stand_in_the_way_back() {
    power::set(None);
    let world = World::new(Temper::NeverReady, 0);
    let mut agent = world.agent();
    let order = ticket(7, &BTreeSet::from([Component::KubeApiserver]), Verdict::Pending);
    world.look(&mut agent, Some(&order));
    assert_eq!(agent.status().unwrap().state, TicketState::Starting);
    // A directory in the journal's place takes no file.
    let journal = world.host.state().join("journal.json");
    fs::remove_file(&journal).unwrap();
    fs::create_dir_all(journal.join("x")).unwrap();
    let withdrawn = Ticket {
        verdict: Verdict::Withdrawn,
        ..order
    };
    world.look(&mut agent, Some(&withdrawn));
    assert_eq!(agent.status().unwrap().state, TicketState::Undoing);
    assert_eq!(
        world.bytes(Component::KubeApiserver),
        sample(Component::KubeApiserver).as_bytes()
    );
}

#[test]
fn a_guard_that_goes_too_early_is_put_on_again_and_one_that_nobody_needs_is_not() {
    power::set(None);
    for (component, wanted) in [
        (Component::KubeApiserver, true),
        (Component::KubeScheduler, false),
    ] {
        let mut world = World::new(Temper::NeverReady, 0);
        let mut agent = world.agent();
        let order = ticket(7, &BTreeSet::from([component]), Verdict::Pending);
        world.look(&mut agent, Some(&order));
        assert_eq!(world.guard().is_on(), wanted);
        // As a rehearsal does that is cancelled by the ticket.
        world.guard().take_off().unwrap();
        world.pass(1);
        world.look(&mut agent, Some(&order));
        assert_eq!(world.guard().is_on(), wanted);
    }
}
