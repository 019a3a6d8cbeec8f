//! HAProxy by its runtime API: weights of servers, and kept connections.
//!
//! | file | what |
//! | --- | --- |
//! | `cli` | one line asked of a socket, its answer |
//! | `table` | the tables in an answer |
//! | `backend` | a backend as it is seen, and whether it can be steered; pure |
//! | `shares` | weights of servers from shares of colours; pure |
//! | here | all HAProxys of the edge at once |
//!
//! Only weights are written. A server that a person took out (drain, maintenance) stays out and is not counted. A
//! weight of 0 is HAProxy's own way to drain: no new request, no persistence by `prefer-last-server`.

mod backend;
mod cli;
mod shares;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use futures::future::{join_all, try_join_all};
use lockkeeper_crds::{HaproxyTraffic, KeptConnections};

use super::{Seen, TrafficError, Weights, alike};
use backend::{Backend, Colours};
use cli::Endpoint;

const ENDPOINTS: &str = "spec.traffic.haproxy.endpoints";
const NO_ENDPOINT: &str = "is empty: name the runtime API of every HAProxy of the edge";

/// The HAProxys of an edge, and the backend in them.
#[derive(Clone, Debug)]
pub struct Haproxy {
    endpoints: Vec<Endpoint>,
    backend: String,
    colours: Colours,
    kept: KeptConnections,
}

impl Haproxy {
    pub(super) fn from_spec(spec: &HaproxyTraffic) -> Result<Self, TrafficError> {
        let endpoints = spec
            .endpoints
            .iter()
            .map(|text| Endpoint::parse(text))
            .collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(TrafficError::Spec {
                field: ENDPOINTS,
                problem: NO_ENDPOINT.to_owned(),
            });
        }
        name("spec.traffic.haproxy.backend", &spec.backend)?;
        Ok(Self {
            endpoints,
            backend: spec.backend.clone(),
            colours: Colours::new(&spec.blue, &spec.green)?,
            kept: spec.kept_connections,
        })
    }

    pub(super) fn targets(&self) -> BTreeSet<String> {
        self.endpoints
            .iter()
            .map(|endpoint| self.target(endpoint))
            .collect()
    }

    fn target(&self, endpoint: &Endpoint) -> String {
        format!("backend {} of HAProxy at {endpoint}", self.backend)
    }

    pub(super) async fn check(&self) -> Result<(), TrafficError> {
        try_join_all(self.endpoints.iter().map(async |endpoint| {
            self.look(endpoint).await?.shares()?;
            self.may_write(endpoint).await
        }))
        .await
        .map(drop)
    }

    pub(super) async fn seen(&self) -> Result<Seen, TrafficError> {
        let seen = try_join_all(self.endpoints.iter().map(async |endpoint| {
            let weights = self.look(endpoint).await?.shares()?;
            Ok::<_, TrafficError>((weights, format!("at {endpoint}")))
        }))
        .await?;
        let weights = alike(&seen)?.ok_or_else(|| TrafficError::Spec {
            field: ENDPOINTS,
            problem: NO_ENDPOINT.to_owned(),
        })?;
        let from: Vec<String> = self
            .endpoints
            .iter()
            .map(|endpoint| self.target(endpoint))
            .collect();
        Ok(Seen {
            weights,
            from: from.join(", "),
        })
    }

    /// Every HAProxy that can be set is set, also where another one cannot: going back must not wait for it.
    pub(super) async fn set(&self, weights: Weights) -> Result<(), TrafficError> {
        join_all(
            self.endpoints
                .iter()
                .map(|endpoint| self.set_one(endpoint, weights)),
        )
        .await
        .into_iter()
        .collect()
    }

    async fn set_one(&self, endpoint: &Endpoint, weights: Weights) -> Result<(), TrafficError> {
        let commands = self.look(endpoint).await?.commands(weights, self.kept)?;
        if commands.is_empty() {
            return Ok(());
        }
        let answer = self.ask(endpoint, &commands.join(";")).await?;
        match answer.trim() {
            "" => Ok(()),
            said => Err(self.refused(endpoint, said)),
        }
    }

    async fn look(&self, endpoint: &Endpoint) -> Result<Backend, TrafficError> {
        let line = format!("show stat {0} -1 -1;show servers state {0}", self.backend);
        let answer = self.ask(endpoint, &line).await?;
        Backend::read(&answer, self.target(endpoint), &self.colours)
    }

    /// Asks for what only `level admin` may have, and changes nothing: the weight of a server that there is not.
    async fn may_write(&self, endpoint: &Endpoint) -> Result<(), TrafficError> {
        let line = format!("set weight {}/lockkeeper:no:such:server 1", self.backend);
        let answer = self.ask(endpoint, &line).await?;
        if answer.trim() == "No such server." {
            return Ok(());
        }
        let said = answer.trim();
        Err(TrafficError::Refused {
            target: self.target(endpoint),
            detail: format!("weights cannot be set: give its `stats socket` `level admin` ({said})"),
        })
    }

    async fn ask(&self, endpoint: &Endpoint, line: &str) -> Result<String, TrafficError> {
        endpoint
            .ask(line)
            .await
            .map_err(|error| TrafficError::Unreachable {
                target: self.target(endpoint),
                detail: error.to_string(),
            })
    }

    fn refused(&self, endpoint: &Endpoint, said: &str) -> TrafficError {
        TrafficError::Refused {
            target: self.target(endpoint),
            detail: said.lines().next().unwrap_or_default().to_owned(),
        }
    }
}

/// A name as HAProxy accepts it: anything else could end the command and begin another.
fn name(field: &'static str, text: &str) -> Result<(), TrafficError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.:-".contains(c);
    if !text.is_empty() && text.chars().all(allowed) {
        return Ok(());
    }
    Err(TrafficError::Spec {
        field,
        problem: format!("has {text:?}, which is no name in HAProxy: letters, digits and _.:- only"),
    })
}
