//! The requests of a round. Each goes to exactly one server.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::judge::failing_checks;
use super::{Gate, GateResult, Server, join};
use crate::api::explain;

/// The Lease that is written. Two round trips a server and round; nothing reads it but the gates.
const GATE_LEASE: &str = "lockkeeper-gate";

/// What `/readyz` said.
pub(super) enum Readiness {
    Ready,
    Unready(String),
    /// Refused, reset, silent.
    Mute(String),
}

/// What one server answered in the first half.
pub(super) struct Asked {
    pub(super) client: Option<Client>,
    pub(super) readiness: Readiness,
    /// The server's own clock, of the answer's `Date`.
    pub(super) clock: Option<Timestamp>,
    version: Result<String, String>,
    nonce: String,
    written: Result<(), String>,
}

impl Asked {
    pub(super) async fn of(
        client: Client,
        namespace: &str,
        index: usize,
        nonce: String,
        limit: Duration,
    ) -> Self {
        let ((readiness, clock), (version, written)) = join(
            readyz(&client, limit),
            join(
                limited(limit, version(&client)),
                limited(limit, write(&client, namespace, index, &nonce)),
            ),
        )
        .await;
        Self {
            client: Some(client),
            readiness,
            clock,
            version,
            nonce,
            written,
        }
    }

    pub(super) fn impossible(error: &dyn Display) -> Self {
        let why = error.to_string();
        Self {
            client: None,
            readiness: Readiness::Mute(why.clone()),
            clock: None,
            version: Err(why.clone()),
            nonce: String::new(),
            written: Err(why),
        }
    }

    pub(super) fn readyz(&self, server: &Server) -> GateResult {
        let node = Some(server.node.as_str());
        match &self.readiness {
            Readiness::Ready => Gate::Readyz.pass(node, "ready"),
            Readiness::Unready(why) => Gate::Readyz.fail(node, why.clone()),
            Readiness::Mute(why) => {
                Gate::Readyz.fail(node, format!("{} does not answer: {why}", server.address))
            }
        }
    }

    pub(super) fn version(&self, server: &Server) -> GateResult {
        let node = Some(server.node.as_str());
        match (&self.version, &server.expected_version) {
            (Err(why), _) => Gate::Version.unknown(node, why.clone()),
            (Ok(version), Some(expected)) if version != expected => {
                Gate::Version.fail(node, format!("it runs {version}, not {expected}"))
            }
            (Ok(version), _) => Gate::Version.pass(node, version.clone()),
        }
    }

    pub(super) async fn read_back(
        &self,
        server: &Server,
        index: usize,
        namespace: &str,
        through: &Server,
        reader: &Self,
        limit: Duration,
    ) -> GateResult {
        let (gate, node) = (Gate::WriteRead, Some(server.node.as_str()));
        if let Err(why) = &self.written {
            return gate.unknown(node, format!("nothing could be written through it: {why}"));
        }
        let Some(client) = &reader.client else {
            return gate.unknown(node, format!("nothing can be read through {}", through.node));
        };
        match limited(limit, read(client, namespace, index)).await {
            Err(why) => gate.unknown(
                node,
                format!("written; cannot be read through {}: {why}", through.node),
            ),
            Ok(Some(seen)) if seen == self.nonce => gate.pass(node, format!("read through {}", through.node)),
            Ok(_) => gate.fail(node, format!("written; {} does not show it", through.node)),
        }
    }
}

/// Awaits for at most `limit`; the error in one line.
pub(super) async fn limited<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, String> {
    match timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f32())),
    }
}

pub(super) async fn readyz(client: &Client, limit: Duration) -> (Readiness, Option<Timestamp>) {
    let call = async {
        let request = Request::get("/readyz")
            .body(Body::empty())
            .map_err(kube::Error::HttpError)?;
        let response = client.send(request).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok((parts, body))
    };
    match limited(limit, call).await {
        Err(why) => (Readiness::Mute(why), None),
        Ok((parts, body)) => {
            let clock = parts
                .headers
                .get(header::DATE)
                .and_then(|date| date.to_str().ok())
                .and_then(date);
            // On failure the answer lists the checks as ?verbose would.
            let readiness = if parts.status == StatusCode::OK {
                Readiness::Ready
            } else {
                Readiness::Unready(format!(
                    "{} ({})",
                    failing_checks(&String::from_utf8_lossy(&body)),
                    parts.status.as_u16()
                ))
            };
            (readiness, clock)
        }
    }
}

fn date(text: &str) -> Option<Timestamp> {
    let time = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    Timestamp::from_second(time.timestamp()).ok()
}

async fn version(client: &Client) -> Result<String, kube::Error> {
    Ok(client.apiserver_version().await?.git_version)
}

fn key(index: usize) -> String {
    format!("gate.lockkeeper.dev/server-{index}")
}

/// A merge patch of one annotation: servers write side by side without a conflict.
async fn write(client: &Client, namespace: &str, index: usize, nonce: &str) -> Result<(), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let patch = Patch::Merge(json!({"metadata": {"annotations": {key(index): nonce}}}));
    let params = PatchParams::default();
    match api.patch_metadata(GATE_LEASE, &params, &patch).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(GATE_LEASE.to_owned()),
            labels: Some([("app.kubernetes.io/managed-by".to_owned(), "lockkeeper".to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    };
    match api.create(&PostParams::default(), &lease).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        other => drop(other?),
    }
    api.patch_metadata(GATE_LEASE, &params, &patch).await.map(drop)
}

/// Without a resource version: never older than what was committed before the request.
async fn read(client: &Client, namespace: &str, index: usize) -> Result<Option<String>, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = api.get_metadata(GATE_LEASE).await?;
    Ok(lease
        .metadata
        .annotations
        .and_then(|mut all| all.remove(&key(index))))
}

/// One list for three gates: kube-system holds a handful.
pub(super) async fn leases(client: &Client) -> Result<Vec<Lease>, kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-system");
    Ok(api.list(&ListParams::default()).await?.items)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    rows: Option<Vec<Row>>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<serde_json::Value>,
}

/// As `kubectl get nodes` shows them: a table has some 200 bytes a node, the objects have 20 KiB.
pub(super) async fn ready_nodes(client: &Client) -> Result<usize, kube::Error> {
    let request = Request::get("/api/v1/nodes?includeObject=None")
        .header(header::ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(vec![])
        .map_err(kube::Error::HttpError)?;
    let table: Table = client.request(request).await?;
    let Some(status) = table
        .column_definitions
        .iter()
        .position(|column| column.name == "Status")
    else {
        return Err(kube::Error::Service(
            "the table of nodes has no column Status".into(),
        ));
    };
    let is_ready = |row: &Row| {
        row.cells
            .get(status)
            .and_then(serde_json::Value::as_str)
            // `Ready,SchedulingDisabled` for a cordoned one.
            .is_some_and(|text| text.split(',').any(|word| word == "Ready"))
    };
    Ok(table
        .rows
        .unwrap_or_default()
        .iter()
        .filter(|row| is_ready(row))
        .count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_read() {
        assert_eq!(
            date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap().as_second(),
            784_111_777
        );
        assert_eq!(date("yesterday"), None);
    }
}
