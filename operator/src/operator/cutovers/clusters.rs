//! The two clusters of a cutover: how each is reached, and whether it answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use lockkeeper_policies::cutover::Side;
use tokio::task::AbortHandle;

use crate::api::{ApiError, ApiServers};

/// Between two questions: a few small requests a minute, and a loss is noticed within seconds.
const EVERY: Duration = Duration::from_secs(3);

/// How a cluster was found when it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    /// It was asked at least once.
    pub(super) asked: bool,
    /// Since when it does not answer, or is not ready.
    pub(super) lost: Option<DateTime<Utc>>,
    /// Why.
    pub(super) message: String,
    /// It answers, and our credentials do not suffice to be told.
    pub(super) forbidden: bool,
    /// What its API server runs.
    pub(super) version: Option<String>,
}

/// One of the two.
pub(super) struct Cluster {
    pub(super) side: Side,
    pub(super) api: ApiServers,
    health: Arc<Mutex<Health>>,
    asking: AbortHandle,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Cluster {
    /// Begins to ask it.
    pub(super) fn new(side: Side, api: ApiServers) -> Self {
        let health = Arc::new(Mutex::new(Health::default()));
        let asking = tokio::spawn(ask_on(api.clone(), Arc::clone(&health))).abort_handle();
        Self {
            side,
            api,
            health,
            asking,
        }
    }

    pub(super) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What tells this cluster from every other: the UID of its namespace `kube-system`.
    pub(super) async fn uid(&self) -> Result<String, String> {
        let api: Api<Namespace> = Api::all(self.api.client());
        let what = format!("read namespace kube-system of {}", self.side);
        let found = self.api.within(what, api.get("kube-system")).await;
        let found = found.map_err(|e| e.to_string())?;
        found
            .metadata
            .uid
            .ok_or_else(|| format!("namespace kube-system of {} has no UID", self.side))
    }
}

/// Never ends; aborted with its cluster.
async fn ask_on(api: ApiServers, health: Arc<Mutex<Health>>) {
    loop {
        let answer = ask(&api).await;
        {
            let mut known = health.lock().unwrap_or_else(PoisonError::into_inner);
            known.asked = true;
            match answer {
                Ok(version) => {
                    known.version = Some(version);
                    known.lost = None;
                    known.message.clear();
                    known.forbidden = false;
                }
                Err(error) => {
                    known.lost = known.lost.or_else(|| Some(Utc::now()));
                    known.message = error.to_string();
                    known.forbidden = error.is_forbidden();
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The version, if it is ready too.
async fn ask(api: &ApiServers) -> Result<String, ApiError> {
    let client = api.client();
    let version = api.within("ask for the version", client.apiserver_version());
    let version = version.await?.git_version;
    let ready = async {
        let request = http::Request::get("/readyz").body(Vec::new());
        let request = request.map_err(kube::Error::HttpError)?;
        client.request_text(request).await
    };
    api.within("ask whether it is ready", ready).await?;
    Ok(version)
}
