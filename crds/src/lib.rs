//! The `lockkeeper.dev/v1alpha1` API.
//!
//! What comes in: nothing. What goes out: Rust types, and from them the manifests in `manifests/`
//! (`cargo run -p lockkeeper-crds --bin crds` writes them; a test fails when they drift).
//! May touch: nothing; no client, no clock.
//!
//! | kind | scope | written by |
//! | --- | --- | --- |
//! | [`ClusterVersion`] | cluster | a person or Git (`spec`), the operator (`status`) |
//! | [`ControlPlaneNode`] | cluster | the operator (`spec`: the ticket), the node's agent (`status`) |
//! | [`EtcdBackupStore`] | namespace | a person (`spec`), the operator (`status`) |
//! | [`EtcdBackupSchedule`] | namespace | a person or Git (`spec`), the operator (`status`) |
//! | [`EtcdBackup`] | namespace | anyone (`spec`), the operator (`status.node`), that node's agent (the rest) |
//! | [`EtcdRestore`] | namespace | a person (`spec`, and the confirmation), the operator (`status`) |
//! | [`ClusterCutover`] | cluster | a person or Git (`spec`), the operator (`status`) |

// The CustomResource derive emits public root types into these private modules; each is re-exported below.
#![allow(unreachable_pub)]
// Every printer column has a `name` and a `type_` of its own; the lint takes them for repetitions.
#![allow(clippy::duplicated_attributes)]

mod backup;
mod cluster_cutover;
mod cluster_version;
mod common;
mod control_plane_node;
mod restore;
mod schedule;
mod store;

pub use backup::*;
pub use cluster_cutover::*;
pub use cluster_version::*;
pub use common::*;
pub use control_plane_node::*;
pub use restore::*;
pub use schedule::*;
pub use store::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The API group of every kind.
pub const GROUP: &str = "lockkeeper.dev";

/// Every definition, in the order in which they are installed.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        ClusterVersion::crd(),
        ControlPlaneNode::crd(),
        EtcdBackupStore::crd(),
        EtcdBackup::crd(),
        EtcdBackupSchedule::crd(),
        EtcdRestore::crd(),
        ClusterCutover::crd(),
    ]
}

/// A definition's file name and its text.
///
/// # Errors
/// When it cannot be serialised, which a test rules out for each of ours.
pub fn manifest(crd: &CustomResourceDefinition) -> Result<(String, String), serde_yaml::Error> {
    let text = serde_yaml::to_string(crd)?;
    Ok((
        format!("{}.yaml", crd.spec.names.plural),
        format!("# Generated from crds/src by `make generate`.\n{text}"),
    ))
}
