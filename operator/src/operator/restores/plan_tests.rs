//! Restores planned on nodes that are played.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use lockkeeper_crds as crds;
use lockkeeper_crds::{RestoreMode, RestoreStage, RestoreState, RestoreWord, Tristate};
use serde_json::json;

use super::memorial;
use super::plan::{Deed, Plan, plan};
use super::sight::{self, Sight};
use super::status;

const ID: &str = "0a1b2c3d-uid";

struct World {
    object: crds::EtcdRestore,
    reports: BTreeMap<String, crds::ControlPlaneNode>,
    backup: crds::EtcdBackup,
    safety: Option<crds::EtcdBackup>,
    rollout: Option<String>,
    silent: Option<String>,
}

fn now() -> Time {
    Time(Timestamp::from_second(1_763_700_000).unwrap())
}

fn backup(name: &str) -> crds::EtcdBackup {
    serde_json::from_value(json!({
        "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdBackup", "metadata": {"name": name},
        "spec": {"storeRef": {"name": "default"}},
        "status": {
            "completedAt": "2026-11-21T03:00:00Z", "message": "",
            "artifact": {
                "uri": "s3://b/p/a-12345678/snapshot.db", "manifestUri": "s3://b/p/a-12345678/manifest.json",
                "sizeBytes": 1, "sha256": "abc", "revision": 100, "etcdVersion": "3.6.6", "clusterId": "cafe", "memberId": "1"
            },
            "conditions": [{"type": "Stored", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-11-21T03:00:00Z"}]
        }
    }))
    .unwrap()
}

impl World {
    fn new(mode: RestoreMode) -> Self {
        let mut object: crds::EtcdRestore = serde_json::from_value(json!({
            "apiVersion": "lockkeeper.dev/v1alpha1", "kind": "EtcdRestore",
            "metadata": {"name": "back", "uid": ID, "generation": 1},
            "spec": {"from": {"backupRef": {"name": "a"}}, "mode": mode},
        }))
        .unwrap();
        object.spec.directory = (mode == RestoreMode::NewDirectory).then(|| "/var/lib/etcd/new".to_owned());
        let members: Vec<crds::EtcdMember> = (1..=3)
            .map(|i| crds::EtcdMember {
                id: format!("{i}"),
                name: format!("cp{i}"),
                learner: false,
                peer_urls: vec![format!("https://10.0.0.{i}:2380")],
            })
            .collect();
        let reports = (1..=3).map(|i| {
            let mut node = crds::ControlPlaneNode::new(&format!("cp{i}"), Default::default());
            node.status = Some(crds::ControlPlaneNodeStatus {
                etcd: Some(crds::EtcdStatus {
                    healthy: Tristate::True,
                    version: Some("3.6.6".to_owned()),
                    cluster_id: Some("cafe".to_owned()),
                    member_id: Some(format!("{i}")),
                    members: members.clone(),
                    ..Default::default()
                }),
                guard: Tristate::True,
                ..Default::default()
            });
            (format!("cp{i}"), node)
        });
        Self {
            object,
            reports: reports.collect(),
            backup: backup("a"),
            safety: None,
            rollout: None,
            silent: None,
        }
    }

    /// In place, prepared everywhere, and with a person's word.
    fn confirmed() -> Self {
        let mut world = Self::new(RestoreMode::InPlace);
        world.passes();
        world.all_say(RestoreStage::Prepared);
        world.passes();
        world.object.spec.confirm = Some("prod".to_owned());
        world.passes();
        world
    }

    fn sight(&self) -> Sight<'_> {
        Sight {
            object: &self.object,
            nodes: self
                .reports
                .iter()
                .map(|(name, report)| {
                    let silent = self.silent.clone().filter(|s| s == name);
                    (name.clone(), sight::node(report, silent))
                })
                .collect(),
            backup: Some(&self.backup),
            safety: self.safety.as_ref(),
            stores: vec!["default".to_owned()],
            other: None,
            rollout: self.rollout.clone(),
            cluster_name: Some("prod".to_owned()),
            revision: 5000,
            now: now(),
        }
    }

    /// One pass as the keeper makes it: a new state is written, else the deeds are done.
    fn pass(&mut self) -> Plan {
        let plan = plan(&self.sight());
        let next = status::build(&self.sight(), &plan);
        let same = self.object.status.as_ref().is_some_and(|s| s.state == next.state);
        self.object.status = Some(next);
        if same {
            for deed in &plan.deeds {
                match deed {
                    Deed::Give(node, order) => {
                        self.reports.get_mut(node).unwrap().spec.restore = Some(*order.clone());
                    }
                    Deed::Backup(name, _) => self.safety = Some(backup(name)),
                }
            }
        }
        plan
    }

    fn passes(&mut self) -> RestoreState {
        for _ in 0..8 {
            self.pass();
        }
        self.state()
    }

    fn state(&self) -> RestoreState {
        self.object.status.as_ref().map(|s| s.state).unwrap_or_default()
    }

    fn says(&mut self, node: &str, stage: RestoreStage, message: &str) {
        let order = self.reports[node]
            .spec
            .restore
            .clone()
            .expect("it was never asked");
        let progress: crds::RestoreProgress = serde_json::from_value(json!({
            "id": order.id, "name": "back", "stage": stage, "since": now(), "message": message,
            "mode": order.mode, "store": "default",
            "backup": {"uri": "s3://b/p/a-12345678/snapshot.db", "revision": 100, "etcdVersion": "3.6.6", "clusterId": "cafe", "sizeBytes": 1, "sha256": "abc"},
            "loss": order.counts.then(|| json!({"revision": 5000, "revisions": 4900, "created": 2, "changed": 3})),
        }))
        .unwrap();
        self.reports
            .get_mut(node)
            .unwrap()
            .status
            .as_mut()
            .unwrap()
            .restore = Some(progress);
    }

    fn all_say(&mut self, stage: RestoreStage) {
        for node in ["cp1", "cp2", "cp3"] {
            self.says(node, stage, "");
        }
    }

    fn guard(&mut self, node: &str, guard: Tristate) {
        let report = self.reports.get_mut(node).unwrap();
        report.status.as_mut().unwrap().guard = guard;
    }

    fn words(&self) -> Vec<Option<RestoreWord>> {
        let orders = self
            .reports
            .values()
            .map(|r| r.spec.restore.as_ref().map(|o| o.word));
        orders.collect()
    }
}

#[test]
fn nothing_goes_on_without_a_persons_word_and_then_to_the_end() {
    let mut world = World::new(RestoreMode::InPlace);
    assert_eq!(world.passes(), RestoreState::Preparing);
    assert_eq!(world.words(), [Some(RestoreWord::Prepare); 3]);
    let orders: Vec<_> = world
        .reports
        .values()
        .filter_map(|r| r.spec.restore.clone())
        .collect();
    assert!(
        orders
            .iter()
            .all(|o| o.id == ID && o.key == "s3://b/p/a-12345678/manifest.json" && o.sha256 == "abc")
    );
    assert_eq!(orders.iter().filter(|o| o.counts).count(), 1);
    world.all_say(RestoreStage::Prepared);
    assert_eq!(world.passes(), RestoreState::AwaitingConfirmation);
    let status = world.object.status.clone().unwrap();
    assert_eq!(status.confirm_with.as_deref(), Some("prod"));
    assert_eq!(status.loss.and_then(|l| l.revisions), Some(4900));
    assert_eq!(world.words(), [Some(RestoreWord::Prepare); 3]);
    world.object.spec.confirm = Some("prod".to_owned());
    assert_eq!(world.passes(), RestoreState::Arming);
    assert!(world.safety.is_some(), "the present state was not stored first");
    assert_eq!(world.words(), [Some(RestoreWord::Arm); 3]);
    world.says("cp1", RestoreStage::Armed, "");
    assert_eq!(world.passes(), RestoreState::Arming);
    assert_eq!(
        world.words(),
        [Some(RestoreWord::Arm); 3],
        "one told to begin before all are armed"
    );
    world.all_say(RestoreStage::Armed);
    assert_eq!(world.passes(), RestoreState::Restoring);
    assert_eq!(world.words(), [Some(RestoreWord::Go); 3]);
    world.all_say(RestoreStage::Done);
    assert_eq!(world.passes(), RestoreState::Completed);
}

#[test]
fn what_could_not_be_counted_is_told_with_what_is_known_before_the_word_is_asked_for() {
    let shown = |loss: Option<serde_json::Value>| {
        let mut world = World::new(RestoreMode::InPlace);
        world.passes();
        world.all_say(RestoreStage::Prepared);
        let counting = world.reports.get_mut("cp1").unwrap().status.as_mut().unwrap();
        let progress = counting.restore.as_mut().unwrap();
        progress.backup.as_mut().unwrap().taken_at = Some(now());
        progress.loss = loss.map(|l| serde_json::from_value(l).unwrap());
        assert_eq!(world.passes(), RestoreState::AwaitingConfirmation);
        let status = world.object.status.unwrap();
        assert!(
            status.message.ends_with("set spec.confirm to \"prod\""),
            "{}",
            status.message
        );
        (status.loss.unwrap(), status.message)
    };
    let (_, told) = shown(Some(
        json!({"revision": 5000, "revisions": 4900, "created": 2, "changed": 3}),
    ));
    assert!(told.contains("read status.loss"), "{told}");
    // etcd was not read at all; by an older agent, without a word.
    for (loss, why) in [
        (
            Some(json!({"since": now(), "uncounted": "etcd has no quorum"})),
            "cp1: etcd has no quorum",
        ),
        (None, "cp1: its agent does not say why"),
    ] {
        let (loss, told) = shown(loss);
        assert_eq!(
            (loss.since, loss.revision, loss.revisions),
            (Some(now()), Some(5000), Some(4900))
        );
        assert_eq!((loss.created, loss.uncounted.as_deref()), (None, Some(why)));
        for part in ["in part only", "since 2025-11-21 04:40:00 UTC, 4900 writes", why] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(!told.contains("read status.loss"), "{told}");
    }
}

#[test]
fn a_bad_file_on_one_node_fails_it_with_the_reason() {
    let mut world = World::new(RestoreMode::InPlace);
    world.passes();
    world.all_say(RestoreStage::Prepared);
    world.says("cp2", RestoreStage::Dropped, "sha256 differs");
    assert_eq!(world.passes(), RestoreState::Failed);
    let message = world.object.status.unwrap().message;
    assert!(
        message.contains("cp2: sha256 differs") && message.contains("nothing was touched"),
        "{message}"
    );
}

#[test]
fn all_gone_back_is_told_with_the_first_reason() {
    let mut world = World::confirmed();
    world.all_say(RestoreStage::Armed);
    world.passes();
    world.says(
        "cp1",
        RestoreStage::Undone,
        "cp2 has gone back to the data of before",
    );
    world.says(
        "cp2",
        RestoreStage::Undone,
        "not ready in time: cp3 did not come up",
    );
    world.says("cp3", RestoreStage::Undoing, "");
    assert_eq!(world.passes(), RestoreState::Restoring);
    world.says("cp3", RestoreStage::Undone, "");
    assert_eq!(world.passes(), RestoreState::Undone);
    let message = world.object.status.unwrap().message;
    assert!(
        message.ends_with("cp2: not ready in time: cp3 did not come up"),
        "{message}"
    );
}

#[test]
fn a_control_plane_that_is_not_whole_on_the_restored_data_is_never_called_well() {
    let mut world = World::confirmed();
    world.all_say(RestoreStage::Armed);
    world.passes();
    world.all_say(RestoreStage::Done);
    world.says("cp2", RestoreStage::Done, "kube-scheduler did not come up again");
    assert_eq!(world.pass().state, RestoreState::Completed);
    let status = world.object.status.unwrap();
    assert!(
        status.message.contains("not all") && status.message.contains("cp2: kube-scheduler did not come up"),
        "{}",
        status.message
    );
    for (type_, value) in [("Succeeded", "False"), ("Ready", "False"), ("Stalled", "True")] {
        let condition = status.conditions.iter().find(|c| c.type_ == type_).unwrap();
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            (value, "NotWhole"),
            "{type_}"
        );
    }
}

