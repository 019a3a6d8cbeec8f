//! The real runner on a real directory; kubelet, etcd and survivor are played, and the power is cut between any two
//! steps of any write. The played kubelet has the real one's two ways: one that has heard of an API follows its
//! directory; one that has not since it started takes no pod away and starts one only under the UID that it knows.
//! Neither restarts a container for a flag while the pod's UID stays.

use super::*;
use crate::agent::etcd::members::Listed;
use crate::agent::host::power;
use crate::agent::rescue::ground::{Containers, Outside};
use crate::agent::rescue::steps::Running;
use async_trait::async_trait;
use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;

const API: &str = "kind: Pod\nmetadata:\n  name: kube-apiserver\n  namespace: kube-system\n";

const ETCD: &str = "\
kind: Pod
metadata:
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command:
    - etcd
    - --name=cp1
    - --initial-cluster=cp1=https://10.0.0.1:2380
    image: registry.k8s.io/etcd:3.6.6-0
    name: etcd
";

#[derive(Clone)]
struct Process {
    id: String,
    pod: String,
    bytes: Vec<u8>,
    created: DateTime<Utc>,
}

#[derive(Default)]
struct Inner {
    processes: HashMap<Part, Process>,
    last_pods: HashMap<Part, String>,
    /// Pods that the kubelet has let out of its sight: it neither ends nor starts them.
    started: u32,
    now: DateTime<Utc>,
    kubelet: DateTime<Utc>,
    /// The survivor's list.
    listed: Vec<Listed>,
    promotions: u32,
    cleansed: bool,
}

struct World {
    root: tempfile::TempDir,
    host: Host,
    /// Its process can be ended and is started anew.
    supervised: bool,
    /// The kubelet has heard of an API since it started.
    synced: bool,
    inner: Mutex<Inner>,
}

/// A static pod's UID: its own, or a hash.
fn pod_of(bytes: &[u8]) -> String {
    let pod: serde_yaml::Value = serde_yaml::from_slice(bytes).unwrap();
    let uid = pod.get("metadata").and_then(|m| m.get("uid")?.as_str());
    uid.map_or_else(|| manifest::hash(bytes), str::to_owned)
}

fn member(id: u64, name: &str, url: &str, learner: bool) -> Listed {
    Listed {
        id,
        name: name.into(),
        peer_urls: vec![url.into()],
        client_urls: vec![],
        learner,
    }
}

impl World {
    fn new(synced: bool, supervised: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        fs::write(Part::Api.path(&host), API).unwrap();
        fs::write(Part::Etcd.path(&host), ETCD).unwrap();
        fs::create_dir_all(root.path().join("etcd/member/snap")).unwrap();
        fs::write(root.path().join("etcd/member/snap/db"), "three").unwrap();
        let world = Self {
            root,
            host,
            supervised,
            synced,
            inner: Mutex::new(Inner {
                now: DateTime::from_timestamp(1_763_700_000, 0).unwrap(),
                kubelet: DateTime::from_timestamp(1_763_600_000, 0).unwrap(),
                listed: vec![
                    member(2, "cp2", "https://10.0.0.2:2380", false),
                    member(9, "cp1", "https://10.0.0.1:2380", false),
                ],
                ..Inner::default()
            }),
        };
        world.kubelet();
        world
    }

    fn data(&self) -> Option<String> {
        fs::read_to_string(self.root.path().join("etcd/member/snap/db")).ok()
    }

    fn now(&self) -> DateTime<Utc> {
        self.inner.lock().unwrap().now
    }

    fn later(&self) {
        self.inner.lock().unwrap().now += chrono::TimeDelta::seconds(2);
        self.kubelet();
    }

