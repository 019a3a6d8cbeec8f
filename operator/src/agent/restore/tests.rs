//! The engine on a real directory: what it begins, what it refuses, and that manifests come back to the byte.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures::FutureExt as _;

use super::testing::{entry, order};
use super::*;

struct Node {
    root: tempfile::TempDir,
    host: Host,
}

const ETCD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: etcd, namespace: kube-system}\nspec:\n  containers:\n  - name: etcd\n    image: registry.k8s.io/etcd:3.6.6-0\n    command: [etcd, --name=cp1, --data-dir=/var/lib/etcd, --peer-cert-file=/p.crt, --peer-key-file=/p.key, --peer-trusted-ca-file=/ca.crt]\n";

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let host = Host::new(root.path(), Path::new("/manifests"), Path::new("/state"));
        fs::create_dir_all(host.manifests()).unwrap();
        fs::create_dir_all(root.path().join("var/lib/etcd/member")).unwrap();
        for part in Part::ALL {
            fs::write(
                host.manifests().join(format!("{part}.yaml")),
                format!("# {part}\n"),
            )
            .unwrap();
        }
        fs::write(host.manifests().join("etcd.yaml"), ETCD).unwrap();
        fs::write(root.path().join("guard.yaml"), "guard").unwrap();
        Self { root, host }
    }

    fn restorer(&self) -> Restorer {
        self.restorer_with(Some(self.root.path().join("guard.yaml")))
    }

    fn restorer_with(&self, guard: Option<std::path::PathBuf>) -> Restorer {
        let fails: Fetch = Arc::new(|_, _, _| async { Err("no such backup".to_owned()) }.boxed());
        Restorer::open(Tools {
            host: self.host.clone(),
            cri: Cri::new("unix:///nowhere").unwrap(),
            member: Arc::new(EtcdMember::from_host(self.root.path(), None)),
            guard: Guard::new(self.host.clone(), guard),
            fetch: Some(fails),
            node: "cp1".to_owned(),
        })
    }
}

fn stage(restorer: &Restorer) -> Option<RestoreStage> {
    restorer.progress().map(|p| p.stage)
}

#[tokio::test]
async fn a_backup_that_cannot_be_had_drops_the_order_and_it_is_never_taken_up_again() {
    let node = Node::new();
    let mut restorer = node.restorer();
    let order = order(1);
    for _ in 0..50 {
        if !restorer.step(Told::Order(Some(&order)), true, false).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(stage(&restorer), Some(RestoreStage::Dropped));
    assert_eq!(restorer.progress().unwrap().message, "no such backup");
    let mut again = node.restorer();
    assert!(!again.step(Told::Order(Some(&order)), true, false).await);
    assert!(!node.root.path().join("var/lib/etcd/.lockkeeper").exists() || !again.is_going());
    assert!(!restorer.tools.guard.is_on());
}

#[tokio::test]
async fn nothing_is_prepared_in_place_without_a_guard_and_nothing_armed() {
    let node = Node::new();
    let gone = node.root.path().join("gone.yaml");
    for (guard, mode, says) in [
        (None, RestoreMode::InPlace, "agent.guard.enabled"),
        (Some(gone), RestoreMode::InPlace, "agent.guard.enabled"),
        (None, RestoreMode::DryRun, "no such backup"),
    ] {
        let mut restorer = node.restorer_with(guard.clone());
        let order = RestoreOrder {
            id: format!("{mode:?} {guard:?}"),
            mode,
            ..order(1)
        };
        for _ in 0..500 {
            restorer.step(Told::Order(Some(&order)), true, false).await;
            if stage(&restorer) == Some(RestoreStage::Dropped) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let told = restorer.progress().unwrap();
        assert_eq!(told.stage, RestoreStage::Dropped);
        assert!(told.message.contains(says), "{}", told.message);
    }
    let mut restorer = node.restorer_with(None);
    let prepared = Entry {
        stage: Stage::Prepared,
        ..entry("cp1", 1)
    };
    restorer.save(prepared.clone()).unwrap();
    let armed = restorer.enter(&prepared, Stage::Armed, String::new()).await;
    assert!(matches!(armed, Err(EngineError::NoGuard)), "{armed:?}");
    assert_eq!(stage(&restorer), Some(RestoreStage::Prepared));
}

#[tokio::test]
async fn nothing_is_begun_beside_a_ticket_or_in_the_middle_of_an_order() {
    let node = Node::new();
    let mut restorer = node.restorer();
    let mut order = order(1);
    assert!(!restorer.step(Told::Order(Some(&order)), false, false).await);
    order.word = RestoreWord::Go;
    assert!(!restorer.step(Told::Order(Some(&order)), true, false).await);
    assert_eq!(stage(&restorer), None);
}

#[tokio::test]
async fn manifests_come_back_to_the_byte_and_an_edit_meanwhile_is_kept() {
    let node = Node::new();
    let mut restorer = node.restorer();
    let armed = Entry {
        stage: Stage::Armed,
        ..entry("cp1", 1)
    };
    restorer.save(armed.clone()).unwrap();
    restorer.enter(&armed, Stage::Going, String::new()).await.unwrap();
    let path = node.host.manifests().join("kube-scheduler.yaml");
    fs::write(&path, "edited").unwrap();
    for part in Part::ALL {
        let entry = restorer.live().unwrap().clone();
        restorer.take_off(&entry, part).unwrap();
    }
    assert_eq!(fs::read_dir(node.host.manifests()).unwrap().count(), 0);
    // Another process goes on.
    let restorer = node.restorer();
    let entry = restorer.live().unwrap().clone();
    for part in Part::ALL {
        restorer.put_on(&entry, part).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "edited");
    assert_eq!(
        fs::read_to_string(node.host.manifests().join("etcd.yaml")).unwrap(),
        ETCD
    );
}

#[tokio::test]
async fn the_guard_is_on_while_it_goes_and_off_after() {
    let node = Node::new();
    let mut restorer = node.restorer();
    for (stage, on) in [
        (Stage::Prepared, false),
        (Stage::Armed, true),
        (Stage::Undoing, true),
        (Stage::Undone, false),
    ] {
        let next = Entry {
            stage,
            ..entry("cp1", 1)
        };
        restorer.save(next).unwrap();
        restorer.tend_guard(true).unwrap();
        assert_eq!(restorer.tools.guard.is_on(), on, "{stage:?}");
    }
}

#[tokio::test]
async fn a_broken_journal_begins_nothing_and_says_where_the_copies_are() {
    let node = Node::new();
    fs::create_dir_all(node.host.state()).unwrap();
    fs::write(node.host.state().join("restore.json"), "{").unwrap();
    let restorer = node.restorer();
    assert!(restorer.trouble().unwrap().contains("restores"));
    assert!(restorer.progress().is_none());
}