#[test]
fn an_object_made_anew_after_it_names_the_backup_of_before_and_what_is_not_up() {
    let mut world = World::confirmed();
    world.all_say(RestoreStage::Done);
    let before = world.object.status.as_ref().unwrap().safety_backup.clone();
    assert_eq!(before.as_deref(), Some("before-back-0a1b2c3d"));
    // Of another UID, and with another name, since that was taken.
    let progress = world.reports["cp1"]
        .status
        .as_ref()
        .unwrap()
        .restore
        .clone()
        .unwrap();
    world.object.metadata.uid = Some("another".to_owned());
    world.object.metadata.name = Some("back-0a1b2c3d".to_owned());
    world.object.status = None;
    world.object = memorial::recalled(&world.object, &progress);
    let told = |world: &World| {
        let plan = memorial::standing(ID, &world.reports);
        status::build(&world.sight(), &plan)
    };
    let whole = told(&world);
    assert_eq!(
        (whole.state, whole.safety_backup),
        (RestoreState::Completed, before)
    );
    assert_eq!(whole.message, "the restored data runs on every node");
    world.says("cp3", RestoreStage::Done, "kube-scheduler did not come up again");
    let lame = told(&world);
    assert_eq!(lame.state, RestoreState::Completed);
    assert!(
        lame.message.contains("cp3: kube-scheduler did not come up"),
        "{}",
        lame.message
    );
    world.says("cp3", RestoreStage::Committed, "kube-scheduler is not up yet");
    let going = told(&world);
    assert_eq!(going.state, RestoreState::Restoring);
    assert!(
        going
            .message
            .contains("cp3: Committed: kube-scheduler is not up yet"),
        "{}",
        going.message
    );
}

