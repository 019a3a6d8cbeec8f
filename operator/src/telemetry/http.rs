//! `/metrics`, `/healthz` and `/readyz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Health, Metrics};

/// The port could not be served.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// It could not be opened.
    #[error(
        "cannot listen on {address} for metrics and health: {source}; choose another with --metrics-address"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It was open and failed.
    #[error("the server for metrics and health failed: {0}")]
    Serve(#[source] std::io::Error),
}

/// Opens the port. Separate from serving, so that a port in use ends the process at its start.
///
/// # Errors
/// When it cannot be opened.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| HttpError::Listen { address, source })
}

/// Serves until `shutdown`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), HttpError> {
    axum::serve(listener, router(metrics, health))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(HttpError::Serve)
}

fn router(metrics: Arc<Metrics>, health: Health) -> Router {
    let probes = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health);
    Router::new()
        .route("/metrics", get(exposition))
        .with_state(metrics)
        .merge(probes)
}

async fn exposition(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    match metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)],
            text,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(header::CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}

async fn healthz(State(health): State<Health>) -> (StatusCode, String) {
    let silent = health.silent(Instant::now());
    if silent.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines = silent
        .iter()
        .map(|(name, silent)| format!("{name} has not ticked for {} s\n", silent.as_secs()));
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}

async fn readyz(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "no API server has answered yet\n",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    async fn ask(path: &str, metrics: Arc<Metrics>, health: Health) -> (StatusCode, String) {
        let request = axum::http::Request::get(path).body(Body::empty()).unwrap();
        let response = router(metrics, health).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn the_answers_follow_the_health() {
        let metrics = Arc::new(Metrics::new("operator").unwrap());
        let health = Health::default();
        let all = |path| ask(path, Arc::clone(&metrics), health.clone());
        assert_eq!(all("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready();
        assert_eq!(all("/readyz").await.0, StatusCode::OK);
        let _pulse = health.pulse("reconcile", std::time::Duration::from_secs(60));
        assert_eq!(all("/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
        tokio::time::advance(std::time::Duration::from_secs(61)).await;
        assert_eq!(
            all("/healthz").await,
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "reconcile has not ticked for 61 s\n".to_owned()
            )
        );
        let (status, text) = all("/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(text.contains("lockkeeper_build_info{"), "{text}");
    }
}