    /// The kubelet looks at its directory.
    fn kubelet(&self) {
        let mut inner = self.inner.lock().unwrap();
        for part in [Part::Api, Part::Etcd] {
            let file = fs::read(part.path(&self.host)).ok();
            let running = inner.processes.get(&part).cloned();
            let Some(bytes) = file else {
                if self.synced {
                    inner.processes.remove(&part);
                }
                continue;
            };
            let pod = pod_of(&bytes);
            let kept = inner.last_pods.get(&part).cloned();
            let may = self.synced || kept.is_none_or(|kept| kept == pod);
            if may && running.is_none_or(|process| process.pod != pod) {
                inner.started += 1;
                let process = Process {
                    id: format!("c{}", inner.started),
                    pod: pod.clone(),
                    created: inner.now,
                    bytes: bytes.clone(),
                };
                inner.last_pods.insert(part, pod);
                inner.processes.insert(part, process);
                if part == Part::Etcd && String::from_utf8_lossy(&bytes).contains("--force-new-cluster=true")
                {
                    fs::write(self.root.path().join("etcd/member/snap/db"), "one").unwrap();
                }
            }
            if part == Part::Etcd
                && String::from_utf8_lossy(&bytes).contains("--initial-cluster-state=existing")
            {
                fs::create_dir_all(self.root.path().join("etcd/member/snap")).unwrap();
                fs::write(self.root.path().join("etcd/member/snap/db"), "learned").unwrap();
                for listed in &mut inner.listed {
                    if listed.learner {
                        listed.name = "cp1".into();
                    }
                }
            }
        }
    }

    fn runs(&self, part: Part) -> Option<String> {
        let inner = self.inner.lock().unwrap();
        let process = inner.processes.get(&part)?;
        Some(String::from_utf8_lossy(&process.bytes).into_owned())
    }

    fn entry(&self, kind: Kind) -> Entry {
        let book = Book::new(self.host.clone());
        let path = Part::Etcd.path(&self.host);
        let new = flags::with_flags(&path, ETCD.as_bytes(), &[("force-new-cluster", Some("true"))]).unwrap();
        let keep = |part, age, bytes: &[u8]| book.keep("1", part, age, bytes).unwrap();
        let entry = Entry {
            id: "1".into(),
            kind,
            step: Step::StoppingApi,
            since: self.now(),
            begun: self.now(),
            message: String::new(),
            api: Some(keep(Part::Api, Age::Old, API.as_bytes())),
            etcd: keep(Part::Etcd, Age::Old, ETCD.as_bytes()),
            etcd_new: (kind == Kind::RecoverQuorum).then(|| keep(Part::Etcd, Age::New, &new)),
            bridges: Vec::new(),
            name: "cp1".into(),
            peer_url: "https://10.0.0.1:2380".into(),
            data: "/etcd".into(),
            aside: "/aside".into(),
            peers: Vec::new(),
            via: Some("x".into()),
            restored: (kind == Kind::Restore).then(|| "/etcd/.lockkeeper/rescue-1/restored".into()),
            backup: None,
            learner: None,
            touched: false,
        };
        book.save(&entry).unwrap();
        entry
    }
}