#[test]
fn a_word_given_unseen_or_for_another_cluster_fails_it() {
    let mut world = World::new(RestoreMode::InPlace);
    world.object.spec.confirm = Some("prod".to_owned());
    assert_eq!(world.passes(), RestoreState::Failed);
    let mut world = World::new(RestoreMode::InPlace);
    world.passes();
    world.all_say(RestoreStage::Prepared);
    world.passes();
    world.object.spec.confirm = Some("staging".to_owned());
    assert_eq!(world.passes(), RestoreState::Failed);
    assert_eq!(world.words(), [Some(RestoreWord::Prepare); 3]);
}

#[test]
fn nothing_is_begun_beside_a_rollout_or_with_a_silent_node_or_another_minor() {
    let mut world = World::new(RestoreMode::InPlace);
    world.rollout = Some("a rollout".to_owned());
    assert_eq!(world.passes(), RestoreState::Validating);
    world.rollout = None;
    world.silent = Some("cp3".to_owned());
    assert_eq!(world.passes(), RestoreState::Validating);
    world.silent = None;
    let artifact = world.backup.status.as_mut().unwrap().artifact.as_mut().unwrap();
    artifact.etcd_version = "3.5.21".to_owned();
    assert_eq!(world.pass().reason, "VersionMismatch");
    assert_eq!(world.words(), [None; 3]);
}

