//! The process around the agent: its port, and a client that needs no API to begin.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{AgentConfig, Error};
use crate::api::{Address, ApiServers, SetupError};
use crate::telemetry::http::{self, HttpError};
use crate::telemetry::metrics::MetricsError;
use crate::telemetry::{Health, Metrics};

/// Why the agent's process ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No client.
    #[error(transparent)]
    Api(#[from] SetupError),
    /// No port.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The agent itself.
    #[error(transparent)]
    Agent(#[from] Error),
}

/// Runs the agent, with metrics and health on its port, until `shutdown`.
///
/// It asks its own node's API server first, and any other through the cluster's service when that one is
/// away: the one that is away is most often the one that is being replaced here.
///
/// # Errors
/// When it cannot begin, or the agent ended by itself.
pub async fn serve(
    config: AgentConfig,
    metrics_address: SocketAddr,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let metrics = Arc::new(Metrics::new("agent")?);
    let health = Health::default();
    let listener = http::listen(metrics_address).await?;
    let own: Option<Address> = config.own_api_server().and_then(|at| at.parse().ok());
    let api = ApiServers::connect(None, own).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = %config.node_name, "agent");
    let afterwards = CancellationToken::new();
    tokio::spawn(http::serve(listener, metrics, health.clone(), afterwards.clone()));
    tokio::spawn(
        afterwards
            .clone()
            .run_until_cancelled_owned(health.clone().watch_runtime()),
    );
    health.set_ready();
    let ended = super::run(config, api.client(), shutdown).await;
    afterwards.cancel();
    Ok(ended?)
}
