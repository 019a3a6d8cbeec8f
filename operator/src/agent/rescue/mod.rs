//! A control plane without any API server, from a shell on its nodes: the engine behind `lockkeeper rescue`.
//!
//! | | |
//! | --- | --- |
//! | comes in | the node's manifests, data directory, containers; etcd members' answers |
//! | goes out | manifests, the data directory's content, changes of etcd's member list |
//! | may touch | `etcd.yaml` and `kube-apiserver.yaml`, etcd's data directory, the state directory |
//!
//! | file | what |
//! | --- | --- |
//! | `steps`, `sight` | decides the one next act; pure |
//! | `run`, `book` | do it: journal first |
//! | `check` | whether etcd takes a snapshot |
//! | `data` | the data directory, copied, moved, put back |
//! | `ground` | containers, processes, members |
//! | `survey`, `view` | what this node has and what is in hand, for a person who chooses |
//! | `start` | begins one, goes on with it, takes it back; the claim |
//! | `quorum`, `rejoin` | what must hold before |
//! | `restore` | a backup, beside the data in use, before anything is stopped |
//!
//! Agent and guard act only while no rescue is in hand (`in_hand`), and let go of the claim meanwhile.

mod book;
pub(crate) mod check;
mod data;
mod ground;
mod quorum;
mod rejoin;
pub(crate) mod restore;
mod run;
mod sight;
mod start;
mod steps;
pub(crate) mod survey;
pub(crate) mod view;

use super::host::Host;

pub(crate) use book::{BookError, Entry, Kind, Step, in_hand};
pub(crate) use quorum::{Copies, CopyEnd};
pub(crate) use restore::Chosen;
pub(crate) use run::sentence;
pub(crate) use start::{Begin, StartError, begin, put_back};

/// True while a rescue of this kind is in hand on this node.
pub(crate) fn is_in_hand(host: &Host, kind: Kind) -> Result<bool, BookError> {
    let entry = book::Book::new(host.clone()).load()?;
    Ok(entry.is_some_and(|entry| entry.is_live() && entry.kind == kind))
}

/// The host of a URL, for a person to type.
pub(crate) fn host_of(url: &str) -> String {
    let parsed: Option<http::Uri> = url.parse().ok();
    parsed
        .as_ref()
        .and_then(http::Uri::host)
        .unwrap_or(url)
        .to_owned()
}