#[async_trait]
impl Ground for World {
    async fn containers(&self, part: Part) -> Outside<Containers> {
        let inner = self.inner.lock().unwrap();
        Ok(Containers {
            running: inner.processes.get(&part).map(|process| Running {
                id: process.id.clone(),
                pod: process.pod.clone(),
                created_at: process.created,
                forced: Some(String::from_utf8_lossy(&process.bytes).contains("--force-new-cluster=true")),
            }),
            last_pod: inner.last_pods.get(&part).cloned(),
            last_made: inner.processes.get(&part).map(|process| process.created),
            last_words: String::new(),
        })
    }
    async fn end(&self, id: &str) -> Outside<()> {
        self.inner
            .lock()
            .unwrap()
            .processes
            .retain(|_, process| process.id != id);
        Ok(())
    }
    async fn kubelet(&self) -> Option<DateTime<Utc>> {
        self.supervised.then(|| self.inner.lock().unwrap().kubelet)
    }
    async fn restart_kubelet(&self) -> Outside<()> {
        let mut inner = self.inner.lock().unwrap();
        inner.kubelet = inner.now;
        // It knows the pods of the containers that run, and no others.
        let running: Vec<Part> = inner.processes.keys().copied().collect();
        inner.last_pods.retain(|part, _| running.contains(part));
        Ok(())
    }
    async fn api_ready(&self, _: &Entry) -> Outside<()> {
        self.runs(Part::Api)
            .map(drop)
            .ok_or_else(|| "nobody listens".to_owned())
    }
    async fn local(&self, _: &Entry) -> Outside<Vec<Listed>> {
        let running = self.runs(Part::Etcd).ok_or("nobody listens")?;
        match self.data().as_deref() {
            Some("one" | "backup") => Ok(vec![member(1, "cp1", "https://10.0.0.1:2380", false)]),
            Some("learned") if running.contains("existing") => Ok(self.inner.lock().unwrap().listed.clone()),
            _ => Err("no leader".to_owned()),
        }
    }
    async fn via(&self, _: &Entry) -> Outside<Vec<Listed>> {
        Ok(self.inner.lock().unwrap().listed.clone())
    }
    async fn alive(&self, _: &Entry) -> Vec<String> {
        Vec::new()
    }
    async fn add_learner(&self, entry: &Entry) -> Outside<()> {
        let mut inner = self.inner.lock().unwrap();
        assert!(!inner.listed.iter().any(|m| m.learner), "a second learner");
        inner.listed.push(member(7, "", &entry.peer_url, true));
        Ok(())
    }
    async fn remove(&self, _: &Entry, id: u64) -> Outside<()> {
        self.inner.lock().unwrap().listed.retain(|m| m.id != id);
        Ok(())
    }
    async fn is_cleansed(&self, _: &Entry) -> Outside<bool> {
        Ok(self.inner.lock().unwrap().cleansed)
    }
    async fn cleanse(&self, _: &Entry) -> Outside<String> {
        assert_eq!(self.data().as_deref(), Some("backup"), "another etcd is cleansed");
        self.inner.lock().unwrap().cleansed = true;
        Ok("2 Leases are out".into())
    }
    async fn promote(&self, _: &Entry, id: u64) -> Outside<()> {
        let mut inner = self.inner.lock().unwrap();
        inner.promotions += 1;
        if inner.promotions < 3 {
            return Err("can only promote a learner member which is in sync with leader".to_owned());
        }
        for listed in inner.listed.iter_mut().filter(|m| m.id == id) {
            listed.learner = false;
        }
        Ok(())
    }
}

/// Plays until it rests or an error. `cut`: the power fails after so many steps of writing.
async fn play(world: &World, mut entry: Entry, cut: Option<u32>) -> Result<Entry, RunError> {
    let mut runner_quiet = Quiet::default();
    power::set(cut);
    let tell = |_: &str| {};
    let mut result = Err(RunError::Stop("it did not end".into()));
    for _ in 0..600 {
        let mut runner = Runner::new(&world.host, world, entry.clone(), &tell);
        runner.quiet = std::mem::take(&mut runner_quiet);
        let seen = runner.look(world.now()).await;
        let done = match decide(&runner.entry, Step::Done, &seen, world.now()) {
            Act::Rest => {
                runner.book.settle().unwrap();
                Some(Ok(runner.entry.clone()))
            }
            Act::Stop(why) => Some(Err(RunError::Stop(why))),
            Act::Wait(_) => {
                world.later();
                None
            }
            act => runner.perform(act, world.now()).await.err().map(Err),
        };
        runner_quiet = runner.quiet;
        entry = runner.entry;
        // A promise that holds at every moment: never forced without a whole copy beside it.
        if world.data().as_deref() == Some("one") {
            assert_eq!(
                fs::read_to_string(world.root.path().join("aside/member/snap/db")).unwrap(),
                "three"
            );
        }
        if let Some(done) = done {
            result = done;
            break;
        }
        world.kubelet();
    }
    power::set(None);
    result
}

/// Cuts the power after every number of steps in turn and goes on afterwards from what lies on the disk.
async fn struck(kind: Kind, synced: bool, supervised: bool, check: impl Fn(&World, &Entry)) {
    struck_in(kind, || World::new(synced, supervised), check).await;
}