#[test]
fn nothing_is_begun_from_a_backup_that_was_deleted_and_is_not_gone_yet() {
    let mut world = World::new(RestoreMode::DryRun);
    world.backup.metadata.deletion_timestamp = Some(now());
    assert_eq!(world.pass().reason, "BackupLeaving");
    assert_eq!(world.words(), [None; 3]);
}

#[test]
fn nothing_is_begun_in_place_on_a_node_without_a_guard_and_a_trial_is() {
    for guard in [Tristate::False, Tristate::Unknown] {
        let mut world = World::new(RestoreMode::InPlace);
        world.guard("cp2", guard);
        assert_eq!(world.passes(), RestoreState::Validating);
        assert_eq!(world.words(), [None; 3]);
        let plan = world.pass();
        assert_eq!(plan.reason, "NoGuard");
        assert!(
            plan.message.starts_with("cp2: ") && plan.message.contains("agent.guard.enabled"),
            "{}",
            plan.message
        );
        world.guard("cp2", Tristate::True);
        assert_eq!(world.passes(), RestoreState::Preparing);
        // Taken away while a person made up their mind.
        world.all_say(RestoreStage::Prepared);
        world.passes();
        world.object.spec.confirm = Some("prod".to_owned());
        world.guard("cp3", guard);
        assert_eq!(world.passes(), RestoreState::Arming);
        assert_eq!(world.pass().reason, "NoGuard");
        assert_eq!(world.words(), [Some(RestoreWord::Prepare); 3]);

        let mut world = World::new(RestoreMode::DryRun);
        world.guard("cp1", guard);
        assert_eq!(world.passes(), RestoreState::Preparing);
    }
}

#[test]
fn a_trial_is_made_on_one_node_and_asks_nobody() {
    let mut world = World::new(RestoreMode::DryRun);
    assert_eq!(world.passes(), RestoreState::Preparing);
    assert_eq!(world.words(), [Some(RestoreWord::Prepare), None, None]);
    world.says("cp1", RestoreStage::Done, "");
    assert_eq!(world.passes(), RestoreState::Completed);
    assert_eq!(world.object.status.unwrap().confirm_with, None);
}

#[test]
fn a_member_without_a_node_stops_it_by_name() {
    let mut world = World::new(RestoreMode::InPlace);
    world.reports.remove("cp3");
    let plan = world.pass();
    assert_eq!(plan.reason, "Members");
    assert!(plan.message.contains("3 members"), "{}", plan.message);
}
