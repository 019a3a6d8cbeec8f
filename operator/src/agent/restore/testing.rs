//! An order for tests.

use chrono::DateTime;
use lockkeeper_crds::{
    LocalReference, RestoreDeadlines, RestoreMember, RestoreMode, RestoreOrder, RestoreWord, RestoredBackup,
};
use lockkeeper_policies::NodeName;
use lockkeeper_policies::restore::Stage;

use super::journal::Entry;
use super::place::Place;

pub(super) fn order(nodes: u8) -> RestoreOrder {
    RestoreOrder {
        id: "the-id".to_owned(),
        name: "back".to_owned(),
        mode: RestoreMode::InPlace,
        word: RestoreWord::Prepare,
        store: LocalReference {
            name: "default".to_owned(),
        },
        key: "a-12345678".to_owned(),
        sha256: String::new(),
        allow_other_cluster: false,
        members: (1..=nodes)
            .map(|i| RestoreMember {
                node: format!("cp{i}"),
                name: format!("cp{i}"),
                peer_urls: format!("https://10.0.0.{i}:2380"),
            })
            .collect(),
        bump_revision: 1_000_000_000,
        cluster_id: "cafe".to_owned(),
        directory: None,
        deadlines: RestoreDeadlines::default(),
        counts: false,
    }
}

pub(super) fn backup() -> RestoredBackup {
    RestoredBackup {
        uri: "s3://b/a-12345678/snapshot.db".to_owned(),
        taken_at: None,
        revision: 100,
        etcd_version: "3.6.6".to_owned(),
        cluster_id: "cafe".to_owned(),
        size_bytes: 1,
        sha256: String::new(),
    }
}

pub(crate) fn entry(node: &str, nodes: u8) -> Entry {
    Entry {
        order: order(nodes),
        node: NodeName::from(node),
        place: Place {
            data: "/var/lib/etcd".into(),
            image: "registry.k8s.io/etcd:3.6.6-0".to_owned(),
            name: node.to_owned(),
            peer_files: Default::default(),
        },
        stage: Stage::Preparing,
        since: DateTime::UNIX_EPOCH,
        deadline: DateTime::UNIX_EPOCH,
        message: String::new(),
        manifests: Default::default(),
        backup: None,
        loss: None,
        report: None,
        revision_after: None,
    }
}
