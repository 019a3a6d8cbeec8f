//! The operator's frame: telemetry, election, and the work between them.
//!
//! What comes in: the configuration. What goes out: [`super::work`], with everything that it needs, while
//! this process leads. May touch: its port, and what `leader` touches.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::gates::GateProbe;
use super::leader::{Candidate, LeaderError, identity, random_word, run_while_leader};
use crate::api::{ApiServers, SetupError};
use crate::telemetry::http::{self, HttpError};
use crate::telemetry::metrics::MetricsError;
use crate::telemetry::{Health, Metrics, Publisher};

/// How the operator was started.
#[derive(Clone, Debug)]
pub struct OperatorConfig {
    /// Where its Leases, stores and backups lie; absent: the service account's.
    pub namespace: Option<String>,
    /// The pod's name; absent: a random one.
    pub identity: Option<String>,
    /// Where metrics and health are served.
    pub metrics_address: SocketAddr,
    /// Outside a cluster.
    pub kubeconfig: Option<PathBuf>,
    /// Whether `ClusterCutover`s are looked after.
    pub cutovers: bool,
}

/// What the work may use. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The API servers; the work keeps [`ApiServers::endpoints`] up to date.
    pub api: ApiServers,
    /// Where Leases, stores and backups lie.
    pub namespace: String,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Signs of life of the work's loops.
    pub health: Health,
    /// Events.
    pub events: Publisher,
    /// Whether `ClusterCutover`s are looked after.
    pub cutovers: bool,
    /// The gates; one for the life of the process, since it remembers.
    pub gates: Arc<GateProbe>,
}

/// Why the operator ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No client.
    #[error(transparent)]
    Api(#[from] SetupError),
    /// No port.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The work or its lease.
    #[error(transparent)]
    Leader(#[from] LeaderError),
}

/// Between two tries of the first contact.
const BETWEEN_CONTACTS: Duration = Duration::from_secs(5);
/// For the port to finish the answers in hand.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Runs the operator until `shutdown`.
///
/// # Errors
/// When it cannot start, or when the work ends badly; the process should then end with a failure and be
/// started again by its kubelet.
pub async fn run(config: OperatorConfig, shutdown: CancellationToken) -> Result<(), RunError> {
    let metrics = Arc::new(Metrics::new("operator")?);
    let health = Health::default();
    let listener = http::listen(config.metrics_address).await?;
    let api = ApiServers::connect(config.kubeconfig.as_deref(), None).await?;
    let namespace = config
        .namespace
        .unwrap_or_else(|| api.default_namespace().to_owned());
    // Without a name of its own, nobody may take its lease for that of a dead predecessor.
    let replica = config
        .identity
        .unwrap_or_else(|| format!("anonymous-{}", random_word()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %namespace, %replica, "operator");

    // Serving and publishing outlive the work, which may have last words.
    let afterwards = CancellationToken::new();
    let port = tokio::spawn(http::serve(
        listener,
        Arc::clone(&metrics),
        health.clone(),
        afterwards.clone(),
    ));
    tokio::spawn(
        afterwards
            .clone()
            .run_until_cancelled_owned(health.clone().watch_runtime()),
    );
    tokio::spawn(
        afterwards
            .clone()
            .run_until_cancelled_owned(first_contact(api.clone(), health.clone())),
    );
    let context = Context {
        events: Publisher::start(
            api.client(),
            api.endpoints().clone(),
            &replica,
            afterwards.clone(),
        ),
        gates: Arc::new(GateProbe::new(api.clone(), &namespace)),
        metrics: Arc::clone(&metrics),
        cutovers: config.cutovers,
        health,
        namespace,
        api,
    };

    let observer = Arc::clone(&metrics);
    let candidate = Candidate::new(
        context.api.client(),
        context.api.endpoints().clone(),
        &context.namespace,
        identity(&replica),
        Arc::new(move |epoch| observer.leading(epoch)),
    );
    let ended = run_while_leader(candidate, shutdown, |leadership| {
        super::work(context.clone(), leadership)
    })
    .await;
    afterwards.cancel();
    if timeout(LAST_ANSWERS, port).await.is_err() {
        tracing::debug!("a client of the metrics port does not let go");
    }
    Ok(ended?)
}

/// Ready means: an API server has answered once. A pod that cannot reach any is misconfigured, and a
/// rollout of Lockkeeper must not go on over it.
async fn first_contact(api: ApiServers, health: Health) {
    let began = Instant::now();
    loop {
        match api
            .within("ask for the version", api.client().apiserver_version())
            .await
        {
            Ok(version) => {
                tracing::info!(version = %version.git_version, "an API server answers");
                health.set_ready();
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "no API server for {} s", began.elapsed().as_secs());
                sleep(BETWEEN_CONTACTS).await;
            }
        }
    }
}