async fn struck_in(kind: Kind, world: impl Fn() -> World, check: impl Fn(&World, &Entry)) {
    for cut in 1.. {
        let world = world();
        let entry = world.entry(kind);
        match play(&world, entry, Some(cut)).await {
            Ok(entry) => {
                check(&world, &entry);
                assert!(cut > 20, "the power was cut at {cut} points only");
                return;
            }
            Err(_) => {
                let entry = Book::new(world.host.clone()).load().unwrap().unwrap();
                world.later();
                let entry = play(&world, entry, None)
                    .await
                    .unwrap_or_else(|error| panic!("after a cut at {cut}: {error}"));
                check(&world, &entry);
            }
        }
    }
}

fn recovered(world: &World, entry: &Entry) {
    assert_eq!(entry.step, Step::Done);
    assert_eq!(world.data().as_deref(), Some("one"));
    assert_eq!(fs::read_to_string(Part::Etcd.path(&world.host)).unwrap(), ETCD);
    assert_eq!(fs::read_to_string(Part::Api.path(&world.host)).unwrap(), API);
    let running = world.runs(Part::Etcd).unwrap();
    assert!(
        !running.contains("force-new-cluster"),
        "the flag runs on: {running}"
    );
    assert!(crate::agent::rescue::in_hand(&world.host).is_none());
}

#[tokio::test]
async fn a_quorum_is_recovered_wherever_the_power_is_cut() {
    struck(Kind::RecoverQuorum, true, true, recovered).await;
}

#[tokio::test]
async fn also_past_a_kubelet_that_has_heard_of_no_api_since_it_started() {
    struck(Kind::RecoverQuorum, false, true, recovered).await;
    struck(Kind::RecoverQuorum, false, false, recovered).await;
}

fn rejoined(world: &World, entry: &Entry) {
    assert_eq!(entry.step, Step::Done);
    let etcd = fs::read_to_string(Part::Etcd.path(&world.host)).unwrap();
    assert!(
        etcd.contains("--initial-cluster=cp2=https://10.0.0.2:2380,cp1=https://10.0.0.1:2380"),
        "{etcd}"
    );
    assert!(!etcd.contains("uid"), "{etcd}");
    assert_eq!(world.data().as_deref(), Some("learned"));
    let aside = world.root.path().join("aside/member/snap/db");
    assert_eq!(fs::read_to_string(aside).unwrap(), "three");
    let listed = world.inner.lock().unwrap().listed.clone();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|m| !m.learner));
    assert!(world.runs(Part::Api).is_some());
}

#[tokio::test]
async fn a_node_rejoins_wherever_the_power_is_cut() {
    struck(Kind::Rejoin, true, true, rejoined).await;
}

#[tokio::test]
async fn also_past_a_kubelet_without_an_api() {
    struck(Kind::Rejoin, false, true, rejoined).await;
    struck(Kind::Rejoin, false, false, rejoined).await;
}

/// Beside etcd's data, or in place of lost ones, lies what was restored.
fn prepared(synced: bool, lost: bool) -> World {
    let world = World::new(synced, true);
    let beside = world
        .root
        .path()
        .join("etcd/.lockkeeper/rescue-1/restored/member/snap");
    fs::create_dir_all(&beside).unwrap();
    fs::write(beside.join("db"), "backup").unwrap();
    if lost {
        fs::remove_dir_all(world.root.path().join("etcd/member")).unwrap();
    }
    world
}

fn restored(world: &World, entry: &Entry) {
    assert_eq!(entry.step, Step::Done, "{}", entry.message);
    assert_eq!(world.data().as_deref(), Some("backup"));
    assert!(world.inner.lock().unwrap().cleansed);
    assert_eq!(fs::read_to_string(Part::Etcd.path(&world.host)).unwrap(), ETCD);
    assert!(world.runs(Part::Api).is_some());
    assert!(!world.root.path().join("etcd/.lockkeeper/rescue-1").exists());
    assert!(crate::agent::rescue::in_hand(&world.host).is_none());
}

