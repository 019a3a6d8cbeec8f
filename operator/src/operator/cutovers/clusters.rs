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

/// How one is reached, for those who outlive what is known of it.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) api: ApiServers,
    health: Arc<Mutex<Health>>,
}

impl Link {
    pub(super) fn health(&self) -> Health {
        known(&self.health)
    }
}

fn known(health: &Mutex<Health>) -> Health {
    health.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    /// Begins to ask it. `begun_with`: the UID of the cluster that it must be; another one counts as lost.
    pub(super) fn new(side: Side, api: ApiServers, begun_with: Option<String>) -> Self {
        let health = Arc::new(Mutex::new(Health::default()));
        let asking = ask_on(side, api.clone(), begun_with, Arc::clone(&health));
        let asking = tokio::spawn(asking).abort_handle();
        Self {
            side,
            api,
            health,
            asking,
        }
    }

    pub(super) fn health(&self) -> Health {
        known(&self.health)
    }

    pub(super) fn link(&self) -> Link {
        Link {
            api: self.api.clone(),
            health: Arc::clone(&self.health),
        }
    }

    /// What tells this cluster from every other: the UID of its namespace `kube-system`.
    pub(super) async fn uid(&self) -> Result<String, String> {
        let found = uid(self.side, &self.api).await.map_err(|e| e.to_string())?;
        found.ok_or_else(|| format!("namespace kube-system of {} has no UID", self.side))
    }
}

async fn uid(side: Side, api: &ApiServers) -> Result<Option<String>, ApiError> {
    let namespaces: Api<Namespace> = Api::all(api.client());
    let what = format!("read namespace kube-system of {side}");
    let found = api.within(what, namespaces.get("kube-system")).await?;
    Ok(found.metadata.uid)
}

/// Never ends; aborted with its cluster.
async fn ask_on(side: Side, api: ApiServers, mut begun_with: Option<String>, health: Arc<Mutex<Health>>) {
    loop {
        let mut answer = ask(&api).await.map_err(|e| (e.to_string(), e.is_forbidden()));
        if let (Ok(_), Some(wanted)) = (&answer, &begun_with) {
            match uid(side, &api).await {
                Err(error) => answer = Err((error.to_string(), error.is_forbidden())),
                Ok(Some(found)) if found == *wanted => begun_with = None,
                Ok(_) => answer = Err((another(side), false)),
            }
        }
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
                Err((message, forbidden)) => {
                    known.lost = known.lost.or_else(|| Some(Utc::now()));
                    known.message = message;
                    known.forbidden = forbidden;
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn another(side: Side) -> String {
    format!(
        "the kubeconfig of {side} leads to another cluster than the one that this cutover began with: put that one's back, or set spec.abort"
    )
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
