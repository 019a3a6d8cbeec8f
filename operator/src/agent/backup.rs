//! Snapshots of the local etcd member. (A stand-in until its own branch is merged.)

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::etcd::EtcdMember;

/// Why it ended.
#[derive(Debug, thiserror::Error)]
#[error("snapshots are not built in")]
pub struct BackupError;

/// Takes the snapshots that this node is chosen for.
///
/// # Errors
/// Never, as a stand-in.
pub async fn run(
    _client: kube::Client,
    _namespace: String,
    _node: String,
    _member: Arc<EtcdMember>,
    shutdown: CancellationToken,
) -> Result<(), BackupError> {
    shutdown.cancelled().await;
    Ok(())
}
