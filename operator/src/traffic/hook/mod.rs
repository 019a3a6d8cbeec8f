//! An HTTP endpoint that knows how to move traffic. The contract is told at `HookTraffic` in `crds`.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderValue, header};
use lockkeeper_crds::HookTraffic;
use reqwest::{Client, RequestBuilder, Response, Url, redirect};

use super::{Secrets, Seen, TrafficError, Weights, told};
use crate::trust;

/// The longest that the endpoint may take: it asks a load balancer's own API, across the world perhaps.
const LIMIT: Duration = Duration::from_secs(4);
/// The longest body that is read.
const LONGEST: usize = 4096;

const URL: &str = "spec.traffic.hook.url";
const CA: &str = "spec.traffic.hook.caBundle";
const TOKEN: &str = "spec.traffic.hook.tokenSecret";

/// The endpoint.
#[derive(Clone, Debug)]
pub struct Hook {
    client: Client,
    url: Url,
    settles_in: Duration,
}

impl Hook {
    pub(super) fn from_spec(spec: &HookTraffic, secrets: &Secrets) -> Result<Self, TrafficError> {
        let wrong = |field: &'static str, problem: &str| TrafficError::Spec {
            field,
            problem: problem.to_owned(),
        };
        let url = Url::parse(&spec.url).map_err(|_| wrong(URL, "is no URL"))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong(URL, "must hold neither a user nor a query"));
        }
        let parsed = |pem: &String| {
            reqwest::Certificate::from_pem_bundle(pem.as_bytes())
                .ok()
                .filter(|certificates| !certificates.is_empty())
                .ok_or_else(|| wrong(CA, "holds no certificate in PEM"))
        };
        let authorities = spec.ca_bundle.as_ref().map(parsed).transpose()?;
        let client = Client::builder()
            .timeout(LIMIT)
            .redirect(redirect::Policy::none());
        let mut client = trust::only(authorities, url.as_str(), client);
        if let Some(secret) = &spec.token_secret {
            if url.scheme() != "https" {
                return Err(wrong(
                    URL,
                    "must begin with https://, or the token goes in the clear",
                ));
            }
            let token = secrets.text(TOKEN, &secret.name, "token")?;
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| wrong(TOKEN, "holds a token that no header may hold"))?;
            value.set_sensitive(true);
            client = client.default_headers([(header::AUTHORIZATION, value)].into_iter().collect());
        }
        Ok(Self {
            client: client
                .build()
                .map_err(|error| wrong(URL, &crate::api::chain(&error)))?,
            url,
            settles_in: Duration::from_secs(spec.settles_in_seconds.into()),
        })
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        BTreeSet::from([self.target()])
    }

    fn target(&self) -> String {
        format!("the hook {}", self.url)
    }

    /// The dry run is made with what is set: an endpoint that takes it for a real one changes nothing.
    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        let seen = self.seen().await?;
        let mut url = self.url.clone();
        url.set_query(Some("dryRun=true"));
        self.put(url, seen.weights).await
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let mut answer = self.ask(self.client.get(self.url.clone())).await?;
        let garbled = |detail: &str| TrafficError::Garbled {
            target: self.target(),
            detail: detail.to_owned(),
        };
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.unreachable(error))? {
            body.extend_from_slice(&piece);
            if body.len() > LONGEST {
                return Err(garbled("it is longer than 4 KiB"));
            }
        }
        Ok(Seen {
            weights: told(&body).map_err(|why| garbled(&why))?,
            from: self.target(),
        })
    }

    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        self.put(self.url.clone(), weights).await
    }

    pub(super) const fn settles_in(&self) -> Duration {
        self.settles_in
    }

    async fn put(&self, url: Url, weights: Weights) -> Result<(), TrafficError> {
        let body = serde_json::json!(weights).to_string();
        let request = self
            .client
            .put(url)
            .header(header::CONTENT_TYPE, "application/json");
        self.ask(request.body(body)).await.map(drop)
    }

    /// What the endpoint says beside its status is left out: it may quote what it was sent.
    async fn ask(&self, request: RequestBuilder) -> Result<Response, TrafficError> {
        let answer = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        Err(TrafficError::Refused {
            target: self.target(),
            detail: format!("it answered {status}"),
        })
    }

    fn unreachable(&self, error: reqwest::Error) -> TrafficError {
        TrafficError::Unreachable {
            target: self.target(),
            detail: crate::api::chain(&error.without_url()),
        }
    }
}
