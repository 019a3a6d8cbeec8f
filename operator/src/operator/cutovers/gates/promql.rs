//! A round that is a query to a Prometheus.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderName, HeaderValue, header};
use lockkeeper_crds::PromQlGate;
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::http::believing;
use super::{Answer, Hindrance, Outcome, Reach};
use crate::api::chain;

/// An answer with a thousand series is a quarter of it.
const LONGEST: usize = 1 << 20;
/// What a server calls now may be so far from what we do: clocks differ. A cache that answers for longer is noticed.
const NOW: TimeDelta = TimeDelta::seconds(60);

/// Asks a Prometheus.
pub(super) struct PromQl {
    spec: PromQlGate,
    client: Result<Client, String>,
}

/// Why there is no value.
#[derive(Debug, PartialEq)]
enum NoValue {
    /// The server does not understand the query.
    Query(String),
    Unknown(String),
}

/// One value of an answer.
#[derive(Debug, PartialEq)]
struct Sample {
    labels: String,
    at: f64,
    value: f64,
}

/// As the HTTP API has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    status: String,
    data: Option<Data>,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

#[derive(Deserialize)]
struct Series {
    #[serde(default)]
    metric: std::collections::BTreeMap<String, String>,
    /// Absent: a histogram.
    value: Option<(f64, String)>,
}

impl PromQl {
    pub(super) fn new(spec: &PromQlGate) -> Self {
        let client = believing(spec.ca_bundle.as_deref(), &spec.url).and_then(reqwest::ClientBuilder::build);
        Self {
            client: client.map_err(|e| chain(&e)),
            spec: spec.clone(),
        }
    }

    /// Asks once: a query that no server understands would be found in the middle of a step otherwise.
    pub(super) async fn check(&self, reach: &Reach) -> Result<(), Hindrance> {
        if let Err(why) = &self.client {
            return Err(Hindrance::block(format!(
                "no query can be sent by promQL: {why}: correct url and caBundle"
            )));
        }
        let answer = match self.ask(reach).await {
            Ok(body) => read(&body),
            Err(why) => return Err(Hindrance::unknown(why)),
        };
        match answer {
            Err(NoValue::Query(why)) => Err(Hindrance::block(format!("correct promQL.query: {why}"))),
            // It may have no value yet: rounds tell.
            Err(NoValue::Unknown(_)) | Ok(_) => Ok(()),
        }
    }

    pub(super) async fn round(&self, reach: &Reach, now: DateTime<Utc>) -> Answer {
        let samples = match self.ask(reach).await {
            Ok(body) => read(&body),
            Err(why) => return Answer::unknown(why),
        };
        match samples {
            Ok(samples) => judge(&self.spec, &samples, now),
            Err(NoValue::Query(why) | NoValue::Unknown(why)) => Answer::unknown(why),
        }
    }

    /// What the server says, whatever it is.
    async fn ask(&self, reach: &Reach) -> Result<Vec<u8>, String> {
        let limit = Duration::from_secs(self.spec.timeout_seconds.into());
        match timeout(limit, self.exchange(reach)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("Prometheus did not answer within {} s", limit.as_secs())),
        }
    }

    async fn exchange(&self, reach: &Reach) -> Result<Vec<u8>, String> {
        let client = self.client.as_ref().map_err(Clone::clone)?;
        let mut request = client.get(self.url()?);
        for (name, value) in &self.spec.headers {
            let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no name of a header"))?;
            request = request.header(name, value);
        }
        if let Some(secret) = &self.spec.token_secret {
            let token = reach.secret(&secret.name, "token")?;
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| format!("Secret {} holds a token that no header may hold", secret.name))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let unreachable =
            |e: reqwest::Error| format!("Prometheus cannot be asked: {}", chain(&e.without_url()));
        let mut answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let mut body = Vec::new();
        while let Some(more) = answer.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&more);
            if body.len() > LONGEST {
                return Err("the answer is longer than 1 MiB: sum the query up".to_owned());
            }
        }
        // Errors of the query come with a body that says more.
        if status.is_success() || serde_json::from_slice::<Reply>(&body).is_ok() {
            Ok(body)
        } else {
            Err(format!("Prometheus answered with status {}", status.as_u16()))
        }
    }

    fn url(&self) -> Result<Url, String> {
        let text = format!("{}/api/v1/query", self.spec.url.trim_end_matches('/'));
        let mut url = Url::parse(&text).map_err(|e| format!("promQL.url cannot be read: {e}"))?;
        url.query_pairs_mut()
            .append_pair("query", &self.spec.query)
            .append_pair("timeout", &format!("{}s", self.spec.timeout_seconds));
        Ok(url)
    }
}

