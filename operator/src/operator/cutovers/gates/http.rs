//! A round of requests.

use std::time::Duration;

use futures::StreamExt as _;
use lockkeeper_crds::HttpGate;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder};
use tokio::time::timeout;

use super::{Answer, Hindrance, Outcome};
use crate::api::chain;
use crate::trust;

/// Requests of one round that are under way at a time.
const AT_ONCE: usize = 10;
/// How much of an answer is looked through.
const LOOKED_THROUGH: usize = 64 << 10;

/// Asks by requests.
pub(super) struct Http {
    http: HttpGate,
    client: Result<Client, String>,
}

impl Http {
    pub(super) fn new(spec: &HttpGate) -> Self {
        Self {
            client: client(spec).map_err(|e| chain(&e)),
            http: spec.clone(),
        }
    }

    pub(super) fn check(&self) -> Result<(), Hindrance> {
        match &self.client {
            Ok(_) => Ok(()),
            Err(why) => Err(Hindrance::block(format!(
                "no request can be made by http: {why}: correct url and caBundle"
            ))),
        }
    }

    /// No answer is a failure.
    pub(super) async fn round(&self) -> Answer {
        let (failed, message) = self.ask().await;
        let passed = failed * 100 <= self.http.requests * u32::from(self.http.max_failed_percent);
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        Answer {
            failed_requests: failed,
            ..Answer::new(outcome, message)
        }
    }

    /// How many requests failed, and what a person is told.
    async fn ask(&self) -> (u32, String) {
        let all = self.http.requests;
        let client = match &self.client {
            Ok(client) => client,
            Err(why) => return (all, format!("no request can be made: {why}")),
        };
        let limit = Duration::from_secs(self.http.timeout_seconds.into());
        let asked = futures::stream::iter(0..all).map(|_| async {
            match timeout(limit, self.one(client)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
            }
        });
        let answers: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let mut failures = answers.into_iter().filter_map(Result::err);
        match failures.next() {
            None => (0, format!("{all} of {all} requests were answered as wanted")),
            Some(first) => {
                let failed = u32::try_from(failures.count()).unwrap_or(all).saturating_add(1);
                (
                    failed,
                    format!("{failed} of {all} requests failed, one with: {first}"),
                )
            }
        }
    }

    async fn one(&self, client: &Client) -> Result<(), String> {
        let mut request = client.get(&self.http.url);
        for (name, value) in &self.http.headers {
            request = request.header(name, value);
        }
        let mut answer = request.send().await.map_err(|e| chain(&e.without_url()))?;
        let status = answer.status();
        let wanted = if self.http.statuses.is_empty() {
            status.is_success()
        } else {
            self.http.statuses.contains(&status.as_u16())
        };
        if !wanted {
            return Err(format!("status {}", status.as_u16()));
        }
        let Some(text) = &self.http.contains else {
            return Ok(());
        };
        let mut body = Vec::new();
        while let Some(more) = answer.chunk().await.map_err(|e| chain(&e.without_url()))? {
            body.extend_from_slice(&more);
            if body.len() >= LOOKED_THROUGH {
                break;
            }
        }
        body.truncate(LOOKED_THROUGH);
        let body = String::from_utf8_lossy(&body);
        if body.contains(text.as_str()) {
            Ok(())
        } else {
            Err(format!("the answer does not hold {text:?}"))
        }
    }
}

/// Each request on a connection of its own: a kept one would ask one cluster for ever.
fn client(http: &HttpGate) -> Result<Client, reqwest::Error> {
    believing(http.ca_bundle.as_deref(), &http.url)?
        .pool_max_idle_per_host(0)
        .build()
}

/// A client that believes these authorities alone, where there are any, and follows nobody.
pub(super) fn believing(authorities: Option<&str>, url: &str) -> Result<ClientBuilder, reqwest::Error> {
    let pem = authorities.map(str::as_bytes);
    let authorities = pem.map(Certificate::from_pem_bundle).transpose()?;
    let client = Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .user_agent(concat!("lockkeeper/", env!("CARGO_PKG_VERSION")));
    Ok(trust::only(authorities, url, client))
}