#[tokio::test]
async fn a_backup_is_restored_wherever_the_power_is_cut_and_the_old_data_are_kept() {
    for synced in [true, false] {
        let kept = |world: &World, entry: &Entry| {
            restored(world, entry);
            let aside = world.root.path().join("aside/member/snap/db");
            assert_eq!(fs::read_to_string(aside).unwrap(), "three");
        };
        struck_in(Kind::Restore, || prepared(synced, false), kept).await;
        struck_in(Kind::Restore, || prepared(synced, true), restored).await;
    }
}

#[tokio::test]
async fn a_restore_that_is_taken_back_is_as_it_was_and_nothing_is_removed() {
    for at in [Step::MovingAside, Step::Placing, Step::Booting, Step::Cleansing] {
        for (cut, lost) in (1..40).flat_map(|cut| [(cut, false), (cut, true)]) {
            let world = prepared(true, lost);
            taken_back(&world, Kind::Restore, at, cut).await;
            assert_eq!(
                world.data().as_deref(),
                (!lost).then_some("three"),
                "from {at:?}, cut at {cut}"
            );
        }
    }
}

#[test]
fn data_that_a_late_etcd_made_go_aside_too() {
    let root = tempfile::tempdir().unwrap();
    let (data, aside, beside) = (
        root.path().join("d"),
        root.path().join("a"),
        root.path().join("r"),
    );
    for (at, what) in [(&data, "late"), (&aside, "old"), (&beside, "backup")] {
        fs::create_dir_all(at.join("member")).unwrap();
        fs::write(at.join("member/db"), what).unwrap();
    }
    data::take_back(&beside, &aside, &data).unwrap();
    let text = |at: &Path| fs::read_to_string(at.join("member/db")).unwrap();
    assert_eq!(
        (text(&data), text(&beside)),
        ("old".to_owned(), "backup".to_owned())
    );
    assert_eq!(text(&data::stray_of(&aside)), "late");
}

#[tokio::test]
async fn what_was_taken_back_is_as_it_was_wherever_the_power_is_cut() {
    for at in [Step::Copying, Step::Forcing, Step::Unforcing] {
        for cut in 1..40 {
            let world = World::new(true, true);
            taken_back(&world, Kind::RecoverQuorum, at, cut).await;
            assert_eq!(world.data().as_deref(), Some("three"));
        }
    }
}

/// Up to a step, then back, the power cut on the way back.
async fn taken_back(world: &World, kind: Kind, at: Step, cut: u32) {
    let mut entry = world.entry(kind);
    let tell = |_: &str| {};
    for _ in 0..200 {
        if entry.step == at {
            break;
        }
        let mut runner = Runner::new(&world.host, world, entry.clone(), &tell);
        let seen = runner.look(world.now()).await;
        let seen = Seen {
            etcd: settled(seen.etcd),
            api: settled(seen.api),
            ..seen
        };
        match decide(&entry, Step::Done, &seen, world.now()) {
            Act::Wait(_) => world.later(),
            act => drop(runner.perform(act, world.now()).await.unwrap()),
        }
        entry = runner.entry;
        world.kubelet();
    }
    assert_eq!(entry.step, at);
    entry.step = Step::PuttingBack;
    entry.since = world.now();
    Book::new(world.host.clone()).save(&entry).unwrap();
    if play(world, entry, Some(cut)).await.is_err() {
        let entry = Book::new(world.host.clone()).load().unwrap().unwrap();
        play(world, entry, None).await.unwrap();
    }
    assert_eq!(fs::read_to_string(Part::Etcd.path(&world.host)).unwrap(), ETCD);
    assert_eq!(fs::read_to_string(Part::Api.path(&world.host)).unwrap(), API);
}

/// Quiet since long ago, where nothing runs.
fn settled(part: PartSeen) -> PartSeen {
    PartSeen {
        quiet_since: part.quiet_since.map(|at| at - chrono::TimeDelta::seconds(60)),
        ..part
    }
}