/// The values of an answer; there is at least one, and all are finite.
fn read(body: &[u8]) -> Result<Vec<Sample>, NoValue> {
    let unknown = |why: &str| Err(NoValue::Unknown(why.to_owned()));
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else {
        return unknown("the answer is not one of Prometheus' HTTP API");
    };
    if reply.status != "success" {
        let why = format!("Prometheus says {}: {}", reply.error_type, reply.error);
        return Err(match &*reply.error_type {
            "bad_data" => NoValue::Query(why),
            _ => NoValue::Unknown(why),
        });
    }
    if let Some(first) = reply.warnings.first() {
        return Err(NoValue::Unknown(format!(
            "the answer comes with a warning: {first}"
        )));
    }
    let Some(data) = reply.data else {
        return unknown("the answer holds no data");
    };
    let samples = match &*data.result_type {
        "scalar" => serde_json::from_value::<(f64, String)>(data.result)
            .ok()
            .and_then(|value| sample(String::new(), &value))
            .map(|sample| vec![sample]),
        "vector" => serde_json::from_value::<Vec<Series>>(data.result)
            .ok()
            .and_then(|all| all.into_iter().map(named).collect()),
        other => {
            return Err(NoValue::Query(format!(
                "it gives a {other}: a scalar or an instant vector is needed"
            )));
        }
    };
    let Some(samples) = samples else {
        return unknown("the answer holds something else than numbers");
    };
    if samples.is_empty() {
        return unknown("the query gives no value");
    }
    match samples.iter().find(|s| !s.value.is_finite()) {
        Some(odd) => Err(NoValue::Unknown(format!(
            "the value{} is {}",
            odd.labels, odd.value
        ))),
        None => Ok(samples),
    }
}

fn named(series: Series) -> Option<Sample> {
    let labels = series
        .metric
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"));
    let labels: Vec<String> = labels.collect();
    let labels = match &*labels {
        [] => String::new(),
        labels => format!(" of {{{}}}", labels.join(", ")),
    };
    sample(labels, &series.value?)
}

fn sample(labels: String, (at, value): &(f64, String)) -> Option<Sample> {
    let (at, value) = (*at, value.parse().ok()?);
    Some(Sample { labels, at, value })
}

fn judge(spec: &PromQlGate, samples: &[Sample], now: DateTime<Utc>) -> Answer {
    #[allow(clippy::cast_precision_loss)] // Milliseconds of this century are exact.
    let now = now.timestamp_millis() as f64 / 1000.0;
    let limit = NOW.as_seconds_f64();
    if let Some(old) = samples.iter().find(|s| (s.at - now).abs() > limit) {
        return Answer::unknown(format!(
            "the answer is {:.0} s from now: it is a cache's, or a clock is wrong",
            old.at - now
        ));
    }
    let within =
        |s: &&Sample| spec.min.is_none_or(|min| s.value >= min) && spec.max.is_none_or(|max| s.value <= max);
    let wanted = match (spec.min, spec.max) {
        (Some(min), Some(max)) => format!("{min} to {max}"),
        (Some(min), None) => format!("at least {min}"),
        (None, max) => format!("at most {}", max.unwrap_or(f64::INFINITY)),
    };
    match (samples.iter().find(|s| !within(s)), samples) {
        (Some(bad), _) => Answer::new(
            Outcome::Failed,
            format!("the value{} is {}, wanted is {wanted}", bad.labels, bad.value),
        ),
        (None, [only]) => Answer::new(
            Outcome::Passed,
            format!("the value is {}, wanted is {wanted}", only.value),
        ),
        (None, all) => Answer::new(Outcome::Passed, format!("{} values are {wanted}", all.len())),
    }
}

#[cfg(test)]
#[path = "promql_tests.rs"]
mod tests;
